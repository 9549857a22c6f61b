//! A process that is kept running: containers, proxies and the control plane.

use std::{future::Future, process::Stdio, time::Duration};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    console::{Console, Log, pump},
    stage,
};

/// First pause before a restart; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause before a restart.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A process that has run this long starts over with the first pause.
const STEADY: Duration = Duration::from_secs(60);
/// How long output that is still in the pipe is waited for once its writer has ended.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Whether a process that ends is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Whatever its exit status.
    Always,
    /// Unless its exit status is 0.
    OnFailure,
    /// Never.
    Never,
}

/// What a process does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// Not started, or pausing before a restart.
    Waiting,
    /// Running, with its process id inside the stage.
    Running(u32),
    /// Ended for good, with this exit status.
    Ended(u8),
}

/// How to start a process, and where its output goes.
pub struct Program {
    /// What messages call it.
    pub label: String,
    /// Makes the command, anew for each start.
    pub command: Box<dyn Fn() -> Command + Send + Sync>,
    /// File for both streams.
    pub log: Log,
    /// Prefix on the terminal; `None` keeps the output in the file.
    pub prefix: Option<String>,
    /// When to start again.
    pub restart: Restart,
    /// Time between SIGTERM and SIGKILL.
    pub grace: Duration,
}

/// A handle on a process that is kept running.
#[derive(Debug, Clone)]
pub struct Kept {
    state: watch::Receiver<Run>,
    held: watch::Sender<bool>,
    restarts: watch::Receiver<u32>,
}

/// The other half of [`Kept`].
struct Keeper {
    state: watch::Sender<Run>,
    held: watch::Sender<bool>,
    restarts: watch::Sender<u32>,
}

impl Kept {
    /// Follows what it does.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<Run> {
        self.state.clone()
    }

    /// How often it was started again.
    #[must_use]
    pub fn restarts(&self) -> u32 {
        *self.restarts.borrow()
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        match *self.state.borrow() {
            Run::Running(pid) => Some(pid),
            Run::Waiting | Run::Ended(_) => None,
        }
    }

    /// Sends a signal; `false` where it is not running.
    #[must_use]
    pub fn signal(&self, signal: Signal) -> bool {
        self.pid().is_some_and(|pid| kill(raw(pid), signal).is_ok())
    }

    /// Kills it and does not start it again before [`Self::release`]; `false` where it is not
    /// running.
    #[must_use]
    pub fn hold(&self) -> bool {
        self.held.send_replace(true);
        self.signal(Signal::SIGKILL)
    }

    /// Lets it be started again.
    pub fn release(&self) {
        self.held.send_replace(false);
    }
}

/// Keeps a program running until `stop`: then SIGTERM, the grace time, SIGKILL. The future is
/// the work; the handle watches it.
pub fn keep(
    program: Program,
    console: Console,
    stop: CancellationToken,
) -> (Kept, impl Future<Output = ()> + Send) {
    let (state, state_rx) = watch::channel(Run::Waiting);
    let (restarts, restarts_rx) = watch::channel(0);
    let held = watch::Sender::new(false);
    let kept = Kept { state: state_rx, held: held.clone(), restarts: restarts_rx };
    (kept, Keeper { state, held, restarts }.run(program, console, stop))
}

/// Runs a program once to its end and returns its exit status; `None` where `stop` came first.
pub async fn once(program: Program, console: Console, stop: &CancellationToken) -> Option<u8> {
    let child = spawn(&program, console);
    attend(child, &program, console, stop, &watch::channel(Run::Waiting).0).await
}

impl Keeper {
    async fn run(self, program: Program, console: Console, stop: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        loop {
            let started = Instant::now();
            let child = spawn(&program, console);
            let Some(code) = attend(child, &program, console, &stop, &self.state).await else {
                self.state.send_replace(Run::Ended(0));
                return;
            };
            let again = match program.restart {
                Restart::Always => true,
                Restart::OnFailure => code != 0,
                Restart::Never => false,
            };
            if !again {
                console.say(&format!("{} ended with status {code}", program.label));
                self.state.send_replace(Run::Ended(code));
                return;
            }
            self.state.send_replace(Run::Waiting);
            if started.elapsed() >= STEADY {
                pause = FIRST_PAUSE;
            }
            let held = *self.held.borrow();
            let when = if held { "when it is released".into() } else { format!("in {pause:?}") };
            let log = program.log.path().file_name().unwrap_or_default().to_string_lossy();
            console.say(&format!(
                "{} ended with status {code}; starting it again {when} (log: {log})",
                program.label
            ));
            let mut holding = self.held.subscribe();
            let wait = async {
                if held {
                    // Cannot fail: this keeper has a sender.
                    let _ = holding.wait_for(|held| !held).await;
                } else {
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            };
            if stop.run_until_cancelled(wait).await.is_none() {
                self.state.send_replace(Run::Ended(code));
                return;
            }
            self.restarts.send_modify(|n| *n += 1);
        }
    }
}

struct Started {
    child: Child,
    output: [tokio::task::JoinHandle<()>; 2],
}

fn spawn(program: &Program, console: Console) -> Option<Started> {
    let mut command = (program.command)();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let terminal = program.prefix.as_ref().map(|prefix| (console, prefix.clone()));
    match command.spawn() {
        Ok(mut child) => {
            let (out, err) = (child.stdout.take()?, child.stderr.take()?);
            let output = [
                tokio::spawn(pump(out, program.log.clone(), terminal.clone())),
                tokio::spawn(pump(err, program.log.clone(), terminal)),
            ];
            Some(Started { child, output })
        }
        Err(error) => {
            console.say(&format!("cannot start {}: {error}", program.label));
            None
        }
    }
}

/// Waits for the end, or brings it about; `None` where `stop` did.
async fn attend(
    started: Option<Started>,
    program: &Program,
    console: Console,
    stop: &CancellationToken,
    state: &watch::Sender<Run>,
) -> Option<u8> {
    let Some(Started { mut child, output }) = started else {
        return (!stop.is_cancelled()).then_some(126);
    };
    let pid = child.id().unwrap_or_default();
    state.send_replace(Run::Running(pid));
    let ended = tokio::select! {
        status = child.wait() => Some(status.map_or(1, stage::code)),
        () = stop.cancelled() => None,
    };
    if ended.is_none() {
        let _ = kill(raw(pid), Signal::SIGTERM);
        if timeout(program.grace, child.wait()).await.is_err() {
            console.say(&format!(
                "{} did not end within {:?} of SIGTERM; killing it",
                program.label, program.grace
            ));
            let _ = kill(raw(pid), Signal::SIGKILL);
            let _ = child.wait().await;
        }
    }
    // What it started ends with it, as in a container.
    let _ = killpg(raw(pid), Signal::SIGKILL);
    for mut reader in output {
        if timeout(LAST_WORDS, &mut reader).await.is_err() {
            reader.abort();
        }
    }
    ended
}

fn raw(pid: u32) -> Pid {
    // Never 0 or negative, which would mean a group.
    Pid::from_raw(i32::try_from(pid).ok().filter(|pid| *pid > 0).unwrap_or(i32::MAX))
}
