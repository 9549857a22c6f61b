//! Real handshakes over in-memory pipes.

use std::net::{IpAddr, Ipv4Addr};

use rustls::HandshakeKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::{
    Alpn, TlsError, client,
    material::Material,
    server,
    testing::{HOUR, TestCa, id, now},
};

const ENDPOINT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7));

type Client = Result<tokio_rustls::client::TlsStream<DuplexStream>, TlsError>;
type Server = Result<
    (tokio_rustls::server::TlsStream<DuplexStream>, remora_core::spiffe::SpiffeId, Alpn),
    TlsError,
>;

async fn handshake(
    caller: &Material,
    server: &Material,
    expected: &str,
    alpn: Alpn,
) -> (Client, Server) {
    let (near, far) = tokio::io::duplex(64 << 10);
    let expected = id(expected);
    tokio::join!(
        client::connect(caller, &expected, alpn, ENDPOINT, near),
        // A client that gives up closes its end, which ends the server's wait.
        async {
            let accepted = server::accept(server, far).await;
            match accepted {
                // In TLS 1.3 the client is done first: let it see what comes after.
                Ok((mut stream, id, alpn)) => {
                    stream.flush().await.unwrap();
                    Ok((stream, id, alpn))
                }
                Err(error) => Err(error),
            }
        }
    )
}

/// Sends a byte each way, so that tickets and late alerts arrive.
async fn exchange(client: Client, server: Server) -> HandshakeKind {
    let (mut client, mut server) = (client.unwrap(), server.unwrap().0);
    client.write_all(b"a").await.unwrap();
    assert_eq!(server.read_u8().await.unwrap(), b'a');
    server.write_all(b"b").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'b');
    client.get_ref().1.handshake_kind().unwrap()
}

#[tokio::test]
async fn both_sides_learn_identity_and_what_is_inside() {
    let ca = TestCa::new();
    let (web, orders) = (ca.material(&id("web")), ca.material(&id("orders")));
    for alpn in Alpn::ALL {
        let (client, server) = handshake(&web, &orders, "orders", alpn).await;
        let (_, caller, told) = server.as_ref().unwrap();
        assert_eq!((caller, *told), (&id("web"), alpn));
        exchange(client, server).await;
    }
}

#[tokio::test]
async fn another_identity_than_expected_is_refused_by_name() {
    let ca = TestCa::new();
    let (web, thief) = (ca.material(&id("web")), ca.material(&id("thief")));
    let (client, server) = handshake(&web, &thief, "orders", Alpn::H1).await;
    let error = client.unwrap_err();
    assert_eq!(error.reason(), "identity-mismatch");
    let text = error.to_string();
    assert!(text.contains("/sa/orders") && text.contains("/sa/thief"), "{text}");
    assert!(matches!(server.unwrap_err(), TlsError::Refused { .. }));
}

#[tokio::test]
async fn a_foreign_ca_is_refused_by_both_sides() {
    let (ca, foreign) = (TestCa::new(), TestCa::new());
    let (ours, theirs) = (ca.material(&id("web")), foreign.material(&id("orders")));
    let (client, _) = handshake(&ours, &theirs, "orders", Alpn::H1).await;
    let error = client.unwrap_err();
    assert!(matches!(error, TlsError::UnknownIssuer), "{error}");
    assert_eq!(error.reason(), "tls-failed");

    // A caller that trusts us, but whom we do not trust.
    let caller = Material::new(foreign.certificate(&id("web")), ca.bundle()).unwrap();
    let orders = ca.material(&id("orders"));
    let (_, server) = handshake(&caller, &orders, "orders", Alpn::H1).await;
    assert!(matches!(server.unwrap_err(), TlsError::UnknownIssuer));
}

#[tokio::test]
async fn an_expired_certificate_is_refused_with_a_word_on_clocks() {
    let ca = TestCa::new();
    let stale = ca.certificate_for(&[id("orders").as_str()], (now() - 2 * HOUR, now() - HOUR));
    let orders = Material::new(stale, ca.bundle()).unwrap();
    let (client, _) = handshake(&ca.material(&id("web")), &orders, "orders", Alpn::H2).await;
    let text = client.unwrap_err().to_string();
    assert!(text.contains("expired 36") && text.contains("clocks"), "{text}");
}

#[tokio::test]
async fn a_caller_of_another_trust_domain_is_refused_though_the_root_signed_it() {
    let ca = TestCa::new();
    let other = "spiffe://other.example/ns/shop/sa/web";
    let certificate = ca.certificate_for(&[other], (now() - HOUR, now() + HOUR));
    let caller = Material::new(certificate, ca.bundle()).unwrap();
    let (_, server) = handshake(&caller, &ca.material(&id("orders")), "orders", Alpn::H1).await;
    assert!(matches!(server.unwrap_err(), TlsError::NoIdentity { .. }));
}

#[tokio::test]
async fn a_leaf_must_have_exactly_one_uri_name() {
    let ca = TestCa::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let (a, b) = (id("orders"), id("admin"));
    for uris in [&[][..], &[a.as_str(), b.as_str()]] {
        let leaf = ca.sign(&key, uris, (now() - HOUR, now() + HOUR));
        assert!(super::verify::spiffe_id(&leaf).is_err(), "{uris:?}");
    }
}

#[tokio::test]
async fn a_peer_without_tls_is_named_as_such() {
    let ca = TestCa::new();
    let (near, mut far) = tokio::io::duplex(64 << 10);
    far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    let web = ca.material(&id("web"));
    let error = client::connect(&web, &id("orders"), Alpn::H1, ENDPOINT, near).await.unwrap_err();
    assert!(matches!(error, TlsError::NotTls), "{error:?}");
}

#[tokio::test]
async fn a_caller_without_certificate_or_token_is_refused() {
    let ca = TestCa::new();
    let bare = super::material::server_auth_config(&ca.bundle(), &id("orders")).unwrap();
    let (near, far) = tokio::io::duplex(64 << 10);
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(bare));
    let orders = ca.material(&id("orders"));
    let (_, accepted) = tokio::join!(
        connector.connect(rustls_pki_types::ServerName::IpAddress(ENDPOINT.into()), near),
        server::accept(&orders, far)
    );
    assert_eq!(accepted.unwrap_err().reason(), "tls-failed");
}

#[tokio::test]
async fn later_connections_resume_whatever_their_token() {
    let ca = TestCa::new();
    let (web, orders) = (ca.material(&id("web")), ca.material(&id("orders")));
    let (client, server) = handshake(&web, &orders, "orders", Alpn::H1).await;
    assert_eq!(exchange(client, server).await, HandshakeKind::Full);
    let (client, server) = handshake(&web, &orders, "orders", Alpn::Tcp).await;
    assert_eq!(server.as_ref().unwrap().1, id("web"), "identity survives resumption");
    assert_eq!(exchange(client, server).await, HandshakeKind::Resumed);
}

#[test]
fn expiry_is_seen_without_verifying_the_chain_again() {
    let ca = TestCa::new();
    let leaf = ca.certificate(&id("orders")).chain()[0].clone();
    let at = |time| {
        let time = rustls_pki_types::UnixTime::since_unix_epoch(time);
        super::verify::check_not_expired(&leaf, time)
    };
    assert!(at(now()).is_ok());
    assert!(matches!(at(now() + 2 * HOUR).unwrap_err(), TlsError::Validity { .. }));
}

#[tokio::test]
async fn no_session_is_resumed_for_another_identity() {
    let ca = TestCa::new();
    let (web, orders) = (ca.material(&id("web")), ca.material(&id("orders")));
    let (client, server) = handshake(&web, &orders, "orders", Alpn::H1).await;
    exchange(client, server).await;
    let (client, _) = handshake(&web, &orders, "inventory", Alpn::H1).await;
    assert_eq!(client.unwrap_err().reason(), "identity-mismatch");
}

#[tokio::test]
async fn rotation_keeps_open_connections_and_ends_resumption() {
    let ca = TestCa::new();
    let identity = ca.identity(&id("orders"));
    let web = ca.material(&id("web"));
    let before = identity.current().unwrap();
    let (client, server) = handshake(&web, &before, "orders", Alpn::H1).await;
    let (mut client, mut server) = (client.unwrap(), server.unwrap().0);

    let mut changed = identity.changed();
    identity.install(ca.certificate(&id("orders")), ca.bundle()).unwrap();
    changed.changed().await.unwrap();
    client.write_all(b"x").await.unwrap();
    assert_eq!(server.read_u8().await.unwrap(), b'x');
    server.write_all(b"y").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'y');

    let after = identity.current().unwrap();
    assert_ne!(before.certificate().serial, after.certificate().serial);
    let (client, server) = handshake(&web, &after, "orders", Alpn::H1).await;
    assert_eq!(exchange(client, server).await, HandshakeKind::Full);
}

#[tokio::test]
async fn roots_that_do_not_vouch_for_us_take_effect_and_ask_for_renewal() {
    let (ca, next) = (TestCa::new(), TestCa::new());
    let identity = ca.identity(&id("orders"));
    identity.set_trust_bundle(ca.bundle()).unwrap();
    assert!(
        futures_util::FutureExt::now_or_never(identity.renewal_asked()).is_none(),
        "the same roots are no change"
    );
    identity.set_trust_bundle(next.bundle()).unwrap();
    identity.renewal_asked().await;
    assert_eq!(identity.current().unwrap().bundle(), &next.bundle());
    assert!(identity.ready(), "the certificate is kept");
}

#[test]
fn the_current_material_stays_when_a_renewal_cannot_be_used() {
    let ca = TestCa::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let other = rcgen::KeyPair::generate().unwrap();
    let leaf = ca.sign(&key, &[id("orders").as_str()], (now() - HOUR, now() + HOUR));
    let der = rustls_pki_types::PrivatePkcs8KeyDer::from(other.serialize_der()).into();
    let time = rustls_pki_types::UnixTime::now();
    let wrong_key = super::material::Certificate::new(vec![leaf], der, time, time);
    assert!(matches!(wrong_key.unwrap_err(), TlsError::Material { .. }));
}

#[test]
fn an_expired_certificate_is_not_ready_but_still_there() {
    let ca = TestCa::new();
    let identity = super::identity::Identity::new();
    assert!(!identity.ready() && identity.current().is_none());
    let stale = ca.certificate_for(&[id("orders").as_str()], (now() - 2 * HOUR, now() - HOUR));
    identity.install(stale, ca.bundle()).unwrap();
    assert!(!identity.ready() && identity.current().is_some());
}

#[test]
fn client_configurations_are_cached_and_bounded() {
    let ca = TestCa::new();
    let web = ca.material(&id("web"));
    let first = web.client_config(&id("orders"), Alpn::H1).unwrap();
    let again = web.client_config(&id("orders"), Alpn::H1).unwrap();
    assert!(std::sync::Arc::ptr_eq(&first, &again));
    for n in 0..2000 {
        web.client_config(&id(&format!("sa{n}")), Alpn::H2).unwrap();
    }
    assert!(web.cached_peers() <= 341);
}
