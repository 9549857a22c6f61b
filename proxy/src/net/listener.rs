//! Listening sockets and the accept loop.

use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use remora_core::drain;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};

use super::{
    admission::{Admission, Admitted},
    connect::reset_on_drop,
};

/// Connections that may wait to be accepted, per listener.
const BACKLOG: i32 = 4096;
/// A peer that vanished is noticed after about two minutes: the kernel sends nine probes by default.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// And as soon where it leaves unconfirmed what was sent to it, when the kernel sends no probes but
/// repeats itself for a quarter of an hour. A peer that confirms but has not read anything for this
/// long is cut too (`tcp(7)`, `TCP_USER_TIMEOUT`).
const USER_TIMEOUT: Duration = Duration::from_secs(120);

/// Why a connection is not carried for which there is no place.
pub const FULL: &str = "as many connections are open as this proxy has room for";

/// A listener that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr}: {cause}{}", mend(.cause))]
pub struct BindError {
    addr: SocketAddr,
    cause: io::Error,
}

fn mend(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another program has this port, stop it or choose another",
        io::ErrorKind::AddrNotAvailable => "; this network has no such address",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE",
        _ => "",
    }
}

/// Opens `count` listeners on one address, one for each worker; the kernel spreads connections.
///
/// # Errors
/// Where the address cannot be bound, also because a process of the same user listens there:
/// `SO_REUSEPORT` alone would share the port with it in silence.
pub fn bind(addr: SocketAddr, count: usize) -> Result<Vec<std::net::TcpListener>, BindError> {
    let fail = |cause| BindError { addr, cause };
    let first = open(addr, false).map_err(fail)?;
    if count <= 1 {
        return Ok(vec![first]);
    }
    let addr = first.local_addr().map_err(fail)?;
    drop(first);
    (0..count).map(|_| open(addr, true).map_err(fail)).collect()
}

fn open(addr: SocketAddr, reuse_port: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Whether this machine has IPv6, so that a wildcard listener gets a twin.
#[must_use]
pub fn has_ipv6() -> bool {
    open(SocketAddr::from((Ipv6Addr::LOCALHOST, 0)), false).is_ok()
}

/// The same listener for the other family: `127.0.0.1` ↔ `::1`, `0.0.0.0` → `::`.
#[must_use]
pub fn ipv6_twin(addr: SocketAddr) -> Option<SocketAddr> {
    let ip = match addr.ip() {
        IpAddr::V4(Ipv4Addr::LOCALHOST) => Ipv6Addr::LOCALHOST,
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv6Addr::UNSPECIFIED,
        _ => return None,
    };
    Some(SocketAddr::from((ip, addr.port())))
}

/// Accepts until the drain closes the listeners and gives each connection to `serve` on a task of its own.
///
/// Out of file descriptors it pauses, rather than spin; each connection is tracked by the drain.
/// Connections that wait to be accepted when the listener closes are served as well: to their clients
/// they are open, and the kernel would reset them.
///
/// `fair`: callers compete for places by their address. What there is no place for is counted by
/// `refused` and reset.
pub async fn accept<F, Fut>(
    listener: TcpListener,
    (admission, fair): (Arc<Admission>, bool),
    drain: drain::Watch,
    refused: impl Fn(),
    serve: F,
) where
    F: Fn(TcpStream, SocketAddr, Admitted) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let serve = |stream: TcpStream, peer: SocketAddr| {
        let Some(admitted) = admission.admit(fair.then(|| peer.ip())) else {
            refused();
            reset_on_drop(&stream);
            return;
        };
        prepare(&stream);
        // Boxed at once: the future is large, and every layer around it would move it. It is made where
        // it stays: made before its box it may be copied there, all 8 KiB.
        let serving = Box::write(Box::new_uninit(), serve(stream, peer, admitted));
        tokio::spawn(drain.track(Box::into_pin(serving)));
    };
    let mut pause = Duration::from_millis(5);
    loop {
        let accepted = tokio::select! {
            biased;
            () = drain.closing() => {
                waiting(listener).for_each(|(stream, peer)| serve(stream, peer));
                return;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                pause = Duration::from_millis(5);
                serve(stream, peer);
            }
            // The client gave up before we came to it: nothing is wrong with the listener.
            Err(error) if is_connection_error(&error) => {}
            Err(error) => {
                tracing::warn!(%error, ?pause, "cannot accept; pausing");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
        }
    }
}

/// The connections that wait to be accepted.
fn waiting(listener: TcpListener) -> impl Iterator<Item = (TcpStream, SocketAddr)> {
    // The runtime would wait for another event first.
    let listener = listener.into_std().ok();
    let next = move || {
        let (stream, peer) = listener.as_ref()?.accept().ok()?;
        stream.set_nonblocking(true).ok()?;
        Some((TcpStream::from_std(stream).ok()?, peer))
    };
    std::iter::from_fn(next).take(BACKLOG as usize)
}

fn is_connection_error(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Socket options that every connection of ours has. A failure here is a dead socket, which the
/// first read reports.
pub fn prepare(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    let _ = socket.set_tcp_keepalive(&keepalive);
    // Within the pod nobody vanishes without a word, and an application may read when it likes.
    if !stays_here(stream).unwrap_or(true) {
        let _ = socket.set_tcp_user_timeout(Some(USER_TIMEOUT));
    }
}

fn stays_here(stream: &TcpStream) -> io::Result<bool> {
    let (local, peer) = (stream.local_addr()?.ip(), stream.peer_addr()?.ip());
    Ok(local == peer || local.is_loopback() || peer.is_loopback())
}

/// Where the connection was going before the rules of [`crate::redirect`] turned it here;
/// its local address where it was not redirected.
///
/// # Errors
/// Where the socket is gone already.
pub fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    let local = stream.local_addr()?;
    let socket = SockRef::from(stream);
    let original =
        if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    Ok(original.ok().and_then(|addr| addr.as_socket()).unwrap_or(local))
}

/// Whether this destination of a redirected connection is a listener of ours: forwarded, it would
/// come back for ever. `own` are those known by address. A wildcard listener is reached by any
/// address of the machine (all of 127.0.0.0/8, further interfaces), but then the connection was not
/// redirected, and its destination is where it arrived.
#[must_use]
pub fn is_own(stream: &TcpStream, destination: SocketAddr, own: &[SocketAddr]) -> bool {
    own.contains(&destination)
        || own.iter().any(|own| own.port() == destination.port())
            && stream.local_addr().is_ok_and(|local| local == destination)
}

/// Whether this destination of a connection from outside is none of this machine's addresses: a
/// packet that was sent here by its link address alone, to be carried on in our name.
#[must_use]
pub fn is_foreign(stream: &TcpStream, destination: SocketAddr) -> bool {
    let ip = destination.ip();
    // Redirected to the main address of the device it came in by; that is mostly the one dialled.
    let arrived_there = stream.local_addr().is_ok_and(|local| local.ip() == ip);
    let unknown = |error: io::Error| error.kind() == io::ErrorKind::AddrNotAvailable;
    !arrived_there && std::net::UdpSocket::bind((ip, 0)).is_err_and(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn a_port_in_use_is_named_with_its_mend() {
        let taken = bind(SocketAddr::from(([127, 0, 0, 1], 0)), 1).unwrap().remove(0);
        let addr = taken.local_addr().unwrap();
        for workers in [1, 2] {
            let error = bind(addr, workers).unwrap_err().to_string();
            assert!(
                error.contains(&addr.to_string()) && error.contains("another program"),
                "{error}"
            );
        }
    }

    #[test]
    fn workers_share_one_port() {
        let sockets = bind(SocketAddr::from(([127, 0, 0, 1], 0)), 3).unwrap();
        let ports: Vec<u16> = sockets.iter().map(|s| s.local_addr().unwrap().port()).collect();
        assert!(ports.len() == 3 && ports.iter().all(|p| *p == ports[0] && *p != 0), "{ports:?}");
    }

    #[tokio::test]
    async fn who_waits_to_be_accepted_when_the_listener_closes_is_served() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(TcpStream::connect(addr).await.unwrap());
        }
        let (drain, watch) = drain::Drain::new();
        watch.start();
        let serve = |mut client: TcpStream, _, place| async move {
            client.write_all(b"served").await.unwrap();
            drop(place);
        };
        let places = (Admission::new(3, 1), false);
        let accept = accept(listener, places, watch.clone(), || unreachable!(), serve);
        tokio::spawn(watch.accepting(accept));
        assert_eq!(drain.drain(KEEPALIVE_IDLE).await, drain::Drained::Clean);
        for mut client in clients {
            let mut said = String::new();
            client.read_to_string(&mut said).await.unwrap();
            assert_eq!(said, "served");
        }
        assert!(TcpStream::connect(addr).await.is_err());
    }

    #[tokio::test]
    async fn within_the_machine_nobody_is_cut_for_reading_late() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        prepare(&client);
        let socket = SockRef::from(&client);
        assert_eq!(socket.tcp_user_timeout().unwrap(), None);
        assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
    }

    #[tokio::test]
    async fn without_redirection_the_local_address_is_the_destination() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let _client = TcpStream::connect(addr).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        assert_eq!(original_destination(&server).unwrap(), addr);
    }
}
