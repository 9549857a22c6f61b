//! Readiness probes, run as a kubelet does: HTTP and TCP from the node, commands in the pod.

use std::{
    future::Future,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use k8s_openapi::{
    api::core::v1::{Container, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    process::Command,
    time::{sleep, timeout},
};

/// Before a container was ready for the first time, a probe that fails is tried again after at
/// most this: on one machine programs start fast, and people wait.
const IMPATIENT: Duration = Duration::from_millis(250);

/// A sidecar accepts before it has dialled the application, and it dials once it has waited for the
/// client to speak: a connection that is not reset within this has reached a listener.
const RESET: Duration = Duration::from_millis(250);

/// A probe whose defaults and port names are filled in.
#[derive(Debug, Clone)]
pub struct Readiness {
    check: Check,
    initial_delay: Duration,
    period: Duration,
    timeout: Duration,
    successes: u32,
    failures: u32,
}

#[derive(Debug, Clone)]
enum Check {
    Http { address: SocketAddr, path: String, headers: Vec<(String, String)> },
    Tcp(SocketAddr),
    Exec(Vec<String>),
}

impl Readiness {
    /// The probe of a container; `None` where it has none.
    ///
    /// # Errors
    /// Where it cannot be run: what is wrong.
    pub fn of(container: &Container, pod: Ipv4Addr) -> Result<Option<Self>, String> {
        let Some(probe) = &container.readiness_probe else { return Ok(None) };
        let check = check(probe, container, pod).map_err(|problem| {
            format!("container {}: readinessProbe: {problem}", container.name)
        })?;
        let seconds = |value: Option<i32>, default: u64| {
            let value = value.and_then(|v| u64::try_from(v).ok());
            Duration::from_secs(value.unwrap_or(default))
        };
        let count = |value: Option<i32>, default: u32| {
            value.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default)
        };
        Ok(Some(Self {
            check,
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
            timeout: seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1)),
            successes: count(probe.success_threshold, 1),
            failures: count(probe.failure_threshold, 3),
        }))
    }

    /// Probes for as long as it is polled and reports each change; a container begins not ready.
    /// `exec` makes the command that runs inside the pod.
    pub async fn watch<F, R>(&self, exec: impl Fn(&[String]) -> Command, report: F)
    where
        F: Fn(bool) -> R,
        R: Future<Output = ()>,
    {
        sleep(self.initial_delay).await;
        let mut tally = Tally::default();
        loop {
            let good = self.once(&exec).await;
            if let Some(ready) = tally.count(good, self.successes, self.failures) {
                report(ready).await;
            }
            sleep(if tally.was_ready { self.period } else { self.period.min(IMPATIENT) }).await;
        }
    }

    async fn once(&self, exec: &impl Fn(&[String]) -> Command) -> bool {
        let run = async {
            match &self.check {
                Check::Http { address, path, headers } => get(*address, path, headers)
                    .await
                    .is_ok_and(|status| (200..400).contains(&status)),
                Check::Tcp(address) => accepts(*address).await,
                Check::Exec(command) => {
                    let status = exec(command).kill_on_drop(true).status().await;
                    status.is_ok_and(|status| status.success())
                }
            }
        };
        timeout(self.timeout, run).await.unwrap_or(false)
    }
}

/// Whether somebody listens there. One who closes at once, or speaks, does too.
async fn accepts(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(address).await else { return false };
    !matches!(timeout(RESET, stream.read(&mut [0])).await, Ok(Err(_)))
}

/// Consecutive results, and when they change the verdict.
#[derive(Debug, Default)]
struct Tally {
    ready: bool,
    was_ready: bool,
    same: u32,
    last: bool,
}

impl Tally {
    fn count(&mut self, good: bool, successes: u32, failures: u32) -> Option<bool> {
        self.same = if self.last == good { self.same.saturating_add(1) } else { 1 };
        self.last = good;
        let enough = if good { successes } else { failures };
        if good == self.ready || self.same < enough {
            return None;
        }
        self.ready = good;
        self.was_ready |= good;
        Some(good)
    }
}

/// The status of a GET.
///
/// # Errors
/// Where there is no answer.
pub async fn get(
    address: SocketAddr,
    path: &str,
    headers: &[(String, String)],
) -> Result<u16, anyhow::Error> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut request = http::Request::get(path).header("user-agent", "remora-probe");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request = request.header("host", address.to_string());
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.body(Empty::<bytes::Bytes>::new())?;
    let answer = sender.send_request(request);
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => return Ok(answer?.status().as_u16()),
        ended = connection => ended?,
    }
    // A server that closes at once has answered all the same.
    Ok(answer.await?.status().as_u16())
}

fn check(probe: &Probe, container: &Container, pod: Ipv4Addr) -> Result<Check, String> {
    let number = |port: &IntOrString| {
        let declared = container.ports.iter().flatten();
        let number = match port {
            IntOrString::Int(number) => Some(*number),
            IntOrString::String(name) => declared
                .filter(|p| p.name.as_ref() == Some(name))
                .map(|p| p.container_port)
                .next()
                .or_else(|| name.parse().ok()),
        };
        number
            .and_then(|n| u16::try_from(n).ok())
            .filter(|n| *n > 0)
            .ok_or_else(|| format!("no container port {port:?}"))
    };
    let host = |host: &Option<String>| match host.as_deref() {
        None | Some("") => Ok(pod),
        Some(text) => text.parse().map_err(|_| format!("host {text:?} is no IPv4 address")),
    };
    if let Some(get) = &probe.http_get {
        let address = SocketAddr::from((host(&get.host)?, number(&get.port)?));
        if get.scheme.as_deref() == Some("HTTPS") {
            // The certificate would not be verified either: that something listens must do.
            return Ok(Check::Tcp(address));
        }
        let path = get.path.clone().filter(|path| path.starts_with('/'));
        let headers = get.http_headers.iter().flatten();
        return Ok(Check::Http {
            address,
            path: path.unwrap_or_else(|| "/".into()),
            headers: headers.map(|h| (h.name.clone(), h.value.clone())).collect(),
        });
    }
    if let Some(tcp) = &probe.tcp_socket {
        return Ok(Check::Tcp(SocketAddr::from((host(&tcp.host)?, number(&tcp.port)?))));
    }
    if let Some(grpc) = &probe.grpc {
        // The health protocol is not spoken here; that the server listens must do.
        let port = number(&IntOrString::Int(grpc.port))?;
        return Ok(Check::Tcp(SocketAddr::from((pod, port))));
    }
    match &probe.exec {
        Some(exec) => Ok(Check::Exec(exec.command.clone().unwrap_or_default())),
        None => Err("it has none of httpGet, tcpSocket, exec; add one".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdict_changes_after_enough_results_in_a_row() {
        let mut tally = Tally::default();
        let mut count = |good| tally.count(good, 2, 3);
        assert_eq!(count(true), None);
        assert_eq!(count(false), None);
        assert_eq!(count(true), None);
        assert_eq!(count(true), Some(true));
        assert_eq!(count(true), None);
        assert_eq!(count(false), None);
        assert_eq!(count(false), None);
        assert_eq!(count(true), None);
        assert_eq!(count(false), None);
        assert_eq!(count(false), None);
        assert_eq!(count(false), Some(false));
    }

    #[test]
    fn a_probe_of_an_unknown_port_is_refused_with_its_name() {
        let container: Container = serde_json::from_value(serde_json::json!({
            "name": "c", "ports": [{"name": "web", "containerPort": 8080}],
            "readinessProbe": {"httpGet": {"port": "wob"}}
        }))
        .unwrap();
        let problem = Readiness::of(&container, Ipv4Addr::LOCALHOST).unwrap_err();
        assert!(problem.contains("container c") && problem.contains("wob"), "{problem}");
    }
}
