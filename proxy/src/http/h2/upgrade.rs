//! Streams that leave HTTP: `CONNECT`.

use std::{io, time::Duration};

use hyper::{
    Error,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;

use crate::net::{
    connect::Reset,
    copy::{self, Carried},
};

/// Carries bytes between the two sides once both have left HTTP, until both have ended or nothing has
/// moved for `idle`.
///
/// # Errors
/// Where one of the streams stayed in HTTP after all, or broke; or the pause.
pub async fn carry(
    downstream: OnUpgrade,
    upstream: OnUpgrade,
    idle: Option<Duration>,
    carried: &mut Carried,
) -> Result<(), copy::Broken> {
    let broke =
        |side| move |error: Error| copy::Broken::Io { side, error: io::Error::other(error) };
    let down = async { downstream.await.map_err(broke(copy::Side::A)) };
    let up = async { upstream.await.map_err(broke(copy::Side::B)) };
    let (down, up) = tokio::try_join!(down, up)?;
    let (mut down, mut up) = (TokioIo::new(down), TokioIo::new(up));
    copy::bidirectional(&mut down, &mut up, carried, idle).await
}

impl Reset for TokioIo<Upgraded> {
    fn reset(&self) {
        // hyper ends such a stream in order, whatever happened.
    }
}
