//! Opaque TCP through both proxies.

use std::{sync::Arc, time::Duration};

use remora_tests::{
    mesh::Pair,
    wait::within,
    wire::{App, Wire},
};
use rustls::{
    ClientConfig, ServerConfig,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, aws_lc_rs::default_provider},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};

/// As redis: the client asks in a protocol that is not HTTP.
#[tokio::test]
async fn a_client_that_speaks_first_is_carried_at_once() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("*1\r\n$4\r\nPING\r\n").await;
    let mut server = app.accept().await;
    server.expect("*1\r\n$4\r\nPING\r\n").await;
    server.send("+PONG\r\n").await;
    client.expect("+PONG\r\n").await;
    let opaque = [("direction", "outbound"), ("result", "opaque")];
    pair.client.until("remora_detect_total", &opaque, 1).await;
    let mtls = [("direction", "inbound"), ("tls", "mtls")];
    assert_eq!(pair.server.metric("remora_tcp_connections_total", &mtls).await, 1);
}

#[tokio::test]
async fn either_side_may_end_first_and_still_listen() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("\x01question").await;
    client.finish().await;
    let mut server = app.accept().await;
    assert_eq!(server.rest().await.unwrap(), b"\x01question");
    server.send("a late answer").await;
    drop(server);
    assert_eq!(client.rest().await.unwrap(), b"a late answer");

    let mut client = Wire::dial(pair.entry()).await;
    client.send("\x01hello").await;
    let mut server = app.accept().await;
    server.expect("\x01hello").await;
    server.send("over").await;
    server.finish().await;
    assert_eq!(client.rest().await.unwrap(), b"over");
    client.send("and more").await;
    client.finish().await;
    assert_eq!(server.rest().await.unwrap(), b"and more");
}

#[tokio::test]
async fn a_reset_arrives_as_a_reset_on_the_other_side() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("\x01hello").await;
    let mut server = app.accept().await;
    server.expect("\x01hello").await;
    client.reset();
    let error = server.rest().await.expect_err("the client broke off, it did not end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

    let mut client = Wire::dial(pair.entry()).await;
    client.send("\x01hello").await;
    let mut server = app.accept().await;
    server.expect("\x01hello").await;
    server.reset();
    let error = client.rest().await.expect_err("the server broke off, it did not end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

/// As MySQL and SMTP. Nothing is configured, so the proxy has to find out.
#[tokio::test]
async fn a_server_that_speaks_first_is_heard_without_a_stall_and_remembered() {
    let (pair, app) = Pair::with_app(&[]).await;
    let greet = async {
        for _ in 0..2 {
            let mut server = app.accept().await;
            server.send("220 ready\r\n").await;
            assert_eq!(server.until("\r\n").await, "EHLO web\r\n");
            server.send("250 orders\r\n").await;
        }
    };
    let call = async {
        for _ in 0..2 {
            let dialled = Instant::now();
            let mut client = Wire::dial(pair.entry()).await;
            assert_eq!(client.until("\r\n").await, "220 ready\r\n");
            let waited = dialled.elapsed();
            assert!(waited < Duration::from_millis(500), "{waited:?}");
            client.send("EHLO web\r\n").await;
            assert_eq!(client.until("\r\n").await, "250 orders\r\n");
        }
    };
    tokio::join!(greet, call);
    let silent = [("direction", "outbound"), ("result", "silent")];
    let looked = pair.client.metric("remora_detect_total", &silent).await;
    assert_eq!(looked, 1, "the second connection was not looked at");
}

#[tokio::test]
async fn a_client_that_is_slow_to_begin_is_still_served_as_http() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    let silent = [("direction", "outbound"), ("result", "silent")];
    pair.client.until("remora_detect_total", &silent, 1).await;
    client.send("GET /late HTTP/1.1\r\nHost: orders\r\n\r\n").await;
    let answer = async {
        // The connection that was opened to see who speaks carries nothing and ends in order.
        assert!(app.accept().await.rest().await.unwrap().is_empty());
        let mut server = app.accept().await;
        assert_eq!(server.head().await.line(), "GET /late HTTP/1.1");
        server.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        server
    };
    let (head, _server) = tokio::join!(client.head(), answer);
    assert_eq!(head.status(), 200);
    pair.client.until("remora_outbound_http_requests_total", &[("service", "orders")], 1).await;
}

#[tokio::test]
async fn much_is_carried_unchanged_both_ways_at_the_same_time() {
    let (pair, app) = Pair::with_app(&[]).await;
    let up: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(97) >> 5) as u8).collect();
    let down: Vec<u8> = (0..2_000_000u32).map(|n| (n.wrapping_mul(89) >> 6) as u8).collect();
    let pump = |stream: tokio::net::TcpStream, data: Vec<u8>| async move {
        let (mut read, mut write) = stream.into_split();
        let send = async move {
            write.write_all(&data).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let ((), read) = tokio::join!(send, read.read_to_end(&mut got));
        read.unwrap();
        got
    };
    let client = pump(Wire::dial(pair.entry()).await.into_stream(), up.clone());
    let server = async { pump(app.accept().await.into_stream(), down.clone()).await };
    let (got_down, got_up) = within("the copies", async { tokio::join!(client, server) }).await;
    assert!(got_up == up && got_down == down);
}

#[tokio::test]
async fn the_applications_own_tls_passes_untouched() {
    let (pair, app) = Pair::with_app(&[]).await;
    let (certificate, server_config) = own_tls();
    let serve = async {
        let acceptor = tokio_rustls::TlsAcceptor::from(server_config);
        let mut tls = acceptor.accept(app.accept().await.into_stream()).await.unwrap();
        let name = tls.get_ref().1.server_name().map(str::to_owned);
        let mut question = [0; 4];
        tls.read_exact(&mut question).await.unwrap();
        tls.write_all(&question).await.unwrap();
        tls.shutdown().await.unwrap();
        name
    };
    let call = async {
        let connector = tokio_rustls::TlsConnector::from(client_config());
        let name = ServerName::try_from("db.example").unwrap();
        let stream = Wire::dial(pair.entry()).await.into_stream();
        let mut tls = connector.connect(name, stream).await.unwrap();
        assert_eq!(tls.get_ref().1.peer_certificates().unwrap(), [certificate]);
        tls.write_all(b"ping").await.unwrap();
        let mut answer = Vec::new();
        tls.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"ping");
    };
    let (name, ()) = within("both", async { tokio::join!(serve, call) }).await;
    assert_eq!(name.as_deref(), Some("db.example"));
    let tls = [("direction", "outbound"), ("result", "tls")];
    assert_eq!(pair.client.metric("remora_detect_total", &tls).await, 1);
}

#[tokio::test]
async fn a_connection_without_endpoints_ends_in_a_reset() {
    let pair = Pair::start(&[]).await;
    pair.mesh.remove_pod(&pair.server.pod);
    // Nothing is resolved yet, so the first dial may still find the pod, whose application is off.
    loop {
        let mut client = Wire::dial(pair.entry()).await;
        client.send("\x01hello").await;
        assert!(client.rest().await.is_err(), "an orderly end would look like an answer");
        if pair.client.metric("remora_proxy_errors_total", &[("reason", "no-endpoints")]).await > 0
        {
            return;
        }
    }
}

#[tokio::test]
async fn an_application_that_is_down_resets_its_callers() {
    let pair = Pair::start(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("\x01hello").await;
    let error = client.rest().await.expect_err("nobody listens");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let reason = [("direction", "inbound"), ("reason", "connect-failed")];
    pair.server.until("remora_proxy_errors_total", &reason, 1).await;
    // And once it is there, all is well.
    let app = App::listen(pair.server.pod.app()).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("\x01again").await;
    app.accept().await.expect("\x01again").await;
}

fn own_tls() -> (CertificateDer<'static>, Arc<ServerConfig>) {
    let made = rcgen::generate_simple_self_signed(vec!["db.example".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    (certificate, Arc::new(config))
}

fn client_config() -> Arc<ClientConfig> {
    let provider = default_provider();
    let verifier = AnyCertificate(provider.signature_verification_algorithms);
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Arc::new(config)
}

/// The test compares certificates itself.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.supported_schemes()
    }
}
