//! The caBundles of the MutatingWebhookConfiguration.
//!
//! Roots are only ever added, and dropped when they have run out. So replicas that know different
//! states of the Secret for a moment do not undo each other's work, and what one of them still
//! serves stays trusted.

use std::{collections::BTreeMap, time::SystemTime};

use futures_util::StreamExt;
use k8s_openapi::{
    ByteString, api::admissionregistration::v1::MutatingWebhookConfiguration as Configuration,
};
use kube::{
    Api,
    api::{Patch, PatchParams},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::json;
use tokio::{sync::watch, time::Instant};

use super::{Context, Newest, material};
use crate::webhook::cluster::{Pauses, REQUEST};

/// Roots in one caBundle at most; the newest stay.
const MAX_ROOTS: usize = 8;

/// What API servers trust, as far as this replica has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Published {
    /// Nothing seen yet.
    Unknown,
    /// There is no configuration, so nobody calls.
    NoConfiguration,
    /// These are in the caBundle of each webhook.
    Roots(Vec<CertificateDer<'static>>),
}

/// Adds what is missing and tells what is there, until draining begins.
pub(crate) async fn keep(
    context: Context,
    mut newest: Newest,
    published: watch::Sender<Published>,
) {
    let api: Api<Configuration> = Api::all(context.client.clone());
    let name = context.configuration.as_str();
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut stream = std::pin::pin!(watcher(api.clone(), only).default_backoff());
    let mut seen: Option<Configuration> = None;
    let mut listed = None;
    let mut pauses = Pauses::default();
    let mut again: Option<Instant> = None;
    loop {
        tokio::select! {
            () = context.drain.draining() => return,
            changed = newest.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
            event = stream.next() => match event {
                Some(Ok(Event::Init)) => { listed = None; continue }
                Some(Ok(Event::InitApply(object))) => { listed = Some(object); continue }
                Some(Ok(Event::InitDone)) => {
                    seen = listed.take();
                    tell(&published, name, seen.as_ref());
                }
                Some(Ok(Event::Apply(object))) => {
                    seen = Some(object);
                    tell(&published, name, seen.as_ref());
                }
                Some(Ok(Event::Delete(_))) => {
                    seen = None;
                    tell(&published, name, None);
                }
                Some(Err(error)) => {
                    tracing::warn!(name, %error, "the MutatingWebhookConfiguration cannot be watched");
                    continue;
                }
                None => return,
            },
        }
        again = None;
        let (Some(configuration), Some(newest)) = (&seen, newest.borrow_and_update().clone())
        else {
            continue;
        };
        let Some(patch) = patch(configuration, newest.roots(), (context.clock)()) else {
            pauses.reset();
            continue;
        };
        let result = write(&api, name, &patch).await;
        context.metrics.ca_bundle_patch(result);
        if result == "failed" {
            again = Some(Instant::now() + pauses.next_pause());
        }
    }
}

fn tell(published: &watch::Sender<Published>, name: &str, configuration: Option<&Configuration>) {
    let now = configuration.map_or(Published::NoConfiguration, |configuration| {
        Published::Roots(common_roots(configuration))
    });
    published.send_if_modified(|before| {
        if *before == now {
            return false;
        }
        if now == Published::NoConfiguration {
            tracing::warn!(
                name,
                "no MutatingWebhookConfiguration: no pod gets a sidecar; apply the output of \
                 remora install"
            );
        }
        *before = now;
        true
    });
}

/// Strategic merge, webhooks by their names; refused where the configuration has changed meanwhile.
/// `None` where nothing is missing.
fn patch(
    configuration: &Configuration,
    ours: &[CertificateDer<'static>],
    now: SystemTime,
) -> Option<serde_json::Value> {
    let webhooks = configuration.webhooks.as_deref().unwrap_or_default();
    let wanted: BTreeMap<&str, ByteString> = webhooks
        .iter()
        .filter_map(|webhook| {
            let bundle = webhook.client_config.ca_bundle.as_ref();
            Some((webhook.name.as_str(), with_ours(bundle, ours, now)?))
        })
        .collect();
    if wanted.is_empty() {
        return None;
    }
    let webhooks: Vec<_> = wanted
        .into_iter()
        .map(|(name, bundle)| json!({ "name": name, "clientConfig": { "caBundle": bundle } }))
        .collect();
    let version = &configuration.metadata.resource_version;
    Some(json!({ "metadata": { "resourceVersion": version }, "webhooks": webhooks }))
}

/// What the bundle should be; `None` where it may stay.
fn with_ours(
    bundle: Option<&ByteString>,
    ours: &[CertificateDer<'static>],
    now: SystemTime,
) -> Option<ByteString> {
    let is_good = |root: &CertificateDer<'_>| material::expiry(root).is_some_and(|end| end > now);
    let there = roots(bundle);
    if ours.iter().filter(|root| is_good(root)).all(|root| there.contains(root)) {
        return None;
    }
    let mut all: Vec<_> = ours.iter().chain(&there).filter(|root| is_good(root)).cloned().collect();
    // The latest to expire is the latest made.
    all.sort_by_key(|root| std::cmp::Reverse(material::expiry(root)));
    all.dedup();
    all.truncate(MAX_ROOTS);
    Some(ByteString(material::pem(&all).into_bytes()))
}

async fn write(api: &Api<Configuration>, name: &str, patch: &serde_json::Value) -> &'static str {
    let params = PatchParams::default();
    let patch = Patch::Strategic(patch);
    match tokio::time::timeout(REQUEST, api.patch(name, &params, &patch)).await {
        Ok(Ok(_)) => {
            tracing::info!("CA written into the MutatingWebhookConfiguration");
            "written"
        }
        // The watch brings what it is now.
        Ok(Err(kube::Error::Api(status))) if status.code == 409 || status.code == 404 => "conflict",
        Ok(Err(error)) => {
            tracing::error!(%error, "CA not written into the MutatingWebhookConfiguration; trying again");
            "failed"
        }
        Err(_) => {
            tracing::error!(
                "CA not written into the MutatingWebhookConfiguration in time; trying again"
            );
            "failed"
        }
    }
}

fn common_roots(configuration: &Configuration) -> Vec<CertificateDer<'static>> {
    let webhooks = configuration.webhooks.as_deref().unwrap_or_default();
    let mut bundles =
        webhooks.iter().map(|webhook| roots(webhook.client_config.ca_bundle.as_ref()));
    let mut common = bundles.next().unwrap_or_default();
    for bundle in bundles {
        common.retain(|root| bundle.contains(root));
    }
    common
}

/// Nothing where the bundle is absent or nonsense; it is replaced then.
fn roots(bundle: Option<&ByteString>) -> Vec<CertificateDer<'static>> {
    let bytes = bundle.map_or(&[][..], |bundle| bundle.0.as_slice());
    CertificateDer::pem_slice_iter(bytes).filter_map(Result::ok).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::webhook::certs::material::{LIFETIME, Material};

    fn made(at: SystemTime) -> Vec<CertificateDer<'static>> {
        Material::make(&["a.b.svc".to_owned()], &[], at).unwrap().roots().to_vec()
    }

    fn start() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    #[test]
    fn roots_are_added_and_others_stay_until_they_run_out() {
        let (old, new) = (made(start()), made(start() + LIFETIME / 2));
        let now = start() + LIFETIME / 2;
        let bundle = ByteString(material::pem(&old).into_bytes());
        let both = with_ours(Some(&bundle), &new, now).unwrap();
        assert_eq!(roots(Some(&both)), [new.clone(), old.clone()].concat());
        // A replica that knows only the old one leaves it.
        assert_eq!(with_ours(Some(&both), &old, now), None);
        let newest = made(start() + LIFETIME + Duration::from_secs(1));
        let later = start() + LIFETIME + Duration::from_secs(1);
        let next = with_ours(Some(&both), &newest, later).unwrap();
        assert_eq!(roots(Some(&next)), [newest, new].concat());
    }

    #[test]
    fn nonsense_and_absence_are_replaced() {
        let ours = made(start());
        for bundle in [None, Some(ByteString(b"nonsense".to_vec())), Some(ByteString(Vec::new()))] {
            let written = with_ours(bundle.as_ref(), &ours, start()).unwrap();
            assert_eq!(roots(Some(&written)), ours);
        }
    }

    #[test]
    fn a_bundle_does_not_grow_without_bound() {
        let mut bundle = None;
        for n in 0..20u32 {
            let now = start() + Duration::from_secs(60) * n;
            bundle = with_ours(bundle.as_ref(), &made(now), now);
        }
        assert_eq!(roots(bundle.as_ref()).len(), MAX_ROOTS);
    }
}
