//! The load: connections that take turns from one plan, as fast as answers come or at a constant
//! rate. At a rate, latency counts from the moment a request was due, so a stall is seen by every
//! request that it held up (no coordinated omission).

mod client;
mod plan;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, bail};
use clap::ValueEnum;
use futures_util::future::join_all;
use remora_core::latency::{Latency, Quantiles};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, sleep_until, timeout},
};

use client::Client;
use plan::Plan;

/// What a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// GET over HTTP/1.1, keep-alive
    Http1,
    /// GET over HTTP/2 with prior knowledge
    Http2,
    /// 1 KiB there and back
    Echo,
    /// Bytes as fast as they come
    Bulk,
}

/// Arguments of `bench load`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    kind: Kind,
    to: SocketAddr,
    /// Connections at a time
    #[arg(long, default_value_t = 1)]
    connections: u64,
    /// Requests at a time on each HTTP/2 connection
    #[arg(long, default_value_t = 1)]
    streams: usize,
    /// Open a connection for each request
    #[arg(long)]
    connection_per_request: bool,
    /// End after this many requests
    #[arg(long, required_unless_present = "seconds")]
    requests: Option<u64>,
    /// End after this time
    #[arg(long, conflicts_with = "requests")]
    seconds: Option<f64>,
    /// Seconds before the measurement, on the same connections; their end is told by a line `warm`
    #[arg(long, default_value_t = 0.0)]
    warm_up: f64,
    /// Requests per second; as fast as answers come where it is not given
    #[arg(long)]
    rate: Option<f64>,
}

/// What a load comes to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Whole answers after the warm-up.
    pub(crate) requests: u64,
    /// Broken connections and bad answers after the warm-up.
    pub(crate) errors: u64,
    /// The first of the errors, in words.
    pub(crate) first_error: Option<String>,
    /// Bytes of answers after the warm-up.
    pub(crate) bytes: u64,
    /// Length of the measurement.
    pub(crate) seconds: f64,
    /// Latency in microseconds.
    pub(crate) p50: u64,
    /// Latency in microseconds.
    pub(crate) p99: u64,
    /// Latency in microseconds.
    pub(crate) p999: u64,
}

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    errors: AtomicU64,
    bytes: AtomicU64,
    latency: Latency,
    first_error: std::sync::OnceLock<String>,
}

/// A peer that fails at once must not keep us busy.
const AFTER_FAILURE: Duration = Duration::from_millis(20);
/// A request that hangs longer is an error.
const PATIENCE: Duration = Duration::from_secs(20);
/// Without a deadline, so many errors end the load.
const TOO_MANY_ERRORS: u64 = 100;

/// Runs the load and prints the report.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let plan = Arc::new(Plan::new(args.requests, args.seconds, args.warm_up, args.rate)?);
    let counts = Arc::new(Counts::default());
    let connections: Vec<_> = (0..args.connections)
        .map(|_| tokio::spawn(connection(args.clone(), Arc::clone(&plan), Arc::clone(&counts))))
        .collect();
    sleep_until(plan.warm()).await;
    println!("warm");
    for connection in connections {
        connection.await?;
    }
    let seconds = plan.measured(Instant::now()).as_secs_f64();
    println!("{}", serde_json::to_string(&counts.report(seconds))?);
    Ok(())
}

/// One place in the load, whatever its connections have to go through.
async fn connection(args: Args, plan: Arc<Plan>, counts: Arc<Counts>) {
    while !plan.is_over() && counts.errors.load(Relaxed) < TOO_MANY_ERRORS {
        let done = match args.kind {
            Kind::Bulk => bulk(args.to, &plan, &counts).await,
            _ if args.connection_per_request => each_its_own(&args, &plan, &counts).await,
            kind => keep_alive(kind, &args, &plan, &counts).await,
        };
        if let Err(error) = done {
            counts.failed(&plan, &error);
            sleep(AFTER_FAILURE).await;
        }
    }
}

async fn keep_alive(kind: Kind, args: &Args, plan: &Plan, counts: &Counts) -> anyhow::Result<()> {
    let client = Client::open(kind, args.to).await?;
    let streams = if kind == Kind::Http2 { args.streams } else { 1 };
    let clients = std::iter::once(client.share()).chain(std::iter::repeat_with(|| client.share()));
    let mut clients: Vec<_> = clients.take(streams - 1).flatten().collect();
    clients.push(client);
    let done = join_all(clients.into_iter().map(async |mut client| {
        while let Some(due) = plan.turn().await {
            let bytes = timeout(PATIENCE, client.ask()).await.context("no answer in 20 s")??;
            counts.answered(plan, due, bytes);
        }
        Ok(())
    }));
    done.await.into_iter().collect()
}

async fn each_its_own(args: &Args, plan: &Plan, counts: &Counts) -> anyhow::Result<()> {
    while let Some(due) = plan.turn().await {
        let ask = async { Client::open(args.kind, args.to).await?.ask().await };
        let bytes = timeout(PATIENCE, ask).await.context("no answer in 20 s")??;
        counts.answered(plan, due, bytes);
    }
    Ok(())
}

async fn bulk(to: SocketAddr, plan: &Plan, counts: &Counts) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(b"!").await?;
    let mut buffer = vec![0; 256 * 1024];
    while !plan.is_over() {
        match timeout(PATIENCE, stream.read(&mut buffer)).await.context("no bytes in 20 s")?? {
            0 => bail!("the stream ended"),
            n if plan.counts(Instant::now()) => _ = counts.bytes.fetch_add(n as u64, Relaxed),
            _ => {}
        }
    }
    Ok(())
}

impl Counts {
    fn answered(&self, plan: &Plan, due: Instant, bytes: usize) {
        let now = Instant::now();
        if plan.counts(now) {
            self.requests.fetch_add(1, Relaxed);
            self.bytes.fetch_add(bytes as u64, Relaxed);
            self.latency.record(now - due);
        }
    }

    fn failed(&self, plan: &Plan, error: &anyhow::Error) {
        if plan.counts(Instant::now()) {
            self.errors.fetch_add(1, Relaxed);
            self.first_error.get_or_init(|| format!("{error:#}"));
        }
    }

    fn report(&self, seconds: f64) -> Report {
        let Quantiles { p50_us, p99_us, p999_us, .. } = self.latency.quantiles();
        Report {
            requests: self.requests.load(Relaxed),
            errors: self.errors.load(Relaxed),
            first_error: self.first_error.get().cloned(),
            bytes: self.bytes.load(Relaxed),
            seconds,
            p50: p50_us,
            p99: p99_us,
            p999: p999_us,
        }
    }
}

/// Arguments of the hidden `fetch`.
#[derive(Debug, clap::Args)]
pub(crate) struct Fetch {
    from: SocketAddr,
    path: String,
}

/// Prints the body of a GET.
pub(crate) async fn fetch_and_print(args: Fetch) -> anyhow::Result<()> {
    print!("{}", fetch(args.from, &args.path).await?);
    Ok(())
}

/// The body of a GET.
pub(crate) async fn fetch(from: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(from).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {from}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is cut")?;
    anyhow::ensure!(head.starts_with("HTTP/1.1 200"), "GET {path}: {head}");
    Ok(body.to_owned())
}
