//! Keeps the caBundles of the ValidatingWebhookConfiguration `remora-lint` right: the mesh's roots, by
//! which the API server knows the control plane when it asks at admission. While two roots are trusted,
//! both are in it, as in the ConfigMaps: whoever signs, the API server takes it.
//!
//! It is looked at once a minute, and whenever the roots change. A watch would tell sooner and take the
//! right to list every such configuration; while a bundle is wrong, objects go unjudged and no other harm
//! is done. Where there is no configuration, nobody wants to be told anything at admission.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    ByteString, api::admissionregistration::v1::ValidatingWebhookConfiguration as Configuration,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use remora_core::{drain, names::LINT_CONFIGURATION};
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};

use super::{
    CallError, Seldom, call, pause,
    trust_bundles::{FIELD_MANAGER, PublishedBundle},
};

/// Looked at again after at most this long; a tenth of it is chance.
const AGAIN: Duration = Duration::from_secs(60);

/// While this replica leads, keeps the caBundles right, until draining begins.
pub async fn publish(
    client: Client,
    mut leading: watch::Receiver<bool>,
    bundle: watch::Receiver<Arc<PublishedBundle>>,
    mut rng: fastrand::Rng,
    drain: drain::Watch,
) {
    loop {
        tokio::select! {
            () = drain.draining() => return,
            elected = leading.wait_for(|leading| *leading) => if elected.is_err() { return },
        }
        tokio::select! {
            () = drain.draining() => return,
            ended = leading.wait_for(|leading| !*leading) => if ended.is_err() { return },
            () = term(&client, bundle.clone(), rng.fork()) => return,
        }
    }
}

/// One time of leading. Ends where nobody feeds it any more.
async fn term(
    client: &Client,
    mut bundle: watch::Receiver<Arc<PublishedBundle>>,
    mut rng: fastrand::Rng,
) {
    let api = Api::<Configuration>::all(client.clone());
    let (mut failures, mut reported) = (0, Seldom::default());
    loop {
        let roots = Arc::clone(&bundle.borrow_and_update());
        let wait = match keep(&api, &roots.pem).await {
            Ok(written) => {
                failures = 0;
                if written {
                    tracing::info!(name = LINT_CONFIGURATION, "roots written into the caBundle");
                }
                AGAIN.mul_f64(0.9 + 0.1 * rng.f64())
            }
            Err(error) => {
                failures += 1;
                if reported.due(Instant::now()) {
                    let mend = error.mend();
                    tracing::warn!(
                        name = LINT_CONFIGURATION,
                        "caBundle not written, objects are not judged at admission: {error}{mend}"
                    );
                }
                pause(failures, &mut rng)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            changed = bundle.changed() => if changed.is_err() { return },
        }
    }
}

/// Looks, and writes what is wrong; whether anything was. Nothing is wrong with what is not there.
async fn keep(api: &Api<Configuration>, pem: &str) -> Result<bool, CallError> {
    if pem.is_empty() {
        return Ok(false);
    }
    let Some(configuration) = call(api.get_opt(LINT_CONFIGURATION)).await? else {
        return Ok(false);
    };
    let Some(patch) = patch(&configuration, pem) else { return Ok(false) };
    let params =
        PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    match call(api.patch(LINT_CONFIGURATION, &params, &Patch::Strategic(patch))).await {
        Ok(_) => Ok(true),
        // Deleted meanwhile.
        Err(error) if error.code() == 404 => Ok(false),
        Err(error) => Err(error),
    }
}

/// Strategic merge, webhooks by their names; refused where the configuration has changed meanwhile. `None`
/// where each has the roots already. What else is in a bundle goes: it would vouch for others in our name.
fn patch(configuration: &Configuration, pem: &str) -> Option<Value> {
    let wanted = ByteString(pem.as_bytes().to_vec());
    let webhooks: Vec<Value> = configuration
        .webhooks
        .iter()
        .flatten()
        .filter(|webhook| webhook.client_config.ca_bundle.as_ref() != Some(&wanted))
        .map(|webhook| json!({ "name": webhook.name, "clientConfig": { "caBundle": wanted } }))
        .collect();
    let version = &configuration.metadata.resource_version;
    let patch = json!({ "metadata": { "resourceVersion": version }, "webhooks": webhooks });
    (!webhooks.is_empty()).then_some(patch)
}

#[cfg(test)]
mod tests;
