//! What the rules turn to the proxy, and what they leave alone.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    namespace::{NODE, NODE_V6, Pod, add_address, route_to},
    writer::each,
    *,
};
use crate::net::listener::{self, is_foreign, is_own};

#[test]
fn outbound_connections_reach_the_proxy_with_their_destination() {
    let test =
        "redirect::tests::capture::outbound_connections_reach_the_proxy_with_their_destination";
    each(test, |rules| {
        Pod::new(2).run(move || {
            rules.apply(&marked());
            let proxy = listen(Ipv4Addr::LOCALHOST, 4140);
            let proxy_v6 = listen(Ipv6Addr::LOCALHOST, 4140);
            for (listener, to) in [(&proxy, "192.0.2.1:80"), (&proxy_v6, "[2001:db8::1]:443")] {
                let to: SocketAddr = to.parse().unwrap();
                let _client = dial(to, 0).unwrap();
                assert_eq!(original_destination(listener), to);
            }
        });
    });
}

#[test]
fn the_proxys_own_and_skipped_connections_leave_untouched() {
    let test = "redirect::tests::capture::the_proxys_own_and_skipped_connections_leave_untouched";
    each(test, |rules| {
        let pod = Pod::new(2);
        let servers: [[TcpListener; 3]; 2] = [NODE.into(), NODE_V6.into()]
            .map(|node: IpAddr| [80, 5432, 5440].map(|port| listen(node, port)));
        let rules = std::sync::Arc::new(rules);
        // Nothing listens on the proxy's port: what is intercepted is refused.
        let attempt = |config: &RedirectConfig, port, mark| {
            let (rules, config) = (std::sync::Arc::clone(&rules), config.clone());
            let dialled = pod.run(move || {
                rules.apply(&config);
                [IpAddr::from(NODE), NODE_V6.into()].map(|node| dial((node, port), mark))
            });
            let at = match port {
                80 => 0,
                5432 => 1,
                _ => 2,
            };
            dialled.into_iter().zip(&servers).all(|(client, servers)| match client {
                Ok(client) => reached(&servers[at], &client),
                Err(kind) => {
                    assert_eq!(kind, ErrorKind::ConnectionRefused);
                    false
                }
            })
        };
        assert!(!attempt(&marked(), 80, 0));
        assert!(attempt(&marked(), 80, MARK));

        let skip = RedirectConfig { skip_outbound: "443,5430-5440".parse().unwrap(), ..marked() };
        assert!(attempt(&skip, 5432, 0), "in the range");
        assert!(attempt(&skip, 5440, 0), "its end");
        assert!(!attempt(&skip, 80, 0));

        let subnets = vec!["10.244.0.0/31".parse().unwrap(), "fd00::/127".parse().unwrap()];
        assert!(attempt(&RedirectConfig { skip_subnets: subnets, ..marked() }, 80, 0));
        let others = vec!["10.244.0.2/31".parse().unwrap(), "fd00::2/127".parse().unwrap()];
        assert!(!attempt(&RedirectConfig { skip_subnets: others, ..marked() }, 80, 0));

        let root = RedirectConfig { exempt: Exempt::Uid(0), ..RedirectConfig::default() };
        assert!(attempt(&root, 80, 0));
    });
}

#[test]
fn a_pod_that_dials_itself_reaches_itself() {
    each("redirect::tests::capture::a_pod_that_dials_itself_reaches_itself", |rules| {
        let pod = Pod::new(2);
        let (ip, ip_v6) = (pod.ip, pod.ip_v6);
        pod.run(move || {
            rules.apply(&marked());
            let servers = [listen(Ipv4Addr::UNSPECIFIED, 8080), listen(Ipv6Addr::LOCALHOST, 8081)];
            for (server, to) in [(&servers[0], ip), (&servers[0], Ipv4Addr::LOCALHOST)] {
                assert!(reached(server, &dial((to, 8080), 0).unwrap()));
            }
            assert!(reached(&servers[1], &dial((Ipv6Addr::LOCALHOST, 8081), 0).unwrap()));
            let server = listen(ip_v6, 8082);
            assert!(reached(&server, &dial((ip_v6, 8082), 0).unwrap()));
        });
    });
}

#[test]
fn inbound_connections_reach_the_proxy_except_on_skipped_ports() {
    let test =
        "redirect::tests::capture::inbound_connections_reach_the_proxy_except_on_skipped_ports";
    each(test, |rules| {
        let pod = Pod::new(2);
        let (ip, ip_v6) = (pod.ip, pod.ip_v6);
        let (rules, proxy, proxy_v6, direct) = pod.run(move || {
            let skip_inbound = "22,8000-8010".parse().unwrap();
            rules.apply(&RedirectConfig { skip_inbound, ..marked() });
            let own: [IpAddr; 2] = [ip.into(), ip_v6.into()];
            let direct = own.map(|own| [4191, 22, 8000, 8010].map(|port| listen(own, port)));
            (rules, listen(Ipv4Addr::UNSPECIFIED, 4143), listen(ip_v6, 4143), direct)
        });
        for port in [8080, 8011, 23] {
            let _client = dial((ip, port), 0).unwrap();
            assert_eq!(original_destination(&proxy), (ip, port).into());
            let _client = dial((ip_v6, port), 0).unwrap();
            assert_eq!(original_destination(&proxy_v6), (ip_v6, port).into());
        }
        for server in direct.iter().flatten() {
            let to = server.local_addr().unwrap();
            assert!(reached(server, &dial(to, 0).unwrap()));
        }
        let skip_subnets = vec!["10.244.0.1/32".parse().unwrap(), "fd00::1/128".parse().unwrap()];
        pod.run(move || rules.apply(&RedirectConfig { skip_subnets, ..marked() }));
        for to in [IpAddr::from(ip), ip_v6.into()] {
            assert_eq!(dial((to, 8080), 0).err(), Some(ErrorKind::ConnectionRefused));
        }
    });
}

/// What the inbound listener takes a connection for: where it goes, whether that is a listener of
/// ours, whether it is no address of the pod.
fn judge(listener: &TcpListener) -> (SocketAddr, bool, bool) {
    let own = [listener.local_addr().unwrap()];
    let (stream, _) = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let _inside = runtime.enter();
    let stream = tokio::net::TcpStream::from_std(stream).unwrap();
    let to = listener::original_destination(&stream).unwrap();
    (to, is_own(&stream, to, &own), is_foreign(&stream, to))
}

#[test]
fn nobody_is_carried_on_to_another_address_than_the_pods() {
    let test = "redirect::tests::capture::nobody_is_carried_on_to_another_address_than_the_pods";
    each(test, |rules| {
        let pod = Pod::new(2);
        let (second, elsewhere) = (Ipv4Addr::new(10, 245, 0, 2), Ipv4Addr::new(198, 51, 100, 9));
        let elsewhere_v6: Ipv6Addr = "2001:db8::9".parse().unwrap();
        for ip in [second.into(), elsewhere.into(), elsewhere_v6.into()] {
            route_to(&pod, ip);
        }
        let (ip, ip_v6) = (pod.ip, pod.ip_v6);
        pod.run(move || {
            rules.apply(&marked());
            add_address(2, second);
        });
        // Each with the listener's port, where the rules leave it alone, and another.
        for (to, foreign) in [
            (IpAddr::from(ip), false),
            (ip_v6.into(), false),
            (second.into(), false),
            (elsewhere.into(), true),
            (elsewhere_v6.into(), true),
        ] {
            let unspecified = match to {
                IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let proxy = pod.run(move || {
                let proxy = listener::bind((unspecified, 4143).into(), 1).unwrap().remove(0);
                proxy.set_nonblocking(false).unwrap();
                proxy
            });
            let _client = dial((to, 80), 0).unwrap();
            let (proxy, judged) = pod.run(move || {
                let judged = judge(&proxy);
                (proxy, judged)
            });
            assert_eq!(judged, ((to, 80).into(), false, foreign), "{to}");
            if !foreign {
                let _client = dial((to, 4143), 0).unwrap();
                let judged = pod.run(move || judge(&proxy));
                assert_eq!(judged, ((to, 4143).into(), true, false), "{to}");
            }
        }
    });
}
