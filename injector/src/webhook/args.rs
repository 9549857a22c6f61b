//! The flags.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use remora_core::{
    names::{self, annotations},
    settings::{InvalidAnnotation, RedirectBackend},
};

use crate::{NativeSidecar, ProxySettings, Settings};

/// The program's flags.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// How to reach the cluster; without it the pod's own account or the usual kubeconfig.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace that the injector runs in.
    #[arg(long, value_name = "NAME", default_value = names::SYSTEM_NAMESPACE)]
    pub namespace: String,
    /// Address of the webhook.
    #[arg(long, value_name = "ADDR", default_value = "[::]:8443")]
    pub listen: SocketAddr,
    /// Address of the admin server.
    #[arg(long, value_name = "ADDR", default_value = "[::]:9995")]
    pub admin_listen: SocketAddr,
    /// Image of the proxy.
    #[arg(long, value_name = "IMAGE")]
    pub proxy_image: Option<String>,
    /// Address of the control plane, as proxies dial it.
    #[arg(long, value_name = "HOST:PORT")]
    pub control_plane: Option<String>,
    /// Trust domain of the SPIFFE ids.
    #[arg(long, value_name = "NAME", default_value = names::TRUST_DOMAIN)]
    pub trust_domain: String,
    /// DNS suffix of the cluster.
    #[arg(long, value_name = "NAME", default_value = names::CLUSTER_DOMAIN)]
    pub cluster_domain: String,
    /// Form of the sidecar: enabled (a native one), disabled (an ordinary container), or auto
    /// (native from Kubernetes 1.29 on).
    #[arg(long, value_name = "FORM", default_value = "auto")]
    pub native_sidecar: NativeSidecar,
    /// Sidecars ask an agent on their node for the interception rules, instead of writing them with
    /// the capability NET_ADMIN.
    #[arg(long)]
    pub redirect_agent: bool,
    /// What writes the rules otherwise: nft, iptables (the image must have its programs; needs the
    /// capability NET_RAW too), or auto (nft, where the kernel has nf_tables; else iptables).
    #[arg(long, value_name = "BACKEND", default_value_t, conflicts_with = "redirect_agent")]
    pub redirect_backend: RedirectBackend,
    /// Name of the MutatingWebhookConfiguration whose caBundles are kept.
    #[arg(long, value_name = "NAME", default_value = names::WEBHOOK_CONFIGURATION)]
    pub webhook_configuration: String,
    /// Name under which this replica writes events; the pod's host name.
    #[arg(
        long,
        value_name = "NAME",
        env = "HOSTNAME",
        default_value = "remora-injector",
        hide_env = true
    )]
    pub instance: String,
    /// What pods get whose annotations do not say otherwise.
    #[command(flatten)]
    pub defaults: Defaults,
}

/// Flags of the same meaning as the annotations `config.remora.io/…`.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Defaults of the annotations config.remora.io/…")]
pub struct Defaults {
    /// Ports whose inbound connections bypass the proxy.
    #[arg(long, value_name = "PORTS")]
    skip_inbound_ports: Option<String>,
    /// Ports whose outbound connections bypass the proxy.
    #[arg(long, value_name = "PORTS")]
    skip_outbound_ports: Option<String>,
    /// Networks whose traffic bypasses the proxy.
    #[arg(long, value_name = "SUBNETS")]
    skip_subnets: Option<String>,
    /// Ports carried as bytes.
    #[arg(long, value_name = "PORTS")]
    opaque_ports: Option<String>,
    /// Log filter of the proxies.
    #[arg(long, value_name = "FILTER")]
    proxy_log_level: Option<String>,
    /// CPU set aside for a proxy.
    #[arg(long, value_name = "QUANTITY")]
    proxy_cpu_request: Option<String>,
    /// CPU of a proxy at most.
    #[arg(long, value_name = "QUANTITY")]
    proxy_cpu_limit: Option<String>,
    /// Memory set aside for a proxy.
    #[arg(long, value_name = "QUANTITY")]
    proxy_memory_request: Option<String>,
    /// Memory of a proxy at most.
    #[arg(long, value_name = "QUANTITY")]
    proxy_memory_limit: Option<String>,
    /// Time a draining proxy waits for open requests.
    #[arg(long, value_name = "TIME")]
    shutdown_grace_period: Option<String>,
    /// Which requests get a line of proxies: off, errors, sampled or all.
    #[arg(long, value_name = "WHICH")]
    access_log: Option<String>,
    /// How those lines look: text or json.
    #[arg(long, value_name = "FORMAT")]
    access_log_format: Option<String>,
    /// Where proxies send spans, OTLP over gRPC.
    #[arg(long, value_name = "HOST:PORT")]
    trace_collector: Option<String>,
    /// Share of requests that are traced where their caller does not say, 0.0 to 1.0.
    #[arg(long, value_name = "SHARE")]
    trace_sample_rate: Option<String>,
    /// Who may call where no policy says otherwise.
    #[arg(long, value_name = "POLICY")]
    default_inbound_policy: Option<String>,
    /// Largest head of a request.
    #[arg(long, value_name = "SIZE")]
    max_header_size: Option<String>,
}

impl Defaults {
    /// The defaults as the annotations' parser reads them.
    ///
    /// # Errors
    /// Names the flag that cannot be used.
    fn read(&self) -> Result<ProxySettings, String> {
        let given = [
            (annotations::SKIP_INBOUND_PORTS, &self.skip_inbound_ports),
            (annotations::SKIP_OUTBOUND_PORTS, &self.skip_outbound_ports),
            (annotations::SKIP_SUBNETS, &self.skip_subnets),
            (annotations::OPAQUE_PORTS, &self.opaque_ports),
            (annotations::PROXY_LOG_LEVEL, &self.proxy_log_level),
            (annotations::PROXY_CPU_REQUEST, &self.proxy_cpu_request),
            (annotations::PROXY_CPU_LIMIT, &self.proxy_cpu_limit),
            (annotations::PROXY_MEMORY_REQUEST, &self.proxy_memory_request),
            (annotations::PROXY_MEMORY_LIMIT, &self.proxy_memory_limit),
            (annotations::SHUTDOWN_GRACE_PERIOD, &self.shutdown_grace_period),
            (annotations::ACCESS_LOG, &self.access_log),
            (annotations::ACCESS_LOG_FORMAT, &self.access_log_format),
            (annotations::TRACE_COLLECTOR, &self.trace_collector),
            (annotations::TRACE_SAMPLE_RATE, &self.trace_sample_rate),
            (annotations::DEFAULT_INBOUND_POLICY, &self.default_inbound_policy),
            (annotations::MAX_HEADER_SIZE, &self.max_header_size),
        ];
        let map: BTreeMap<String, String> = given
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), value.clone()?)))
            .collect();
        ProxySettings::read(&map, &ProxySettings::default()).map_err(
            |InvalidAnnotation { key, problem }| {
                format!("--{}: {problem}", key.trim_start_matches(annotations::CONFIG_PREFIX))
            },
        )
    }
}

impl Args {
    /// What holds for every pod, but for the form of the sidecar.
    ///
    /// # Errors
    /// Names the flag that cannot be used.
    pub(super) fn settings(&self) -> Result<Settings, String> {
        let default = Settings::default();
        let control_plane = || {
            format!(
                "remora-control-plane.{}.svc.{}:{}",
                self.namespace,
                self.cluster_domain,
                names::ports::CONTROL_PLANE
            )
        };
        Ok(Settings {
            proxy_image: self.proxy_image.clone().unwrap_or(default.proxy_image),
            control_plane: self.control_plane.clone().unwrap_or_else(control_plane),
            trust_domain: self.trust_domain.clone(),
            redirect_agent: self.redirect_agent,
            redirect_backend: self.redirect_backend,
            defaults: self.defaults.read()?,
            ..Settings::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        args: Args,
    }

    fn settings(flags: &[&str]) -> Result<Settings, String> {
        Program::try_parse_from(["injector"].iter().chain(flags)).unwrap().args.settings()
    }

    #[test]
    fn flags_are_the_defaults_of_annotations() {
        let settings = settings(&["--proxy-cpu-limit=1500m", "--access-log", "all"]).unwrap();
        assert_eq!(settings.defaults.resources.workers(), 2);
        assert_eq!(settings.defaults.access_log, crate::AccessLog::All);
        assert_eq!(
            settings.control_plane,
            "remora-control-plane.remora-system.svc.cluster.local:8086"
        );
    }

    #[test]
    fn a_bad_default_names_its_flag() {
        let error = settings(&["--opaque-ports=x"]).unwrap_err();
        assert!(error.starts_with("--opaque-ports: "), "{error}");
    }

    #[test]
    fn every_annotation_that_configures_the_sidecar_has_a_flag() {
        let command = <Program as clap::CommandFactory>::command();
        let live = |key: &&str| annotations::LIVE.contains(key);
        for annotation in annotations::CONFIG.into_iter().filter(|key| !live(key)) {
            let flag = annotation.trim_start_matches(annotations::CONFIG_PREFIX);
            assert!(command.get_arguments().any(|a| a.get_long() == Some(flag)), "--{flag}");
        }
    }
}
