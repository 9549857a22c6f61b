//! The demo's child processes: restarted when they die, ended in order.

use std::{
    collections::BTreeMap, ffi::OsString, fs::OpenOptions, path::PathBuf, process::Stdio,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{process::Child, time::Instant};

use super::super::cluster::Error;

/// Shortest time between two starts of one program.
const RESTART_AFTER: Duration = Duration::from_secs(1);

/// A program that is to run.
#[derive(Debug)]
pub(super) struct Process {
    words: Vec<OsString>,
    env: BTreeMap<String, String>,
    log: PathBuf,
    child: Option<Child>,
    started: Option<Instant>,
}

impl Process {
    /// Not started yet. Its output is appended to `log`.
    pub(super) fn new(words: Vec<OsString>, env: BTreeMap<String, String>, log: PathBuf) -> Self {
        Self { words, env, log, child: None, started: None }
    }

    /// Starts it unless it runs or has been started a moment ago.
    pub(super) fn keep(&mut self) -> Result<(), Error> {
        if self.runs() || self.started.is_some_and(|at| at.elapsed() < RESTART_AFTER) {
            return Ok(());
        }
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.map_err(Error::file(&self.log))?;
        let error_log = log.try_clone().map_err(Error::file(&self.log))?;
        // The guard makes the kernel end the program with us, whatever ends us.
        let child = tokio::process::Command::new("/proc/self/exe")
            .args(["shop", "guard", "--"])
            .args(&self.words)
            .envs(&self.env)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(error_log)
            // Ctrl-C is for the demo alone, which ends its programs in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        let program = self.words.first().map(PathBuf::from).unwrap_or_default();
        self.child = Some(child.map_err(Error::file(&program))?);
        self.started = Some(Instant::now());
        Ok(())
    }

    /// Whether it runs. Takes notice of its end.
    pub(super) fn runs(&mut self) -> bool {
        let ended = match &mut self.child {
            None => return false,
            Some(child) => !matches!(child.try_wait(), Ok(None)),
        };
        if ended {
            self.child = None;
        }
        !ended
    }

    /// Asks it to end.
    pub(super) fn terminate(&mut self) {
        self.signal(Signal::SIGTERM);
    }

    /// Ends it at once and waits until it is gone.
    pub(super) async fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // An error says that it is gone already.
            let _ = child.kill().await;
        }
        self.started = None;
    }

    fn signal(&mut self, signal: Signal) {
        let pid = self.child.as_ref().and_then(Child::id).and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = pid {
            // The child is not reaped yet, so the number is still its own.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}
