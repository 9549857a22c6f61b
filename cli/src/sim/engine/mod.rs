//! Runs a scenario under one policy, on virtual time.
//!
//! - [`queue`] what is due when; [`server`] one server; [`callers`] who sends when; this file: what a
//!   proxy does with each request, step by step as `proxy/src/outbound/attempt.rs`.
//!
//! The same scenario, policy and seed give the same run. When a request arrives, and how lucky each
//! of its attempts is at its server, does not depend on the policy, so that policies are compared on
//! the same requests.

mod callers;
mod queue;
mod server;
#[cfg(test)]
mod tests;

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use super::{
    adapter::{self, Breaker, Ended, Guard, Next, Proxy, Repeats, Rules, Snapshot},
    record::Record,
    scenario::{Edge, Load, Scenario},
};
use callers::Caller;
use queue::{Key, Queue, Slab};
use server::{Job, Reception, Server, Work};

/// How long after the last arrival answers are waited for.
const LAST_ANSWERS: Duration = Duration::from_secs(60);

/// More requests arrived before the end than are simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than {most} requests by {at:?}; lower duration, concurrency or count, or add think")]
pub struct TooManyRequests {
    /// How many are.
    most: u32,
    /// When.
    at: Duration,
}

/// Runs `scenario` with the policy of that index, up to so many requests.
pub(super) fn run(
    scenario: &Scenario,
    policy: usize,
    seed: u64,
    most: u32,
) -> Result<Record, TooManyRequests> {
    let mut engine = Engine::new(scenario, &scenario.policies[policy].rules, seed, most);
    engine.begin();
    while let Some((now, event)) = engine.queue.take() {
        let over = now >= scenario.duration && engine.requests.is_empty();
        if over || now > scenario.duration + LAST_ANSWERS {
            break;
        }
        engine.now = now;
        engine.handle(event)?;
    }
    Ok(engine.end())
}

/// Something that is due.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// Something of the scenario changes.
    Edge(Edge),
    /// Proxies hear of the servers that there are.
    Told,
    /// A caller sends; of an earlier round it does not any more.
    Arrival { caller: usize, round: u32 },
    /// A server is done with a job that it began in that generation.
    Worked { server: usize, generation: u32, job: Job },
    /// A proxy sees how an attempt ended.
    Ended { request: Key, attempt: u32, ended: Ended },
    /// The pause before another attempt is over.
    Again { request: Key },
    /// A whole request took too long.
    Deadline { request: Key },
}

/// A request and all attempts at it.
#[derive(Debug)]
struct Request {
    caller: usize,
    /// Seeds the luck of its attempts.
    number: u64,
    arrived: Duration,
    snapshot: Snapshot,
    tried: Vec<usize>,
    repeats: Repeats,
    attempts: u32,
    flight: Option<Flight>,
}

/// The attempt under way.
#[derive(Debug)]
struct Flight {
    guard: Guard,
    sent: Duration,
    /// Whether it keeps its server busy until it is given up.
    hanging: bool,
}

struct Engine<'a> {
    scenario: &'a Scenario,
    rules: Rules,
    seed: u64,
    epoch: Instant,
    now: Duration,
    queue: Queue<Event>,
    requests: Slab<Request>,
    arrived: u32,
    most: u32,
    servers: Vec<Server>,
    /// Proxies of each group of clients, and what each of them sends now.
    groups: Vec<(Range<usize>, Option<Load>)>,
    callers: Vec<Caller>,
    proxies: Vec<Proxy>,
    /// Servers that a proxy has ejected: generation and since when, by proxy and server.
    ejected: Vec<Vec<Option<(u32, Duration)>>>,
    record: Record,
}

impl<'a> Engine<'a> {
    fn new(scenario: &'a Scenario, rules: &Rules, seed: u64, most: u32) -> Self {
        let epoch = adapter::epoch();
        let count = scenario.servers.len();
        let servers = (0..count).map(|server| {
            let behaviour = scenario.behaviour(server, Duration::ZERO);
            Server::new(behaviour, scenario.is_there_at_first(server))
        });
        let mut groups = Vec::new();
        let (mut callers, mut proxies) = (Vec::new(), Vec::new());
        for (group, clients) in scenario.clients.iter().enumerate() {
            let first = callers.len();
            for number in 0..u64::from(clients.count) {
                let rng = |what| generator([seed, what, group as u64, number]);
                callers.push(Caller::new(group, rng(1)));
                proxies.push(Proxy::new(rules.clone(), rng(2), epoch));
            }
            groups.push((first..callers.len(), None));
        }
        Self {
            scenario,
            rules: rules.clone(),
            seed,
            epoch,
            now: Duration::ZERO,
            queue: Queue::new(),
            requests: Slab::new(),
            arrived: 0,
            most,
            servers: servers.collect(),
            groups,
            callers,
            ejected: vec![vec![None; count]; proxies.len()],
            proxies,
            record: Record::new(count, scenario.duration, scenario.warmup),
        }
    }

    fn begin(&mut self) {
        self.tell();
        for (at, edge) in self.scenario.edges() {
            if at <= self.scenario.duration {
                self.queue.put(at, Event::Edge(edge));
            }
        }
    }

    /// Whoever was not answered by now never is.
    fn end(mut self) -> Record {
        if !self.requests.is_empty() {
            self.now = self.scenario.duration + LAST_ANSWERS;
        }
        let unanswered: Vec<Key> = self.requests.iter().map(|(key, _)| key).collect();
        for request in unanswered {
            self.finish(request, Some("unanswered".to_owned()));
        }
        for proxy in 0..self.proxies.len() {
            for server in 0..self.servers.len() {
                self.back(proxy, server);
            }
        }
        self.record.close();
        self.record
    }

    fn handle(&mut self, event: Event) -> Result<(), TooManyRequests> {
        match event {
            Event::Edge(edge) => self.edge(edge)?,
            Event::Told => self.tell(),
            Event::Arrival { caller, round } => self.arrival(caller, round)?,
            Event::Worked { server, generation, job } => self.worked(server, generation, job),
            Event::Ended { request, attempt, ended } => self.ended(request, attempt, ended),
            Event::Again { request } => self.attempt(request),
            Event::Deadline { request } => {
                // The proxy drops the attempt loop, and with it the guard: no report.
                self.finish(request, Some("request-timeout".to_owned()));
            }
        }
        Ok(())
    }

    fn edge(&mut self, edge: Edge) -> Result<(), TooManyRequests> {
        match edge {
            Edge::Server(server) => {
                self.servers[server].behaviour = self.scenario.behaviour(server, self.now);
                self.work(server);
            }
            Edge::Clients(group) => return self.load_changed(group),
            Edge::Join(server) => {
                self.break_flights(server);
                self.servers[server].join();
                self.servers_changed();
            }
            Edge::Leave(server) => {
                self.servers[server].listed = false;
                self.servers_changed();
            }
            Edge::Crash(server) => {
                self.break_flights(server);
                self.servers[server].crash();
                self.servers_changed();
            }
        }
        Ok(())
    }

    fn servers_changed(&mut self) {
        self.queue.put(self.now + self.scenario.discovery, Event::Told);
    }

    /// All proxies hear which servers there are.
    fn tell(&mut self) {
        let all = self.servers.iter().enumerate().filter(|(_, server)| server.listed);
        let list: Vec<(usize, u32)> = all.map(|(index, s)| (index, s.generation)).collect();
        let now = self.epoch + self.now;
        for proxy in 0..self.proxies.len() {
            self.proxies[proxy].told(&list, now);
            for server in 0..self.servers.len() {
                let known = |(generation, _)| list.contains(&(server, generation));
                if !self.ejected[proxy][server].is_none_or(known) {
                    self.back(proxy, server);
                }
            }
        }
    }

    /// Connections to a process that is gone break.
    fn break_flights(&mut self, server: usize) {
        let at = self.now + self.scenario.network;
        let to = |request: &Request| {
            let flight = request.flight.as_ref();
            flight.is_some_and(|flight| flight.guard.endpoint().server == server)
        };
        for (request, inner) in self.requests.iter().filter(|(_, request)| to(request)) {
            let ended = Ended::Broken;
            self.queue.put(at, Event::Ended { request, attempt: inner.attempts, ended });
        }
    }

    /// A request arrives at its proxy.
    fn request(&mut self, caller: usize) -> Result<(), TooManyRequests> {
        self.arrived += 1;
        if self.arrived > self.most {
            return Err(TooManyRequests { most: self.most, at: self.now });
        }
        let proxy = &self.proxies[caller];
        proxy.arrived(self.epoch + self.now);
        let request = self.requests.insert(Request {
            caller,
            number: self.callers[caller].next_number(),
            arrived: self.now,
            snapshot: proxy.snapshot(),
            tried: Vec::new(),
            repeats: Repeats::default(),
            attempts: 0,
            flight: None,
        });
        if let Some(bound) = self.rules.request_bound() {
            self.queue.put(self.now + bound, Event::Deadline { request });
        }
        self.attempt(request);
        Ok(())
    }

    /// One endpoint, one send.
    fn attempt(&mut self, key: Key) {
        let now = self.epoch + self.now;
        let Some(request) = self.requests.get_mut(key) else { return };
        let proxy = &mut self.proxies[request.caller];
        let guard = match proxy.pick(&request.snapshot, &request.tried, now) {
            Ok(guard) => guard,
            Err(reason) => return self.finish(key, Some(reason.to_owned())),
        };
        request.attempts += 1;
        let attempt = request.attempts;
        let parts = [self.seed, 3, request.caller as u64, request.number, attempt.into()];
        let (server, generation) = (guard.endpoint().server, guard.endpoint().generation);
        let luck = &mut generator(parts);
        request.flight = Some(Flight { guard, sent: self.now, hanging: false });
        self.record.sent(server, self.now);
        match self.servers[server].receive(generation, (key, attempt), self.now, luck) {
            Reception::AtOnce(after, ended) => {
                let at = self.now + self.scenario.network + after;
                self.queue.put(at, Event::Ended { request: key, attempt, ended });
            }
            Reception::TakenIn => self.work(server),
        }
        if let Some(bound) = self.rules.attempt_bound() {
            let timed_out = Event::Ended { request: key, attempt, ended: Ended::TimedOut };
            self.queue.put(self.now + bound, timed_out);
        }
    }

    /// A server begins with what it can.
    fn work(&mut self, server: usize) {
        while let Some(job) = self.servers[server].start() {
            match job.work {
                Work::For(time, _) => {
                    let generation = self.servers[server].generation;
                    let event = Event::Worked { server, generation, job };
                    self.queue.put(self.now + time, event);
                }
                Work::Hang => match self.requests.get_mut(job.request) {
                    Some(Request { attempts, flight: Some(flight), .. })
                        if *attempts == job.attempt =>
                    {
                        flight.hanging = true;
                    }
                    // The caller has gone already.
                    _ => self.servers[server].finish(),
                },
            }
        }
    }

    fn worked(&mut self, server: usize, generation: u32, job: Job) {
        if self.servers[server].generation != generation || !self.servers[server].up {
            return; // The process is gone, and its connections are broken already.
        }
        self.servers[server].finish();
        if let Work::For(_, ended) = job.work {
            let Job { request, attempt, .. } = job;
            let at = self.now + self.scenario.network;
            self.queue.put(at, Event::Ended { request, attempt, ended });
        }
        self.work(server);
    }

    /// A proxy sees how an attempt ended: report, and perhaps once more.
    fn ended(&mut self, key: Key, attempt: u32, ended: Ended) {
        let now = self.epoch + self.now;
        let Some(request) = self.requests.get_mut(key) else { return };
        if request.attempts != attempt {
            return;
        }
        let Some(flight) = request.flight.take() else { return };
        let (caller, counts) = (request.caller, self.record.counts(request.arrived));
        let group = &self.scenario.clients[self.callers[caller].group];
        let endpoints = request.snapshot.len();
        let proxy = &mut self.proxies[caller];
        let next = proxy.judge(ended, request.repeats, endpoints, &group.method, now);
        request.tried.push(flight.guard.endpoint().server);
        match next {
            Next::Again { backoff } => {
                if ended.is_unsent() {
                    request.repeats.resends += 1;
                    self.record.resends += u64::from(counts);
                } else {
                    request.repeats.retries += 1;
                    self.record.retries += u64::from(counts);
                }
                self.queue.put(self.now + backoff, Event::Again { request: key });
            }
            Next::StopAtLimit => self.record.limit_refused += u64::from(counts),
            Next::StopByBudget => self.record.budget_refused += u64::from(counts),
            Next::Stop => {}
        }
        let again = matches!(next, Next::Again { .. });
        self.report(caller, flight, ended);
        if !again {
            self.finish(key, failure(ended));
        }
    }

    /// Tells the balancer, and keeps count of what it makes of it.
    fn report(&mut self, proxy: usize, flight: Flight, ended: Ended) {
        let endpoint = flight.guard.endpoint();
        let (server, generation) = (endpoint.server, endpoint.generation);
        self.release(&flight);
        let took = self.now - flight.sent;
        let now = self.epoch + self.now;
        let breaker = self.proxies[proxy].report(flight.guard, now, took, ended);
        let counts = u64::from(self.record.counts(self.now));
        let record = &mut self.record.servers[server];
        record.failed += if failure(ended).is_some() { counts } else { 0 };
        match breaker {
            Breaker::Opened => {
                record.ejections += counts;
                self.ejected[proxy][server] = Some((generation, self.now));
            }
            Breaker::OpenedAgain => record.failed_probes += counts,
            Breaker::Same { closed } => {
                let same = |(since, _)| since == generation;
                if closed && self.ejected[proxy][server].is_some_and(same) {
                    self.back(proxy, server);
                }
            }
        }
    }

    /// A server that hangs over a request notices that its caller has gone.
    fn release(&mut self, flight: &Flight) {
        let endpoint = flight.guard.endpoint();
        if flight.hanging && self.servers[endpoint.server].generation == endpoint.generation {
            self.servers[endpoint.server].finish();
            self.work(endpoint.server);
        }
    }

    /// A server is not ejected any more.
    fn back(&mut self, proxy: usize, server: usize) {
        if let Some((_, since)) = self.ejected[proxy][server].take() {
            let since = since.max(self.scenario.warmup);
            let end = self.now.min(self.scenario.duration);
            self.record.was_ejected(server, end.saturating_sub(since));
        }
    }

    /// The caller is answered; `failure` says how, where it failed.
    fn finish(&mut self, key: Key, failure: Option<String>) {
        let Some(request) = self.requests.remove(key) else { return };
        if let Some(flight) = &request.flight {
            self.release(flight);
        }
        self.record.ended(request.arrived, self.now, request.attempts, failure);
        self.answered(request.caller, request.arrived);
    }
}

/// How a caller was failed, where it was.
fn failure(ended: Ended) -> Option<String> {
    let status = ended.status();
    match ended.reason() {
        Some(reason) => Some(reason.to_owned()),
        None if status.is_server_error() || status.as_u16() == 429 => {
            Some(status.as_u16().to_string())
        }
        None => None,
    }
}

/// A generator that belongs to something that these numbers name (the finalizer of splitmix64).
fn generator<const N: usize>(parts: [u64; N]) -> fastrand::Rng {
    let seed = parts.into_iter().fold(0u64, |state, part| {
        let mut z = state.wrapping_add(part).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    });
    fastrand::Rng::with_seed(seed)
}
