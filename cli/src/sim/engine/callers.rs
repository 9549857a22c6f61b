//! Who sends when: each proxy has one application behind it, in an open or a closed loop.

use std::time::Duration;

use super::{Engine, Event, TooManyRequests};
use crate::sim::scenario::{Load, above_zero};

/// Pause of a caller in a closed loop that was refused in no time at all, so that time goes on.
const AFTER_REFUSAL: Duration = Duration::from_millis(10);

/// The application behind one proxy.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) group: usize,
    rng: fastrand::Rng,
    /// Changes with the load: arrivals that were due under the old one do not happen.
    round: u32,
    /// Requests that it keeps under way, in a closed loop.
    users: u32,
    sent: u64,
}

impl Caller {
    pub(super) fn new(group: usize, rng: fastrand::Rng) -> Self {
        Self { group, rng, round: 0, users: 0, sent: 0 }
    }

    /// Number of its next request.
    pub(super) fn next_number(&mut self) -> u64 {
        self.sent += 1;
        self.sent
    }

    /// Until the next arrival of a Poisson process.
    fn gap(&mut self, rate: f64) -> Duration {
        Duration::from_secs_f64(-above_zero(&mut self.rng).ln() / rate)
    }
}

impl Engine<'_> {
    /// What the callers of a group send has changed.
    pub(super) fn load_changed(&mut self, group: usize) -> Result<(), TooManyRequests> {
        let load = self.scenario.load(group, self.now);
        let (callers, known) = &mut self.groups[group];
        *known = load;
        for caller in callers.clone() {
            match load {
                // A Poisson process has no memory: the next arrival is drawn anew.
                Some(Load::Open { rate }) => {
                    self.callers[caller].round += 1;
                    self.next_arrival(caller, rate);
                }
                Some(Load::Closed { users, .. }) => {
                    let more = users.saturating_sub(self.callers[caller].users);
                    self.callers[caller].users += more;
                    for _ in 0..more {
                        self.request(caller)?;
                    }
                }
                None => self.callers[caller].round += 1,
            }
        }
        Ok(())
    }

    /// A caller sends.
    pub(super) fn arrival(&mut self, caller: usize, round: u32) -> Result<(), TooManyRequests> {
        if self.callers[caller].round != round || self.now >= self.scenario.duration {
            return Ok(());
        }
        match self.groups[self.callers[caller].group].1 {
            Some(Load::Open { rate }) => self.next_arrival(caller, rate),
            Some(Load::Closed { users, .. }) if users >= self.callers[caller].users => {}
            // One user less, or the group has stopped.
            Some(Load::Closed { .. }) | None => {
                self.callers[caller].users = self.callers[caller].users.saturating_sub(1);
                return Ok(());
            }
        }
        self.request(caller)
    }

    /// A caller was answered: in a closed loop it sends again.
    pub(super) fn answered(&mut self, caller: usize, arrived: Duration) {
        let Caller { group, round, users, .. } = self.callers[caller];
        if users == 0 {
            return;
        }
        let think = match self.groups[group].1 {
            Some(Load::Closed { think, .. }) => think,
            _ => Duration::ZERO,
        };
        let pause = if self.now == arrived { think.max(AFTER_REFUSAL) } else { think };
        self.queue.put(self.now + pause, Event::Arrival { caller, round });
    }

    fn next_arrival(&mut self, caller: usize, rate: f64) {
        let gap = self.callers[caller].gap(rate);
        let round = self.callers[caller].round;
        self.queue.put(self.now + gap, Event::Arrival { caller, round });
    }
}
