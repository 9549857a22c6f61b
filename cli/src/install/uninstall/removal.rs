//! The removal itself. The order keeps it quiet: first nobody calls the webhook any more, then the
//! programs end, so that nothing writes again what goes after them.

use std::{fmt::Debug, io::Write, time::Duration};

use k8s_openapi::api::{
    admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
    apps::v1::Deployment,
    core::v1::{ConfigMap, Namespace},
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
    runtime::wait::{await_condition, conditions::is_deleted},
};
use remora_core::names::{SYSTEM_NAMESPACE, TRUST_BUNDLE_CONFIG_MAP, labels};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use super::{Error, Survey};

/// Removes what was seen; each wait ends `patience` after the beginning.
///
/// # Errors
/// At the first object that cannot be removed. Run again, it goes on from there.
pub(super) async fn carry_out(
    client: &Client,
    survey: &Survey,
    patience: Duration,
    out: &mut impl Write,
) -> Result<(), Error> {
    let mut removal = Removal { deadline: Instant::now() + patience, patience, out };
    let cluster_wide = Api::<MutatingWebhookConfiguration>::all(client.clone());
    for name in &survey.webhooks {
        removal.delete(&cluster_wide, name, None).await?;
    }
    let cluster_wide = Api::<ValidatingWebhookConfiguration>::all(client.clone());
    for name in &survey.validating_webhooks {
        removal.delete(&cluster_wide, name, None).await?;
    }
    // All at once, then each to its end.
    let deployments = Api::<Deployment>::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let mut ending = Vec::new();
    for name in &survey.deployments {
        ending.push((name, removal.begin(&deployments, name, None).await?));
    }
    for (name, uid) in ending {
        removal.finish(&deployments, name, uid).await?;
    }
    let namespaces = Api::<Namespace>::all(client.clone());
    for name in &survey.labelled {
        removal.unlabel(&namespaces, name).await?;
    }
    for namespace in &survey.bundles {
        let bundles = Api::<ConfigMap>::namespaced(client.clone(), namespace);
        removal.delete(&bundles, TRUST_BUNDLE_CONFIG_MAP, Some(namespace)).await?;
    }
    let bindings = Api::<ClusterRoleBinding>::all(client.clone());
    for name in &survey.bindings {
        removal.delete(&bindings, name, None).await?;
    }
    let roles = Api::<ClusterRole>::all(client.clone());
    for name in &survey.roles {
        removal.delete(&roles, name, None).await?;
    }
    if survey.system_namespace {
        removal.delete(&namespaces, SYSTEM_NAMESPACE, None).await?;
    }
    Ok(())
}

struct Removal<'a, W> {
    deadline: Instant,
    patience: Duration,
    out: &'a mut W,
}

impl<W: Write> Removal<'_, W> {
    async fn delete<K>(
        &mut self,
        api: &Api<K>,
        name: &str,
        namespace: Option<&str>,
    ) -> Result<(), Error>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let uid = self.begin(api, name, namespace).await?;
        self.finish(api, name, uid).await
    }

    /// Asks for an object's end; answers its uid while it is not gone yet.
    async fn begin<K>(
        &mut self,
        api: &Api<K>,
        name: &str,
        namespace: Option<&str>,
    ) -> Result<Option<String>, Error>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        // In the foreground: an object is gone when what it owns is, its pods for example.
        match api.delete(name, &DeleteParams::foreground()).await {
            Ok(answer) => {
                let of = namespace.map(|name| format!(" of namespace/{name}")).unwrap_or_default();
                writeln!(self.out, "removed {}/{name}{of}", kind::<K>())?;
                Ok(answer.left().and_then(|object| object.uid()))
            }
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(source) => {
                let what = format!("delete {}/{name}", kind::<K>());
                Err(Error::Api { what, source: Box::new(source) })
            }
        }
    }

    async fn finish<K>(
        &mut self,
        api: &Api<K>,
        name: &str,
        uid: Option<String>,
    ) -> Result<(), Error>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let Some(uid) = uid else { return Ok(()) };
        let gone = await_condition(api.clone(), name, is_deleted(&uid));
        match timeout_at(self.deadline, gone).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Error::Lingers {
                what: format!("{}/{name}", kind::<K>()),
                waited: self.patience,
            }),
        }
    }

    async fn unlabel(&mut self, api: &Api<Namespace>, name: &str) -> Result<(), Error> {
        let without = json!({ "metadata": { "labels": { labels::INJECT: null } } });
        match api.patch_metadata(name, &PatchParams::default(), &Patch::Merge(without)).await {
            Ok(_) => {
                writeln!(self.out, "removed label {} of namespace/{name}", labels::INJECT)?;
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(source) => {
                let what = format!("patch namespace/{name}");
                Err(Error::Api { what, source: Box::new(source) })
            }
        }
    }
}

/// As kubectl takes it.
fn kind<K: Resource<DynamicType = ()>>() -> String {
    K::kind(&()).to_lowercase()
}
