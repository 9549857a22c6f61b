//! The webhook's configuration, and whether it does its job.

use k8s_openapi::api::admissionregistration::v1::MutatingWebhook;
use remora_core::names::{
    INJECTOR_SERVICE_ACCOUNT, SYSTEM_NAMESPACE, WEBHOOK_CONFIGURATION, WEBHOOK_PATH,
};

use super::named;
use crate::check::{
    api::Unread,
    certificate::{self, Certificate, vouches},
    facts::{Before, Trial, TrialOutcome, Webhook},
    report::Line,
};

/// The two webhooks of the configuration.
const WEBHOOKS: [&str; 2] = ["namespace.injector.remora.io", "pod.injector.remora.io"];
/// Longer than this, creating pods is slow.
const SLOW_MILLIS: u128 = 1000;

/// A configuration without its program holds up the pods that asked for a sidecar.
pub(super) fn leftover(before: &Before) -> Option<Line> {
    const CHECK: &str = "leftovers.webhook";
    match (&before.namespace, &before.webhook) {
        (Err(Unread::Absent), Ok(_)) => Some(Line::failed(
            CHECK,
            format!(
                "MutatingWebhookConfiguration {WEBHOOK_CONFIGURATION} of an earlier install is there \
                 without its program: pods that opted in cannot be created"
            ),
            format!(
                "install, or kubectl delete mutatingwebhookconfiguration {WEBHOOK_CONFIGURATION}"
            ),
        )),
        (Err(Unread::Absent), Err(Unread::Absent)) => {
            Some(Line::ok(CHECK, "nothing is left of an earlier install"))
        }
        (_, Err(why @ (Unread::Forbidden { .. } | Unread::Failed { .. }))) => {
            Some(Line::unread(CHECK, "what is left of an earlier install", why))
        }
        _ => None,
    }
}

pub(super) fn lines(webhook: &Webhook, now: i64) -> Vec<Line> {
    const CHECK: &str = "webhook.configuration";
    let mut lines = Vec::new();
    match &webhook.configuration {
        Ok(configuration) => {
            let webhooks = configuration.webhooks.as_deref().unwrap_or_default();
            lines.extend(configured(webhooks));
            lines.extend(trust(webhooks, webhook, now));
        }
        Err(why) => {
            let what = format!("MutatingWebhookConfiguration {WEBHOOK_CONFIGURATION}");
            lines.push(Line::unread(CHECK, &what, why));
        }
    }
    lines.extend(webhook.trials.iter().map(trial));
    lines
}

fn configured(webhooks: &[MutatingWebhook]) -> Vec<Line> {
    const CHECK: &str = "webhook.configuration";
    const MEND: &str = "install again: remora install | kubectl apply -f -";
    let absent: Vec<&str> =
        WEBHOOKS.into_iter().filter(|name| webhooks.iter().all(|w| w.name != *name)).collect();
    if !absent.is_empty() {
        let message = format!("webhook {} is not in the configuration", named(&absent));
        return vec![Line::failed(CHECK, message, MEND)];
    }
    let astray = webhooks.iter().find(|webhook| {
        webhook.client_config.service.as_ref().is_none_or(|service| {
            service.namespace != SYSTEM_NAMESPACE
                || service.name != INJECTOR_SERVICE_ACCOUNT
                || service.path.as_deref() != Some(WEBHOOK_PATH)
        })
    });
    if let Some(webhook) = astray {
        let message = format!(
            "webhook {} does not lead to Service {INJECTOR_SERVICE_ACCOUNT} in {SYSTEM_NAMESPACE}, \
             path {WEBHOOK_PATH}",
            webhook.name
        );
        return vec![Line::failed(CHECK, message, MEND)];
    }
    let lenient: Vec<&str> = webhooks
        .iter()
        .filter(|webhook| webhook.failure_policy.as_deref() == Some("Ignore"))
        .map(|webhook| webhook.name.as_str())
        .collect();
    if lenient.is_empty() {
        vec![Line::ok(CHECK, "both webhooks are configured, failurePolicy Fail")]
    } else {
        vec![Line::warning(
            CHECK,
            format!(
                "failurePolicy Ignore of {}: while no injector answers, pods start without a sidecar",
                named(&lenient)
            ),
            "install with --webhook-failure-policy Fail where that must not happen",
        )]
    }
}

/// Whether the API server can trust the injector.
fn trust(webhooks: &[MutatingWebhook], webhook: &Webhook, now: i64) -> Vec<Line> {
    const CHECK: &str = "webhook.ca-bundle";
    let log = format!(
        "the injector writes it: kubectl logs deployment/{INJECTOR_SERVICE_ACCOUNT} -n \
         {SYSTEM_NAMESPACE}"
    );
    let mut bundles: Vec<Vec<Certificate>> = Vec::new();
    for of in webhooks.iter().filter(|webhook| WEBHOOKS.contains(&webhook.name.as_str())) {
        let pem = of.client_config.ca_bundle.as_ref().map_or(&[][..], |bundle| &bundle.0);
        if pem.is_empty() {
            return vec![Line::failed(CHECK, format!("webhook {} has no caBundle", of.name), log)];
        }
        match certificate::read(pem) {
            Ok(roots) => bundles.push(roots),
            Err(why) => {
                let message = format!("caBundle of webhook {} is unusable: {why}", of.name);
                return vec![Line::failed(CHECK, message, log)];
            }
        }
    }
    let chain = match &webhook.serving {
        Ok(chain) => chain,
        Err(why) => {
            return vec![Line::unread(
                CHECK,
                "whether the caBundle vouches for the injector's certificate",
                why,
            )];
        }
    };
    let name = format!("{INJECTOR_SERVICE_ACCOUNT}.{SYSTEM_NAMESPACE}.svc");
    match bundles.iter().find_map(|roots| vouches(roots, chain, &name, now).err()) {
        None => vec![Line::ok(CHECK, "the caBundle vouches for the injector's certificate")],
        Some(why) => vec![Line::failed(
            CHECK,
            format!("the caBundle does not vouch for the injector's certificate as {name}: {why}"),
            log,
        )],
    }
}

fn trial(trial: &Trial) -> Line {
    const CHECK: &str = "webhook.trial";
    let namespace = &trial.namespace;
    let who = if trial.by_pod {
        format!("a pod that asks for a sidecar in namespace {namespace}")
    } else {
        format!("a pod in opted-in namespace {namespace}")
    };
    let millis = trial.took.as_millis();
    match &trial.outcome {
        Ok(TrialOutcome::Injected) if millis > SLOW_MILLIS => Line::warning(
            CHECK,
            format!("{who} gets one, but creating it took {millis} ms (tried with dryRun)"),
            "see whether the injector has enough CPU and the API server a short way to it",
        ),
        Ok(TrialOutcome::Injected) => {
            Line::ok(CHECK, format!("{who} gets one (tried with dryRun, {millis} ms)"))
        }
        Ok(TrialOutcome::Plain) => Line::failed(
            CHECK,
            format!("{who} gets none (tried with dryRun)"),
            if trial.by_pod {
                "see the lines about the webhook's configuration; another webhook may also have \
                 removed it"
            } else {
                "see whether the namespace has the label remora.io/inject=enabled, which the \
                 injector sets"
            },
        ),
        Ok(TrialOutcome::Refused(said)) => {
            Line::failed(CHECK, format!("{who} is refused: {said}"), refusal_mend(said, namespace))
        }
        Err(why @ Unread::Absent) => {
            Line::skipped(CHECK, format!("{who} not tried: namespace {why}"))
        }
        Err(why) => Line::unread(CHECK, &format!("what becomes of {who}"), why),
    }
}

/// The API server's words for each way in which a webhook fails, and what helps.
fn refusal_mend(said: &str, namespace: &str) -> String {
    let ours = said.contains("injector.remora.io");
    let logs = format!("kubectl logs deployment/{INJECTOR_SERVICE_ACCOUNT} -n {SYSTEM_NAMESPACE}");
    if said.contains("violates PodSecurity") {
        return privileged(namespace);
    }
    if said.contains("exceeded quota") {
        return format!(
            "raise the quota of namespace {namespace}; each pod needs its proxy's requests too"
        );
    }
    if said.contains("failed calling webhook") && !ours {
        return "that is another program's webhook: mend or remove that one".to_owned();
    }
    if said.contains("does not support dry run") {
        return "that is another program's webhook, which cannot be tried; create a pod instead"
            .to_owned();
    }
    if said.contains("x509") || said.contains("certificate") {
        return format!("the injector keeps the caBundle up to date; see {logs}");
    }
    if said.contains("connection refused") || said.contains("no endpoints") {
        return "no injector answers: see the lines about its Deployment and Service".to_owned();
    }
    if said.contains("deadline exceeded") || said.contains("timeout") || said.contains("no route") {
        return "the API server does not reach the injector: let the control plane's nodes reach pods \
                on port 8443 (firewall, NetworkPolicy)"
            .to_owned();
    }
    format!("see {logs}")
}

/// How a namespace comes to admit the init container.
pub(super) fn privileged(namespace: &str) -> String {
    format!(
        "the container that sets up interception needs NET_ADMIN: kubectl label namespace \
         {namespace} --overwrite pod-security.kubernetes.io/enforce=privileged, or install with \
         --redirect-agent and restart the pods"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{judge::fixtures, report::Status};
    use std::time::Duration;

    #[test]
    fn a_healthy_webhook_has_nothing_to_say() {
        let lines = lines(&fixtures::webhook(), fixtures::NOW);
        assert!(lines.iter().all(|line| line.status == Status::Ok), "{lines:#?}");
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn a_certificate_of_another_authority_is_not_vouched_for() {
        let mut webhook = fixtures::webhook();
        webhook.serving = Ok(fixtures::serving_chain());
        let line = trust(fixtures::webhooks(&webhook), &webhook, fixtures::NOW).remove(0);
        assert_eq!((line.check, line.status), ("webhook.ca-bundle", Status::Failed));
        webhook.serving = Err(Unread::Forbidden { need: "get secrets".to_owned() });
        let line = trust(fixtures::webhooks(&webhook), &webhook, fixtures::NOW).remove(0);
        assert_eq!(line.status, Status::Skipped);
    }

    #[test]
    fn a_webhook_that_is_gone_or_lenient_is_told() {
        let mut webhook = fixtures::webhook();
        let mut webhooks = fixtures::webhooks(&webhook).to_vec();
        webhooks[1].failure_policy = Some("Ignore".to_owned());
        assert_eq!(configured(&webhooks)[0].status, Status::Warning);
        webhooks[1].client_config.ca_bundle = None;
        webhook.configuration.as_mut().unwrap().webhooks = Some(webhooks.clone());
        assert!(trust(&webhooks, &webhook, fixtures::NOW)[0].message.contains("no caBundle"));
        webhooks.pop();
        let line = configured(&webhooks).remove(0);
        assert_eq!(line.status, Status::Failed);
        assert!(line.message.contains("pod.injector.remora.io"));
    }

    /// Texts of a real API server (v1.36.2).
    #[test]
    fn each_refusal_has_its_mend() {
        for (said, mend) in [
            (
                "Internal error occurred: failed calling webhook \"pod.injector.remora.io\": failed \
                 to call webhook: Post \"https://remora-injector.remora-system.svc:443/mutate?timeout=5s\": \
                 dial tcp 10.96.145.230:443: connect: connection refused",
                "no injector answers",
            ),
            (
                "Internal error occurred: failed calling webhook \"pod.injector.remora.io\": failed \
                 to call webhook: Post \"https://remora-injector.remora-system.svc:443/mutate?timeout=5s\": \
                 tls: failed to verify certificate: x509: certificate signed by unknown authority",
                "keeps the caBundle up to date",
            ),
            (
                "Internal error occurred: failed calling webhook \"pod.injector.remora.io\": failed \
                 to call webhook: Post \"https://remora-injector.remora-system.svc:443/mutate?timeout=5s\": \
                 context deadline exceeded",
                "port 8443",
            ),
            (
                "Internal error occurred: failed calling webhook \"other.example\": failed to call \
                 webhook: dial tcp 10.96.145.230:443: connect: connection refused",
                "another program's webhook",
            ),
            (
                "pods \"p\" is forbidden: violates PodSecurity \"baseline:latest\": non-default \
                 capabilities (container \"remora-init\" must not include \"NET_ADMIN\")",
                "enforce=privileged",
            ),
            (
                "admission webhook \"pod.injector.remora.io\" denied the request: annotation \
                 config.remora.io/opaque-ports: not a port: \"x\"",
                "kubectl logs",
            ),
        ] {
            let line = trial(&Trial {
                namespace: "shop".to_owned(),
                by_pod: false,
                outcome: Ok(TrialOutcome::Refused(said.to_owned())),
                took: Duration::from_millis(3),
            });
            assert_eq!(line.status, Status::Failed);
            assert!(line.mend.unwrap().contains(mend), "{said}");
        }
    }

    #[test]
    fn a_webhook_without_its_program_is_a_leftover() {
        let mut before = fixtures::before();
        assert_eq!(leftover(&before).unwrap().status, Status::Ok);
        before.webhook = fixtures::webhook().configuration;
        let line = leftover(&before).unwrap();
        assert_eq!(line.status, Status::Failed);
        assert!(line.mend.unwrap().contains("kubectl delete"));
        before.namespace = fixtures::after().namespace;
        assert_eq!(leftover(&before), None);
    }
}
