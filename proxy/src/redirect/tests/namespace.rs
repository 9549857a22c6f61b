//! A node and its pods as network namespaces, for tests.
//!
//! A test re-executes itself under `unshare` (no privilege needed where user namespaces are
//! allowed); in there the test's own threads are in the node's namespace and every [`Pod`] is a
//! thread in one of its own.

use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
    process::{Command, Stdio},
    sync::mpsc::{SyncSender, sync_channel},
    thread,
};

use nix::sched::{CloneFlags, unshare};
use rtnetlink::{
    Handle, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{address::AddressHeaderFlags, route::RouteScope},
};

/// The node's address.
pub(in crate::redirect) const NODE: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
/// The node's address in IPv6.
pub(in crate::redirect) const NODE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);

pub(super) const INSIDE: &str = "REMORA_TEST_INSIDE_NAMESPACE";

/// Runs `body` in new namespaces made with these options of `unshare`, or says why not.
pub(in crate::redirect) fn inside(options: &[&str], test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    inside_as("1", options, test);
}

/// Runs a test once more, in new namespaces, where [`INSIDE`] is then this word.
pub(super) fn inside_as(word: &str, options: &[&str], test: &str) {
    let probe = Command::new("unshare").args(options).arg("true").stderr(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) {
        println!("skipped: this machine forbids namespaces (unshare {options:?} fails)");
        return;
    }
    let lock = tempfile::NamedTempFile::new().unwrap();
    let status = Command::new("unshare")
        .args(options)
        .arg("--")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, word)
        // Where iptables-legacy waits for others of its kind: these namespaces have no others.
        .env("XTABLES_LOCKFILE", lock.path())
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed in its namespaces ({word}); see its output above");
}

/// A pod: a network namespace that is connected to the node's.
pub(in crate::redirect) struct Pod {
    jobs: SyncSender<Box<dyn FnOnce() + Send>>,
    /// Its address; the last byte is its number.
    pub(in crate::redirect) ip: Ipv4Addr,
    /// Its address in IPv6, with the same number.
    pub(in crate::redirect) ip_v6: Ipv6Addr,
}

impl Pod {
    /// Makes a pod with this number (2 or more) and connects it; call on the node's thread.
    pub(in crate::redirect) fn new(number: u8) -> Self {
        if number == 2 {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
            prepare();
        }
        let (jobs, queue) = sync_channel::<Box<dyn FnOnce() + Send>>(1);
        let (namespace, made) = sync_channel(1);
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            prepare();
            namespace.send(File::open("/proc/thread-self/ns/net").unwrap()).unwrap();
            for job in queue {
                job();
            }
        });
        let pod = Self {
            jobs,
            ip: Ipv4Addr::new(10, 244, 0, number),
            ip_v6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()),
        };
        let (outer, inner) = (format!("node{number}"), format!("pod{number}"));
        let namespace = made.recv().unwrap();
        connect_node(&outer, &inner, &namespace, &pod);
        let (ip, ip_v6) = (pod.ip, pod.ip_v6);
        pod.run(move || connect_pod(&inner, ip, ip_v6));
        pod
    }

    /// Runs something in the pod. Sockets it makes stay the pod's wherever they are used.
    pub(in crate::redirect) fn run<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let (result, done) = sync_channel(1);
        self.jobs.send(Box::new(move || result.send(f()).unwrap())).unwrap();
        done.recv().unwrap()
    }
}

/// Brings the loopback device up and has IPv6 addresses usable at once.
fn prepare() {
    for scope in ["all", "default"] {
        _ = fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/accept_dad"), "0");
    }
    netlink(async |handle| up(&handle, "lo").await);
}

fn connect_node(outer: &str, inner: &str, namespace: &File, pod: &Pod) {
    netlink(async |handle| {
        handle.link().add(LinkVeth::new(outer, inner).build()).execute().await.unwrap();
        let peer = index(&handle, inner).await;
        let moved = LinkUnspec::new_with_index(peer).setns_by_fd(namespace.as_raw_fd()).build();
        handle.link().set(moved).execute().await.unwrap();
        let device = up(&handle, outer).await;
        if pod.ip.octets()[3] == 2 {
            let lo = index(&handle, "lo").await;
            handle.address().add(lo, NODE.into(), 32).execute().await.unwrap();
        }
        // Unlike ARP, neighbour discovery answers for the receiving device's addresses only.
        address_v6(&handle, device, NODE_V6).await;
        route(&handle, device, pod.ip.into(), None).await;
        route(&handle, device, pod.ip_v6.into(), None).await;
    });
}

fn connect_pod(device: &str, ip: Ipv4Addr, ip_v6: Ipv6Addr) {
    netlink(async |handle| {
        let device = up(&handle, device).await;
        handle.address().add(device, ip.into(), 32).execute().await.unwrap();
        address_v6(&handle, device, ip_v6).await;
        route(&handle, device, NODE.into(), None).await;
        route(&handle, device, NODE_V6.into(), None).await;
        let default = RouteMessageBuilder::<Ipv4Addr>::new().gateway(NODE).build();
        handle.route().add(default).execute().await.unwrap();
        let default = RouteMessageBuilder::<Ipv6Addr>::new().gateway(NODE_V6).build();
        handle.route().add(default).execute().await.unwrap();
    });
}

/// An address that may be used at once, without a search for others that have it.
async fn address_v6(handle: &Handle, device: u32, ip: Ipv6Addr) {
    let mut request = handle.address().add(device, ip.into(), 128);
    request.message_mut().header.flags = AddressHeaderFlags::Nodad;
    request.execute().await.unwrap();
}

/// A route of the node's own for addresses that the rules translate.
pub(in crate::redirect) fn route_to_loopback(ip: Ipv4Addr) {
    netlink(async |handle| {
        let lo = index(&handle, "lo").await;
        route(&handle, lo, ip.into(), Some(NODE)).await;
    });
}

/// Sends the node's packets for this address to a pod, whether or not it is the pod's.
pub(super) fn route_to(pod: &Pod, ip: IpAddr) {
    netlink(async |handle| {
        let message = match ip {
            IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(ip, 32)
                .gateway(pod.ip)
                .build(),
            IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(ip, 128)
                .gateway(pod.ip_v6)
                .build(),
        };
        handle.route().add(message).execute().await.unwrap();
    });
}

/// Gives a pod one more address; call in the pod.
pub(super) fn add_address(number: u8, ip: Ipv4Addr) {
    netlink(async |handle| {
        let device = index(&handle, &format!("pod{number}")).await;
        handle.address().add(device, ip.into(), 32).execute().await.unwrap();
    });
}

async fn route(handle: &Handle, device: u32, ip: IpAddr, source: Option<Ipv4Addr>) {
    let message = match ip {
        IpAddr::V4(ip) => {
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(ip, 32)
                .output_interface(device)
                .scope(RouteScope::Link);
            match source {
                Some(source) => route.pref_source(source).build(),
                None => route.build(),
            }
        }
        IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(ip, 128)
            .output_interface(device)
            .build(),
    };
    handle.route().add(message).execute().await.unwrap();
}

async fn up(handle: &Handle, name: &str) -> u32 {
    let index = index(handle, name).await;
    let message = LinkUnspec::new_with_index(index).up().build();
    handle.link().set(message).execute().await.unwrap();
    index
}

async fn index(handle: &Handle, name: &str) -> u32 {
    use futures_util::TryStreamExt;
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    links.try_next().await.unwrap().unwrap().header.index
}

fn netlink<T>(work: impl AsyncFnOnce(Handle) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        let connection = tokio::spawn(connection);
        let result = work(handle).await;
        connection.abort();
        result
    })
}
