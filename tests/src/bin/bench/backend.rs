//! The application behind the sidecars.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
};

use anyhow::Context;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, server::conn, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Ports of the back end, of its Service and of its pods.
pub(crate) mod ports {
    /// HTTP/1.1.
    pub(crate) const HTTP1: u16 = 9001;
    /// HTTP/2 with prior knowledge.
    pub(crate) const HTTP2: u16 = 9002;
    /// Bytes come back.
    pub(crate) const ECHO: u16 = 9003;
    /// Bytes without end, once the client has sent one.
    pub(crate) const BULK: u16 = 9004;
}

/// Size of an answer, and of an echoed message.
pub(crate) const ANSWER: usize = 1024;

static BODY: [u8; ANSWER] = [b'x'; ANSWER];
static PIECE: [u8; 256 * 1024] = [b'y'; 256 * 1024];

/// Arguments of `bench backend`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Address of all its ports, 9001 to 9004
    #[arg(long)]
    listen: IpAddr,
}

/// Serves until it is killed.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let bind = async |port| {
        let addr = SocketAddr::new(args.listen, port);
        TcpListener::bind(addr).await.with_context(|| format!("cannot listen on {addr}"))
    };
    let http1 = accept(bind(ports::HTTP1).await?, |client| async move {
        let served =
            conn::http1::Builder::new().serve_connection(TokioIo::new(client), service_fn(answer));
        // The client went away; nothing to do about it.
        _ = served.await;
    });
    let http2 = accept(bind(ports::HTTP2).await?, |client| async move {
        let server = conn::http2::Builder::new(TokioExecutor::new());
        _ = server.serve_connection(TokioIo::new(client), service_fn(answer)).await;
    });
    let echo = accept(bind(ports::ECHO).await?, |client| async move {
        let (mut from, mut to) = client.into_split();
        _ = tokio::io::copy(&mut from, &mut to).await;
    });
    let bulk = accept(bind(ports::BULK).await?, |mut client| async move {
        if client.read_u8().await.is_ok() {
            while client.write_all(&PIECE).await.is_ok() {}
        }
    });
    tokio::try_join!(http1, http2, echo, bulk)?;
    Ok(())
}

async fn answer(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(Bytes::from_static(&BODY))))
}

async fn accept<F, Fut>(listener: TcpListener, serve: F) -> anyhow::Result<()>
where
    F: Fn(TcpStream) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    loop {
        let (client, _) = listener.accept().await?;
        client.set_nodelay(true)?;
        tokio::spawn(serve(client));
    }
}
