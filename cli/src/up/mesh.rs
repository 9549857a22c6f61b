//! What the mesh's own crates do for `up`: the one place where their functions are called.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use remora_core::names::{PROXY_MARK, PROXY_UID};
use remora_injector::{Decision, NamespaceInfo, ProxySettings, Settings, decide};
use remora_proxy::redirect::{self, Exempt, RedirectConfig, ServiceNat, ServiceVip};

use super::{error::Error, manifests::key, services::Vip};

/// Whether a pod gets a sidecar, and with which settings: the injector's own decision, with what
/// its owner should know.
///
/// # Errors
/// Where a sidecar was asked for but cannot be given. Such a pod must not run without one.
pub fn sidecar(
    pod: &Pod,
    namespace: Option<&Namespace>,
) -> Result<(Option<ProxySettings>, Vec<String>), String> {
    let namespace = NamespaceInfo {
        name: key(&pod.metadata).0,
        annotations: namespace.and_then(|n| n.metadata.annotations.clone()).unwrap_or_default(),
    };
    match decide(pod, &namespace, &Settings::default()) {
        Decision::Inject(plan) => Ok((Some(plan.proxy), plan.warnings)),
        Decision::Skip(_) => Ok((None, Vec::new())),
        Decision::Refuse(refusal) => Err(refusal.to_string()),
    }
}

/// Puts the redirect rules of a pod in force, in the network namespace of the calling thread.
///
/// # Errors
/// Where the kernel refuses.
pub fn redirect(settings: &ProxySettings, one_user: bool) -> Result<(), Error> {
    let config = RedirectConfig {
        exempt: if one_user { Exempt::Mark(PROXY_MARK) } else { Exempt::Uid(PROXY_UID) },
        skip_inbound: settings.skip_inbound_ports.clone(),
        skip_outbound: settings.skip_outbound_ports.clone(),
        skip_subnets: settings.skip_subnets.clone(),
        ..RedirectConfig::default()
    };
    redirect::apply(&config).map_err(|error| Error::Network {
        what: "intercept the pod's connections".into(),
        problem: error.to_string(),
    })
}

/// Translates Service addresses on the node, for pods without a sidecar. TCP only.
///
/// # Errors
/// Where the kernel refuses.
pub fn translate(vips: &[Vip]) -> Result<(), Error> {
    let vips = vips.iter().filter(|vip| !vip.udp).map(|vip| ServiceVip {
        vip: IpAddr::V4(vip.address),
        port: vip.port,
        endpoints: vip.targets.iter().copied().map(SocketAddr::from).collect(),
        shared: vip.node,
    });
    ServiceNat::new(vips.collect()).apply().map_err(|error| Error::Network {
        what: "translate Service addresses".into(),
        problem: error.to_string(),
    })
}
