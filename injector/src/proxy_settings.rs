//! What the configuration annotations say about one pod's proxy.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use ipnet::IpNet;
use remora_core::{
    names::{DEFAULT_OPAQUE_PORTS, annotations},
    settings::{
        DefaultPolicy, HeaderSize, Ingress, InvalidAnnotation, OutboundPolicy, PortSet, SampleRate,
        TraceCollector, parse_duration, parse_subnets, read,
    },
    telemetry::LogFormat,
};

pub use remora_core::settings::AccessLog;

/// Settings of one pod's proxy.
#[derive(Debug, Clone, PartialEq)]
pub struct ProxySettings {
    /// Ports on which the application is reached directly.
    pub skip_inbound_ports: PortSet,
    /// Ports that the application dials directly.
    pub skip_outbound_ports: PortSet,
    /// Networks that are not intercepted in either direction.
    pub skip_subnets: Vec<IpNet>,
    /// Ports carried as bytes.
    pub opaque_ports: PortSet,
    /// Log filter, `tracing` syntax.
    pub log_level: String,
    /// Requests and limits of the proxy's container.
    pub resources: Resources,
    /// How long a draining proxy waits for open requests.
    pub shutdown_grace_period: Duration,
    /// Which requests get a line.
    pub access_log: AccessLog,
    /// How lines look, where that is said.
    pub access_log_format: Option<LogFormat>,
    /// Where spans go, where they go anywhere.
    pub trace_collector: Option<TraceCollector>,
    /// Share of requests that are traced where their caller does not say.
    pub trace_sample_rate: SampleRate,
    /// Who may call where no policy says otherwise.
    pub default_inbound_policy: DefaultPolicy,
    /// Largest head of a request.
    pub max_header_size: HeaderSize,
    /// As what the proxy runs.
    pub native_sidecar: NativeSidecar,
}

/// Requests and limits of the proxy's container, in Kubernetes' quantities.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// CPU that is set aside.
    pub cpu_request: Option<Quantity>,
    /// CPU at most; the proxy runs as many workers, rounded up, and one where there is no limit.
    pub cpu_limit: Option<Quantity>,
    /// Memory that is set aside.
    pub memory_request: Option<Quantity>,
    /// Memory at most.
    pub memory_limit: Option<Quantity>,
}

/// A positive quantity as Kubernetes writes it: `100m`, `0.5`, `64Mi`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quantity(String);

/// As what the proxy runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NativeSidecar {
    /// A native sidecar where the cluster has them.
    #[default]
    Auto,
    /// A native sidecar: an init container that stays (Kubernetes 1.29).
    Enabled,
    /// An ordinary container.
    Disabled,
}

impl Default for ProxySettings {
    fn default() -> Self {
        Self {
            skip_inbound_ports: PortSet::default(),
            skip_outbound_ports: PortSet::default(),
            skip_subnets: Vec::new(),
            opaque_ports: PortSet::of(&DEFAULT_OPAQUE_PORTS),
            log_level: "info".to_owned(),
            resources: Resources::of_a_sidecar(),
            shutdown_grace_period: Duration::from_secs(30),
            access_log: AccessLog::default(),
            access_log_format: None,
            trace_collector: None,
            trace_sample_rate: SampleRate::default(),
            default_inbound_policy: DefaultPolicy::default(),
            max_header_size: HeaderSize::default(),
            native_sidecar: NativeSidecar::default(),
        }
    }
}

impl ProxySettings {
    /// Reads the annotations; what they do not say is as in `defaults`.
    ///
    /// # Errors
    /// Names the first annotation that cannot be used.
    pub fn read(
        map: &BTreeMap<String, String>,
        defaults: &Self,
    ) -> Result<Self, InvalidAnnotation> {
        let ports = |key, default: &PortSet| {
            Ok(read(map, key, str::parse)?.unwrap_or_else(|| default.clone()))
        };
        // The control plane acts on these; what is wrong with them is said before the pod runs.
        read(map, annotations::DEFAULT_OUTBOUND_POLICY, str::parse::<OutboundPolicy>)?;
        read(map, annotations::INGRESS, str::parse::<Ingress>)?;
        Ok(Self {
            skip_inbound_ports: ports(
                annotations::SKIP_INBOUND_PORTS,
                &defaults.skip_inbound_ports,
            )?,
            skip_outbound_ports: ports(
                annotations::SKIP_OUTBOUND_PORTS,
                &defaults.skip_outbound_ports,
            )?,
            skip_subnets: read(map, annotations::SKIP_SUBNETS, parse_subnets)?
                .unwrap_or_else(|| defaults.skip_subnets.clone()),
            opaque_ports: ports(annotations::OPAQUE_PORTS, &defaults.opaque_ports)?,
            log_level: read(map, annotations::PROXY_LOG_LEVEL, parse_log_filter)?
                .unwrap_or_else(|| defaults.log_level.clone()),
            resources: Resources::read(map, &defaults.resources)?,
            shutdown_grace_period: read(map, annotations::SHUTDOWN_GRACE_PERIOD, parse_duration)?
                .unwrap_or(defaults.shutdown_grace_period),
            access_log: read(map, annotations::ACCESS_LOG, str::parse)?
                .unwrap_or(defaults.access_log),
            access_log_format: read(map, annotations::ACCESS_LOG_FORMAT, str::parse)?
                .or(defaults.access_log_format),
            trace_collector: read(map, annotations::TRACE_COLLECTOR, str::parse)?
                .or_else(|| defaults.trace_collector.clone()),
            trace_sample_rate: read(map, annotations::TRACE_SAMPLE_RATE, str::parse)?
                .unwrap_or(defaults.trace_sample_rate),
            default_inbound_policy: read(map, annotations::DEFAULT_INBOUND_POLICY, str::parse)?
                .unwrap_or(defaults.default_inbound_policy),
            max_header_size: read(map, annotations::MAX_HEADER_SIZE, str::parse)?
                .unwrap_or(defaults.max_header_size),
            native_sidecar: read(map, annotations::NATIVE_SIDECAR, str::parse)?
                .unwrap_or(defaults.native_sidecar),
        })
    }
}

impl Resources {
    /// What a proxy gets where nobody says otherwise: little is set aside, memory has a bound so
    /// that a leak ends one proxy and not the node, CPU has none because a limit costs latency.
    #[must_use]
    pub fn of_a_sidecar() -> Self {
        let quantity = |text: &str| Some(Quantity(text.to_owned()));
        Self {
            cpu_request: quantity("10m"),
            cpu_limit: None,
            memory_request: quantity("32Mi"),
            memory_limit: quantity("250Mi"),
        }
    }

    fn read(map: &BTreeMap<String, String>, defaults: &Self) -> Result<Self, InvalidAnnotation> {
        let pair = |request: &str,
                    limit: &str,
                    default: (&Option<_>, &Option<_>)|
         -> Result<_, InvalidAnnotation> {
            let said = (read(map, request, str::parse)?, read(map, limit, str::parse)?);
            pair(request, said, default)
        };
        let (cpu_request, cpu_limit) = pair(
            annotations::PROXY_CPU_REQUEST,
            annotations::PROXY_CPU_LIMIT,
            (&defaults.cpu_request, &defaults.cpu_limit),
        )?;
        let (memory_request, memory_limit) = pair(
            annotations::PROXY_MEMORY_REQUEST,
            annotations::PROXY_MEMORY_LIMIT,
            (&defaults.memory_request, &defaults.memory_limit),
        )?;
        Ok(Self { cpu_request, cpu_limit, memory_request, memory_limit })
    }

    /// Workers of the proxy: the CPU limit rounded up, one where there is none.
    #[must_use]
    pub fn workers(&self) -> u32 {
        self.cpu_limit.as_ref().map_or(1, |limit| (limit.value().ceil() as u32).max(1))
    }
}

type Pair = (Option<Quantity>, Option<Quantity>);

/// Request and limit. A default gives way to what is said: to a limit below it, a request above it.
fn pair(
    key: &str,
    said: Pair,
    (request, limit): (&Option<Quantity>, &Option<Quantity>),
) -> Result<Pair, InvalidAnnotation> {
    let above = |request: &Option<Quantity>, limit: &Option<Quantity>| match (request, limit) {
        (Some(request), Some(limit)) => request.value() > limit.value(),
        _ => false,
    };
    match said {
        (Some(request), Some(limit)) if request.value() > limit.value() => Err(InvalidAnnotation {
            key: key.to_owned(),
            problem: format!(
                "the request {request} is above the limit {limit}; lower it or raise the limit"
            ),
        }),
        (None, said @ Some(_)) if above(request, &said) => Ok((said.clone(), said)),
        (said @ Some(_), None) if above(&said, limit) => Ok((said.clone(), said)),
        (said_request, said_limit) => {
            Ok((said_request.or_else(|| request.clone()), said_limit.or_else(|| limit.clone())))
        }
    }
}

/// Factors of Kubernetes' suffixes; the longer ones first.
const SUFFIXES: [(&str, f64); 14] = [
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
    ("Pi", 1_125_899_906_842_624.0),
    ("Ei", 1_152_921_504_606_846_976.0),
    ("m", 1e-3),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("E", 1e18),
    ("", 1.0),
];

impl Quantity {
    fn value(&self) -> f64 {
        parse_quantity(&self.0).unwrap_or_default()
    }
}

fn parse_quantity(s: &str) -> Option<f64> {
    let (number, factor) =
        SUFFIXES.iter().find_map(|(suffix, factor)| Some((s.strip_suffix(suffix)?, factor)))?;
    if !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return None;
    }
    number.parse::<f64>().ok().map(|n| n * factor).filter(|n| *n > 0.0 && n.is_finite())
}

impl FromStr for Quantity {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match parse_quantity(s) {
            Some(_) => Ok(Self(s.to_owned())),
            None => Err(format!(
                "{s:?} is no quantity; use for example 100m or 0.5 for CPU, 64Mi for memory"
            )),
        }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for NativeSidecar {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(Self::Auto),
            "enabled" => Ok(Self::Enabled),
            "disabled" => Ok(Self::Disabled),
            other => Err(format!("{other:?} is none of auto, enabled and disabled")),
        }
    }
}

/// The common part of the filter syntax: `level` and `target=level`, comma-separated.
fn parse_log_filter(s: &str) -> Result<String, String> {
    let level = |word: &str| {
        ["off", "error", "warn", "info", "debug", "trace"]
            .iter()
            .any(|level| word.eq_ignore_ascii_case(level))
    };
    let target = |word: &str| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_:-".contains(&b))
    };
    let directive = |part: &str| match part.split_once('=') {
        None => level(part),
        Some((name, word)) => target(name) && level(word),
    };
    if s.split(',').map(str::trim).all(directive) {
        Ok(s.to_owned())
    } else {
        Err(format!("{s:?} is no log filter; use for example info or warn,remora_proxy=debug"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_one(key: &str, value: &str) -> Result<ProxySettings, InvalidAnnotation> {
        let map = BTreeMap::from([(key.to_owned(), value.to_owned())]);
        ProxySettings::read(&map, &ProxySettings::default())
    }

    #[test]
    fn absent_annotations_leave_the_defaults() {
        let read = ProxySettings::read(&BTreeMap::new(), &ProxySettings::default());
        assert_eq!(read, Ok(ProxySettings::default()));
    }

    #[test]
    fn bad_values_name_the_annotation() {
        for (key, bad) in [
            (annotations::SKIP_INBOUND_PORTS, "http"),
            (annotations::SKIP_SUBNETS, "10.0.0.0/40"),
            (annotations::PROXY_LOG_LEVEL, "loud"),
            (annotations::PROXY_LOG_LEVEL, ""),
            (annotations::PROXY_CPU_LIMIT, "many"),
            (annotations::PROXY_CPU_LIMIT, "0"),
            (annotations::PROXY_MEMORY_LIMIT, "64 Mi"),
            (annotations::PROXY_MEMORY_LIMIT, "infM"),
            (annotations::SHUTDOWN_GRACE_PERIOD, "30"),
            (annotations::ACCESS_LOG, "yes"),
            (annotations::ACCESS_LOG_FORMAT, "xml"),
            (annotations::TRACE_COLLECTOR, "http://collector:4317"),
            (annotations::TRACE_SAMPLE_RATE, "10%"),
            (annotations::DEFAULT_INBOUND_POLICY, "allow"),
            (annotations::DEFAULT_OUTBOUND_POLICY, "all-authenticated"),
            (annotations::INGRESS, "true"),
            (annotations::NATIVE_SIDECAR, "true"),
            (annotations::SKIP_OUTBOUND_PORTS, "0"),
            (annotations::OPAQUE_PORTS, "80-"),
            (annotations::PROXY_CPU_REQUEST, "-1"),
            (annotations::PROXY_MEMORY_REQUEST, "32MiB"),
        ] {
            assert_eq!(read_one(key, bad).unwrap_err().key, key, "{bad}");
        }
    }

    #[test]
    fn workers_follow_the_cpu_limit() {
        for (limit, workers) in [("100m", 1), ("1", 1), ("1.5", 2), ("2500m", 3)] {
            let settings = read_one(annotations::PROXY_CPU_LIMIT, limit).unwrap();
            assert_eq!(settings.resources.workers(), workers, "{limit}");
        }
        assert_eq!(Resources::default().workers(), 1);
    }

    #[test]
    fn a_default_gives_way_to_what_is_said() {
        let memory = |key, value| {
            let resources = read_one(key, value).unwrap().resources;
            let text = |q: Option<Quantity>| q.map(|q| q.to_string()).unwrap_or_default();
            (text(resources.memory_request), text(resources.memory_limit))
        };
        let pair = |request: &str, limit: &str| (request.to_owned(), limit.to_owned());
        assert_eq!(memory(annotations::ACCESS_LOG, "off"), pair("32Mi", "250Mi"));
        assert_eq!(memory(annotations::PROXY_MEMORY_LIMIT, "20Mi"), pair("20Mi", "20Mi"));
        assert_eq!(memory(annotations::PROXY_MEMORY_LIMIT, "1Gi"), pair("32Mi", "1Gi"));
        assert_eq!(memory(annotations::PROXY_MEMORY_REQUEST, "1Gi"), pair("1Gi", "1Gi"));
        assert_eq!(memory(annotations::PROXY_MEMORY_REQUEST, "64Mi"), pair("64Mi", "250Mi"));
    }

    #[test]
    fn a_request_above_its_limit_is_refused() {
        let map = BTreeMap::from([
            (annotations::PROXY_MEMORY_REQUEST.to_owned(), "1Gi".to_owned()),
            (annotations::PROXY_MEMORY_LIMIT.to_owned(), "512Mi".to_owned()),
        ]);
        let error = ProxySettings::read(&map, &ProxySettings::default()).unwrap_err();
        assert_eq!(error.key, annotations::PROXY_MEMORY_REQUEST);
    }
}
