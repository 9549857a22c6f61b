//! Dials to the proxy's own listeners, from within the pod and from outside: nobody gets through
//! them, and nothing goes in circles.

use super::{
    manifests::{idle, namespace, teller},
    mesh::{As, Up, both, installed},
};

/// Dials each address, says something that no protocol knows, and tells how it ended.
pub(super) const DIAL: &str = "
import socket, sys
for target in sys.argv[1:]:
    host, port = target.rsplit(':', 1)
    try:
        with socket.create_connection((host, int(port)), 5) as s:
            s.settimeout(5)
            s.sendall(b'\\x01hello\\n')
            said = s.recv(100)
            print(target, 'said' if said else 'ended')
    except ConnectionError:
        print(target, 'refused')
    except OSError as error:
        print(target, repr(error))
";

/// How dials end, in the order of the targets.
pub(super) fn dials(up: &Up, from: &str, targets: &[&str]) -> Vec<String> {
    let said = up.stdout(from, &[&["/usr/bin/python3", "-c", DIAL], targets].concat());
    said.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
}

#[test]
fn the_proxys_own_ports_lead_nowhere() {
    if installed(&[("python3", "python3"), ("curl", "curl")]) {
        both(nowhere);
    }
}

fn nowhere(who: As) {
    let manifests = [
        namespace("shop", true),
        teller("shop", "meshed", 1),
        idle("shop", "client"),
        idle("outside", "observer"),
    ];
    let Some(up) = Up::start("loops", who, &manifests.concat()) else { return };
    up.wait_ready(0, &["shop/meshed-0", "shop/client", "outside/observer"]);
    let [client, server] = ["shop/client", "shop/meshed-0"].map(|pod| up.address(pod));
    let loops = |pod: &str| {
        let parts = ["remora_proxy_errors_total", "reason=\"loop\""];
        up.metric("outside/observer", pod, &parts)
    };
    let opened = |pod: &str| {
        let parts = ["remora_tcp_connections_total"];
        up.metric("outside/observer", pod, &parts)
    };

    // From within: each way in which a listener can be dialled is one loop that ends at once.
    let own = [
        "127.0.0.1:4140".to_owned(),
        "127.0.0.1:4143".to_owned(),
        "127.0.0.9:4143".to_owned(),
        format!("{client}:4143"),
    ];
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let before = opened("shop/client");
    assert_eq!(dials(&up, "shop/client", &own), ["refused"; 4], "{own:?}");
    assert_eq!(loops("shop/client"), 4.0);
    assert_eq!(opened("shop/client"), before, "nothing was carried");
    // The outbound listener is not there for anyone but the pod.
    let outbound = format!("{client}:4140");
    assert_eq!(dials(&up, "shop/client", &[&outbound]), ["refused"]);
    assert_eq!(loops("shop/client"), 4.0);

    // From outside, with and without a sidecar: no way through either of them, and none to a port
    // where nobody listens.
    let outside = [4140, 4143, 9999].map(|port| format!("{server}:{port}"));
    let outside = outside.each_ref().map(String::as_str);
    for from in ["outside/observer", "shop/client"] {
        assert_eq!(dials(&up, from, &outside), ["refused"; 3], "{from}: {outside:?}");
    }
    // The very address of the inbound listener was dialled, twice.
    assert_eq!(loops("shop/meshed-0"), 2.0);

    // And a pod reaches itself through its own Service.
    assert_eq!(up.get_soon("shop/meshed-0", "http://meshed/hostname"), "meshed-0");
}
