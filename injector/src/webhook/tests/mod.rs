//! The webhook as an API server sees it.

mod api;
mod certificates;
mod https;
mod namespaces;
mod reviews;
mod schema;
mod written_events;

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};

use self::api::Api;
use super::{
    events::{Events, Queue},
    metrics::Metrics,
    namespaces::Namespaces,
    review::Reviewer,
};
use crate::Settings;

/// A moment in 2027.
const START: u64 = 1_800_000_000;

const NAMESPACES: &str = "api/v1/namespaces";

fn time(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn fixed_time() -> SystemTime {
    time(START)
}

fn namespace(annotations: &Value, labels: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "annotations": annotations, "labels": labels }
    })
}

fn enabled() -> Value {
    namespace(&json!({ "remora.io/inject": "enabled" }), &json!({ "remora.io/inject": "enabled" }))
}

/// A reviewer before an API server that has the namespaces of the recorded reviews, enabled.
fn reviewer(api: &Api) -> (Arc<Reviewer>, Queue) {
    for name in ["shop", "cron", "m-reinvoke"] {
        api.put(&format!("{NAMESPACES}/{name}"), enabled());
    }
    let metrics = Arc::new(Metrics::default());
    let (events, queue) = Events::new(Arc::clone(&metrics));
    let namespaces = Namespaces::new(api.client(), "remora-system".into(), Arc::clone(&metrics));
    let reviewer = Reviewer { settings: Settings::default(), namespaces, events, metrics };
    (Arc::new(reviewer), queue)
}

/// The bodies of `recorded/`, with their names.
const RECORDED: [(&str, &str); 19] = [
    ("bare-pod.create", include_str!("recorded/bare-pod.create.json")),
    ("bare-pod.delete", include_str!("recorded/bare-pod.delete.json")),
    ("cronjob.create", include_str!("recorded/cronjob.create.json")),
    ("daemonset.create", include_str!("recorded/daemonset.create.json")),
    ("deployment.create", include_str!("recorded/deployment.create.json")),
    ("dry-run.create", include_str!("recorded/dry-run.create.json")),
    ("ephemeral.update", include_str!("recorded/ephemeral.update.ephemeralcontainers.json")),
    ("generate-name.create", include_str!("recorded/generate-name.create.json")),
    ("host-network.create", include_str!("recorded/host-network.create.json")),
    ("job.create", include_str!("recorded/job.create.json")),
    ("label-patch.update", include_str!("recorded/label-patch.update.json")),
    ("no-automount.create", include_str!("recorded/no-automount.create.json")),
    ("opted-out.create", include_str!("recorded/opted-out.create.json")),
    ("probes.create", include_str!("recorded/probes.create.json")),
    ("projected-token.create", include_str!("recorded/projected-token.create.json")),
    ("reinvoke.first.create.2", include_str!("recorded/reinvoke.first.create.2.json")),
    ("server-side-apply.create", include_str!("recorded/server-side-apply.create.json")),
    ("sidecar-and-init.create", include_str!("recorded/sidecar-and-init.create.json")),
    ("statefulset.create", include_str!("recorded/statefulset.create.json")),
];

fn recorded(name: &str) -> Value {
    let (_, text) = RECORDED.iter().find(|(n, _)| *n == name).unwrap();
    serde_json::from_str(text).unwrap()
}

/// The certificates of a caBundle, as JSON has it.
fn bundle(webhook: &Value) -> Vec<CertificateDer<'static>> {
    use rustls_pki_types::pem::PemObject;
    let bundle: k8s_openapi::ByteString =
        serde_json::from_value(webhook["clientConfig"]["caBundle"].clone()).unwrap_or_default();
    CertificateDer::pem_slice_iter(&bundle.0).map(Result::unwrap).collect()
}
