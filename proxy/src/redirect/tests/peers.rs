//! What the proxy asks of the kernel for connections that leave the machine.

use std::net::Ipv4Addr;

use super::{
    namespace::{NODE, NODE_V6, Pod, inside},
    *,
};
use crate::net::{connect::Connector, listener};

#[test]
fn a_peer_that_vanishes_is_noticed_in_two_minutes_whatever_is_under_way() {
    let test = "redirect::tests::peers::a_peer_that_vanishes_is_noticed_in_two_minutes_whatever_is_under_way";
    inside(&["-rn"], test, || {
        let pod = Pod::new(2);
        let servers = [IpAddr::from(NODE), NODE_V6.into()].map(|node| listen(node, 80));
        pod.run(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                for server in &servers {
                    let to = server.local_addr().unwrap();
                    let dialled = Connector::default().connect(to, Duration::from_secs(5)).await;
                    let (dialled, accepted) = (dialled.unwrap(), server.accept().unwrap().0);
                    accepted.set_nonblocking(true).unwrap();
                    let accepted = tokio::net::TcpStream::from_std(accepted).unwrap();
                    listener::prepare(&accepted);
                    for stream in [&dialled, &accepted] {
                        let socket = SockRef::from(stream);
                        let idle = socket.tcp_keepalive_time().unwrap();
                        let probes = socket.tcp_keepalive_retries().unwrap();
                        let silent = idle + socket.tcp_keepalive_interval().unwrap() * probes;
                        // Nothing under way: the probes. Something: the bound on that.
                        assert_eq!(silent, Duration::from_secs(120));
                        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(silent));
                    }
                }
                // To itself, by its own address.
                let own = listen(Ipv4Addr::new(10, 244, 0, 2), 80);
                let to = own.local_addr().unwrap();
                let dialled =
                    Connector::default().connect(to, Duration::from_secs(5)).await.unwrap();
                assert_eq!(SockRef::from(&dialled).tcp_user_timeout().unwrap(), None);
            });
        });
    });
}
