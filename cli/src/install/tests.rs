//! What the templates make: typed objects, least rights, one chart.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use k8s_openapi::{
    Metadata,
    api::{
        admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
        apps::v1::{DaemonSet, Deployment},
        core::v1::{Namespace, Service, ServiceAccount},
        policy::v1::PodDisruptionBudget,
        rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use remora_core::{names, settings};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::*;

mod webhooks;

/// Values that reach every line of every template.
const VARIANTS: [&[&str]; 5] = [
    &[],
    &["redirectAgent=true"],
    &["externalIssuer=true", "priorityClassName=", "createNamespace=false", "redirectBackend=auto"],
    &["image=registry.example:5000/mesh/remora@sha256:00", "trustDomain=prod.example.com"],
    &[
        "proxy.cpuRequest=10m",
        "proxy.cpuLimit=1",
        "proxy.memoryRequest=16Mi",
        "proxy.memoryLimit=64Mi",
        "proxy.logLevel=debug",
        "proxy.accessLog=errors",
        "proxy.accessLogFormat=json",
        "proxy.traceCollector=collector.observability:4317",
        "proxy.traceSampleRate=0.25",
        "proxy.defaultInboundPolicy=all-authenticated",
        "proxy.skipInboundPorts=22",
        "proxy.skipOutboundPorts=22",
        "proxy.skipSubnets=10.0.0.0/8",
        "proxy.opaquePorts=3306",
        "proxy.shutdownGracePeriod=10s",
        "controlPlane.resources.limits.cpu=1500m",
        "webhookFailurePolicy=Ignore",
        "lintWebhook=false",
        "logFormat=json",
    ],
];

fn text_with(set: &[&str]) -> String {
    let set = set.iter().map(|text| (*text).to_owned()).collect();
    objects(Sources { set, ..Sources::default() }).unwrap()
}

fn parse(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap()
}

fn of_kind<T: DeserializeOwned>(objects: &[Value], kind: &str) -> Vec<T> {
    objects
        .iter()
        .filter(|object| object["kind"] == kind)
        .map(|object| serde_json::from_value(object.clone()).unwrap())
        .collect()
}

/// A field that the type does not know would be missing after the way through it.
fn is_of_type<T>(object: &Value)
where
    T: DeserializeOwned + Serialize + Metadata<Ty = ObjectMeta>,
{
    let typed: T = serde_json::from_value(object.clone()).unwrap();
    assert_eq!(serde_json::to_value(&typed).unwrap(), *object);
}

#[test]
fn every_object_is_one_that_kubernetes_knows_field_by_field() {
    for set in VARIANTS {
        for object in parse(&text_with(set)) {
            match object["kind"].as_str().unwrap() {
                "Namespace" => is_of_type::<Namespace>(&object),
                "ServiceAccount" => is_of_type::<ServiceAccount>(&object),
                "ClusterRole" => is_of_type::<ClusterRole>(&object),
                "ClusterRoleBinding" => is_of_type::<ClusterRoleBinding>(&object),
                "Role" => is_of_type::<Role>(&object),
                "RoleBinding" => is_of_type::<RoleBinding>(&object),
                "Service" => is_of_type::<Service>(&object),
                "PodDisruptionBudget" => is_of_type::<PodDisruptionBudget>(&object),
                "Deployment" => is_of_type::<Deployment>(&object),
                "DaemonSet" => is_of_type::<DaemonSet>(&object),
                "MutatingWebhookConfiguration" => {
                    is_of_type::<MutatingWebhookConfiguration>(&object);
                }
                "ValidatingWebhookConfiguration" => {
                    is_of_type::<ValidatingWebhookConfiguration>(&object);
                }
                other => panic!("{other} is not a kind of an installation"),
            }
        }
    }
}

#[test]
fn the_order_suits_one_kubectl_apply_and_nothing_is_secret() {
    let objects = parse(&text_with(&[]));
    let kinds: Vec<&str> = objects.iter().map(|o| o["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds.first(), Some(&"Namespace"));
    let webhooks = ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"];
    assert_eq!(kinds[kinds.len() - 2..], webhooks);
    let role = kinds.iter().rposition(|kind| kind.ends_with("Binding")).unwrap();
    let deployment = kinds.iter().position(|kind| *kind == "Deployment").unwrap();
    assert!(role < deployment, "{kinds:?}");
    assert!(!kinds.contains(&"Secret"));
    for object in &objects {
        let labels = &object["metadata"]["labels"];
        assert_eq!(labels[names::labels::PART_OF], names::labels::REMORA, "{object}");
        let namespace = &object["metadata"]["namespace"];
        let cluster_wide = ["Namespace", "ClusterRole", "ClusterRoleBinding"]
            .contains(&object["kind"].as_str().unwrap())
            || webhooks.contains(&object["kind"].as_str().unwrap());
        assert_eq!(namespace.is_null(), cluster_wide, "{object}");
        assert!(cluster_wide || *namespace == names::SYSTEM_NAMESPACE, "{object}");
    }
}

/// Each rule as `group/resource[/name]: verbs`.
fn rules(rules: Option<Vec<PolicyRule>>) -> BTreeMap<String, String> {
    let mut lines = BTreeMap::new();
    for rule in rules.unwrap_or_default() {
        let name = rule.resource_names.map(|names| format!("/{}", names.join(",")));
        for resource in rule.resources.unwrap_or_default() {
            let group = rule.api_groups.as_ref().unwrap().join(",");
            let line = format!("{group}/{resource}{}", name.as_deref().unwrap_or_default());
            assert_eq!(lines.insert(line, rule.verbs.join(" ")), None);
        }
    }
    lines
}

fn table(lines: &[(&str, &str)]) -> BTreeMap<String, String> {
    lines.iter().map(|(rule, verbs)| ((*rule).to_owned(), (*verbs).to_owned())).collect()
}

/// Each has its reason in `docs/kubernetes.md`.
#[test]
fn rights_are_exactly_these() {
    let objects = parse(&text_with(&[]));
    let cluster: BTreeMap<String, _> = of_kind::<ClusterRole>(&objects, "ClusterRole")
        .into_iter()
        .map(|role| (role.metadata.name.unwrap(), rules(role.rules)))
        .collect();
    let own: BTreeMap<String, _> = of_kind::<Role>(&objects, "Role")
        .into_iter()
        .map(|role| (role.metadata.name.unwrap(), rules(role.rules)))
        .collect();
    let control_plane = names::CONTROL_PLANE_SERVICE_ACCOUNT;
    let injector = names::INJECTOR_SERVICE_ACCOUNT;
    assert_eq!(
        cluster[control_plane],
        table(&[
            ("/namespaces", "get list watch"),
            ("/services", "get list watch"),
            ("/pods", "get list watch"),
            ("/nodes", "get list watch"),
            ("discovery.k8s.io/endpointslices", "get list watch"),
            ("gateway.networking.k8s.io/httproutes", "get list watch"),
            ("gateway.networking.k8s.io/grpcroutes", "get list watch"),
            ("gateway.networking.k8s.io/tlsroutes", "get list watch"),
            ("gateway.networking.k8s.io/tcproutes", "get list watch"),
            ("gateway.networking.k8s.io/referencegrants", "get list watch"),
            ("gateway.networking.k8s.io/httproutes/status", "patch"),
            ("gateway.networking.k8s.io/grpcroutes/status", "patch"),
            ("gateway.networking.k8s.io/tlsroutes/status", "patch"),
            ("gateway.networking.k8s.io/tcproutes/status", "patch"),
            ("authentication.k8s.io/tokenreviews", "create"),
            ("/configmaps", "create"),
            ("/configmaps/remora-trust-bundle", "get list watch patch"),
            (
                "admissionregistration.k8s.io/validatingwebhookconfigurations/remora-lint",
                "get patch"
            ),
        ])
    );
    let mut issuer = table(&[
        ("/secrets/remora-identity-issuer", "get list watch"),
        ("/secrets", "create"),
        ("coordination.k8s.io/leases", "create"),
        ("coordination.k8s.io/leases/remora-control-plane", "get update patch"),
        ("events.k8s.io/events", "create patch"),
    ]);
    assert_eq!(own[control_plane], issuer);
    assert_eq!(
        cluster[injector],
        table(&[
            ("/namespaces", "get list watch patch"),
            (
                "admissionregistration.k8s.io/mutatingwebhookconfigurations/remora-injector",
                "get list watch patch"
            ),
            ("events.k8s.io/events", "create patch"),
        ])
    );
    assert_eq!(
        own[injector],
        table(&[
            ("/secrets", "create"),
            ("/secrets/remora-injector-tls", "get list watch update patch"),
        ])
    );

    // Who does not make the issuer need not be able to.
    issuer.remove("/secrets");
    let objects = parse(&text_with(&["externalIssuer=true"]));
    let roles: Vec<Role> = of_kind(&objects, "Role");
    let role = roles.into_iter().find(|r| r.metadata.name.as_deref() == Some(control_plane));
    assert_eq!(rules(role.unwrap().rules), issuer);
}

#[test]
fn every_right_is_in_the_documentation() {
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/kubernetes.md");
    let text = fs::read_to_string(text).unwrap();
    let objects = parse(&text_with(&[]));
    let of_roles = of_kind::<Role>(&objects, "Role").into_iter().map(|role| role.rules);
    let of_cluster = of_kind::<ClusterRole>(&objects, "ClusterRole").into_iter().map(|r| r.rules);
    for rule in of_roles.chain(of_cluster).flatten().flatten() {
        let verbs = rule.verbs.join(" ");
        let names = rule.resource_names.unwrap_or_default();
        for resource in rule.resources.unwrap_or_default() {
            let row = |line: &&str| {
                line.starts_with("| ")
                    && line.contains(&resource)
                    && line.contains(&format!("| {verbs} |"))
                    && names.iter().all(|name| line.contains(&format!("`{name}`")))
            };
            assert!(text.lines().any(|line| row(&line)), "{resource} {names:?}: {verbs}");
        }
    }
}

#[test]
fn our_own_pods_are_restricted_and_meet_their_services() {
    let objects = parse(&text_with(&[]));
    let services: Vec<Service> = of_kind(&objects, "Service");
    let deployments: Vec<Deployment> = of_kind(&objects, "Deployment");
    assert_eq!((services.len(), deployments.len()), (2, 2));
    for (service, deployment) in services.iter().zip(&deployments) {
        assert_eq!(service.metadata.name, deployment.metadata.name);
        let spec = deployment.spec.as_ref().unwrap();
        let pod = spec.template.spec.as_ref().unwrap();
        let [container] = &pod.containers[..] else { panic!("one container") };
        let labels = spec.template.metadata.as_ref().unwrap().labels.as_ref().unwrap();
        let service = service.spec.as_ref().unwrap();
        for selector in [service.selector.as_ref(), spec.selector.match_labels.as_ref()] {
            assert!(selector.unwrap().iter().all(|(key, value)| labels.get(key) == Some(value)));
        }
        for port in service.ports.as_ref().unwrap() {
            let target = json!(port.target_port);
            let ports = container.ports.as_ref().unwrap();
            assert!(ports.iter().any(|port| json!(port.name) == target), "{target}");
        }

        let of_pod = pod.security_context.as_ref().unwrap();
        assert_eq!(of_pod.run_as_user, Some(names::PROXY_UID.into()));
        assert_eq!(of_pod.run_as_non_root, Some(true));
        assert_eq!(of_pod.seccomp_profile.as_ref().unwrap().type_, "RuntimeDefault");
        let context = container.security_context.as_ref().unwrap();
        assert_eq!(context.allow_privilege_escalation, Some(false));
        assert_eq!(context.read_only_root_filesystem, Some(true));
        let capabilities = context.capabilities.as_ref().unwrap();
        assert_eq!(capabilities.drop, Some(vec!["ALL".to_owned()]));
        assert_eq!(capabilities.add, None);
    }
}

#[test]
fn the_redirect_agent_has_three_capabilities_and_no_account() {
    assert_eq!(of_kind::<DaemonSet>(&parse(&text_with(&[])), "DaemonSet").len(), 0);
    let agents: Vec<DaemonSet> = of_kind(&parse(&text_with(&["redirectAgent=true"])), "DaemonSet");
    let [agent] = &agents[..] else { panic!("one agent") };
    let pod = agent.spec.as_ref().unwrap().template.spec.as_ref().unwrap();
    assert_eq!(pod.automount_service_account_token, Some(false));
    let context = pod.containers[0].security_context.as_ref().unwrap();
    assert_eq!(context.privileged, None);
    let capabilities = context.capabilities.as_ref().unwrap();
    assert_eq!(capabilities.drop, Some(vec!["ALL".to_owned()]));
    let needed = ["SYS_PTRACE", "SYS_ADMIN", "NET_ADMIN"].map(str::to_owned).to_vec();
    assert_eq!(capabilities.add, Some(needed));
    let argument = |name: &str, value: &str| format!("--{name}={value}");
    let line = pod.containers[0].args.clone().unwrap();
    assert!(line.contains(&argument("listen-ip", "$(REMORA_HOST_IP)")), "{line:?}");
}

/// The arguments of each container, by the program that gets them.
fn arguments(objects: &[Value]) -> BTreeMap<String, Vec<String>> {
    of_kind::<Deployment>(objects, "Deployment")
        .into_iter()
        .map(|deployment| {
            let pod = deployment.spec.unwrap().template.spec.unwrap();
            let container = pod.containers.into_iter().next().unwrap();
            let [program] = container.command.unwrap().try_into().unwrap();
            (program, container.args.unwrap())
        })
        .collect()
}

#[derive(clap::Parser)]
struct ControlPlane {
    #[command(flatten)]
    args: remora_control_plane::Args,
}

#[derive(clap::Parser)]
struct Injector {
    #[command(flatten)]
    args: remora_injector::webhook::Args,
}

fn parsed<P: clap::Parser>(arguments: &BTreeMap<String, Vec<String>>, program: &str) -> P {
    let line = [program.to_owned()].into_iter().chain(arguments[program].clone());
    P::try_parse_from(line).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn the_programs_understand_their_arguments() {
    for set in VARIANTS {
        let arguments = arguments(&parse(&text_with(set)));
        let control_plane = parsed::<ControlPlane>(&arguments, "/remora-control-plane").args;
        let injector = parsed::<Injector>(&arguments, "/remora-injector").args;
        assert!(control_plane.kubernetes);
        assert_eq!(control_plane.namespace, names::SYSTEM_NAMESPACE);
        assert_eq!(control_plane.listen.port(), names::ports::CONTROL_PLANE);
        assert_eq!(control_plane.admin_listen.port(), names::ports::CONTROL_PLANE_ADMIN);
        let admission = control_plane.admission_listen.map(|address| address.port());
        let wanted = !set.contains(&"lintWebhook=false");
        assert_eq!(admission, wanted.then_some(names::ports::ADMISSION));
        assert_eq!(control_plane.external_issuer, set.contains(&"externalIssuer=true"));
        assert_eq!(injector.listen.port(), names::ports::INJECTOR);
        assert_eq!(injector.admin_listen.port(), names::ports::INJECTOR_ADMIN);
        assert_eq!(injector.trust_domain, control_plane.trust_domain);
        assert_eq!(injector.redirect_agent, set.contains(&"redirectAgent=true"));
        let auto = injector.redirect_backend == settings::RedirectBackend::Auto;
        assert_eq!(auto, set.contains(&"redirectBackend=auto"));
    }
}

/// As Helm gets it.
fn new_chart() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("remora").tempdir().unwrap();
    chart::write(folder.path(), VERSION).unwrap();
    folder
}

/// After a change of templates or values, `UPDATE_GOLDEN=1 cargo test -p remora-cli install` writes
/// the chart anew.
#[test]
fn the_chart_in_the_tree_is_made_from_the_templates() {
    let checked_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/remora");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        chart::write(&checked_in, VERSION).unwrap();
    }
    for (path, text) in chart::files(VERSION) {
        let there = fs::read_to_string(checked_in.join(&path)).unwrap_or_default();
        assert!(there == text, "{} is not what the templates make", path.display());
    }
    let templates = fs::read_dir(checked_in.join("templates")).unwrap().count();
    assert_eq!(templates, TEMPLATES.len() + 1, "a file that nothing makes any more");
}

/// Whether a program is there; says so where it is not.
fn is_there(program: &str) -> bool {
    let there = Command::new(program).arg("version").output().is_ok();
    if !there {
        eprintln!("skipped: {program} is not installed");
    }
    there
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Helm has an opinion of its own on the version where it asks no cluster.
fn helm(command: &str) -> Command {
    let mut helm = Command::new("helm");
    helm.args([command, "--kube-version", "1.29.0"]);
    helm
}

/// The same objects, in whichever order.
fn assert_same(some: Vec<Value>, others: Vec<Value>) {
    let named = |objects: Vec<Value>| -> BTreeMap<String, Value> {
        let objects = objects.into_iter().filter(|object| !object.is_null());
        let name =
            |o: &Value| format!("{} {} {}", o["apiVersion"], o["kind"], o["metadata"]["name"]);
        objects.map(|object| (name(&object), object)).collect()
    };
    let (some, mut others) = (named(some), named(others));
    for (name, object) in &some {
        assert_eq!(Some(object), others.remove(name).as_ref(), "{name}");
    }
    assert!(others.is_empty(), "missing: {:?}", others.keys());
}

#[test]
fn helm_makes_the_same_objects_of_the_same_values() {
    if !is_there("helm") {
        return;
    }
    let chart = new_chart();
    let lint = output(helm("lint").arg("--strict").arg(chart.path()));
    assert!(lint.contains("0 chart(s) failed"), "{lint}");
    for set in VARIANTS {
        let mut helm = helm("template");
        helm.arg("remora").arg(chart.path());
        for choice in set {
            helm.args(["--set", choice]);
        }
        assert_same(parse(&output(&mut helm)), parse(&text_with(set)));
    }
}

#[test]
fn helm_refuses_what_install_refuses() {
    if !is_there("helm") {
        return;
    }
    let chart = new_chart();
    for choice in [
        "colour=red",
        "controlPlane.replicas=many",
        "injector.replicas=0",
        "webhookFailurePolicy=fail",
        "trustDomain=Über",
        "clusterDomain=.local",
        "injector.resources.limits.memory=much",
        "image=",
        "webhookTimeoutSeconds=31",
    ] {
        assert!(objects(Sources { set: vec![choice.to_owned()], ..Sources::default() }).is_err());
        let refused = helm("template").arg(chart.path()).args(["--set", choice]).output().unwrap();
        let error = String::from_utf8_lossy(&refused.stderr);
        assert!(error.contains("don't meet the specifications of the schema"), "{choice}: {error}");
    }
}

#[test]
fn kustomize_takes_the_objects() {
    if !is_there("kubectl") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let text = text_with(&[]);
    fs::write(folder.path().join("remora.yaml"), &text).unwrap();
    fs::write(folder.path().join("kustomization.yaml"), "resources: [remora.yaml]\n").unwrap();
    let built = output(Command::new("kubectl").arg("kustomize").arg(folder.path()));
    assert_same(parse(&built), parse(&text));
}

/// Even a dry run on the client's side asks a server which kinds there are, and the one of
/// somebody's kubeconfig is none of a test's business.
#[test]
fn kubectl_takes_the_objects() {
    let Some(kubeconfig) = std::env::var_os("REMORA_TEST_KUBECONFIG") else {
        eprintln!("skipped: REMORA_TEST_KUBECONFIG names no cluster to ask");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("remora.yaml");
    for set in VARIANTS {
        let text = text_with(set);
        fs::write(&file, &text).unwrap();
        let mut kubectl = Command::new("kubectl");
        kubectl.env("KUBECONFIG", &kubeconfig).args(["apply", "--dry-run=client", "-f"]).arg(&file);
        let said = output(&mut kubectl);
        assert_eq!(said.lines().count(), parse(&text).len(), "{said}");
    }
}
