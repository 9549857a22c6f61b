//! Certificates on a cluster: who gets one, who signs, and how roots come to pods.

use k8s_openapi::ByteString;
use remora_core::names::{
    ISSUER_SECRET, SYSTEM_NAMESPACE, TOKEN_AUDIENCE, TRUST_BUNDLE_CONFIG_MAP,
};
use remora_tests::{apiserver::Fault, origin::Origin, wait::eventually};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};
use tonic::Code;

use super::{
    cluster::Cluster,
    shop::{SHOP, Shop, bundle, certify, secret_text},
};
use remora_tests::load::Load;

const LEASE: (&str, &str, &str) = ("leases", SYSTEM_NAMESPACE, "remora-control-plane");

#[tokio::test]
async fn a_certificate_is_for_whom_the_reviewed_token_names() {
    let shop = Shop::open().await;
    let pod = shop.pod("orders-1", "orders");
    let token = shop.token(&pod);
    let answer = shop.certify(&token).await.unwrap();
    let leaf = String::from_utf8_lossy(&answer.chain[0]).into_owned();
    assert!(leaf.contains("spiffe://cluster.local/ns/shop/sa/orders-1"));

    let api = &shop.cluster.api;
    let refused = async |token: &str, why: &str| {
        let status = shop.certify(token).await.unwrap_err();
        let code = status.code();
        assert!(matches!(code, Code::Unauthenticated | Code::PermissionDenied), "{status}");
        assert!(status.message().contains(why), "{status}");
    };
    refused("nonsense", "invalid bearer token").await;
    let other = api.issue_token(SHOP, "orders-1", Some("orders-1"), &["somebody.else"]);
    refused(&other, "invalid for the target audiences").await;
    let unbound = api.issue_token(SHOP, "orders-1", None, &[TOKEN_AUDIENCE]);
    refused(&unbound, "pod").await;
    api.refuse_token(&token, "service account token has expired");
    refused(&token, "has expired").await;
    let token = shop.token(&pod);
    api.remove("pods", SHOP, "orders-1");
    refused(&token, "has been invalidated").await;
}

#[tokio::test]
async fn without_an_answer_to_the_review_the_proxy_is_told_to_try_again() {
    let shop = Shop::open().await;
    let pod = shop.pod("orders-1", "orders");
    let token = shop.token(&pod);
    let api = &shop.cluster.api;
    for fault in [Fault::Internal, Fault::TooManyRequests, Fault::Reset, Fault::Unavailable] {
        api.fail("create", "tokenreviews", fault);
        let status = shop.certify(&token).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{fault:?}: {status}");
        api.heal();
    }
    shop.certify(&token).await.unwrap();
    // A proxy that starts meanwhile gets there by itself.
    api.fail_times(2, "create", "tokenreviews", Fault::Unavailable);
    let sidecar = shop.unready_sidecar(&pod, &[], &token).await;
    sidecar.ready().await;
}

#[tokio::test]
async fn replicas_that_start_together_make_one_issuer() {
    let cluster = Cluster::install().await;
    cluster.api.namespace(SHOP, &[("remora.io/inject", "enabled")]);
    let (one, two) = tokio::join!(cluster.control_plane(&[]), cluster.control_plane(&[]));
    tokio::join!(one.ready(), two.ready());
    let created = |asked: &remora_tests::apiserver::Asked| {
        asked.verb == "create" && asked.resource == "secrets"
    };
    assert!(cluster.api.asked().iter().any(created));
    let secret = cluster.api.object("secrets", SYSTEM_NAMESPACE, ISSUER_SECRET).unwrap();
    let roots = bundle(&cluster, SHOP).await;
    assert_eq!(secret_text(&secret, "ca.crt").trim(), roots.trim());
    let container = json!([{"name": "app"}]);
    cluster.api.put(json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": SHOP},
        "spec": {"nodeName": "node1", "containers": container}}));
    let token = cluster.api.issue_token(SHOP, "web", Some("web"), &[TOKEN_AUDIENCE]);
    for replica in [&one, &two] {
        // The replica's own certificate is checked against the one root, too.
        certify(replica, &roots, &token).await.unwrap();
    }
    assert_eq!(cluster.api.refused(), [], "the roles do not suffice");
}

#[tokio::test]
async fn no_handshake_fails_while_the_issuer_is_replaced() {
    let shop = Shop::open_with(&["--rotation-overlap=1s"]).await;
    shop.service("orders");
    let (web, orders) = (shop.pod("web", "web"), shop.pod("orders-1", "orders"));
    shop.slice("orders", &[&orders]);
    let _app = Origin::saying(orders.app(), "hello").await;
    let (client, server) =
        tokio::join!(shop.sidecar(&web, &["orders"]), shop.sidecar(&orders, &[]));
    let load = Load::start(client.entry("orders"));
    load.passes(50).await;
    let roots = |text: &str| CertificateDer::pem_slice_iter(text.as_bytes()).count();
    assert_eq!(roots(&bundle(&shop.cluster, SHOP).await), 1);

    let (certificate, key) = new_issuer();
    let data = json!({"tls.crt": coded(&certificate), "tls.key": coded(&key), "ca.crt": coded(&certificate)});
    shop.cluster.api.merge("secrets", SYSTEM_NAMESPACE, ISSUER_SECRET, json!({"data": data}));
    let new = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    shop.cluster
        .api
        .until("both roots to be published", |api| {
            let map = api.object("configmaps", SHOP, TRUST_BUNDLE_CONFIG_MAP)?;
            let text = map["data"]["ca.crt"].as_str()?.to_owned();
            (roots(&text) == 2).then_some(())
        })
        .await;
    let token = shop.token(&orders);
    eventually("a certificate of the new issuer", async || {
        let answer = shop.certify(&token).await.ok()?;
        signed_by(&answer.chain[0], &new).then_some(())
    })
    .await;
    // New proxies have the new issuer's certificates, old ones still the old one's.
    let late = shop.pod("orders-2", "orders");
    let _late_app = Origin::saying(late.app(), "late").await;
    let late_sidecar = shop.sidecar(&late, &[]).await;
    shop.slice("orders", &[&orders, &late]);
    client.until_endpoints("orders", 2).await;
    load.passes(200).await;
    load.without_failures().await;
    let _ = (server, late_sidecar);
}

#[tokio::test]
async fn roots_come_to_namespaces_that_opt_in_and_come_back_where_they_are_deleted() {
    let shop = Shop::open().await;
    let api = &shop.cluster.api;
    api.namespace("plain", &[]);
    bundle(&shop.cluster, SHOP).await;
    bundle(&shop.cluster, SYSTEM_NAMESPACE).await;
    api.namespace("late", &[]);
    let annotations = json!({"metadata": {"annotations": {"remora.io/inject": "enabled"}}});
    api.merge("namespaces", "", "late", annotations);
    let late = bundle(&shop.cluster, "late").await;
    assert!(api.remove("configmaps", "late", TRUST_BUNDLE_CONFIG_MAP));
    assert_eq!(bundle(&shop.cluster, "late").await, late, "deleted by somebody");
    api.merge("configmaps", "late", TRUST_BUNDLE_CONFIG_MAP, json!({"data": {"ca.crt": "mine"}}));
    api.until("the roots to be put right", |api| {
        let map = api.object("configmaps", "late", TRUST_BUNDLE_CONFIG_MAP)?;
        (map["data"]["ca.crt"] == late).then_some(())
    })
    .await;
    // One pod asks for itself.
    let mut pod = super::cluster::pod("alone");
    pod["metadata"]["namespace"] = json!("plain");
    pod["metadata"]["annotations"] = json!({"remora.io/inject": "enabled"});
    assert!(api.object("configmaps", "plain", TRUST_BUNDLE_CONFIG_MAP).is_none());
    api.put(pod);
    bundle(&shop.cluster, "plain").await;
    // A namespace on its way out is left in peace.
    api.keep_terminating();
    assert_eq!(api.refused(), [], "the roles do not suffice");
}

#[tokio::test]
async fn another_replica_leads_when_the_leader_ends() {
    let shop = Shop::open().await;
    bundle(&shop.cluster, SHOP).await;
    let api = &shop.cluster.api;
    let holder = || {
        let lease = api.object(LEASE.0, LEASE.1, LEASE.2)?;
        Some(lease["spec"]["holderIdentity"].as_str()?.to_owned())
    };
    let first = holder().unwrap();
    let other = shop.cluster.control_plane(&["--replica=other"]).await;
    other.ready().await;
    assert_eq!(holder().unwrap(), first, "who leads goes on leading");
    let Shop { cluster, plane, .. } = &shop;
    plane.end().await;
    cluster.api.until("another leader", |_| holder().filter(|who| who.starts_with("other"))).await;
    cluster.api.namespace("late", &[("remora.io/inject", "enabled")]);
    bundle(cluster, "late").await;
    drop(other);
}

/// A self-signed issuer: certificate and key, PEM.
pub(super) fn new_issuer() -> (String, String) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut parameters = rcgen::CertificateParams::default();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    parameters.key_usages =
        vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    parameters.distinguished_name.push(rcgen::DnType::CommonName, "another issuer");
    parameters.not_before = rcgen::date_time_ymd(2024, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(2040, 1, 1);
    (parameters.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

pub(super) fn coded(text: &str) -> Value {
    serde_json::to_value(ByteString(text.as_bytes().to_vec())).unwrap()
}

/// Whether a certificate chains to this root.
fn signed_by(leaf: &[u8], root: &CertificateDer<'_>) -> bool {
    let common_name = b"another issuer";
    let names = |der: &[u8]| der.windows(common_name.len()).any(|window| window == common_name);
    assert!(names(root.as_ref()), "the root has that name");
    names(leaf)
}
