//! Probes that the proxy answers in the application's stead.
//!
//! The kubelet dials a pod from outside, so its probes arrive at the proxy. HTTP and gRPC probes pass
//! through it on their paths. Two kinds cannot: to a `tcpSocket` probe the proxy itself would say
//! yes, and the TLS of an `httpGet` probe with scheme HTTPS hides the path, so a strict policy has
//! to refuse it. The injector points those at the admin port and gives the original handler to the
//! proxy in the environment ([`remora_core::names::env::PROBES`]); here it is carried out.
//!
//! As the kubelet does, it dials the pod's first address: what listens on the loopback address only
//! fails its probe with a sidecar as without. (Loopback is taken where the address is not known.)

mod get;
mod tls;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::Deserialize;
use tokio::{net::TcpStream, sync::Semaphore, time::timeout};

pub use get::Get;

/// Probes that are carried out at a time; the kubelet runs one of each at a time.
const CONCURRENT: usize = 32;
/// Probes of one pod.
const MAX_PROBES: usize = 256;
/// Bounds of a probe's time-out, seconds; Kubernetes has no upper one.
const TIMEOUT_SECONDS: std::ops::RangeInclusive<u32> = 1..=300;

/// What to do for which path of the admin port.
#[derive(Debug, Clone, Default)]
pub struct Probes(Arc<BTreeMap<String, Probe>>);

/// One probe.
#[derive(Debug, Clone)]
struct Probe {
    handler: Handler,
    timeout: Duration,
    /// Whether it did not pass the last time; so that the log tells of changes only.
    failing: Arc<AtomicBool>,
}

#[derive(Debug, Clone)]
enum Handler {
    /// Somebody accepts a connection on this port.
    TcpSocket(u16),
    /// A GET is answered with a status from 200 to 399.
    HttpGet(Box<Get>),
}

/// Probes as they stand in the environment.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    tcp_socket: Option<WrittenTcp>,
    http_get: Option<get::Written>,
    #[serde(default = "one")]
    timeout_seconds: u32,
}

#[derive(Debug, Deserialize)]
struct WrittenTcp {
    port: u16,
}

fn one() -> u32 {
    1
}

impl FromStr for Probes {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let written: BTreeMap<String, Written> = serde_json::from_str(s).map_err(|error| {
            format!("not a JSON object from path to probe handler ({error}); inject the pod again")
        })?;
        if written.len() > MAX_PROBES {
            return Err(format!("{} probes; at most {MAX_PROBES} are answered", written.len()));
        }
        let probes = written.into_iter().map(|(path, written)| {
            let probe = Probe::try_from(written).map_err(|problem| format!("{path}: {problem}"))?;
            Ok((path, probe))
        });
        probes.collect::<Result<_, String>>().map(|probes| Self(Arc::new(probes)))
    }
}

impl TryFrom<Written> for Probe {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let seconds =
            written.timeout_seconds.clamp(*TIMEOUT_SECONDS.start(), *TIMEOUT_SECONDS.end());
        let handler = match (written.tcp_socket, written.http_get) {
            (Some(WrittenTcp { port: port @ 1.. }), None) => Handler::TcpSocket(port),
            (None, Some(get)) => Handler::HttpGet(Box::new(Get::try_from(get)?)),
            _ => return Err("needs one of tcpSocket and httpGet, with a port".to_owned()),
        };
        let timeout = Duration::from_secs(seconds.into());
        Ok(Self { handler, timeout, failing: Arc::default() })
    }
}

/// Carries probes out.
#[derive(Debug, Clone)]
pub struct Prober {
    probes: Probes,
    address: IpAddr,
    permits: Arc<Semaphore>,
}

/// What came of a probe that did not pass.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The path stands for no probe.
    #[error("no such probe; inject the pod again if it should be there")]
    Unknown,
    /// More at a time than a kubelet asks for.
    #[error("{CONCURRENT} probes are under way already")]
    Busy,
    /// Not within the probe's time-out.
    #[error("{target}: no answer within {limit:?}")]
    Late {
        /// Who was asked.
        target: String,
        /// The time-out.
        limit: Duration,
    },
    /// Nobody there, or an answer that is none.
    #[error("{target}: {problem}")]
    Broken {
        /// Who was asked.
        target: String,
        /// What happened.
        problem: String,
    },
    /// A status that says no.
    #[error("{target}: answered {status}")]
    Status {
        /// Who was asked.
        target: String,
        /// The status.
        status: u16,
    },
}

impl Prober {
    /// Probes of the application at the first of the pod's addresses.
    #[must_use]
    pub fn new(probes: Probes, pod_ips: &[IpAddr]) -> Self {
        let address = pod_ips.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        Self { probes, address, permits: Arc::new(Semaphore::new(CONCURRENT)) }
    }

    /// Carries out the probe of this path. `user_agent` is the kubelet's.
    ///
    /// The kubelet's event tells the status only, so the reason goes to the log, once.
    ///
    /// # Errors
    /// Where it does not pass.
    pub async fn run(&self, path: &str, user_agent: Option<&str>) -> Result<(), Failure> {
        let probe = self.probes.0.get(path).ok_or(Failure::Unknown)?;
        let result = self.carry_out(probe, user_agent).await;
        match &result {
            Ok(()) => {
                if probe.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(probe = path, "probe of the application passes again");
                }
            }
            Err(failure) => {
                if !probe.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(probe = path, %failure, "probe of the application fails");
                }
            }
        }
        result
    }

    async fn carry_out(&self, probe: &Probe, user_agent: Option<&str>) -> Result<(), Failure> {
        let _permit = self.permits.try_acquire().map_err(|_| Failure::Busy)?;
        let (target, done) = match &probe.handler {
            Handler::TcpSocket(port) => {
                let address = SocketAddr::new(self.address, *port);
                (address.to_string(), timeout(probe.timeout, connect(address)).await)
            }
            Handler::HttpGet(get) => {
                let target = get.target(self.address);
                let asked = get.run(self.address, user_agent);
                (target, timeout(probe.timeout, Box::pin(asked)).await)
            }
        };
        match done {
            Ok(Ok(200..=399)) => Ok(()),
            Ok(Ok(status)) => Err(Failure::Status { target, status }),
            Ok(Err(problem)) => Err(Failure::Broken { target, problem }),
            Err(_) => Err(Failure::Late { target, limit: probe.timeout }),
        }
    }
}

/// Connects and closes at once, as the kubelet does; counted as status 200.
async fn connect(address: SocketAddr) -> Result<u16, String> {
    TcpStream::connect(address).await.map(|_| 200).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
