//! The facts of a healthy mesh; tests spoil what they are about.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::{
    admissionregistration::v1::{MutatingWebhook, ValidatingWebhookConfiguration},
    core::v1::{Namespace, Pod},
    discovery::v1::EndpointSlice,
};
use remora_core::names::{
    CONTROL_PLANE_SERVICE_ACCOUNT, INJECTOR_SERVICE_ACCOUNT, LEADER_LEASE, LINT_PATH,
    SYSTEM_NAMESPACE, WEBHOOK_PATH,
};
use remora_injector::Owner;
use serde_json::{Value, json};

use crate::check::{
    api::{Listed, Unread},
    certificate::{self, Certificate, testing::root_and_leaf},
    exposition::Exposition,
    facts::{
        After, Before, Certificates, ConnectedProxy, Mesh, NamespaceFacts, Node, PodFacts, Program,
        ProxyState, Replica, Sampled, Trial, TrialOutcome, Webhook,
    },
    permissions::{self, Permission},
};

/// Unix time of the facts.
pub(super) const NOW: i64 = 1_795_220_669;
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Beyond every warning.
const LONG: i64 = 400 * 86_400;

pub(super) fn before() -> Before {
    Before {
        asked: false,
        nodes: Ok(nodes()),
        may_install: permissions::install().into_iter().map(|p| (p, Ok(true))).collect(),
        namespace: Err(Unread::Absent),
        webhook: Err(Unread::Absent),
    }
}

pub(super) fn after() -> After {
    let (root, _) = root_and_leaf("issuer", NOW - 60, LONG);
    let issuer = certificate::read(root.as_bytes()).unwrap();
    let namespace: Namespace = object(json!({ "metadata": { "name": SYSTEM_NAMESPACE } }));
    let lease = object(json!({ "spec": {
        "holderIdentity": "remora-control-plane-0", "leaseDurationSeconds": 15,
        "renewTime": "2026-11-21T00:24:25.000000Z" } }));
    After {
        nodes: Ok(nodes()),
        namespace: Ok(namespace),
        control_plane: program(
            CONTROL_PLANE_SERVICE_ACCOUNT,
            permissions::control_plane(false, true),
        ),
        injector: program(INJECTOR_SERVICE_ACCOUNT, permissions::injector()),
        warnings: BTreeMap::new(),
        agents: None,
        webhook: webhook(),
        lint: Some(Ok(lint(&root))),
        certificates: Certificates {
            issuer: Ok(issuer),
            bundle: Ok(root.clone()),
            copies: vec![("shop".to_owned(), Ok(root))],
        },
        lease: Ok(lease),
        replicas: vec![replica()],
        mesh: mesh(),
    }
}

fn nodes() -> Listed<Node> {
    let node = |name: &str| Node {
        name: name.to_owned(),
        kubelet: "v1.34.4".to_owned(),
        os: "linux".to_owned(),
    };
    Listed { items: vec![node("node1"), node("node2")], cut: false }
}

fn program(name: &'static str, needed: Vec<Permission>) -> Program {
    let pod = format!("{name}-5d9-abcde");
    let well = json!({ "conditions": [{ "type": "Ready", "status": "True" }] });
    Program {
        name,
        deployment: Ok(object(json!({
            "spec": { "replicas": 2, "selector": {}, "template": { "spec": { "containers": [
                { "name": "main", "image": "ghcr.io/remora-io/remora:1" }] } } },
            "status": { "readyReplicas": 2, "updatedReplicas": 2 },
        }))),
        budget: Ok(object(json!({}))),
        service: Ok(object(json!({}))),
        slices: Ok(slices(&[(&pod, true), ("other", false)])),
        pods: Ok(pods(&[(&pod, well)])),
        may: needed.into_iter().map(|permission| (permission, Ok(true))).collect(),
        versions: BTreeMap::from([(pod, VERSION.to_owned())]),
    }
}

/// Pods of ours by name and status.
pub(super) fn pods(rows: &[(&str, Value)]) -> Listed<Pod> {
    let pod = |(name, status): &(&str, Value)| {
        object(json!({ "metadata": { "name": name }, "status": status }))
    };
    Listed { items: rows.iter().map(pod).collect(), cut: false }
}

/// One slice with endpoints by pod and readiness.
pub(super) fn slices(rows: &[(&str, bool)]) -> Listed<EndpointSlice> {
    let endpoint = |(pod, ready): &(&str, bool)| {
        json!({ "addresses": ["10.244.0.9"], "conditions": { "ready": ready },
                "targetRef": { "kind": "Pod", "name": pod } })
    };
    let endpoints: Vec<Value> = rows.iter().map(endpoint).collect();
    let slice = object(json!({ "addressType": "IPv4", "endpoints": endpoints }));
    Listed { items: vec![slice], cut: false }
}

pub(super) fn webhook() -> Webhook {
    use k8s_openapi::ByteString;
    let (root, leaf) = root_and_leaf("remora-injector.remora-system.svc", NOW - 60, LONG);
    let hook = |name: &str| {
        json!({
            "name": name, "admissionReviewVersions": ["v1"], "sideEffects": "NoneOnDryRun",
            "failurePolicy": "Fail",
            "clientConfig": { "caBundle": ByteString(root.clone().into_bytes()),
                "service": { "namespace": SYSTEM_NAMESPACE, "name": INJECTOR_SERVICE_ACCOUNT,
                             "path": WEBHOOK_PATH } },
        })
    };
    let webhooks = [hook("namespace.injector.remora.io"), hook("pod.injector.remora.io")];
    let trial = |namespace: &str, by_pod| Trial {
        namespace: namespace.to_owned(),
        by_pod,
        outcome: Ok(TrialOutcome::Injected),
        took: Duration::from_millis(7),
    };
    Webhook {
        configuration: Ok(object(json!({ "metadata": {}, "webhooks": webhooks }))),
        serving: certificate::read(leaf.as_bytes()),
        trials: vec![trial("default", true), trial("shop", false)],
    }
}

/// The configuration by which the API server asks at admission, with a caBundle.
pub(super) fn lint(pem: &str) -> ValidatingWebhookConfiguration {
    use k8s_openapi::ByteString;
    let hook = |name: &str| {
        json!({
            "name": name, "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "failurePolicy": "Ignore",
            "clientConfig": { "caBundle": ByteString(pem.as_bytes().to_vec()),
                "service": { "namespace": SYSTEM_NAMESPACE, "name": CONTROL_PLANE_SERVICE_ACCOUNT,
                             "path": LINT_PATH } },
        })
    };
    let webhooks = [hook("routes.lint.remora.io"), hook("services.lint.remora.io")];
    object(json!({ "metadata": {}, "webhooks": webhooks }))
}

/// The webhooks of a configuration.
pub(super) fn webhooks(webhook: &Webhook) -> &[MutatingWebhook] {
    webhook.configuration.as_ref().unwrap().webhooks.as_deref().unwrap()
}

/// A serving certificate of an authority that nothing else knows.
pub(super) fn serving_chain() -> Vec<Certificate> {
    let (_, leaf) = root_and_leaf("somebody-else.svc", NOW - 60, LONG);
    certificate::read(leaf.as_bytes()).unwrap()
}

fn replica() -> Replica {
    let proxy = |pod: &str, behind_seconds| ConnectedProxy {
        namespace: "shop".to_owned(),
        pod: pod.to_owned(),
        behind_seconds,
    };
    let version = format!("remora_control_plane_build_info{{version=\"{VERSION}\"}} 1\n");
    Replica {
        pod: format!("{LEADER_LEASE}-5d9-abcde"),
        node: "node1".to_owned(),
        ready: Ok(None),
        clock: None,
        metrics: Ok(Exposition::parse(&version)),
        proxies: Ok(vec![proxy("web-0", 0.0), proxy("web-1", 0.2)]),
    }
}

fn mesh() -> Mesh {
    let shop = NamespaceFacts {
        name: "shop".to_owned(),
        inject: Some("enabled".to_owned()),
        opted_in: true,
        label: Some("enabled".to_owned()),
        ..NamespaceFacts::default()
    };
    let plain = NamespaceFacts { name: "default".to_owned(), ..NamespaceFacts::default() };
    let names = ["web-0", "web-1"];
    let pod = |name: &str| PodFacts {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        node: "node1".to_owned(),
        owner: Owner { kind: "Deployment".to_owned(), name: "web".to_owned() },
        ready: true,
        proxy: ProxyState::Meshed { version: Some(VERSION.to_owned()), ready: true, trouble: None },
    };
    let metrics = format!(
        "remora_inbound_http_requests_total{{tls=\"mtls\"}} 602\n\
         remora_inbound_http_requests_total{{tls=\"none\"}} 3\n\
         remora_tcp_connections_total{{direction=\"inbound\",tls=\"mtls\"}} 4\n\
         remora_tcp_connections_total{{direction=\"outbound\",tls=\"mtls\"}} 4\n\
         remora_discovery_connected 1\n\
         remora_identity_cert_expiry_timestamp_seconds {}\n",
        NOW + 80_000
    );
    let sampled = |name: &str| Sampled {
        namespace: "shop".to_owned(),
        pod: name.to_owned(),
        node: "node2".to_owned(),
        ready: Ok(None),
        clock: None,
        metrics: Ok(Exposition::parse(&metrics)),
    };
    Mesh {
        namespaces: Ok(Listed { items: vec![shop, plain], cut: false }),
        absent: Vec::new(),
        pods: Ok(Listed { items: names.map(pod).to_vec(), cut: false }),
        refused: Vec::new(),
        sample: names.map(sampled).into_iter().collect(),
    }
}

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}
