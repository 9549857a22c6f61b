//! The issuer's Secret `remora-identity-issuer` in the control plane's namespace: made where there is
//! none, then followed.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{Stream, StreamExt};
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::PostParams,
    runtime::watcher::{self, DefaultBackoff, watch_object},
};
use remora_core::{drain, names};
use tokio::{sync::mpsc, time::timeout};

use super::{
    bundle::{Roots, pem},
    ca::{Authority, NewRoot},
    judge::{Material, Part, Refused},
    keeper::Seen,
};

/// Longest wait for the API server's answer to one request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What to do with a Secret that cannot be used.
const MEND: &str = "put tls.crt (the issuer's chain), its tls.key and ca.crt (the roots) into it";

/// Where the issuer is, and how it is used.
#[derive(Clone)]
pub struct Home {
    /// The API server.
    pub client: Client,
    /// The control plane's namespace.
    pub namespace: String,
    /// Trust domain of a root that is made here.
    pub trust_domain: String,
    /// Whether somebody else (cert-manager, an operator) brings the Secret, so that none is made.
    pub external: bool,
    /// Life of the leaves.
    pub leaf_lifetime: Duration,
    /// The wall clock.
    pub clock: fn() -> SystemTime,
}

/// Why nothing can be said of an object yet.
#[derive(Debug, thiserror::Error)]
enum ApiError {
    #[error("{what}: {error}")]
    Api { what: String, error: Box<kube::Error> },
    #[error("{what}: no answer from the API server in {} s", TIMEOUT.as_secs())]
    Timeout { what: String },
    #[error("cannot make a root: {0}")]
    Generate(#[from] rcgen::Error),
}

impl Home {
    /// What is published in our namespace; empty where nothing is. Tries until the API answers; `None`
    /// where draining begins before.
    pub async fn published(&self, drain: &drain::Watch) -> Option<Roots> {
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), &self.namespace);
        let name = names::TRUST_BUNDLE_CONFIG_MAP;
        let get = || self.ask("ConfigMap", name, api.get_opt(name));
        let config_map = persist(get, drain).await?;
        Some(config_map.map(|map| Roots::read(&map, (self.clock)())).unwrap_or_default())
    }

    /// Follows the Secret until draining begins; makes it first where it is absent and ours to make.
    pub async fn follow(&self, seen: mpsc::Sender<Seen>, drain: drain::Watch) {
        let api = Api::<Secret>::namespaced(self.client.clone(), &self.namespace);
        if !self.external {
            let make = || self.make_if_absent(&api);
            if persist(make, &drain).await.is_none() {
                return;
            }
        }
        let objects = watch_object(api, names::ISSUER_SECRET);
        tokio::select! {
            () = drain.draining() => {}
            () = self.judge_all(objects, seen) => {}
        }
    }

    async fn judge_all(
        &self,
        objects: impl Stream<Item = watcher::Result<Option<Secret>>>,
        seen: mpsc::Sender<Seen>,
    ) {
        let mut objects = std::pin::pin!(objects);
        let mut backoff = DefaultBackoff::default();
        while let Some(next) = objects.next().await {
            let says = match next {
                Ok(Some(secret)) => match judge(&secret, self.leaf_lifetime, (self.clock)()) {
                    Ok(authority) => Seen::Issuer(Arc::new(authority)),
                    Err(refused) => Seen::Refused {
                        version: secret.metadata.resource_version.unwrap_or_default(),
                        problem: refused.to_string(),
                    },
                },
                Ok(None) => Seen::Refused { version: "absent".to_owned(), problem: self.absent() },
                Err(error) => {
                    let error = self.explain(&error.to_string());
                    tracing::warn!(error, "issuer's Secret cannot be watched; trying again");
                    tokio::time::sleep(backoff.next().unwrap_or(TIMEOUT)).await;
                    continue;
                }
            };
            backoff = DefaultBackoff::default();
            if seen.send(says).await.is_err() {
                return;
            }
        }
    }

    fn absent(&self) -> String {
        let mend = if self.external {
            "have it made by whoever brings the issuer, or start without --external-issuer"
        } else {
            "restore it from a backup, or restart the control plane to have a new one made"
        };
        format!("Secret {}/{}: absent; {mend}", self.namespace, names::ISSUER_SECRET)
    }

    /// Makes a fresh root where there is no Secret. Of several replicas one is first; the others read
    /// what it made.
    async fn make_if_absent(&self, api: &Api<Secret>) -> Result<(), ApiError> {
        let name = names::ISSUER_SECRET;
        if self.ask("Secret", name, api.get_metadata_opt(name)).await?.is_some() {
            return Ok(());
        }
        let secret = fresh(&self.trust_domain, (self.clock)())?;
        let parameters = PostParams::default();
        let made = async {
            match api.create(&parameters, &secret).await {
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
                made => made.map(|_| true),
            }
        };
        if self.ask("Secret", name, made).await? {
            let namespace = &self.namespace;
            tracing::info!(
                namespace,
                name,
                "made a root for the mesh; keep a backup of the Secret"
            );
        }
        Ok(())
    }

    async fn ask<T>(
        &self,
        kind: &str,
        name: &str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ApiError> {
        let what = || format!("{kind} {}/{name}", self.namespace);
        match timeout(TIMEOUT, request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(ApiError::Api { what: what(), error: Box::new(error) }),
            Err(_) => Err(ApiError::Timeout { what: what() }),
        }
    }

    fn explain(&self, error: &str) -> String {
        format!("Secret {}/{}: {error}", self.namespace, names::ISSUER_SECRET)
    }
}

/// Asks again, with jittered back-off, until there is an answer; `None` where draining begins before.
async fn persist<T, F>(mut ask: impl FnMut() -> F, drain: &drain::Watch) -> Option<T>
where
    F: Future<Output = Result<T, ApiError>>,
{
    let mut backoff = DefaultBackoff::default();
    loop {
        let answer = tokio::select! {
            () = drain.draining() => return None,
            answer = ask() => answer,
        };
        match answer {
            Ok(answer) => return Some(answer),
            Err(error) => tracing::warn!(
                error = mended(&error),
                "identity waits for the API server; trying again"
            ),
        }
        tokio::select! {
            () = drain.draining() => return None,
            () = tokio::time::sleep(backoff.next().unwrap_or(TIMEOUT)) => {}
        }
    }
}

fn mended(error: &ApiError) -> String {
    match error {
        ApiError::Api { error: source, .. } if matches!(&**source, kube::Error::Api(status) if status.code == 403) =>
        {
            format!("{error}; give the control plane's ServiceAccount the Role of `remora install`")
        }
        _ => error.to_string(),
    }
}

/// The authority that a Secret makes.
///
/// # Errors
/// Names the Secret and its key, what is wrong with it, and the mend.
pub fn judge(
    secret: &Secret,
    leaf_lifetime: Duration,
    now: SystemTime,
) -> Result<Authority, Refused> {
    let namespace = secret.metadata.namespace.as_deref().unwrap_or_default();
    let name = secret.metadata.name.as_deref().unwrap_or_default();
    let place = |key: &str| format!("Secret {namespace}/{name}, key {key}");
    let (ca, crt, key) = (place(CA), place(CRT), place(KEY));
    let pem = |key: &str| {
        secret.data.as_ref().and_then(|data| data.get(key)).map_or(&[][..], |value| &value.0)
    };
    let material = Material {
        roots: Part { place: &ca, pem: pem(CA) },
        chain: Part { place: &crt, pem: pem(CRT) },
        key: Part { place: &key, pem: pem(KEY) },
        mend: MEND,
    };
    material.authority(leaf_lifetime, now)
}

const CA: &str = "ca.crt";
const CRT: &str = "tls.crt";
const KEY: &str = "tls.key";

/// A Secret with a fresh root.
fn fresh(trust_domain: &str, now: SystemTime) -> Result<Secret, rcgen::Error> {
    let root = NewRoot::generate(trust_domain, now)?;
    let certificate = pem(&root.certificate);
    let value = |text: &str| ByteString(text.as_bytes().to_vec());
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(names::ISSUER_SECRET.to_owned()),
            labels: Some(BTreeMap::from([
                (names::labels::PART_OF.to_owned(), names::labels::REMORA.to_owned()),
                (names::labels::COMPONENT.to_owned(), "control-plane".to_owned()),
            ])),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(BTreeMap::from([
            (CA.to_owned(), value(&certificate)),
            (CRT.to_owned(), value(&certificate)),
            (KEY.to_owned(), value(&root.key.serialize_pem())),
        ])),
        ..Secret::default()
    })
}

#[cfg(test)]
mod tests;
