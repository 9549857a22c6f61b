//! What routes want to be attached to.

use std::collections::BTreeSet;

use super::{Report, Rule, key_of};
use crate::{
    index::{
        Name,
        protocol::Protocol,
        routes::{Refusal, RouteId},
    },
    source::{Key, Kind, ServiceKind, route::GROUP},
};

pub(super) fn check(report: &mut Report<'_>) {
    let index = report.index;
    let attached: BTreeSet<RouteId> = index
        .precedence()
        .into_iter()
        .flat_map(|port| port.matches.into_iter().map(|one| one.route))
        .collect();
    for id in index.route_ids() {
        let Some(route) = index.route(id) else { continue };
        let key = key_of(id.kind, &id.name);
        if route.parents.is_empty() {
            let mend = "add parentRefs with a Service: group: \"\", kind: Service, name";
            let problem = "missing, so that nobody uses the route";
            report.add_own(Rule::RouteWithoutParent, &key, "spec.parentRefs", problem, mend);
        }
        for (rule, problem) in index.rule_problems(id) {
            let problem = format!("{problem}; what only this rule matches is answered 500");
            let field = format!("spec.rules[{rule}]");
            report.add_own(Rule::RuleInvalid, &key, field, problem, "correct or remove it");
        }
        for (i, parent) in route.parents.iter().enumerate().filter(|(_, one)| one.is_slip()) {
            let problem = format!(
                "{GROUP} has no kind Service, so that nobody uses the route for {}",
                parent.name
            );
            let field = format!("spec.parentRefs[{i}].group");
            let mend = "write group: \"\" for a Service";
            report.add_own(Rule::ParentKind, &key, field, problem, mend);
        }
        let mut refused = false;
        let parents = route.parents.iter().enumerate();
        for (i, parent) in parents.filter(|(_, parent)| parent.is_service()) {
            if let Some((name, Some(why))) = index.parent(id, parent) {
                refused = true;
                refusal(report, &key, &format!("spec.parentRefs[{i}]"), &name, why);
            }
        }
        let meant = route.parents.iter().any(|parent| parent.is_service());
        let bad = index.rule_problems(id).next().is_some();
        if meant && !refused && !bad && !attached.contains(id) {
            let problem = "a more specific kind of route is on every port that it means, and only \
                           that counts (GRPCRoute, HTTPRoute, TLSRoute, TCPRoute)";
            let mend = "give each of them ports of its own, by parentRefs[].port";
            report.add(Rule::RouteConflicted, &key, "spec.parentRefs", problem, mend);
        }
    }
    opaque(report);
}

fn refusal(report: &mut Report<'_>, key: &Key, at: &str, name: &Name, why: Refusal) {
    let Name { namespace, name } = name;
    match why {
        Refusal::Missing => {
            let problem = format!("there is no service {namespace}/{name}");
            let (field, mend) = (format!("{at}.name"), "correct the name, or add the Service");
            report.add_about(namespace, Rule::ParentMissing, key, field, problem, mend);
        }
        Refusal::Kind(kind) => {
            let what = match kind {
                ServiceKind::External => "stands for a name outside (ExternalName)",
                _ => "is headless",
            };
            let problem =
                format!("service {namespace}/{name} {what} and has no cluster address to route");
            let mend = "use a Service with a cluster address";
            report.add(Rule::ParentKind, key, format!("{at}.name"), problem, mend);
        }
        Refusal::Port => {
            let problem = format!("service {namespace}/{name} has no port of that number and name");
            let mend = "correct port and sectionName, or leave both out for all ports";
            report.add(Rule::ParentPort, key, at, problem, mend);
        }
    }
}

/// Rules on requests where nobody looks for requests.
fn opaque(report: &mut Report<'_>) {
    let index = report.index;
    for port in index.precedence() {
        let head = index
            .snapshots()
            .map(|snapshot| &snapshot.head)
            .find(|head| head.service == port.service && head.port == port.port);
        let what = match head.map(|head| head.protocol) {
            Some(Protocol::Opaque) => {
                "is carried as bytes (opaque-ports, appProtocol or a port \
                                       that is opaque by default)"
            }
            Some(Protocol::Tls) => "carries the application's own TLS (appProtocol)",
            _ => continue,
        };
        let of_requests = |kind| matches!(kind, Kind::HttpRoute | Kind::GrpcRoute);
        let routes: BTreeSet<&RouteId> = port.matches.iter().map(|one| &one.route).collect();
        for id in routes.into_iter().filter(|id| of_requests(id.kind)) {
            let Name { namespace, name } = &port.service;
            let problem = format!(
                "port {} of service {namespace}/{name} {what}, where no request is seen",
                port.port
            );
            let mend = "take the port out of opaque-ports, or give it appProtocol: http; or use a \
                        TCPRoute";
            let key = key_of(id.kind, &id.name);
            report.add(Rule::RouteOnOpaquePort, &key, "spec.parentRefs", problem, mend);
        }
    }
}
