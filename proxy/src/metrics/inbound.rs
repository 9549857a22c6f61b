//! Requests that arrive for the pod's application, by port and caller.
//!
//! A connection looks its port and its caller up once; a request only counts.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    Tls,
    bodies::Bodies,
    flow::{Finished, Flow},
};

/// Ports that are kept apart; callers choose them.
const MAX_PORTS: usize = 32;
/// Callers of one port that are kept apart.
const MAX_CALLERS: usize = 100;
/// What came after those.
pub const OTHER: &str = "other";
/// Callers without an identity.
pub const NONE: &str = "none";
/// Ticks without use after which a port or a caller is forgotten: ten minutes.
const IDLE_TICKS: u32 = 60;

/// What policy said of a request, or of a connection that is carried as bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass.
    Allowed,
    /// It may not.
    Denied,
    /// It passed, and would not have with another policy than `audit`.
    Audit,
}

impl Verdict {
    /// For metrics, in the order of the values.
    pub const WORDS: [&str; 3] = ["allowed", "denied", "audit"];
}

/// The ports that had requests or connections lately.
#[derive(Debug)]
pub struct Inbound {
    ports: Mutex<BTreeMap<u16, Arc<Port>>>,
    /// Those beyond the bound, as port 0.
    other: Arc<Port>,
}

/// One port of the pod.
#[derive(Debug)]
pub struct Port {
    /// Its number; 0 for all beyond the bound.
    pub number: u16,
    /// Since when it is counted.
    pub since: Instant,
    /// Requests over mTLS, and without.
    pub requests: [AtomicU64; 2],
    /// What policy said, in the order of [`Verdict::WORDS`].
    pub verdicts: [AtomicU64; Verdict::WORDS.len()],
    /// Requests that ended.
    pub flow: Flow,
    /// Bodies of requests and responses.
    pub bodies: Arc<Bodies>,
    callers: Mutex<BTreeMap<Box<str>, Arc<Caller>>>,
    other: Arc<Caller>,
    usage: Usage,
}

/// Who calls a port.
#[derive(Debug, Default)]
pub struct Caller {
    /// Requests that arrived.
    pub requests: AtomicU64,
    /// Those that failed.
    pub failures: AtomicU64,
    usage: Usage,
}

/// Whether something is still in use.
#[derive(Debug, Default)]
struct Usage {
    /// Its count at the last tick.
    seen: AtomicU64,
    idle: AtomicU32,
}

impl Usage {
    /// Whether it was idle for too many ticks, of which this is one.
    fn is_over(&self, count: u64, held: bool) -> bool {
        if held || self.seen.swap(count, Relaxed) != count {
            self.idle.store(0, Relaxed);
            return false;
        }
        self.idle.fetch_add(1, Relaxed) + 1 >= IDLE_TICKS
    }
}

impl Inbound {
    /// No port yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { ports: Mutex::default(), other: Arc::new(Port::new(0, now)) }
    }

    /// A port, for a connection to it.
    #[must_use]
    pub fn port(&self, number: u16, now: Instant) -> Arc<Port> {
        let mut ports = self.ports.lock();
        if ports.len() >= MAX_PORTS && !ports.contains_key(&number) {
            return Arc::clone(&self.other);
        }
        Arc::clone(ports.entry(number).or_insert_with(|| Arc::new(Port::new(number, now))))
    }

    /// All ports in order, and the others if there are any.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Port>> {
        let ports: Vec<_> = self.ports.lock().values().cloned().collect();
        let other = (self.other.count() > 0).then(|| Arc::clone(&self.other));
        ports.into_iter().chain(other).collect()
    }

    /// A tick ends: what was not used for long is forgotten.
    pub fn rotate(&self, tick: u64) {
        for port in self.all() {
            port.flow.rotate(tick);
            let over = |caller: &Arc<Caller>| caller.usage.is_over(caller.count(), is_held(caller));
            port.callers.lock().retain(|_, caller| !over(caller));
        }
        let over = |port: &Arc<Port>| port.usage.is_over(port.count(), is_held(port));
        self.ports.lock().retain(|_, port| !over(port));
    }
}

fn is_held<T>(shared: &Arc<T>) -> bool {
    Arc::strong_count(shared) > 1
}

impl Port {
    fn new(number: u16, now: Instant) -> Self {
        Self {
            number,
            since: now,
            requests: Default::default(),
            verdicts: Default::default(),
            flow: Flow::default(),
            bodies: Arc::default(),
            callers: Mutex::default(),
            other: Arc::default(),
            usage: Usage::default(),
        }
    }

    fn count(&self) -> u64 {
        self.verdicts.iter().map(|count| count.load(Relaxed)).sum()
    }

    /// A caller by its SPIFFE id, for a connection of its own.
    #[must_use]
    pub fn caller(&self, id: Option<&str>) -> Arc<Caller> {
        let id = id.unwrap_or(NONE);
        let mut callers = self.callers.lock();
        if let Some(known) = callers.get(id) {
            return Arc::clone(known);
        }
        if callers.len() >= MAX_CALLERS {
            return Arc::clone(&self.other);
        }
        Arc::clone(callers.entry(id.into()).or_default())
    }

    /// All callers by name, and the others if there are any.
    #[must_use]
    pub fn callers(&self) -> Vec<(Box<str>, Arc<Caller>)> {
        let callers = self.callers.lock();
        let known = callers.iter().map(|(id, caller)| (id.clone(), Arc::clone(caller)));
        let other = (self.other.count() > 0).then(|| (OTHER.into(), Arc::clone(&self.other)));
        known.chain(other).collect()
    }

    /// What it is called in metrics.
    #[must_use]
    pub fn label(&self) -> String {
        if self.number == 0 { OTHER.to_owned() } else { self.number.to_string() }
    }

    /// Policy decided.
    pub fn decided(&self, verdict: Verdict) {
        self.verdicts[verdict as usize].fetch_add(1, Relaxed);
    }
}

impl Caller {
    fn count(&self) -> u64 {
        self.requests.load(Relaxed)
    }
}

/// Where the requests of one connection are counted.
#[derive(Debug)]
pub struct Counted {
    /// Its port.
    pub port: Arc<Port>,
    /// Who opened it.
    pub caller: Arc<Caller>,
}

impl Counted {
    /// A request arrived, and policy said that of it.
    pub fn arrived(&self, tls: Tls, verdict: Verdict) {
        self.port.requests[usize::from(tls != Tls::Mutual)].fetch_add(1, Relaxed);
        self.port.decided(verdict);
        self.caller.requests.fetch_add(1, Relaxed);
    }

    /// It ended `now`.
    pub fn finished(&self, finished: &Finished, took: Duration, now: Instant) {
        self.port.flow.finished(finished, took, now);
        self.caller.failures.fetch_add(finished.failed().into(), Relaxed);
    }

    /// It ended without a response.
    pub fn unanswered(&self, took: Duration) {
        self.port.flow.unanswered(took);
        self.caller.failures.fetch_add(1, Relaxed);
    }

    /// Its caller left before there was a response.
    pub fn left(&self) {
        self.port.flow.left();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    #[test]
    fn callers_and_ports_beyond_the_bounds_are_others() {
        let inbound = Inbound::new(now());
        for number in 1..=40 {
            inbound.port(number, now()).decided(Verdict::Allowed);
        }
        let all = inbound.all();
        assert_eq!(all.len(), MAX_PORTS + 1);
        let other = all.last().unwrap();
        assert_eq!((other.label().as_str(), other.count()), (OTHER, 8));
        let port = inbound.port(1, now());
        for n in 0..MAX_CALLERS + 5 {
            port.caller(Some(&format!("spiffe://a/{n:03}"))).requests.fetch_add(1, Relaxed);
        }
        port.caller(Some("spiffe://a/000")).requests.fetch_add(1, Relaxed);
        let callers = port.callers();
        assert_eq!(callers.len(), MAX_CALLERS + 1);
        assert_eq!((&*callers[0].0, callers[0].1.count()), ("spiffe://a/000", 2));
        assert_eq!((&*callers[MAX_CALLERS].0, callers[MAX_CALLERS].1.count()), (OTHER, 5));
    }

    #[test]
    fn what_is_idle_for_ten_minutes_is_forgotten_and_what_is_held_is_not() {
        let inbound = Inbound::new(now());
        let held = inbound.port(80, now());
        let caller = held.caller(None);
        caller.requests.fetch_add(1, Relaxed);
        held.caller(Some("spiffe://a/gone")).requests.fetch_add(1, Relaxed);
        inbound.port(81, now()).decided(Verdict::Allowed);
        for tick in 1..=u64::from(IDLE_TICKS) {
            assert_eq!(inbound.all().len(), 2, "{tick}");
            assert_eq!(held.callers().len(), 2, "{tick}");
            inbound.rotate(tick);
        }
        // The first tick saw the counts, and so was none of the idle ones.
        inbound.rotate(u64::from(IDLE_TICKS) + 1);
        assert_eq!(inbound.all().len(), 1);
        assert_eq!(held.callers().len(), 1);
        assert_eq!(&*held.callers()[0].0, NONE);
    }
}
