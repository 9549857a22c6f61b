//! Shows what was counted, when it is scraped, and ends the ticks of the flows. All of it on the control
//! thread: a worker that counts waits for nothing of it.
//!
//! Series per Service are bounded by the discovery cache's bound on targets, those per route and
//! backend by the routes of these, those per endpoint by [`crate::metrics::MAX_ENDPOINTS`].

mod inbound;
mod process;
mod services;

use std::{fmt, sync::Arc};

use remora_core::admin::Scrape;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::{
    discovery::{Discovery, Resolution},
    metrics::{
        Metrics,
        flow::{BOUNDS, BUCKETS, Counts, Exemplars, Flow, TICK},
        grpc,
        text::{Distribution, Exposition},
        wall::Wall,
    },
    net::admission::Admission,
    sight::traces::queue::Queue,
    tls::identity::Identity,
};

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Shows everything.
#[derive(Debug)]
pub struct Collector {
    /// What the process counts.
    pub metrics: Arc<Metrics>,
    /// Answers of the control plane.
    pub discovery: Discovery,
    /// Certificate and roots.
    pub identity: Identity,
    /// Places for connections.
    pub admission: Arc<Admission>,
    /// Spans on their way to the collector of traces.
    pub spans: Arc<Queue>,
    /// The runtimes of the process, by their threads.
    pub runtimes: Vec<(String, tokio::runtime::Handle)>,
}

impl Scrape for Collector {
    fn scrape(&self, text: &mut String) -> fmt::Result {
        let mut out = Exposition::new(text, Wall::clock());
        self.services(&mut out);
        self.inbound(&mut out);
        self.process(&mut out);
        out.end();
        Ok(())
    }
}

/// Ends the ticks of all flows, for as long as it is not dropped.
pub async fn tick(metrics: Arc<Metrics>, discovery: Discovery) {
    let mut ticks = interval_at(Instant::now() + TICK, TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = ticks.tick().await;
        rotate(&metrics, &discovery, now);
    }
}

/// Ends a tick of all flows.
pub fn rotate(metrics: &Metrics, discovery: &Discovery, now: Instant) {
    let tick = metrics.ticks.end(now.into_std());
    metrics.others.rotate(tick);
    metrics.inbound.rotate(tick);
    for (_, resolution) in discovery.all() {
        match resolution {
            Some(Resolution::Service(service)) => {
                let state = service.state_full();
                service.traffic.flow.rotate(tick);
                state.routes.iter().for_each(|route| route.traffic.rotate(tick));
                state.endpoints.iter().for_each(|endpoint| endpoint.flow.rotate(tick));
            }
            Some(Resolution::Pod(pod)) => {
                pod.traffic.flow.rotate(tick);
                pod.endpoint.flow.rotate(tick);
            }
            _ => {}
        }
    }
}

/// Names and values of some labels.
type Labels = Vec<(&'static str, String)>;

fn with(labels: &Labels, name: &'static str, value: &str) -> Labels {
    labels.iter().cloned().chain([(name, value.to_owned())]).collect()
}

/// Flows of one kind, by their labels.
struct Rows(Vec<(Labels, Summed)>);

/// Some flows together.
#[derive(Default)]
struct Summed {
    counts: Counts,
    exemplars: Exemplars,
}

impl Summed {
    fn add(&mut self, flow: &Flow) {
        let (counts, exemplars) = flow.totals();
        self.counts.add(&counts);
        for (kept, newer) in self.exemplars.iter_mut().zip(exemplars) {
            *kept = [*kept, newer].into_iter().flatten().max_by_key(|exemplar| exemplar.at);
        }
    }

    fn of<'a>(flows: impl IntoIterator<Item = &'a Flow>) -> Self {
        let mut sum = Self::default();
        flows.into_iter().for_each(|flow| sum.add(flow));
        sum
    }
}

/// What the families of flows of one kind are called.
struct Names {
    responses: &'static str,
    grpc: &'static str,
    failures: &'static str,
    cancelled: &'static str,
    latency: &'static str,
    /// Whose requests they are.
    what: &'static str,
}

impl Rows {
    fn show(&self, names: &Names, out: &mut Exposition<'_>) {
        let what = names.what;
        let each = |count: fn(&Counts) -> u64| {
            self.0.iter().map(move |(labels, sum)| (labels, count(&sum.counts)))
        };
        let responses = self.0.iter().flat_map(|(labels, sum)| {
            let classes = CLASSES.iter().zip(sum.counts.responses).filter(|(_, count)| *count > 0);
            classes.map(|(class, count)| (with(labels, "status_class", class), count))
        });
        out.counters(names.responses, &format!("Responses to {what}"), responses);
        let calls = self.0.iter().flat_map(|(labels, sum)| {
            let codes = sum.counts.grpc.iter().flat_map(|codes| grpc::NAMES.iter().zip(**codes));
            let codes = codes.filter(|(_, count)| *count > 0);
            codes.map(|(code, count)| (with(labels, "grpc_status", code), count))
        });
        out.counters(names.grpc, &format!("gRPC calls that ended, of {what}"), calls);
        out.counters(names.failures, &format!("Failed of {what}"), each(|c| c.failures));
        let help = format!("Given up by the client, of {what}");
        out.counters(names.cancelled, &help, each(|c| c.cancelled));
        out.histograms(names.latency, &format!("Time to the end of the response of {what}"));
        for (labels, sum) in self.0.iter().filter(|(_, sum)| sum.counts.finished() > 0) {
            let Summed { counts, exemplars } = sum;
            let of = Distribution {
                bounds: &BOUNDS,
                counts: &counts.buckets,
                sum: counts.micros as f64 / 1e6,
                exemplars,
            };
            out.histogram(names.latency, labels, &of);
        }
    }
}

const _: () = assert!(BUCKETS == BOUNDS.len() + 1);

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
