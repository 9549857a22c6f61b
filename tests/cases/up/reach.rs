//! Who reaches whom: in and out of the mesh, oneself, pods by address, ports that are not there.

use std::time::Duration;

use super::{
    manifests::{idle, namespace, teller},
    mesh::{As, Up, both, installed, timed},
};

#[test]
fn everyone_reaches_everyone_and_closed_ports_refuse() {
    if installed(&[("python3", "python3"), ("curl", "curl")]) {
        both(reach);
    }
}

fn reach(who: As) {
    let headless = "apiVersion: v1\nkind: Service\nmetadata: {name: each, namespace: shop}\nspec: {clusterIP: None, selector: {app: meshed}, ports: [{port: 8000}]}\n---\n";
    let manifests = [
        namespace("shop", true),
        teller("shop", "meshed", 1),
        headless.to_owned(),
        idle("shop", "client"),
        teller("outside", "plain", 1),
        idle("outside", "observer"),
    ];
    let Some(up) = Up::start("reach", who, &manifests.concat()) else { return };
    let pods = ["shop/meshed-0", "shop/client", "outside/plain-0", "outside/observer"];
    up.wait_ready(0, &pods);

    // Ready is said before all proxies have learnt of it.
    up.get_soon("shop/client", "http://meshed/hostname");
    up.get_soon("shop/meshed-0", "http://meshed/hostname");
    let get = |from: &str, host: &str| up.get(from, &format!("http://{host}/hostname"));
    let meshed = Ok("meshed-0".to_owned());
    let plain = Ok("plain-0".to_owned());
    assert_eq!(get("outside/observer", "meshed.shop"), meshed, "into the mesh");
    assert_eq!(get("shop/client", "plain.outside"), plain, "out of the mesh");
    assert_eq!(get("shop/meshed-0", "meshed"), meshed, "a pod's own Service");
    assert_eq!(get("outside/plain-0", "plain"), plain, "a pod's own Service, no sidecar");
    assert_eq!(get("shop/meshed-0", "localhost:8000"), meshed, "itself");

    let inbound_mtls = || {
        let parts = ["remora_tcp_connections_total", "direction=\"inbound\"", "tls=\"mtls\""];
        up.metric("outside/observer", "shop/meshed-0", &parts)
    };
    let before = inbound_mtls();
    let address = format!("{}:8000", up.address("shop/meshed-0"));
    assert_eq!(get("shop/client", &address), meshed, "by address");
    assert_eq!(get("shop/client", "each:8000"), meshed, "headless");
    assert!(inbound_mtls() > before, "pods dialled by address get no mTLS");

    for (from, target) in [("shop/client", "meshed:81"), ("outside/observer", "meshed.shop:81")] {
        let (took, answer) = timed(|| get(from, target));
        let problem = answer.unwrap_err();
        let refused = ["onnection refused", "reset", "Couldn't connect"];
        assert!(refused.iter().any(|word| problem.contains(word)), "{from}: {problem}");
        assert!(took < Duration::from_secs(2), "{from}: refused after {took:?}");
    }
}
