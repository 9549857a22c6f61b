use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use rcgen::{CertificateParams, KeyPair};
use remora_proto::v1::identity_server::Identity as _;
use tonic::Code;

use super::{ca::Authority, store::StoreError, token::TokenDir, *};
use crate::server::tls::spiffe_id;

const HOUR: Duration = Duration::from_secs(3600);
/// A moment in 2027.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

struct Fixture {
    identity: Identity,
    tokens: tempfile::TempDir,
}

fn fixture(clock: fn() -> SystemTime) -> Fixture {
    let authority = Arc::new(store::open(None, "cluster.local", HOUR, now()).unwrap());
    let tokens = tempfile::tempdir().unwrap();
    let mut roots = bundle::Roots::default();
    roots.hold(authority.roots(), now(), now());
    let (_, bundle) = watch::channel(roots.streamed("cluster.local"));
    let (_, signer) = watch::channel(Arc::new(Signer { authority, signs_from: now() }));
    let identity = Identity {
        signer,
        tokens: Arc::new(TokenDir::new(tokens.path().to_owned())),
        trust_domain: "cluster.local".to_owned(),
        bundle,
        clock,
        metrics: Arc::default(),
    };
    Fixture { identity, tokens }
}

impl Fixture {
    fn register(&self, token: &str, workload: &str) {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
        let name: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        fs::write(self.tokens.path().join(format!("{name}.json")), workload).unwrap();
    }

    async fn certify(&self, token: &[u8], csr: Vec<u8>) -> Result<CertifyResponse, Status> {
        let request = CertifyRequest { token: token.to_vec(), csr };
        self.identity.certify(Request::new(request)).await.map(Response::into_inner)
    }
}

const ORDERS: &str = r#"{"namespace":"shop","serviceAccount":"orders","pod":"orders-0"}"#;

fn csr() -> Vec<u8> {
    let key = KeyPair::generate().unwrap();
    // A name inside the request must not end up in the certificate.
    let params = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
    params.serialize_request(&key).unwrap().der().to_vec()
}

#[tokio::test]
async fn a_good_token_gets_a_leaf_with_the_tokens_identity_only() {
    let fixture = fixture(now);
    fixture.register("secret", ORDERS);
    let answer = fixture.certify(b"secret\n", csr()).await.unwrap();
    assert_eq!(answer.spiffe_id, "spiffe://cluster.local/ns/shop/sa/orders");
    assert_eq!(answer.not_before, unix_seconds(now() - ca::CLOCK_SKEW));
    assert_eq!(answer.not_after, unix_seconds(now() + HOUR));
    let leaf = answer.chain[0].clone().into();
    assert_eq!(spiffe_id(&leaf).unwrap().as_str(), answer.spiffe_id);
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    assert_eq!(parsed.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);
    assert!(!parsed.is_ca());
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && usage.client_auth && !usage.any);
    let (_, root) =
        x509_parser::parse_x509_certificate(&answer.trust_bundle.as_ref().unwrap().roots[0])
            .map(|(rest, root)| (rest.len(), root.public_key().raw.to_vec()))
            .unwrap();
    assert!(!root.is_empty());
}

#[tokio::test]
async fn unknown_and_unreadable_tokens_are_told_apart() {
    let fixture = fixture(now);
    fixture.register("broken", "{");
    assert_eq!(fixture.certify(b"guess", csr()).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(fixture.certify(b"", csr()).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(fixture.certify(b"broken", csr()).await.unwrap_err().code(), Code::Unavailable);
    let long = vec![b'x'; MAX_TOKEN + 1];
    assert_eq!(fixture.certify(&long, csr()).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn bad_requests_are_refused() {
    let fixture = fixture(now);
    fixture.register("secret", ORDERS);
    let mut tampered = csr();
    let last = tampered.len() - 1;
    tampered[last] ^= 1;
    let mut followed = csr();
    followed.push(0);
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let other_key =
        CertificateParams::default().serialize_request(&ed25519).unwrap().der().to_vec();
    for bad in [Vec::new(), b"text".to_vec(), tampered, followed, other_key] {
        let status = fixture.certify(b"secret", bad).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
}

#[tokio::test]
async fn no_leaf_outlives_its_issuer_and_an_expired_issuer_signs_nothing() {
    fn just_before() -> SystemTime {
        now() + Duration::from_secs(10 * 365 * 24 * 3600 - 60)
    }
    fn after() -> SystemTime {
        now() + Duration::from_secs(10 * 365 * 24 * 3600)
    }
    let late = fixture(just_before);
    late.register("secret", ORDERS);
    let answer = late.certify(b"secret", csr()).await.unwrap();
    assert_eq!(answer.not_after, unix_seconds(late.identity.signer.borrow().authority.expires()));
    let expired = fixture(after);
    expired.register("secret", ORDERS);
    let status = expired.certify(b"secret", csr()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("expired"), "{status}");
}

#[tokio::test]
async fn an_issuer_that_is_not_trusted_yet_signs_nothing() {
    let fixture = fixture(now);
    fixture.register("secret", ORDERS);
    let mut identity = fixture.identity;
    let signer = Arc::clone(&identity.signer.borrow());
    let signs_from = now() + Duration::from_secs(40);
    let held = Signer { authority: Arc::clone(&signer.authority), signs_from };
    (_, identity.signer) = watch::channel(Arc::new(held));
    let request = CertifyRequest { token: b"secret".to_vec(), csr: csr() };
    let status = identity.certify(Request::new(request)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("signs in 41 s"), "{status}");
}

fn open(dir: &std::path::Path) -> Result<Authority, StoreError> {
    store::open(Some(dir), "cluster.local", HOUR, now())
}

#[test]
fn the_ca_is_made_once_with_a_private_key_file() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("ca");
    let first = open(&dir).unwrap();
    let mode = fs::metadata(dir.join("tls.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(open(&dir).unwrap().roots(), first.roots());
}

#[test]
fn unusable_ca_files_are_one_line_with_file_and_mend() {
    let temp = tempfile::tempdir().unwrap();
    let fresh = |name: &str| {
        let dir = temp.path().join(name);
        open(&dir).unwrap();
        dir
    };
    let told = |dir: &std::path::Path, file: &str, what: &str| {
        let line = open(dir).unwrap_err().to_string();
        assert!(line.starts_with(&dir.join(file).display().to_string()), "{line}");
        assert!(line.contains(what) && line.contains(';') && !line.contains('\n'), "{line}");
    };

    let dir = fresh("exposed");
    fs::set_permissions(dir.join("tls.key"), fs::Permissions::from_mode(0o644)).unwrap();
    told(&dir, "tls.key", "readable by others (mode 0644); run chmod 600");

    let dir = fresh("corrupt");
    fs::write(dir.join("tls.crt"), "no PEM here").unwrap();
    told(&dir, "tls.crt", "no certificate");

    let dir = fresh("garbled-key");
    fs::write(dir.join("tls.key"), "garbage").unwrap();
    told(&dir, "tls.key", "no private key");

    let dir = fresh("mismatched");
    fs::copy(fresh("foreign").join("tls.key"), dir.join("tls.key")).unwrap();
    told(&dir, "tls.key", "is not the key of");

    let dir = fresh("unrelated");
    fs::copy(temp.path().join("foreign/ca.crt"), dir.join("ca.crt")).unwrap();
    told(&dir, "tls.crt", "was not issued by a root in");

    let dir = fresh("incomplete");
    fs::remove_file(dir.join("ca.crt")).unwrap();
    told(&dir, "ca.crt", "missing while");

    let dir = fresh("old");
    let later = now() + 11 * 365 * 24 * HOUR;
    let line = store::open(Some(&dir), "cluster.local", HOUR, later).unwrap_err().to_string();
    assert!(line.contains("tls.crt: expired"), "{line}");
}

#[test]
fn a_leaf_for_a_host_is_for_that_name_alone_and_no_identity() {
    let authority = store::open(None, "cluster.local", HOUR, now()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = authority.sign_host(&key, "control-plane.system.svc", now()).unwrap();
    assert_eq!((leaf.not_before, leaf.not_after), (now() - ca::CLOCK_SKEW, now() + HOUR));
    assert_eq!(spiffe_id(&leaf.chain[0]), None);
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf.chain[0]).unwrap();
    let names = &parsed.subject_alternative_name().unwrap().unwrap().value.general_names;
    let name = x509_parser::extensions::GeneralName::DNSName("control-plane.system.svc");
    assert_eq!(names[..], [name]);
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && !usage.client_auth);
}
