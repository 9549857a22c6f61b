//! What happened in a run, as far as figures are made of it.

use std::{collections::BTreeMap, time::Duration};

/// One request, as its caller saw it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    /// When it arrived at the proxy, in microseconds.
    arrived: u32,
    /// Until it was answered, in microseconds.
    took: u32,
    /// Sends.
    pub(super) attempts: u8,
    /// Whether it was answered, and neither 5xx nor 429.
    pub(super) ok: bool,
}

impl Sample {
    pub(super) fn arrived(&self) -> Duration {
        Duration::from_micros(self.arrived.into())
    }

    pub(super) fn took(&self) -> Duration {
        Duration::from_micros(self.took.into())
    }
}

/// One server's part.
#[derive(Debug, Clone, Default)]
pub(super) struct ServerRecord {
    /// Attempts sent to it in each second.
    pub(super) attempts: Vec<u32>,
    /// Attempts that failed, the run through.
    pub(super) failed: u64,
    /// Breakers that opened from closed.
    pub(super) ejections: u64,
    /// Probes that failed.
    pub(super) failed_probes: u64,
    /// How long proxies had it ejected, one after the other.
    pub(super) ejected: Duration,
    /// The longest of these.
    pub(super) longest: Duration,
}

/// One run.
#[derive(Debug, Clone)]
pub(super) struct Record {
    warmup: Duration,
    /// Requests that arrived after the warm-up; by arrival once the run is over.
    pub(super) samples: Vec<Sample>,
    pub(super) servers: Vec<ServerRecord>,
    /// What failed, as callers saw it: a status, or the proxy's reason word.
    pub(super) failures: BTreeMap<String, u64>,
    pub(super) retries: u64,
    pub(super) resends: u64,
    pub(super) budget_refused: u64,
    pub(super) limit_refused: u64,
}

impl Record {
    pub(super) fn new(servers: usize, duration: Duration, warmup: Duration) -> Self {
        let seconds = usize::try_from(duration.as_secs() + 1).unwrap_or(usize::MAX);
        let server = ServerRecord { attempts: vec![0; seconds], ..ServerRecord::default() };
        Self {
            warmup,
            samples: Vec::new(),
            servers: vec![server; servers],
            failures: BTreeMap::new(),
            retries: 0,
            resends: 0,
            budget_refused: 0,
            limit_refused: 0,
        }
    }

    /// Whether what happens at a moment counts.
    pub(super) fn counts(&self, at: Duration) -> bool {
        at >= self.warmup
    }

    /// An attempt leaves for a server.
    pub(super) fn sent(&mut self, server: usize, now: Duration) {
        let second = usize::try_from(now.as_secs()).unwrap_or(usize::MAX);
        // What is sent after the last second belongs to requests that came before it.
        if let Some(count) = self.servers[server].attempts.get_mut(second) {
            *count += 1;
        }
    }

    /// A request is over; `failure` says how, where it failed.
    pub(super) fn ended(
        &mut self,
        arrived: Duration,
        now: Duration,
        attempts: u32,
        failure: Option<String>,
    ) {
        if !self.counts(arrived) {
            return;
        }
        self.samples.push(Sample {
            arrived: micros(arrived),
            took: micros(now - arrived),
            attempts: u8::try_from(attempts).unwrap_or(u8::MAX),
            ok: failure.is_none(),
        });
        if let Some(failure) = failure {
            *self.failures.entry(failure).or_default() += 1;
        }
    }

    /// A proxy had a server ejected for so long.
    pub(super) fn was_ejected(&mut self, server: usize, time: Duration) {
        let server = &mut self.servers[server];
        server.ejected += time;
        server.longest = server.longest.max(time);
    }

    /// The run is over.
    pub(super) fn close(&mut self) {
        self.samples.sort_by_key(|sample| sample.arrived);
    }
}

/// Up to 71 minutes, more than anything takes here.
fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}
