//! What is not TCP passes as if there were no rules.

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};

use socket2::{Protocol, SockAddr};

use super::{
    namespace::{NODE, NODE_V6, Pod},
    writer::each,
    *,
};

/// As long as QUIC's first ones (RFC 9000 §14).
const QUIC: usize = 1200;
/// DNS, QUIC, and the numbers of the proxy's own ports.
const PORTS: [u16; 5] = [53, 443, 4140, 4143, 4191];
const PATIENCE: Duration = Duration::from_secs(5);

fn udp(ip: IpAddr, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((ip, port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Both see each other under their own address and port, and every byte.
fn exchange(client: &UdpSocket, server: &UdpSocket) {
    let (mut buffer, question, answer) = ([0; 2 * QUIC], [0xc3; QUIC], [0x43; QUIC]);
    let (from, to) = (client.local_addr().unwrap(), server.local_addr().unwrap());
    client.send_to(&question, to).unwrap();
    let (n, peer) = server.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..n], peer), (&question[..], from));
    server.send_to(&answer, peer).unwrap();
    let (n, peer) = client.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..n], peer), (&answer[..], to));
}

#[test]
fn udp_passes_both_ways() {
    each("redirect::tests::datagrams::udp_passes_both_ways", |rules| {
        let pod = Pod::new(2);
        for (node, own) in
            [(IpAddr::from(NODE), IpAddr::from(pod.ip)), (NODE_V6.into(), pod.ip_v6.into())]
        {
            let servers = PORTS.map(|port| udp(node, port));
            let inside = pod.run(move || (udp(own, 0), PORTS.map(|port| udp(own, port))));
            // Before there are rules, and with them.
            exchange(&inside.0, &servers[0]);
            for (outside, inside) in servers.iter().zip(&inside.1) {
                exchange(inside, outside);
            }
            let client = udp(node, 0);
            inside.1.iter().for_each(|server| exchange(&client, server));
        }
        let own = pod.ip;
        let (proxy, rules) = pod.run(move || {
            rules.apply(&marked());
            (listen(Ipv4Addr::LOCALHOST, 4140), rules)
        });
        for (node, own) in
            [(IpAddr::from(NODE), IpAddr::from(own)), (NODE_V6.into(), pod.ip_v6.into())]
        {
            let servers = PORTS.map(|port| udp(node, port));
            let (client, inside) = pod.run(move || (udp(own, 0), PORTS.map(|port| udp(own, port))));
            servers.iter().for_each(|server| exchange(&client, server));
            let client = udp(node, 0);
            inside.iter().for_each(|server| exchange(&client, server));
        }
        // The rules are in force all the same, on the same ports.
        let _client = pod.run(|| dial((NODE, 53), 0).unwrap());
        assert_eq!(original_destination(&proxy), (NODE, 53).into());
        drop(rules);
    });
}

/// Sends an echo request and waits for its reply.
fn ping(to: IpAddr) {
    let (domain, protocol) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let (request, reply) = if to.is_ipv4() { (8, 0) } else { (128, 129) };
    let mut message = [request, 0, 0, 0, 0x21, 0x02, 0, 1, b'p', b'i', b'n', b'g'];
    if to.is_ipv4() {
        // In IPv6 the kernel does it (RFC 3542 §3.1).
        let sum = checksum(&message).to_be_bytes();
        message[2..4].copy_from_slice(&sum);
    }
    socket.send_to(&message, &SockAddr::from(SocketAddr::new(to, 0))).unwrap();
    let mut socket = socket;
    loop {
        let mut buffer = [0; 256];
        let n = io::Read::read(&mut socket, &mut buffer).unwrap();
        // Without a header in IPv6; other messages come by too.
        let answer = if to.is_ipv4() { &buffer[20..n] } else { &buffer[..n] };
        if answer.first() == Some(&reply) && answer[4..] == message[4..] {
            return;
        }
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
}

#[test]
fn icmp_passes_both_ways() {
    each("redirect::tests::datagrams::icmp_passes_both_ways", |rules| {
        let pod = Pod::new(2);
        pod.run(move || {
            rules.apply(&marked());
            ping(NODE.into());
            ping(NODE_V6.into());
            // An error comes back to the socket whose datagram it is about.
            let socket = udp(Ipv4Addr::UNSPECIFIED.into(), 0);
            socket.connect((NODE, 9)).unwrap();
            socket.send(b"nobody is there").unwrap();
            assert_eq!(socket.recv(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        });
        ping(pod.ip.into());
        ping(pod.ip_v6.into());
        let socket = udp(Ipv6Addr::UNSPECIFIED.into(), 0);
        socket.connect((pod.ip_v6, 9)).unwrap();
        socket.send(b"nobody is there").unwrap();
        assert_eq!(socket.recv(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    });
}
