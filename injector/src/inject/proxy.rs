//! The proxy's container.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::core::v1::{
        Container, ContainerPort, EnvVar, EnvVarSource, ExecAction, HTTPGetAction, Lifecycle,
        LifecycleHandler, ObjectFieldSelector, Probe, ResourceRequirements, SecurityContext,
    },
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};
use remora_core::{
    names::{CONTROL_PLANE_SERVICE_ACCOUNT, PROXY_UID, SYSTEM_NAMESPACE, env, ports},
    settings::HeaderSize,
};

use super::{PROGRAM, PROXY_CONTAINER, handlers, restricted, volumes};
use crate::{
    decide::{Form, Plan, Settings},
    proxy_settings::{AccessLog, Resources},
};

/// An ordinary container gets its SIGTERM when the application does, which may still need the
/// network: it goes on accepting until no connection was open for this long.
const LINGER: Duration = Duration::from_secs(5);

/// As what the plan says.
pub(super) fn container(plan: &Plan, settings: &Settings) -> Container {
    let proxy = &plan.proxy;
    let mut args = vec![
        format!("--workers={}", proxy.resources.workers()),
        format!("--shutdown-grace-period={}", duration(plan.grace)),
    ];
    if plan.form == Form::Ordinary {
        args.push(format!("--shutdown-linger={}", duration(LINGER)));
    }
    let container = Container {
        name: PROXY_CONTAINER.to_owned(),
        image: Some(settings.proxy_image.clone()),
        command: Some(vec![PROGRAM.to_owned()]),
        args: Some(args),
        env: Some(environment(plan, settings)),
        ports: Some(vec![
            port("remora-in", ports::INBOUND),
            port("remora-admin", ports::PROXY_ADMIN),
        ]),
        resources: resources(&proxy.resources),
        security_context: Some(SecurityContext {
            run_as_user: Some(PROXY_UID.into()),
            run_as_group: Some(PROXY_UID.into()),
            run_as_non_root: Some(true),
            ..restricted(None)
        }),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(volumes::mounts()),
        ..Container::default()
    };
    match plan.form {
        Form::Native => native(container),
        Form::Ordinary => ordinary(container),
    }
}

/// Started before what follows, running until after the application; a Job ends without waiting
/// for it. What follows starts once it is ready: it has two minutes for certificate and first
/// configuration, then the kubelet starts it again, with its own back-off.
fn native(container: Container) -> Container {
    Container {
        restart_policy: Some("Always".to_owned()),
        startup_probe: Some(Probe {
            period_seconds: Some(1),
            failure_threshold: Some(120),
            ..ready()
        }),
        ..container
    }
}

/// The kubelet starts the containers in order and each after the hook of the one before, so the
/// application starts once the proxy is ready here too. (Nothing says so in the API: it is how the
/// kubelet does it, since long, and other meshes rely on it.)
fn ordinary(container: Container) -> Container {
    let command = Some(vec![PROGRAM.to_owned(), "await".to_owned()]);
    Container {
        lifecycle: Some(Lifecycle {
            post_start: Some(LifecycleHandler {
                exec: Some(ExecAction { command }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        readiness_probe: Some(Probe { period_seconds: Some(5), ..ready() }),
        ..container
    }
}

fn ready() -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some("/ready".to_owned()),
            port: IntOrString::Int(ports::PROXY_ADMIN.into()),
            ..HTTPGetAction::default()
        }),
        ..Probe::default()
    }
}

fn environment(plan: &Plan, settings: &Settings) -> Vec<EnvVar> {
    let proxy = &plan.proxy;
    let value = |name: &str, value: String| EnvVar {
        name: name.to_owned(),
        value: Some(value),
        value_from: None,
    };
    let field = |name: &str, path: &str| EnvVar {
        name: name.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector { api_version: None, field_path: path.to_owned() }),
            ..EnvVarSource::default()
        }),
    };
    let control_plane_id = format!(
        "spiffe://{}/ns/{SYSTEM_NAMESPACE}/sa/{CONTROL_PLANE_SERVICE_ACCOUNT}",
        settings.trust_domain
    );
    let mut variables = vec![
        field(env::POD_NAMESPACE, "metadata.namespace"),
        field(env::POD_NAME, "metadata.name"),
        field(env::POD_IPS, "status.podIPs"),
        field(env::NODE_NAME, "spec.nodeName"),
        value(env::CONTROL_PLANE, settings.control_plane.clone()),
        value(env::CONTROL_PLANE_ID, control_plane_id),
        value(env::TRUST_BUNDLE, volumes::trust_bundle()),
        value(env::TOKEN_FILE, volumes::token_file()),
        value(env::LOG, proxy.log_level.clone()),
    ];
    if proxy.access_log != AccessLog::Off {
        variables.push(value(env::ACCESS_LOG, proxy.access_log.to_string()));
    }
    if let Some(format) = proxy.access_log_format {
        variables.push(value(env::ACCESS_LOG_FORMAT, format.to_string()));
    }
    if let Some(collector) = &proxy.trace_collector {
        variables.push(value(env::TRACE_COLLECTOR, collector.to_string()));
        variables.push(value(env::TRACE_SAMPLE_RATE, proxy.trace_sample_rate.to_string()));
        variables.extend(plan.workload.clone().map(|name| value(env::SERVICE_NAME, name)));
    }
    if proxy.max_header_size != HeaderSize::default() {
        variables.push(value(env::MAX_HEADER_SIZE, proxy.max_header_size.to_string()));
    }
    if !plan.probes.is_empty() {
        variables.push(value(env::PROBES, handlers(None, &plan.probes)));
    }
    variables
}

/// The init container asks for no more than the proxy, so that it does not add to what the
/// scheduler must find.
pub(super) fn resources(resources: &Resources) -> Option<ResourceRequirements> {
    let quantities = |cpu: &Option<_>, memory: &Option<_>| {
        let map: BTreeMap<String, Quantity> = [("cpu", cpu), ("memory", memory)]
            .into_iter()
            .filter_map(|(name, quantity): (_, &Option<crate::proxy_settings::Quantity>)| {
                quantity.as_ref().map(|q| (name.to_owned(), Quantity(q.to_string())))
            })
            .collect();
        (!map.is_empty()).then_some(map)
    };
    let requests = quantities(&resources.cpu_request, &resources.memory_request);
    let limits = quantities(&resources.cpu_limit, &resources.memory_limit);
    (requests.is_some() || limits.is_some()).then(|| ResourceRequirements {
        requests,
        limits,
        ..ResourceRequirements::default()
    })
}

/// In the form of Gateway API (GEP-2257), whose units have five digits at most.
fn duration(d: Duration) -> String {
    let (secs, millis) = (d.as_secs(), d.subsec_millis());
    let units =
        [(secs / 3600, "h"), (secs / 60 % 60, "m"), (secs % 60, "s"), (millis.into(), "ms")];
    let text: String =
        units.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n}{unit}")).collect();
    if text.is_empty() { "0s".to_owned() } else { text }
}

fn port(name: &str, port: u16) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: port.into(),
        ..ContainerPort::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_come_back_as_given() {
        for text in ["0s", "30s", "1m30s", "250ms", "99999h59m", "2h5ms"] {
            let parsed = remora_core::settings::parse_duration(text).unwrap();
            assert_eq!(duration(parsed), text);
        }
    }
}
