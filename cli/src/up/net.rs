//! Links, addresses and routes of the stage. The stage's own network namespace is the node. All
//! is routed, no bridge: a pod has one address and a default route by the node, the node has a
//! route to each pod, so that connection tracking on the node sees both directions.

use std::{fs, fs::File, net::Ipv4Addr, path::PathBuf};

use futures_util::TryStreamExt;
use nix::sched::{CloneFlags, setns};
use rtnetlink::{
    Handle, LinkUnspec, LinkVeth, RouteMessageBuilder, packet_route::route::RouteScope,
};

use super::error::{Doing, Error};

/// Address of the node: the default gateway of every pod, DNS and the control plane.
pub const NODE: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
/// First 16 bits of every pod's address.
const PODS: [u8; 2] = [10, 244];
/// Last pod address is below this offset into the pods' /16.
const LAST_POD: u16 = u16::MAX - 1;

/// Hands out pod addresses, each as late after its last use as possible.
#[derive(Debug, Default)]
pub struct Addresses {
    last: u16,
    used: std::collections::BTreeSet<u16>,
}

impl Addresses {
    /// The next free address; `None` where 65,000 pods are running.
    pub fn take(&mut self) -> Option<Ipv4Addr> {
        for _ in 0..LAST_POD {
            // .0.0 is the network and .0.1 the node.
            self.last = if self.last < 2 || self.last >= LAST_POD { 2 } else { self.last + 1 };
            if self.used.insert(self.last) {
                let [high, low] = self.last.to_be_bytes();
                return Some(Ipv4Addr::new(PODS[0], PODS[1], high, low));
            }
        }
        None
    }

    /// Makes an address free again.
    pub fn give_back(&mut self, address: Ipv4Addr) {
        let [_, _, high, low] = address.octets();
        self.used.remove(&u16::from_be_bytes([high, low]));
    }
}

/// Makes the stage's namespace the node: loopback up, the node's address, forwarding on.
///
/// # Errors
/// Where the kernel refuses a step.
pub async fn init_node() -> Result<(), Error> {
    let forward = "/proc/sys/net/ipv4/ip_forward";
    fs::write(forward, "1").doing(|| format!("write {forward}"))?;
    let net = connect()?;
    let lo = index(&net, "lo").await?;
    address(&net, lo, NODE).await?;
    up(&net, lo).await
}

/// Gives the network namespace of `anchor` its link to the node.
///
/// # Errors
/// Where the kernel refuses a step.
pub async fn attach(anchor: u32, pod: Ipv4Addr) -> Result<(), Error> {
    let [_, _, high, low] = pod.octets();
    let host_side = format!("pod{high}-{low}");
    let (node_pid, peer) = (std::process::id(), host_side.clone());
    inside(anchor, move || block_on(configure(pod, node_pid, peer))).await??;
    let net = connect()?;
    let link = index(&net, &host_side).await?;
    up(&net, link).await?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(pod, 32)
        .output_interface(link)
        .pref_source(NODE)
        .scope(RouteScope::Link)
        .build();
    let added = net.route().add(route).execute().await;
    added.map_err(|e| failed(format!("add a route to {pod}"), &e))
}

/// Runs blocking work on a thread inside the network namespace of a process.
///
/// # Errors
/// Where the namespace cannot be entered.
pub async fn inside<T, F>(anchor: u32, work: F) -> Result<T, Error>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    inside_network(format!("/proc/{anchor}/ns/net").into(), work).await
}

/// Runs blocking work on a thread inside the network namespace that this file stands for.
///
/// # Errors
/// Where the namespace cannot be entered.
pub async fn inside_network<T, F>(network: PathBuf, work: F) -> Result<T, Error>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let (tx, rx) = tokio::sync::oneshot::channel();
    // A thread of its own, never one of a pool: it ends in the namespace it has entered.
    std::thread::spawn(move || {
        let entered = File::open(network)
            .and_then(|ns| setns(ns, CloneFlags::CLONE_NEWNET).map_err(Into::into));
        // A receiver that is gone does not want the result.
        let _ = tx.send(entered.map(|()| work()));
    });
    let gone = || std::io::Error::other("the thread inside the pod ended");
    rx.await.unwrap_or_else(|_| Err(gone())).doing(|| "enter the pod's network".into())
}

/// Runs in the pod's namespace: a veth pair whose other end goes to the node, and the routes.
async fn configure(pod: Ipv4Addr, node_pid: u32, host_side: String) -> Result<(), Error> {
    let net = connect()?;
    let lo = index(&net, "lo").await?;
    up(&net, lo).await?;
    let made = net.link().add(LinkVeth::new("eth0", &host_side).build()).execute().await;
    made.map_err(|e| failed("make the pod's veth pair".into(), &e))?;
    let peer = index(&net, &host_side).await?;
    let to_node = LinkUnspec::new_with_index(peer).setns_by_pid(node_pid).build();
    let moved = net.link().set(to_node).execute().await;
    moved.map_err(|e| failed("hand the pod's link to the node".into(), &e))?;
    let eth0 = index(&net, "eth0").await?;
    address(&net, eth0, pod).await?;
    up(&net, eth0).await?;
    let node = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(NODE, 32)
        .output_interface(eth0)
        .scope(RouteScope::Link)
        .build();
    let default =
        RouteMessageBuilder::<Ipv4Addr>::new().gateway(NODE).output_interface(eth0).build();
    for route in [node, default] {
        let added = net.route().add(route).execute().await;
        added.map_err(|e| failed(format!("add the routes of {pod}"), &e))?;
    }
    Ok(())
}

fn block_on<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .doing(|| "start a runtime".into())?
        .block_on(work)
}

/// A netlink connection of the calling thread's network namespace.
fn connect() -> Result<Handle, Error> {
    let (connection, handle, _) =
        rtnetlink::new_connection().doing(|| "open a netlink socket".into())?;
    // Ends when the last handle is dropped.
    tokio::spawn(connection);
    Ok(handle)
}

async fn index(net: &Handle, name: &str) -> Result<u32, Error> {
    let mut links = net.link().get().match_name(name).execute();
    let link = links.try_next().await.map_err(|e| failed(format!("find the link {name}"), &e))?;
    link.map(|link| link.header.index).ok_or_else(|| Error::Network {
        what: format!("find the link {name}"),
        problem: "it is not there".into(),
    })
}

async fn up(net: &Handle, link: u32) -> Result<(), Error> {
    let set = net.link().set(LinkUnspec::new_with_index(link).up().build()).execute().await;
    set.map_err(|e| failed(format!("bring link {link} up"), &e))
}

async fn address(net: &Handle, link: u32, address: Ipv4Addr) -> Result<(), Error> {
    let added = net.address().add(link, address.into(), 32).execute().await;
    added.map_err(|e| failed(format!("add the address {address}"), &e))
}

fn failed(what: String, error: &rtnetlink::Error) -> Error {
    Error::Network { what, problem: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_reused_as_late_as_possible() {
        let mut addresses = Addresses::default();
        let first = addresses.take().unwrap();
        assert_eq!(first, Ipv4Addr::new(10, 244, 0, 2));
        addresses.give_back(first);
        assert_eq!(addresses.take(), Some(Ipv4Addr::new(10, 244, 0, 3)));
        let rest = std::iter::from_fn(|| addresses.take()).count();
        assert_eq!(rest, usize::from(LAST_POD) - 2);
        assert!(!addresses.used.contains(&0) && !addresses.used.contains(&1));
    }
}
