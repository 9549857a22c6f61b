use super::*;
use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use proptest::prelude::*;
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use serde_json::json;
use tokio::{io::AsyncWriteExt, net::TcpListener};
use tokio_rustls::TlsAcceptor;

const PATH: &str = "/probe/app/readiness";
const AGENT: Option<&str> = Some("kube-probe/1.34");

fn prober(handler: serde_json::Value) -> Prober {
    let probes = json!({ PATH: handler }).to_string().parse().unwrap();
    Prober::new(probes, &[])
}

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// `/status/N` answers N; what was asked is told in the header `asked`.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let host = request.uri().authority().map(ToString::to_string);
    let header = |name: &str| {
        let value = request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        value.unwrap_or_default()
    };
    let host = host.unwrap_or_else(|| header("host"));
    let good =
        host == "web.example" && header("x-probe") == "1" && header("user-agent") == AGENT.unwrap();
    let wanted = request.uri().path().strip_prefix("/status/").and_then(|s| s.parse().ok());
    let status: u16 = if good { wanted.unwrap_or(404) } else { 418 };
    // Longer than what a probe reads.
    let body = Full::new(Bytes::from(vec![b'x'; 1 << 20]));
    Ok(Response::builder().status(status).body(body).unwrap())
}

/// An application with a certificate that nobody would trust.
async fn https(alpn: &[&[u8]], version: &'static rustls::SupportedProtocolVersion) -> u16 {
    let key = rcgen::generate_simple_self_signed(["nobody.invalid".to_owned()]).unwrap();
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.signing_key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(crate::tls::provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], der)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (listener, port) = listener().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let (io, service) = (TokioIo::new(stream), service_fn(answer));
                if h2 {
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(io, service).await;
                } else {
                    let server = hyper::server::conn::http1::Builder::new();
                    let _ = server.serve_connection(io, service).await;
                }
            });
        }
    });
    port
}

fn get(port: u16, path: &str) -> serde_json::Value {
    let headers = [
        json!({ "name": "Host", "value": "web.example" }),
        json!({ "name": "X-Probe", "value": "1" }),
    ];
    json!({
        "httpGet": { "port": port, "path": path, "scheme": "HTTPS", "httpHeaders": headers },
        "timeoutSeconds": 30
    })
}

#[tokio::test]
async fn tcp_passes_where_the_application_listens() {
    let (listener, port) = listener().await;
    let prober = prober(json!({ "tcpSocket": { "port": port }, "timeoutSeconds": 30 }));
    assert_eq!(prober.run(PATH, None).await, Ok(()));
    drop(listener);
    let failure = prober.run(PATH, None).await.unwrap_err().to_string();
    assert!(failure.starts_with(&format!("127.0.0.1:{port}: ")), "{failure}");
    assert_eq!(prober.run("/probe/app/liveness", None).await, Err(Failure::Unknown));
}

#[tokio::test]
async fn https_passes_by_status_whatever_certificate_and_version() {
    use rustls::version::{TLS12, TLS13};
    for (alpn, version) in
        [(&[b"h2".as_slice()][..], &TLS13), (&[b"http/1.1"], &TLS13), (&[], &TLS12)]
    {
        let port = https(alpn, version).await;
        for passing in [200, 204, 302, 399] {
            let prober = prober(get(port, &format!("/status/{passing}?q=a b")));
            assert_eq!(prober.run(PATH, AGENT).await, Ok(()), "{alpn:?} {passing}");
        }
        for failing in [400, 404, 500, 503] {
            let failure = prober(get(port, &format!("/status/{failing}"))).run(PATH, AGENT).await;
            let target = format!("https://127.0.0.1:{port}/status/{failing}");
            assert_eq!(failure, Err(Failure::Status { target, status: failing }));
        }
    }
}

#[tokio::test]
async fn plaintext_where_tls_is_expected_fails() {
    let (listener, port) = listener().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    });
    let failure = prober(get(port, "/")).run(PATH, AGENT).await;
    assert!(matches!(failure, Err(Failure::Broken { .. })), "{failure:?}");
}

#[tokio::test]
async fn a_silent_application_is_late() {
    let (_listener, port) = listener().await;
    let mut handler = get(port, "/");
    handler["timeoutSeconds"] = json!(1);
    let limit = Duration::from_secs(1);
    let target = format!("https://127.0.0.1:{port}/");
    assert_eq!(prober(handler).run(PATH, AGENT).await, Err(Failure::Late { target, limit }));
}

#[tokio::test]
async fn more_probes_than_a_kubelet_asks_for_are_turned_away() {
    let (_listener, port) = listener().await;
    let prober = prober(get(port, "/"));
    let turned_away = Arc::new(AtomicBool::new(false));
    let mut under_way = tokio::task::JoinSet::new();
    for _ in 0..=CONCURRENT {
        let (prober, turned_away) = (prober.clone(), Arc::clone(&turned_away));
        under_way.spawn(async move {
            if prober.run(PATH, AGENT).await == Err(Failure::Busy) {
                turned_away.store(true, Ordering::Relaxed);
            }
        });
    }
    // The others hang on an application that never answers.
    under_way.join_next().await.unwrap().unwrap();
    assert!(turned_away.load(Ordering::Relaxed));
}

#[test]
fn what_cannot_be_carried_out_is_named() {
    for (bad, word) in [
        ("[]", "not a JSON object"),
        ("{", "not a JSON object"),
        (r#"{"/p":{}}"#, "/p: needs one of"),
        (r#"{"/p":{"tcpSocket":{"port":0}}}"#, "/p: needs one of"),
        (r#"{"/p":{"tcpSocket":{"port":70000}}}"#, "not a JSON object"),
        (r#"{"/p":{"tcpSocket":{"port":1},"httpGet":{"port":1}}}"#, "/p: needs one of"),
        (r#"{"/p":{"httpGet":{"port":1,"scheme":"FTP"}}}"#, "/p: scheme \"FTP\""),
        (r#"{"/p":{"httpGet":{"port":1,"httpHeaders":[{"name":"a b"}]}}}"#, "/p: header \"a b\""),
    ] {
        let error = bad.parse::<Probes>().unwrap_err();
        assert!(error.contains(word), "{bad}: {error}");
    }
    assert!("{}".parse::<Probes>().is_ok());
}

proptest! {
    #[test]
    fn any_path_can_be_asked_for(path in "\\PC{0,32}") {
        let handler = json!({ "httpGet": { "port": 1, "path": path } });
        let parsed = json!({ "/p": handler }).to_string().parse::<Probes>();
        prop_assert!(parsed.is_ok(), "{parsed:?}");
    }
}
