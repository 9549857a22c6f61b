//! `remora exec`: runs a command inside a pod of a running mesh, with kubectl's habits.
//!
//! Three processes, because a process id namespace is entered by children only and the pod's own
//! process ids are valid inside alone: this one finds the mesh and enters its user and process
//! id namespaces; `stage-exec` enters its mount namespace, where /proc shows the pods; there it
//! enters the pod and becomes the command. The terminal is inherited all the way.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    path::PathBuf,
    process::{Command, ExitCode},
};

use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{SigSet, Signal},
    unistd::geteuid,
};
use serde::{Deserialize, Serialize};

use super::{
    enter::{become_command, enter_pod},
    error::{Doing, Error},
    stage::{code, die_with_parent, unblock_signals},
    state::StateDir,
};

/// Arguments of `remora exec`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Pod to enter.
    pod: String,
    /// Its namespace.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Its container; by default the first.
    #[arg(short, long)]
    container: Option<String>,
    /// Which mesh; without it the one named default, else the only one.
    #[arg(long)]
    name: Option<String>,
    /// Accepted for kubectl's sake: standard input is always passed on.
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Accepted for kubectl's sake: a terminal is always passed on.
    #[arg(short = 't', long)]
    tty: bool,
    /// Command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Arguments of the hidden `stage-exec`.
#[derive(Debug, clap::Args)]
pub struct StageExecArgs {
    #[arg(long)]
    stage: u32,
    #[arg(long)]
    anchor: u32,
    #[arg(long)]
    workdir: PathBuf,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// What `pods.json` says of a pod: all that is needed to enter it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Process that holds the pod's namespaces, by its number inside the stage.
    pub anchor: u32,
    /// Whether it has a sidecar.
    #[serde(default)]
    pub meshed: bool,
    /// Its containers, in the order of the manifest.
    pub containers: Vec<ContainerEntry>,
}

/// A container, as a command run in it sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerEntry {
    /// Name of the container.
    pub name: String,
    /// Its working directory.
    pub workdir: PathBuf,
    /// Its whole environment.
    pub env: BTreeMap<String, String>,
}

/// Runs `remora exec`; the exit status is the command's.
///
/// # Errors
/// Where there is no such mesh, pod or container, or it cannot be entered.
pub fn run(args: Args) -> Result<ExitCode, Error> {
    let state = find(StateDir::running(), args.name)?;
    let (entry, container) = choose(&state, &args.namespace, &args.pod, args.container)?;
    let read = |name: &str| {
        fs::read_to_string(state.path(name))
            .doing(|| format!("read {}", state.path(name).display()))
    };
    let stage: u32 =
        read("stage.pid")?.trim().parse().map_err(|_| Error::NotRunning { name: None })?;
    let open = |kind: &str| {
        File::open(format!("/proc/{stage}/ns/{kind}")).doing(|| format!("find the stage's {kind}"))
    };
    let pid = open("pid")?;
    if !geteuid().is_root() {
        setns(open("user")?, CloneFlags::CLONE_NEWUSER)
            .doing(|| "enter the stage's users".into())?;
    }
    setns(pid, CloneFlags::CLONE_NEWPID).doing(|| "enter the stage's processes".into())?;
    // The terminal's signals go to the command as well; this process reports how it ended.
    SigSet::from_iter([Signal::SIGINT, Signal::SIGQUIT])
        .thread_block()
        .doing(|| "leave signals to the command".into())?;
    let mut env = container.env;
    if let Ok(term) = std::env::var("TERM") {
        env.entry("TERM".into()).or_insert(term);
    }
    let status = Command::new("/proc/self/exe")
        .arg("stage-exec")
        .args(["--stage", &stage.to_string(), "--anchor", &entry.anchor.to_string()])
        .arg("--workdir")
        .arg(&container.workdir)
        .arg("--")
        .args(&args.command)
        .env_clear()
        .envs(env)
        .status()
        .doing(|| "run the command".into())?;
    Ok(ExitCode::from(code(status)))
}

/// `stage-exec`: the part that runs with a process id inside the stage.
///
/// # Errors
/// Where the pod cannot be entered.
pub fn stage_exec(args: StageExecArgs) -> Result<ExitCode, Error> {
    die_with_parent()?;
    unblock_signals()?;
    let mounts = File::open(format!("/proc/{}/ns/mnt", args.stage))
        .doing(|| "find the stage's mounts".into())?;
    setns(mounts, CloneFlags::CLONE_NEWNS).doing(|| "enter the stage's mounts".into())?;
    enter_pod(args.anchor)?;
    become_command(&args.workdir, &args.command)
}

/// The mesh that is meant: the one named, else the one that `up` calls by its default name, else
/// the only one.
pub(crate) fn find<T>(mut running: Vec<(String, T)>, name: Option<String>) -> Result<T, Error> {
    let wanted = name.as_deref().unwrap_or(super::DEFAULT_NAME);
    if let Some(at) = running.iter().position(|(known, _)| known == wanted) {
        return Ok(running.swap_remove(at).1);
    }
    if name.is_some() || running.is_empty() {
        return Err(Error::NotRunning { name });
    }
    if running.len() > 1 {
        return Err(Error::Several(running.into_iter().map(|(name, _)| name).collect()));
    }
    Ok(running.swap_remove(0).1)
}

fn choose(
    state: &StateDir,
    namespace: &str,
    pod: &str,
    container: Option<String>,
) -> Result<(Entry, ContainerEntry), Error> {
    // Absent until the first pod is there.
    let text = fs::read(state.path("pods.json")).unwrap_or_default();
    let entries: Vec<Entry> = serde_json::from_slice(&text).unwrap_or_default();
    let known = entries.iter().map(|e| format!("{}/{}", e.namespace, e.pod)).collect();
    let entry = entries.into_iter().find(|e| e.namespace == namespace && e.pod == pod);
    let Some(entry) = entry else {
        return Err(Error::NoPod { namespace: namespace.into(), pod: pod.into(), known });
    };
    let known = entry.containers.iter().map(|c| c.name.clone()).collect();
    let chosen = entry.containers.iter().find(|c| container.as_ref().is_none_or(|n| *n == c.name));
    match (chosen, container) {
        (Some(chosen), _) => Ok((entry.clone(), chosen.clone())),
        (None, container) => Err(Error::NoContainer {
            pod: pod.into(),
            container: container.unwrap_or_default(),
            known,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mesh_that_is_meant_is_the_named_the_default_or_the_only_one() {
        let running = |names: &[&str]| -> Vec<(String, String)> {
            names.iter().map(|name| ((*name).to_owned(), (*name).to_owned())).collect()
        };
        let find = |names: &[&str], name: Option<&str>| {
            find(running(names), name.map(str::to_owned)).map_err(|error| error.to_string())
        };
        assert_eq!(find(&["default", "demo"], None).as_deref(), Ok("default"));
        assert_eq!(find(&["default", "demo"], Some("demo")).as_deref(), Ok("demo"));
        assert_eq!(find(&["demo"], None).as_deref(), Ok("demo"));
        let several = find(&["a", "demo"], None).unwrap_err();
        assert_eq!(several, "several meshes are running: a, demo; choose one with --name");
        assert!(find(&[], None).unwrap_err().starts_with("no mesh is running;"));
        assert!(find(&["a"], Some("b")).unwrap_err().contains("under the name \"b\""));
    }
}
