//! What `/metrics` shows.

use std::{
    sync::atomic::{AtomicI64, AtomicU64},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};

/// All counters and gauges of the program. Label values are words of this program only.
#[derive(Debug)]
pub(crate) struct Metrics {
    reviews: Family<Decision, Counter<u64, AtomicU64>>,
    duration: Histogram,
    certificate_expiry: Gauge<i64, AtomicI64>,
    ca_bundle_patches: Family<Outcome, Counter<u64, AtomicU64>>,
    certificate_renewals: Family<Outcome, Counter<u64, AtomicU64>>,
    namespaces_mirrored: Family<Outcome, Counter<u64, AtomicU64>>,
    namespaces_invalid: Gauge<i64, AtomicI64>,
    events: Family<Outcome, Counter<u64, AtomicU64>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Decision {
    result: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            reviews: Family::default(),
            // 0.1 ms to about 1.6 s.
            duration: Histogram::new(exponential_buckets(0.0001, 2.0, 15)),
            certificate_expiry: Gauge::default(),
            ca_bundle_patches: Family::default(),
            certificate_renewals: Family::default(),
            namespaces_mirrored: Family::default(),
            namespaces_invalid: Gauge::default(),
            events: Family::default(),
        }
    }
}

impl Metrics {
    /// Counts an answered review.
    pub(crate) fn reviewed(&self, result: &'static str, reason: &'static str, took: Duration) {
        self.reviews.get_or_create(&Decision { result, reason }).inc();
        self.duration.observe(took.as_secs_f64());
    }

    /// Notes the end of the certificate that is served.
    pub(crate) fn serving_until(&self, end: SystemTime) {
        let seconds = end.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.certificate_expiry.set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    /// Counts an attempt to put the CA into the webhook's configuration.
    pub(crate) fn ca_bundle_patch(&self, result: &'static str) {
        self.ca_bundle_patches.get_or_create(&Outcome { result }).inc();
    }

    /// Counts an attempt to write a new certificate.
    pub(crate) fn certificate_renewal(&self, result: &'static str) {
        self.certificate_renewals.get_or_create(&Outcome { result }).inc();
    }

    /// Counts an attempt to write a namespace's label.
    pub(crate) fn namespace_mirrored(&self, result: &'static str) {
        self.namespaces_mirrored.get_or_create(&Outcome { result }).inc();
    }

    /// Notes how many namespaces have an annotation that cannot be used.
    pub(crate) fn invalid_namespaces(&self, count: usize) {
        self.namespaces_invalid.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Counts what became of an event.
    pub(crate) fn event(&self, result: &'static str) {
        self.events.get_or_create(&Outcome { result }).inc();
    }

    /// Puts all of them into a registry.
    pub(crate) fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("remora_injector");
        let r = &mut registry;
        r.register("reviews", "Answered reviews, by result and reason", self.reviews.clone());
        r.register_with_unit(
            "review_duration",
            "Time from the whole request to the answer",
            Unit::Seconds,
            self.duration.clone(),
        );
        r.register(
            "certificate_expiry_timestamp_seconds",
            "End of the served certificate's validity, Unix time; 0 while there is none",
            self.certificate_expiry.clone(),
        );
        r.register(
            "certificate_renewals",
            "Attempts to write a new certificate, by result",
            self.certificate_renewals.clone(),
        );
        r.register(
            "ca_bundle_patches",
            "Attempts to write the CA into the webhook's configuration, by result",
            self.ca_bundle_patches.clone(),
        );
        r.register(
            "namespaces_mirrored",
            "Attempts to write a namespace's label, by result",
            self.namespaces_mirrored.clone(),
        );
        r.register(
            "namespaces_invalid",
            "Namespaces whose annotation remora.io/inject is neither enabled nor disabled",
            self.namespaces_invalid.clone(),
        );
        r.register("events", "Events, by what became of them", self.events.clone());
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        r.register("build", "The program's version", Info::new(version));
        registry
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Names and types in a section of docs/admin.md, as its table has them.
    fn documented(section: &str) -> BTreeMap<String, String> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/admin.md");
        let text = std::fs::read_to_string(path).unwrap();
        let part = text.split("\n## ").find(|part| part.starts_with(section)).unwrap();
        let rows = part.lines().filter_map(|line| {
            let mut cells = line.split('|').map(str::trim).skip(1);
            let (name, kind) = (cells.next()?, cells.next()?);
            let known = ["counter", "gauge", "histogram", "info"].contains(&kind);
            known.then(|| (name.trim_matches('`').to_owned(), kind.to_owned()))
        });
        rows.collect()
    }

    /// The same in a scrape.
    fn scraped(text: &str) -> BTreeMap<String, String> {
        let families =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let named = families.map(|(name, kind)| match kind {
            "counter" => (format!("{name}_total"), kind.to_owned()),
            "info" => (format!("{name}_info"), kind.to_owned()),
            _ => (name.to_owned(), kind.to_owned()),
        });
        named.collect()
    }

    #[test]
    fn the_documented_table_and_a_scrape_have_the_same_names_and_types() {
        let metrics = Metrics::default();
        metrics.reviewed("skip", "host-network", Duration::from_millis(2));
        metrics.ca_bundle_patch("written");
        metrics.certificate_renewal("made");
        metrics.namespace_mirrored("done");
        metrics.event("written");
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &metrics.registry()).unwrap();
        assert_eq!(scraped(&text), documented("Metrics of the injector"));
    }

    #[test]
    fn figures_are_shown_with_their_units() {
        let metrics = Metrics::default();
        metrics.reviewed("skip", "host-network", Duration::from_millis(2));
        metrics.serving_until(UNIX_EPOCH + Duration::from_secs(7));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &metrics.registry()).unwrap();
        for line in [
            "remora_injector_reviews_total{result=\"skip\",reason=\"host-network\"} 1",
            "remora_injector_review_duration_seconds_count 1",
            "remora_injector_certificate_expiry_timestamp_seconds 7",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
