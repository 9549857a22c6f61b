//! What can be known to be wrong with manifests before anything runs: a pure function of the
//! objects that the loader has read and of the index that serves them, so that nothing is read
//! differently here.
//!
//! - [`rule`] the table of rules;
//! - `annotations` what the index warns of, and what nobody reads;
//! - `services` selectors and target ports;
//! - `parents`, `backends` where references of routes lead; `shadow` which rule takes a request;
//! - `policy` retries and time-outs; `probes` what an inbound policy keeps out.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    index::{Index, Name, Warning},
    source::{
        self, Event, Key, Kind, ServiceKind, ServicePort,
        manifest::{Object, Objects, Problem},
    },
};

mod annotations;
mod backends;
mod parents;
mod policy;
mod probes;
pub mod rule;
mod services;
mod shadow;

pub use rule::{Rule, Severity};
use services::Workload;

/// Something that is wrong. Files and objects are bounded by what the loader takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which rule found it.
    pub rule: Rule,
    /// The rule's own, or less where the files do not say enough.
    pub severity: Severity,
    /// The file, as it was found, and the line in it, counted from 1: that of the object or, where
    /// the loader says it, of the field.
    pub place: Option<(PathBuf, u64)>,
    /// The object; `None` where a file has something that is none.
    pub object: Option<Key>,
    /// Path of the field, for example `spec.rules[0].backendRefs[1].port`.
    pub field: String,
    /// What is wrong, and what follows.
    pub problem: String,
    /// What to do about it.
    pub mend: String,
    /// What it rests on.
    pub basis: Basis,
}

/// What a finding rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// The object alone, whatever else there is.
    Itself,
    /// Other objects as well, which may come, go and change.
    Others,
}

/// Everything wrong with a set of objects, in the order of files and lines; for the trust domain and
/// DNS suffix `cluster.local`, on which nothing here depends.
#[must_use]
pub fn lint(objects: &Objects) -> Vec<Finding> {
    let mut index = Index::new("cluster.local", "cluster.local");
    let applied = index.apply([Event::Reset(objects.resolved().into_values().collect())]);
    let workloads = services::workloads(objects);
    let whole = false;
    let mut report = Report { objects, index: &index, workloads, whole, findings: Vec::new() };
    for warning in &objects.warnings {
        // Kinds that are not used here (ConfigMaps, StatefulSets) are nobody's mistake.
        if warning.field != "kind" {
            report.findings.push(of_file(Rule::ManifestSlip, warning));
        }
    }
    services::check(&mut report);
    routing(&mut report, &applied.warnings);
    probes::check(&mut report);
    sorted(report.findings)
}

/// What there is to say of a Service or a route on its own and beside what a cluster has:
/// `around` is what it depends on (see [`Index::around`]), `None` where that is not known. Pods are not
/// looked at: they mostly come after their Service.
#[must_use]
pub fn lint_in_cluster(object: &Object, around: Option<Vec<source::Object>>) -> Vec<Finding> {
    let Some(slim) = object.slim() else { return Vec::new() };
    let mut own = one(object, stand_ins(&slim), &slim);
    own.retain(|finding| finding.basis == Basis::Itself);
    let mut beside = around.map(|around| one(object, around, &slim)).unwrap_or_default();
    beside.retain(|finding| {
        let told = |own: &Finding| own.rule == finding.rule && own.field == finding.field;
        finding.basis == Basis::Others && !own.iter().any(told)
    });
    own.extend(beside);
    sorted(own)
}

/// What there is to say of one object in a world of these others.
fn one(object: &Object, mut world: Vec<source::Object>, slim: &source::Object) -> Vec<Finding> {
    world.push(slim.clone());
    let mut index = Index::new("cluster.local", "cluster.local");
    let applied = index.apply([Event::Reset(world)]);
    let objects = Objects::one(object.clone());
    let workloads = Vec::new();
    let mut report =
        Report { objects: &objects, index: &index, workloads, whole: true, findings: Vec::new() };
    routing(&mut report, &applied.warnings);
    let key = object.key();
    report.findings.retain(|finding| finding.object.as_ref() == Some(&key));
    report.findings
}

/// A Service for each parent of a route, just so that the route is attached to something.
fn stand_ins(object: &source::Object) -> Vec<source::Object> {
    let source::Object::Route(route) = object else { return Vec::new() };
    let mut services: BTreeMap<Name, Vec<ServicePort>> = BTreeMap::new();
    for (at, parent) in route.parents.iter().enumerate().filter(|(_, one)| one.is_service()) {
        let namespace = parent.namespace.as_deref().unwrap_or(&route.meta.name.namespace);
        let number = parent.port.and_then(|port| u16::try_from(port).ok());
        services.entry(Name::new(namespace, &parent.name)).or_default().push(ServicePort {
            number: number.or_else(|| u16::try_from(at + 1).ok()).unwrap_or(u16::MAX),
            name: parent.section_name.clone().unwrap_or_default(),
            app_protocol: None,
        });
    }
    let service = |(name, ports)| {
        source::Object::Service(Arc::new(source::Service {
            meta: source::Meta { name, annotations: source::Annotations::default() },
            cluster_ips: Vec::new(),
            kind: ServiceKind::Balanced,
            ports,
            node_local: false,
            distribution: source::Distribution::Any,
            client_ip: None,
        }))
    };
    services.into_iter().map(service).collect()
}

/// What can be said of Services and routes without pods.
fn routing(report: &mut Report<'_>, warnings: &[Warning]) {
    annotations::check(report, warnings);
    parents::check(report);
    backends::check(report);
    shadow::check(report);
    policy::check(report);
}

/// What kept the loader from taking a set of files, as findings.
#[must_use]
pub fn unloadable(problems: &[Problem]) -> Vec<Finding> {
    sorted(problems.iter().map(|problem| of_file(Rule::ManifestInvalid, problem)).collect())
}

fn of_file(rule: Rule, problem: &Problem) -> Finding {
    Finding {
        rule,
        severity: rule.severity(),
        place: Some((problem.file.clone(), problem.line)),
        object: None,
        field: problem.field.clone(),
        problem: problem.problem.clone(),
        mend: problem.mend.clone(),
        basis: Basis::Itself,
    }
}

/// In the order of places; each once.
fn sorted(mut findings: Vec<Finding>) -> Vec<Finding> {
    findings.sort_by(|a, b| {
        let of = |f: &Finding| (f.place.clone(), f.object.clone(), f.field.clone(), f.rule);
        of(a).cmp(&of(b)).then_with(|| a.problem.cmp(&b.problem))
    });
    findings.dedup();
    findings
}

/// What is judged, and what was found.
struct Report<'a> {
    objects: &'a Objects,
    index: &'a Index,
    /// Pods, one of each Deployment.
    workloads: Vec<Workload>,
    /// Whether the index knows all that there is, and not just what some files have.
    whole: bool,
    findings: Vec<Finding>,
}

impl Report<'_> {
    fn add(
        &mut self,
        rule: Rule,
        object: &Key,
        field: impl Into<String>,
        problem: impl Into<String>,
        mend: impl Into<String>,
    ) {
        let place = self.objects.origin(object);
        self.findings.push(Finding {
            rule,
            severity: rule.severity(),
            place: place.map(|(file, line): (&Path, u64)| (file.to_owned(), line)),
            object: Some(object.clone()),
            field: field.into(),
            problem: problem.into(),
            mend: mend.into(),
            basis: Basis::Others,
        });
    }

    /// Something that is wrong whatever else there is.
    fn add_own(
        &mut self,
        rule: Rule,
        object: &Key,
        field: impl Into<String>,
        problem: impl Into<String>,
        mend: impl Into<String>,
    ) {
        self.add(rule, object, field, problem, mend);
        if let Some(last) = self.findings.last_mut() {
            last.basis = Basis::Itself;
        }
    }

    /// Something about the Services of a namespace. Where these files have none of it, they may well
    /// be elsewhere: no more than a warning, and one that says so.
    fn add_about(
        &mut self,
        namespace: &str,
        rule: Rule,
        object: &Key,
        field: impl Into<String>,
        problem: String,
        mend: impl Into<String>,
    ) {
        if self.whole || self.has_services(namespace) {
            return self.add(rule, object, field, problem, mend);
        }
        let problem =
            format!("{problem} (these files have no Service of namespace {namespace} at all)");
        let mend = format!("{}; nothing to do if it is in the cluster", mend.into());
        self.add(rule, object, field, problem, mend);
        if let Some(last) = self.findings.last_mut() {
            last.severity = Severity::Warning;
        }
    }

    fn has_services(&self, namespace: &str) -> bool {
        let of = |key: &Key| key.kind == Kind::Service && key.namespace == namespace;
        self.objects.all().keys().any(of)
    }
}

fn key_of(kind: Kind, name: &Name) -> Key {
    Key { kind, namespace: name.namespace.to_string(), name: name.name.to_string() }
}

#[cfg(test)]
mod tests;
