//! What a few of the proxies say of themselves: whether traffic is carried over mTLS.

use std::collections::BTreeMap;

use super::{control_plane::unreached, count, grouped};
use crate::check::{
    api::Unread,
    certificate::span,
    exposition::Exposition,
    facts::{After, ProxyState, Sampled},
    gather::SAMPLE,
    report::Line,
};

/// Proxies renew at half to two thirds of their certificate's life; this little means trouble.
const RENEWAL_DUE: i64 = 3600;

const REQUESTS_IN: &str = "remora_inbound_http_requests_total";
const CONNECTIONS: &str = "remora_tcp_connections_total";
const CONNECTED: &str = "remora_discovery_connected";
const EXPIRY: &str = "remora_identity_cert_expiry_timestamp_seconds";

pub(super) fn lines(after: &After, now: i64) -> Vec<Line> {
    const CHECK: &str = "data-path.sample";
    let sample = &after.mesh.sample;
    if sample.is_empty() {
        let line = match &after.mesh.pods {
            Ok(_) => Line::skipped(CHECK, "data path not checked: no proxy is ready"),
            Err(why) => Line::skipped(CHECK, format!("data path not checked: {why}")),
        };
        return vec![line];
    }
    let forbidden = sample.iter().find_map(|proxy| match &proxy.metrics {
        Err(why @ Unread::Forbidden { .. }) => Some(why),
        _ => None,
    });
    if let Some(why) = forbidden {
        return vec![Line::unread(CHECK, "what the proxies say", why)];
    }
    let mut by_namespace: BTreeMap<&str, Vec<&Sampled>> = BTreeMap::new();
    for proxy in sample {
        by_namespace.entry(&proxy.namespace).or_default().push(proxy);
    }
    let mut lines: Vec<Line> = sample.iter().flat_map(|proxy| trouble(proxy, now)).collect();
    lines.extend(
        by_namespace
            .iter()
            .map(|(namespace, proxies)| summary(namespace, proxies, running(after, namespace))),
    );
    let all = after.mesh.pods.iter().flat_map(|listed| &listed.items);
    if all.filter(|pod| matches!(pod.proxy, ProxyState::Meshed { ready: true, .. })).count()
        > SAMPLE
    {
        let text = format!("only {SAMPLE} proxies were asked, by turns from each namespace");
        lines.push(Line::ok(CHECK, text));
    }
    lines
}

/// Proxies of a namespace that run, asked or not.
fn running(after: &After, namespace: &str) -> usize {
    let pods = after.mesh.pods.iter().flat_map(|listed| &listed.items);
    pods.filter(|pod| {
        pod.namespace == namespace && matches!(pod.proxy, ProxyState::Meshed { ready: true, .. })
    })
    .count()
}

fn trouble(proxy: &Sampled, now: i64) -> Vec<Line> {
    const CHECK: &str = "data-path.proxy";
    let who = format!("proxy of {}/{}", proxy.namespace, proxy.pod);
    let logs = format!("kubectl logs {} -n {} -c remora-proxy", proxy.pod, proxy.namespace);
    let mut lines = Vec::new();
    match &proxy.ready {
        Ok(None) => {}
        Ok(Some(missing)) => {
            lines.push(Line::failed(CHECK, format!("{who} is not ready: {missing}"), logs.clone()));
        }
        Err(why) => return vec![unreached(CHECK, &who, why)],
    }
    let metrics = match &proxy.metrics {
        Ok(metrics) => metrics,
        Err(why) => {
            lines.push(unreached(CHECK, &who, why));
            return lines;
        }
    };
    if metrics.value(CONNECTED) == Some(0.0) {
        lines.push(Line::failed(
            CHECK,
            format!("{who} is not connected to the control plane; what it knows stays in force"),
            logs.clone(),
        ));
    }
    let left = metrics.value(EXPIRY).map(|ends| ends as i64 - now);
    match left {
        None => {
            lines.push(Line::failed(CHECK, format!("{who} has no certificate"), logs));
        }
        Some(left) if left <= 0 => {
            let message = format!("certificate of the {who} ran out {} ago", span(-left));
            lines.push(Line::failed(CHECK, message, logs));
        }
        Some(left) if left < RENEWAL_DUE => {
            let message =
                format!("certificate of the {who} runs out in {}, not renewed", span(left));
            lines.push(Line::warning(CHECK, message, logs));
        }
        Some(_) => {}
    }
    lines
}

fn summary(namespace: &str, proxies: &[&Sampled], running: usize) -> Line {
    const CHECK: &str = "data-path.traffic";
    let metrics: Vec<&Exposition> =
        proxies.iter().filter_map(|proxy| proxy.metrics.as_ref().ok()).collect();
    let sum = |name: &str, labels: &[(&str, &str)]| -> u64 {
        metrics.iter().map(|metrics| metrics.sum(name, labels)).sum::<f64>() as u64
    };
    let requests = |tls| sum(REQUESTS_IN, &[("tls", tls)]);
    let connections = |direction, tls| sum(CONNECTIONS, &[("direction", direction), ("tls", tls)]);
    let ready = proxies.iter().filter(|proxy| proxy.ready == Ok(None)).count();
    let asked = proxies.len();
    let told = if ready == asked && asked == running {
        format!("{namespace}: {ready} {} ready", if ready == 1 { "proxy" } else { "proxies" })
    } else {
        format!("{namespace}: {asked} of {running} proxies asked, {ready} of them ready")
    };
    let (mutual_in, mutual_out) = (connections("inbound", "mtls"), connections("outbound", "mtls"));
    if mutual_in + mutual_out + requests("mtls") == 0 {
        return Line::ok(
            CHECK,
            format!(
                "{told}; no mTLS seen yet: no pod of the mesh called another since they started"
            ),
        );
    }
    let mut plain = requests("none");
    let unit = if plain + requests("mtls") == 0 {
        plain = connections("inbound", "none");
        format!("{} over mTLS in", count(mutual_in as usize, "connection"))
    } else {
        format!("{} over mTLS in", count(requests("mtls") as usize, "request"))
    };
    Line::ok(
        CHECK,
        format!(
            "{told}, {unit}, {} without (probes and callers outside the mesh), {} over mTLS out",
            grouped(plain),
            count(mutual_out as usize, "connection")
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{judge::fixtures, report::Status};

    #[test]
    fn traffic_is_summed_by_namespace() {
        let lines = lines(&fixtures::after(), fixtures::NOW);
        assert_eq!(lines.len(), 1, "{lines:#?}");
        assert_eq!(
            lines[0].message,
            "shop: 2 proxies ready, 1,204 requests over mTLS in, 6 without (probes and \
             callers outside the mesh), 8 connections over mTLS out"
        );
    }

    #[test]
    fn a_proxy_in_trouble_is_named() {
        let now = fixtures::NOW;
        let judged = |metrics: String| {
            let mut proxy = fixtures::after().mesh.sample.remove(0);
            proxy.metrics = Ok(Exposition::parse(&metrics));
            trouble(&proxy, now)
        };
        assert_eq!(judged(format!("{CONNECTED} 1\n{EXPIRY} {}\n", now + 80_000)), []);
        let lines = judged(format!("{CONNECTED} 0\n{EXPIRY} {}\n", now - 120));
        assert!(lines[0].message.contains("not connected"), "{lines:?}");
        assert!(lines[1].message.ends_with("ran out 2 minutes ago"), "{lines:?}");
        let lines = judged(format!("{CONNECTED} 1\n{EXPIRY} {}\n", now + 60));
        assert_eq!(lines[0].status, Status::Warning);
        let lines = judged(format!("{CONNECTED} 1\n"));
        assert!(lines[0].message.ends_with("has no certificate"), "{lines:?}");
    }

    #[test]
    fn a_mesh_that_nobody_uses_yet_is_no_trouble() {
        let mut after = fixtures::after();
        for proxy in &mut after.mesh.sample {
            let text = format!("{CONNECTED} 1\n{EXPIRY} {}\n", fixtures::NOW + 80_000);
            proxy.metrics = Ok(Exposition::parse(&text));
        }
        let lines = lines(&after, fixtures::NOW);
        assert_eq!((lines.len(), lines[0].status), (1, Status::Ok));
        assert!(lines[0].message.contains("no mTLS seen yet"));
    }

    #[test]
    fn proxies_that_may_not_be_asked_are_skipped() {
        let mut after = fixtures::after();
        let need = "get pods/proxy in shop".to_owned();
        after.mesh.sample[0].metrics = Err(Unread::Forbidden { need });
        let lines = lines(&after, fixtures::NOW);
        assert_eq!((lines.len(), lines[0].status), (1, Status::Skipped));
        after.mesh.sample.clear();
        assert_eq!(super::lines(&after, fixtures::NOW)[0].status, Status::Skipped);
    }
}
