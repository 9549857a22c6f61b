//! The Lease that one replica holds (`coordination.k8s.io`), with the rules of client-go's
//! leaderelection: a Lease is free when its holder gave it up, or when nothing about it changed
//! for its whole duration **by this replica's own clock**; times written by others are never
//! compared with ours. Two replicas that write at once are told apart by resourceVersion.
//!
//! The holder steps down 10 s after it last *began* a renewal that succeeded, also while a request
//! hangs. The others wait 15 s from when they *saw* that renewal, which is later. So there is never
//! a moment with two leaders, as long as clocks run at about the same speed.

use std::{
    future::Future,
    pin::pin,
    time::{Duration, SystemTime},
};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use remora_core::{drain, names};
use tokio::{sync::watch, time::Instant};

use super::{CallError, Replica, Seldom, call, micro_time};

/// How long a holder that says nothing keeps the Lease.
pub const DURATION: Duration = Duration::from_secs(15);
/// Age at which the holder no longer believes in its last renewal.
const GIVE_UP: Duration = Duration::from_secs(10);
/// Time between renewals; a fifth of it is chance.
const RENEW: Duration = Duration::from_secs(5);
/// Longest time between two looks at a Lease that another holds.
const LOOK: Duration = Duration::from_secs(3);
/// Longest pause after a failure, shorter than [`RENEW`] so that the holder has several attempts.
const RETRY: Duration = Duration::from_secs(3);
/// Longest time for giving the Lease up.
const RELEASE: Duration = Duration::from_secs(2);
/// Longest duration that is believed of another holder.
const MAX_DURATION: Duration = Duration::from_secs(60);

/// Stands for election until draining begins, then gives the Lease up. The receiver says whether
/// this replica leads.
pub fn hold(
    client: kube::Client,
    replica: Replica,
    clock: fn() -> SystemTime,
    rng: fastrand::Rng,
    drain: drain::Watch,
) -> (watch::Receiver<bool>, impl Future<Output = ()> + Send) {
    let (leading, receiver) = watch::channel(false);
    let candidate = Candidate {
        api: Api::namespaced(client, &replica.namespace),
        replica,
        seen: None,
        until: None,
        failures: 0,
        reported: Seldom::default(),
        leading,
        clock,
        rng,
    };
    // Requests are large futures; this one lives on the heap, once.
    (receiver, Box::pin(candidate.run(drain)))
}

/// A Lease as it was seen, and since when it looks like that.
#[derive(Debug, Clone)]
struct Seen {
    /// `None`: there is none.
    lease: Option<Lease>,
    since: Instant,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// There is no Lease: make it.
    Create,
    /// It is ours: say so again.
    Renew,
    /// It is free: take it.
    Take,
    /// Another holds it, for at least this long.
    Wait(Duration),
}

fn decide(me: &str, seen: &Seen, now: Instant) -> Act {
    let Some(lease) = &seen.lease else { return Act::Create };
    match holder(lease) {
        "" => Act::Take,
        holder if holder == me => Act::Renew,
        _ => {
            let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
            let seconds = seconds.and_then(|seconds| u64::try_from(seconds).ok());
            let term = seconds.map_or(DURATION, Duration::from_secs);
            let free = seen.since + term.clamp(Duration::from_secs(1), MAX_DURATION);
            if now >= free { Act::Take } else { Act::Wait(free - now) }
        }
    }
}

fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}

impl Seen {
    /// The clock of a Lease starts anew when anything about it changed.
    fn next(before: Option<Self>, lease: Option<Lease>, now: Instant) -> Self {
        fn version(lease: Option<&Lease>) -> Option<Option<&str>> {
            lease.map(|lease| lease.metadata.resource_version.as_deref())
        }
        let since = match before {
            Some(before) if version(before.lease.as_ref()) == version(lease.as_ref()) => {
                before.since
            }
            _ => now,
        };
        Self { lease, since }
    }

    /// What the Lease says once `me` has it; the resourceVersion makes writing fail where another
    /// was faster.
    fn claim(&self, replica: &Replica, now: SystemTime) -> Lease {
        let now = micro_time(now);
        let old = self.lease.as_ref().and_then(|lease| lease.spec.as_ref());
        let ours = self.lease.as_ref().is_some_and(|lease| holder(lease) == replica.identity);
        let transitions = old.and_then(|old| old.lease_transitions).unwrap_or(-1);
        let acquired = old.and_then(|old| old.acquire_time.clone()).filter(|_| ours);
        Lease {
            metadata: self.metadata(replica),
            spec: Some(LeaseSpec {
                holder_identity: Some(replica.identity.clone()),
                lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
                acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
                renew_time: Some(now),
                lease_transitions: Some(transitions.saturating_add(i32::from(!ours)).max(0)),
                ..LeaseSpec::default()
            }),
        }
    }

    /// What the Lease says once nobody has it, as client-go writes it.
    fn release(&self, replica: &Replica, now: SystemTime) -> Lease {
        let mut lease = self.claim(replica, now);
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
        }
        lease
    }

    fn metadata(&self, replica: &Replica) -> ObjectMeta {
        match &self.lease {
            Some(lease) => ObjectMeta { managed_fields: None, ..lease.metadata.clone() },
            None => ObjectMeta {
                name: Some(names::LEADER_LEASE.to_owned()),
                namespace: Some(replica.namespace.clone()),
                labels: Some(
                    [(names::labels::PART_OF.to_owned(), names::labels::REMORA.to_owned())].into(),
                ),
                ..ObjectMeta::default()
            },
        }
    }
}

struct Candidate {
    api: Api<Lease>,
    replica: Replica,
    seen: Option<Seen>,
    /// While leading: when that ends unless a renewal succeeds.
    until: Option<Instant>,
    failures: u32,
    reported: Seldom,
    leading: watch::Sender<bool>,
    clock: fn() -> SystemTime,
    rng: fastrand::Rng,
}

impl Candidate {
    async fn run(mut self, drain: drain::Watch) {
        loop {
            let round = async {
                let pause = self.step().await;
                self.bounded(tokio::time::sleep(pause)).await;
            };
            tokio::select! {
                () = drain.draining() => break,
                () = round => {}
            }
        }
        self.give_up_lease().await;
    }

    /// One look, one decision, at most one write; returns the pause until the next.
    async fn step(&mut self) -> Duration {
        match self.attempt().await {
            Ok(pause) => {
                self.failures = 0;
                pause
            }
            Err(error) => {
                // Whatever we believe of the Lease may be wrong.
                self.failures += 1;
                if matches!(error.code(), 404 | 409) {
                    // Another was faster: look again soon.
                    tracing::debug!(%error, "Lease changed under us");
                } else if self.reported.due(Instant::now()) {
                    let (lease, mend) = (names::LEADER_LEASE, error.mend());
                    tracing::warn!(lease, "leader election: {error}{mend}");
                }
                super::pause(self.failures, &mut self.rng).min(RETRY)
            }
        }
    }

    async fn attempt(&mut self) -> Result<Duration, CallError> {
        // After a write of ours nobody else can have changed it unseen: the next one would fail.
        if self.until.is_none() || self.failures > 0 {
            let lease = self.bounded(call(self.api.get_opt(names::LEADER_LEASE))).await?;
            self.seen = Some(Seen::next(self.seen.take(), lease, Instant::now()));
        }
        let began = Instant::now();
        let seen = self.seen.clone().unwrap_or(Seen { lease: None, since: began });
        let act = decide(&self.replica.identity, &seen, began);
        let claim = seen.claim(&self.replica, (self.clock)());
        let params = PostParams::default();
        let written = match act {
            Act::Wait(left) => {
                self.step_down("another replica holds the Lease");
                let jitter = LOOK.mul_f64(0.5 + 0.5 * self.rng.f64());
                // Not all at the very moment it becomes free.
                return Ok(jitter.min(left + Duration::from_millis(self.rng.u64(1..200))));
            }
            Act::Create => self.bounded(call(self.api.create(&params, &claim))).await?,
            Act::Renew | Act::Take => {
                let replace = self.api.replace(names::LEADER_LEASE, &params, &claim);
                self.bounded(call(replace)).await?
            }
        };
        self.seen = Some(Seen::next(Some(seen), Some(written), Instant::now()));
        self.lead_until(began + GIVE_UP);
        Ok(RENEW.mul_f64(0.8 + 0.2 * self.rng.f64()))
    }

    fn lead_until(&mut self, until: Instant) {
        if Instant::now() >= until {
            // The write took so long that another may have the Lease soon.
            return;
        }
        self.until = Some(until);
        if self.leading.send_if_modified(|leads| !std::mem::replace(leads, true)) {
            tracing::info!(identity = self.replica.identity, "leading");
        }
    }

    fn step_down(&mut self, reason: &'static str) {
        self.until = None;
        if self.leading.send_if_modified(std::mem::take) {
            tracing::info!(identity = self.replica.identity, reason, "no longer leading");
        }
    }

    /// Does `work`, and steps down on time where it takes too long.
    async fn bounded<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        if let Some(until) = self.until.filter(|_| *self.leading.borrow()) {
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(until) => {
                    self.leading.send_replace(false);
                    tracing::warn!(
                        identity = self.replica.identity,
                        "no longer leading: the Lease was not renewed for {GIVE_UP:?}"
                    );
                }
                done = &mut work => return done,
            }
        }
        work.await
    }

    /// Lets another lead at once instead of in 15 s.
    async fn give_up_lease(&mut self) {
        if self.until.is_none() {
            return;
        }
        self.step_down("shutting down");
        let give_up = async {
            // A write may have been cut off: what is known may be old.
            let lease = self.api.get_opt(names::LEADER_LEASE).await?;
            let seen = Seen { lease, since: Instant::now() };
            if seen.lease.as_ref().is_some_and(|lease| holder(lease) == self.replica.identity) {
                let free = seen.release(&self.replica, (self.clock)());
                self.api.replace(names::LEADER_LEASE, &PostParams::default(), &free).await?;
            }
            Ok::<_, kube::Error>(())
        };
        match tokio::time::timeout(RELEASE, give_up).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::info!(%error, "Lease not given up; it runs out in 15 s"),
            Err(_) => tracing::info!("Lease not given up in time; it runs out in 15 s"),
        }
    }
}

#[cfg(test)]
mod tests;
