//! The serving certificate from its making to its turn-over, with several replicas.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use remora_core::drain::Drain;
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, time::Instant};

use super::{
    START,
    api::{Api, PATIENCE},
    bundle, fixed_time,
    https::{NAME, connect, post},
    recorded, reviewer, time,
};
use crate::webhook::{
    certs::{self, Context, Timing, bundle::Published, material::Material},
    metrics::Metrics,
    server,
};

const SECRET: &str = "api/v1/namespaces/remora-system/secrets/remora-injector-tls";
const CONFIGURATION: &str =
    "apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/remora-injector";
const DAY: u64 = 24 * 3600;

fn configuration() -> Value {
    let webhook = |name| {
        json!({
            "name": name, "admissionReviewVersions": ["v1"], "sideEffects": "NoneOnDryRun",
            "clientConfig": { "service": { "namespace": "remora-system", "name": "remora-injector" } }
        })
    };
    json!({
        "metadata": {},
        "webhooks": [webhook("namespace.injector.remora.io"), webhook("pod.injector.remora.io")]
    })
}

/// One replica's certificate tasks.
struct Replica {
    newest: certs::Newest,
    serving: watch::Receiver<Option<Arc<ServerConfig>>>,
    drain: Drain,
}

fn replica(api: &Api, clock: fn() -> SystemTime, settle: Duration) -> Replica {
    let (drain, watch) = Drain::new();
    let timing = Timing {
        look: Duration::from_millis(20),
        settle,
        apart: Duration::ZERO,
        patience: Duration::from_secs(20),
    };
    let context = Context {
        client: api.client(),
        namespace: "remora-system".into(),
        configuration: "remora-injector".into(),
        names: vec![NAME.into(), format!("{NAME}.cluster.local")],
        clock,
        timing,
        metrics: Arc::new(Metrics::default()),
        drain: watch,
    };
    let (made, newest) = watch::channel(None);
    let (seen, published) = watch::channel(Published::Unknown);
    let (serve, serving) = watch::channel(None);
    tokio::spawn(certs::keep(context.clone(), made));
    tokio::spawn(certs::bundle::keep(context.clone(), newest.clone(), seen));
    tokio::spawn(certs::serving::choose(context, newest.clone(), published, serve));
    Replica { newest, serving, drain }
}

/// The root of the newest certificate, once there is one that is not `old`.
async fn root(replica: &mut Replica, old: Option<&CertificateDer<'_>>) -> CertificateDer<'static> {
    let newest = replica.newest.wait_for(|newest| {
        newest.as_ref().is_some_and(|material| Some(&material.roots()[0]) != old)
    });
    let newest = tokio::time::timeout(PATIENCE, newest).await.expect("a certificate in time");
    newest.unwrap().as_ref().unwrap().roots()[0].clone()
}

fn has_root(configuration: Option<&Value>, root: &CertificateDer<'_>) -> bool {
    let webhooks = configuration.and_then(|c| c["webhooks"].as_array());
    webhooks.is_some_and(|list| list.iter().all(|webhook| bundle(webhook).contains(root)))
}

#[tokio::test]
async fn replicas_that_start_together_agree_on_one_certificate() {
    let api = Api::new();
    api.put(CONFIGURATION, configuration());
    let mut replicas: Vec<_> =
        (0..3).map(|_| replica(&api, fixed_time, Duration::from_millis(10))).collect();
    let mut roots = Vec::new();
    for replica in &mut replicas {
        roots.push(root(replica, None).await);
        replica.serving.wait_for(Option::is_some).await.unwrap();
    }
    roots.dedup();
    assert_eq!(roots.len(), 1);
    api.until(CONFIGURATION, |c| has_root(c, &roots[0])).await;
    let secret = api.get(SECRET).unwrap();
    assert_eq!(secret["type"], "kubernetes.io/tls");
    assert!(["tls.crt", "tls.key", "ca.crt"].iter().all(|key| secret["data"][key].is_string()));
}

#[tokio::test]
async fn a_ca_bundle_that_is_reset_is_written_again() {
    let api = Api::new();
    let mut replica = replica(&api, fixed_time, Duration::from_millis(10));
    let root = root(&mut replica, None).await;
    // The configuration may come later than the injector.
    replica.serving.wait_for(Option::is_some).await.unwrap();
    api.put(CONFIGURATION, configuration());
    api.until(CONFIGURATION, |c| has_root(c, &root)).await;
    api.put(CONFIGURATION, configuration());
    api.until(CONFIGURATION, |c| has_root(c, &root)).await;
    replica.drain.drain(Duration::ZERO).await;
}

#[tokio::test]
async fn a_secret_that_is_deleted_or_damaged_is_made_again_and_the_old_root_stays_trusted() {
    let api = Api::new();
    api.put(CONFIGURATION, configuration());
    let mut replica = replica(&api, fixed_time, Duration::from_millis(10));
    let first = root(&mut replica, None).await;
    api.delete(SECRET);
    let second = root(&mut replica, Some(&first)).await;
    api.until(CONFIGURATION, |c| has_root(c, &first) && has_root(c, &second)).await;
    let mut damaged = api.get(SECRET).unwrap();
    damaged["data"]["tls.key"] = json!("bm9uc2Vuc2U=");
    api.put(SECRET, damaged);
    let third = root(&mut replica, Some(&second)).await;
    let roots = [first, second, third];
    api.until(CONFIGURATION, |c| roots.iter().all(|root| has_root(c, root))).await;
}

#[tokio::test]
async fn an_api_server_that_fails_for_a_while_is_asked_again() {
    let api = Api::new();
    api.put(CONFIGURATION, configuration());
    api.break_with(Some(503));
    let mut replica = replica(&api, fixed_time, Duration::from_millis(10));
    tokio::task::yield_now().await;
    assert!(replica.newest.borrow().is_none());
    api.break_with(None);
    let root = root(&mut replica, None).await;
    api.until(CONFIGURATION, |c| has_root(c, &root)).await;
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_not_served_before_its_root_has_settled() {
    let api = Api::new();
    api.put(CONFIGURATION, configuration());
    let mut replica = replica(&api, fixed_time, Duration::from_secs(5));
    let root = root(&mut replica, None).await;
    api.until(CONFIGURATION, |c| has_root(c, &root)).await;
    let trusted = Instant::now();
    assert!(replica.serving.borrow().is_none());
    replica.serving.wait_for(Option::is_some).await.unwrap();
    assert!(trusted.elapsed() >= Duration::from_secs(5), "{:?}", trusted.elapsed());
}

#[test]
fn a_secret_is_read_as_it_was_written_and_nothing_else_is() {
    let names = [NAME.to_owned()];
    let now = time(START);
    let material = Material::make(&names, &[], now).unwrap();
    let secret = material.secret("remora-system", None);
    assert!(Material::read(&secret, &names, now).unwrap().is_same(&material));
    assert!(Material::read(&secret, &["other.svc".into()], now).is_err(), "another name");
    assert!(Material::read(&secret, &names, time(START + 91 * DAY)).is_err(), "run out");
    let other = Material::make(&names, &[], now).unwrap().secret("remora-system", None);
    for key in ["tls.crt", "tls.key", "ca.crt"] {
        let mut mixed = secret.clone();
        let value = other.data.as_ref().unwrap()[key].clone();
        mixed.data.as_mut().unwrap().insert(key.into(), value);
        assert!(Material::read(&mixed, &names, now).is_err(), "another {key}");
        mixed.data.as_mut().unwrap().remove(key);
        let error = Material::read(&mixed, &names, now).err().unwrap().to_string();
        assert!(error.contains(key), "{error}");
    }
}

/// Days that the clock of the test below is ahead.
static AHEAD: AtomicU64 = AtomicU64::new(0);

fn jumping() -> SystemTime {
    time(START + AHEAD.load(Relaxed) * DAY)
}

/// Two replicas behind one bundle, a caller whose knowledge of it is always one round old, and a
/// clock that jumps over one renewal after the other.
#[tokio::test]
async fn no_connection_fails_while_certificates_turn_over() {
    let api = Api::new();
    api.put(CONFIGURATION, configuration());
    let mut ports = Vec::new();
    let mut replicas = Vec::new();
    for _ in 0..2 {
        let mut replica = replica(&api, jumping, Duration::from_secs(1));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        ports.push(listener.local_addr().unwrap().port());
        let (reviewer, _queue) = reviewer(&api);
        let (_, watch) = Drain::new();
        let serving = replica.serving.clone();
        tokio::spawn(server::run(listener, serving, reviewer, Duration::ZERO, watch));
        replica.serving.wait_for(Option::is_some).await.unwrap();
        replicas.push(replica);
    }
    let known = || bundle(&api.get(CONFIGURATION).unwrap()["webhooks"][0]);
    let review = recorded("deployment.create").to_string();
    let mut trusted = known();
    let mut leaves: Vec<CertificateDer<'static>> = Vec::new();
    let (mut calls, mut turns) = (0, 0);
    while turns < 2 {
        let mut served = Vec::new();
        for port in &ports {
            let now = START + AHEAD.load(Relaxed) * DAY;
            let connected = connect(*port, &trusted, now, rustls::ALL_VERSIONS).await;
            let (mut sender, leaf) = connected.unwrap_or_else(|e| panic!("call {calls}: {e}"));
            let response = sender.send_request(post(review.clone())).await.unwrap();
            assert_eq!(response.status(), http::StatusCode::OK);
            calls += 1;
            served.push(leaf);
        }
        trusted = known();
        if served[0] == served[1] && !leaves.contains(&served[0]) {
            turns = leaves.len();
            leaves.push(served[0].clone());
            AHEAD.fetch_add(61, Relaxed);
        }
    }
    assert!(calls > 10, "{calls} calls");
}
