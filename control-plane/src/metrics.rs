//! What `/metrics` shows.

use std::{
    fmt::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64},
    },
};

use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, NoLabelSet,
    },
    metrics::{
        MetricType,
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};

use tokio::time::Instant;

use crate::{
    identity::{bundle::Roots, ca::Authority, rotation::Phase, unix_seconds},
    source::kube::{KindStatus, Status},
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
    /// 1 while the issuer that was seen last is not in force because something is wrong with it.
    pub issuer_refused: Gauge<i64, AtomicI64>,
    /// 1 while this replica is the leader.
    pub leader: Gauge<i64, AtomicI64>,
    /// Time for the API server's answer to a review of a token.
    pub review: Histogram,
    roots_expiry: Gauge<i64, AtomicI64>,
    issuer: Family<IssuerLabels, Gauge<i64, AtomicI64>>,
    phase: Family<PhaseLabels, Gauge<i64, AtomicI64>>,
    reviews_failed: Family<ReviewLabels, Counter<u64, AtomicU64>>,
    certificates: Family<CertifyLabels, Counter<u64, AtomicU64>>,
    admissions: Family<AdmissionLabels, Counter<u64, AtomicU64>>,
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

/// Why a token could not be reviewed. (A token that is refused was reviewed.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReviewFailure {
    /// The control plane lacks the right.
    Forbidden,
    /// The API server is too busy (429).
    Throttled,
    /// Another answer than a review.
    Server,
    /// No connection.
    Connection,
    /// No answer in time.
    Timeout,
    /// Too many were waiting here.
    Overloaded,
}

impl EncodeLabelValue for ReviewFailure {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Forbidden => "forbidden",
            Self::Throttled => "throttled",
            Self::Server => "server",
            Self::Connection => "connection",
            Self::Timeout => "timeout",
            Self::Overloaded => "overloaded",
        })
    }
}

/// What became of a review at admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AdmissionResult {
    /// It was none of our business.
    Untouched,
    /// There was nothing to say.
    Allowed,
    /// Allowed, with warnings.
    Warned,
    /// Denied.
    Denied,
    /// Allowed unread.
    Unreadable,
}

impl EncodeLabelValue for AdmissionResult {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Untouched => "untouched",
            Self::Allowed => "allowed",
            Self::Warned => "warned",
            Self::Denied => "denied",
            Self::Unreadable => "unreadable",
        })
    }
}

impl EncodeLabelValue for Phase {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Steady => "steady",
            Self::Overlap => "overlap",
            Self::Held => "held",
            Self::Retiring => "retiring",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReviewLabels {
    reason: ReviewFailure,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AdmissionLabels {
    result: AdmissionResult,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    phase: Phase,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IssuerLabels {
    sha256: String,
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
            issuer_refused: Gauge::default(),
            leader: Gauge::default(),
            // 1 ms to about 8 s.
            review: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            roots_expiry: Gauge::default(),
            issuer: Family::default(),
            phase: Family::default(),
            reviews_failed: Family::default(),
            certificates: Family::default(),
            admissions: Family::default(),
        }
    }
}

impl Metrics {
    /// Counts an answered request for a certificate.
    pub fn certified(&self, result: CertifyResult) {
        self.certificates.get_or_create(&CertifyLabels { result }).inc();
    }

    /// Counts a review that could not be done.
    pub fn review_failed(&self, reason: ReviewFailure) {
        self.reviews_failed.get_or_create(&ReviewLabels { reason }).inc();
    }

    /// Counts an answered review at admission.
    pub fn admitted(&self, result: AdmissionResult) {
        self.admissions.get_or_create(&AdmissionLabels { result }).inc();
    }

    /// Shows the issuer in force, the roots, and how far a rotation is.
    pub fn issuer(&self, authority: &Authority, roots: &Roots, phase: Phase) {
        self.ca_expiry.set(unix_seconds(authority.expires()));
        self.roots_expiry.set(roots.earliest_expiry().map_or(0, unix_seconds));
        let sha256 = authority.fingerprint().to_string();
        let labels = IssuerLabels { sha256 };
        if self.issuer.get(&labels).is_none() {
            // One series at a time, however often it is rotated.
            self.issuer.clear();
        }
        self.issuer.get_or_create(&labels).set(1);
        for each in [Phase::Steady, Phase::Overlap, Phase::Held, Phase::Retiring] {
            let shown = self.phase.get_or_create(&PhaseLabels { phase: each });
            shown.set(i64::from(each == phase));
        }
    }

    /// Puts all of them into a registry, with the watches of the API server where there are any.
    #[must_use]
    pub fn registry(&self, source: Option<Arc<Status>>) -> Registry {
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
        self.register_identity(r);
        if let Some(source) = source {
            r.register_collector(Box::new(Watches(source)));
        }
        r.register(
            "admission_reviews",
            "Answered reviews of routes and Services at admission, by result",
            self.admissions.clone(),
        );
        r.register("leader", "1 while this replica is the leader", self.leader.clone());
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        r.register("build", "The program's version", Info::new(version));
        registry
    }

    fn register_identity(&self, r: &mut Registry) {
        r.register(
            "certificates",
            "Answered requests for a certificate, by result",
            self.certificates.clone(),
        );
        r.register(
            "roots_expiry_timestamp_seconds",
            "End of the validity of the root that runs out first, Unix time",
            self.roots_expiry.clone(),
        );
        r.register("issuer", "The issuer in force, by its fingerprint", self.issuer.clone());
        r.register(
            "issuer_refused",
            "1 while the issuer that was seen last is not in force because it is not good",
            self.issuer_refused.clone(),
        );
        r.register(
            "issuer_rotation",
            "1 for the phase of the issuer's rotation: steady, overlap, held, retiring",
            self.phase.clone(),
        );
        r.register_with_unit(
            "token_review",
            "Time for the API server's answer to a review of a token",
            Unit::Seconds,
            self.review.clone(),
        );
        r.register(
            "token_review_failures",
            "Reviews that could not be done, by reason",
            self.reviews_failed.clone(),
        );
    }
}

/// The watches of the API server, read when scraped.
#[derive(Debug)]
struct Watches(Arc<Status>);

impl Collector for Watches {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (kinds, now) = (self.0.kinds(), Instant::now());
        let mut family = |name, help, kind, value: &dyn Fn(&KindStatus) -> Option<f64>| {
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for (resource, status) in &kinds {
                let Some(value) = value(status) else { continue };
                let labels = [("resource", *resource)];
                let mut metric = family.encode_family(&labels)?;
                match kind {
                    MetricType::Counter => {
                        metric.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
                    }
                    _ => metric.encode_gauge(&value)?,
                }
            }
            Ok(())
        };
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
        let count = |count: u64| Some(count as f64);
        family(
            "watch_lists",
            "Complete lists read from the API server",
            MetricType::Counter,
            &|s| count(s.lists),
        )?;
        family("watch_errors", "Failed lists and watches", MetricType::Counter, &|s| {
            count(s.errors)
        })?;
        family(
            "watch_silence_seconds",
            "Time since the API server last said anything of the resource",
            MetricType::Gauge,
            &|status| status.silence(now).map(|silence| silence.as_secs_f64()),
        )
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
        metrics.certified(CertifyResult::Issued);
        metrics.admitted(AdmissionResult::Untouched);
        metrics.review_failed(ReviewFailure::Server);
        metrics.issuer.get_or_create(&IssuerLabels { sha256: "00".to_owned() }).set(1);
        metrics.phase.get_or_create(&PhaseLabels { phase: Phase::Steady }).set(1);
        let mut text = String::new();
        let registry = metrics.registry(Some(Arc::default()));
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert_eq!(scraped(&text), documented("Metrics of the control plane"));
    }

    #[test]
    fn label_values_are_lower_case_kebab() {
        let metrics = Metrics::default();
        let all = [CertifyResult::Issued, CertifyResult::BadToken, CertifyResult::BadRequest];
        all.into_iter().chain([CertifyResult::Unavailable]).for_each(|r| metrics.certified(r));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &metrics.registry(None)).unwrap();
        for word in ["issued", "bad-token", "bad-request", "unavailable"] {
            let line = format!("remora_control_plane_certificates_total{{result=\"{word}\"}} 1");
            assert!(text.contains(&line), "{text}");
        }
    }
}
