//! Whether the API server can ask the control plane at admission. Where it cannot, objects pass unjudged:
//! no more than a warning.

use k8s_openapi::api::admissionregistration::v1::ValidatingWebhook;
use remora_core::names::{
    CONTROL_PLANE_SERVICE_ACCOUNT, LINT_CONFIGURATION, LINT_PATH, SYSTEM_NAMESPACE,
};

use crate::check::{
    api::Unread,
    certificate::{self, Certificate},
    facts::After,
    report::Line,
};

const CHECK: &str = "lint.webhook";
const AGAIN: &str = "install again: remora install | kubectl apply -f -";

pub(super) fn lines(after: &After) -> Option<Line> {
    let configuration = match after.lint.as_ref()? {
        Ok(configuration) => configuration,
        Err(Unread::Absent) => {
            let message = format!(
                "ValidatingWebhookConfiguration {LINT_CONFIGURATION} is missing: nobody is told at \
                 kubectl apply what is wrong with a route"
            );
            let mend = format!("{AGAIN}; with --set lintWebhook=false where that is meant");
            return Some(Line::warning(CHECK, message, mend));
        }
        Err(why) => {
            let what = format!("ValidatingWebhookConfiguration {LINT_CONFIGURATION}");
            return Some(Line::unread(CHECK, &what, why));
        }
    };
    let webhooks = configuration.webhooks.as_deref().unwrap_or_default();
    Some(judged(webhooks, after))
}

fn judged(webhooks: &[ValidatingWebhook], after: &After) -> Line {
    let astray = webhooks.iter().find(|webhook| {
        webhook.client_config.service.as_ref().is_none_or(|service| {
            service.namespace != SYSTEM_NAMESPACE
                || service.name != CONTROL_PLANE_SERVICE_ACCOUNT
                || service.path.as_deref() != Some(LINT_PATH)
        })
    });
    if let Some(webhook) = astray {
        let message = format!(
            "webhook {} does not lead to Service {CONTROL_PLANE_SERVICE_ACCOUNT} in \
             {SYSTEM_NAMESPACE}, path {LINT_PATH}: nothing is judged",
            webhook.name
        );
        return Line::warning(CHECK, message, AGAIN);
    }
    let bundle = match &after.certificates.bundle {
        Ok(bundle) => certificate::read(bundle.as_bytes()),
        Err(why) => Err(why.clone()),
    };
    let roots = match bundle {
        Ok(roots) => roots,
        // Told with the certificates.
        Err(why) => {
            return Line::skipped("lint.ca-bundle", format!("caBundle not checked: {why}"));
        }
    };
    match webhooks.iter().find_map(|webhook| wrong(webhook, &roots)) {
        Some(message) => Line::warning(
            "lint.ca-bundle",
            format!("{message}: nothing is judged at admission"),
            format!(
                "the leading control plane writes it within a minute: kubectl logs \
                 deployment/{CONTROL_PLANE_SERVICE_ACCOUNT} -n {SYSTEM_NAMESPACE}"
            ),
        ),
        None => Line::ok(
            "lint.ca-bundle",
            "routes and Services are judged at admission, and the caBundle has the mesh's roots",
        ),
    }
}

/// What is wrong with the bundle of a webhook: it must have every root that is trusted.
fn wrong(webhook: &ValidatingWebhook, roots: &[Certificate]) -> Option<String> {
    let pem = webhook.client_config.ca_bundle.as_ref().map_or(&[][..], |bundle| &bundle.0);
    if pem.is_empty() {
        return Some(format!("webhook {} has no caBundle", webhook.name));
    }
    match certificate::read(pem) {
        Err(why) => Some(format!("the caBundle of webhook {} is unusable: {why}", webhook.name)),
        Ok(has) if roots.iter().all(|root| has.contains(root)) => None,
        Ok(_) => Some(format!("the caBundle of webhook {} lacks a root of the mesh", webhook.name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{certificate::testing::root_and_leaf, judge::fixtures, report::Status};

    #[test]
    fn a_bundle_with_all_roots_is_well_and_one_without_is_told() {
        let mut after = fixtures::after();
        let line = |after: &After| lines(after).unwrap();
        assert_eq!((line(&after).check, line(&after).status), ("lint.ca-bundle", Status::Ok));

        let ours = after.certificates.bundle.clone().unwrap();
        let (other, _) = root_and_leaf("other", fixtures::NOW - 60, 86_400);
        after.lint = Some(Ok(fixtures::lint(&other)));
        assert!(line(&after).message.contains("lacks a root of the mesh"), "{:?}", line(&after));
        // While a root is replaced, both are wanted.
        after.lint = Some(Ok(fixtures::lint(&ours)));
        after.certificates.bundle = Ok(format!("{ours}{other}"));
        assert_eq!(line(&after).status, Status::Warning);
        after.lint = Some(Ok(fixtures::lint(&format!("{other}{ours}"))));
        assert_eq!(line(&after).status, Status::Ok);
        after.lint = Some(Ok(fixtures::lint("")));
        assert!(line(&after).message.contains("has no caBundle"));
    }

    #[test]
    fn a_webhook_that_is_gone_or_leads_elsewhere_is_told_and_one_that_is_off_is_not() {
        let mut after = fixtures::after();
        let mut astray = fixtures::lint("");
        let service = &mut astray.webhooks.as_mut().unwrap()[1].client_config.service;
        service.as_mut().unwrap().path = Some("/other".to_owned());
        after.lint = Some(Ok(astray));
        let line = lines(&after).unwrap();
        assert!(
            line.message.starts_with("webhook services.lint.remora.io does not lead"),
            "{line:?}"
        );
        after.lint = Some(Err(Unread::Absent));
        assert_eq!(lines(&after).unwrap().status, Status::Warning);
        after.lint = Some(Err(Unread::Forbidden { need: "get x".to_owned() }));
        assert_eq!(lines(&after).unwrap().status, Status::Skipped);
        after.lint = None;
        assert_eq!(lines(&after), None);
    }
}
