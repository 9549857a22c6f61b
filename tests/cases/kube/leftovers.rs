//! What the programs of an installation make, and that `remora uninstall` finds all of it.

use std::process::Output;

use remora_tests::apiserver::{ADMIN, ApiServer, kinds};
use serde_json::{Value, json};

use super::{
    cluster::Cluster,
    shop::{SHOP, Shop, bundle},
};

#[tokio::test]
async fn nothing_that_the_programs_made_is_left() {
    let shop = Shop::open().await;
    let injector = shop.cluster.injector().await;
    injector.ready().await;
    shop.cluster.labelled(SHOP, Some("enabled")).await;
    bundle(&shop.cluster, SHOP).await;
    shop.pod("orders-1", "orders");
    injector.end().await;
    shop.plane.end().await;
    let api = &shop.cluster.api;
    let before = ours(api);
    for made in [
        "secrets/remora-identity-issuer",
        "leases/remora-control-plane",
        "configmaps/remora-trust-bundle",
    ] {
        assert!(before.iter().any(|one| one == made), "{made} is not in {before:?}");
    }

    let refused = uninstall(&shop.cluster, &[]).await;
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let said = [refused.stdout, refused.stderr].concat();
    assert!(String::from_utf8_lossy(&said).contains("orders-1"), "the pod with a sidecar is named");
    assert_eq!(ours(api), before, "nothing is removed");
    let shown = uninstall(&shop.cluster, &["--dry-run", "--force"]).await;
    assert!(shown.status.success(), "{shown:?}");
    assert_eq!(ours(api), before, "nothing is removed by a dry run");

    let done = uninstall(&shop.cluster, &["--force"]).await;
    assert!(done.status.success(), "{done:?}");
    assert_eq!(ours(api), [""; 0]);
    let namespace = api.object("namespaces", "", SHOP).unwrap();
    assert_eq!(namespace["metadata"]["labels"]["remora.io/inject"], Value::Null);
    assert_eq!(namespace["metadata"]["annotations"], json!({"remora.io/inject": "enabled"}));
    let again = uninstall(&shop.cluster, &["--force"]).await;
    assert!(again.status.success(), "nothing is there to remove: {again:?}");
}

async fn uninstall(cluster: &Cluster, flags: &[&str]) -> Output {
    let kubeconfig = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(kubeconfig.path(), cluster.api.kubeconfig(ADMIN)).unwrap();
    tokio::process::Command::new(env!("CARGO_BIN_EXE_remora-under-test"))
        .arg("uninstall")
        .arg("--kubeconfig")
        .arg(kubeconfig.path())
        .args(flags)
        .output()
        .await
        .unwrap()
}

/// Objects of an installation: by name, by label, or by the namespace they are in.
fn ours(api: &ApiServer) -> Vec<String> {
    let mut found = Vec::new();
    for kind in &kinds::KINDS {
        // Events go by themselves, and the pods are the users'.
        if matches!(kind.plural, "events" | "pods") {
            continue;
        }
        for object in api.objects(kind.plural) {
            let metadata = &object["metadata"];
            let name = metadata["name"].as_str().unwrap();
            let labelled = metadata["labels"]["app.kubernetes.io/part-of"] == "remora";
            if labelled || name.starts_with("remora-") || metadata["namespace"] == "remora-system" {
                found.push(format!("{}/{name}", kind.plural));
            }
        }
    }
    found
}
