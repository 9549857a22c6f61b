//! What was measured, for people and as JSON.

use std::{fmt, time::Duration};

use anyhow::Context;
use remora_core::latency::Quantiles;
use serde::Serialize;

use super::{Args, plane::Usage};
use crate::process::Memory;

/// All of it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    services: u32,
    endpoints: u32,
    proxies: u32,
    subscriptions: u32,
    /// CPUs of the machine.
    cpus: usize,
    /// The machine's load average over a minute, before and after.
    pub(super) load: [f64; 2],
    stages: Vec<Stage>,
    rollouts: Vec<Rollout>,
    stuck: Vec<Stuck>,
}

/// The control plane at one moment.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Stage {
    name: &'static str,
    /// How long it took to get there; 0 where that means nothing.
    seconds: f64,
    #[serde(flatten)]
    usage: Usage,
}

/// A rollout.
#[derive(Debug, Serialize)]
pub(super) struct Rollout {
    pub(super) name: &'static str,
    /// Pods replaced.
    pub(super) pods: u32,
    /// From the first write until all was applied.
    pub(super) seconds: f64,
    /// Endpoints that came or went.
    pub(super) changes: u64,
    /// Changes times the steady proxies that asked for the Service.
    pub(super) deliveries: u64,
    /// Messages that the steady proxies got.
    pub(super) messages: u64,
    /// Messages that the control plane sent to all.
    pub(super) sent: u64,
    /// CPU of the control plane, user and system.
    pub(super) cpu_ms_per_change: f64,
    /// The same as a share of one CPU.
    pub(super) cpu_percent: f64,
    /// From the write to the application by each steady proxy.
    pub(super) applied: Quantiles,
    /// The slow ones, where there are any.
    pub(super) slow: Option<Slow>,
    /// At its end.
    pub(super) memory: Memory,
}

/// Slow proxies in a rollout, at the moment when the steady ones were done.
#[derive(Debug, Serialize)]
pub(super) struct Slow {
    pub(super) proxies: usize,
    pub(super) messages: u64,
    pub(super) applied: Quantiles,
}

/// What became of a stuck proxy.
#[derive(Debug, Serialize)]
pub(super) struct Stuck {
    pub(super) conduct: &'static str,
    /// Whether it is still connected.
    pub(super) connected: bool,
    /// So long after it got stuck.
    pub(super) after_seconds: f64,
    /// Answers that it has not confirmed, or that wait for it.
    pub(super) behind: Option<usize>,
    pub(super) behind_seconds: Option<f64>,
}

impl Stage {
    pub(super) fn new(name: &'static str, took: Duration, usage: Usage) -> Self {
        Self { name, seconds: took.as_secs_f64(), usage }
    }
}

impl Report {
    pub(super) fn new(
        args: &Args,
        stages: Vec<Stage>,
        rollouts: Vec<Rollout>,
        stuck: Vec<Stuck>,
    ) -> Self {
        Self {
            services: args.services,
            endpoints: args.services * args.pods,
            proxies: args.proxies,
            subscriptions: args.proxies * args.dials,
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            load: [0.0; 2],
            stages,
            rollouts,
            stuck,
        }
    }
}

/// The machine's load average over a minute.
pub(super) fn load_average() -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    let first = text.split_whitespace().next().context("/proc/loadavg is empty")?;
    Ok(first.parse()?)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { services, endpoints, proxies, subscriptions, cpus, load, .. } = self;
        writeln!(
            f,
            "{services} Services, {endpoints} endpoints, {proxies} proxies with {subscriptions} \
             subscriptions; {cpus} CPUs, load {:.2} before and {:.2} after\n",
            load[0], load[1]
        )?;
        writeln!(f, "| control plane | after s | resident MiB | of no file | peak | CPU s |")?;
        writeln!(f, "|---|---:|---:|---:|---:|---:|")?;
        for Stage { name, seconds, usage: Usage { cpu, memory } } in &self.stages {
            let Memory { resident, own, peak } = memory;
            writeln!(
                f,
                "| {name} | {seconds:.2} | {resident:.1} | {own:.1} | {peak:.1} | {cpu:.2} |"
            )?;
        }
        for rollout in &self.rollouts {
            write!(f, "\n{rollout}")?;
        }
        if !self.stuck.is_empty() {
            writeln!(f, "\n| stuck proxy | connected | after s | behind | for s |")?;
            writeln!(f, "|---|---|---:|---:|---:|")?;
        }
        for Stuck { conduct, connected, after_seconds, behind, behind_seconds } in &self.stuck {
            let connected = if *connected { "yes" } else { "cut" };
            let behind = behind.map_or("–".to_owned(), |count| count.to_string());
            let seconds =
                behind_seconds.map_or("–".to_owned(), |seconds| format!("{seconds:.1}"));
            writeln!(f, "| {conduct} | {connected} | {after_seconds:.1} | {behind} | {seconds} |")?;
        }
        Ok(())
    }
}

impl fmt::Display for Rollout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, pods, seconds, changes, deliveries, messages, sent, memory, .. } = self;
        writeln!(f, "rollout of {pods} pods in {seconds:.1} s, {name}")?;
        writeln!(f, "  endpoint changes                {changes}")?;
        writeln!(f, "  changes x subscribers           {deliveries}")?;
        writeln!(
            f,
            "  messages to steady proxies      {messages} ({:.2} of that); to all {sent}",
            *messages as f64 / (*deliveries).max(1) as f64
        )?;
        writeln!(
            f,
            "  CPU                             {:.2} ms a change, {:.1} % of one CPU",
            self.cpu_ms_per_change, self.cpu_percent
        )?;
        writeln!(f, "  resident memory                 {:.1} MiB", memory.resident)?;
        writeln!(f, "  from write to applied           {}", Milliseconds(&self.applied))?;
        if let Some(Slow { proxies, messages, applied }) = &self.slow {
            let count = applied.count;
            writeln!(
                f,
                "  {proxies} slow proxies                  {count} changes by {messages} messages; {}",
                Milliseconds(applied)
            )?;
        }
        Ok(())
    }
}

/// Quantiles in milliseconds.
struct Milliseconds<'a>(&'a Quantiles);

impl fmt::Display for Milliseconds<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Quantiles { p50_us, p99_us, max_us, .. } = *self.0;
        let ms = |us: u64| us as f64 / 1e3;
        write!(f, "p50 {:.1}, p99 {:.1}, max {:.1} ms", ms(p50_us), ms(p99_us), ms(max_us))
    }
}
