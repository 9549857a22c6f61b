//! Rotation without loss: which key signs, and which roots are published, as the issuer changes.
//! Pure; time comes by argument.
//!
//! # The problem
//! Proxies verify each other with the roots of the last bundle that reached them. A leaf whose root
//! has not reached its peer yet is refused, and so is a leaf whose root has left the peer's bundle.
//! The Secret changes in one step; both sides of it must hold for a while.
//!
//! # What is done
//! - **Publish first.** Every root of the Secret joins the bundle as soon as it is seen: on the
//!   streams, and in the ConfigMap that new pods start with.
//! - **Sign later.** A new issuer signs once a root that it chains to has been published for the
//!   *overlap* (`--rotation-overlap`). Until then the old one signs on, from memory. An issuer whose
//!   root has been published for long enough (a renewed intermediate under the same root, a return to
//!   the issuer of before within the overlap, a root that was added to `ca.crt` in advance) signs at
//!   once. A root that comes back later than that counts as new: each replica drops it by its own
//!   clock, and one that has not seen the return yet may be about to.
//! - **Distrust last.** A root that has left the Secret stays in the bundle until no leaf of it can be
//!   alive: the overlap in which it may still sign, the same again for replicas that see the change
//!   later, the life of a leaf, and the skew of clocks. See [`bundle::keep`].
//! - **Bounded.** A change that would make more than [`MAX_ROOTS`] roots is refused until old ones
//!   have run out; what is in force stays.
//!
//! # Restart in the middle
//! The old key is gone with the process that had it in memory, so a replica that starts has only the
//! Secret's. It reads what is published (the ConfigMap): roots that are to stay do stay, roots that
//! were in the Secret and are not any more are retired from now on, and where the issuer's root has
//! not been published for the overlap, certificates are refused as unavailable until it has: other
//! replicas that still have the old key give them. Where nothing was ever published there is nobody
//! to wait for.
//!
//! # What it relies on
//! A bundle reaches proxies, and a change of the Secret every replica, within the overlap together.
//! `--leaf-lifetime` is not lowered in the same day in which a root is replaced.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    bundle::{self, MAX_ROOTS, Roots},
    ca::{Authority, CLOCK_SKEW},
};

/// The times that rotation keeps.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// How long a root is published before a leaf of it is signed.
    pub overlap: Duration,
    /// Life of a leaf.
    pub leaf_lifetime: Duration,
}

/// Who signs.
#[derive(Debug, Clone)]
pub struct Signer {
    /// The authority; also of the server's own certificate.
    pub authority: Arc<Authority>,
    /// Workloads get certificates from this moment on: their peers may not trust them before.
    pub signs_from: SystemTime,
}

/// How far a rotation is, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// One issuer, no other roots than its own.
    Steady,
    /// Another issuer waits until its root has been published for long enough.
    Overlap,
    /// Nobody signs until the issuer's root has been published for long enough.
    Held,
    /// The issuer signs; roots of earlier ones are still trusted.
    Retiring,
}

/// The issuer brings more roots than a bundle can hold beside those that are still needed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{count} roots with those whose certificates may still be in use, at most {MAX_ROOTS} are \
     possible; wait until old ones have run out before the next rotation"
)]
pub struct TooManyRoots {
    count: usize,
}

/// The state of rotation.
#[derive(Debug)]
pub struct Rotation {
    rules: Rules,
    roots: Roots,
    signer: Signer,
    /// Signs once its root has been published for the overlap.
    next: Option<Arc<Authority>>,
}

impl Rotation {
    /// Begins with the issuer's authority and what is published already; empty where nothing is.
    ///
    /// # Errors
    /// [`TooManyRoots`].
    pub fn begin(
        rules: Rules,
        published: Roots,
        authority: Arc<Authority>,
        now: SystemTime,
    ) -> Result<Self, TooManyRoots> {
        let first = published.is_empty();
        let since = if first { now - rules.overlap } else { now };
        let signer = Signer { authority: Arc::clone(&authority), signs_from: now };
        let mut rotation = Self { rules, roots: published, signer, next: None };
        rotation.roots = rotation.roots_with(&authority, since, now)?;
        rotation.signer.signs_from = rotation.trusted_from(&authority, now);
        Ok(rotation)
    }

    /// The issuer has changed.
    ///
    /// # Errors
    /// [`TooManyRoots`]; everything stays as it is.
    pub fn offer(
        &mut self,
        authority: Arc<Authority>,
        now: SystemTime,
    ) -> Result<(), TooManyRoots> {
        let last = self.next.as_ref().unwrap_or(&self.signer.authority);
        if last.is_same(&authority) {
            return Ok(());
        }
        self.roots = self.roots_with(&authority, now, now)?;
        if now < self.signer.signs_from {
            // Nobody has a leaf of the one that was held.
            let signs_from = self.trusted_from(&authority, now);
            self.signer = Signer { authority, signs_from };
            self.next = None;
        } else {
            self.next = Some(authority);
        }
        self.advance(now);
        Ok(())
    }

    /// Does what is due, and says when to come again.
    pub fn advance(&mut self, now: SystemTime) -> Option<SystemTime> {
        let mut due = None;
        if let Some(next) = self.next.take() {
            let from = self.trusted_from(&next, now).min(self.signer.authority.expires());
            if from <= now {
                // The old one has signed until now.
                let old = std::mem::replace(
                    &mut self.signer,
                    Signer { authority: next, signs_from: now },
                );
                let until = now + self.keep_after_signing();
                let held = self.signer.authority.roots();
                self.roots.retire(held, until, |root| old.authority.anchors().contains(&root));
            } else {
                due = Some(from);
                self.next = Some(next);
            }
        }
        let held = (now < self.signer.signs_from).then_some(self.signer.signs_from);
        [due, held, self.roots.expire(now)].into_iter().flatten().min()
    }

    /// Who signs.
    #[must_use]
    pub fn signer(&self) -> &Signer {
        &self.signer
    }

    /// The roots in force.
    #[must_use]
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// How far it is.
    #[must_use]
    pub fn phase(&self, now: SystemTime) -> Phase {
        if now < self.signer.signs_from {
            Phase::Held
        } else if self.next.is_some() {
            Phase::Overlap
        } else if self.roots.len() > self.signer.authority.roots().len() {
            Phase::Retiring
        } else {
            Phase::Steady
        }
    }

    /// The bundle with an authority's roots, and with those that it does not bring any more on their
    /// way out.
    fn roots_with(
        &self,
        authority: &Authority,
        since: SystemTime,
        now: SystemTime,
    ) -> Result<Roots, TooManyRoots> {
        let mut roots = self.roots.clone();
        roots.expire(now);
        let until = now + bundle::keep(self.rules.overlap, self.rules.leaf_lifetime);
        // What left the Secret within the overlap is on nobody's way out yet.
        roots.hold(authority.roots(), since, until - self.rules.overlap);
        let signing = self.signer.authority.anchors();
        // While we are held, others may sign from memory with any root that is there.
        let held = now < self.signer.signs_from;
        roots.retire(authority.roots(), until, |root| held || signing.contains(&root));
        if roots.len() > MAX_ROOTS {
            return Err(TooManyRoots { count: roots.len() });
        }
        Ok(roots)
    }

    /// When leaves of an authority are trusted by all who got the bundle in time.
    fn trusted_from(&self, authority: &Authority, now: SystemTime) -> SystemTime {
        let published = authority.anchors().iter().filter_map(|root| self.roots.root(*root));
        // A clock that was set back must not make the wait longer than the overlap.
        let since = published.map(|root| root.since).min().unwrap_or(now).min(now);
        since + self.rules.overlap
    }

    fn keep_after_signing(&self) -> Duration {
        self.rules.overlap + self.rules.leaf_lifetime + 2 * CLOCK_SKEW
    }
}

#[cfg(test)]
mod tests;
