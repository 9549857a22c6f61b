//! A small HTTP client for proxies' admin endpoints: one connection, a few GETs one after the other,
//! bounded in time and bytes.

use std::{convert::Infallible, future::pending, io, net::SocketAddr, time::Duration};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    Request, StatusCode,
    body::Bytes,
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

/// Longest wait for a connection, and for each answer.
const LIMIT: Duration = Duration::from_secs(1);
/// Largest answer.
const MAX_BODY: usize = 1 << 20;

/// Why a proxy was not heard.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("no connection: {0}")]
    Connect(io::Error),
    #[error("no answer within 1 s")]
    Timeout,
    #[error("{path}: {source}")]
    Http { path: &'static str, source: hyper::Error },
    #[error("{path}: status {status}")]
    Status { path: &'static str, status: StatusCode },
    #[error("{path}: larger than 1 MiB, or broken off")]
    Body { path: &'static str },
    #[error("{0}")]
    NotUnderstood(String),
}

/// The bodies of answers to GET. The first path must be there; `None` of others that are not (404).
pub(super) async fn get<const N: usize>(
    address: SocketAddr,
    paths: [&'static str; N],
) -> Result<[Option<Bytes>; N], Failure> {
    let stream = timeout(LIMIT, TcpStream::connect(address)).await.map_err(|_| Failure::Timeout)?;
    let stream = stream.map_err(Failure::Connect)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|source| Failure::Http { path: paths[0], source })?;
    // A connection that has ended has told the sender, which says it better.
    let carry = async {
        let _ = connection.await;
        pending::<Infallible>().await
    };
    let ask = async {
        let mut bodies = [const { None }; N];
        for (at, path) in paths.into_iter().enumerate() {
            let answer = timeout(LIMIT, one(&mut sender, address, path));
            match answer.await.map_err(|_| Failure::Timeout)? {
                Ok(body) => bodies[at] = Some(body),
                Err(Failure::Status { status: StatusCode::NOT_FOUND, .. }) if at > 0 => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(bodies)
    };
    tokio::select! {
        bodies = ask => bodies,
        never = carry => match never {},
    }
}

async fn one(
    sender: &mut SendRequest<Empty<Bytes>>,
    address: SocketAddr,
    path: &'static str,
) -> Result<Bytes, Failure> {
    let failed = |source| Failure::Http { path, source };
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = http::Uri::from_static(path);
    let host = header::HeaderValue::try_from(address.to_string());
    if let Ok(host) = host {
        request.headers_mut().insert(header::HOST, host);
    }
    sender.ready().await.map_err(failed)?;
    let answer = sender.send_request(request).await.map_err(failed)?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_BODY).collect().await;
    let body = body.map_err(|_| Failure::Body { path })?.to_bytes();
    if status == StatusCode::OK { Ok(body) } else { Err(Failure::Status { path, status }) }
}

#[cfg(test)]
mod tests {
    use axum::{Router, routing::get as answer};
    use tokio::net::TcpListener;

    use super::*;

    async fn serve(router: Router) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    #[tokio::test]
    async fn what_a_proxy_does_not_have_is_left_out() {
        let address = serve(Router::new().route("/a", answer(|| async { "one" }))).await;
        let bodies = get(address, ["/a", "/b"]).await.unwrap();
        assert_eq!(bodies, [Some(Bytes::from("one")), None]);
        let error = get(address, ["/b", "/a"]).await.unwrap_err();
        assert_eq!(error.to_string(), "/b: status 404 Not Found");
    }

    #[tokio::test]
    async fn an_answer_has_a_bound() {
        let fits = vec![b' '; MAX_BODY];
        let large = vec![b' '; MAX_BODY + 1];
        let router = Router::new()
            .route("/fits", answer(|| async { fits }))
            .route("/large", answer(|| async { large }));
        let address = serve(router).await;
        let [fits] = get(address, ["/fits"]).await.unwrap();
        assert_eq!(fits.map(|body| body.len()), Some(MAX_BODY));
        let error = get(address, ["/large"]).await.unwrap_err();
        assert_eq!(error.to_string(), "/large: larger than 1 MiB, or broken off");
    }

    #[tokio::test]
    async fn a_proxy_that_says_nothing_holds_nobody_up() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let error = get(silent.local_addr().unwrap(), ["/a"]).await.unwrap_err();
        assert_eq!(error.to_string(), "no answer within 1 s");
    }

    #[tokio::test]
    async fn a_refused_connection_says_so() {
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let error = get(address, ["/a"]).await.unwrap_err().to_string();
        assert!(error.starts_with("no connection: "), "{error}");
    }
}
