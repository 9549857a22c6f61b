//! One address that serves a Service's port.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use remora_core::spiffe::SpiffeId;
use remora_proto::v1 as pb;

use super::wire::{self, WireError};
use crate::{
    balance::{EndpointStats, token::Token},
    metrics::{
        Metrics,
        flow::{Finished, Flow},
        seats::Seat,
    },
};

/// An endpoint and what was observed of it.
///
/// Updates keep the same `Arc<Endpoint>`, and so its statistics, as long as address, identity and
/// pod are the same: owner, node and zone do not change in a pod's life. For which zones it is does.
#[derive(Debug)]
pub struct Endpoint {
    /// What is dialled, also through mTLS.
    pub addr: SocketAddr,
    /// What the peer must prove; `None`: not in the mesh, dialled in plaintext.
    pub identity: Option<SpiffeId>,
    /// Namespace of the pod; empty if unknown, as the following.
    pub namespace: Box<str>,
    /// Name of the pod.
    pub pod: Box<str>,
    /// For example `Deployment/orders`.
    pub owner: Box<str>,
    /// Node it runs on.
    pub node: Box<str>,
    /// Topology zone it runs in.
    pub zone: Box<str>,
    /// Zones that it is for, whatever its own; `None`: its own.
    pub(super) for_zones: ArcSwapOption<Box<[Box<str>]>>,
    /// EWMA, requests in flight, breaker.
    pub stats: EndpointStats,
    /// Attempts that ended.
    pub flow: Flow,
    pub(super) seat: OnceLock<Option<Seat>>,
}

impl Endpoint {
    /// Parses an endpoint that has not been observed yet.
    ///
    /// # Errors
    /// Where address or identity are invalid. A bad identity never means plaintext.
    pub fn parse(endpoint: &pb::Endpoint, now: Instant) -> Result<Self, WireError> {
        let identity = match endpoint.identity.as_str() {
            "" => None,
            uri => Some(
                uri.parse()
                    .map_err(|error| WireError::new("endpoint.identity", format!("{error}")))?,
            ),
        };
        let addr = wire::address("endpoint.address", endpoint.address.as_ref())?;
        Ok(Self {
            addr,
            identity,
            namespace: endpoint.namespace.as_str().into(),
            pod: endpoint.pod.as_str().into(),
            owner: endpoint.owner.as_str().into(),
            node: endpoint.node.as_str().into(),
            zone: endpoint.zone.as_str().into(),
            for_zones: ArcSwapOption::new(for_zones(&endpoint.for_zones)),
            stats: EndpointStats::new(now).named(Token::of(addr, &endpoint.pod)),
            flow: Flow::default(),
            seat: OnceLock::new(),
        })
    }

    /// Whether this is the same peer as another, so that observations of one hold for the other.
    #[must_use]
    pub fn is_same_peer(&self, other: &Self) -> bool {
        self.addr == other.addr
            && self.identity == other.identity
            && self.namespace == other.namespace
            && self.pod == other.pod
    }

    /// Takes over what may change of the same peer.
    pub(super) fn follow(&self, newer: &Self) {
        self.for_zones.store(newer.for_zones.load_full());
    }

    /// Whether it is near callers of a zone.
    #[must_use]
    pub fn is_for(&self, zone: &str) -> bool {
        !zone.is_empty()
            && match &*self.for_zones.load() {
                Some(zones) => zones.iter().any(|one| **one == *zone),
                None => *self.zone == *zone,
            }
    }

    /// Counts an attempt that ended `now`, `took` after it was sent.
    pub fn finished(&self, metrics: &Metrics, finished: &Finished, took: Duration, now: Instant) {
        self.flow.finished(finished, took, now);
        if !self.has_series(metrics) {
            metrics.others.finished(finished, took, now);
        }
    }

    /// Counts an attempt that failed without a response.
    pub fn unanswered(&self, metrics: &Metrics, took: Duration) {
        self.flow.unanswered(took);
        if !self.has_series(metrics) {
            metrics.others.unanswered(took);
        }
    }

    /// Counts an attempt whose client left before there was a response.
    pub fn left(&self, metrics: &Metrics) {
        self.flow.left();
        if !self.has_series(metrics) {
            metrics.others.left();
        }
    }

    fn has_series(&self, metrics: &Metrics) -> bool {
        self.seat.get_or_init(|| metrics.seats.take()).is_some()
    }

    /// Whether it is shown by itself: something was counted, and there was a place for its series.
    #[must_use]
    pub fn is_shown(&self) -> bool {
        self.seat.get().is_some_and(Option::is_some)
    }
}

fn for_zones(wire: &[String]) -> Option<Arc<Box<[Box<str>]>>> {
    let zones: Box<[Box<str>]> = wire.iter().map(|zone| zone.as_str().into()).collect();
    (!zones.is_empty()).then(|| Arc::new(zones))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(ip: &[u8], port: u32, identity: &str) -> pb::Endpoint {
        pb::Endpoint {
            address: Some(pb::SocketAddress { ip: ip.to_vec(), port }),
            identity: identity.to_owned(),
            ..pb::Endpoint::default()
        }
    }

    #[test]
    fn both_families_are_read() {
        let now = tokio::time::Instant::now().into_std();
        let v4 = Endpoint::parse(&wire(&[10, 0, 0, 1], 80, ""), now).unwrap();
        assert_eq!(v4.addr, "10.0.0.1:80".parse().unwrap());
        let mut ip = [0; 16];
        ip[15] = 1;
        let v6 = Endpoint::parse(&wire(&ip, 80, ""), now).unwrap();
        assert_eq!(v6.addr, "[::1]:80".parse().unwrap());
    }

    #[test]
    fn bad_address_port_or_identity_is_refused() {
        let now = tokio::time::Instant::now().into_std();
        for bad in [
            wire(&[1, 2, 3], 80, ""),
            wire(&[1, 2, 3, 4], 0, ""),
            wire(&[1, 2, 3, 4], 65_536, ""),
            wire(&[1, 2, 3, 4], 80, "spiffe://cluster.local/nonsense"),
            pb::Endpoint::default(),
        ] {
            assert!(Endpoint::parse(&bad, now).is_err(), "{bad:?}");
        }
    }
}
