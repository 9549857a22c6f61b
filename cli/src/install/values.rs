//! What can be chosen about an installation. `deploy/values.yaml` has the defaults and says what
//! each is for; it is the Helm chart's file of values as well.

use std::{collections::BTreeMap, fs, io, path::PathBuf, str::FromStr};

use remora_core::{names::annotations, spiffe::SpiffeId};
use remora_injector::{ProxySettings, proxy_settings::Quantity};
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use serde_json::Value;

use super::template;

/// Defaults, with the version still open.
pub(super) const DEFAULTS: &str = include_str!("../../../deploy/values.yaml");

/// Choices that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ValuesError {
    /// The file cannot be read.
    #[error("--values {}: cannot read it: {source}", file.display())]
    Read {
        /// Its path.
        file: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The file is no YAML map.
    #[error("--values {}: {problem}", file.display())]
    Syntax {
        /// Its path.
        file: PathBuf,
        /// What is wrong, with the line.
        problem: String,
    },
    /// `--set` without a value.
    #[error("--set {0:?}: write it as NAME=VALUE, for example controlPlane.replicas=3")]
    Set(String),
    /// There is no such value, or it has another type.
    #[error("value {name}: {problem}; `remora install --show-values` lists them all")]
    Shape {
        /// Path of the value.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// It has the right type and still cannot be used.
    #[error("value {name}: {problem}")]
    Unusable {
        /// Path of the value.
        name: &'static str,
        /// What is wrong, and what to write.
        problem: String,
    },
}

/// Where choices come from; each overrides those before it.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// Files in the form of `deploy/values.yaml`.
    pub(super) files: Vec<PathBuf>,
    /// `NAME=VALUE`.
    pub(super) set: Vec<String>,
    /// Flags of their own: path and value.
    pub(super) flags: Vec<(&'static str, Value)>,
}

/// Every choice, checked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Values {
    image: String,
    image_pull_policy: PullPolicy,
    image_pull_secrets: Vec<BTreeMap<String, String>>,
    trust_domain: String,
    cluster_domain: String,
    external_issuer: bool,
    webhook_failure_policy: FailurePolicy,
    webhook_timeout_seconds: u32,
    lint_webhook: bool,
    native_sidecar: NativeSidecar,
    redirect_agent: bool,
    redirect_backend: RedirectBackend,
    proxy: Proxy,
    control_plane: Program,
    injector: Program,
    log_format: LogFormat,
    node_selector: BTreeMap<String, String>,
    tolerations: Vec<Value>,
    priority_class_name: String,
    create_namespace: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Proxy {
    cpu_request: Text,
    cpu_limit: Text,
    memory_request: Text,
    memory_limit: Text,
    log_level: Text,
    access_log: Text,
    access_log_format: Text,
    trace_collector: Text,
    trace_sample_rate: Text,
    default_inbound_policy: Text,
    skip_inbound_ports: Text,
    skip_outbound_ports: Text,
    skip_subnets: Text,
    opaque_ports: Text,
    shutdown_grace_period: Text,
    max_header_size: Text,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Program {
    replicas: u32,
    log_level: String,
    resources: Resources,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Resources {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    requests: BTreeMap<String, Text>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    limits: BTreeMap<String, Text>,
}

/// A text which YAML takes for a number where it is a bare one: `cpu: 1`, `opaquePorts: 3306`.
#[derive(Debug, Clone, Serialize)]
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Self(text)),
            Value::Number(number) => Ok(Self(number.to_string())),
            other => Err(D::Error::custom(format!("{other} is neither text nor number"))),
        }
    }
}

/// When the kubelet pulls the image.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, clap::ValueEnum)]
#[value(rename_all = "PascalCase")]
pub(super) enum PullPolicy {
    /// Each time a container starts.
    Always,
    /// Where the node has none of that name.
    IfNotPresent,
    /// It must be on the node.
    Never,
}

/// What becomes of a pod that asked for a sidecar while no injector answers.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, clap::ValueEnum)]
#[value(rename_all = "PascalCase")]
pub(super) enum FailurePolicy {
    /// It is not created until one does.
    Fail,
    /// It starts without a sidecar.
    Ignore,
}

/// Whether sidecars are native ones.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum NativeSidecar {
    /// Where the cluster knows them (Kubernetes 1.29).
    Auto,
    /// Always.
    Enabled,
    /// Never: ordinary containers.
    Disabled,
}

/// What writes the interception rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum RedirectBackend {
    /// nf_tables, over netlink.
    Nft,
    /// The programs of iptables, which the image must have.
    Iptables,
    /// nf_tables, where the kernel has it; else iptables.
    Auto,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LogFormat {
    Text,
    Json,
}

/// `deploy/values.yaml` of this version.
pub(super) fn defaults(version: &str) -> String {
    template::render(DEFAULTS, &serde_json::json!({ template::VERSION: version }))
}

/// Every value that the templates name, for an installation of `version`.
///
/// # Errors
/// Names the file, flag or value that cannot be used.
pub(super) fn resolve(version: &str, sources: Sources) -> Result<Value, ValuesError> {
    let mut tree: Value = serde_saphyr::from_str(&defaults(version))
        .expect("invariant: the defaults are part of the program, and tests read them");
    for file in sources.files {
        merge(&mut tree, read(file)?);
    }
    for text in sources.set {
        let Some((name, value)) = text.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            return Err(ValuesError::Set(text));
        };
        merge(&mut tree, nested(name, scalar(value)));
    }
    for (name, value) in sources.flags {
        merge(&mut tree, nested(name, value));
    }
    let values: Values = serde_path_to_error::deserialize(tree).map_err(|error| {
        let name = error.path().to_string();
        ValuesError::Shape { name, problem: error.into_inner().to_string() }
    })?;
    values.check()?;
    let mut tree = serde_json::to_value(values).expect("invariant: values have string keys");
    tree[template::VERSION] = version.into();
    Ok(tree)
}

fn read(file: PathBuf) -> Result<Value, ValuesError> {
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(source) => return Err(ValuesError::Read { file, source }),
    };
    match serde_saphyr::from_str::<Value>(&text) {
        Ok(Value::Null) => Ok(Value::Object(serde_json::Map::new())),
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => {
            Err(ValuesError::Syntax { file, problem: "not a map of names to values".to_owned() })
        }
        Err(error) => {
            let problem = error.to_string();
            let problem = problem.lines().next().unwrap_or_default().to_owned();
            Err(ValuesError::Syntax { file, problem })
        }
    }
}

/// Maps are merged, everything else is replaced, as Helm does.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// `a.b` → `{a: {b: value}}`.
fn nested(name: &str, value: Value) -> Value {
    name.rsplit('.').fold(value, |value, key| serde_json::json!({ key: value }))
}

fn scalar(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(value @ (Value::Bool(_) | Value::Number(_))) => value,
        _ => Value::String(text.to_owned()),
    }
}

impl Values {
    fn check(&self) -> Result<(), ValuesError> {
        let unusable = |name, problem| Err(ValuesError::Unusable { name, problem });
        if self.image.is_empty() || self.image.contains(char::is_whitespace) {
            return unusable("image", format!("{:?} is no image; write NAME:TAG", self.image));
        }
        if let Err(error) = SpiffeId::control_plane(&self.trust_domain) {
            return unusable("trustDomain", error.to_string());
        }
        if !is_dns_name(&self.cluster_domain) {
            let problem = format!("{:?} is no DNS name", self.cluster_domain);
            return unusable("clusterDomain", problem);
        }
        if !(1..=30).contains(&self.webhook_timeout_seconds) {
            let problem = format!("{} is not from 1 to 30", self.webhook_timeout_seconds);
            return unusable("webhookTimeoutSeconds", problem);
        }
        if self.redirect_agent && self.redirect_backend != RedirectBackend::Nft {
            let problem = "the redirect agent writes nft only; leave one of the two out".to_owned();
            return unusable("redirectBackend", problem);
        }
        self.proxy.check()?;
        self.control_plane.check(["controlPlane.replicas", "controlPlane.resources"])?;
        self.injector.check(["injector.replicas", "injector.resources"])
    }
}

impl Proxy {
    /// As the injector will read them.
    fn check(&self) -> Result<(), ValuesError> {
        for (name, key, Text(text)) in [
            ("proxy.cpuRequest", annotations::PROXY_CPU_REQUEST, &self.cpu_request),
            ("proxy.cpuLimit", annotations::PROXY_CPU_LIMIT, &self.cpu_limit),
            ("proxy.memoryRequest", annotations::PROXY_MEMORY_REQUEST, &self.memory_request),
            ("proxy.memoryLimit", annotations::PROXY_MEMORY_LIMIT, &self.memory_limit),
            ("proxy.logLevel", annotations::PROXY_LOG_LEVEL, &self.log_level),
            ("proxy.accessLog", annotations::ACCESS_LOG, &self.access_log),
            ("proxy.accessLogFormat", annotations::ACCESS_LOG_FORMAT, &self.access_log_format),
            ("proxy.traceCollector", annotations::TRACE_COLLECTOR, &self.trace_collector),
            ("proxy.traceSampleRate", annotations::TRACE_SAMPLE_RATE, &self.trace_sample_rate),
            (
                "proxy.defaultInboundPolicy",
                annotations::DEFAULT_INBOUND_POLICY,
                &self.default_inbound_policy,
            ),
            ("proxy.skipInboundPorts", annotations::SKIP_INBOUND_PORTS, &self.skip_inbound_ports),
            (
                "proxy.skipOutboundPorts",
                annotations::SKIP_OUTBOUND_PORTS,
                &self.skip_outbound_ports,
            ),
            ("proxy.skipSubnets", annotations::SKIP_SUBNETS, &self.skip_subnets),
            ("proxy.opaquePorts", annotations::OPAQUE_PORTS, &self.opaque_ports),
            (
                "proxy.shutdownGracePeriod",
                annotations::SHUTDOWN_GRACE_PERIOD,
                &self.shutdown_grace_period,
            ),
            ("proxy.maxHeaderSize", annotations::MAX_HEADER_SIZE, &self.max_header_size),
        ] {
            if !text.is_empty() {
                let annotation = BTreeMap::from([(key.to_owned(), text.clone())]);
                ProxySettings::read(&annotation, &ProxySettings::default())
                    .map_err(|error| ValuesError::Unusable { name, problem: error.problem })?;
            }
        }
        Ok(())
    }
}

impl Program {
    fn check(&self, [replicas, resources]: [&'static str; 2]) -> Result<(), ValuesError> {
        if !(1..=100).contains(&self.replicas) {
            let problem = format!("{} is not from 1 to 100", self.replicas);
            return Err(ValuesError::Unusable { name: replicas, problem });
        }
        self.resources
            .requests
            .values()
            .chain(self.resources.limits.values())
            .try_for_each(|text| quantity(resources, text))
    }
}

fn quantity(name: &'static str, amount: &Text) -> Result<(), ValuesError> {
    Quantity::from_str(&amount.0)
        .map(drop)
        .map_err(|problem| ValuesError::Unusable { name, problem })
}

fn is_dns_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(texts: &[&str]) -> Result<Value, ValuesError> {
        let set = texts.iter().map(|text| (*text).to_owned()).collect();
        resolve("1.2.3", Sources { set, ..Sources::default() })
    }

    #[test]
    fn the_default_image_has_the_version() {
        assert_eq!(set(&[]).unwrap()["image"], "ghcr.io/remora-io/remora:1.2.3");
    }

    #[test]
    fn the_agent_writes_nft_only() {
        let error = set(&["redirectAgent=true", "redirectBackend=auto"]).unwrap_err().to_string();
        assert!(
            error.starts_with("value redirectBackend: the redirect agent writes nft"),
            "{error}"
        );
        assert!(set(&["redirectAgent=true"]).is_ok() && set(&["redirectBackend=auto"]).is_ok());
    }

    #[test]
    fn a_value_that_cannot_be_used_is_named_with_the_mend() {
        for (text, said) in [
            ("colour=red", "value colour: unknown field `colour`, expected one of `image`"),
            (
                "controlPlane.replicas=many",
                "value controlPlane.replicas: invalid type: string \"many\"",
            ),
            ("injector.replicas=0", "value injector.replicas: 0 is not from 1 to 100"),
            (
                "webhookFailurePolicy=fail",
                "value webhookFailurePolicy: unknown variant `fail`, expected `Fail` or `Ignore`",
            ),
            ("trustDomain=Über", "value trustDomain: \"spiffe://Über/ns/"),
            ("clusterDomain=.local", "value clusterDomain: \".local\" is no DNS name"),
            (
                "injector.resources.limits.memory=much",
                "value injector.resources: \"much\" is no quantity; use",
            ),
            ("image=", "value image: \"\" is no image"),
            ("proxy.skipSubnets=10.0.0.0/33", "value proxy.skipSubnets: \"10.0.0.0/33\""),
            ("webhookTimeoutSeconds=31", "value webhookTimeoutSeconds: 31 is not from 1 to 30"),
            ("image", "--set \"image\": write it as NAME=VALUE"),
        ] {
            let error = set(&[text]).unwrap_err().to_string();
            assert!(error.starts_with(said), "{text}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn a_later_source_overrides_only_what_it_names() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("values.yaml");
        fs::write(&file, "controlPlane: {replicas: 3}\nimage: a:1\n").unwrap();
        let values = resolve(
            "1.2.3",
            Sources {
                files: vec![file],
                set: vec!["image=b:1".to_owned()],
                flags: vec![("injector.replicas", 5.into())],
            },
        )
        .unwrap();
        assert_eq!(values["controlPlane"]["replicas"], 3);
        assert_eq!(values["controlPlane"]["resources"]["requests"]["memory"], "64Mi");
        assert_eq!(values["image"], "b:1");
        assert_eq!(values["injector"]["replicas"], 5);
    }
}
