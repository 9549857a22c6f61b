//! The control plane at the size of a large cluster. The real program watches a double of the API
//! server; proxies with certificates of their own ask it for what their applications dial, apply
//! what it tells and confirm. Then Services are rolled out, once among steady proxies and once more
//! beside slow and stuck ones.

mod changes;
mod cluster;
mod objects;
mod plane;
mod proxies;
mod report;

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context, ensure};
use remora_core::names::TRUST_DOMAIN;
use remora_proxy::tls::verify::TrustBundle;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio::time::{Instant, interval, sleep};

use crate::mesh;
use changes::Changes;
use cluster::Cluster;
use plane::{Plane, Usage};
use proxies::{Conduct, Home, Proxies, Proxy};
use report::{Report, Rollout, Stage, Stuck};

/// Arguments of `bench scale`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Directory with remora-control-plane [default: the checkout's target/release]
    #[arg(long, env = "REMORA_BIN", value_name = "DIR")]
    bin: Option<PathBuf>,
    /// Services
    #[arg(long, default_value_t = 1000, value_parser = count(1..=10_000))]
    services: u32,
    /// Pods of each Service
    #[arg(long, default_value_t = 10, value_parser = count(1..=100))]
    pods: u32,
    /// Proxies
    #[arg(long, default_value_t = 200, value_parser = count(1..=2_000))]
    proxies: u32,
    /// Services that each proxy asks for
    #[arg(long, default_value_t = 20, value_parser = count(1..=1_000))]
    dials: u32,
    /// How many of these are the same for all proxies
    #[arg(long, default_value_t = 5, value_parser = count(0..=100))]
    shared: u32,
    /// Pods that a rollout replaces, the shared Services' among them
    #[arg(long, default_value_t = 700, value_parser = count(1..=20_000))]
    rollout: u32,
    /// Pods replaced per second
    #[arg(long, default_value_t = 25, value_parser = count(1..=500))]
    rate: u32,
    /// Slow proxies in the second rollout: they rest for a second after each message
    #[arg(long, default_value_t = 5, value_parser = count(0..=100))]
    slow: u32,
    /// Stuck proxies in the second rollout: they read no more, confirm no more, or stand still
    #[arg(long, default_value_t = 5, value_parser = count(0..=100))]
    stuck: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn count(range: std::ops::RangeInclusive<i64>) -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(range)
}

/// Longest time for any one thing.
const PATIENCE: Duration = Duration::from_secs(120);
/// Time for what is under way to come to rest before memory is read.
const REST: Duration = Duration::from_secs(2);
/// A proxy that stands still is given up after at most this: keep-alive every 20 s, 10 s for the
/// answer.
const CUT: Duration = Duration::from_secs(45);
/// Between the steps of one pod's replacement.
const STEP: Duration = Duration::from_secs(1);
/// How slow a slow proxy is.
const SLOW: Duration = Duration::from_secs(1);

/// Measures and prints.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let rolled = args.rollout.div_ceil(args.pods);
    let enough = rolled + args.proxies + args.slow + args.stuck;
    ensure!(
        args.shared <= args.dials && args.dials <= args.services,
        "--shared <= --dials <= --services"
    );
    ensure!(
        args.services >= enough,
        "--services: {enough} at least: one for each proxy, and those rolled out"
    );
    ensure!(args.shared <= rolled, "--shared: at most {rolled}, the Services of the rollout");
    let load_before = report::load_average()?;
    let mut bench = Box::pin(Bench::prepare(args.clone())).await?;
    let mut report = Box::pin(bench.measure()).await?;
    report.load = [load_before, report::load_average()?];
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}

/// A loaded cluster, the control plane, and what was measured on the way there.
struct Bench {
    args: Args,
    _dir: tempfile::TempDir,
    cluster: Cluster,
    changes: Arc<Changes>,
    plane: Plane,
    rng: fastrand::Rng,
    /// How many of the steady proxies asked for a Service.
    subscribers: HashMap<usize, u64>,
    stages: Vec<Stage>,
}

impl Bench {
    async fn prepare(args: Args) -> anyhow::Result<Self> {
        let bin = mesh::program(args.bin.clone(), "remora-control-plane")?;
        let dir = tempfile::Builder::new().prefix("remora-scale-").tempdir()?;
        let changes = Arc::new(Changes::default());
        let mut cluster = Cluster::empty(Arc::clone(&changes)).await;
        let mut stages = Vec::new();
        let mut empty = Plane::start(&bin, &cluster.api, dir.path())?;
        let took = empty.ready(PATIENCE).await?;
        sleep(REST).await;
        stages.push(Stage::new("empty cluster", took, empty.usage()?));
        empty.stop().await?;
        cluster.fill(args.services as usize, args.pods as usize);
        let mut plane = Plane::start(&bin, &cluster.api, dir.path())?;
        let took = plane.ready(PATIENCE).await?;
        sleep(REST).await;
        stages.push(Stage::new("loaded", took, plane.usage()?));
        let (rng, subscribers) = (fastrand::Rng::with_seed(1), HashMap::new());
        Ok(Self { args, _dir: dir, cluster, changes, plane, rng, subscribers, stages })
    }

    async fn measure(&mut self) -> anyhow::Result<Report> {
        let home = self.home().await?;
        let (steady, slow, stuck) = (self.args.proxies, self.args.slow, self.args.stuck);
        let planned = self.plan(0..steady, |_| Conduct::Steady)?;
        for dial in planned.iter().flat_map(|(services, _)| services) {
            *self.subscribers.entry(*dial).or_default() += 1;
        }
        let began = Instant::now();
        let steady = Proxies::start(home.clone(), only_proxies(planned))?;
        steady.synced(PATIENCE).await?;
        let took = began.elapsed();
        sleep(REST).await;
        self.stages.push(Stage::new("proxies connected", took, self.plane.usage()?));
        let alone = self.rollout("steady proxies alone", &steady, None).await?;
        self.stages.push(Stage::new("after the rollout", Duration::ZERO, self.plane.usage()?));

        let first = self.args.proxies;
        let slow = only_proxies(self.plan(first..first + slow, |_| Conduct::Slow(SLOW))?);
        let slow = Proxies::start(home.clone(), slow)?;
        let first = first + self.args.slow;
        let planned = only_proxies(self.plan(first..first + stuck, conduct_of_stuck)?);
        let (frozen, running): (Vec<Proxy>, Vec<Proxy>) =
            planned.iter().cloned().partition(|proxy| proxy.conduct == Conduct::Frozen);
        let running = Proxies::start(home.clone(), running)?;
        let frozen = Proxies::start_frozen(home, frozen)?;
        for group in [&slow, &running, &frozen] {
            group.synced(PATIENCE).await?;
        }
        let froze = Instant::now();
        let beside = self.rollout("beside slow and stuck ones", &steady, Some(&slow)).await?;
        let stuck = self.stuck(&planned, froze).await?;
        sleep(REST).await;
        self.stages.push(Stage::new("at the end", Duration::ZERO, self.plane.usage()?));
        steady.seen.check()?;
        drop((steady, slow, running, frozen));
        Ok(Report::new(&self.args, self.stages.clone(), vec![alone, beside], stuck))
    }

    /// Where the proxies go, once the roots are published.
    async fn home(&self) -> anyhow::Result<Home> {
        let deadline = Instant::now() + PATIENCE;
        let namespace = &self.cluster.services.first().context("no Service")?.namespace;
        let roots = loop {
            if let Some(roots) = self.cluster.roots(namespace) {
                break roots;
            }
            ensure!(Instant::now() < deadline, "the control plane published no roots");
            sleep(Duration::from_millis(20)).await;
        };
        let roots = CertificateDer::pem_slice_iter(roots.as_bytes()).collect::<Result<_, _>>()?;
        let roots = TrustBundle::new(TRUST_DOMAIN, roots)?;
        Ok(Home { addr: self.plane.addr, roots, changes: Arc::clone(&self.changes) })
    }

    /// Proxies of Services that are not rolled out, with the Services that each asks for.
    fn plan(
        &mut self,
        numbers: std::ops::Range<u32>,
        conduct: impl Fn(u32) -> Conduct,
    ) -> anyhow::Result<Vec<(Vec<usize>, Proxy)>> {
        let Args { services, dials, shared, .. } = self.args;
        let rolled = self.rolled();
        let of = numbers.map(|number| {
            let mut wanted: BTreeSet<usize> = (0..shared as usize).collect();
            while wanted.len() < dials as usize {
                wanted.insert(self.rng.usize(..services as usize));
            }
            let (service, pod, token) = self.cluster.token(rolled + number as usize)?;
            let proxy = Proxy {
                namespace: service.namespace.clone(),
                pod: pod.name.clone(),
                node: pod.node.clone(),
                token,
                dials: wanted.iter().map(|at| self.cluster.services[*at].cluster_ip).collect(),
                conduct: conduct(number),
            };
            Ok((wanted.into_iter().collect(), proxy))
        });
        of.collect()
    }

    /// How many Services a rollout has, the first ones.
    fn rolled(&self) -> usize {
        self.args.rollout.div_ceil(self.args.pods) as usize
    }

    /// Replaces pods, and waits until the steady proxies have applied it all.
    async fn rollout(
        &mut self,
        name: &'static str,
        steady: &Proxies,
        slow: Option<&Proxies>,
    ) -> anyhow::Result<Rollout> {
        let expected: u64 = (0..self.args.rollout as usize)
            .map(|number| 2 * self.subscribers.get(&(number % self.rolled())).copied().unwrap_or(0))
            .sum();
        let (before, sent) = (self.plane.usage()?, self.plane.sent().await?);
        let messages = steady.seen.begin();
        let slow_messages = slow.map(|slow| slow.seen.begin());
        let began = Instant::now();
        self.replace().await?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            steady.seen.check()?;
            let applied = steady.seen.applied.lock().quantiles().count;
            if applied >= expected {
                break;
            }
            ensure!(Instant::now() < deadline, "{applied} of {expected} changes were applied");
            sleep(Duration::from_millis(10)).await;
        }
        let took = began.elapsed();
        let (after, sent) = (self.plane.usage()?, self.plane.sent().await? - sent);
        let applied = steady.seen.applied.lock().quantiles();
        Ok(Rollout {
            name,
            pods: self.args.rollout,
            seconds: took.as_secs_f64(),
            changes: 2 * u64::from(self.args.rollout),
            deliveries: expected,
            messages: steady.seen.messages.load(Relaxed) - messages,
            sent,
            cpu_ms_per_change: 1e3 * cpu_between(before, after) / f64::from(2 * self.args.rollout),
            cpu_percent: 100.0 * cpu_between(before, after) / took.as_secs_f64(),
            applied,
            slow: slow.zip(slow_messages).map(|(slow, before)| report::Slow {
                proxies: slow.count,
                messages: slow.seen.messages.load(Relaxed) - before,
                applied: slow.seen.applied.lock().quantiles(),
            }),
            memory: after.memory,
        })
    }

    /// The rollout's writes at a steady rate: each pod is made, becomes ready, and an old one leaves
    /// and is gone, a second apart.
    async fn replace(&mut self) -> anyhow::Result<()> {
        let (pods, rate) = (self.args.rollout as usize, self.args.rate as usize);
        let rolled = self.rolled();
        let lag = rate * STEP.as_secs() as usize;
        let mut ticks = interval(STEP / (4 * self.args.rate));
        for tick in 0..4 * (pods + 3 * lag) {
            ticks.tick().await;
            let step = tick % 4;
            let Some(number) = (tick / 4).checked_sub(step * lag).filter(|n| *n < pods) else {
                continue;
            };
            let service = number % rolled;
            match step {
                0 => self.cluster.make(service),
                1 => self.cluster.ready(service)?,
                2 => self.cluster.leave(service)?,
                _ => self.cluster.gone(service)?,
            }
        }
        Ok(())
    }

    /// What becomes of the stuck ones; waits until those that stand still are cut.
    async fn stuck(&self, stuck: &[Proxy], froze: Instant) -> anyhow::Result<Vec<Stuck>> {
        let mut told: Vec<Stuck> = Vec::new();
        loop {
            let connected = self.plane.proxies().await?;
            let find = |proxy: &Proxy| connected.iter().find(|one| one.pod == proxy.pod);
            let waits =
                stuck.iter().any(|proxy| proxy.conduct == Conduct::Frozen && find(proxy).is_some());
            if !waits || froze.elapsed() > CUT {
                for proxy in stuck {
                    let found = find(proxy);
                    told.push(Stuck {
                        conduct: match proxy.conduct {
                            Conduct::Unreading => "reads its stream no more",
                            Conduct::Unconfirming => "confirms nothing",
                            _ => "stands still, its connection too",
                        },
                        connected: found.is_some(),
                        after_seconds: froze.elapsed().as_secs_f64(),
                        behind: found.map(|found| found.behind),
                        behind_seconds: found.map(|found| found.behind_seconds),
                    });
                }
                return Ok(told);
            }
            sleep(Duration::from_millis(200)).await;
        }
    }
}

fn conduct_of_stuck(number: u32) -> Conduct {
    [Conduct::Unreading, Conduct::Unconfirming, Conduct::Frozen][number as usize % 3]
}

fn only_proxies(planned: Vec<(Vec<usize>, Proxy)>) -> Vec<Proxy> {
    planned.into_iter().map(|(_, proxy)| proxy).collect()
}

fn cpu_between(before: Usage, after: Usage) -> f64 {
    after.cpu - before.cpu
}
