//! X.509 certificates, as far as the checks read them.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use x509_parser::prelude::FromDer;

use super::api::{Read, Unread};

/// A certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Certificate {
    der: CertificateDer<'static>,
    /// Whom it is for, in its own form.
    pub(crate) subject: String,
    issuer: String,
    /// Unix time in seconds.
    pub(crate) not_before: i64,
    /// Unix time in seconds.
    pub(crate) not_after: i64,
}

/// The certificates of a PEM text; there is at least one.
pub(crate) fn read(pem: &[u8]) -> Read<Vec<Certificate>> {
    let all: Vec<Certificate> = CertificateDer::pem_slice_iter(pem)
        .map(|der| parse(der.map_err(|error| Unread::failed(format_args!("not PEM: {error}")))?))
        .collect::<Read<_>>()?;
    if all.is_empty() { Err(Unread::failed("no certificate in it")) } else { Ok(all) }
}

fn parse(der: CertificateDer<'static>) -> Read<Certificate> {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(&der)
        .map_err(|error| Unread::failed(format_args!("not a certificate: {error}")))?;
    let validity = parsed.validity();
    let (not_before, not_after) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    let (subject, issuer) = (parsed.subject().to_string(), parsed.issuer().to_string());
    Ok(Certificate { der, subject, issuer, not_before, not_after })
}

/// Whether one of `roots` vouches for the chain's first certificate as a server of this name.
///
/// # Errors
/// Says why not.
pub(crate) fn vouches(
    roots: &[Certificate],
    chain: &[Certificate],
    name: &str,
    now: i64,
) -> Result<(), String> {
    let Some((leaf, rest)) = chain.split_first() else {
        return Err("there is no certificate".to_owned());
    };
    let anchors: Vec<_> =
        roots.iter().filter_map(|root| webpki::anchor_from_trusted_cert(&root.der).ok()).collect();
    let between: Vec<_> = rest.iter().map(|certificate| certificate.der.clone()).collect();
    let at = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now).unwrap_or(0)));
    let server = ServerName::try_from(name).map_err(|error| error.to_string())?;
    let leaf = webpki::EndEntityCert::try_from(&leaf.der).map_err(|error| error.to_string())?;
    leaf.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        &anchors,
        &between,
        at,
        webpki::KeyUsage::server_auth(),
        None,
        None,
    )
    .map_err(|error| error.to_string())?;
    leaf.verify_is_valid_for_subject_name(&server).map_err(|error| error.to_string())
}

/// Whether the last of the chain is one of `roots` or names one as its issuer.
pub(crate) fn leads_to(chain: &[Certificate], roots: &[Certificate]) -> bool {
    chain.last().is_some_and(|last| {
        roots.iter().any(|root| root.der == last.der || root.subject == last.issuer)
    })
}

/// A moment as people write it: `2026-11-21 00:24 UTC`.
pub(crate) fn date(unix: i64) -> String {
    let text = Timestamp::from_second(unix).unwrap_or_default().to_string();
    match text.get(..16) {
        Some(minutes) => format!("{} UTC", minutes.replace('T', " ")),
        None => text,
    }
}

/// A span as people say it: `12 days`, `5 hours`, `40 s`.
pub(crate) fn span(seconds: i64) -> String {
    match seconds {
        s if s >= 2 * 86_400 => format!("{} days", s / 86_400),
        s if s >= 2 * 3600 => format!("{} hours", s / 3600),
        s if s >= 120 => format!("{} minutes", s / 60),
        s => format!("{s} s"),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    /// A root, and a leaf of it for one name; both in PEM. Valid for some seconds from `from` (Unix
    /// time).
    pub(crate) fn root_and_leaf(name: &str, from: i64, seconds: i64) -> (String, String) {
        let valid = |params: &mut CertificateParams| {
            let at = |unix| time_of(unix);
            params.not_before = at(from).into();
            params.not_after = at(from + seconds).into();
        };
        let mut root = CertificateParams::default();
        root.distinguished_name.push(DnType::CommonName, format!("root of {name}"));
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        valid(&mut root);
        let root_key = KeyPair::generate().unwrap();
        let root_pem = root.self_signed(&root_key).unwrap().pem();
        let mut leaf = CertificateParams::new(vec![name.to_owned()]).unwrap();
        valid(&mut leaf);
        let issuer = Issuer::new(root, root_key);
        let leaf_pem = leaf.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap().pem();
        (root_pem, leaf_pem)
    }

    fn time_of(unix: i64) -> std::time::SystemTime {
        std::time::UNIX_EPOCH + std::time::Duration::from_secs(u64::try_from(unix).unwrap())
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::root_and_leaf, *};

    const NOW: i64 = 1_795_220_000;

    #[test]
    fn a_root_vouches_for_its_own_leaf_and_name_only() {
        let (root, leaf) = root_and_leaf("a.svc", NOW, 86_400);
        let (other, _) = root_and_leaf("b.svc", NOW, 86_400);
        let (root, leaf) = (read(root.as_bytes()).unwrap(), read(leaf.as_bytes()).unwrap());
        let other = read(other.as_bytes()).unwrap();
        assert_eq!(vouches(&root, &leaf, "a.svc", NOW + 1), Ok(()));
        let both: Vec<_> = other.iter().chain(&root).cloned().collect();
        assert_eq!(vouches(&both, &leaf, "a.svc", NOW + 1), Ok(()));
        for (roots, name, at) in
            [(&other, "a.svc", NOW + 1), (&root, "b.svc", NOW + 1), (&root, "a.svc", NOW + 90_000)]
        {
            assert!(vouches(roots, &leaf, name, at).is_err(), "{name} at {at}");
        }
        assert!(leads_to(&root, &root) && leads_to(&leaf, &root) && !leads_to(&leaf, &other));
        assert_eq!((root[0].not_before, root[0].not_after), (NOW, NOW + 86_400));
    }

    #[test]
    fn what_is_no_certificate_is_said() {
        assert_eq!(read(b"").unwrap_err().to_string(), "no certificate in it");
        let broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(read(broken).unwrap_err().to_string().starts_with("not a certificate"));
    }

    #[test]
    fn moments_and_spans_are_for_people() {
        assert_eq!(date(1_795_220_669), "2026-11-21 00:24 UTC");
        assert_eq!(span(40), "40 s");
        assert_eq!(span(86_400 * 30), "30 days");
        assert_eq!(span(3 * 3600), "3 hours");
        assert_eq!(span(600), "10 minutes");
    }
}
