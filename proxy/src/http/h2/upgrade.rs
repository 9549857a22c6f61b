//! Connections that leave HTTP: `101 Switching Protocols` and `CONNECT`.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use remora_core::drain;
use tokio::io::copy_bidirectional;

/// Carries bytes between the two sides once both have left HTTP.
///
/// Ends with either side, or when the drain's deadline passes.
pub fn carry(downstream: OnUpgrade, upstream: OnUpgrade, drain: &drain::Watch) {
    tokio::spawn(drain.track(async move {
        let (down, up) = match tokio::try_join!(downstream, upstream) {
            Ok(both) => both,
            Err(error) => {
                tracing::debug!(%error, "upgrade was not completed");
                return;
            }
        };
        let (mut down, mut up) = (TokioIo::new(down), TokioIo::new(up));
        if let Err(error) = copy_bidirectional(&mut down, &mut up).await {
            tracing::debug!(%error, "upgraded connection ended");
        }
    }));
}
