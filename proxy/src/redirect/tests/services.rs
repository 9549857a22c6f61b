//! The node's translation of Service addresses.

use std::net::{Ipv4Addr, Ipv6Addr, TcpStream};

use super::{
    namespace::{NODE, Pod, inside, route_to_loopback},
    *,
};

fn vip(port: u16, endpoints: &[(Ipv4Addr, u16)]) -> ServiceVip {
    let endpoints = endpoints.iter().map(|&endpoint| endpoint.into()).collect();
    ServiceVip { vip: VIP.into(), port, endpoints, shared: false }
}

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 7);

#[test]
fn service_addresses_spread_connections_and_refuse_other_ports() {
    inside(
        &["-rn"],
        "redirect::tests::services::service_addresses_spread_connections_and_refuse_other_ports",
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
    inside(&["-rn"], "redirect::tests::services::service_addresses_work_in_ipv6", || {
        let pods = [2, 3].map(Pod::new);
        let ip = pods[1].ip_v6;
        let server = pods[1].run(move || listen(ip, 8080));
        let vip: Ipv6Addr = "fd96::7".parse().unwrap();
        let service = ServiceVip {
            vip: vip.into(),
            port: 80,
            endpoints: vec![(ip, 8080).into()],
            shared: false,
        };
        ServiceNat::new(vec![service]).apply().unwrap();
        let client = pods[0].run(move || dial((vip, 80), 0).unwrap());
        assert!(reached(&server, &client));
        let refused = pods[0].run(move || dial((vip, 81), 0).err());
        assert_eq!(refused, Some(ErrorKind::ConnectionRefused));
    });
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    inside(&["-rn"], "redirect::tests::services::a_pod_reaches_itself_through_its_service", || {
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
    inside(&["-rn"], "redirect::tests::services::a_thousand_endpoints_fit", || {
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
