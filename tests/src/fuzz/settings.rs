//! What manifests and annotations ask for.

use std::{collections::BTreeMap, fmt::Display, path::Path, str::FromStr, sync::Arc};

use ipnet::IpNet;
use k8s_openapi::api::core::v1;
use remora_control_plane::{
    discovery::wire,
    index::{
        Index,
        answer::{Answer, Caller, Target},
    },
    source::{
        Event, Object,
        manifest::{self, Objects, Problem},
    },
};
use remora_core::{
    names::annotations::{self, INJECT},
    settings::{PortSet, parse_duration, parse_subnets},
};
use remora_injector::{ProxySettings, decide::Settings, inject_stream};
use remora_proxy::{
    discovery::service::ServiceState,
    redirect::{Except, Exempt, RedirectConfig, Way, iptables, node},
};
use serde_json::{Value, json};
use tokio::time::Instant;

/// Annotations, one a line as `key: value`. The sidecar's: what is understood can be written and
/// understood again. A Service's: the proxy takes all that the control plane makes of them.
///
/// # Panics
/// Where it does not.
pub fn annotations(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let entries = text.lines().filter_map(|line| line.split_once(": "));
    let map: BTreeMap<String, String> =
        entries.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    for (key, value) in &map {
        one_value(key, value.trim());
    }
    let defaults = ProxySettings::default();
    match ProxySettings::read(&map, &defaults) {
        Ok(read) => {
            let written = written(&read, &map);
            assert_eq!(ProxySettings::read(&written, &defaults).as_ref(), Ok(&read), "{written:?}");
        }
        Err(error) => {
            assert!(map.contains_key(&error.key), "{error}");
            assert!(error.to_string().contains(&error.key), "{error}");
        }
    }
    service(&map);
}

/// A value by itself, against a plain reading of its form.
fn one_value(key: &str, value: &str) {
    use annotations as a;
    match key {
        a::SKIP_INBOUND_PORTS | a::SKIP_OUTBOUND_PORTS | a::OPAQUE_PORTS => {
            let (ours, meant) = (value.parse::<PortSet>().ok(), ports(value));
            assert_eq!(ours.is_some(), meant.is_some(), "{value:?}");
            let (Some(ours), Some(meant)) = (ours, meant) else { return };
            for (from, to) in &meant {
                let around = [from.saturating_sub(1), *from, *to, to.saturating_add(1)];
                for port in around.into_iter().filter_map(|port| u16::try_from(port).ok()) {
                    let inside = meant.iter().any(|(a, b)| (*a..=*b).contains(&u32::from(port)));
                    assert_eq!(ours.contains(port), inside, "{port} of {value:?}");
                }
            }
            again(&ours);
        }
        a::SKIP_SUBNETS => {
            let parts = || value.split(',').map(str::trim).filter(|part| !part.is_empty());
            let a_net = |part: &str| match part.split_once('/') {
                None => part.parse::<std::net::IpAddr>().is_ok(),
                Some(_) => part.parse::<IpNet>().is_ok(),
            };
            let ours = parse_subnets(value).ok();
            assert_eq!(ours.as_ref().map(Vec::len), parts().all(a_net).then(|| parts().count()));
        }
        a::SHUTDOWN_GRACE_PERIOD => {
            let millis = parse_duration(value).ok().map(|time| time.as_millis());
            assert_eq!(millis, duration(value), "{value:?}");
        }
        _ => {}
    }
}

/// `22,8000-8010`.
fn ports(value: &str) -> Option<Vec<(u32, u32)>> {
    let number = |text: &str| {
        let text = text.trim();
        let digits = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
        text.parse().ok().filter(|n| digits && (1..=65535).contains(n))
    };
    let parts = value.split(',').map(str::trim).filter(|part| !part.is_empty());
    let range = |part: &str| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        Some((number(from)?, number(to)?)).filter(|(from, to)| from <= to)
    };
    parts.map(range).collect()
}

/// Milliseconds of `1h2m3s4ms`, each unit at most once and in this order (GEP-2257).
fn duration(value: &str) -> Option<u128> {
    let mut rest = value;
    let mut sum = 0;
    for (unit, millis) in [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, after) = rest.split_at(digits);
        let letters =
            after.len() - after.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        if (1..=5).contains(&digits) && &after[..letters] == unit {
            sum += number.parse::<u128>().ok()? * millis;
            rest = &after[letters..];
        }
    }
    (rest.is_empty() && !value.is_empty()).then_some(sum)
}

/// What is written for a value means the same.
fn again<T: Display + FromStr + PartialEq + std::fmt::Debug>(value: &T) {
    assert_eq!(value.to_string().parse::<T>().ok().as_ref(), Some(value));
}

/// The settings as annotations; those that have no other form than the written one as they were.
fn written(read: &ProxySettings, map: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let subnets: Vec<String> = read.skip_subnets.iter().map(ToString::to_string).collect();
    let grace = format!(
        "{}s{}ms",
        read.shutdown_grace_period.as_secs(),
        read.shutdown_grace_period.subsec_millis()
    );
    let mut written = map.clone();
    for (key, value) in [
        (annotations::SKIP_INBOUND_PORTS, read.skip_inbound_ports.to_string()),
        (annotations::SKIP_OUTBOUND_PORTS, read.skip_outbound_ports.to_string()),
        (annotations::OPAQUE_PORTS, read.opaque_ports.to_string()),
        (annotations::SKIP_SUBNETS, subnets.join(",")),
        (annotations::DEFAULT_INBOUND_POLICY, read.default_inbound_policy.to_string()),
        (annotations::MAX_HEADER_SIZE, read.max_header_size.to_string()),
        (annotations::ACCESS_LOG, read.access_log.to_string()),
        (annotations::TRACE_SAMPLE_RATE, read.trace_sample_rate.to_string()),
    ] {
        written.insert(key.to_owned(), value);
    }
    // Five digits are all that a number may have.
    if read.shutdown_grace_period.as_secs() < 100_000 {
        written.insert(annotations::SHUTDOWN_GRACE_PERIOD.to_owned(), grace);
    }
    written
}

/// From a Service's annotations to the proxy's policy.
fn service(map: &BTreeMap<String, String>) {
    let object: v1::Service = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "shop", "annotations": map},
        "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]},
    }))
    .expect("a Service");
    let mut index = Index::new("cluster.local", "cluster.local");
    let applied = index.apply([Event::Apply(Object::Service(Arc::new((&object).into())))]);
    for warning in &applied.warnings {
        let text = warning.to_string();
        assert!(map.contains_key(&warning.annotation.key) && text.contains("web"), "{text}");
    }
    let target = Target::authority("web.shop:80").expect("an authority");
    let Answer::Service(snapshot) = index.resolve(&target, &Caller::default()) else {
        panic!("the Service is not found")
    };
    let (_, refused) = ServiceState::from_snapshot(
        None,
        &wire::service(&snapshot, &wire::Place::default()),
        1,
        Instant::now().into_std(),
    );
    assert!(refused.is_empty(), "the proxy refuses what the control plane sends: {refused:?}");
}

/// A file of manifests: every problem has a line of the file, and the objects as JSON are the same
/// objects.
///
/// # Panics
/// Where they are not.
pub fn manifest(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let file = Path::new("mesh.yaml");
    // A carriage return alone ends a line too (YAML 1.2 §5.4).
    let lines = text.split(['\n', '\r']).count() as u64 + 1;
    let placed = |problem: &Problem| {
        assert!((1..=lines).contains(&problem.line), "{problem} of {lines} lines");
        assert!(problem.to_string().starts_with("mesh.yaml:"), "{problem}");
    };
    let objects = match manifest::parse(file, text) {
        Ok(objects) => objects,
        Err(problems) => {
            assert!(!problems.is_empty(), "refused without a reason");
            return problems.iter().for_each(placed);
        }
    };
    objects.warnings.iter().for_each(placed);
    let items: Vec<Value> = objects.all().values().map(as_json).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
    let again = manifest::parse(file, &list);
    let again = again.unwrap_or_else(|problems| panic!("refused as JSON: {problems:?}: {list}"));
    assert_eq!(again.all(), objects.all());
    // A thousand Pods are as good as ten.
    let pods = |objects: &Objects| {
        let replicas = |d: &Arc<_>| manifest::expand(d).len();
        objects.deployments().map(replicas).sum::<usize>()
    };
    if pods(&objects) <= 20 {
        assert!(again.resolved() == objects.resolved(), "resolved otherwise");
    }
    if !items.is_empty() {
        let twice = format!("{list}\n---\n{list}");
        assert!(manifest::parse(file, &twice).is_err(), "the same object twice");
    }
}

fn as_json(object: &manifest::Object) -> Value {
    let value = match object {
        manifest::Object::Namespace(o) => serde_json::to_value(&**o),
        manifest::Object::Service(o) => serde_json::to_value(&**o),
        manifest::Object::Pod(o) => serde_json::to_value(&**o),
        manifest::Object::Deployment(o) => serde_json::to_value(&**o),
        manifest::Object::EndpointSlice(o) => serde_json::to_value(&**o),
        manifest::Object::HttpRoute(o) => serde_json::to_value(&**o),
        manifest::Object::GrpcRoute(o) => serde_json::to_value(&**o),
        manifest::Object::TlsRoute(o) => serde_json::to_value(&**o),
        manifest::Object::TcpRoute(o) => serde_json::to_value(&**o),
        manifest::Object::ReferenceGrant(o) => serde_json::to_value(&**o),
    };
    value.expect("JSON")
}

/// Manifests that are given sidecars: the second time changes nothing, and a text without pods stays
/// as it is.
///
/// # Panics
/// Where it does not.
pub fn inject(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let asked = BTreeMap::from([(INJECT.to_owned(), "enabled".to_owned())]);
    let settings = Settings::default();
    let Ok(once) = inject_stream(text, "default", &asked, &settings) else { return };
    if once.report.is_empty() {
        assert_eq!(once.text, text);
    }
    let again = inject_stream(&once.text, "default", &asked, &settings);
    let again =
        again.unwrap_or_else(|error| panic!("not to be read again: {error}: {}", once.text));
    assert_eq!(again.text, once.text);
    assert_eq!(again.report.len(), once.report.len());
}

/// What a pod asks of its node's agent: rules that say what was asked for, in both languages.
///
/// # Panics
/// Where they do not.
pub fn redirect(bytes: &[u8]) {
    let Ok(line) = str::from_utf8(bytes) else { return };
    let Ok((netns, config)) = node::parse_request(line) else { return };
    let flags = flags(&config);
    let written = json!({"netns": netns, "rules": flags}).to_string();
    assert_eq!(node::parse_request(&written), Ok((netns, config.clone())));
    let rules = config.rules();
    let nft = rules.table().to_string();
    let redirects = |to: u16| nft.contains(&format!("redirect to :{to}\n"));
    assert!(redirects(config.outbound_port) && redirects(config.inbound_port), "{nft}");
    let accepted = rules.outbound.except.len() + rules.inbound.except.len();
    assert_eq!(nft.matches(" accept\n").count(), accepted);
    // iptables has each network in one of its two families, and all else in both.
    let networks = |way: &Way| {
        let network = |e: &&Except| matches!(e, Except::Source(_) | Except::Destination(_));
        way.except.iter().filter(network).count()
    };
    let networks = networks(&rules.outbound) + networks(&rules.inbound);
    let script = iptables::print(&rules);
    assert_eq!(script.matches(" -j RETURN\n").count(), 2 * accepted - networks, "{script}");
}

fn flags(config: &RedirectConfig) -> Vec<String> {
    let mut flags = vec![
        format!("--outbound-port={}", config.outbound_port),
        format!("--inbound-port={}", config.inbound_port),
        format!("--admin-port={}", config.admin_port),
        format!("--skip-inbound-ports={}", config.skip_inbound),
        format!("--skip-outbound-ports={}", config.skip_outbound),
        match config.exempt {
            Exempt::Uid(uid) => format!("--proxy-uid={uid}"),
            Exempt::Mark(mark) => format!("--proxy-mark={mark:#x}"),
        },
    ];
    flags.extend(config.skip_subnets.iter().map(|net| format!("--skip-subnets={net}")));
    flags
}
