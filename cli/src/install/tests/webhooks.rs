//! Who is sent to our webhooks, and whom they hold up.

use super::*;

/// Reads a condition as the API server would, for the one form that ours have.
#[test]
fn only_pods_that_asked_reach_the_webhook() {
    let objects = parse(&text_with(&[]));
    let [configuration]: [MutatingWebhookConfiguration; 1] =
        of_kind(&objects, "MutatingWebhookConfiguration").try_into().unwrap();
    assert_eq!(configuration.metadata.name.as_deref(), Some(names::WEBHOOK_CONFIGURATION));
    let webhooks = configuration.webhooks.unwrap();
    let operators: Vec<&str> = webhooks
        .iter()
        .map(|webhook| {
            let selector = webhook.namespace_selector.as_ref().unwrap();
            let [inject, name] = &selector.match_expressions.as_ref().unwrap()[..] else {
                panic!("two requirements")
            };
            assert_eq!(inject.key, names::labels::INJECT);
            assert_eq!(
                (name.key.as_str(), name.operator.as_str()),
                ("kubernetes.io/metadata.name", "NotIn")
            );
            assert!(name.values.as_ref().unwrap().contains(&names::SYSTEM_NAMESPACE.to_owned()));
            assert_eq!(webhook.failure_policy.as_deref(), Some("Fail"));
            assert_eq!(webhook.client_config.ca_bundle, None, "the injector's to write");
            let service = webhook.client_config.service.as_ref().unwrap();
            assert_eq!(service.path.as_deref(), Some(names::WEBHOOK_PATH));
            inject.operator.as_str()
        })
        .collect();
    assert_eq!(operators, ["In", "NotIn"]);
}

#[test]
fn what_judges_routes_holds_nobody_up_and_can_be_left_out() {
    let objects = parse(&text_with(&[]));
    let [configuration]: [ValidatingWebhookConfiguration; 1] =
        of_kind(&objects, "ValidatingWebhookConfiguration").try_into().unwrap();
    assert_eq!(configuration.metadata.name.as_deref(), Some(names::LINT_CONFIGURATION));
    for webhook in configuration.webhooks.unwrap() {
        assert_eq!(webhook.failure_policy.as_deref(), Some("Ignore"));
        assert!(webhook.timeout_seconds.is_some_and(|seconds| seconds <= 3));
        assert_eq!(webhook.side_effects, "None");
        assert_eq!(webhook.client_config.ca_bundle, None, "the control plane's to write");
        let service = webhook.client_config.service.unwrap();
        assert_eq!(service.path.as_deref(), Some(names::LINT_PATH));
        assert_eq!(service.name, names::CONTROL_PLANE_SERVICE_ACCOUNT);
        let rules = webhook.rules.unwrap();
        let operations = rules.iter().flat_map(|rule| rule.operations.iter().flatten());
        assert!(operations.into_iter().all(|one| one == "CREATE" || one == "UPDATE"));
        let [off, system] = &webhook.namespace_selector.unwrap().match_expressions.unwrap()[..]
        else {
            panic!("two requirements")
        };
        assert_eq!((off.key.as_str(), off.operator.as_str()), (names::labels::LINT, "NotIn"));
        let spared = system.values.as_ref().unwrap();
        for namespace in ["kube-system", names::SYSTEM_NAMESPACE] {
            assert!(spared.contains(&namespace.to_owned()), "{namespace}");
        }
    }
    let (with, without) = (text_with(&[]), text_with(&["lintWebhook=false"]));
    for trace in ["remora-lint", "--admission-listen", "name: admission", "validatingwebhook"] {
        assert!(with.contains(trace) && !without.contains(trace), "{trace}");
    }
}
