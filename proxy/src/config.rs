//! What the proxy is told at start: flags, each also an environment variable.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use remora_core::{
    authority::Authority,
    names::{env, ports},
    settings::{AccessLog, HeaderSize, SampleRate, TraceCollector, parse_duration},
    spiffe::SpiffeId,
    telemetry::LogFormat,
};

/// Flags of `remora-proxy` and `remora proxy`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Where redirected outbound connections arrive
    #[arg(long, value_delimiter = ',', env = "REMORA_OUTBOUND_LISTEN", default_values_t = [local(ports::OUTBOUND)])]
    pub outbound_listen: Vec<SocketAddr>,

    /// Where redirected inbound connections arrive
    #[arg(long, value_delimiter = ',', env = "REMORA_INBOUND_LISTEN", default_values_t = [any(ports::INBOUND)])]
    pub inbound_listen: Vec<SocketAddr>,

    /// Admin HTTP: /ready, /metrics, /endpoints and more
    #[arg(long, env = "REMORA_ADMIN_LISTEN", default_value_t = any(ports::PROXY_ADMIN))]
    pub admin_listen: SocketAddr,

    /// The control plane's gRPC, host:port
    #[arg(long, env = env::CONTROL_PLANE)]
    pub control_plane: String,

    /// The identity that the control plane must prove; default: the one of trust domain cluster.local
    #[arg(long, env = env::CONTROL_PLANE_ID)]
    pub control_plane_id: Option<SpiffeId>,

    /// Roots to trust at start, PEM
    #[arg(long, env = env::TRUST_BUNDLE)]
    pub trust_bundle: PathBuf,

    /// The workload's token
    #[arg(long, env = env::TOKEN_FILE)]
    pub token_file: PathBuf,

    /// Namespace of the pod that this proxy serves
    #[arg(long, env = env::POD_NAMESPACE)]
    pub pod_namespace: String,

    /// Name of the pod that this proxy serves
    #[arg(long, env = env::POD_NAME)]
    pub pod_name: String,

    /// Addresses of the pod
    #[arg(long, value_delimiter = ',', env = env::POD_IPS)]
    pub pod_ips: Vec<std::net::IpAddr>,

    /// Node that the pod runs on
    #[arg(long, env = env::NODE_NAME, default_value = "")]
    pub node: String,

    /// Topology zone of the node
    #[arg(long, env = env::ZONE, default_value = "")]
    pub zone: String,

    /// Worker threads; default: the CPU limit rounded up, 1 where there is none
    #[arg(long, env = "REMORA_WORKERS", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,

    /// Connections carried at a time; default: what file descriptors and memory have room for
    #[arg(long, env = "REMORA_MAX_CONNECTIONS", value_parser = clap::value_parser!(u16).range(1..))]
    pub max_connections: Option<u16>,

    /// Largest head of a request, 4Ki to 1Mi; larger ones are answered 431 or 414
    #[arg(long, env = env::MAX_HEADER_SIZE, default_value_t = HeaderSize::default())]
    pub max_header_size: HeaderSize,

    /// Socket mark of this proxy's own connections, for redirect rules that exempt by mark
    #[arg(long, env = "REMORA_MARK", value_parser = parse_mark)]
    pub mark: Option<u32>,

    /// Longest wait for open requests at shutdown
    #[arg(long, env = "REMORA_SHUTDOWN_GRACE_PERIOD", default_value = "30s", value_parser = parse_duration)]
    pub shutdown_grace_period: Duration,

    /// At shutdown, go on accepting until no connection was open for this long, at most the grace
    /// period; for a proxy that ends at the same time as its application
    #[arg(long, env = "REMORA_SHUTDOWN_LINGER", default_value = "0s", value_parser = parse_duration)]
    pub shutdown_linger: Duration,

    /// Probes answered in the application's stead: JSON object from path to probe handler
    #[arg(long, env = env::PROBES, default_value = "{}", hide_default_value = true)]
    pub probes: String,

    /// Where the last known discovery answers are kept for a start without a control plane
    #[arg(long, env = "REMORA_SNAPSHOT")]
    pub snapshot: Option<PathBuf>,

    /// What is told of single requests
    #[command(flatten)]
    pub sight: Sight,

    /// Explicit outbound listener, no redirection needed: 127.0.0.1:8080=orders.shop:80
    #[arg(long, value_name = "LISTEN=AUTHORITY")]
    pub outbound_service: Vec<OutboundService>,

    /// Explicit inbound listener, no redirection needed: 127.1.0.3:8080=127.0.0.1:8080
    #[arg(long, value_name = "LISTEN=TARGET")]
    pub inbound_forward: Vec<InboundForward>,
}

/// What the proxy tells of single requests, beside their records.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Sight {
    /// Requests that get a line on standard output: off, errors, sampled (errors and one in 100 of the
    /// others) or all
    #[arg(long, env = env::ACCESS_LOG, default_value_t = AccessLog::Off)]
    pub access_log: AccessLog,

    /// text or json; default: as --log-format
    #[arg(long, env = env::ACCESS_LOG_FORMAT)]
    pub access_log_format: Option<LogFormat>,

    /// Where spans go, host:port: OTLP over gRPC, without TLS; default: nowhere
    #[arg(long, env = env::TRACE_COLLECTOR)]
    pub trace_collector: Option<TraceCollector>,

    /// Share of requests that are traced where their caller does not say, 0.0 to 1.0
    #[arg(long, env = env::TRACE_SAMPLE_RATE, default_value_t = SampleRate::default())]
    pub trace_sample_rate: SampleRate,

    /// Name of the workload in traces, service.name; default: the pod's name
    #[arg(long, env = env::SERVICE_NAME)]
    pub service_name: Option<String>,
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], port))
}

fn parse_mark(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("{text:?} is no mark; use a number as in 0x2102"))
}

/// `LISTEN=AUTHORITY`: connections to the address are for that Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboundService {
    /// Where to listen.
    pub listen: SocketAddr,
    /// `name.namespace[.svc.domain]:port`.
    pub authority: String,
}

/// `LISTEN=TARGET`: connections to the address are for that application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboundForward {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where the application listens.
    pub target: SocketAddr,
}

impl FromStr for OutboundService {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let fail = || format!("{s:?}: use LISTEN=AUTHORITY as in 127.0.0.1:8080=orders.shop:80");
        let (listen, authority) = s.split_once('=').ok_or_else(fail)?;
        let port_said = authority.contains(':') && !authority.ends_with(']');
        if !port_said || authority.parse::<Authority>().is_err() {
            return Err(fail());
        }
        Ok(Self { listen: listen.parse().map_err(|_| fail())?, authority: authority.to_owned() })
    }
}

impl FromStr for InboundForward {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let fail = || format!("{s:?}: use LISTEN=TARGET as in 127.1.0.3:8080=127.0.0.1:8080");
        let (listen, target) = s.split_once('=').ok_or_else(fail)?;
        Ok(Self {
            listen: listen.parse().map_err(|_| fail())?,
            target: target.parse().map_err(|_| fail())?,
        })
    }
}

/// Workers for a CPU quota (`cpu.max` of cgroup v2): the limit rounded up, 1 where there is none.
#[must_use]
pub fn workers_for_quota(cpu_max: Option<&str>) -> usize {
    let quota = cpu_max.and_then(|line| {
        let (quota, period) = line.trim().split_once(' ')?;
        Some((quota.parse::<usize>().ok()?, period.parse::<usize>().ok().filter(|p| *p > 0)?))
    });
    quota.map_or(1, |(quota, period)| quota.div_ceil(period).clamp(1, 256))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_follow_the_cpu_limit() {
        assert_eq!(workers_for_quota(Some("150000 100000\n")), 2);
        assert_eq!(workers_for_quota(Some("max 100000\n")), 1);
        assert_eq!(workers_for_quota(Some("nonsense")), 1);
        assert_eq!(workers_for_quota(None), 1);
    }

    #[test]
    fn explicit_listeners_say_how_they_are_written() {
        let ok: OutboundService = "127.0.0.1:80=orders.shop:8080".parse().unwrap();
        assert_eq!(ok.authority, "orders.shop:8080");
        for bad in [
            "",
            "127.0.0.1:80",
            "127.0.0.1:80=orders",
            "x=orders:1",
            "127.0.0.1:80=o:0",
            "127.0.0.1:80=[::1]",
            "127.0.0.1:80=a b:80",
        ] {
            let error = bad.parse::<OutboundService>().unwrap_err();
            assert!(error.contains("LISTEN=AUTHORITY"), "{error}");
        }
        assert!("127.1.0.3:80=127.0.0.1:x".parse::<InboundForward>().is_err());
    }
}
