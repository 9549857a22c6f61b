//! What `/metrics` shows.

use std::{
    fmt::{self, Write},
    sync::atomic::{AtomicI64, AtomicU64},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};

/// All counters and gauges of the program. Cloned handles share their values.
#[derive(Debug)]
pub struct Metrics {
    /// Open discovery streams.
    pub proxies: Gauge<i64, AtomicI64>,
    /// Open subscriptions.
    pub subscriptions: Gauge<i64, AtomicI64>,
    /// Messages sent on discovery streams.
    pub updates: Counter<u64, AtomicU64>,
    /// Objects applied or deleted.
    pub events: Counter<u64, AtomicU64>,
    /// From an event to the proxy's confirmation.
    pub ack: Histogram,
    /// Age of the oldest update that a proxy has not confirmed; set when scraped.
    pub oldest_unacked: Gauge<f64, AtomicU64>,
    /// Loads of the manifests that failed.
    pub load_failures: Counter<u64, AtomicU64>,
    /// End of the issuer's validity.
    pub ca_expiry: Gauge<i64, AtomicI64>,
    certificates: Family<CertifyLabels, Counter<u64, AtomicU64>>,
}

/// How a request for a certificate ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CertifyResult {
    /// Signed.
    Issued,
    /// The token was not good.
    BadToken,
    /// The certification request was not good.
    BadRequest,
    /// The checker or the issuer could not do it.
    Unavailable,
}

impl EncodeLabelValue for CertifyResult {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Issued => "issued",
            Self::BadToken => "bad-token",
            Self::BadRequest => "bad-request",
            Self::Unavailable => "unavailable",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CertifyLabels {
    result: CertifyResult,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            proxies: Gauge::default(),
            subscriptions: Gauge::default(),
            updates: Counter::default(),
            events: Counter::default(),
            // 1 ms to about 16 s.
            ack: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            oldest_unacked: Gauge::default(),
            load_failures: Counter::default(),
            ca_expiry: Gauge::default(),
            certificates: Family::default(),
        }
    }
}

impl Metrics {
    /// Counts an answered request for a certificate.
    pub fn certified(&self, result: CertifyResult) {
        self.certificates.get_or_create(&CertifyLabels { result }).inc();
    }

    /// Puts all of them into a registry.
    #[must_use]
    pub fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("remora_control_plane");
        let r = &mut registry;
        r.register("proxies_connected", "Open discovery streams", self.proxies.clone());
        r.register("subscriptions", "Open subscriptions", self.subscriptions.clone());
        r.register("updates_sent", "Messages sent to proxies", self.updates.clone());
        r.register("events_applied", "Objects applied or deleted", self.events.clone());
        r.register_with_unit(
            "update_ack",
            "Time from an event to a proxy's confirmation",
            Unit::Seconds,
            self.ack.clone(),
        );
        r.register_with_unit(
            "oldest_unacked",
            "Age of the oldest update that a proxy has not confirmed",
            Unit::Seconds,
            self.oldest_unacked.clone(),
        );
        r.register(
            "manifest_load_failures",
            "Loads that left the last good state in force",
            self.load_failures.clone(),
        );
        r.register(
            "ca_expiry_timestamp_seconds",
            "End of the issuer's validity, Unix time",
            self.ca_expiry.clone(),
        );
        r.register(
            "certificates",
            "Answered requests for a certificate, by result",
            self.certificates.clone(),
        );
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        r.register("build", "The program's version", Info::new(version));
        registry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_lower_case_kebab() {
        let metrics = Metrics::default();
        let all = [CertifyResult::Issued, CertifyResult::BadToken, CertifyResult::BadRequest];
        all.into_iter().chain([CertifyResult::Unavailable]).for_each(|r| metrics.certified(r));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &metrics.registry()).unwrap();
        for word in ["issued", "bad-token", "bad-request", "unavailable"] {
            let line = format!("remora_control_plane_certificates_total{{result=\"{word}\"}} 1");
            assert!(text.contains(&line), "{text}");
        }
    }
}
