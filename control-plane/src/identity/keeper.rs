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
    bundle::Roots,
    ca::{Authority, Fingerprint},
    expiry,
    rotation::{Rotation, Rules, Signer},
};
use crate::{
    leader::{
        events::{Expiry, Notice},
        trust_bundles::PublishedBundle,
    },
    metrics::Metrics,
};

/// Longest sleep, so that a wall clock that jumps is noticed.
const LOOK: Duration = Duration::from_secs(30);

/// What the issuer's home says.
#[derive(Debug, Clone)]
pub enum Seen {
    /// There is a good issuer.
    Issuer(Arc<Authority>),
    /// What is there cannot be used.
    Refused {
        /// Tells what was seen from what is seen later: a Secret's resourceVersion.
        version: String,
        /// One line: where, what, the mend.
        problem: String,
    },
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
    notices: watch::Sender<Arc<Vec<Notice>>>,
    /// The issuer whose expiry was warned of last, and how near it was.
    warned: Option<(Fingerprint, Expiry)>,
    refused: Option<Notice>,
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
                Seen::Refused { problem, .. } => problem,
            };
            setup.metrics.issuer_refused.set(1);
            tracing::error!(problem, "issuer refused; no certificates until there is a good one");
        }
    }

    fn new(rotation: Rotation, setup: Setup) -> Self {
        let mut keeper = Self {
            signer: watch::Sender::new(Arc::new(rotation.signer().clone())),
            bundle: watch::Sender::new(rotation.roots().streamed(&setup.trust_domain)),
            published: watch::Sender::new(Arc::new(rotation.roots().published())),
            notices: watch::Sender::default(),
            warned: None,
            refused: None,
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

    /// What operators should know, for the leader's Events.
    #[must_use]
    pub fn notices(&self) -> watch::Receiver<Arc<Vec<Notice>>> {
        self.notices.subscribe()
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
                let offered = self.rotation.offer(authority, (self.clock)());
                if offered.is_ok() {
                    tracing::info!(%fingerprint, "issuer read");
                }
                // Told again where it is another issuer's.
                offered.err().map(|error| (fingerprint.to_string(), error.to_string()))
            }
            Seen::Refused { version, problem } => Some((version, problem)),
        };
        self.metrics.issuer_refused.set(i64::from(refused.is_some()));
        if let Some((_, problem)) = &refused {
            tracing::error!(problem, "issuer refused; the one before stays in force");
        }
        self.refused = refused.map(|(version, problem)| Notice::refused(&version, &problem));
    }

    /// Does what is due, tells what has changed, and says how long to sleep.
    fn tell(&mut self) -> Duration {
        let now = (self.clock)();
        let due = self.rotation.advance(now);
        let signer = self.rotation.signer().clone();
        self.notice(&signer.authority, now);
        let (roots, phase) = (self.rotation.roots(), self.rotation.phase(now));
        self.metrics.issuer(&signer.authority, roots, phase);

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

    fn notice(&mut self, authority: &Authority, now: SystemTime) {
        let (fingerprint, expires) = (authority.fingerprint(), authority.expires());
        let last = self.warned.filter(|(warned, _)| *warned == fingerprint).map(|(_, level)| level);
        if let Some(level) = expiry::due(now, expires, last) {
            self.warned = Some((fingerprint, level));
            let note = Notice::expiry(level, &fingerprint.to_string(), expires).note;
            if level >= Expiry::Day {
                tracing::error!("{note}");
            } else {
                tracing::warn!("{note}");
            }
        }
        let ending = Expiry::at(now, expires)
            .map(|level| Notice::expiry(level, &fingerprint.to_string(), expires));
        let notices = ending.into_iter().chain(self.refused.clone()).collect();
        replace(&self.notices, Arc::new(notices), |a, b| a == b);
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

#[cfg(test)]
mod tests;
