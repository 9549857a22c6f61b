//! Tells people about the issuer by Events (`events.k8s.io/v1`) on its Secret, seen with
//! `kubectl get events -n remora-system`.
//!
//! The name of an Event is made from what it says, so that one thing is told once: a restarted or
//! second replica finds it there. The API server forgets Events after an hour by default; the
//! leader does not tell again what it has told.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use remora_core::{drain, names};
use tokio::{sync::watch, time::Instant};

use super::{Replica, Seldom, call, micro_time};

/// Who reports.
const CONTROLLER: &str = "remora.io/control-plane";
/// Longest note that the API takes, in bytes.
const MAX_NOTE: usize = 1024;
/// Things told that are remembered; more than there are at a time.
const MAX_TOLD: usize = 256;

const DAY: Duration = Duration::from_secs(86_400);

/// Something to tell about the issuer's Secret, for as long as it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Tells it from others: lower-case letters, digits and `-`, at most 100. The same key is
    /// told once.
    pub key: String,
    /// What happened, in CamelCase.
    pub reason: &'static str,
    /// What is done about it, in CamelCase.
    pub action: &'static str,
    /// The sentence that people read; cut at 1024 bytes.
    pub note: String,
}

/// How near the end of the issuer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Expiry {
    /// Within 30 days.
    Month,
    /// Within 7 days.
    Week,
    /// Within a day.
    Day,
    /// Over.
    Over,
}

impl Expiry {
    /// The level that holds now; `None` where there are more than 30 days left.
    #[must_use]
    pub fn at(now: SystemTime, not_after: SystemTime) -> Option<Self> {
        let left = match not_after.duration_since(now) {
            Ok(left) if !left.is_zero() => left,
            _ => return Some(Self::Over),
        };
        [(DAY, Self::Day), (7 * DAY, Self::Week), (30 * DAY, Self::Month)]
            .into_iter()
            .find_map(|(within, level)| (left <= within).then_some(level))
    }
}

impl Notice {
    /// The issuer ends soon.
    #[must_use]
    pub fn expiry(level: Expiry, fingerprint: &str, not_after: SystemTime) -> Self {
        let (word, when) = match level {
            Expiry::Month => ("30d", "in less than 30 days"),
            Expiry::Week => ("7d", "in less than 7 days"),
            Expiry::Day => ("1d", "in less than a day"),
            Expiry::Over => ("over", "now; no certificate is issued any more"),
        };
        let since_epoch = not_after.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let seconds = i64::try_from(since_epoch).unwrap_or(i64::MAX);
        let end = Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
        let secret = names::ISSUER_SECRET;
        Self {
            key: format!("expiry-{}-{word}", short(fingerprint)),
            reason: if level == Expiry::Over { "IssuerExpired" } else { "IssuerExpiresSoon" },
            action: "WatchExpiry",
            note: format!(
                "the issuer of the mesh's certificates ends {when}, at {end}; put a new one into \
                 Secret {secret}"
            ),
        }
    }

    /// A new content of the Secret was not taken. `version` tells contents apart: the Secret's
    /// resourceVersion.
    #[must_use]
    pub fn refused(version: &str, problem: &str) -> Self {
        let secret = names::ISSUER_SECRET;
        Self {
            key: format!("refused-{}", short(version)),
            reason: "IssuerRefused",
            action: "LoadIssuer",
            note: format!("Secret {secret} not taken, the issuer before it stays: {problem}"),
        }
    }
}

/// What may be in an object's name, and not too much of it.
fn short(text: &str) -> String {
    let fits = |c: &char| c.is_ascii_alphanumeric();
    text.chars().filter(fits).take(16).map(|c| c.to_ascii_lowercase()).collect()
}

/// While this replica leads, tells each of `notices` once, until draining begins.
pub async fn report(
    client: Client,
    replica: Replica,
    mut leading: watch::Receiver<bool>,
    mut notices: watch::Receiver<Arc<Vec<Notice>>>,
    clock: fn() -> SystemTime,
    mut rng: fastrand::Rng,
    drain: drain::Watch,
) {
    let api = Api::<Event>::namespaced(client, &replica.namespace);
    let mut told = BTreeSet::new();
    let mut failures = 0;
    let mut reported = Seldom::default();
    loop {
        let due = match *leading.borrow_and_update() {
            true => notices.borrow_and_update().iter().find(|n| !told.contains(&n.key)).cloned(),
            false => None,
        };
        let Some(notice) = due else {
            tokio::select! {
                () = drain.draining() => return,
                changed = leading.changed() => if changed.is_err() { return },
                changed = notices.changed() => if changed.is_err() { return },
            }
            continue;
        };
        let event = event(&notice, &replica, clock());
        let sent = tokio::select! {
            () = drain.draining() => return,
            sent = call(async { api.create(&PostParams::default(), &event).await }) => sent,
        };
        match sent {
            Err(error) if error.code() != 409 => {
                failures += 1;
                if reported.due(Instant::now()) {
                    let (reason, mend) = (notice.reason, error.mend());
                    tracing::warn!(reason, note = notice.note, "Event not written: {error}{mend}");
                }
                let pause = tokio::time::sleep(super::pause(failures, &mut rng));
                tokio::select! {
                    () = drain.draining() => return,
                    () = pause => {}
                }
            }
            // Somebody told it before.
            Ok(_) | Err(_) => {
                failures = 0;
                if told.len() >= MAX_TOLD {
                    told.clear();
                }
                told.insert(notice.key);
            }
        }
    }
}

fn event(notice: &Notice, replica: &Replica, now: SystemTime) -> Event {
    let secret = names::ISSUER_SECRET;
    let namespace = Some(replica.namespace.clone());
    let end = notice.note.floor_char_boundary(MAX_NOTE);
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{secret}.{}", notice.key)),
            namespace: namespace.clone(),
            labels: Some(
                [(names::labels::PART_OF.to_owned(), names::labels::REMORA.to_owned())].into(),
            ),
            ..ObjectMeta::default()
        },
        event_time: Some(micro_time(now)),
        type_: Some("Warning".to_owned()),
        reason: Some(notice.reason.to_owned()),
        action: Some(notice.action.to_owned()),
        note: Some(notice.note[..end].to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Secret".to_owned()),
            name: Some(secret.to_owned()),
            namespace,
            ..ObjectReference::default()
        }),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(replica.identity.chars().take(128).collect()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests;
