//! What holds for the connections that a pod opens: may they leave the mesh, and does the address of a
//! pod mean the pod or its Service.

use std::{collections::HashSet, net::SocketAddr};

use remora_core::{
    names::annotations,
    settings::{self, Ingress, OutboundPolicy},
};

use super::{
    Index, Name,
    answer::{Answer, Caller, Target},
    model::Dials,
};
use crate::source::ServiceKind;

impl Index {
    /// What a target that nothing is known of is for a caller.
    pub(super) fn outside(&self, target: &Target, caller: &Caller) -> Answer {
        let (own, on_namespace) = self.dials(caller);
        if settings::in_force(own.policy, on_namespace.policy) != Some(OutboundPolicy::Deny) {
            return Answer::NotOurs;
        }
        let what = match target {
            Target::Address(address) => address.to_string(),
            Target::Authority(host, port) => format!("{host}:{port}"),
            Target::Inbound => return Answer::NotOurs,
        };
        let Caller { namespace, pod, .. } = caller;
        let whose = match own.policy {
            Some(_) => format!("pod {namespace}/{pod}"),
            None => format!("namespace {namespace}"),
        };
        let message = format!(
            "{what} is outside the mesh, and annotation {} of {whose} is deny; make it allow, or \
             give {what} a Service with an EndpointSlice",
            annotations::DEFAULT_OUTBOUND_POLICY
        );
        Answer::Refused(message.into())
    }

    /// Whether a caller means Services where it dials pods.
    pub(super) fn is_ingress(&self, caller: &Caller) -> bool {
        let (own, on_namespace) = self.dials(caller);
        settings::in_force(own.ingress, on_namespace.ingress) == Some(Ingress::Enabled)
    }

    /// The one Service port that balances over an address of a pod; `None` where there is none, and
    /// where there are several: which of their policies is meant nobody can tell.
    ///
    /// A slice may name another pod at the address than the one that has it now: while an address is
    /// handed on, there are two.
    pub(super) fn service_behind(&self, address: SocketAddr) -> Option<(Name, u16)> {
        let ip = [address.ip()];
        let pods = self.pods_at.of(&ip[0]);
        let services: HashSet<Name> = pods.flat_map(|pod| self.services_naming(pod, &ip)).collect();
        let balanced = services.into_iter().filter(|name| {
            self.services.get(name).is_some_and(|s| s.object.kind == ServiceKind::Balanced)
        });
        let mut found = balanced.flat_map(|name| {
            let ports = self.snapshots.get(&name).into_iter().flatten();
            let has = ports.filter(|(_, port)| {
                port.producer.endpoints.binary_search_by_key(&address, |e| e.address).is_ok()
            });
            has.map(move |(port, _)| (name.clone(), *port)).collect::<Vec<_>>()
        });
        let first = found.next()?;
        found.next().is_none().then_some(first)
    }

    fn dials(&self, caller: &Caller) -> (Dials, Dials) {
        let pod = self.pods.get(&Name::new(&caller.namespace, &caller.pod));
        let namespace = self.namespaces.get(caller.namespace.as_str());
        let dials = |dials: Option<&Dials>| dials.copied().unwrap_or_default();
        (dials(pod.map(|pod| &pod.dials)), dials(namespace.map(|namespace| &namespace.dials)))
    }
}
