//! A proxy as a process of its own, and what it takes of the machine.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use remora_proxy::config::Args;

use crate::{sidecar::try_get, wait::eventually};

/// A running proxy. Dropped, it is killed.
#[derive(Debug)]
pub struct Process {
    child: Child,
    admin: SocketAddr,
    entry: Option<SocketAddr>,
}

impl Process {
    /// Starts `program`, which takes `proxy` as its subcommand, with room for so many file descriptors.
    ///
    /// # Panics
    /// Where it cannot be started.
    #[must_use]
    pub fn launch(program: &str, args: &Args, descriptors: Option<u32>) -> Self {
        let mut command = match descriptors {
            None => Command::new(program),
            Some(most) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit -n {most}; exec \"$0\" \"$@\""), program]);
                shell
            }
        };
        command.arg("proxy").args(flags(args)).args(["--log", "error"]);
        let child = command.stdin(Stdio::null()).spawn();
        let child = child.unwrap_or_else(|error| panic!("{program}: {error}"));
        let entry = args.outbound_service.first().map(|service| service.listen);
        Self { child, admin: args.admin_listen, entry }
    }

    /// Waits until it is ready.
    pub async fn ready(&self) {
        eventually("a ready proxy", async || {
            matches!(try_get(self.admin, "/ready").await, Some((200, _))).then_some(())
        })
        .await;
    }

    /// Where the application dials the first of its Services.
    ///
    /// # Panics
    /// Where it has none.
    #[must_use]
    pub fn entry(&self) -> SocketAddr {
        self.entry.expect("a Service that it calls")
    }

    /// Resident memory, in bytes.
    ///
    /// # Panics
    /// Where it has ended.
    #[must_use]
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(self.proc("status")).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kibibytes.expect("a size") * 1024
    }

    /// Processor time so far, in hundredths of a second.
    ///
    /// # Panics
    /// Where it has ended.
    #[must_use]
    pub fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(self.proc("stat")).expect("its state");
        // The name, which may have anything in it, ends with the last parenthesis; state is the third.
        let (_, fields) = stat.rsplit_once(')').expect("a name");
        let fields = fields.split_whitespace().skip(11).take(2);
        fields.map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
    }

    /// File descriptors that are open.
    ///
    /// # Panics
    /// Where it has ended.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(self.proc("fd")).expect("its descriptors").count()
    }

    fn proc(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{file}", self.child.id()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command line of a sidecar with explicit listeners.
fn flags(args: &Args) -> Vec<String> {
    let list =
        |addrs: &[SocketAddr]| addrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let ips: Vec<String> = args.pod_ips.iter().map(ToString::to_string).collect();
    let mut flags: Vec<String> = [
        ("--control-plane", args.control_plane.clone()),
        ("--trust-bundle", args.trust_bundle.display().to_string()),
        ("--token-file", args.token_file.display().to_string()),
        ("--pod-namespace", args.pod_namespace.clone()),
        ("--pod-name", args.pod_name.clone()),
        ("--pod-ips", ips.join(",")),
        ("--outbound-listen", list(&args.outbound_listen)),
        ("--inbound-listen", list(&args.inbound_listen)),
        ("--admin-listen", args.admin_listen.to_string()),
        ("--workers", args.workers.unwrap_or(1).to_string()),
    ]
    .into_iter()
    .flat_map(|(flag, value)| [flag.to_owned(), value])
    .collect();
    if let Some(most) = args.max_connections {
        flags.extend(["--max-connections".to_owned(), most.to_string()]);
    }
    for service in &args.outbound_service {
        flags.push("--outbound-service".to_owned());
        flags.push(format!("{}={}", service.listen, service.authority));
    }
    for forward in &args.inbound_forward {
        flags.push("--inbound-forward".to_owned());
        flags.push(format!("{}={}", forward.listen, forward.target));
    }
    flags
}
