//! Seeded simulation on virtual time: proxies that balance open-loop traffic over servers that
//! know nothing of each other.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant},
};

use super::{
    Endpoints,
    pick::{Tried, Wish, pick},
    policy::{Algorithm, BalancerPolicy, BreakerPolicy, Policy},
    stats::{EndpointStats, FailureKind, InFlight, Outcome},
};

/// Where virtual time begins. Only differences matter, so real time leaves no trace in a test.
#[expect(clippy::disallowed_methods, reason = "an Instant cannot be made from nothing")]
pub(super) fn epoch() -> Instant {
    Instant::now()
}

const ERROR: Outcome = Outcome::Failure(FailureKind::ServerError { retry_after: None });

/// How a server answers, given the time and the requests that it is busy with.
type Server = Box<dyn Fn(Duration, u32) -> (Duration, Outcome)>;

/// A proxy: statistics are its own, as in another process.
struct Client {
    endpoints: Endpoints<EndpointStats>,
    cursor: AtomicUsize,
}

enum Event {
    Arrival { client: usize },
    Answer { server: usize, guard: InFlight<EndpointStats>, rtt: Duration, outcome: Outcome },
}

/// One request that was answered.
struct Answered {
    at: Duration,
    server: usize,
    failed: bool,
    ejected: bool,
}

struct Sim {
    epoch: Instant,
    rng: fastrand::Rng,
    policy: Policy,
    clients: Vec<Client>,
    servers: Vec<Server>,
    busy: Vec<u32>,
    /// Requests per second of each client.
    rate: f64,
    queue: BinaryHeap<Reverse<(Duration, u64)>>,
    events: BTreeMap<u64, Event>,
    next_event: u64,
    answered: Vec<Answered>,
}

impl Sim {
    fn new(clients: usize, rate: f64, policy: Policy, servers: Vec<Server>) -> Self {
        let client = |_| Client {
            endpoints: Endpoints::new(Vec::new(), &policy),
            cursor: AtomicUsize::new(0),
        };
        let all = (0..clients).map(client).collect();
        let mut sim = Self {
            epoch: epoch(),
            rng: fastrand::Rng::with_seed(42),
            policy,
            clients: all,
            servers: Vec::new(),
            busy: Vec::new(),
            rate,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            next_event: 0,
            answered: Vec::new(),
        };
        for server in servers {
            let now = sim.epoch;
            sim.add(server, || EndpointStats::new(now));
        }
        for client in 0..clients {
            sim.schedule_arrival(Duration::ZERO, client);
        }
        sim
    }

    /// A server that joins.
    fn add_server(&mut self, now: Duration, server: Server) {
        let now = self.epoch + now;
        self.add(server, || EndpointStats::new(now).joining(now));
    }

    fn add(&mut self, server: Server, stats: impl Fn() -> EndpointStats) {
        self.servers.push(server);
        self.busy.push(0);
        for client in &mut self.clients {
            let known = client.endpoints.iter().cloned();
            let list = known.chain([Arc::new(stats())]).collect();
            client.endpoints = Endpoints::new(list, &self.policy);
        }
    }

    fn run_until(&mut self, end: Duration) {
        while let Some(Reverse((now, id))) = self.queue.pop() {
            if now > end {
                self.queue.push(Reverse((now, id)));
                return;
            }
            match self.events.remove(&id).unwrap() {
                Event::Arrival { client } => self.arrive(now, client),
                Event::Answer { server, guard, rtt, outcome } => {
                    self.busy[server] -= 1;
                    let at = self.epoch + now;
                    let ejection = guard.finish(at, rtt, outcome, &self.policy, &mut self.rng);
                    let (failed, ejected) = (outcome != Outcome::Success, ejection.is_some());
                    self.answered.push(Answered { at: now, server, failed, ejected });
                }
            }
        }
    }

    fn arrive(&mut self, now: Duration, client: usize) {
        self.schedule_arrival(now, client);
        let Client { endpoints, cursor } = &self.clients[client];
        let at = self.epoch + now;
        let (wish, tried) = (Wish::default(), |_: &EndpointStats| Tried::No);
        let picked = pick(endpoints, &self.policy, cursor, wish, tried, at, &mut self.rng).unwrap();
        let server = picked.index;
        self.busy[server] += 1;
        let (latency, outcome) = self.servers[server](now, self.busy[server]);
        let rtt = latency.mul_f64(0.8 + 0.4 * self.rng.f64());
        self.schedule(now + rtt, Event::Answer { server, guard: picked.guard, rtt, outcome });
    }

    fn schedule_arrival(&mut self, now: Duration, client: usize) {
        let gap = -(1.0 - self.rng.f64()).ln() / self.rate;
        self.schedule(now + Duration::from_secs_f64(gap), Event::Arrival { client });
    }

    fn schedule(&mut self, at: Duration, event: Event) {
        self.queue.push(Reverse((at, self.next_event)));
        self.events.insert(self.next_event, event);
        self.next_event += 1;
    }

    /// Share of a server in the answers of a span of time.
    fn share(&self, server: usize, from: Duration, to: Duration) -> f64 {
        let span = self.answered.iter().filter(|a| (from..to).contains(&a.at));
        let (mut own, mut all) = (0u32, 0u32);
        for answer in span {
            own += u32::from(answer.server == server);
            all += 1;
        }
        f64::from(own) / f64::from(all.max(1))
    }

    /// Least and greatest share of a server in any second of a span.
    fn shares(&self, server: usize, seconds: std::ops::Range<u64>) -> (f64, f64) {
        let share = |s| self.share(server, secs(s), secs(s + 1));
        seconds.map(share).fold((1.0, 0.0), |(low, high), s| (s.min(low), s.max(high)))
    }

    fn failed(&self) -> usize {
        self.answered.iter().filter(|a| a.failed).count()
    }
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Answers in `n` milliseconds, and slower with the load: twice as slow with 20 requests at once.
fn serves_in(n: u64) -> Server {
    Box::new(move |_, busy| (millis(n).mul_f64(1.0 + f64::from(busy) / 20.0), Outcome::Success))
}

fn with_breaker() -> Policy {
    Policy { breaker: Some(BreakerPolicy::default()), ..Policy::default() }
}

#[test]
fn a_replica_ten_times_slower_keeps_a_small_share() {
    let servers = vec![serves_in(5), serves_in(5), serves_in(50)];
    let mut sim = Sim::new(1, 200.0, with_breaker(), servers);
    sim.run_until(secs(20));
    let slow = sim.share(2, secs(0), secs(20));
    assert!(slow < 0.15, "{slow}");
    let (low, high) = sim.shares(0, 1..20);
    assert!(low > 0.3 && high < 0.7, "the fast ones share evenly: {low} to {high}");
}

#[test]
fn a_replica_that_fails_every_call_is_ejected_and_then_costs_one_request_per_probe() {
    let fails: Server = Box::new(|_, _| (millis(1), ERROR));
    // Without the penalty a fast failure is attractive: the breaker alone must hold.
    let balancer = BalancerPolicy { failure_penalty: Duration::ZERO, ..Default::default() };
    let policy = Policy { balancer, ..with_breaker() };
    let mut sim = Sim::new(1, 200.0, policy, vec![serves_in(5), serves_in(5), fails]);
    sim.run_until(secs(30));
    let ejected = sim.answered.iter().find(|a| a.ejected).unwrap().at;
    assert!(ejected < secs(1), "{ejected:?}");
    // Seven in a row, what was under way then, and probes after at least 1, 2, 4, 8 seconds.
    assert!((8..=7 + 3 + 5).contains(&sim.failed()), "{}", sim.failed());
}

#[test]
fn the_penalty_keeps_callers_from_noticing_and_does_not_keep_the_breaker_from_deciding() {
    for rate in [20.0, 200.0] {
        let fails: Server = Box::new(|_, _| (millis(1), ERROR));
        let servers = vec![serves_in(5), serves_in(5), fails];
        let mut sim = Sim::new(1, rate, with_breaker(), servers);
        sim.run_until(secs(60));
        let before = sim.answered.iter().position(|a| a.ejected).unwrap();
        assert!(before < 1000, "ejected after {before} requests");
        assert!(sim.failed() <= 7 + 2 + 6, "{}", sim.failed());
    }
}

#[test]
fn a_replica_that_fails_now_and_then_is_shunned_without_being_ejected() {
    let flaky: Server = Box::new(|now, _| {
        (millis(5), if now.subsec_nanos() % 2 == 0 { ERROR } else { Outcome::Success })
    });
    let mut sim = Sim::new(5, 100.0, with_breaker(), vec![serves_in(5), serves_in(5), flaky]);
    sim.run_until(secs(20));
    let share = sim.failed() as f64 / sim.answered.len() as f64;
    assert!(share < 0.005, "{share}");
}

#[test]
fn a_herd_of_proxies_does_not_oscillate() {
    let servers = vec![serves_in(5), serves_in(5), serves_in(5)];
    let mut sim = Sim::new(20, 50.0, with_breaker(), servers);
    sim.run_until(secs(15));
    for server in 0..3 {
        let (low, high) = sim.shares(server, 2..15);
        assert!(low > 0.2 && high < 0.5, "{low} to {high}");
    }
}

#[test]
fn a_replica_that_recovers_is_found_again_and_not_run_over() {
    let recovers: Server = Box::new(|now, busy| {
        let base = if now < secs(5) { millis(200) } else { millis(5) };
        (base.mul_f64(1.0 + f64::from(busy) / 20.0), Outcome::Success)
    });
    let mut sim = Sim::new(20, 50.0, with_breaker(), vec![serves_in(5), serves_in(5), recovers]);
    sim.run_until(secs(60));
    let (_, high) = sim.shares(2, 5..60);
    let (low, _) = sim.shares(2, 55..60);
    assert!(high < 0.5, "{high}");
    assert!(low > 0.2, "{low}");
}

#[test]
fn a_new_replica_gets_its_share_within_a_second_and_not_all() {
    let mut sim = Sim::new(20, 50.0, with_breaker(), vec![serves_in(5), serves_in(5)]);
    sim.run_until(secs(5));
    sim.add_server(secs(5), serves_in(5));
    sim.run_until(secs(10));
    let (low, high) = sim.shares(2, 5..10);
    assert!(low > 0.15 && high < 0.6, "{low} to {high}");
}

#[test]
fn a_replica_in_slow_start_gets_its_ramp_and_no_more_under_load() {
    let all =
        [Algorithm::PeakEwma, Algorithm::LeastRequest, Algorithm::RoundRobin, Algorithm::Random];
    for algorithm in all {
        let balancer = BalancerPolicy { algorithm, slow_start: secs(20), ..Default::default() };
        let policy = Policy { balancer, ..with_breaker() };
        let servers = vec![serves_in(10), serves_in(10), serves_in(10)];
        let mut sim = Sim::new(4, 100.0, policy, servers);
        sim.run_until(secs(5));
        sim.add_server(secs(5), serves_in(10));
        sim.run_until(secs(35));
        for from in (5..25).step_by(4) {
            let warmth = 0.1 + 0.9 * (from as f64 + 2.0 - 5.0) / 20.0;
            let (share, ramp) = (sim.share(3, secs(from), secs(from + 4)), warmth / (3.0 + warmth));
            assert!((0.7..1.25).contains(&(share / ramp)), "{algorithm:?}: {share} for {ramp}");
        }
        let warm = sim.share(3, secs(26), secs(35));
        assert!((0.21..0.29).contains(&warm), "{algorithm:?}: {warm}");
    }
}
