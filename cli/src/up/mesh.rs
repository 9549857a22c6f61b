//! What the mesh's own crates do for `up`: the one place where their functions are called.

use std::{collections::BTreeMap, net::SocketAddr};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use remora_core::{
    names::{PROXY_MARK, PROXY_UID, annotations, ports},
    settings::{InvalidAnnotation, PortSet, parse_subnets, read},
};
use remora_proxy::redirect::{self, Exempt, RedirectConfig, ServiceNat, ServiceVip};

use super::{error::Error, services::Vip};

/// Whether a pod gets a sidecar; `Err` is a warning, the pod then gets none.
///
/// # Errors
/// Where an annotation cannot be read.
pub fn wants_sidecar(pod: &Pod, namespace: Option<&Namespace>) -> Result<bool, String> {
    use remora_core::settings::{Inject, read};
    let of = |map: Option<&std::collections::BTreeMap<String, String>>| match map {
        None => Ok(None),
        Some(map) => {
            read(map, annotations::INJECT, str::parse::<Inject>).map_err(|e| e.to_string())
        }
    };
    let pod = of(pod.metadata.annotations.as_ref())?;
    let namespace = of(namespace.and_then(|n| n.metadata.annotations.as_ref()))?;
    Ok(pod.or(namespace) == Some(Inject::Enabled))
}

/// Puts the redirect rules of a pod in force, in the network namespace of the calling thread.
///
/// # Errors
/// Where an annotation cannot be read or the kernel refuses.
pub fn redirect(pod: &Pod, one_user: bool) -> Result<(), Error> {
    let none = BTreeMap::new();
    let map = pod.metadata.annotations.as_ref().unwrap_or(&none);
    let annotation = |e: InvalidAnnotation| Error::Mesh(e.to_string());
    let ports = |key| read(map, key, str::parse::<PortSet>).map_err(annotation);
    let config = RedirectConfig {
        outbound_port: ports::OUTBOUND,
        inbound_port: ports::INBOUND,
        admin_port: ports::PROXY_ADMIN,
        exempt: if one_user { Exempt::Mark(PROXY_MARK) } else { Exempt::Uid(PROXY_UID) },
        skip_inbound: ports(annotations::SKIP_INBOUND_PORTS)?.unwrap_or_default(),
        skip_outbound: ports(annotations::SKIP_OUTBOUND_PORTS)?.unwrap_or_default(),
        skip_subnets: read(map, annotations::SKIP_SUBNETS, parse_subnets)
            .map_err(annotation)?
            .unwrap_or_default(),
    };
    redirect::apply(&config).map_err(|e| Error::Mesh(e.to_string()))
}

/// Translates Service addresses on the node, for pods without a sidecar.
///
/// # Errors
/// Where the kernel refuses.
pub fn translate(vips: &[Vip]) -> Result<(), Error> {
    let services = vips
        .iter()
        .filter(|vip| !vip.udp)
        .map(|vip| ServiceVip {
            vip: vip.address.into(),
            port: vip.port,
            endpoints: vip.targets.iter().map(|target| SocketAddr::from(*target)).collect(),
        })
        .collect();
    ServiceNat::new(services).apply().map_err(|e| Error::Mesh(e.to_string()))
}
