//! What holds at which moment of a scenario.

use std::{ops::Range, time::Duration};

use super::{Behaviour, Failure, Latency, Load, Scenario};

/// A change that holds from its beginning, to its end where it has one.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) at: Duration,
    pub(super) until: Option<Duration>,
    pub(super) what: What,
}

/// What changes.
#[derive(Debug, Clone)]
pub(super) enum What {
    /// Servers.
    Servers(Vec<usize>, Override),
    /// Groups of clients.
    Clients(Vec<usize>, NewLoad),
}

/// The fields of a server's behaviour that change.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Override {
    pub(super) latency: Option<Latency>,
    pub(super) concurrency: Option<u32>,
    pub(super) queue: Option<u32>,
    pub(super) rate_limit: Option<f64>,
    pub(super) failures: Option<Vec<(Failure, f64)>>,
    pub(super) fail_latency: Option<Latency>,
    pub(super) retry_after: Option<u32>,
}

/// A new rate or a new concurrency; what does not fit a group's kind of loop is refused before.
#[derive(Debug, Clone, Copy)]
pub(super) enum NewLoad {
    Rate(f64),
    Users(u32),
}

/// A server comes or goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Move {
    pub(super) at: Duration,
    pub(super) server: usize,
    pub(super) step: Step,
}

/// How.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Join,
    Leave,
    Crash,
}

/// A moment at which something may be different from before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Edge {
    /// A server behaves otherwise.
    Server(usize),
    /// A group of clients sends otherwise.
    Clients(usize),
    /// A server comes up.
    Join(usize),
    /// A server is taken out of the Service and goes on answering.
    Leave(usize),
    /// A server is gone at once; what it was busy with breaks.
    Crash(usize),
}

impl Scenario {
    /// All edges after the beginning, in order.
    pub(crate) fn edges(&self) -> Vec<(Duration, Edge)> {
        let mut edges = Vec::new();
        for step in &self.moves {
            let edge = match step.step {
                Step::Join => Edge::Join(step.server),
                Step::Leave => Edge::Leave(step.server),
                Step::Crash => Edge::Crash(step.server),
            };
            edges.push((step.at, edge));
        }
        for change in &self.changes {
            for at in [Some(change.at), change.until].into_iter().flatten() {
                match &change.what {
                    What::Servers(servers, _) => {
                        edges.extend(servers.iter().map(|server| (at, Edge::Server(*server))));
                    }
                    What::Clients(groups, _) => {
                        edges.extend(groups.iter().map(|group| (at, Edge::Clients(*group))));
                    }
                }
            }
        }
        for (group, clients) in self.clients.iter().enumerate() {
            edges.push((clients.active.start, Edge::Clients(group)));
            edges.push((clients.active.end, Edge::Clients(group)));
        }
        edges.sort_by_key(|(at, _)| *at);
        edges
    }

    /// Whether a server is there when the scenario begins: unless the first that happens to it is
    /// that it joins.
    pub(crate) fn is_there_at_first(&self, server: usize) -> bool {
        let own = self.moves.iter().filter(|step| step.server == server);
        own.min_by_key(|step| step.at).is_none_or(|first| first.step != Step::Join)
    }

    /// What a server does at a moment.
    pub(crate) fn behaviour(&self, server: usize, now: Duration) -> Behaviour {
        let mut behaviour = self.servers[server].behaviour.clone();
        for change in self.in_force(now) {
            if let What::Servers(servers, new) = &change.what
                && servers.contains(&server)
            {
                new.lay_over(&mut behaviour);
            }
        }
        behaviour
    }

    /// What one application of a group sends at a moment; `None`: nothing.
    pub(crate) fn load(&self, group: usize, now: Duration) -> Option<Load> {
        let clients = &self.clients[group];
        if !clients.active.contains(&now) {
            return None;
        }
        let mut load = clients.load;
        for change in self.in_force(now) {
            if let What::Clients(groups, new) = &change.what
                && groups.contains(&group)
            {
                load = match (load, *new) {
                    (Load::Closed { think, .. }, NewLoad::Users(users)) => {
                        Load::Closed { users, think }
                    }
                    (_, NewLoad::Rate(rate)) => Load::Open { rate },
                    (load, NewLoad::Users(_)) => load,
                };
            }
        }
        Some(load)
    }

    /// Requests that clients in open loops will send, on average.
    pub(super) fn open_requests(&self) -> f64 {
        let edges = self.edges();
        let of_group = |group: usize| {
            let own =
                |(at, edge): &(Duration, Edge)| (*edge == Edge::Clients(group)).then_some(*at);
            let times: Vec<Duration> = edges.iter().filter_map(own).collect();
            let span = |pair: &[Duration]| match self.load(group, pair[0]) {
                Some(Load::Open { rate }) => rate * (pair[1] - pair[0]).as_secs_f64(),
                _ => 0.0,
            };
            times.windows(2).map(span).sum::<f64>() * f64::from(self.clients[group].count)
        };
        (0..self.clients.len()).map(of_group).sum()
    }

    /// When something was wrong or changed and when that was over, in order and apart from each
    /// other. A server that comes or goes for good is a disturbance without length.
    pub(crate) fn disturbances(&self) -> &[Range<Duration>] {
        &self.disturbances
    }

    /// The changes that hold, the one that began last at the end.
    fn in_force(&self, now: Duration) -> impl Iterator<Item = &Change> {
        // In order of their beginning: see `sort`.
        self.changes.iter().filter(move |c| c.at <= now && c.until.is_none_or(|end| now < end))
    }
}

/// Changes by their beginning; of those that begin together the one written later wins.
pub(super) fn sort(changes: &mut [Change]) {
    changes.sort_by_key(|change| change.at);
}

/// Overlapping and touching spans made one.
pub(super) fn merge(mut spans: Vec<Range<Duration>>) -> Vec<Range<Duration>> {
    spans.sort_by_key(|span| (span.start, span.end));
    let mut merged: Vec<Range<Duration>> = Vec::new();
    for span in spans {
        match merged.last_mut() {
            Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
            _ => merged.push(span),
        }
    }
    merged
}

impl Override {
    fn lay_over(&self, behaviour: &mut Behaviour) {
        behaviour.latency = self.latency.unwrap_or(behaviour.latency);
        behaviour.concurrency = self.concurrency.or(behaviour.concurrency);
        behaviour.queue = self.queue.unwrap_or(behaviour.queue);
        behaviour.rate_limit = self.rate_limit.or(behaviour.rate_limit);
        behaviour.fail_latency = self.fail_latency.or(behaviour.fail_latency);
        behaviour.retry_after = self.retry_after.or(behaviour.retry_after);
        if let Some(failures) = &self.failures {
            behaviour.failures.clone_from(failures);
        }
    }
}
