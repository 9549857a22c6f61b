//! What of Remora is in a cluster.

use std::{collections::BTreeMap, fmt::Debug};

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
        apps::v1::Deployment,
        core::v1::{ConfigMap, Namespace, Pod},
        rbac::v1::{ClusterRole, ClusterRoleBinding},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Resource,
    api::{ListParams, PartialObjectMeta},
};
use remora_core::names::{
    LINT_CONFIGURATION, SYSTEM_NAMESPACE, TRUST_BUNDLE_CONFIG_MAP, WEBHOOK_CONFIGURATION,
    annotations, labels,
};
use remora_injector::owner;
use serde::de::DeserializeOwned;

use super::Error;

/// Objects of one answer.
const PAGE: u32 = 500;
/// What the names of all our objects without a namespace begin with.
const PREFIX: &str = "remora-";

/// What there is to remove, and who is in the way.
#[derive(Debug, Default)]
pub(super) struct Survey {
    pub(super) webhooks: Vec<String>,
    pub(super) validating_webhooks: Vec<String>,
    pub(super) deployments: Vec<String>,
    /// Namespaces that have the label.
    pub(super) labelled: Vec<String>,
    /// Namespaces, other than ours, that have a trust bundle.
    pub(super) bundles: Vec<String>,
    pub(super) bindings: Vec<String>,
    pub(super) roles: Vec<String>,
    pub(super) system_namespace: bool,
    /// Running pods with a sidecar, by namespace and workload.
    pub(super) sidecars: BTreeMap<(String, String), usize>,
    /// Namespaces that have the annotation, which is not ours to remove.
    pub(super) opted_in: Vec<String>,
}

impl Survey {
    /// Looks.
    ///
    /// # Errors
    /// The first list that the API server does not give, with the permission it takes.
    pub(super) async fn of(client: &Client) -> Result<Self, Error> {
        let mut survey = Self {
            webhooks: ours::<MutatingWebhookConfiguration>(client).await?,
            validating_webhooks: ours::<ValidatingWebhookConfiguration>(client).await?,
            bindings: ours::<ClusterRoleBinding>(client).await?,
            roles: ours::<ClusterRole>(client).await?,
            ..Self::default()
        };
        let (webhook, lint) = (WEBHOOK_CONFIGURATION, LINT_CONFIGURATION);
        even_bare::<MutatingWebhookConfiguration>(client, webhook, &mut survey.webhooks).await?;
        let validating = &mut survey.validating_webhooks;
        even_bare::<ValidatingWebhookConfiguration>(client, lint, validating).await?;
        survey.see_namespaces(client).await?;
        if survey.system_namespace {
            survey.deployments = names(&in_ours::<Deployment>(client), ours_only()).await?;
        }
        survey.see_bundles(client).await?;
        survey.see_sidecars(client).await?;
        Ok(survey)
    }

    /// Whether there is nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.objects().is_empty()
    }

    /// What is to go, in the order in which it goes.
    pub(super) fn objects(&self) -> Vec<String> {
        let named = |kind: &str, names: &[String]| -> Vec<String> {
            names.iter().map(|name| format!("{kind}/{name}")).collect()
        };
        let mut objects = named("mutatingwebhookconfiguration", &self.webhooks);
        objects.extend(named("validatingwebhookconfiguration", &self.validating_webhooks));
        objects.extend(named("deployment", &self.deployments));
        objects.extend(
            self.labelled
                .iter()
                .map(|name| format!("label {} of namespace/{name}", labels::INJECT)),
        );
        objects.extend(
            self.bundles
                .iter()
                .map(|name| format!("configmap/{TRUST_BUNDLE_CONFIG_MAP} of namespace/{name}")),
        );
        objects.extend(named("clusterrolebinding", &self.bindings));
        objects.extend(named("clusterrole", &self.roles));
        if self.system_namespace {
            objects.push(format!("namespace/{SYSTEM_NAMESPACE} with all that is in it"));
        }
        objects
    }

    async fn see_namespaces(&mut self, client: &Client) -> Result<(), Error> {
        let api = Api::<Namespace>::all(client.clone());
        each(&api, ListParams::default(), |metadata| {
            let name = metadata.name.unwrap_or_default();
            if metadata.labels.is_some_and(|labels| labels.contains_key(labels::INJECT)) {
                self.labelled.push(name.clone());
            }
            if metadata.annotations.is_some_and(|map| map.contains_key(annotations::INJECT)) {
                self.opted_in.push(name.clone());
            }
            self.system_namespace |= name == SYSTEM_NAMESPACE;
        })
        .await
    }

    async fn see_bundles(&mut self, client: &Client) -> Result<(), Error> {
        let api = Api::<ConfigMap>::all(client.clone());
        let of_name = ours_only().fields(&format!("metadata.name={TRUST_BUNDLE_CONFIG_MAP}"));
        each(&api, of_name, |metadata| {
            let namespace = metadata.namespace.unwrap_or_default();
            if namespace != SYSTEM_NAMESPACE {
                self.bundles.push(namespace);
            }
        })
        .await
    }

    async fn see_sidecars(&mut self, client: &Client) -> Result<(), Error> {
        let api = Api::<Pod>::all(client.clone());
        let running = ListParams::default().fields("status.phase!=Succeeded,status.phase!=Failed");
        each(&api, running, |metadata| {
            let injected = |map: &BTreeMap<String, String>| map.contains_key(annotations::INJECTED);
            if !metadata.annotations.as_ref().is_some_and(injected) {
                return;
            }
            let namespace = metadata.namespace.clone().unwrap_or_default();
            let owner = owner(&Pod { metadata, ..Pod::default() });
            let workload = format!("{} {}", owner.kind, owner.name);
            *self.sidecars.entry((namespace, workload)).or_default() += 1;
        })
        .await
    }
}

fn in_ours<K>(client: &Client) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    Api::namespaced(client.clone(), SYSTEM_NAMESPACE)
}

fn ours_only() -> ListParams {
    ListParams::default().labels(&format!("{}={}", labels::PART_OF, labels::REMORA))
}

/// Adds one that is ours by its name, even where somebody took its labels.
async fn even_bare<K>(client: &Client, name: &str, known: &mut Vec<String>) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    if known.iter().any(|one| one == name) {
        return Ok(());
    }
    let found = Api::<K>::all(client.clone()).get_metadata_opt(name).await;
    let failed = |source| Error::Api {
        what: format!("get {}/{name}", K::kind(&()).to_lowercase()),
        source: Box::new(source),
    };
    known.extend(found.map_err(failed)?.map(|_| name.to_owned()));
    Ok(())
}

/// Those without a namespace that have our label and our prefix: somebody else's may have one.
async fn ours<K>(client: &Client) -> Result<Vec<String>, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let mut names = names(&Api::<K>::all(client.clone()), ours_only()).await?;
    names.retain(|name| name.starts_with(PREFIX));
    Ok(names)
}

async fn names<K>(api: &Api<K>, which: ListParams) -> Result<Vec<String>, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let mut names = Vec::new();
    each(api, which, |metadata| names.extend(metadata.name)).await?;
    Ok(names)
}

/// Every object's metadata, page by page.
async fn each<K>(
    api: &Api<K>,
    mut which: ListParams,
    mut see: impl FnMut(ObjectMeta),
) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    which = which.limit(PAGE);
    loop {
        let page = api.list_metadata(&which).await.map_err(|source| Error::Api {
            what: format!("list {}", K::plural(&())),
            source: Box::new(source),
        })?;
        let next = page.metadata.continue_.filter(|token| !token.is_empty());
        page.items.into_iter().for_each(|PartialObjectMeta { metadata, .. }| see(metadata));
        match next {
            Some(token) => which = which.continue_token(&token),
            None => return Ok(()),
        }
    }
}
