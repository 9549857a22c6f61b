//! Processes that hold or enter a pod's namespaces. Each is this program re-executed: namespaces
//! are entered by a process with one thread, which then becomes the command.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{Read, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    unistd::{Gid, Uid, setgid, setgroups, sethostname, setuid},
};

use super::{
    error::{Doing, Error},
    stage::unblock_signals,
};

/// Arguments of the hidden `pod-anchor`.
#[derive(Debug, clap::Args)]
pub struct AnchorArgs {
    #[arg(long)]
    hostname: String,
    /// Directory whose files are mounted over those of the same name in /etc.
    #[arg(long)]
    etc: PathBuf,
}

/// Arguments of the hidden `pod-exec`.
#[derive(Debug, clap::Args)]
pub struct ExecArgs {
    /// Process whose namespaces to enter.
    #[arg(long)]
    anchor: u32,
    #[arg(long)]
    workdir: PathBuf,
    /// User and group to become.
    #[arg(long)]
    uid: Option<u32>,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// What the anchor writes once its namespaces are there.
pub const ANCHORED: &[u8] = b"anchored\n";

/// `pod-anchor`: makes a pod's network, mount and host name namespaces, mounts its files, and
/// holds them until its standard input ends.
///
/// # Errors
/// Where the kernel refuses a step.
pub fn anchor(args: &AnchorArgs) -> Result<ExitCode, Error> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)
        .doing(|| "make the pod's namespaces".into())?;
    sethostname(&args.hostname).doing(|| format!("set the host name {}", args.hostname))?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .doing(|| "make the pod's mounts private".into())?;
    let files = fs::read_dir(&args.etc).doing(|| format!("read {}", args.etc.display()))?.flatten();
    for file in files {
        let target = Path::new("/etc").join(file.file_name());
        bind(&file.path(), &target);
    }
    // A name service cache on the host would answer with the host's view.
    bind(Path::new("/dev/null"), Path::new("/run/nscd/socket"));
    let mut out = std::io::stdout();
    out.write_all(ANCHORED).and_then(|()| out.flush()).doing(|| "report the anchor".into())?;
    let mut end = [0; 1];
    while std::io::stdin().read(&mut end).is_ok_and(|n| n > 0) {}
    Ok(ExitCode::SUCCESS)
}

/// A target that the host does not have cannot be mounted over; programs then see its absence,
/// as on the host.
fn bind(file: &Path, target: &Path) {
    let none: Option<&str> = None;
    if !target.exists() {
        if target.ends_with("resolv.conf") {
            eprintln!("{} does not exist: names of Services will not resolve", target.display());
        }
        return;
    }
    if let Err(errno) = mount(Some(file), target, none, MsFlags::MS_BIND, none) {
        eprintln!("cannot mount over {}: {errno}", target.display());
    }
}

/// `pod-exec`: enters a pod and becomes the command. Exit status 127 where there is no such
/// command, 126 where it cannot be run.
///
/// # Errors
/// Where the pod cannot be entered.
pub fn exec(args: &ExecArgs) -> Result<ExitCode, Error> {
    unblock_signals()?;
    enter_pod(args.anchor)?;
    if let Some(id) = args.uid {
        setgroups(&[]).doing(|| "drop groups".into())?;
        setgid(Gid::from_raw(id)).doing(|| format!("become group {id}"))?;
        setuid(Uid::from_raw(id)).doing(|| format!("become user {id}"))?;
    }
    become_command(&args.workdir, &args.command)
}

/// Enters the network, mount and host name namespaces of a process.
///
/// # Errors
/// Where it is gone or may not be entered.
pub fn enter_pod(anchor: u32) -> Result<(), Error> {
    let open = |kind: &str| {
        File::open(format!("/proc/{anchor}/ns/{kind}")).doing(|| format!("find the pod's {kind}"))
    };
    let (net, uts, mnt) = (open("net")?, open("uts")?, open("mnt")?);
    for (namespace, flag) in [
        (net, CloneFlags::CLONE_NEWNET),
        (uts, CloneFlags::CLONE_NEWUTS),
        (mnt, CloneFlags::CLONE_NEWNS),
    ] {
        setns(namespace, flag).doing(|| "enter the pod".into())?;
    }
    Ok(())
}

/// Changes the directory and becomes the command; returns only where that fails.
///
/// # Errors
/// Where the working directory cannot be entered.
pub fn become_command(workdir: &Path, command: &[OsString]) -> Result<ExitCode, Error> {
    std::env::set_current_dir(workdir)
        .doing(|| format!("enter the working directory {}", workdir.display()))?;
    let Some((program, args)) = command.split_first() else { return Ok(ExitCode::SUCCESS) };
    let error = Command::new(program).args(args).exec();
    eprintln!("remora: cannot run {}: {error}", program.to_string_lossy());
    let missing = error.kind() == std::io::ErrorKind::NotFound;
    Ok(ExitCode::from(if missing { 127 } else { 126 }))
}
