//! The customer: requests at a constant rate, whatever the answers do.
//!
//! Open loop: every request has a due time fixed in advance and its latency counts from there, so
//! that a stall shows in the figures of all requests that should have been sent during it
//! (no coordinated omission). What happened goes as JSON lines over a Unix socket to whoever tells
//! the story; that path shares nothing with the network under test.

mod calls;
mod report;
mod schedule;

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::sync::{Semaphore, mpsc};

pub(crate) use report::{Class, Outcome, Report, Sample};

use calls::Callers;
use schedule::Schedule;

/// Requests in flight per class; one more is counted as failed, not sent late and forgotten.
const MAX_IN_FLIGHT: usize = 512;
/// Samples between calls and report.
const QUEUE: usize = 8192;
/// Highest rate of all classes together, per second.
pub(crate) const MAX_RATE: u32 = 400;
/// Calls per second of each class beside the main one.
const FRESH_RATE: u32 = 10;
const GRPC_RATE: u32 = 10;
const TCP_RATE: u32 = 5;

/// `remora shop load`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// `host:port` of web.
    #[arg(long, env = "SHOP_WEB", default_value = "web:80")]
    web: String,
    /// `host:port` of inventory.
    #[arg(long, env = "SHOP_INVENTORY", default_value = "inventory:9090")]
    inventory: String,
    /// `host:port` of ticker.
    #[arg(long, env = "SHOP_TICKER", default_value = "ticker:7070")]
    ticker: String,
    /// Requests per second to web over kept connections.
    #[arg(long, env = "SHOP_RATE", default_value_t = 150,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_RATE)))]
    rate: u32,
    /// Seconds after which it stops asking.
    #[arg(long, default_value_t = 3600)]
    seconds: u64,
    /// Unix socket of the story.
    #[arg(long, env = "SHOP_REPORT")]
    report: PathBuf,
}

/// Waits for the story, then sends requests and reports until the time is over.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let callers = Arc::new(Callers::new(args.web, args.inventory, args.ticker));
    let stream = report::connect(&args.report)
        .await
        .with_context(|| format!("no story at {}", args.report.display()))?;
    let (samples, queue) = mpsc::channel(QUEUE);
    let classes = [
        (Class::Http, args.rate),
        (Class::Fresh, FRESH_RATE),
        (Class::Grpc, GRPC_RATE),
        (Class::Tcp, TCP_RATE),
    ];
    let start = tokio::time::Instant::now();
    let mut load = tokio::task::JoinSet::new();
    for (class, rate) in classes {
        let schedule = Schedule::new(start, rate, Duration::from_secs(args.seconds));
        let (callers, samples) = (callers.clone(), samples.clone());
        load.spawn(constant_rate(schedule, class, samples, move || {
            let callers = callers.clone();
            async move { callers.call(class).await }
        }));
    }
    drop(samples);
    // Dropping the set on return ends the load with the story that listened to it.
    report::send(stream, queue).await.context("the story no longer listens")
}

/// Starts one call at each due time and never waits for an answer to start the next.
async fn constant_rate<F>(
    schedule: Schedule,
    class: Class,
    samples: mpsc::Sender<Sample>,
    call: impl Fn() -> F,
) where
    F: Future<Output = Outcome> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
    for due in schedule {
        tokio::time::sleep_until(due).await;
        let Ok(permit) = permits.clone().try_acquire_owned() else {
            let outcome = Outcome::Failed("too many calls in flight".into());
            let sample = Sample { class, latency: due.elapsed(), outcome };
            if samples.send(sample).await.is_err() {
                return;
            }
            continue;
        };
        let (samples, call) = (samples.clone(), call());
        tokio::spawn(async move {
            let outcome = call.await;
            drop(permit);
            let latency = due.elapsed();
            // The queue's end is the end of the story; then nobody wants the sample.
            let _ = samples.send(Sample { class, latency, outcome }).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One call in ten takes a second. A closed loop would report one slow call per second and
    /// stay silent about those that were not sent meanwhile.
    #[tokio::test(start_paused = true)]
    async fn slow_answers_do_not_hold_back_later_requests() {
        let (samples, mut queue) = mpsc::channel(QUEUE);
        let start = tokio::time::Instant::now();
        let schedule = Schedule::new(start, 100, Duration::from_secs(2));
        let sent = std::cell::Cell::new(0u32);
        let load = constant_rate(schedule, Class::Http, samples, || {
            sent.set(sent.get() + 1);
            let slow = sent.get().is_multiple_of(10);
            async move {
                tokio::time::sleep(Duration::from_millis(if slow { 1000 } else { 1 })).await;
                Outcome::Answered(None)
            }
        });
        load.await;
        assert_eq!(start.elapsed(), Duration::from_millis(1990), "the schedule was kept");
        let mut latencies = Vec::new();
        while let Some(sample) = queue.recv().await {
            latencies.push(sample.latency);
        }
        assert_eq!(latencies.len(), 200);
        assert_eq!(latencies.iter().filter(|&&l| l >= Duration::from_secs(1)).count(), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stall_of_the_sender_counts_against_the_requests_due_in_it() {
        let (samples, mut queue) = mpsc::channel(QUEUE);
        let start = tokio::time::Instant::now();
        let schedule = Schedule::new(start, 100, Duration::from_secs(1));
        tokio::time::advance(Duration::from_millis(500)).await;
        constant_rate(schedule, Class::Http, samples, || async { Outcome::Answered(None) }).await;
        let mut late = 0;
        while let Some(sample) = queue.recv().await {
            late += u32::from(sample.latency >= Duration::from_millis(100));
        }
        assert!((40..=42).contains(&late), "{late} requests were due 100 ms before they could go");
    }

    #[tokio::test(start_paused = true)]
    async fn calls_beyond_the_bound_are_failures_not_silence() {
        let (samples, mut queue) = mpsc::channel(QUEUE);
        let start = tokio::time::Instant::now();
        let schedule = Schedule::new(start, 400, Duration::from_secs(2));
        let load = tokio::spawn(async move {
            constant_rate(schedule, Class::Http, samples, std::future::pending::<Outcome>).await;
        });
        load.await.unwrap();
        let mut refused = 0;
        while let Ok(sample) = queue.try_recv() {
            refused += usize::from(matches!(sample.outcome, Outcome::Failed(_)));
        }
        assert_eq!(refused, 800 - MAX_IN_FLIGHT);
    }
}
