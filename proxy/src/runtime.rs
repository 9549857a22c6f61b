//! Worker threads: each a current-thread runtime with its own listeners, pools and generator.
//!
//! The control thread (discovery, identity, admin) is the caller's; a slow scrape or control plane
//! never stalls a worker.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{net::TcpListener, time::Instant};

use crate::{
    config::Args,
    error::Reason,
    inbound::{self, Inbound},
    metrics::{Direction, flow},
    net::listener::{self, BindError},
    outbound::{self, Outbound},
    shared::Shared,
};

/// Idle pooled connections are looked at this often.
const SWEEP: Duration = Duration::from_secs(1);

/// The listeners of one worker, and what arrives at each.
#[derive(Debug, Default)]
pub struct Listeners {
    outbound: Vec<(std::net::TcpListener, outbound::Source)>,
    inbound: Vec<(std::net::TcpListener, inbound::Source)>,
}

/// The threads that carry traffic.
#[derive(Debug)]
pub struct Workers {
    /// To wait for.
    pub threads: Vec<std::thread::JoinHandle<()>>,
    /// By the names of their threads.
    pub runtimes: Vec<(String, tokio::runtime::Handle)>,
}

/// Opens all listeners for `workers` threads.
///
/// # Errors
/// The first one that cannot be opened.
pub fn listen(
    args: &Args,
    workers: usize,
) -> Result<(Vec<Listeners>, Arc<[SocketAddr]>), BindError> {
    let mut all: Vec<Listeners> = (0..workers).map(|_| Listeners::default()).collect();
    let mut own = Vec::new();
    let ipv6 = listener::has_ipv6();
    let twins = |addrs: &[SocketAddr]| -> Vec<SocketAddr> {
        let twins = addrs.iter().filter_map(|a| listener::ipv6_twin(*a).filter(|_| ipv6));
        let mut all: Vec<SocketAddr> = addrs.iter().copied().chain(twins).collect();
        all.sort_unstable();
        all.dedup();
        all
    };
    let mut open = |addr: SocketAddr| -> Result<Vec<std::net::TcpListener>, BindError> {
        let sockets = listener::bind(addr, workers)?;
        own.extend(sockets.first().and_then(|s| s.local_addr().ok()));
        Ok(sockets)
    };
    for addr in twins(&args.outbound_listen) {
        for (worker, socket) in all.iter_mut().zip(open(addr)?) {
            worker.outbound.push((socket, outbound::Source::Redirected));
        }
    }
    for addr in twins(&args.inbound_listen) {
        for (worker, socket) in all.iter_mut().zip(open(addr)?) {
            worker.inbound.push((socket, inbound::Source::Redirected));
        }
    }
    for explicit in &args.outbound_service {
        let authority: Arc<str> = explicit.authority.as_str().into();
        for (worker, socket) in all.iter_mut().zip(open(explicit.listen)?) {
            worker.outbound.push((socket, outbound::Source::Explicit(Arc::clone(&authority))));
        }
    }
    for explicit in &args.inbound_forward {
        for (worker, socket) in all.iter_mut().zip(open(explicit.listen)?) {
            worker.inbound.push((socket, inbound::Source::Explicit(explicit.target)));
        }
    }
    // A wildcard listener is reached by every address of the pod, at its port.
    let wildcard: Vec<SocketAddr> = own
        .iter()
        .filter(|addr| addr.ip().is_unspecified())
        .flat_map(|addr| args.pod_ips.iter().map(|ip| SocketAddr::new(*ip, addr.port())))
        .collect();
    own.extend(wildcard);
    Ok((all, own.into()))
}

/// Starts one thread per worker. They end once draining has begun and their runtime is told to
/// stop by `stopped`, which resolves when everything has finished or was aborted.
///
/// # Errors
/// Where a thread or its runtime cannot be made.
pub fn start(
    workers: Vec<Listeners>,
    shared: &Shared,
    own: &Arc<[SocketAddr]>,
    stopped: &tokio_util::sync::CancellationToken,
    rng: &mut fastrand::Rng,
) -> io::Result<Workers> {
    let (mut threads, mut runtimes) = (Vec::new(), Vec::new());
    for (index, listeners) in workers.into_iter().enumerate() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let worker = worker(listeners, shared.clone(), Arc::clone(own), rng.fork());
        let stopped = stopped.clone();
        let name = format!("worker-{index}");
        runtimes.push((name.clone(), runtime.handle().clone()));
        let thread = std::thread::Builder::new().name(name);
        threads.push(thread.spawn(move || {
            flow::on_worker(index);
            runtime.block_on(async move {
                if let Err(error) = worker.await {
                    tracing::error!(%error, "worker could not start");
                }
                stopped.cancelled().await;
            });
        })?);
    }
    Ok(Workers { threads, runtimes })
}

async fn worker(
    listeners: Listeners,
    shared: Shared,
    own: Arc<[SocketAddr]>,
    rng: fastrand::Rng,
) -> io::Result<()> {
    let drain = shared.drain.clone();
    let refusal = |direction| {
        let metrics = Arc::clone(&shared.metrics);
        move || metrics.error(direction, Reason::Overloaded)
    };
    let outbound = Arc::new(Outbound::new(&shared, rng, Arc::clone(&own)));
    let inbound = Arc::new(Inbound::new(&shared, own));
    for (socket, source) in listeners.outbound {
        let outbound = Arc::clone(&outbound);
        let serve = move |client, _, admitted| {
            Arc::clone(&outbound).serve(client, admitted, source.clone())
        };
        // All connections come from the pod's own application.
        let (places, refused) =
            ((Arc::clone(&shared.admission), false), refusal(Direction::Outbound));
        let socket = TcpListener::from_std(socket)?;
        let accept = listener::accept(socket, places, drain.clone(), refused, serve);
        tokio::spawn(drain.accepting(accept));
    }
    for (socket, source) in listeners.inbound {
        let inbound = Arc::clone(&inbound);
        let serve = move |client, peer, admitted| {
            Arc::clone(&inbound).serve(client, peer, admitted, source)
        };
        let (places, refused) =
            ((Arc::clone(&shared.admission), true), refusal(Direction::Inbound));
        let socket = TcpListener::from_std(socket)?;
        let accept = listener::accept(socket, places, drain.clone(), refused, serve);
        tokio::spawn(drain.accepting(accept));
    }
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(SWEEP);
        loop {
            tick.tick().await;
            let now = Instant::now();
            outbound.sweep(now);
            inbound.sweep(now);
        }
    });
    Ok(())
}
