//! The init container that writes the interception rules.

use k8s_openapi::api::core::v1::{Container, SecurityContext};
use remora_core::{
    names::{PROXY_UID, ports},
    settings::PortSet,
};

use super::{INIT_CONTAINER, PROGRAM, proxy::resources, restricted};
use crate::{decide::Settings, proxy_settings::ProxySettings};

/// It ends at once; what it leaves is the pod's nftables.
pub(super) fn container(proxy: &ProxySettings, settings: &Settings) -> Container {
    let mut args = vec![
        "redirect".to_owned(),
        "apply".to_owned(),
        format!("--outbound-port={}", ports::OUTBOUND),
        format!("--inbound-port={}", ports::INBOUND),
        format!("--proxy-uid={PROXY_UID}"),
    ];
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
        resources: resources(&proxy.resources),
        // nf_tables asks for this one capability, and for it to be effective: hence root, also in a
        // pod whose containers may not be. Pod Security admits it at level `privileged` only.
        security_context: Some(SecurityContext {
            run_as_user: Some(0),
            run_as_group: Some(0),
            run_as_non_root: Some(false),
            ..restricted(Some(vec!["NET_ADMIN".to_owned()]))
        }),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    }
}
