//! What the control plane's replicas say of themselves.

use std::collections::BTreeSet;

use remora_core::names::{LEADER_LEASE, SYSTEM_NAMESPACE};

use super::{count, named};
use crate::check::{
    api::Unread,
    certificate::span,
    facts::{After, PodFacts, ProxyState, Replica},
    report::Line,
};

/// A proxy that has not confirmed for longer than this has old endpoints.
const BEHIND: f64 = 10.0;

pub(super) fn lines(after: &After, now: i64) -> Vec<Line> {
    let mut lines = match &after.control_plane.pods {
        Ok(_) => ready(&after.replicas),
        Err(why) => {
            vec![Line::skipped("control-plane.ready", format!("control plane not asked: {why}"))]
        }
    };
    lines.extend(proxies(after));
    lines.push(lease(after, now));
    lines
}

fn ready(replicas: &[Replica]) -> Vec<Line> {
    const CHECK: &str = "control-plane.ready";
    if replicas.is_empty() {
        return vec![Line::skipped(CHECK, "control plane not asked: no replica of it runs")];
    }
    let (mut lines, mut fine) = (Vec::new(), 0);
    for replica in replicas {
        match &replica.ready {
            Ok(None) => fine += 1,
            Ok(Some(missing)) => lines.push(Line::failed(
                CHECK,
                format!("replica {} is not ready: {missing}", replica.pod),
                format!("kubectl logs {} -n {SYSTEM_NAMESPACE}", replica.pod),
            )),
            Err(why @ Unread::Forbidden { .. }) => {
                return vec![Line::unread(CHECK, "the control plane's replicas", why)];
            }
            Err(why) => lines.push(unreached(CHECK, &format!("replica {}", replica.pod), why)),
        }
    }
    if lines.is_empty() {
        lines.push(Line::ok(CHECK, format!("{} ready", count(fine, "replica"))));
    }
    lines
}

/// The API server did not get through to a pod.
pub(super) fn unreached(check: &'static str, what: &str, why: &Unread) -> Line {
    Line::failed(
        check,
        format!("{what} does not answer through the API server: {why}"),
        "see kubectl describe pod, and whether the API server's nodes reach pods (firewall, \
         NetworkPolicy)",
    )
}

/// Which proxies are connected, and which of them lag.
fn proxies(after: &After) -> Vec<Line> {
    const CHECK: &str = "control-plane.proxies";
    let mut rows = Vec::new();
    for replica in &after.replicas {
        match &replica.proxies {
            Ok(proxies) => rows.push(proxies),
            // Said by the line about readiness.
            Err(Unread::Forbidden { .. }) => return Vec::new(),
            Err(why) => {
                return vec![unreached(CHECK, &format!("replica {}", replica.pod), why)];
            }
        }
    }
    if rows.is_empty() {
        return Vec::new();
    }
    let each: Vec<String> = rows.iter().map(|row| row.len().to_string()).collect();
    let all = || rows.iter().flat_map(|row| row.iter());
    let connected: BTreeSet<(&str, &str)> =
        all().map(|proxy| (proxy.namespace.as_str(), proxy.pod.as_str())).collect();
    let late: Vec<String> = all()
        .filter(|proxy| proxy.behind_seconds > BEHIND)
        .map(|proxy| format!("{}/{} ({:.0} s)", proxy.namespace, proxy.pod, proxy.behind_seconds))
        .collect();
    let lost: Vec<String> = after
        .mesh
        .pods
        .iter()
        .flat_map(|listed| &listed.items)
        .filter(|pod| is_running(pod) && !connected.contains(&(&*pod.namespace, &*pod.name)))
        .map(|pod| format!("{}/{}", pod.namespace, pod.name))
        .collect();
    let mut lines = Vec::new();
    if !late.is_empty() {
        lines.push(Line::warning(
            CHECK,
            format!("proxies that have not confirmed what they were told: {}", named(&late)),
            "see their logs (kubectl logs POD -c remora-proxy), and whether they get CPU",
        ));
    }
    if !lost.is_empty() {
        lines.push(Line::warning(
            CHECK,
            format!("proxies that are ready but connected to no replica: {}", named(&lost)),
            "what they know stays in force; see their logs (kubectl logs POD -c remora-proxy), and \
             whether NetworkPolicies let them reach remora-system on port 8086",
        ));
    }
    if lines.is_empty() {
        let spread =
            if each.len() > 1 { format!(" ({})", each.join(" + ")) } else { String::new() };
        let furthest = all().map(|proxy| proxy.behind_seconds).fold(0.0, f64::max);
        let text = match connected.len() {
            0 => "no proxy is connected yet".to_owned(),
            1 => format!("1 connected proxy{spread}, behind by {furthest:.1} s"),
            n => format!("{n} connected proxies{spread}, the furthest behind by {furthest:.1} s"),
        };
        lines.push(Line::ok(CHECK, text));
    }
    lines
}

fn is_running(pod: &PodFacts) -> bool {
    matches!(pod.proxy, ProxyState::Meshed { ready: true, .. })
}

fn lease(after: &After, now: i64) -> Line {
    const CHECK: &str = "control-plane.leader";
    let mend = format!(
        "see the replicas' logs: kubectl logs deployment/{LEADER_LEASE} -n {SYSTEM_NAMESPACE}"
    );
    let spec = match &after.lease {
        Ok(lease) => lease.spec.clone().unwrap_or_default(),
        Err(Unread::Absent) => {
            let message = format!(
                "no replica leads: Lease {LEADER_LEASE} is not there; no namespace gets a trust bundle"
            );
            return Line::failed(CHECK, message, mend);
        }
        Err(why) => return Line::unread(CHECK, &format!("Lease {LEADER_LEASE}"), why),
    };
    let holder = spec.holder_identity.unwrap_or_default();
    let duration = i64::from(spec.lease_duration_seconds.unwrap_or(15));
    let Some(renewed) =
        spec.renew_time.map(|time| time.0.as_second()).filter(|_| !holder.is_empty())
    else {
        return Line::failed(CHECK, "no replica leads: no namespace gets a trust bundle", mend);
    };
    let age = now - renewed;
    // A second for whole seconds, one for the round of calls.
    if age > duration + 2 {
        let message = format!(
            "leader {holder} has not renewed its Lease for {}; no other took over",
            span(age)
        );
        return Line::failed(CHECK, message, mend);
    }
    Line::ok(CHECK, format!("{holder} leads, Lease renewed {} ago", span(age.max(0))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{facts::ConnectedProxy, judge::fixtures, report::Status};

    #[test]
    fn a_healthy_control_plane_is_summed_up() {
        let lines = lines(&fixtures::after(), fixtures::NOW);
        assert!(lines.iter().all(|line| line.status == Status::Ok), "{lines:#?}");
        assert_eq!(lines[0].message, "1 replica ready");
        assert_eq!(lines[1].message, "2 connected proxies, the furthest behind by 0.2 s");
    }

    #[test]
    fn a_replica_says_what_it_misses() {
        let mut after = fixtures::after();
        after.replicas[0].ready = Ok(Some("first sync".to_owned()));
        let line = ready(&after.replicas).remove(0);
        assert_eq!(line.status, Status::Failed);
        assert!(line.message.ends_with("is not ready: first sync"));
        after.replicas[0].ready = Err(Unread::Forbidden { need: "get pods/proxy".to_owned() });
        assert_eq!(ready(&after.replicas)[0].status, Status::Skipped);
    }

    #[test]
    fn late_and_lost_proxies_are_named() {
        let mut after = fixtures::after();
        let late = ConnectedProxy {
            namespace: "shop".to_owned(),
            pod: "web-0".to_owned(),
            behind_seconds: 42.0,
        };
        after.replicas[0].proxies = Ok(vec![late]);
        let lines = proxies(&after);
        assert!(lines[0].message.contains("shop/web-0 (42 s)"), "{lines:?}");
        assert!(lines[1].message.contains("no replica: shop/web-1"), "{lines:?}");
    }

    #[test]
    fn a_lease_that_is_old_or_nobodys_fails() {
        let mut after = fixtures::after();
        assert_eq!(lease(&after, fixtures::NOW).status, Status::Ok);
        let line = lease(&after, fixtures::NOW + 300);
        assert!(line.message.contains("has not renewed its Lease for 5 minutes"), "{line:?}");
        let spec = after.lease.as_mut().unwrap().spec.as_mut().unwrap();
        spec.holder_identity = Some(String::new());
        assert_eq!(lease(&after, fixtures::NOW).status, Status::Failed);
        after.lease = Err(Unread::Absent);
        assert_eq!(lease(&after, fixtures::NOW).status, Status::Failed);
    }
}
