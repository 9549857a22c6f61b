//! What an install and what the installed programs may have to do.

use std::fmt;

use remora_core::names::{
    INJECTOR_TLS_SECRET, ISSUER_SECRET, LEADER_LEASE, LINT_CONFIGURATION, SYSTEM_NAMESPACE,
    TRUST_BUNDLE_CONFIG_MAP, WEBHOOK_CONFIGURATION,
};
use serde_json::{Value, json};

/// One thing somebody may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Permission {
    pub(crate) verb: &'static str,
    /// Empty for the core group.
    pub(crate) group: &'static str,
    /// As a role names it: `pods`, `httproutes/status`.
    pub(crate) resource: &'static str,
    /// Of one object; empty for all.
    pub(crate) name: &'static str,
    /// In one namespace; empty for all, or where there are none.
    pub(crate) namespace: &'static str,
}

impl Permission {
    /// As an access review asks for it.
    pub(crate) fn attributes(&self) -> Value {
        let (resource, part) = self.resource.split_once('/').unwrap_or((self.resource, ""));
        let mut attributes = json!({
            "verb": self.verb, "group": self.group, "resource": resource,
            "name": self.name, "namespace": self.namespace,
        });
        if !part.is_empty() {
            attributes["subresource"] = part.into();
        }
        attributes
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        if !self.name.is_empty() {
            write!(f, "/{}", self.name)?;
        }
        if !self.namespace.is_empty() {
            write!(f, " in {}", self.namespace)?;
        }
        Ok(())
    }
}

/// Kinds that an install makes: group, resource, namespace.
const INSTALLED: [(&str, &str, &str); 11] = [
    ("", "namespaces", ""),
    ("", "serviceaccounts", SYSTEM_NAMESPACE),
    ("", "services", SYSTEM_NAMESPACE),
    ("apps", "deployments", SYSTEM_NAMESPACE),
    ("policy", "poddisruptionbudgets", SYSTEM_NAMESPACE),
    ("rbac.authorization.k8s.io", "roles", SYSTEM_NAMESPACE),
    ("rbac.authorization.k8s.io", "rolebindings", SYSTEM_NAMESPACE),
    ("rbac.authorization.k8s.io", "clusterroles", ""),
    ("rbac.authorization.k8s.io", "clusterrolebindings", ""),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", ""),
    ("admissionregistration.k8s.io", "validatingwebhookconfigurations", ""),
];

/// What `kubectl apply` of an install does.
pub(crate) fn install() -> Vec<Permission> {
    expand(&["get", "create", "patch"], &INSTALLED, "")
}

/// What the control plane does. Without the right to make its issuer's Secret where that is
/// brought by somebody else, and with what it takes to be asked at admission where it is.
pub(crate) fn control_plane(external_issuer: bool, admission: bool) -> Vec<Permission> {
    const GATEWAY: &str = "gateway.networking.k8s.io";
    const STATUSES: [(&str, &str, &str); 4] = [
        (GATEWAY, "httproutes/status", ""),
        (GATEWAY, "grpcroutes/status", ""),
        (GATEWAY, "tlsroutes/status", ""),
        (GATEWAY, "tcproutes/status", ""),
    ];
    const WATCHED: [(&str, &str, &str); 10] = [
        ("", "namespaces", ""),
        ("", "services", ""),
        ("", "pods", ""),
        ("", "nodes", ""),
        ("discovery.k8s.io", "endpointslices", ""),
        (GATEWAY, "httproutes", ""),
        (GATEWAY, "grpcroutes", ""),
        (GATEWAY, "tlsroutes", ""),
        (GATEWAY, "tcproutes", ""),
        (GATEWAY, "referencegrants", ""),
    ];
    const SECRETS: [(&str, &str, &str); 1] = [("", "secrets", SYSTEM_NAMESPACE)];
    const LEASES: [(&str, &str, &str); 1] = [("coordination.k8s.io", "leases", SYSTEM_NAMESPACE)];
    const CONFIG_MAPS: [(&str, &str, &str); 1] = [("", "configmaps", "")];
    const EVENTS: [(&str, &str, &str); 1] = [("events.k8s.io", "events", SYSTEM_NAMESPACE)];
    const LINT: [(&str, &str, &str); 1] =
        [("admissionregistration.k8s.io", "validatingwebhookconfigurations", "")];
    let mut all = expand(&["list", "watch"], &WATCHED, "");
    all.extend(expand(&["patch"], &STATUSES, ""));
    all.extend(expand(&["create"], &[("authentication.k8s.io", "tokenreviews", "")], ""));
    all.extend(expand(&["create"], &CONFIG_MAPS, ""));
    all.extend(expand(&["get", "patch"], &CONFIG_MAPS, TRUST_BUNDLE_CONFIG_MAP));
    all.extend(expand(&["get", "list", "watch"], &SECRETS, ISSUER_SECRET));
    if !external_issuer {
        all.extend(expand(&["create"], &SECRETS, ""));
    }
    all.extend(expand(&["create"], &LEASES, ""));
    all.extend(expand(&["get", "update"], &LEASES, LEADER_LEASE));
    all.extend(expand(&["create", "patch"], &EVENTS, ""));
    if admission {
        all.extend(expand(&["get", "patch"], &LINT, LINT_CONFIGURATION));
    }
    all
}

/// What the injector does.
pub(crate) fn injector() -> Vec<Permission> {
    const SECRETS: [(&str, &str, &str); 1] = [("", "secrets", SYSTEM_NAMESPACE)];
    const WEBHOOKS: [(&str, &str, &str); 1] =
        [("admissionregistration.k8s.io", "mutatingwebhookconfigurations", "")];
    let mut all = expand(&["get", "list", "watch", "patch"], &[("", "namespaces", "")], "");
    all.extend(expand(&["get", "list", "watch", "patch"], &WEBHOOKS, WEBHOOK_CONFIGURATION));
    all.extend(expand(&["create", "patch"], &[("events.k8s.io", "events", "")], ""));
    all.extend(expand(&["create"], &SECRETS, ""));
    all.extend(expand(&["get", "list", "watch", "update"], &SECRETS, INJECTOR_TLS_SECRET));
    all
}

fn expand(
    verbs: &[&'static str],
    kinds: &[(&'static str, &'static str, &'static str)],
    name: &'static str,
) -> Vec<Permission> {
    let of = |&(group, resource, namespace): &(&'static str, &'static str, &'static str)| {
        verbs.iter().map(move |verb| Permission { verb, group, resource, name, namespace })
    };
    kinds.iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_named_as_in_a_role() {
        let names: Vec<String> =
            control_plane(false, true).iter().map(ToString::to_string).collect();
        for expected in [
            "watch endpointslices.discovery.k8s.io",
            "get secrets/remora-identity-issuer in remora-system",
            "create secrets in remora-system",
            "patch configmaps/remora-trust-bundle",
        ] {
            assert!(names.iter().any(|name| name == expected), "{expected} in {names:?}");
        }
    }

    #[test]
    fn an_issuer_of_others_takes_no_right_to_make_secrets() {
        let creates = |external| {
            control_plane(external, true)
                .iter()
                .any(|p| p.verb == "create" && p.resource == "secrets")
        };
        assert!(creates(false) && !creates(true));
    }

    #[test]
    fn the_installed_roles_grant_what_the_programs_need() {
        for (needed, template) in [
            (
                control_plane(false, true),
                include_str!("../../../deploy/templates/control-plane-rbac.yaml"),
            ),
            (injector(), include_str!("../../../deploy/templates/injector-rbac.yaml")),
        ] {
            let objects: Vec<Value> = serde_saphyr::from_multiple(template).unwrap();
            for permission in needed {
                assert!(objects.iter().any(|role| grants(role, permission)), "{permission}");
            }
        }
    }

    fn grants(role: &Value, permission: Permission) -> bool {
        let in_reach = match role["kind"].as_str() {
            Some("ClusterRole") => true,
            Some("Role") => role["metadata"]["namespace"] == json!(permission.namespace),
            _ => false,
        };
        let has = |rule: &Value, list: &str, word: &str| {
            rule[list].as_array().is_some_and(|words| words.contains(&json!(word)))
        };
        in_reach
            && role["rules"].as_array().into_iter().flatten().any(|rule| {
                let named =
                    rule["resourceNames"].is_null() || has(rule, "resourceNames", permission.name);
                named
                    && has(rule, "apiGroups", permission.group)
                    && has(rule, "resources", permission.resource)
                    && has(rule, "verbs", permission.verb)
            })
    }

    #[test]
    fn an_access_review_has_all_attributes() {
        let first = install()[0];
        let expected = json!({ "verb": "get", "group": "", "resource": "namespaces", "name": "",
                               "namespace": "" });
        assert_eq!(first.attributes(), expected);
        let status =
            control_plane(false, true).into_iter().find(|p| p.resource == "httproutes/status");
        let asked = status.unwrap().attributes();
        assert_eq!(
            (&asked["resource"], &asked["subresource"]),
            (&json!("httproutes"), &json!("status"))
        );
    }
}
