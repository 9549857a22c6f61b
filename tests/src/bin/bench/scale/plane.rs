//! The real control plane as a process of its own.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use remora_core::names::ports;
use remora_tests::{
    address::Block,
    apiserver::{ADMIN, ApiServer},
    sidecar::{sum, try_get},
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::process::{Memory, Place, Process};

/// A running control plane that watches the double.
pub(super) struct Plane {
    pub(super) addr: SocketAddr,
    admin: SocketAddr,
    process: Process,
    log: PathBuf,
    _block: Block,
}

/// What it has taken of the machine at one moment.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Usage {
    /// CPU seconds since its start.
    pub(super) cpu: f64,
    #[serde(flatten)]
    pub(super) memory: Memory,
}

/// A connected proxy, as `/proxies` shows it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Connected {
    pub(super) pod: String,
    /// Answers that it has not confirmed, or that wait for it.
    pub(super) behind: usize,
    pub(super) behind_seconds: f64,
}

impl Plane {
    /// Starts it with its log in `dir`.
    pub(super) fn start(bin: &Path, api: &ApiServer, dir: &Path) -> anyhow::Result<Self> {
        let block = Block::claim();
        let ip = block.next();
        let addr = SocketAddr::from((ip, ports::CONTROL_PLANE));
        let admin = SocketAddr::from((ip, ports::CONTROL_PLANE_ADMIN));
        let (kubeconfig, log) = (dir.join("kubeconfig"), dir.join("log"));
        std::fs::write(&kubeconfig, api.kubeconfig(ADMIN))?;
        let words = [
            bin.join("remora-control-plane").display().to_string(),
            "--kubernetes".to_owned(),
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--listen={addr}"),
            format!("--admin-listen={admin}"),
            "--log=warn".to_owned(),
        ];
        let process = Place::default().start(&words, &log)?;
        Ok(Self { addr, admin, process, log, _block: block })
    }

    /// Waits until it is ready, and tells how long that took.
    pub(super) async fn ready(&mut self, patience: Duration) -> anyhow::Result<Duration> {
        let began = Instant::now();
        loop {
            self.process.alive("the control plane").with_context(|| self.said())?;
            if let Some((200, _)) = try_get(self.admin, "/ready").await {
                return Ok(began.elapsed());
            }
            ensure!(began.elapsed() < patience, "not ready in {patience:?}: {}", self.said());
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// What it takes now.
    pub(super) fn usage(&self) -> anyhow::Result<Usage> {
        Ok(Usage { cpu: self.process.cpu()?, memory: self.process.memory()? })
    }

    /// Messages that it has sent to proxies.
    pub(super) async fn sent(&self) -> anyhow::Result<u64> {
        let text = self.page("/metrics").await?;
        Ok(sum(&text, "remora_control_plane_updates_sent_total", &[]))
    }

    /// The proxies that are connected.
    pub(super) async fn proxies(&self) -> anyhow::Result<Vec<Connected>> {
        Ok(serde_json::from_str(&self.page("/proxies").await?)?)
    }

    /// Ends it.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        self.process.stop().await
    }

    async fn page(&self, path: &str) -> anyhow::Result<String> {
        let answer = try_get(self.admin, path).await;
        let (status, text) = answer.with_context(|| format!("{path}: no answer"))?;
        ensure!(status == 200, "{path}: {status}");
        Ok(text)
    }

    /// Its last words.
    fn said(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().rev().take(5).collect::<Vec<_>>().join(" | ")
    }
}
