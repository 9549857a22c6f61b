//! A server: so many requests at a time, the others wait, and those that find the queue full are
//! answered 503. It does not notice that a caller has given up: the work is done all the same.

use std::{collections::VecDeque, time::Duration};

use super::Key;
use crate::sim::{
    adapter::Ended,
    scenario::{Behaviour, Failure},
};

/// Status of a request that finds the queue full.
const OVERLOADED: u16 = 503;
/// Status of a request beyond the rate limit.
const RATE_LIMITED: u16 = 429;

/// One server.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) behaviour: Behaviour,
    /// Whether it accepts connections.
    pub(super) up: bool,
    /// Whether it belongs to the Service.
    pub(super) listed: bool,
    /// How often it joined.
    pub(super) generation: u32,
    busy: u32,
    waiting: VecDeque<Job>,
    /// Requests that the rate limit still lets through, and as of when.
    tokens: (f64, Duration),
}

/// One attempt, as the server sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Job {
    pub(super) request: Key,
    pub(super) attempt: u32,
    pub(super) work: Work,
}

/// What there is to do for it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Work {
    /// To be busy for so long, and then end it so.
    For(Duration, Ended),
    /// To be busy until the caller gives up.
    Hang,
}

/// What a server makes of an attempt that arrives.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reception {
    /// It ends so, after so long, without work.
    AtOnce(Duration, Ended),
    /// It is taken in; [`Server::start`] says when it begins.
    TakenIn,
}

impl Server {
    pub(super) fn new(behaviour: Behaviour, there: bool) -> Self {
        let tokens = (behaviour.rate_limit.unwrap_or(0.0).max(1.0), Duration::ZERO);
        Self {
            behaviour,
            up: there,
            listed: there,
            generation: 0,
            busy: 0,
            waiting: VecDeque::new(),
            tokens,
        }
    }

    /// Another process under the same name.
    pub(super) fn join(&mut self) {
        self.forget();
        (self.up, self.listed) = (true, true);
        self.generation += 1;
    }

    /// The process is gone, and what it was busy with.
    pub(super) fn crash(&mut self) {
        self.forget();
        (self.up, self.listed) = (false, false);
    }

    fn forget(&mut self) {
        self.busy = 0;
        self.waiting.clear();
    }

    /// An attempt arrives that was meant for the process of that generation. Its luck is drawn from
    /// a generator of its own, so that it is the same under every policy.
    pub(super) fn receive(
        &mut self,
        generation: u32,
        (request, attempt): (Key, u32),
        now: Duration,
        luck: &mut fastrand::Rng,
    ) -> Reception {
        let (chance, takes) = (luck.f64(), self.behaviour.latency.draw(luck));
        let failure = self.failure(chance);
        let there = self.up && self.generation == generation;
        if !there || failure == Some(Failure::Connect) {
            return Reception::AtOnce(Duration::ZERO, Ended::Refused);
        }
        if !self.within_rate(now) {
            return self.fail(RATE_LIMITED, luck);
        }
        let work = match failure {
            Some(Failure::Hang) => Work::Hang,
            Some(Failure::Reset) => Work::For(takes, Ended::Broken),
            Some(Failure::Status(status)) if self.behaviour.fail_latency.is_some() => {
                return self.fail(status, luck);
            }
            Some(Failure::Status(status)) => Work::For(takes, self.answer(status)),
            Some(Failure::Connect) | None => Work::For(takes, self.answer(200)),
        };
        let full = self.waiting.len() >= self.behaviour.queue as usize;
        if !self.has_room() && full {
            return Reception::AtOnce(Duration::ZERO, self.answer(OVERLOADED));
        }
        self.waiting.push_back(Job { request, attempt, work });
        Reception::TakenIn
    }

    /// The next request to begin with, which is busy from now on; `None`: all wait.
    pub(super) fn start(&mut self) -> Option<Job> {
        if !self.has_room() {
            return None;
        }
        let job = self.waiting.pop_front()?;
        self.busy += 1;
        Some(job)
    }

    /// A request that it was busy with is over.
    pub(super) fn finish(&mut self) {
        self.busy = self.busy.saturating_sub(1);
    }

    fn has_room(&self) -> bool {
        self.behaviour.concurrency.is_none_or(|most| self.busy < most)
    }

    fn failure(&self, mut chance: f64) -> Option<Failure> {
        for (failure, share) in &self.behaviour.failures {
            if chance < *share {
                return Some(*failure);
            }
            chance -= share;
        }
        None
    }

    fn fail(&self, status: u16, luck: &mut fastrand::Rng) -> Reception {
        let takes = self.behaviour.fail_latency.map_or(Duration::ZERO, |l| l.draw(luck));
        Reception::AtOnce(takes, self.answer(status))
    }

    fn answer(&self, status: u16) -> Ended {
        let asks = status == RATE_LIMITED || status >= 500;
        let retry_after = self.behaviour.retry_after.filter(|_| asks);
        Ended::Answered { status, retry_after }
    }

    /// A token bucket that holds one second.
    fn within_rate(&mut self, now: Duration) -> bool {
        let Some(rate) = self.behaviour.rate_limit else { return true };
        let (left, since) = self.tokens;
        let left = (left + rate * (now - since).as_secs_f64()).min(rate.max(1.0));
        let pass = left >= 1.0;
        self.tokens = (if pass { left - 1.0 } else { left }, now);
        pass
    }
}
