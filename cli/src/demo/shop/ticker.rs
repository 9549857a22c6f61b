//! `ticker`: an opaque TCP service that speaks first, as SMTP and MySQL do: a banner, then every
//! line comes back.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::Semaphore,
};

use super::Serving;

const MAX_CONNECTIONS: usize = 256;
/// Longest line; a longer one ends the session.
const MAX_LINE: u64 = 4096;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// First word of the banner.
pub(crate) const BANNER: &str = "ticker";

/// Serves until told to end.
pub(super) async fn run(serving: Serving) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let drain = serving.drain;
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let stream = tokio::select! {
            accepted = serving.listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            () = drain.draining() => return,
        };
        let pod = serving.pod.clone();
        tokio::spawn(drain.track(async move {
            if let Err(error) = session(stream, &pod).await {
                tracing::debug!(%error, "session ended");
            }
            drop(permit);
        }));
    }
}

async fn session(mut stream: TcpStream, pod: &str) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (read, mut write) = stream.split();
    write.write_all(format!("{BANNER} {pod} at your service\r\n").as_bytes()).await?;
    let mut lines = BufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
        (&mut lines).take(MAX_LINE).read_until(b'\n', &mut line).await?;
        if line.last() != Some(&b'\n') {
            return write.shutdown().await;
        }
        write.write_all(&line).await?;
    }
}
