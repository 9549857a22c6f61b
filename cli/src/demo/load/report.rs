//! What the load tells the story: JSON lines over a Unix socket, ten a second.

use std::{path::Path, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{io::AsyncWriteExt, net::UnixStream, sync::mpsc};

/// Time between two reports.
const EVERY: Duration = Duration::from_millis(100);
/// Time to wait for the story's socket.
const STORY_BEGINS: Duration = Duration::from_secs(60);
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// Longest failure text passed on.
const MAX_TEXT: usize = 200;

/// Kinds of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Class {
    /// HTTP/1.1 to web over kept connections.
    Http,
    /// HTTP/1.1 to web, a new connection each.
    Fresh,
    /// gRPC to inventory.
    Grpc,
    /// A session with the ticker.
    Tcp,
}

impl Class {
    /// In the order shown.
    pub(crate) const ALL: [Self; 4] = [Self::Http, Self::Fresh, Self::Grpc, Self::Tcp];

    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Fresh => "HTTP, new connections",
            Self::Grpc => "gRPC",
            Self::Tcp => "TCP",
        }
    }
}

/// How one call ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// Well; by which replica of orders, where orders was asked.
    Answered(Option<String>),
    /// Badly, and why.
    Failed(String),
}

/// One call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Kind of call.
    pub(crate) class: Class,
    /// From the time it was due to its end.
    #[serde(with = "micros")]
    pub(crate) latency: Duration,
    /// How it ended.
    pub(crate) outcome: Outcome,
}

/// All calls that ended since the last report.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) samples: Vec<Sample>,
}

/// Connects to the story, which may begin later than the load.
pub(crate) async fn connect(path: &Path) -> std::io::Result<UnixStream> {
    let begin = tokio::time::Instant::now();
    loop {
        match UnixStream::connect(path).await {
            Ok(stream) => return Ok(stream),
            Err(error) if begin.elapsed() > STORY_BEGINS => return Err(error),
            Err(_) => tokio::time::sleep(TRY_AGAIN).await,
        }
    }
}

/// Sends reports until the load ends (`Ok`) or the story does (`Err`).
pub(crate) async fn send(
    mut stream: UnixStream,
    mut samples: mpsc::Receiver<Sample>,
) -> std::io::Result<()> {
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tick.tick().await;
        let mut report = Report::default();
        let ended = loop {
            match samples.try_recv() {
                Ok(mut sample) => {
                    if let Outcome::Failed(text) = &mut sample.outcome {
                        shorten(text);
                    }
                    report.samples.push(sample);
                }
                Err(mpsc::error::TryRecvError::Empty) => break false,
                Err(mpsc::error::TryRecvError::Disconnected) => break true,
            }
        };
        let mut line = serde_json::to_vec(&report)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        if ended {
            return Ok(());
        }
    }
}

fn shorten(text: &mut String) {
    if let Some((end, _)) = text.char_indices().nth(MAX_TEXT) {
        text.truncate(end);
    }
}

mod micros {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(d: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(u64::try_from(d.as_micros()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        u64::deserialize(d).map(Duration::from_micros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_its_line() {
        let sample =
            |outcome| Sample { class: Class::Http, latency: Duration::from_micros(1234), outcome };
        let report = Report {
            samples: vec![
                sample(Outcome::Answered(Some("orders-0".into()))),
                sample(Outcome::Failed("web: status 502".into())),
            ],
        };
        let line = serde_json::to_string(&report).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<Report>(&line).unwrap(), report);
    }
}
