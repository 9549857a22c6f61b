//! What is installed: our Deployments and what belongs to them, certificates, replicas.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use k8s_openapi::{
    ByteString,
    api::{
        admissionregistration::v1::ValidatingWebhookConfiguration,
        apps::v1::DaemonSet,
        core::v1::{ConfigMap, Event, Namespace, Pod, Secret},
    },
};
use remora_core::names::{
    CONTROL_PLANE_SERVICE_ACCOUNT, INJECTOR_SERVICE_ACCOUNT, INJECTOR_TLS_SECRET, ISSUER_SECRET,
    LEADER_LEASE, SYSTEM_NAMESPACE, TRUST_BUNDLE_CONFIG_MAP, TRUST_BUNDLE_KEY, labels, ports,
};

use super::{account_may, lint_webhook, mesh, nodes, trial, webhook};
use crate::check::{
    Args,
    api::{Answer, Listed, Read, Reader, Unread, shortened},
    certificate::{self, Certificate},
    exposition::Exposition,
    facts::{After, Certificates, Mesh, Program, Replica, Webhook},
    permissions::{self, Permission},
};

/// Our pods that are looked at, of each program.
const MAX_REPLICAS: usize = 20;
/// Opted-in namespaces whose trust bundle is looked at.
const MAX_COPIES: usize = 500;

/// Reads all of it.
pub(super) async fn after(reader: &Reader, args: &Args, namespace: Read<Namespace>) -> After {
    let ((control_plane, injector), mesh) =
        Box::pin(async { tokio::join!(programs(reader), mesh::mesh(reader, &args.namespace)) })
            .await;
    let replicas = replicas(reader, &control_plane.pods, ports::CONTROL_PLANE_ADMIN, true);
    let injectors = replicas_of_injector(reader, &injector.pods);
    let lease =
        format!("/apis/coordination.k8s.io/v1/namespaces/{SYSTEM_NAMESPACE}/leases/{LEADER_LEASE}");
    let need = format!("get leases in {SYSTEM_NAMESPACE}");
    let (agents, lint) = tokio::join!(agents(reader, &injector), lint(reader, &control_plane));
    let (replicas, injectors, lease) =
        Box::pin(async { tokio::join!(replicas, injectors, reader.get(&lease, &need)) }).await;
    let (warnings, webhook, certificates, nodes) = Box::pin(async {
        tokio::join!(
            warnings(reader, [&control_plane, &injector]),
            webhook_facts(reader, &mesh),
            certificates(reader, &mesh),
            nodes(reader)
        )
    })
    .await;
    let control_plane = Program { versions: versions(&replicas), ..control_plane };
    let injector = Program { versions: versions(&injectors), ..injector };
    After {
        nodes,
        namespace,
        control_plane,
        injector,
        agents,
        warnings,
        webhook,
        lint,
        certificates,
        lease,
        replicas,
        mesh,
    }
}

async fn programs(reader: &Reader) -> (Program, Program) {
    let (mut control_plane, injector) = tokio::join!(
        program(reader, CONTROL_PLANE_SERVICE_ACCOUNT, "control-plane", Vec::new()),
        program(reader, INJECTOR_SERVICE_ACCOUNT, "injector", permissions::injector())
    );
    let needed = permissions::control_plane(
        control_plane.has_flag("--external-issuer"),
        control_plane.answers_at_admission(),
    );
    control_plane.may = account_may(reader, CONTROL_PLANE_SERVICE_ACCOUNT, needed).await;
    (control_plane, injector)
}

/// The redirect agents, where sidecars ask them.
async fn agents(reader: &Reader, injector: &Program) -> Option<Read<DaemonSet>> {
    if !injector.has_flag("--redirect-agent") {
        return None;
    }
    let path =
        format!("/apis/apps/v1/namespaces/{SYSTEM_NAMESPACE}/daemonsets/remora-redirect-agent");
    Some(reader.get(&path, &format!("get daemonsets in {SYSTEM_NAMESPACE}")).await)
}

/// What the API server asks the control plane at admission, where that answers.
async fn lint(
    reader: &Reader,
    control_plane: &Program,
) -> Option<Read<ValidatingWebhookConfiguration>> {
    if !control_plane.answers_at_admission() {
        return None;
    }
    Some(lint_webhook(reader).await)
}

async fn program(
    reader: &Reader,
    name: &'static str,
    component: &str,
    needed: Vec<Permission>,
) -> Program {
    let ns = SYSTEM_NAMESPACE;
    let need = |verb: &str, resource: &str| format!("{verb} {resource} in {ns}");
    let deployment = format!("/apis/apps/v1/namespaces/{ns}/deployments/{name}");
    let budget = format!("/apis/policy/v1/namespaces/{ns}/poddisruptionbudgets/{name}");
    let service = format!("/api/v1/namespaces/{ns}/services/{name}");
    let slices = format!(
        "/apis/discovery.k8s.io/v1/namespaces/{ns}/endpointslices?labelSelector=kubernetes.io/service-name%3D{name}"
    );
    let pods = format!(
        "/api/v1/namespaces/{ns}/pods?labelSelector={}%3D{component}",
        labels::COMPONENT.replace('/', "%2F")
    );
    let needs = [
        need("get", "deployments"),
        need("get", "poddisruptionbudgets"),
        need("get", "services"),
        need("list", "endpointslices"),
        need("list", "pods"),
    ];
    let (deployment, budget, service, slices, pods, may) = tokio::join!(
        reader.get(&deployment, &needs[0]),
        reader.get(&budget, &needs[1]),
        reader.get(&service, &needs[2]),
        reader.list(&slices, &needs[3], 100, Some),
        reader.list(&pods, &needs[4], MAX_REPLICAS, Some),
        account_may(reader, name, needed)
    );
    Program { name, deployment, budget, service, slices, pods, may, versions: BTreeMap::new() }
}

async fn replicas_of_injector(reader: &Reader, pods: &Read<Listed<Pod>>) -> Vec<Replica> {
    replicas(reader, pods, ports::INJECTOR_ADMIN, false).await
}

/// Asks each of our pods that runs.
async fn replicas(
    reader: &Reader,
    pods: &Read<Listed<Pod>>,
    port: u16,
    has_proxies: bool,
) -> Vec<Replica> {
    let Ok(pods) = pods else { return Vec::new() };
    let running = pods.items.iter().filter(|pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        pod.metadata.deletion_timestamp.is_none() && phase == Some("Running")
    });
    let asked = running.take(MAX_REPLICAS).filter_map(|pod| {
        let name = pod.metadata.name.as_deref()?;
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
        Some(async move {
            let ns = SYSTEM_NAMESPACE;
            let (ready, metrics, proxies) = tokio::join!(
                reader.pod(ns, name, port, "/ready"),
                reader.pod(ns, name, port, "/metrics"),
                async {
                    if !has_proxies {
                        return Ok(Vec::new());
                    }
                    reader.pod(ns, name, port, "/proxies").await.and_then(|answer| answer.parse())
                }
            );
            let clock = ready.as_ref().ok().and_then(|answer| answer.clock);
            Replica {
                pod: name.to_owned(),
                node,
                ready: readiness(ready),
                clock,
                metrics: metrics.map(|answer| Exposition::parse(&answer.text())),
                proxies,
            }
        })
    });
    join_all(asked).await
}

/// `Ok(None)`: ready, else what the pod says is missing.
pub(super) fn readiness(answer: Read<Answer>) -> Read<Option<String>> {
    answer.map(|answer| {
        let said = || shortened(&answer.text()).trim_start_matches("not ready: ").to_owned();
        (!answer.status.is_success()).then(said)
    })
}

fn versions(replicas: &[Replica]) -> BTreeMap<String, String> {
    let version =
        |replica: &Replica| Some((replica.pod.clone(), replica.metrics.as_ref().ok()?.version()?));
    replicas.iter().filter_map(version).collect()
}

/// The last warning event of each pod of ours that is not ready.
async fn warnings(reader: &Reader, programs: [&Program; 2]) -> BTreeMap<String, String> {
    let pods = programs.into_iter().flat_map(|program| program.pods.iter());
    let not_ready = pods.flat_map(|listed| &listed.items).filter(|pod| !is_ready(pod));
    let asked = not_ready.take(MAX_REPLICAS).filter_map(|pod| {
        let name = pod.metadata.name.clone()?;
        Some(async move {
            let path = format!(
                "/api/v1/namespaces/{SYSTEM_NAMESPACE}/events?fieldSelector=involvedObject.name%3D{name},type%3DWarning"
            );
            let need = format!("list events in {SYSTEM_NAMESPACE}");
            let events: Listed<Event> = reader.list(&path, &need, 250, Some).await.ok()?;
            let last = events.items.into_iter().max_by_key(|event| {
                event.last_timestamp.as_ref().map(|time| time.0.as_second())
            })?;
            let reason = last.reason.unwrap_or_default();
            Some((name, shortened(&format!("{reason}: {}", last.message.unwrap_or_default()))))
        })
    });
    join_all(asked).await.into_iter().flatten().collect()
}

pub(in crate::check) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref());
    conditions.unwrap_or_default().iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

async fn webhook_facts(reader: &Reader, mesh: &Mesh) -> Webhook {
    let (configuration, serving, trials) = tokio::join!(
        webhook(reader),
        chain(reader, INJECTOR_TLS_SECRET),
        trial::trials(reader, mesh)
    );
    Webhook { configuration, serving, trials }
}

async fn certificates(reader: &Reader, mesh: &Mesh) -> Certificates {
    let opted_in = mesh.namespaces.iter().flat_map(|listed| &listed.items);
    let names = opted_in.filter(|ns| ns.opted_in && !ns.terminating).map(|ns| ns.name.clone());
    let copies = names.take(MAX_COPIES).map(|name| async {
        let copy = bundle(reader, &name).await;
        (name, copy)
    });
    let (issuer, ours, copies) = tokio::join!(
        chain(reader, ISSUER_SECRET),
        bundle(reader, SYSTEM_NAMESPACE),
        join_all(copies)
    );
    Certificates { issuer, bundle: ours, copies }
}

/// The certificates of a Secret of ours; its key is read with it, and dropped here.
async fn chain(reader: &Reader, secret: &str) -> Read<Vec<Certificate>> {
    let path = format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}/secrets/{secret}");
    let read: Secret = reader.get(&path, &format!("get secrets in {SYSTEM_NAMESPACE}")).await?;
    match read.data.and_then(|mut data| data.remove("tls.crt")) {
        Some(ByteString(pem)) => certificate::read(&pem),
        None => Err(Unread::failed(format_args!("Secret {secret} has no tls.crt"))),
    }
}

async fn bundle(reader: &Reader, namespace: &str) -> Read<String> {
    let name = TRUST_BUNDLE_CONFIG_MAP;
    let path = format!("/api/v1/namespaces/{namespace}/configmaps/{name}");
    let read: ConfigMap = reader.get(&path, &format!("get configmaps in {namespace}")).await?;
    read.data
        .and_then(|mut data| data.remove(TRUST_BUNDLE_KEY))
        .ok_or_else(|| Unread::failed(format_args!("ConfigMap {name} has no {TRUST_BUNDLE_KEY}")))
}
