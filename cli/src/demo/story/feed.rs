//! Takes in what the load reports.

use std::path::Path;

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::mpsc,
    task::JoinHandle,
};

use super::super::{cluster::Error, load::Report};

/// Reports waiting for the story; the load waits when they are not taken.
const QUEUE: usize = 64;
/// Longest line taken.
const MAX_LINE: u64 = 1024 * 1024;

/// Reports as they come. A load that was restarted is taken in again.
#[derive(Debug)]
pub(crate) struct Feed {
    reports: mpsc::Receiver<Report>,
    task: JoinHandle<()>,
}

impl Feed {
    /// Listens; the load begins when it has connected.
    pub(crate) fn listen(path: &Path) -> Result<Self, Error> {
        let listener = UnixListener::bind(path).map_err(Error::file(path))?;
        let (sender, reports) = mpsc::channel(QUEUE);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if let Err(error) = read(stream, &sender).await {
                    tracing::warn!(%error, "the load's report broke off");
                }
            }
        });
        Ok(Self { reports, task })
    }

    /// The next report; `None` when no more can come.
    pub(crate) async fn next(&mut self) -> Option<Report> {
        self.reports.recv().await
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn read(stream: UnixStream, reports: &mpsc::Sender<Report>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        (&mut lines).take(MAX_LINE).read_until(b'\n', &mut line).await?;
        if line.last() != Some(&b'\n') {
            return Ok(());
        }
        if reports.send(serde_json::from_slice(&line)?).await.is_err() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn a_restarted_load_is_taken_in_again_after_a_broken_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.sock");
        let mut feed = Feed::listen(&path).unwrap();
        let mut first = UnixStream::connect(&path).await.unwrap();
        first.write_all(b"{\"samples\":[]}\n{\"samp").await.unwrap();
        drop(first);
        assert_eq!(feed.next().await, Some(Report::default()));
        let mut second = UnixStream::connect(&path).await.unwrap();
        second.write_all(b"{\"samples\":[]}\n").await.unwrap();
        assert_eq!(feed.next().await, Some(Report::default()));
    }
}
