//! The trust bundle: the roots that proxies shall trust, and for how long.
//!
//! It is what discovery streams to proxies and what the leader writes into the ConfigMap
//! `remora-trust-bundle`. The ConfigMap in the control plane's own namespace is at the same time the
//! memory of a replica that starts: its annotation [`ROOTS_ANNOTATION`] says of each root since when
//! it is published and until when it has to stay, as JSON:
//!
//! ```json
//! [{"sha256":"9f…","since":"2026-11-21T00:00:00Z"},
//!  {"sha256":"4c…","since":"2026-10-01T00:00:00Z","until":"2026-11-22T00:02:20Z"}]
//! ```
//!
//! A root without `until` was in the issuer's Secret when this was written.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use k8s_openapi::{
    api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp,
};
use remora_core::names;
use remora_proto::v1::TrustBundle;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde::{Deserialize, Serialize};

use super::ca::{Fingerprint, expiry};
use crate::leader::trust_bundles::PublishedBundle;

/// Annotation of the ConfigMap with what is known of each root; see the module.
pub const ROOTS_ANNOTATION: &str = "identity.remora.io/roots";
/// Most roots in a bundle; proxies take no more.
pub const MAX_ROOTS: usize = 16;

/// A root that proxies shall trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Its certificate.
    pub certificate: CertificateDer<'static>,
    /// Since when it is published.
    pub since: SystemTime,
    /// Until when it has to stay; `None` as long as the issuer's Secret or directory has it.
    pub until: Option<SystemTime>,
}

/// The roots of a bundle.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roots(BTreeMap<Fingerprint, Root>);

/// An entry of the annotation.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    sha256: String,
    since: Time,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<Time>,
}

impl Roots {
    /// What a ConfigMap holds. A root that its annotation does not know counts as published at `now`;
    /// moments in the future count as `now` too. Roots that have run out, whose time is over, or
    /// beyond the bound are left out, as is what cannot be read: a ConfigMap is only a memory.
    #[must_use]
    pub fn read(config_map: &ConfigMap, now: SystemTime) -> Self {
        let annotation =
            config_map.metadata.annotations.as_ref().and_then(|all| all.get(ROOTS_ANNOTATION));
        let entries: Vec<Entry> =
            annotation.and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default();
        let pem = config_map.data.as_ref().and_then(|data| data.get(names::TRUST_BUNDLE_KEY));
        let certificates = CertificateDer::pem_slice_iter(pem.map_or(&[][..], |p| p.as_bytes()));
        let known = certificates.filter_map(Result::ok).filter_map(|certificate| {
            expiry(&certificate).filter(|expires| *expires > now)?;
            let fingerprint = Fingerprint::of(&certificate);
            let name = fingerprint.to_string();
            let entry = entries.iter().find(|entry| entry.sha256 == name);
            let since = entry.map_or(now, |entry| SystemTime::from(entry.since.0).min(now));
            let until = entry.and_then(|entry| Some(SystemTime::from(entry.until.as_ref()?.0)));
            let alive = until.is_none_or(|until| until > now);
            alive.then_some((fingerprint, Root { certificate, since, until }))
        });
        Self(known.take(MAX_ROOTS).collect())
    }

    /// What a ConfigMap shall hold.
    #[must_use]
    pub fn published(&self) -> PublishedBundle {
        let time = |time: SystemTime| Time(Timestamp::try_from(time).unwrap_or(Timestamp::MAX));
        let entries: Vec<Entry> = self
            .0
            .iter()
            .map(|(fingerprint, root)| Entry {
                sha256: fingerprint.to_string(),
                since: time(root.since),
                until: root.until.map(time),
            })
            .collect();
        let json = serde_json::to_string(&entries).expect("invariant: names and times are JSON");
        PublishedBundle {
            pem: self.0.values().map(|root| pem(&root.certificate)).collect(),
            annotations: BTreeMap::from([(ROOTS_ANNOTATION.to_owned(), json)]),
        }
    }

    /// As gRPC carries them.
    #[must_use]
    pub fn streamed(&self, trust_domain: &str) -> Arc<TrustBundle> {
        Arc::new(TrustBundle {
            trust_domain: trust_domain.to_owned(),
            roots: self.0.values().map(|root| root.certificate.to_vec()).collect(),
        })
    }

    /// The certificates.
    pub fn certificates(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.0.values().map(|root| &root.certificate)
    }

    /// A root.
    #[must_use]
    pub fn root(&self, fingerprint: Fingerprint) -> Option<&Root> {
        self.0.get(&fingerprint)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds roots that the Secret has, and none of them has an end. New ones are published from
    /// `since` on, known ones since when they are. A root that comes back, and that was to go before
    /// `sure`, counts as new: others may drop it before they see that it is back.
    pub(super) fn hold(
        &mut self,
        certificates: &[CertificateDer<'static>],
        since: SystemTime,
        sure: SystemTime,
    ) {
        for certificate in certificates {
            let root = Root { certificate: certificate.clone(), since, until: None };
            let back = |known: &mut Root| {
                if known.until.take().is_some_and(|until| until < sure) {
                    known.since = since;
                }
            };
            self.0.entry(Fingerprint::of(certificate)).and_modify(back).or_insert(root);
        }
    }

    /// Roots that the Secret has no more get an end, or a later one where `longer` says so.
    pub(super) fn retire(
        &mut self,
        held: &[CertificateDer<'static>],
        until: SystemTime,
        longer: impl Fn(Fingerprint) -> bool,
    ) {
        for (fingerprint, root) in &mut self.0 {
            if held.contains(&root.certificate) {
                continue;
            }
            root.until = match root.until {
                Some(earlier) if longer(*fingerprint) => Some(earlier.max(until)),
                Some(earlier) => Some(earlier),
                None => Some(until),
            };
        }
    }

    /// Drops the roots whose end has come, and says when the next one's comes.
    pub(super) fn expire(&mut self, now: SystemTime) -> Option<SystemTime> {
        self.0.retain(|_, root| root.until.is_none_or(|until| until > now));
        self.0.values().filter_map(|root| root.until).min()
    }

    /// When the first of them runs out.
    #[must_use]
    pub fn earliest_expiry(&self) -> Option<SystemTime> {
        self.certificates().filter_map(expiry).min()
    }
}

/// A certificate in PEM.
#[must_use]
pub fn pem(certificate: &CertificateDer<'_>) -> String {
    let lines = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", certificate.as_ref()), lines)
}

/// The longest time for which a leaf can be alive after a replica has seen that its root is gone from
/// the Secret: until every replica has stopped signing with it, then its life, then clocks that differ.
#[must_use]
pub fn keep(overlap: Duration, leaf_lifetime: Duration) -> Duration {
    2 * overlap + leaf_lifetime + 2 * super::ca::CLOCK_SKEW
}
