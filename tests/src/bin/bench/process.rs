//! Processes that end with this program, pinned, in a pod's network, and what they cost.

use std::{
    ffi::OsString,
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail};
use nix::{
    sched::{CloneFlags, CpuSet, sched_setaffinity, setns},
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
        signal::Signal,
    },
    unistd::Pid,
};
use serde::Serialize;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

/// `/proc/PID/stat` counts in hundredths of a second on every Linux that Rust has a target for.
const TICKS_PER_SECOND: f64 = 100.0;

/// Longest wait for a command that should answer at once.
const AT_ONCE: Duration = Duration::from_secs(30);

/// Arguments of the hidden `enter`.
#[derive(Debug, clap::Args)]
pub(crate) struct Enter {
    /// Process whose network namespace to enter
    #[arg(long)]
    net: Option<u32>,
    /// The only CPU to run on
    #[arg(long)]
    cpu: Option<usize>,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Becomes the command. A process of its own does this, since namespaces and CPUs are set for the
/// calling thread, and since the kernel's promise to end it with its parent survives the exec.
pub(crate) fn enter(args: &Enter) -> anyhow::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    if let Some(pid) = args.net {
        let net = File::open(format!("/proc/{pid}/ns/net")).context("the pod is gone")?;
        setns(net, CloneFlags::CLONE_NEWNET).context("cannot enter the pod's network")?;
    }
    if let Some(cpu) = args.cpu {
        let mut set = CpuSet::new();
        set.set(cpu)?;
        sched_setaffinity(Pid::this(), &set).with_context(|| format!("cannot pin to CPU {cpu}"))?;
    }
    let error = std::process::Command::new(&args.command[0]).args(&args.command[1..]).exec();
    Err(error).with_context(|| format!("cannot run {}", args.command[0].display()))
}

/// Where a process runs.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Place {
    /// Process that holds the network namespace; none = ours.
    pub(crate) net: Option<u32>,
    /// The only CPU; none = any.
    pub(crate) cpu: Option<usize>,
}

impl Place {
    fn command(self, words: &[String]) -> anyhow::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("enter");
        if let Some(pid) = self.net {
            command.arg("--net").arg(pid.to_string());
        }
        if let Some(cpu) = self.cpu {
            command.arg("--cpu").arg(cpu.to_string());
        }
        command.arg("--").args(words).stdin(Stdio::null()).kill_on_drop(true);
        Ok(command)
    }

    /// Starts a command whose output goes to the end of `log`.
    pub(crate) fn start(self, words: &[String], log: &Path) -> anyhow::Result<Process> {
        let log = File::options().create(true).append(true).open(log)?;
        let mut command = self.command(words)?;
        command.stdout(log.try_clone()?).stderr(log);
        Ok(Process { child: command.spawn()? })
    }

    /// Starts a command whose lines are read.
    pub(crate) fn start_talking(self, words: &[String]) -> anyhow::Result<(Process, Talk)> {
        let mut child = self.command(words)?.stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("no standard output")?;
        Ok((Process { child }, Talk(BufReader::new(stdout).lines())))
    }

    /// Runs a command to its end and returns what it printed.
    pub(crate) async fn output(self, words: &[String]) -> anyhow::Result<String> {
        let ran = timeout(AT_ONCE, self.command(words)?.output()).await;
        let output = ran.with_context(|| format!("{} did not end", words.join(" ")))??;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{}: {}", words.join(" "), said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Memory of a process, in MiB.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Memory {
    /// Resident, file pages of the binary included.
    pub(crate) resident: f64,
    /// Resident and of no file: heap and stacks.
    pub(crate) own: f64,
    /// The largest that `resident` has been.
    pub(crate) peak: f64,
}

/// The lines that a process prints.
#[derive(Debug)]
pub(crate) struct Talk(Lines<BufReader<ChildStdout>>);

impl Talk {
    /// The next line.
    pub(crate) async fn line(&mut self, patience: Duration) -> anyhow::Result<String> {
        let line = timeout(patience, self.0.next_line()).await.context("no word in time")??;
        line.context("ended without a word")
    }
}

/// A running process; killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Its id; `enter` becomes the command, so this is the command's own.
    pub(crate) fn pid(&self) -> anyhow::Result<u32> {
        self.child.id().context("the process has ended")
    }

    /// Fails where it has ended.
    pub(crate) fn alive(&mut self, name: &str) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("{name} ended: {status}"),
            None => Ok(()),
        }
    }

    /// User and system CPU time so far, in seconds.
    pub(crate) fn cpu(&self) -> anyhow::Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()?))?;
        // The second field is the name in parentheses and may hold anything.
        let (_, rest) = stat.rsplit_once(')').context("/proc/PID/stat is not as expected")?;
        let ticks: u64 = rest.split_whitespace().skip(11).take(2).flat_map(str::parse::<u64>).sum();
        Ok(ticks as f64 / TICKS_PER_SECOND)
    }

    /// Peak of resident memory, in MiB.
    pub(crate) fn peak_memory(&self) -> anyhow::Result<f64> {
        Ok(self.memory()?.peak)
    }

    /// Memory, as the kernel counts it.
    pub(crate) fn memory(&self) -> anyhow::Result<Memory> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let mib = |field: &str| {
            let kib = status.lines().find_map(|line| line.strip_prefix(field));
            let kib = kib.and_then(|value| value.split_whitespace().next()?.parse::<f64>().ok());
            let kib = kib.with_context(|| format!("no {field} in /proc/PID/status"))?;
            anyhow::Ok(kib / 1024.0)
        };
        Ok(Memory { resident: mib("VmRSS:")?, own: mib("RssAnon:")?, peak: mib("VmHWM:")? })
    }

    /// Ends it and waits until it is gone.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("cannot end a process")
    }
}

/// This program with a subcommand.
pub(crate) fn own(words: &str) -> anyhow::Result<Vec<String>> {
    let exe = std::env::current_exe()?.to_string_lossy().into_owned();
    Ok(std::iter::once(exe).chain(words.split_whitespace().map(str::to_owned)).collect())
}

/// Where a program of that name is on PATH.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}
