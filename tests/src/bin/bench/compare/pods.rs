//! Two pods joined by a veth pair, in a network of the measurement's own. Everything is gone with
//! the processes that hold it.

use std::{
    fs,
    io::Read,
    net::{IpAddr, Ipv4Addr},
    process::Stdio,
};

use anyhow::Context;
use clap::ValueEnum;
use nix::{
    sched::{CloneFlags, unshare},
    unistd::{getegid, geteuid},
};
use remora_proxy::redirect::{self, RedirectConfig};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::process::{Place, own};

/// Address of the Service that the client dials.
pub(crate) const SERVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));
/// Address of the client pod.
pub(crate) const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 0, 1));
/// Addresses of the server pod: three endpoints.
pub(crate) const SERVERS: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(10, 244, 1, 1)),
    IpAddr::V4(Ipv4Addr::new(10, 244, 1, 2)),
    IpAddr::V4(Ipv4Addr::new(10, 244, 1, 3)),
];
/// Where any outbound sidecar takes redirected connections.
pub(crate) const OUTBOUND_PORT: u16 = 15001;
/// Where any inbound sidecar takes redirected connections.
pub(crate) const INBOUND_PORT: u16 = 15006;
/// The control plane's port, on the server pod; not intercepted.
pub(crate) const CONTROL_PLANE_PORT: u16 = 8086;

/// Which pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Side {
    Client,
    Server,
}

/// Arguments of the hidden `intercept`.
#[derive(Debug, clap::Args)]
pub(crate) struct Intercept {
    side: Side,
    /// Take the rules away
    #[arg(long)]
    off: bool,
}

/// Leaves the host's network for an empty one; an ordinary user becomes root of a user namespace.
pub(crate) fn leave_host_network() -> anyhow::Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    let mut flags = CloneFlags::CLONE_NEWNET;
    if !uid.is_root() {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    unshare(flags).context("cannot make namespaces: run as root, or allow user namespaces")?;
    if !uid.is_root() {
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    }
    Ok(())
}

/// The hidden `pod`: a network namespace until standard input ends.
pub(crate) fn hold() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a pod's network")?;
    // Many connections in a short time: what a busy node is set to.
    for (name, value) in [
        ("ipv4/ip_local_port_range", "17000 65000"),
        ("ipv4/tcp_tw_reuse", "1"),
        ("core/somaxconn", "8192"),
    ] {
        fs::write(format!("/proc/sys/net/{name}"), value)
            .with_context(|| format!("cannot set {name}"))?;
    }
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// The hidden `intercept`: the rules of a meshed pod, which are the same for each pair.
pub(crate) fn intercept(args: &Intercept) -> anyhow::Result<()> {
    if args.off {
        return Ok(redirect::remove()?);
    }
    let mut config = RedirectConfig {
        outbound_port: OUTBOUND_PORT,
        inbound_port: INBOUND_PORT,
        ..RedirectConfig::default()
    };
    match args.side {
        // The sidecar runs as the same user as the load. What tells them apart is whom they dial:
        // the load the Service, the sidecar its pods.
        Side::Client => config.skip_subnets = vec!["10.244.0.0/16".parse()?],
        Side::Server => {
            config.skip_inbound =
                CONTROL_PLANE_PORT.to_string().parse().map_err(anyhow::Error::msg)?
        }
    }
    Ok(redirect::apply(&config)?)
}

/// Both pods.
#[derive(Debug)]
pub(crate) struct Pods {
    client: Child,
    server: Child,
}

impl Pods {
    /// Makes them.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let pods = Self { client: pod().await?, server: pod().await? };
        let (a, b) = (pods.net(Side::Client)?, pods.net(Side::Server)?);
        let here = Place::default();
        here.output(&words(&format!(
            "ip link add eth0 netns {a} type veth peer name eth0 netns {b}"
        )))
        .await?;
        for (side, addrs) in [(Side::Client, &[CLIENT][..]), (Side::Server, &SERVERS)] {
            pods.run(side, "ip link set lo up").await?;
            for addr in addrs {
                pods.run(side, &format!("ip addr add {addr}/16 dev eth0")).await?;
            }
            pods.run(side, "ip link set eth0 up").await?;
        }
        pods.run(Side::Client, &format!("ip route add {SERVICE} via {}", SERVERS[0])).await?;
        Ok(pods)
    }

    /// Turns connections to the sidecars, or no longer.
    pub(crate) async fn intercept(&self, on: bool) -> anyhow::Result<()> {
        for (side, word) in [(Side::Client, "client"), (Side::Server, "server")] {
            let off = if on { "" } else { "--off" };
            self.place(side, None)?.output(&own(&format!("intercept {word} {off}"))?).await?;
        }
        Ok(())
    }

    /// Where a process of that pod runs.
    pub(crate) fn place(&self, side: Side, cpu: Option<usize>) -> anyhow::Result<Place> {
        Ok(Place { net: Some(self.net(side)?), cpu })
    }

    fn net(&self, side: Side) -> anyhow::Result<u32> {
        let holder = match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        };
        holder.id().context("a pod has ended")
    }

    async fn run(&self, side: Side, command: &str) -> anyhow::Result<()> {
        self.place(side, None)?.output(&words(command)).await.map(drop)
    }
}

async fn pod() -> anyhow::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("pod").kill_on_drop(true);
    // Its standard input is a pipe from us, which ends when we do.
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let stdout = child.stdout.take().context("no standard output")?;
    let line = BufReader::new(stdout).lines().next_line().await?;
    line.context("cannot make a pod's network namespace")?;
    Ok(child)
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}
