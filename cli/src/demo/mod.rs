//! `remora demo`: a small shop in a mesh of its own, a constant load, and a story told with both.
//!
//! - [`shop`] the programs, which know nothing of the mesh; the load generator among them;
//! - `manifests` the shop as plain Kubernetes YAML;
//! - `cluster` what the story needs of the mesh it is told about, and who provides it: `meshed`
//!   (what `remora up` brings to life) or `loopback` (one network, explicit listeners);
//! - `story` the chapters, their measurements and verdicts;
//! - `screen` the terminal.

mod cluster;
mod load;
mod loopback;
mod manifests;
mod proxies;
mod screen;
pub mod shop;
mod story;

use std::{
    future::Future,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use tokio::signal::unix::{SignalKind, signal};

pub use cluster::Error;

use cluster::Cluster;
use manifests::Values;
use screen::Screen;
use story::{Pace, Story};

/// `remora demo`
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Tell the story in half the time, as continuous integration does.
    #[arg(long)]
    short: bool,
    /// Print the result as one JSON document on standard output, everything else on standard error.
    #[arg(long)]
    json: bool,
    /// Stay up after the story and print what can be tried.
    #[arg(long)]
    keep: bool,
    /// Requests per second to the shop's front door.
    #[arg(long, default_value_t = 150,
          value_parser = clap::value_parser!(u32).range(10..=i64::from(load::MAX_RATE)))]
    rate: u32,
    /// Use one network with explicit listeners, as where the machine forbids namespaces.
    #[arg(long)]
    one_network: bool,
}

impl Args {
    fn pace(&self) -> Pace {
        if self.short { Pace::SHORT } else { Pace::FULL }
    }

    /// Validity of the sidecars' certificates in this demo.
    #[must_use]
    pub fn leaf_lifetime(&self) -> Duration {
        self.pace().leaf_lifetime
    }
}

/// Files of one demo.
#[derive(Debug)]
struct Place {
    dir: PathBuf,
    values: Values,
}

impl Place {
    /// Lays the manifests out in a directory that exists.
    fn prepare(dir: &Path, args: &Args) -> Result<Self, Error> {
        let values = Values {
            remora: std::env::current_exe().map_err(Error::file(Path::new("/proc/self/exe")))?,
            control: dir.join("control"),
            report: dir.join("report.sock"),
            rate: args.rate,
        };
        let place = Self { dir: dir.to_owned(), values };
        for dir in [&place.values.control, &place.manifests()] {
            std::fs::create_dir_all(dir).map_err(Error::file(dir))?;
        }
        place.values.write(&place.manifests())?;
        Ok(place)
    }

    fn manifests(&self) -> PathBuf {
        self.dir.join("manifests")
    }
}

/// Runs `remora demo`: exit status 0 only if every chapter held.
pub fn run(args: &Args) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let told = match runtime {
        Ok(runtime) => runtime.block_on(on_one_network(args)),
        Err(error) => Err(Error::Mesh(format!("no runtime: {error}"))),
    };
    match told {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("remora: demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The fallback.
async fn on_one_network(args: &Args) -> Result<bool, Error> {
    let temporary = std::env::temp_dir();
    let dir = tempfile::Builder::new()
        .prefix("remora-demo-")
        .tempdir()
        .map_err(Error::file(&temporary))?;
    let place = Place::prepare(dir.path(), args)?;
    eprintln!(
        "remora: demo: no namespaces here; the shop runs on one network, its programs dial their \
         sidecars' listeners on loopback addresses"
    );
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::file(dir.path()))?;
    let stop = async move {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
    };
    let (cluster, keeper) =
        loopback::start(&place.values, &place.dir, place.manifests(), args.leaf_lifetime()).await?;
    let told = tell(cluster, &place, args, "one network", stop).await;
    keeper.stop().await;
    told
}

/// Tells the story about a mesh that is coming up; whether everything held.
async fn tell<C: Cluster>(
    cluster: C,
    place: &Place,
    args: &Args,
    mode: &'static str,
    stop: impl Future<Output = ()>,
) -> Result<bool, Error> {
    let mut stop = std::pin::pin!(stop);
    let story = async {
        let screen = Screen::new(args.json);
        let values = place.values.clone();
        let logs = place.dir.join("logs");
        let mut story = Story::begin(cluster, values, logs, args.pace(), screen).await?;
        let summary = story.tell(mode).await?;
        Ok((story, summary))
    };
    let (mut story, summary) = tokio::select! {
        told = story => told?,
        () = stop.as_mut() => return Err(Error::Interrupted),
    };
    story.screen().summary(&summary);
    if args.json {
        let text = serde_json::to_string_pretty(&summary)
            .map_err(|e| Error::Mesh(format!("the summary cannot be written: {e}")))?;
        println!("{text}");
    }
    if args.keep {
        tokio::select! {
            kept = story.keep() => kept?,
            () = stop => {}
        }
    }
    Ok(summary.held)
}
