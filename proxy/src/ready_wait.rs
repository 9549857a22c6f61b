//! `remora-proxy await`: waits for the proxy of the same pod.
//!
//! The postStart hook of a proxy that is an ordinary container: the kubelet starts the next
//! container once the hook has returned, so the application never starts before its network works.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use remora_core::{names::ports, settings::parse_duration};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout, timeout_at},
};

/// How often the proxy is asked.
const PAUSE: Duration = Duration::from_millis(50);
/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(1);
/// Most of an answer that is read, bytes.
const LARGEST: usize = 4096;

/// Wait until the proxy of this pod is ready.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Longest wait; a pod that is deleted meanwhile ends only then
    #[arg(long, default_value = "1m", value_parser = parse_duration)]
    timeout: Duration,
    /// The proxy's admin endpoint
    #[arg(long, env = "REMORA_ADMIN_LISTEN", default_value_t = SocketAddr::from(([127, 0, 0, 1], ports::PROXY_ADMIN)))]
    admin: SocketAddr,
}

/// The proxy did not become ready in time.
#[derive(Debug, thiserror::Error)]
#[error(
    "the proxy at {admin} was not ready within {waited:?}: {last}; see the log of its container"
)]
pub struct NotReady {
    admin: SocketAddr,
    waited: Duration,
    last: String,
}

/// Returns once `/ready` of the admin endpoint answers 200.
///
/// # Errors
/// With the proxy's last word, where that takes longer than the command line allows.
pub async fn run(args: &Args) -> Result<(), NotReady> {
    let admin = reachable(args.admin);
    let deadline = Instant::now() + args.timeout;
    let mut last = "no answer".to_owned();
    let asking = async {
        loop {
            match timeout(ANSWER, ask(admin)).await {
                Ok(Ok(())) => return,
                Ok(Err(problem)) => last = problem,
                Err(_) => last = "no answer".to_owned(),
            }
            sleep(PAUSE).await;
        }
    };
    let done = timeout_at(deadline, asking).await.is_ok();
    if done { Ok(()) } else { Err(NotReady { admin, waited: args.timeout, last }) }
}

/// A wildcard address is where to listen; from inside the pod it is reached over loopback.
fn reachable(admin: SocketAddr) -> SocketAddr {
    match admin.ip() {
        IpAddr::V6(ip) if ip.is_unspecified() => {
            SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, admin.port()))
        }
        ip if ip.is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, admin.port())),
        _ => admin,
    }
}

async fn ask(admin: SocketAddr) -> Result<(), String> {
    let stream = TcpStream::connect(admin).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let request = http::Request::get("/ready")
        .header(http::header::HOST, admin.to_string())
        .body(Empty::<Bytes>::new())
        .expect("invariant: a path and an address make a request");
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LARGEST).collect().await;
        let text = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        if status.is_success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&text);
        Err(match text.trim() {
            "" => status.to_string(),
            words => words.to_owned(),
        })
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        // The answer may have come with the end of the connection.
        _ = connection => exchange.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{Router, http::StatusCode, routing::get};
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };
    use tokio::net::TcpListener;

    /// A proxy that is ready when it is asked for the `ready_at`th time.
    async fn proxy(ready_at: u32) -> (SocketAddr, Arc<AtomicU32>) {
        let asked = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&asked);
        let answer = move || {
            let nth = counter.fetch_add(1, Ordering::Relaxed) + 1;
            std::future::ready(if nth >= ready_at {
                (StatusCode::OK, "ready\n")
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, "not ready: no certificate yet\n")
            })
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/ready", get(answer));
        tokio::spawn(async move { axum::serve(listener, router).await });
        (address, asked)
    }

    #[tokio::test]
    async fn it_asks_until_the_proxy_is_ready() {
        let (admin, asked) = proxy(3).await;
        run(&Args { timeout: Duration::from_secs(60), admin }).await.unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn it_ends_with_the_proxys_last_word() {
        let (admin, _) = proxy(u32::MAX).await;
        let wait = Args { timeout: Duration::from_millis(120), admin };
        let error = run(&wait).await.unwrap_err().to_string();
        assert!(error.contains("not ready: no certificate yet; see the log"), "{error}");
    }

    #[test]
    fn a_wildcard_is_asked_over_loopback() {
        for (listen, asked) in [
            ("0.0.0.0:4191", "127.0.0.1:4191"),
            ("[::]:4191", "[::1]:4191"),
            ("10.0.0.1:1", "10.0.0.1:1"),
        ] {
            assert_eq!(reachable(listen.parse().unwrap()).to_string(), asked);
        }
    }
}
