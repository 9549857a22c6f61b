//! Who keeps the endpoint that it had.

use std::time::Duration;

use remora_core::settings::InvalidAnnotation;

use super::{Annotations, Warnings, no_effect, read, values};

const AFFINITY: &str = "balancer.remora.io/session-affinity";
const TIMEOUT: &str = "balancer.remora.io/session-affinity-timeout";
const COOKIE_NAME: &str = "balancer.remora.io/session-affinity-cookie-name";

pub(super) const KEYS: [&str; 3] = [AFFINITY, TIMEOUT, COOKIE_NAME];

/// Kubernetes' default for `sessionAffinity: ClientIP`.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10_800);
const DEFAULT_COOKIE: &str = "remora-affinity";

/// Who keeps the endpoint that it had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Affinity {
    /// Who sends back a cookie that the proxy sets.
    Cookie {
        /// The cookie's name.
        name: String,
        /// How long the client keeps it; `None`: until its session ends.
        timeout: Option<Duration>,
    },
    /// Who comes from the same address.
    ClientAddress {
        /// For how long after the last use.
        timeout: Duration,
    },
}

/// What `sessionAffinity: ClientIP` means, where a Service has it.
pub(super) fn of_address(client_ip: Option<Duration>) -> Option<Affinity> {
    client_ip.map(|timeout| Affinity::ClientAddress { timeout })
}

enum Kind {
    Cookie,
    ClientAddress,
    None,
}

/// The annotation wins over the Service's own field.
pub(super) fn parse(
    map: &Annotations,
    client_ip: Option<Duration>,
    warn: &mut Warnings,
) -> Result<Option<Affinity>, InvalidAnnotation> {
    let timeout = read(map, TIMEOUT, values::between(1..=86_400))?;
    let name = read(map, COOKIE_NAME, values::token)?;
    let by_field = if client_ip.is_some() { Kind::ClientAddress } else { Kind::None };
    let kind = read(map, AFFINITY, parse_kind)?.unwrap_or(by_field);
    if !matches!(kind, Kind::Cookie) {
        let without = format!("without {AFFINITY}: cookie; add that, or remove this");
        no_effect(map, &[COOKIE_NAME], &without, warn);
    }
    Ok(match kind {
        Kind::Cookie => {
            let name = name.unwrap_or_else(|| DEFAULT_COOKIE.to_owned());
            Some(Affinity::Cookie { name, timeout })
        }
        Kind::ClientAddress => of_address(timeout.or(client_ip).or(Some(DEFAULT_TIMEOUT))),
        Kind::None => {
            let without =
                format!("without {AFFINITY}: cookie or client-address; add that, or remove this");
            no_effect(map, &[TIMEOUT], &without, warn);
            None
        }
    })
}

fn parse_kind(s: &str) -> Result<Kind, String> {
    match s {
        "cookie" => Ok(Kind::Cookie),
        "client-address" => Ok(Kind::ClientAddress),
        "none" => Ok(Kind::None),
        _ => Err(format!("{s:?}: use cookie, client-address or none")),
    }
}
