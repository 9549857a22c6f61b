//! Where routes send what they match.

use std::collections::BTreeSet;

use super::{Report, Rule, key_of};
use crate::{
    index::{
        Name,
        routes::{RouteId, rule::RefReason},
    },
    source::{
        Key,
        route::{BackendRef, Filter, Route, Rules},
    },
};

pub(super) fn check(report: &mut Report<'_>) {
    let index = report.index;
    for id in index.route_ids() {
        let Some(route) = index.route(id) else { continue };
        let key = key_of(id.kind, &id.name);
        references(report, id, route, &key);
        let rules: Vec<(&[BackendRef], &[Filter])> = match &route.rules {
            Rules::Http(rules) => rules.iter().map(|r| (&*r.backend_refs, &*r.filters)).collect(),
            Rules::Grpc(rules) => rules.iter().map(|r| (&*r.backend_refs, &*r.filters)).collect(),
            Rules::Tls(rules) | Rules::Tcp(rules) => {
                rules.iter().map(|rule| (&*rule.backend_refs, &[][..])).collect()
            }
        };
        for (i, (backends, filters)) in rules.into_iter().enumerate() {
            let redirects = filters.iter().any(|filter| filter.kind == "RequestRedirect");
            let field = format!("spec.rules[{i}].backendRefs");
            if backends.is_empty() && !redirects {
                let problem = "missing, so that what the rule matches is answered 500 or refused";
                let mend = "add a Service and its port";
                report.add_own(Rule::NoBackend, &key, field, problem, mend);
            } else if !backends.is_empty() && backends.iter().all(|one| one.weight == Some(0)) {
                let problem = "all weights are 0, so that what the rule matches is answered 500 \
                               or refused";
                let mend = "give at least one a weight above 0";
                report.add_own(Rule::WeightsZero, &key, field, problem, mend);
            }
        }
    }
}

fn references(report: &mut Report<'_>, id: &RouteId, route: &Route, key: &Key) {
    let index = report.index;
    let services = route.parents.iter().filter(|parent| parent.is_service());
    let parents: BTreeSet<Name> =
        services.filter_map(|parent| Some(index.parent(id, parent)?.0)).collect();
    for parent in parents {
        for followed in index.followed(id, &parent) {
            let Some(bad) = followed.backend.invalid else { continue };
            let Name { namespace, name } = &followed.backend.service;
            let (at, message) = (followed.field, bad.message.to_string());
            match bad.reason {
                RefReason::InvalidKind if followed.is_service => {
                    let mend = "use a Service with a cluster address";
                    report.add(Rule::BackendKind, key, at, message, mend);
                }
                RefReason::InvalidKind => {
                    let mend = "use a Service with a cluster address";
                    report.add_own(Rule::BackendKind, key, at, message, mend);
                }
                RefReason::RefNotPermitted => {
                    let mend = format!("add a ReferenceGrant to namespace {namespace}");
                    report.add_about(namespace, Rule::GrantMissing, key, at, message, mend);
                }
                RefReason::BackendNotFound
                    if index.service_policy(&followed.backend.service).is_some() =>
                {
                    let mend = "correct the port, or add it to the Service";
                    report.add(Rule::BackendPort, key, format!("{at}.port"), message, mend);
                }
                RefReason::BackendNotFound => {
                    let mend = format!("correct the name, or add service {namespace}/{name}");
                    let field = format!("{at}.name");
                    report.add_about(namespace, Rule::BackendMissing, key, field, message, mend);
                }
            }
        }
    }
}
