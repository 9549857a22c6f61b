//! Entering isolation. A stage is a set of namespaces in which everything of one `up` or `demo`
//! lives, so that nothing of the host's network is touched and nothing outlives it:
//!
//! ```text
//! remora up            outer: owns the state directory, the terminal's signals, published ports
//! └ stage-enter        unshares (user,) net, mount, pid
//!   └ stage-init       process 1: mounts /proc, reaps orphans
//!     └ up-stage …     the program itself
//! ```
//!
//! Standard input of the inner ones is a pipe, the *lifeline*: whatever ends the outer process
//! closes it. A line on it asks for a graceful stop; its end means stop at once. The parent-death
//! signal stands behind it for an inner process that hangs. When process 1 ends, the kernel ends
//! all others, and with the last of them the network goes.

use std::{
    ffi::OsString,
    fs,
    io::Read,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Command, ExitCode, ExitStatus, Stdio},
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        signal::{SigSet, Signal},
        wait::{WaitStatus, wait},
    },
    unistd::{getegid, geteuid},
};
use tokio::{
    io::AsyncWriteExt,
    signal::unix::{SignalKind, signal},
};

use super::{
    error::{Doing, Error},
    state::{StateDir, write_atomic},
};

/// Arguments of the hidden `stage-enter`.
#[derive(Debug, clap::Args)]
pub struct EnterArgs {
    #[arg(long)]
    state: PathBuf,
    #[arg(last = true, required = true)]
    program: Vec<OsString>,
}

/// Arguments of the hidden `stage-init`.
#[derive(Debug, clap::Args)]
pub struct InitArgs {
    #[arg(last = true, required = true)]
    program: Vec<OsString>,
}

/// Exit status of a stage that could not be entered because the machine forbids it; the demo
/// falls back on it.
pub const FORBIDDEN: u8 = 77;

/// Runs `remora PROGRAM…` in a stage of its own and returns its exit status. The first Ctrl-C
/// (or SIGTERM) asks it to stop, the second ends it at once.
///
/// # Errors
/// Where it cannot be started; that the machine forbids namespaces is exit status [`FORBIDDEN`].
pub async fn launch(state: &StateDir, program: &[OsString]) -> Result<u8, Error> {
    let mut interrupt = signal(SignalKind::interrupt()).doing(|| "watch for Ctrl-C".into())?;
    let mut terminate = signal(SignalKind::terminate()).doing(|| "watch for SIGTERM".into())?;
    let mut child = tokio::process::Command::new("/proc/self/exe")
        .arg("stage-enter")
        .arg("--state")
        .arg(state.root())
        .arg("--")
        .args(program)
        .stdin(Stdio::piped())
        // Ctrl-C reaches the outer process alone; inside, the order of ends is ours.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .doing(|| "start the stage".into())?;
    let mut lifeline = child.stdin.take();
    let mut asked = false;
    loop {
        tokio::select! {
            status = child.wait() => return Ok(code(status.doing(|| "wait for the stage".into())?)),
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        match &mut lifeline {
            // Held open: its end would mean "at once". A stage that does not read is ending.
            Some(line) if !asked => drop(line.write_all(b"stop\n").await),
            Some(_) => lifeline = None,
            None => child.kill().await.doing(|| "end the stage".into())?,
        }
        asked = true;
    }
}

/// What the lifeline says. Runs inside the stage, on standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifeline {
    /// Stop gracefully.
    Stop,
    /// The outer process is gone, or wants an end at once.
    Cut,
}

/// Passes on what the lifeline says, once for each event, ending with [`Lifeline::Cut`].
#[must_use]
pub fn lifeline() -> tokio::sync::mpsc::Receiver<Lifeline> {
    let (tx, rx) = tokio::sync::mpsc::channel(4);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = [0; 64];
        loop {
            let event = match stdin.read(&mut buffer) {
                Ok(0) | Err(_) => Lifeline::Cut,
                Ok(_) => Lifeline::Stop,
            };
            if tx.blocking_send(event).is_err() || event == Lifeline::Cut {
                return;
            }
        }
    });
    rx
}

/// `stage-enter`: unshares, then starts process 1 and waits for it.
///
/// # Errors
/// Where process 1 cannot be started.
pub fn enter(args: EnterArgs) -> Result<ExitCode, Error> {
    let (uid, gid) = (geteuid(), getegid());
    let mut flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS;
    if !uid.is_root() {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    if let Err(errno) = unshare(flags) {
        eprintln!("remora: {}", forbidden(uid.is_root(), errno));
        return Ok(ExitCode::from(FORBIDDEN));
    }
    if !uid.is_root() {
        let map = |file: &str, text: String| {
            fs::write(file, text).doing(|| format!("write {file} (one user, mapped to root)"))
        };
        map("/proc/self/setgroups", "deny".into())?;
        map("/proc/self/uid_map", format!("0 {uid} 1"))?;
        map("/proc/self/gid_map", format!("0 {gid} 1"))?;
    }
    die_with_parent()?;
    let mut init = Command::new("/proc/self/exe")
        .arg("stage-init")
        .arg("--")
        .args(&args.program)
        .stdin(Stdio::inherit())
        .spawn()
        .doing(|| "start process 1 of the stage".into())?;
    // For `remora exec`, which comes from outside and needs the number that is valid there.
    let pid_file = args.state.join("stage.pid");
    write_atomic(&pid_file, init.id().to_string().as_bytes())
        .doing(|| format!("write {}", pid_file.display()))?;
    let status = init.wait().doing(|| "wait for the stage".into())?;
    Ok(ExitCode::from(code(status)))
}

/// `stage-init`: process 1. Mounts its own /proc, starts the program, reaps whoever is orphaned,
/// and ends with the program.
///
/// # Errors
/// Where the mounts or the program's start fail.
pub fn init(args: InitArgs) -> Result<ExitCode, Error> {
    die_with_parent()?;
    let none: Option<&str> = None;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).doing(|| "make the stage's mounts private".into())?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if let Err(errno) = mount(Some("proc"), "/proc", Some("proc"), flags, none) {
        eprintln!(
            "remora: this machine does not allow a /proc of its own ({errno}); inside a container, \
             run it with an unmasked /proc (docker run --security-opt systempaths=unconfined)"
        );
        return Ok(ExitCode::from(FORBIDDEN));
    }
    let program = Command::new("/proc/self/exe")
        .args(&args.program)
        .stdin(Stdio::inherit())
        .spawn()
        .doing(|| "start the stage's program".into())?;
    let program = i32::try_from(program.id()).unwrap_or(i32::MAX);
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, status)) if pid.as_raw() == program => {
                return Ok(ExitCode::from(u8::try_from(status).unwrap_or(1)));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == program => {
                eprintln!("remora: the stage was ended by {signal}");
                return Ok(ExitCode::from(by_signal(signal as i32)));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).doing(|| "wait for the stage's program".into()),
        }
    }
}

/// The kernel kills this process when its parent ends.
///
/// # Errors
/// Never on Linux.
pub fn die_with_parent() -> Result<(), Error> {
    prctl::set_pdeathsig(Signal::SIGKILL).doing(|| "set the parent-death signal".into())
}

/// A fresh signal mask: this process and its children are interrupted as anybody else.
///
/// # Errors
/// Never on Linux.
pub fn unblock_signals() -> Result<(), Error> {
    SigSet::all().thread_unblock().doing(|| "unblock signals".into())
}

/// The exit status that shells give to a process: its own, or 128 + the signal that ended it.
#[must_use]
pub fn code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(1),
        (None, Some(signal)) => by_signal(signal),
        (None, None) => 1,
    }
}

fn by_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// What is missing, as far as the machine tells.
fn forbidden(root: bool, errno: Errno) -> Error {
    if root {
        return Error::Namespaces {
            what: "new network, process and mount namespaces to this root user",
            errno,
            mend: "it lacks CAP_SYS_ADMIN: inside a container, run it with --privileged, or as an \
                   ordinary user where user namespaces are allowed"
                .into(),
        };
    }
    let reads = |name: &str, value: &str| {
        fs::read_to_string(format!("/proc/sys/{name}")).is_ok_and(|text| text.trim() == value)
    };
    let mend = if reads("kernel/unprivileged_userns_clone", "0") {
        "allow it with `sysctl -w kernel.unprivileged_userns_clone=1`, or run as root"
    } else if reads("user/max_user_namespaces", "0") {
        "allow it with `sysctl -w user.max_user_namespaces=15000`, or run as root"
    } else if reads("kernel/apparmor_restrict_unprivileged_userns", "1") {
        "allow it with `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`, or run as root"
    } else {
        "a container's seccomp profile may forbid it (docker run --security-opt \
         seccomp=unconfined); or run as root"
    };
    Error::Namespaces { what: "user namespaces to ordinary users", errno, mend: mend.into() }
}
