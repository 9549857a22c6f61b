//! The rules against the kernel: real connections between network namespaces, with every backend
//! that this machine has.

mod capture;
mod datagrams;
pub(super) mod namespace;
mod peers;
mod services;
mod tidy;
mod writer;

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

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
