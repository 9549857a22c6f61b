//! User instructions per request. Callgrind runs the proxy and counts; the same load with N and
//! with 2N requests leaves, as the difference, what N requests cost: what connections, handshakes,
//! timers and the control thread cost is in both.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::{
    backend::ports,
    load::{self, Report},
    mesh::{self, CLIENT, Mesh, SERVER, Sidecar},
    process::{Place, Process, find, own},
};

/// Arguments of `bench instructions`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory with remora-proxy and remora-control-plane [default: the checkout's target/release]
    #[arg(long, env = "REMORA_BIN", value_name = "DIR")]
    bin: Option<PathBuf>,
    /// N: the loads have N and 2N requests, a tenth where each has a connection of its own
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(100..=100_000))]
    requests: u64,
    /// Only workloads whose name contains this
    #[arg(long, value_name = "NAME", default_value = "")]
    only: String,
    /// Show also our own 12 most expensive functions, callees included
    #[arg(long)]
    top: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

struct Workload {
    name: &'static str,
    port: u16,
    load: &'static str,
    /// Divides N.
    dearer: u64,
}

const WORKLOADS: [Workload; 6] = [
    Workload { name: "http1", port: ports::HTTP1, load: "http1", dearer: 1 },
    Workload { name: "http1-50", port: ports::HTTP1, load: "http1 --connections 50", dearer: 1 },
    Workload { name: "http2", port: ports::HTTP2, load: "http2", dearer: 1 },
    Workload {
        name: "http2-10x10",
        port: ports::HTTP2,
        load: "http2 --connections 10 --streams 10",
        dearer: 1,
    },
    Workload { name: "tcp-echo", port: ports::ECHO, load: "echo", dearer: 1 },
    Workload {
        name: "connection-per-request",
        port: ports::HTTP1,
        load: "http1 --connection-per-request",
        dearer: 10,
    },
];

/// The proxies, by the path they stand for.
const SIDES: [&str; 2] = ["outbound", "inbound"];

/// Under callgrind everything takes some fifty times as long.
const START: Duration = Duration::from_secs(60);
/// Longest load.
const LOAD: Duration = Duration::from_secs(300);
/// Functions to show.
const TOP: usize = 12;

#[derive(Debug)]
struct Row {
    workload: &'static str,
    side: &'static str,
    per_request: f64,
    top: Vec<String>,
}

/// Counts and prints.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    for program in ["valgrind", "callgrind_control", "callgrind_annotate"] {
        if find(program).is_none() {
            eprintln!("skipped: no {program} on PATH (Debian: apt install valgrind)");
            return Ok(());
        }
    }
    let chosen: Vec<_> = WORKLOADS.iter().filter(|w| w.name.contains(&args.only)).collect();
    ensure!(!chosen.is_empty(), "--only {}: no such workload", args.only);
    let bin = mesh::programs(args.bin.clone())?;
    let mut rows = Vec::new();
    for side in SIDES {
        let pair = Pair::start(side, &bin).await?;
        for workload in &chosen {
            let row = pair.count(workload, side, &args).await;
            rows.push(row.with_context(|| format!("{} {side}: {}", workload.name, pair.said()))?);
        }
        pair.stop().await?;
    }
    if args.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|r| json!({"workload": r.workload, "side": r.side, "instructions": r.per_request, "top": r.top}))
            .collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print_table(&rows);
    }
    Ok(())
}

fn print_table(rows: &[Row]) {
    println!("user instructions per request\n");
    println!("{:<24}{:>12}{:>12}{:>12}", "workload", "outbound", "inbound", "pair");
    for row in rows.iter().filter(|row| row.side == SIDES[0]) {
        let inbound = rows.iter().find(|r| r.workload == row.workload && r.side == SIDES[1]);
        let inbound = inbound.map_or(f64::NAN, |r| r.per_request);
        let pair = row.per_request + inbound;
        println!("{:<24}{:>12.0}{inbound:>12.0}{pair:>12.0}", row.workload, row.per_request);
    }
    for row in rows.iter().filter(|row| !row.top.is_empty()) {
        println!("\n{} {}: callees included, of the whole load", row.workload, row.side);
        row.top.iter().for_each(|line| println!("  {line}"));
    }
}

/// Control plane, back end, and two proxies of which one runs under callgrind.
struct Pair {
    dir: tempfile::TempDir,
    net: Net,
    counted: Process,
    others: Vec<Process>,
}

/// Loopback addresses of one run; another run at the same time has others.
#[derive(Debug, Clone, Copy)]
struct Net(u8);

impl Net {
    fn ip(self, host: u8) -> IpAddr {
        Ipv4Addr::new(127, self.0, 0, host).into()
    }

    fn addr(self, host: u8, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(host), port)
    }
}

/// Last bytes of the addresses.
mod host {
    pub(super) const CONTROL_PLANE: u8 = 1;
    pub(super) const CLIENT: u8 = 2;
    pub(super) const APP: u8 = 3;
    pub(super) const SERVICE: u8 = 4;
    /// Three pods, all served by one proxy.
    pub(super) const SERVERS: [u8; 3] = [11, 12, 13];
}

impl Pair {
    async fn start(side: &str, bin: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("remora-instructions-").tempdir()?;
        let net = Net((std::process::id() % 200 + 20) as u8);
        let servers = host::SERVERS.map(|h| net.ip(h));
        let control_plane = net.addr(host::CONTROL_PLANE, 8086);
        let mesh = Mesh::write(dir.path(), bin, control_plane, net.ip(host::SERVICE), &servers)?;
        let place = Place::default();
        let log = dir.path().join("log");
        let backend = own(&format!("backend --listen {}", net.ip(host::APP)))?;
        let backend = place.start(&backend, &log)?;
        let plane = mesh.control_plane(net.addr(host::CONTROL_PLANE, 9990));
        let mut plane = place.start(&plane, &log)?;
        let deadline = Instant::now() + START;
        while !mesh.bundle().exists() {
            plane.alive("the control plane")?;
            ensure!(Instant::now() < deadline, "the control plane wrote no trust bundle");
            sleep(Duration::from_millis(20)).await;
        }
        let [outbound, inbound] = sides(&mesh, net, &servers);
        let (mut counted, other) =
            if side == SIDES[0] { (outbound, inbound) } else { (inbound, outbound) };
        let file = dir.path().join("callgrind").to_string_lossy().into_owned();
        let tool = ["valgrind", "--tool=callgrind", &format!("--callgrind-out-file={file}")];
        counted.splice(0..0, tool.map(str::to_owned));
        let counted = place.start(&counted, &log)?;
        let other = place.start(&other, &log)?;
        let mut pair = Self { dir, net, counted, others: vec![backend, plane, other] };
        pair.wait_ready(deadline).await?;
        Ok(pair)
    }

    /// Ready is: a request came back, over mTLS.
    async fn wait_ready(&mut self, deadline: Instant) -> anyhow::Result<()> {
        loop {
            self.counted.alive("the proxy under callgrind").with_context(|| self.said())?;
            let ready = load::fetch(self.net.addr(host::CLIENT, 4191), "/ready").await.is_ok()
                && load::fetch(self.net.addr(host::SERVERS[0], 4191), "/ready").await.is_ok();
            if ready {
                break;
            }
            ensure!(Instant::now() < deadline, "the proxies are not ready: {}", self.said());
            sleep(Duration::from_millis(100)).await;
        }
        self.load("http1 --requests 1", ports::HTTP1).await?;
        let metrics = load::fetch(self.net.addr(host::SERVERS[0], 4191), "/metrics").await?;
        mesh::expect_mutual_tls(&metrics)
    }

    async fn count(
        &self,
        workload: &Workload,
        side: &'static str,
        args: &Args,
    ) -> anyhow::Result<Row> {
        let n = args.requests / workload.dearer;
        // The first warms up connections, tables and the allocator.
        let mut counts = [0, 0, 0];
        let mut file = PathBuf::new();
        for (count, requests) in counts.iter_mut().zip([n / 2, n, 2 * n]) {
            let words = format!("{} --requests {requests}", workload.load);
            self.load(&words, workload.port).await?;
            (*count, file) = self.dump().await?;
        }
        let [_, once, twice] = counts;
        let per_request = (twice as f64 - once as f64) / n as f64;
        let top = if args.top { top(&file, 2 * n).await? } else { Vec::new() };
        eprintln!("{} {side}: {per_request:.0}", workload.name);
        Ok(Row { workload: workload.name, side, per_request, top })
    }

    async fn load(&self, words: &str, port: u16) -> anyhow::Result<()> {
        let (kind, rest) = words.split_once(' ').context("a load without arguments")?;
        let to = self.net.addr(host::CLIENT, port);
        let (_load, mut talk) =
            Place::default().start_talking(&own(&format!("load {kind} {to} {rest}"))?)?;
        talk.line(LOAD).await?;
        let report: Report = serde_json::from_str(&talk.line(LOAD).await?)?;
        ensure!(report.errors == 0, "{} errors: {:?}", report.errors, report.first_error);
        Ok(())
    }

    /// Writes the counts since the last time to a file, and begins at zero again.
    async fn dump(&self) -> anyhow::Result<(u64, PathBuf)> {
        let pid = self.counted.pid()?.to_string();
        let before = self.dumps()?;
        Place::default().output(&["callgrind_control", "--dump", &pid].map(str::to_owned)).await?;
        let deadline = Instant::now() + START;
        loop {
            let new = self.dumps()?.into_iter().find(|file| !before.contains(file));
            if let Some(file) = new
                && let Some(total) = total(&std::fs::read_to_string(&file)?)
            {
                return Ok((total, file));
            }
            ensure!(Instant::now() < deadline, "callgrind wrote no counts");
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn dumps(&self) -> anyhow::Result<Vec<PathBuf>> {
        let files = std::fs::read_dir(self.dir.path())?.map(|entry| Ok(entry?.path()));
        let files: anyhow::Result<Vec<_>> = files.collect();
        let is_dump = |f: &PathBuf| f.to_string_lossy().rsplit_once("callgrind.").is_some();
        Ok(files?.into_iter().filter(is_dump).collect())
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.counted.stop().await?;
        for process in self.others {
            process.stop().await?;
        }
        Ok(())
    }

    /// The last words of all programs.
    fn said(&self) -> String {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        log.lines().rev().take(5).collect::<Vec<_>>().join(" | ")
    }
}

/// The command lines of both proxies.
fn sides(mesh: &Mesh, net: Net, servers: &[IpAddr]) -> [Vec<String>; 2] {
    let all = [ports::HTTP1, ports::HTTP2, ports::ECHO, ports::BULK];
    let mut client = Vec::new();
    let mut server = Vec::new();
    for port in all {
        let listen = net.addr(host::CLIENT, port);
        client.extend(["--outbound-service".to_owned(), format!("{listen}=app.bench:{port}")]);
        for ip in servers {
            let forward = format!("{ip}:{port}={}", net.addr(host::APP, port));
            server.extend(["--inbound-forward".to_owned(), forward]);
        }
    }
    let words = |pod, ips, host, more| {
        mesh.proxy(&Sidecar {
            pod,
            ips,
            outbound: net.addr(host, 4140),
            inbound: net.addr(host, 4143),
            admin: net.addr(host, 4191),
            more,
        })
    };
    [
        words(CLIENT, &[net.ip(host::CLIENT)], host::CLIENT, client),
        words(SERVER, servers, host::SERVERS[0], server),
    ]
}

/// The last line of a whole dump.
fn total(dump: &str) -> Option<u64> {
    dump.lines().rev().find_map(|line| line.strip_prefix("totals: "))?.trim().parse().ok()
}

/// Our own functions by inclusive cost.
async fn top(dump: &Path, requests: u64) -> anyhow::Result<Vec<String>> {
    let file = dump.to_string_lossy().into_owned();
    let words = ["callgrind_annotate", "--inclusive=yes", "--threshold=100", &file];
    let text = Place::default().output(&words.map(str::to_owned)).await?;
    let lines = text.lines().filter_map(|line| own_function(line, requests));
    let lines: Vec<_> = lines.take(TOP).collect();
    if lines.is_empty() {
        bail!("callgrind_annotate names no function of ours; is the binary stripped?");
    }
    Ok(lines)
}

/// From `1,234 (5.6%)  file:function [object]` to instructions per request and our function.
fn own_function(line: &str, requests: u64) -> Option<String> {
    let cost = line.split_whitespace().next()?.replace(',', "").parse::<u64>().ok()?;
    let (_, function) = line.split_once(" [").map_or((line, line), |(f, _)| (f, f));
    let at = function.find(":remora_").or_else(|| function.find(":<remora_"))?;
    Some(format!("{:>10} {}", cost / requests, &function[at + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_counts_once_it_is_whole() {
        assert_eq!(total("events: Ir\nfn=(1) x\n1 2\n"), None);
        assert_eq!(total("events: Ir\nfn=(1) x\n1 2\n\ntotals: 4711\n"), Some(4711));
    }

    #[test]
    fn only_our_own_functions_are_shown_with_their_cost_per_request() {
        let line =
            " 1,234,000 (56.7%)  http.rs:remora_proxy::outbound::http::handle [/bin/remora-proxy]";
        let shown = own_function(line, 1000).unwrap();
        assert_eq!(shown.trim(), "1234 remora_proxy::outbound::http::handle");
        assert!(own_function(" 9,000 (1.0%)  h2.rs:h2::proto::poll [/bin/x]", 1000).is_none());
        assert!(own_function("--------", 1000).is_none());
    }
}
