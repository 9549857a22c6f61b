//! Keeps what is in force: takes what the issuer's home says (files or the Secret), lets
//! [`rotation`](super::rotation) decide, and tells those who sign, verify and publish.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use remora_core::drain;
use remora_proto::v1::TrustBundle;
use tokio::sync::{mpsc, watch};

use super::{
    bundle::{PublishedBundle, Roots},
    ca::Authority,
    expiry::{self, Level},
    rotation::{Rotation, Rules, Signer},
};
use crate::metrics::Metrics;

/// Longest sleep, so that a wall clock that jumps is noticed.
const LOOK: Duration = Duration::from_secs(30);

/// What the issuer's home says.
#[derive(Debug, Clone)]
pub enum Seen {
    /// There is a good issuer.
    Issuer(Arc<Authority>),
    /// What is there cannot be used; one line: where, what, the mend.
    Refused(String),
}

/// What operators should know of the issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerStatus {
    /// End of the issuer's validity.
    pub expires: SystemTime,
    /// The nearest level of its expiry that has been reached.
    pub expiry: Option<Level>,
    /// Why the issuer that was seen last is not in force; one line.
    pub refused: Option<Arc<str>>,
}

/// What is in force.
#[derive(Debug)]
pub struct Keeper {
    rotation: Rotation,
    trust_domain: String,
    clock: fn() -> SystemTime,
    metrics: Arc<Metrics>,
    signer: watch::Sender<Arc<Signer>>,
    bundle: watch::Sender<Arc<TrustBundle>>,
    published: watch::Sender<Arc<PublishedBundle>>,
    status: watch::Sender<Arc<IssuerStatus>>,
}

/// What a [`Keeper`] goes by.
#[derive(Debug)]
pub struct Setup {
    /// The times of a rotation.
    pub rules: Rules,
    /// Trust domain of the bundle.
    pub trust_domain: String,
    /// What is published already; empty where nothing is.
    pub published: Roots,
    /// The wall clock.
    pub clock: fn() -> SystemTime,
    /// Gauges of the issuer.
    pub metrics: Arc<Metrics>,
}

impl Keeper {
    /// Waits for the first good issuer; `None` where draining begins before. What is refused until
    /// then is logged and counted.
    pub async fn first(
        setup: Setup,
        seen: &mut mpsc::Receiver<Seen>,
        drain: &drain::Watch,
    ) -> Option<Self> {
        loop {
            let next = tokio::select! {
                () = drain.draining() => return None,
                next = seen.recv() => next?,
            };
            let problem = match next {
                Seen::Issuer(authority) => {
                    let (published, now) = (setup.published.clone(), (setup.clock)());
                    match Rotation::begin(setup.rules, published, authority, now) {
                        Ok(rotation) => return Some(Self::new(rotation, setup)),
                        Err(error) => error.to_string(),
                    }
                }
                Seen::Refused(problem) => problem,
            };
            setup.metrics.issuer_refused.set(1);
            tracing::error!(problem, "issuer refused; no certificates until there is a good one");
        }
    }

    fn new(rotation: Rotation, setup: Setup) -> Self {
        let expires = rotation.signer().authority.expires();
        let status = IssuerStatus { expires, expiry: None, refused: None };
        let mut keeper = Self {
            signer: watch::Sender::new(Arc::new(rotation.signer().clone())),
            bundle: watch::Sender::new(rotation.roots().streamed(&setup.trust_domain)),
            published: watch::Sender::new(Arc::new(rotation.roots().published())),
            status: watch::Sender::new(Arc::new(status)),
            rotation,
            trust_domain: setup.trust_domain,
            clock: setup.clock,
            metrics: setup.metrics,
        };
        keeper.metrics.issuer_refused.set(0);
        keeper.tell();
        keeper
    }

    /// Who signs.
    #[must_use]
    pub fn signer(&self) -> watch::Receiver<Arc<Signer>> {
        self.signer.subscribe()
    }

    /// The roots as discovery streams them.
    #[must_use]
    pub fn bundle(&self) -> watch::Receiver<Arc<TrustBundle>> {
        self.bundle.subscribe()
    }

    /// The roots as the leader writes them into the ConfigMaps.
    #[must_use]
    pub fn published(&self) -> watch::Receiver<Arc<PublishedBundle>> {
        self.published.subscribe()
    }

    /// What operators should know, for the leader's events.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Arc<IssuerStatus>> {
        self.status.subscribe()
    }

    /// Follows the issuer until draining begins. Returns itself: as long as it lives, so do the
    /// streams that watch it.
    pub async fn run(mut self, mut seen: mpsc::Receiver<Seen>, drain: drain::Watch) -> Self {
        let mut wait = self.tell();
        loop {
            tokio::select! {
                () = drain.draining() => return self,
                () = tokio::time::sleep(wait) => {}
                next = seen.recv() => match next {
                    Some(next) => self.take(next),
                    // Nothing follows an issuer that lives in memory.
                    None => {
                        drain.draining().await;
                        return self;
                    }
                },
            }
            wait = self.tell();
        }
    }

    fn take(&mut self, seen: Seen) {
        let refused = match seen {
            Seen::Issuer(authority) => {
                let fingerprint = authority.fingerprint();
                match self.rotation.offer(authority, (self.clock)()) {
                    Ok(()) => {
                        tracing::info!(%fingerprint, "issuer read");
                        None
                    }
                    Err(error) => Some(error.to_string()),
                }
            }
            Seen::Refused(problem) => Some(problem),
        };
        self.metrics.issuer_refused.set(i64::from(refused.is_some()));
        if let Some(problem) = &refused {
            tracing::error!(problem, "issuer refused; the one before stays in force");
        }
        let refused: Option<Arc<str>> = refused.map(Into::into);
        self.status.send_if_modified(|status| {
            let changed = status.refused != refused;
            Arc::make_mut(status).refused = refused;
            changed
        });
    }

    /// Does what is due, tells what has changed, and says how long to sleep.
    fn tell(&mut self) -> Duration {
        let now = (self.clock)();
        let due = self.rotation.advance(now);
        let (signer, roots) = (self.rotation.signer().clone(), self.rotation.roots());
        let phase = self.rotation.phase(now);
        self.metrics.issuer(&signer.authority, roots, phase);
        self.warn_of_expiry(signer.authority.expires(), now);

        let bundle = roots.streamed(&self.trust_domain);
        let published = roots.published();
        // Roots first: whoever is told of the signer may act on the bundle at once.
        if replace(&self.bundle, bundle, |a, b| a == b) {
            tracing::info!(roots = roots.len(), "trust bundle changed");
        }
        replace(&self.published, Arc::new(published), |a, b| a == b);
        let same = |a: &Signer, b: &Signer| {
            a.authority.is_same(&b.authority) && a.signs_from == b.signs_from
        };
        let issuer = signer.authority.fingerprint();
        if replace(&self.signer, Arc::new(signer), same) {
            tracing::info!(%issuer, ?phase, "issuer in force");
        }
        // One more, so that what is due at a moment is due after it.
        let wait = due.map_or(LOOK, |due| due.duration_since(now).unwrap_or_default());
        (wait + Duration::from_millis(1)).min(LOOK)
    }

    fn warn_of_expiry(&self, expires: SystemTime, now: SystemTime) {
        self.status.send_if_modified(|status| {
            let mut changed = false;
            if status.expires != expires {
                let status = Arc::make_mut(status);
                (status.expires, status.expiry, changed) = (expires, None, true);
            }
            if let Some(warning) = expiry::due(now, expires, status.expiry) {
                Arc::make_mut(status).expiry = Some(warning.level);
                changed = true;
                if warning.level >= Level::Day {
                    tracing::error!("{warning}");
                } else {
                    tracing::warn!("{warning}");
                }
            }
            changed
        });
    }
}

/// Whether it was another.
fn replace<T>(sender: &watch::Sender<Arc<T>>, new: Arc<T>, same: impl Fn(&T, &T) -> bool) -> bool {
    sender.send_if_modified(|old| {
        let changed = !same(old, &new);
        if changed {
            *old = new;
        }
        changed
    })
}
