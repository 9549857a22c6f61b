//! A mesh that `remora up` runs on this machine.
//!
//! Its pods are network namespaces. A connection is made by a thread that has entered the pod's, so
//! that it arrives at the pod's own loopback, and is used from outside afterwards.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use nix::{
    sched::{CloneFlags, setns},
    unistd::geteuid,
};
use remora_core::names::{SYSTEM_NAMESPACE, ports};
use tokio::net::TcpStream;

use super::{Member, Way};
use crate::up::{
    self,
    error::{Doing, Error},
    exec::{self, Entry},
    net,
    state::StateDir,
};

/// Patience with a connection, which goes nowhere but through this kernel.
const CONNECT: Duration = Duration::from_secs(2);
/// What the control plane of a local mesh is called; it is a process, not a pod.
const CONTROL_PLANE: &str = "control-plane";

/// A running mesh, whose namespaces this process may enter.
#[derive(Debug)]
pub(crate) struct Local {
    /// Its name.
    pub(crate) name: String,
    state: StateDir,
    /// First process of the stage.
    stage: u32,
}

impl Local {
    /// The mesh of this name, else the one `exec` would take; `None` where none runs and none is
    /// named.
    ///
    /// This process joins the mesh's users where it is not root, which it can do only as long as it
    /// has one thread.
    ///
    /// # Errors
    /// Where there is none of that name, or several and none is named, or it may not be entered.
    pub(crate) fn enter(name: Option<&str>) -> Result<Option<Self>, Error> {
        let running = StateDir::running();
        if running.is_empty() && name.is_none() {
            return Ok(None);
        }
        let named: Vec<_> =
            running.into_iter().map(|(name, dir)| (name.clone(), (name, dir))).collect();
        let (name, state) = exec::find(named, name.map(str::to_owned))?;
        let pid = state.path("stage.pid");
        let text = fs::read_to_string(&pid).doing(|| format!("read {}", pid.display()))?;
        let stage = text.trim().parse();
        let stage = stage.map_err(|_| Error::NotRunning { name: Some(name.clone()) })?;
        if !geteuid().is_root() {
            let users = File::open(format!("/proc/{stage}/ns/user"))
                .doing(|| "find the mesh's users".into())?;
            setns(users, CloneFlags::CLONE_NEWUSER).doing(|| "enter the mesh's users".into())?;
        }
        Ok(Some(Self { name, state, stage }))
    }

    /// The pods that have a proxy at the moment.
    pub(crate) fn proxies(&self) -> Vec<Member> {
        // Absent until the first pod is there.
        let text = fs::read(self.state.path("pods.json")).unwrap_or_default();
        let entries: Vec<Entry> = serde_json::from_slice(&text).unwrap_or_default();
        let meshed = entries.into_iter().filter(|entry| entry.meshed);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::PROXY_ADMIN));
        meshed
            .map(|entry| Member {
                namespace: entry.namespace,
                pod: entry.pod,
                // The anchor's number is valid inside the stage, whose /proc is seen by its root.
                way: Way::Network {
                    file: format!("/proc/{}/root/proc/{}/ns/net", self.stage, entry.anchor).into(),
                    address,
                },
            })
            .collect()
    }

    /// The one control plane.
    pub(crate) fn control_plane(&self) -> Member {
        let address = SocketAddr::from((up::net::NODE, ports::CONTROL_PLANE_ADMIN));
        Member {
            namespace: SYSTEM_NAMESPACE.to_owned(),
            pod: CONTROL_PLANE.to_owned(),
            way: Way::Network { file: format!("/proc/{}/ns/net", self.stage).into(), address },
        }
    }

    /// Log files of the mesh's own programs; those of the applications are not ours to read.
    pub(crate) fn logs(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.state.path("logs")).into_iter().flatten().flatten();
        let ours = |name: &str| name.ends_with(".proxy.log") || name == "control-plane.log";
        let mut found: Vec<PathBuf> = files
            .filter(|file| ours(&file.file_name().to_string_lossy()))
            .map(|file| file.path())
            .collect();
        found.sort();
        found
    }
}

/// Connects inside a network namespace.
///
/// # Errors
/// Says why not.
pub(super) async fn connect(file: PathBuf, address: SocketAddr) -> Result<TcpStream, String> {
    let dial = move || std::net::TcpStream::connect_timeout(&address, CONNECT);
    let dialled = net::inside_network(file, dial).await.map_err(|error| error.to_string())?;
    let adopt = |stream: std::net::TcpStream| {
        stream.set_nonblocking(true)?;
        TcpStream::from_std(stream)
    };
    dialled.and_then(adopt).map_err(|error| format!("{address}: {error}"))
}
