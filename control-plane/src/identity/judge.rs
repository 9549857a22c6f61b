//! Judges an issuer's material: one code for the files of a directory and for the Secret, so that
//! both are held to the same and their problems read the same.

use std::time::{Duration, SystemTime};

use rcgen::{KeyPair, PublicKeyData};
use rustls_pki_types::{CertificateDer, pem::PemObject};

use super::{
    bundle::MAX_ROOTS,
    ca::{Authority, anchors, expiry},
};

/// An issuer in PEM, with names for its parts: a file's path, or the Secret's key.
#[derive(Debug)]
pub struct Material<'a> {
    /// `ca.crt`: the roots.
    pub roots: Part<'a>,
    /// `tls.crt`: the issuer's chain, its own certificate first.
    pub chain: Part<'a>,
    /// `tls.key`: the issuer's private key.
    pub key: Part<'a>,
    /// What to do where something is wrong with it.
    pub mend: &'static str,
}

/// A part of the material.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    /// Where it is, for messages.
    pub place: &'a str,
    /// PEM.
    pub pem: &'a [u8],
}

impl std::fmt::Debug for Part<'_> {
    /// Without the content, which may be the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.place)
    }
}

/// Why an issuer was refused. One line: where, what, the mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A part is not what it should be.
    #[error("{place}: {problem}; {mend}")]
    Corrupt {
        /// The part.
        place: String,
        /// What is wrong.
        problem: String,
        /// What to do.
        mend: &'static str,
    },
    /// A certificate that is needed has run out.
    #[error("{place}: expired {ago} s ago; put a new CA in its place")]
    Expired {
        /// The part.
        place: String,
        /// Seconds since it ran out.
        ago: u64,
    },
}

impl Material<'_> {
    /// The authority that the material makes: the key belongs to the chain's first certificate, which
    /// is a CA, and the chain leads to a root; none of them has run out. Roots that have run out and
    /// are not needed are left out.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn authority(
        &self,
        leaf_lifetime: Duration,
        now: SystemTime,
    ) -> Result<Authority, Refused> {
        let mut roots = self.certificates(self.roots)?;
        let issuers = self.certificates(self.chain)?;
        let key = self.key_of(&issuers[0])?;
        for certificate in &issuers {
            self.check_valid(self.chain, certificate, now)?;
        }
        let leads_to: Vec<_> = anchors(&issuers, &roots).cloned().collect();
        let Some(first) = leads_to.first() else {
            let problem = format!("was not issued by a root in {}", self.roots.place);
            return Err(self.corrupt(self.chain, problem));
        };
        if leads_to.iter().all(|root| self.check_valid(self.roots, root, now).is_err()) {
            self.check_valid(self.roots, first, now)?;
        }
        roots.retain(|root| self.check_valid(self.roots, root, now).is_ok());
        roots.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
        roots.dedup();
        if roots.len() > MAX_ROOTS {
            let problem = format!("{} roots, at most {MAX_ROOTS} are possible", roots.len());
            return Err(self.corrupt(self.roots, problem));
        }
        Authority::new(&issuers, key, roots, leaf_lifetime)
            .map_err(|error| self.corrupt(self.chain, error.to_string()))
    }

    fn key_of(&self, issuer: &CertificateDer<'static>) -> Result<KeyPair, Refused> {
        let key = std::str::from_utf8(self.key.pem)
            .ok()
            .and_then(|pem| KeyPair::from_pem(pem).ok())
            .ok_or_else(|| self.corrupt(self.key, "no private key in PEM".to_owned()))?;
        let (_, own) = x509_parser::parse_x509_certificate(issuer)
            .map_err(|_| self.corrupt(self.chain, "not an X.509 certificate".to_owned()))?;
        if own.public_key().raw != key.subject_public_key_info() {
            return Err(self.corrupt(self.key, format!("is not the key of {}", self.chain.place)));
        }
        if !own.is_ca() {
            return Err(self.corrupt(self.chain, "is no CA certificate".to_owned()));
        }
        Ok(key)
    }

    fn certificates(&self, part: Part<'_>) -> Result<Vec<CertificateDer<'static>>, Refused> {
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(part.pem).collect();
        let all = all.map_err(|_| self.corrupt(part, "not PEM".to_owned()))?;
        if all.is_empty() {
            return Err(self.corrupt(part, "no certificate in it".to_owned()));
        }
        if all.iter().any(|certificate| expiry(certificate).is_none()) {
            return Err(self.corrupt(part, "not an X.509 certificate".to_owned()));
        }
        Ok(all)
    }

    fn check_valid(
        &self,
        part: Part<'_>,
        certificate: &CertificateDer<'_>,
        now: SystemTime,
    ) -> Result<(), Refused> {
        let expires = expiry(certificate).unwrap_or(SystemTime::UNIX_EPOCH);
        match now.duration_since(expires) {
            Ok(ago) => Err(Refused::Expired { place: part.place.to_owned(), ago: ago.as_secs() }),
            Err(_) => Ok(()),
        }
    }

    fn corrupt(&self, part: Part<'_>, problem: String) -> Refused {
        Refused::Corrupt { place: part.place.to_owned(), problem, mend: self.mend }
    }
}
