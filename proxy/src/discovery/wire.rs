//! Small parsers shared by the answers: addresses, durations, ports.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use remora_proto::v1 as pb;

/// A part of an answer that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("control plane sent a bad {field}: {problem}")]
pub struct WireError {
    /// Field of the message.
    pub field: &'static str,
    /// The value and what is wrong with it.
    pub problem: String,
}

impl WireError {
    pub(crate) fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self { field, problem: problem.into() }
    }
}

pub(crate) fn port(field: &'static str, port: u32) -> Result<u16, WireError> {
    match u16::try_from(port) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(WireError::new(field, format!("port {port} is not between 1 and 65535"))),
    }
}

pub(crate) fn address(
    field: &'static str,
    address: Option<&pb::SocketAddress>,
) -> Result<SocketAddr, WireError> {
    let address = address.ok_or_else(|| WireError::new(field, "no address"))?;
    let ip: IpAddr = if let Ok(v4) = <[u8; 4]>::try_from(&*address.ip) {
        v4.into()
    } else if let Ok(v6) = <[u8; 16]>::try_from(&*address.ip) {
        v6.into()
    } else {
        let problem = format!("IP address of {} bytes; 4 or 16 are valid", address.ip.len());
        return Err(WireError::new(field, problem));
    };
    Ok(SocketAddr::new(ip, port(field, address.port)?))
}

pub(crate) fn to_wire(address: SocketAddr) -> pb::SocketAddress {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    pb::SocketAddress { ip, port: address.port().into() }
}

/// A duration that is not negative; absent stays absent.
pub(crate) fn duration(
    field: &'static str,
    duration: Option<&prost_types::Duration>,
) -> Result<Option<Duration>, WireError> {
    duration
        .map(|d| {
            Duration::try_from(*d)
                .map_err(|_| WireError::new(field, format!("{d:?} is no time span")))
        })
        .transpose()
}

/// A share from 0 to 1.
pub(crate) fn ratio(field: &'static str, ratio: f64) -> Result<f64, WireError> {
    if (0.0..=1.0).contains(&ratio) {
        return Ok(ratio);
    }
    Err(WireError::new(field, format!("{ratio} is not between 0.0 and 1.0")))
}
