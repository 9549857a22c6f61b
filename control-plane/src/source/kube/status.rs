//! How the watches go, for `/ready`, `/metrics` and the log.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::source::Kind;

/// The kinds that are watched, in the order in which readiness asks for them.
pub(super) const KINDS: [Kind; 10] = [
    Kind::Namespace,
    Kind::Node,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::Pod,
    Kind::HttpRoute,
    Kind::GrpcRoute,
    Kind::TlsRoute,
    Kind::TcpRoute,
    Kind::ReferenceGrant,
];

/// How often the same failure is logged.
const REPEAT: Duration = Duration::from_secs(60);

/// How the watches of all kinds go. Shared with whoever shows it.
#[derive(Debug, Default)]
pub struct Status {
    kinds: Mutex<[KindStatus; KINDS.len()]>,
}

/// How the watch of one kind goes.
#[derive(Debug, Clone, Default)]
pub struct KindStatus {
    /// Objects that are known.
    pub objects: usize,
    /// Complete lists so far; more than one where the API has forgotten what followed the last.
    pub lists: u64,
    /// Failed requests and broken watches so far.
    pub errors: u64,
    /// What failed last and the mend; `None` where the last request succeeded.
    pub failing: Option<String>,
    /// When the API last said anything of this kind, a bookmark included.
    heard: Option<Instant>,
    /// The failure that was last logged, and when.
    logged: Option<(Instant, String)>,
}

impl KindStatus {
    /// How long ago the API last said anything of this kind, a bookmark included; `None` where it
    /// never did. Over two minutes means that what is known may be old.
    #[must_use]
    pub fn silence(&self, now: Instant) -> Option<Duration> {
        self.heard.map(|heard| now.saturating_duration_since(heard))
    }
}

impl Status {
    /// Every kind with the name that its metrics and messages have, for example `pods`.
    #[must_use]
    pub fn kinds(&self) -> Vec<(&'static str, KindStatus)> {
        KINDS.iter().map(|kind| plural(*kind)).zip(self.kinds.lock().iter().cloned()).collect()
    }

    /// What the first state still waits for, for example `the first list of pods: 403 …`; `None`
    /// where it is there.
    #[must_use]
    pub fn waiting(&self) -> Option<String> {
        let kinds = self.kinds.lock();
        let (kind, status) =
            KINDS.iter().zip(kinds.iter()).find(|(_, status)| status.lists == 0)?;
        let what = format!("the first list of {}", plural(*kind));
        Some(match &status.failing {
            Some(problem) => format!("{what}: {problem}"),
            None => what,
        })
    }

    /// A list is complete.
    pub(super) fn listed(&self, kind: Kind, objects: usize, now: Instant) {
        self.update(kind, now, |status| {
            if status.lists == 0 {
                tracing::info!(kind = plural(kind), objects, "first list complete");
            }
            status.lists += 1;
            status.objects = objects;
        });
    }

    /// The API has opened a watch or said something on it.
    pub(super) fn heard(&self, kind: Kind, now: Instant) {
        self.update(kind, now, |_| {});
    }

    /// So many are known now.
    pub(super) fn has(&self, kind: Kind, objects: usize) {
        self.change(kind, |status| status.objects = objects);
    }

    /// A watch broke that had gone well: nobody need know, unless the next one fails too.
    pub(super) fn broke(&self, kind: Kind) {
        self.change(kind, |status| status.errors += 1);
    }

    /// A request or a watch has failed; `problem` says what and the mend. Logged at once, and the
    /// same again every [`REPEAT`].
    pub(super) fn failed(&self, kind: Kind, problem: String, now: Instant) {
        self.change(kind, |status| {
            status.errors += 1;
            let logged = status.logged.as_ref();
            if logged.is_none_or(|(at, known)| now - *at >= REPEAT || *known != problem) {
                tracing::warn!("{problem}");
                status.logged = Some((now, problem.clone()));
            }
            status.failing = Some(problem);
        });
    }

    fn update(&self, kind: Kind, now: Instant, change: impl FnOnce(&mut KindStatus)) {
        self.change(kind, |status| {
            status.heard = Some(now);
            if status.failing.take().is_some() {
                tracing::info!(kind = plural(kind), "the API answers again");
            }
            change(status);
        });
    }

    fn change(&self, kind: Kind, change: impl FnOnce(&mut KindStatus)) {
        if let Some(at) = KINDS.iter().position(|known| *known == kind) {
            change(&mut self.kinds.lock()[at]);
        }
    }
}

/// As the API's paths have it.
pub(super) fn plural(kind: Kind) -> &'static str {
    match kind {
        Kind::Namespace => "namespaces",
        Kind::Node => "nodes",
        Kind::Service => "services",
        Kind::Pod => "pods",
        Kind::Deployment => "deployments",
        Kind::EndpointSlice => "endpointslices",
        Kind::HttpRoute => "httproutes",
        Kind::GrpcRoute => "grpcroutes",
        Kind::TlsRoute => "tlsroutes",
        Kind::TcpRoute => "tcproutes",
        Kind::ReferenceGrant => "referencegrants",
    }
}
