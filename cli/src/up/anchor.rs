//! The process that holds a pod's namespaces, and how others get in.

use std::{fs, io, net::Ipv4Addr, path::Path, process::Stdio, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use remora_core::names::CLUSTER_DOMAIN;
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
    time::timeout,
};

use super::{
    enter::ANCHORED,
    error::{Doing, Error},
    net::{self, NODE},
};

/// An anchor makes namespaces and a few mounts; longer than this it hangs.
const START: Duration = Duration::from_secs(10);
/// Longest host name (Linux `HOST_NAME_MAX`, and a DNS label).
const HOST_NAME: usize = 63;

/// A pod's namespaces; dropped, its processes end and the namespaces go.
#[derive(Debug)]
pub struct Anchor {
    child: Child,
    pid: u32,
}

impl Anchor {
    /// Makes the namespaces of a pod, with its files in /etc and its link to the node.
    ///
    /// # Errors
    /// Where a step fails; what was made is gone then.
    pub async fn start(
        files: &Path,
        namespace: &str,
        name: &str,
        address: Ipv4Addr,
    ) -> Result<Self, Error> {
        let hostname: String = name.chars().take(HOST_NAME).collect();
        let etc = files.join("etc");
        write_etc(&etc, namespace, &hostname, address)
            .doing(|| format!("write {}", etc.display()))?;
        let mut child = Command::new("/proc/self/exe")
            .arg("pod-anchor")
            .args(["--hostname", &hostname])
            .arg("--etc")
            .arg(&etc)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .doing(|| "start the pod's anchor".into())?;
        let mut answer = [0; ANCHORED.len()];
        let read = async {
            match child.stdout.as_mut() {
                Some(out) => out.read_exact(&mut answer).await.map(|_| ()),
                None => Err(io::Error::from(io::ErrorKind::BrokenPipe)),
            }
        };
        timeout(START, read)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .doing(|| "make the pod's namespaces".into())?;
        let pid = child.id().unwrap_or_default();
        let anchor = Self { child, pid };
        net::attach(pid, address).await?;
        Ok(anchor)
    }

    /// Its process id inside the stage.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Ends every process in the pod's network namespace, the anchor last.
    pub async fn end(mut self) {
        for pid in inhabitants(self.pid) {
            // Gone already is as good.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = self.child.kill().await;
    }
}

/// A command that enters the pod of `anchor` and becomes `words`.
#[must_use]
pub fn command_in(anchor: u32, workdir: &Path, uid: Option<u32>, words: &[String]) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg("pod-exec").args(["--anchor", &anchor.to_string()]);
    command.arg("--workdir").arg(workdir);
    if let Some(uid) = uid {
        command.args(["--uid", &uid.to_string()]);
    }
    command.arg("--").args(words).stdin(Stdio::null());
    command
}

/// Processes that share the anchor's network namespace, itself not counted.
fn inhabitants(anchor: u32) -> Vec<i32> {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let Some(ours) = namespace(&anchor.to_string()) else { return Vec::new() };
    let names = fs::read_dir("/proc").into_iter().flatten().flatten();
    names
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|b| b.is_ascii_digit()) && *name != anchor.to_string())
        .filter(|name| namespace(name).is_some_and(|theirs| theirs == ours))
        .filter_map(|name| name.parse().ok())
        .filter(|pid| *pid > 1)
        .collect()
}

fn write_etc(etc: &Path, namespace: &str, hostname: &str, address: Ipv4Addr) -> io::Result<()> {
    fs::create_dir_all(etc)?;
    let resolv = format!(
        "nameserver {NODE}\n\
         search {namespace}.svc.{CLUSTER_DOMAIN} svc.{CLUSTER_DOMAIN} {CLUSTER_DOMAIN}\n\
         options ndots:5\n"
    );
    fs::write(etc.join("resolv.conf"), resolv)?;
    let hosts = format!("127.0.0.1 localhost\n::1 localhost\n{address} {hostname}\n");
    fs::write(etc.join("hosts"), hosts)?;
    fs::write(etc.join("hostname"), format!("{hostname}\n"))?;
    // The host's other sources of names (a resolver daemon on a local socket) know its own
    // network, and would answer before ours is asked.
    let switch = fs::read_to_string("/etc/nsswitch.conf").unwrap_or_default();
    let switch: String = switch
        .lines()
        .filter(|line| !line.trim_start().starts_with("hosts:"))
        .chain(["hosts: files dns"])
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(etc.join("nsswitch.conf"), switch)
}
