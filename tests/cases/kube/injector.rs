//! The injector, from an annotated namespace to an admitted pod.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use k8s_openapi::ByteString;
use remora_tests::wait::within;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::cluster::{Cluster, is_injected, pod};

const CONFIGURATION: &str = "mutatingwebhookconfigurations";

#[tokio::test]
async fn an_annotated_namespace_gets_its_label_and_its_pods_their_sidecars() {
    let cluster = Cluster::install().await;
    cluster.api.namespace("shop", &[]);
    let injector = cluster.injector().await;
    injector.ready().await;
    assert!(!is_injected(&cluster.create_pod("shop", "before").await.unwrap()));
    assert!(cluster.api.admissions().is_empty(), "nobody asked for the injector");

    let annotate = |value: Value| {
        let patch = json!({"metadata": {"annotations": {"remora.io/inject": value}}});
        cluster.api.merge("namespaces", "", "shop", patch);
    };
    annotate(json!("enabled"));
    cluster.labelled("shop", Some("enabled")).await;
    assert!(is_injected(&cluster.create_pod("shop", "web").await.unwrap()));
    let mut out = pod("out");
    out["metadata"]["annotations"] = json!({"remora.io/inject": "disabled"});
    assert!(!is_injected(&cluster.create("shop", out).await.unwrap()));

    annotate(Value::Null);
    cluster.labelled("shop", None).await;
    assert!(!is_injected(&cluster.create_pod("shop", "after").await.unwrap()));
    let mut alone = pod("alone");
    alone["metadata"]["annotations"] = json!({"remora.io/inject": "enabled"});
    assert!(is_injected(&cluster.create("shop", alone).await.unwrap()));
}

#[tokio::test]
async fn pods_that_did_not_ask_do_not_notice_a_dead_injector() {
    let cluster = Cluster::install().await;
    cluster.api.namespace("plain", &[]);
    cluster.api.namespace("shop", &[("remora.io/inject", "enabled")]);
    let injector = cluster.injector().await;
    injector.ready().await;
    cluster.labelled("shop", Some("enabled")).await;
    let addr = injector.addr;
    injector.end().await;
    assert!(cluster.create_pod("plain", "a").await.is_ok());
    assert!(cluster.create_pod("kube-system", "a").await.is_ok());
    let refused = cluster.create_pod("shop", "a").await.unwrap_err();
    assert!(refused.contains("connection refused"), "{addr}: {refused}");
    assert!(refused.contains("namespace.injector.remora.io"), "{refused}");
}

#[tokio::test]
async fn replicas_agree_on_one_certificate() {
    let cluster = Cluster::install().await;
    cluster.api.namespace("shop", &[("remora.io/inject", "enabled")]);
    let (one, two) = tokio::join!(cluster.injector_apart(), cluster.injector_apart());
    tokio::join!(one.ready(), two.ready());
    cluster.labelled("shop", Some("enabled")).await;
    for (replica, name) in [(&one, "a"), (&two, "b"), (&one, "c"), (&two, "d")] {
        cluster.route(replica);
        assert!(is_injected(&cluster.create_pod("shop", name).await.unwrap()), "{name}");
    }
    let asked = cluster.api.asked();
    let patches = asked.iter().filter(|a| a.verb == "patch" && a.resource == "namespaces").count();
    assert!(patches <= 2, "the namespace was patched {patches} times");
}

#[tokio::test]
async fn a_reset_webhook_configuration_gets_its_ca_back() {
    let cluster = Cluster::install().await;
    cluster.api.namespace("shop", &[("remora.io/inject", "enabled")]);
    let injector = cluster.injector().await;
    injector.ready().await;
    cluster.labelled("shop", Some("enabled")).await;
    // As `kubectl apply` of the installation does that somebody changed by hand.
    let mut configuration = cluster.api.object(CONFIGURATION, "", "remora-injector").unwrap();
    for webhook in configuration["webhooks"].as_array_mut().unwrap() {
        webhook["clientConfig"]["caBundle"] = Value::Null;
    }
    cluster.api.put(configuration);
    cluster
        .api
        .until("the CA's return", |api| {
            bundles(&api.object(CONFIGURATION, "", "remora-injector")?)
        })
        .await;
    assert!(is_injected(&cluster.create_pod("shop", "web").await.unwrap()));
}

#[tokio::test]
async fn no_admission_fails_while_the_certificate_turns_over() {
    let cluster = Cluster::install().await;
    // Below the time that the injector gives API servers to learn of a CA.
    cluster.api.lag_webhooks(Duration::from_secs(3));
    cluster.api.namespace("shop", &[("remora.io/inject", "enabled")]);
    let injector = cluster.injector().await;
    injector.ready().await;
    cluster.labelled("shop", Some("enabled")).await;
    let secret = || cluster.api.object("secrets", "remora-system", "remora-injector-tls");
    let old = secret().unwrap()["data"]["ca.crt"].clone();
    assert!(cluster.api.remove("secrets", "remora-system", "remora-injector-tls"));
    let new = cluster
        .api
        .until("another CA", |_| Some(secret()?["data"]["ca.crt"].clone()).filter(|ca| *ca != old))
        .await;
    assert_ne!(new, old);
    // Until some seconds after the new one is served.
    let until = tokio::time::Instant::now() + Duration::from_secs(9);
    let mut count = 0;
    while tokio::time::Instant::now() < until {
        count += 1;
        let pod = cluster.create_pod("shop", &format!("web-{count}")).await;
        assert!(is_injected(&pod.unwrap_or_else(|why| panic!("pod {count}: {why}"))));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(count > 50, "only {count} pods");
    assert!(serves_under(injector.addr, &new).await, "the new certificate is not served yet");
    assert!(!serves_under(injector.addr, &old).await, "the old certificate is still served");
}

#[tokio::test]
async fn a_pod_that_cannot_have_a_sidecar_starts_and_an_event_says_why() {
    let cluster = Cluster::install().await;
    cluster.api.namespace("shop", &[("remora.io/inject", "enabled")]);
    let injector = cluster.injector().await;
    injector.ready().await;
    cluster.labelled("shop", Some("enabled")).await;
    let mut host = pod("host");
    host["spec"]["hostNetwork"] = json!(true);
    assert!(!is_injected(&cluster.create("shop", host).await.unwrap()));
    let event = cluster.api.until("an event", |api| api.objects("events").into_iter().next()).await;
    assert_eq!(event["metadata"]["namespace"], "shop");
    assert_eq!(event["regarding"]["name"], "host");
    assert!(event["note"].as_str().unwrap().contains("hostNetwork"), "{event}");

    let mut wrong = pod("wrong");
    wrong["metadata"]["annotations"] = json!({"config.remora.io/opaque-ports": "many"});
    let refused = cluster.create("shop", wrong).await.unwrap_err();
    assert!(refused.contains("config.remora.io/opaque-ports"), "{refused}");
}

/// Whether the webhook's certificate is good for somebody who trusts this CA (PEM in base64) alone.
async fn serves_under(addr: SocketAddr, ca: &Value) -> bool {
    let pem: ByteString = serde_json::from_value(ca.clone()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(&pem.0) {
        roots.add(root.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(addr).await.unwrap();
    let name = ServerName::try_from("remora-injector.remora-system.svc").unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    within("a handshake", connector.connect(name, stream)).await.is_ok()
}

/// The CA of every webhook, where each has one.
fn bundles(configuration: &Value) -> Option<Vec<Value>> {
    let webhooks = configuration["webhooks"].as_array()?;
    let bundle = |webhook: &Value| {
        let bundle = &webhook["clientConfig"]["caBundle"];
        bundle.as_str().filter(|text| !text.is_empty()).map(|_| bundle.clone())
    };
    webhooks.iter().map(bundle).collect()
}
