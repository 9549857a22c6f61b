//! One proxy on threads of its own, or in a process of its own where it is to be killed, and what its
//! admin endpoint shows.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    thread::JoinHandle,
    time::Duration,
};

use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use remora_proxy::config::{Args, InboundForward, OutboundService};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{
    mesh::Pod,
    wait::{eventually, within},
    wire::{Head, Wire},
};

/// A running proxy. Dropped, it drains for a moment and ends by itself.
#[derive(Debug)]
pub struct Sidecar {
    /// The pod it serves.
    pub pod: Pod,
    admin: SocketAddr,
    services: Vec<OutboundService>,
    running: Running,
}

#[derive(Debug)]
enum Running {
    Thread(CancellationToken, JoinHandle<anyhow::Result<()>>),
    Process(Child),
    Ended,
}

impl Sidecar {
    /// Waits until it is ready.
    ///
    /// # Panics
    /// Where it does not become ready.
    pub async fn ready(&self) {
        eventually("a ready sidecar", async || {
            let ended = matches!(&self.running, Running::Thread(_, t) if t.is_finished());
            assert!(!ended, "sidecar ended");
            matches!(self.try_get("/ready").await, Some((200, _))).then_some(())
        })
        .await;
    }

    /// Starts one.
    ///
    /// # Panics
    /// Where there is no thread for it.
    #[must_use]
    pub fn launch(pod: Pod, args: Args) -> Self {
        let (admin, services) = (args.admin_listen, args.outbound_service.clone());
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        let thread = std::thread::Builder::new().name(pod.name.clone()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(remora_proxy::app::run(args, None, stopping.cancelled_owned()))
        });
        let running = Running::Thread(stop, thread.expect("a thread"));
        Self { pod, admin, services, running }
    }

    /// Starts one as `program proxy …`, a process.
    ///
    /// # Panics
    /// Where it cannot be started.
    #[must_use]
    pub fn spawn(program: &Path, pod: Pod, args: &Args, out: Stdio) -> Self {
        let mut command = Command::new(program);
        command.arg("proxy").args(flags(args)).args(["--log", "error"]);
        let process = command.stdin(Stdio::null()).stdout(out).spawn().expect("a process");
        let (admin, services) = (args.admin_listen, args.outbound_service.clone());
        Self { pod, admin, services, running: Running::Process(process) }
    }

    /// Where the application dials a Service, by its name or a whole authority.
    ///
    /// # Panics
    /// Where the sidecar has no listener for it.
    #[must_use]
    pub fn entry(&self, service: &str) -> SocketAddr {
        let of = |s: &&OutboundService| {
            s.authority == service || s.authority.split(['.', ':']).next() == Some(service)
        };
        self.services.iter().find(of).unwrap_or_else(|| panic!("no listener for {service}")).listen
    }

    /// Where its admin endpoint listens.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// A page of the admin endpoint.
    ///
    /// # Panics
    /// Where it does not answer.
    pub async fn get(&self, path: &str) -> (u16, String) {
        try_get(self.admin, path).await.expect("the admin endpoint answers")
    }

    /// A page of the admin endpoint; `None` where it does not answer yet.
    pub async fn try_get(&self, path: &str) -> Option<(u16, String)> {
        try_get(self.admin, path).await
    }

    /// Begins the drain through the admin endpoint; the process goes on.
    ///
    /// # Panics
    /// Where it does not answer.
    pub async fn drain(&self) {
        let answer = ask(self.admin, "POST", "/drain").await.expect("the admin endpoint answers");
        assert_eq!(answer.0, 202);
    }

    /// Sum of a metric's series that have all these labels.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let (_, text) = self.get("/metrics").await;
        sum(&text, name, labels)
    }

    /// Waits until a metric is at least so much.
    pub async fn until(&self, name: &str, labels: &[(&str, &str)], least: u64) {
        eventually(&format!("{name}{labels:?} >= {least}"), || async {
            (self.metric(name, labels).await >= least).then_some(())
        })
        .await;
    }

    /// `/certs`.
    ///
    /// # Panics
    /// Where it is no JSON.
    pub async fn certs(&self) -> Value {
        serde_json::from_str(&self.get("/certs").await.1).expect("JSON")
    }

    /// The endpoints of a Service that `/endpoints` shows; none where it is not known.
    ///
    /// # Panics
    /// Where it is no JSON.
    pub async fn endpoints(&self, service: &str) -> Vec<Value> {
        let all: Value = serde_json::from_str(&self.get("/endpoints").await.1).expect("JSON");
        let services = all["services"].as_array().into_iter().flatten();
        let of = services.filter(|s| s["name"] == service);
        of.flat_map(|s| s["endpoints"].as_array().into_iter().flatten().cloned()).collect()
    }

    /// Waits until `/endpoints` shows so many endpoints of a Service.
    pub async fn until_endpoints(&self, service: &str, count: usize) {
        eventually(&format!("{count} endpoints of {service}"), || async {
            (self.endpoints(service).await.len() == count).then_some(())
        })
        .await;
    }

    /// SIGTERM, or what is as good: begins the shutdown.
    ///
    /// # Panics
    /// Where there is no such process any more.
    pub fn terminate(&self) {
        match &self.running {
            Running::Thread(stop, _) => stop.cancel(),
            Running::Process(_) => self.signal(Signal::SIGTERM),
            Running::Ended => {}
        }
    }

    /// Sends a signal to the process.
    ///
    /// # Panics
    /// Where there is none.
    pub fn signal(&self, signal: Signal) {
        let Running::Process(process) = &self.running else { panic!("it is no process") };
        signal::kill(pid(process), signal).expect("a signal to a child");
    }

    /// SIGKILL. Once this returns, the kernel has closed all that the process had open, and told
    /// those on the other sides.
    ///
    /// # Panics
    /// Where it is no process.
    pub async fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        let Running::Process(process) = &mut self.running else { panic!("it is no process") };
        process.wait().expect("a child's end");
        self.running = Running::Ended;
    }

    /// Waits until a shutdown that was begun is over.
    ///
    /// # Panics
    /// Where it fails.
    pub async fn ended(mut self) {
        let running = std::mem::replace(&mut self.running, Running::Ended);
        let join = tokio::task::spawn_blocking(move || match running {
            Running::Thread(_, thread) => thread.join().expect("no panic").expect("no error"),
            Running::Process(mut process) => {
                let status = process.wait().expect("a child's end");
                assert!(status.success(), "{status}");
            }
            Running::Ended => {}
        });
        within("the sidecar's end", join).await.expect("no panic");
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        match &mut self.running {
            Running::Thread(stop, _) => stop.cancel(),
            Running::Process(process) => {
                // It may be gone already.
                let _ = process.kill();
                let _ = process.wait();
            }
            Running::Ended => {}
        }
    }
}

fn pid(process: &Child) -> Pid {
    Pid::from_raw(i32::try_from(process.id()).expect("process ids are positive"))
}

/// What a test sets of the arguments, as flags.
fn flags(args: &Args) -> Vec<String> {
    let mut flags = Vec::new();
    let mut flag = |name: &str, value: String| flags.extend([format!("--{name}"), value]);
    let list =
        |all: &[SocketAddr]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    flag("outbound-listen", list(&args.outbound_listen));
    flag("inbound-listen", list(&args.inbound_listen));
    flag("admin-listen", args.admin_listen.to_string());
    flag("control-plane", args.control_plane.clone());
    flag("trust-bundle", args.trust_bundle.display().to_string());
    flag("token-file", args.token_file.display().to_string());
    flag("pod-namespace", args.pod_namespace.clone());
    flag("pod-name", args.pod_name.clone());
    args.pod_ips.iter().for_each(|ip| flag("pod-ips", ip.to_string()));
    args.workers.iter().for_each(|workers| flag("workers", workers.to_string()));
    flag("access-log", args.sight.access_log.to_string());
    args.sight.access_log_format.iter().for_each(|f| flag("access-log-format", f.to_string()));
    args.sight.trace_collector.iter().for_each(|at| flag("trace-collector", at.to_string()));
    flag("trace-sample-rate", args.sight.trace_sample_rate.to_string());
    flag("shutdown-grace-period", format!("{}ms", args.shutdown_grace_period.as_millis()));
    for OutboundService { listen, authority } in &args.outbound_service {
        flag("outbound-service", format!("{listen}={authority}"));
    }
    for InboundForward { listen, target } in &args.inbound_forward {
        flag("inbound-forward", format!("{listen}={target}"));
    }
    flags
}

/// One request to an admin endpoint; `None` where nobody answers yet.
pub async fn try_get(addr: SocketAddr, path: &str) -> Option<(u16, String)> {
    ask(addr, "GET", path).await
}

async fn ask(addr: SocketAddr, method: &str, path: &str) -> Option<(u16, String)> {
    let bound = Duration::from_secs(5);
    let answer = async {
        let mut wire = Wire::new(tokio::net::TcpStream::connect(addr).await.ok()?);
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        wire.send(request).await;
        let all = String::from_utf8(wire.rest().await.ok()?).ok()?;
        let (head, body) = all.split_once("\r\n\r\n")?;
        Some((Head(head.to_owned()).status(), body.to_owned()))
    };
    tokio::time::timeout(bound, answer).await.ok().flatten()
}

/// Sum of the series of `name` that have all these labels.
#[must_use]
pub fn sum(text: &str, name: &str, labels: &[(&str, &str)]) -> u64 {
    let wanted: Vec<String> = labels.iter().map(|(k, v)| format!("{k}=\"{v}\"")).collect();
    let series = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = rest.rsplit_once(' ')?;
        let ours = labels.is_empty() || labels.starts_with('{');
        (ours && wanted.iter().all(|w| labels.contains(w))).then(|| value.parse::<u64>().ok())?
    });
    series.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_chosen_by_name_and_labels() {
        let text = "a_total{x=\"1\",y=\"2\"} 3\na_total{x=\"1\",y=\"3\"} 4\na_total_more 9\nb 1\n";
        assert_eq!(sum(text, "a_total", &[("x", "1")]), 7);
        assert_eq!(sum(text, "a_total", &[("y", "3"), ("x", "1")]), 4);
        assert_eq!(sum(text, "b", &[]), 1);
    }
}
