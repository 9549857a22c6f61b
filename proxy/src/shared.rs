//! What the workers and the control thread share.

use std::{net::IpAddr, sync::Arc};

use remora_core::{drain, settings::HeaderSize};

use crate::{
    discovery::Discovery,
    metrics::Metrics,
    net::{admission::Admission, connect::Connector},
    sight::Sight,
    tls::identity::Identity,
};

/// Handles; cloning is cheap.
#[derive(Debug, Clone)]
pub struct Shared {
    /// Answers of the control plane.
    pub discovery: Discovery,
    /// Certificate and roots.
    pub identity: Identity,
    /// How to dial.
    pub connector: Connector,
    /// Places for connections.
    pub admission: Arc<Admission>,
    /// Largest head of a request.
    pub max_header_size: HeaderSize,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// What happened to requests.
    pub sight: Arc<Sight>,
    /// When to end.
    pub drain: drain::Watch,
    /// Addresses of the pod.
    pub pod_ips: Arc<[IpAddr]>,
}
