//! Time-outs.

use std::time::Duration;

use remora_core::settings::InvalidAnnotation;

use super::{Annotations, read, values};

const REQUEST: &str = "timeout.remora.io/request";
const RESPONSE: &str = "timeout.remora.io/response";
const IDLE: &str = "timeout.remora.io/idle";
const CONNECT: &str = "timeout.remora.io/connect";

pub(super) const KEYS: [&str; 4] = [REQUEST, RESPONSE, IDLE, CONNECT];

/// Time-outs; absent is no bound.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Timeouts {
    /// Head of the request to end of the response.
    pub request: Option<Duration>,
    /// End of the request to head of the response.
    pub response: Option<Duration>,
    /// Longest pause in a body.
    pub idle: Option<Duration>,
    /// Establishing a connection.
    pub connect: Option<Duration>,
}

pub(super) fn parse(map: &Annotations) -> Result<Timeouts, InvalidAnnotation> {
    Ok(Timeouts {
        request: read(map, REQUEST, values::positive)?,
        response: read(map, RESPONSE, values::positive)?,
        idle: read(map, IDLE, values::positive)?,
        connect: read(map, CONNECT, values::positive)?,
    })
}
