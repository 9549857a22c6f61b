//! Knobs of a shop program, turned from outside without touching its network: a small JSON file
//! that it looks at ten times a second.

use std::{future::Future, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Longest artificial delay.
const MAX_DELAY: Duration = Duration::from_secs(10);

/// How a server behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Behaviour {
    /// Added to every answer, milliseconds.
    pub(crate) delay_ms: u64,
    /// Answer everything with an error.
    pub(crate) fail: bool,
}

impl Behaviour {
    /// The delay, within its bound.
    pub(crate) fn delay(self) -> Duration {
        Duration::from_millis(self.delay_ms).min(MAX_DELAY)
    }
}

/// The behaviour in force.
#[derive(Debug, Clone)]
pub(crate) struct Control(watch::Receiver<Behaviour>);

impl Control {
    /// The behaviour at this moment.
    pub(crate) fn now(&self) -> Behaviour {
        *self.0.borrow()
    }
}

/// A control and the task that keeps it equal to the file. A file that is absent means the
/// default; one that cannot be read keeps the last behaviour and is reported.
pub(crate) fn follow(file: Option<PathBuf>) -> (Control, impl Future<Output = ()> + Send) {
    let (sender, receiver) = watch::channel(Behaviour::default());
    let task = async move {
        let Some(file) = file else { return };
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            look.tick().await;
            let seen = match tokio::fs::read(&file).await {
                Ok(text) => serde_json::from_slice(&text).map_err(|e| e.to_string()),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Behaviour::default()),
                Err(e) => Err(e.to_string()),
            };
            match seen {
                Ok(behaviour) => {
                    sender.send_if_modified(|b| std::mem::replace(b, behaviour) != behaviour);
                }
                Err(problem) => tracing::warn!(file = %file.display(), problem, "control file"),
            }
            if sender.is_closed() {
                return;
            }
        }
    };
    (Control(receiver), task)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn follows_the_file_and_forgets_it_when_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("orders-1.json");
        std::fs::write(&file, r#"{"delay_ms": 7}"#).unwrap();
        let (mut control, task) = follow(Some(file.clone()));
        let task = tokio::spawn(task);
        control.0.changed().await.unwrap();
        assert_eq!(control.now(), Behaviour { delay_ms: 7, fail: false });
        std::fs::remove_file(&file).unwrap();
        control.0.changed().await.unwrap();
        assert_eq!(control.now(), Behaviour::default());
        task.abort();
    }
}
