//! The rules against the kernel: real connections between network namespaces.

pub(super) mod namespace;

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use namespace::{NODE, NODE_V6, Pod, inside, route_to_loopback};
use socket2::{Domain, SockRef, Socket, Type};

use super::*;

const MARK: u32 = 0x2102;

fn marked() -> RedirectConfig {
    RedirectConfig { exempt: Exempt::Mark(MARK), ..RedirectConfig::default() }
}

/// Dials with a mark (0: none) and returns the error's kind where it fails.
fn dial(to: impl Into<SocketAddr>, mark: u32) -> Result<TcpStream, ErrorKind> {
    let to = to.into();
    let connect = || -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        if mark != 0 {
            socket.set_mark(mark)?;
        }
        socket.connect_timeout(&to.into(), Duration::from_secs(5))?;
        Ok(socket.into())
    };
    connect().map_err(|error| error.kind())
}

fn listen(ip: impl Into<IpAddr>, port: u16) -> TcpListener {
    TcpListener::bind((ip.into(), port)).unwrap()
}

/// Takes the next connection and returns where it was going before it was redirected.
fn original_destination(listener: &TcpListener) -> SocketAddr {
    let (stream, _) = listener.accept().unwrap();
    let socket = SockRef::from(&stream);
    let destination = match stream.local_addr().unwrap() {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    destination.unwrap().as_socket().unwrap()
}

/// Whether the connection ended at this listener, going by both ends' addresses.
fn reached(listener: &TcpListener, client: &TcpStream) -> bool {
    let (_, peer) = listener.accept().unwrap();
    peer == client.local_addr().unwrap()
}

#[test]
fn outbound_connections_reach_the_proxy_with_their_destination() {
    inside(
        &["-rn"],
        "redirect::tests::outbound_connections_reach_the_proxy_with_their_destination",
        || {
            Pod::new(2).run(|| {
                apply(&marked()).unwrap();
                apply(&marked()).unwrap();
                let proxy = listen(Ipv4Addr::LOCALHOST, 4140);
                let proxy_v6 = listen(Ipv6Addr::LOCALHOST, 4140);
                for (listener, to) in [(&proxy, "192.0.2.1:80"), (&proxy_v6, "[2001:db8::1]:443")] {
                    let to: SocketAddr = to.parse().unwrap();
                    let _client = dial(to, 0).unwrap();
                    assert_eq!(original_destination(listener), to);
                }
            });
        },
    );
}

#[test]
fn the_proxys_own_and_skipped_connections_leave_untouched() {
    inside(
        &["-rn"],
        "redirect::tests::the_proxys_own_and_skipped_connections_leave_untouched",
        || {
            let servers = [listen(NODE, 80), listen(NODE, 5432)];
            let pod = Pod::new(2);
            // Nothing listens on the proxy's port: what is intercepted is refused.
            let attempt = move |config: RedirectConfig, port, mark| {
                pod.run(move || {
                    apply(&config).unwrap();
                    dial((NODE, port), mark)
                })
            };
            assert_eq!(attempt(marked(), 80, 0).err(), Some(ErrorKind::ConnectionRefused));
            assert!(reached(&servers[0], &attempt(marked(), 80, MARK).unwrap()));

            let skip = RedirectConfig { skip_outbound: "5430-5440".parse().unwrap(), ..marked() };
            assert!(reached(&servers[1], &attempt(skip.clone(), 5432, 0).unwrap()));
            assert_eq!(attempt(skip, 80, 0).err(), Some(ErrorKind::ConnectionRefused));

            let skip =
                RedirectConfig { skip_subnets: vec!["10.244.0.0/31".parse().unwrap()], ..marked() };
            assert!(reached(&servers[0], &attempt(skip, 80, 0).unwrap()));

            let root = RedirectConfig { exempt: Exempt::Uid(0), ..RedirectConfig::default() };
            assert!(reached(&servers[0], &attempt(root, 80, 0).unwrap()));
        },
    );
}

#[test]
fn a_pod_that_dials_itself_reaches_itself() {
    inside(&["-rn"], "redirect::tests::a_pod_that_dials_itself_reaches_itself", || {
        let pod = Pod::new(2);
        let (ip, ip_v6) = (pod.ip, pod.ip_v6);
        pod.run(move || {
            apply(&marked()).unwrap();
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
    inside(
        &["-rn"],
        "redirect::tests::inbound_connections_reach_the_proxy_except_on_skipped_ports",
        || {
            let pod = Pod::new(2);
            let (ip, ip_v6) = (pod.ip, pod.ip_v6);
            let (proxy, proxy_v6, direct) = pod.run(move || {
                let config = RedirectConfig { skip_inbound: "22".parse().unwrap(), ..marked() };
                apply(&config).unwrap();
                let direct = [4191, 22].map(|port| listen(ip, port));
                (listen(Ipv4Addr::UNSPECIFIED, 4143), listen(ip_v6, 4143), direct)
            });
            let _client = dial((ip, 8080), 0).unwrap();
            assert_eq!(original_destination(&proxy), (ip, 8080).into());
            let _client = dial((ip_v6, 8080), 0).unwrap();
            assert_eq!(original_destination(&proxy_v6), (ip_v6, 8080).into());
            for server in &direct {
                let to = server.local_addr().unwrap();
                assert!(reached(server, &dial(to, 0).unwrap()));
            }
            let source = vec!["10.244.0.1/32".parse().unwrap()];
            pod.run(|| apply(&RedirectConfig { skip_subnets: source, ..marked() }).unwrap());
            assert_eq!(dial((ip, 8080), 0).err(), Some(ErrorKind::ConnectionRefused));
        },
    );
}

#[test]
fn removal_leaves_nothing_and_may_be_repeated() {
    inside(&["-rn"], "redirect::tests::removal_leaves_nothing_and_may_be_repeated", || {
        let server = listen(NODE, 80);
        let server_v6 = listen(Ipv6Addr::UNSPECIFIED, 81);
        let pod = Pod::new(2);
        pod.run(|| {
            remove().unwrap();
            apply(&marked()).unwrap();
            assert_eq!(dial((NODE, 80), 0).err(), Some(ErrorKind::ConnectionRefused));
            remove().unwrap();
            remove().unwrap();
        });
        assert!(reached(&server, &pod.run(|| dial((NODE, 80), 0).unwrap())));
        assert!(reached(&server_v6, &pod.run(|| dial((NODE_V6, 81), 0).unwrap())));
    });
}

#[test]
fn without_privilege_the_error_says_what_is_missing() {
    inside(&["-r"], "redirect::tests::without_privilege_the_error_says_what_is_missing", || {
        let error = remove().unwrap_err().to_string();
        assert_eq!(
            error,
            "cannot write table inet remora: permission denied; needs CAP_NET_ADMIN in the pod's \
             network namespace"
        );
    });
}

fn vip(port: u16, endpoints: &[(Ipv4Addr, u16)]) -> ServiceVip {
    let endpoints = endpoints.iter().map(|&endpoint| endpoint.into()).collect();
    ServiceVip { vip: VIP.into(), port, endpoints }
}

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 7);

#[test]
fn service_addresses_spread_connections_and_refuse_other_ports() {
    inside(
        &["-rn"],
        "redirect::tests::service_addresses_spread_connections_and_refuse_other_ports",
        || {
            let pods = [2, 3, 4].map(Pod::new);
            let servers = [1, 2].map(|i| {
                let ip = pods[i].ip;
                pods[i].run(move || {
                    let listener = listen(ip, 8080);
                    listener.set_nonblocking(true).unwrap();
                    listener
                })
            });
            let nat = ServiceNat::new(vec![
                vip(80, &[(pods[1].ip, 8080), (pods[2].ip, 8080)]),
                vip(81, &[]),
            ]);
            nat.apply().unwrap();
            nat.apply().unwrap();
            route_to_loopback(VIP);
            let clients: Vec<TcpStream> = (0..64)
                .map(|i| {
                    if i % 2 == 0 { dial((VIP, 80), 0) } else { pods[0].run(|| dial((VIP, 80), 0)) }
                })
                .map(Result::unwrap)
                .collect();
            let counts = servers.each_ref().map(|server| {
                let peers = std::iter::from_fn(|| server.accept().ok()).map(|(_, peer)| peer);
                // The sender's address is kept.
                peers
                    .filter(|peer| clients.iter().any(|c| c.local_addr().unwrap() == *peer))
                    .count()
            });
            assert_eq!(counts[0] + counts[1], 64, "{counts:?}");
            // Each fewer than 8 of 64: less than once in 10^9 runs.
            assert!(counts.iter().all(|&n| n >= 8), "{counts:?}");
            for port in [81, 82] {
                assert_eq!(dial((VIP, port), 0).err(), Some(ErrorKind::ConnectionRefused));
                let refused = pods[0].run(move || dial((VIP, port), 0).err());
                assert_eq!(refused, Some(ErrorKind::ConnectionRefused));
            }
            ServiceNat::remove().unwrap();
            assert!(pods[0].run(|| dial((VIP, 80), 0)).is_err());
        },
    );
}

#[test]
fn service_addresses_work_in_ipv6() {
    inside(&["-rn"], "redirect::tests::service_addresses_work_in_ipv6", || {
        let pods = [2, 3].map(Pod::new);
        let ip = pods[1].ip_v6;
        let server = pods[1].run(move || listen(ip, 8080));
        let vip: Ipv6Addr = "fd96::7".parse().unwrap();
        let service = ServiceVip { vip: vip.into(), port: 80, endpoints: vec![(ip, 8080).into()] };
        ServiceNat::new(vec![service]).apply().unwrap();
        let client = pods[0].run(move || dial((vip, 80), 0).unwrap());
        assert!(reached(&server, &client));
        let refused = pods[0].run(move || dial((vip, 81), 0).err());
        assert_eq!(refused, Some(ErrorKind::ConnectionRefused));
    });
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    inside(&["-rn"], "redirect::tests::a_pod_reaches_itself_through_its_service", || {
        let pod = Pod::new(2);
        let ip = pod.ip;
        ServiceNat::new(vec![vip(80, &[(ip, 8080)])]).apply().unwrap();
        let peer = pod.run(move || {
            let server = listen(ip, 8080);
            let _client = dial((VIP, 80), 0).unwrap();
            server.accept().unwrap().1
        });
        assert_eq!(peer.ip(), NODE);
    });
}

#[test]
fn a_thousand_endpoints_fit() {
    inside(&["-rn"], "redirect::tests::a_thousand_endpoints_fit", || {
        let endpoints =
            |n: u8| (1..=10).map(|i| (Ipv4Addr::new(10, 244, n, i), 8080)).collect::<Vec<_>>();
        let services = (0..100).map(|n| vip(1000 + u16::from(n), &endpoints(n))).collect();
        match ServiceNat::new(services).apply() {
            Ok(()) => {}
            // What an ordinary user may send is the host's setting.
            Err(RedirectError::TooLarge { .. }) => println!("net.core.wmem_max is too small"),
            Err(error) => panic!("{error}"),
        }
    });
}
