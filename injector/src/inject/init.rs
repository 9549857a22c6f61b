//! The init container that sees to the interception rules.

use k8s_openapi::api::core::v1::{
    Container, EnvVar, EnvVarSource, ObjectFieldSelector, SecurityContext,
};
use remora_core::{
    names::{PROXY_UID, ports},
    settings::{PortSet, RedirectBackend},
};

use super::{INIT_CONTAINER, PROGRAM, proxy::resources, restricted};
use crate::{decide::Settings, proxy_settings::ProxySettings};

/// Address of the pod's node, for the argument that names its agent.
const HOST_IP: &str = "REMORA_HOST_IP";

/// It ends at once; what it leaves is the pod's nftables, or iptables. It writes them itself, or asks
/// the agent of its node.
pub(super) fn container(proxy: &ProxySettings, settings: &Settings) -> Container {
    let command = if settings.redirect_agent {
        vec!["ask".to_owned(), format!("--agent-ip=$({HOST_IP})")]
    } else {
        let default = settings.redirect_backend == RedirectBackend::default();
        let backend = (!default).then(|| format!("--backend={}", settings.redirect_backend));
        ["apply".to_owned()].into_iter().chain(backend).collect()
    };
    let mut args = vec!["redirect".to_owned()];
    args.extend(command);
    args.extend([
        format!("--outbound-port={}", ports::OUTBOUND),
        format!("--inbound-port={}", ports::INBOUND),
        format!("--proxy-uid={PROXY_UID}"),
    ]);
    let mut skip = |flag: &str, ports: &PortSet| {
        if !ports.is_empty() {
            args.push(format!("{flag}={ports}"));
        }
    };
    skip("--skip-inbound-ports", &proxy.skip_inbound_ports);
    skip("--skip-outbound-ports", &proxy.skip_outbound_ports);
    if !proxy.skip_subnets.is_empty() {
        let subnets: Vec<String> = proxy.skip_subnets.iter().map(ToString::to_string).collect();
        args.push(format!("--skip-subnets={}", subnets.join(",")));
    }
    Container {
        name: INIT_CONTAINER.to_owned(),
        image: Some(settings.proxy_image.clone()),
        command: Some(vec![PROGRAM.to_owned()]),
        args: Some(args),
        env: settings.redirect_agent.then(|| vec![host_ip()]),
        resources: resources(&proxy.resources),
        security_context: Some(security(settings)),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    }
}

fn security(settings: &Settings) -> SecurityContext {
    if settings.redirect_agent {
        // As the proxy's user, whose connections are exempt: a second start must reach the agent
        // although the rules are in force.
        return SecurityContext {
            run_as_user: Some(PROXY_UID.into()),
            run_as_group: Some(PROXY_UID.into()),
            run_as_non_root: Some(true),
            ..restricted(None)
        };
    }
    // nf_tables asks for one capability, and for it to be effective: hence root, also in a pod whose
    // containers may not be. Pod Security admits it at level `privileged` only. iptables-legacy speaks
    // to the kernel over a raw socket.
    let mut capabilities = vec!["NET_ADMIN".to_owned()];
    if settings.redirect_backend != RedirectBackend::Nft {
        capabilities.push("NET_RAW".to_owned());
    }
    SecurityContext {
        run_as_user: Some(0),
        run_as_group: Some(0),
        run_as_non_root: Some(false),
        ..restricted(Some(capabilities))
    }
}

fn host_ip() -> EnvVar {
    EnvVar {
        name: HOST_IP.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: None,
                field_path: "status.hostIP".to_owned(),
            }),
            ..EnvVarSource::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iptables_is_asked_for_by_flag_and_needs_a_raw_socket() {
        let of = |redirect_backend| {
            let settings = Settings { redirect_backend, ..Settings::default() };
            let container = container(&ProxySettings::default(), &settings);
            let security = container.security_context.unwrap();
            (container.args.unwrap(), security.capabilities.unwrap().add.unwrap())
        };
        let (args, capabilities) = of(RedirectBackend::Iptables);
        assert_eq!(args[..3], ["redirect", "apply", "--backend=iptables"]);
        assert_eq!(capabilities, ["NET_ADMIN", "NET_RAW"]);
        let (args, capabilities) = of(RedirectBackend::Nft);
        assert!(!args.iter().any(|arg| arg.starts_with("--backend")), "{args:?}");
        assert_eq!(capabilities, ["NET_ADMIN"]);
    }

    #[test]
    fn with_an_agent_on_the_node_the_container_needs_no_privilege() {
        let settings = Settings { redirect_agent: true, ..Settings::default() };
        let proxy =
            ProxySettings { skip_inbound_ports: "22".parse().unwrap(), ..ProxySettings::default() };
        let container = container(&proxy, &settings);
        let args = container.args.unwrap();
        assert_eq!(args[..3], ["redirect", "ask", "--agent-ip=$(REMORA_HOST_IP)"]);
        assert!(args.contains(&"--skip-inbound-ports=22".to_owned()), "{args:?}");
        assert_eq!(container.env.unwrap()[0].name, HOST_IP);
        let security = container.security_context.unwrap();
        assert_eq!(security.run_as_non_root, Some(true));
        assert_eq!(security.capabilities.unwrap().add, None);
    }
}
