//! Failure on purpose, so that people can rehearse it.

use std::time::Duration;

use remora_core::settings::InvalidAnnotation;

use super::{Annotations, Warnings, no_effect, read, retry, values};
use crate::index::routes::{check, rule::ValueMatch};

const ABORT_HTTP: &str = "fault.remora.io/abort-http";
const ABORT_GRPC: &str = "fault.remora.io/abort-grpc";
const ABORT_PERCENT: &str = "fault.remora.io/abort-percent";
const DELAY: &str = "fault.remora.io/delay";
const DELAY_PERCENT: &str = "fault.remora.io/delay-percent";
const HEADERS: &str = "fault.remora.io/headers";

pub(super) const KEYS: [&str; 6] =
    [ABORT_HTTP, ABORT_GRPC, ABORT_PERCENT, DELAY, DELAY_PERCENT, HEADERS];

/// Longest delay, in seconds; proxies hold no request up for longer.
const MAX_DELAY: u64 = 300;
/// Most fields that can be asked for.
const MAX_HEADERS: usize = 16;

/// Failure on purpose.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Fault {
    /// Only requests that have all of these.
    pub headers: Vec<ValueMatch>,
    /// Waited before the request is sent.
    pub delay: Option<Duration>,
    /// For that share of them, 0 to 1.
    pub delay_share: f64,
    /// HTTP status of the answer.
    pub abort_http: Option<u16>,
    /// gRPC code of the answer.
    pub abort_grpc: Option<u32>,
    /// For that share of them, 0 to 1.
    pub abort_share: f64,
}

/// `None` where nothing is to fail.
pub(super) fn parse(
    map: &Annotations,
    warn: &mut Warnings,
) -> Result<Option<Fault>, InvalidAnnotation> {
    let fault = Fault {
        headers: read(map, HEADERS, headers)?.unwrap_or_default(),
        delay: read(map, DELAY, delay)?,
        delay_share: read(map, DELAY_PERCENT, percent)?.unwrap_or(1.0),
        abort_http: read(map, ABORT_HTTP, status)?,
        abort_grpc: read(map, ABORT_GRPC, retry::code)?,
        abort_share: read(map, ABORT_PERCENT, percent)?.unwrap_or(1.0),
    };
    let aborts = fault.abort_http.is_some() || fault.abort_grpc.is_some();
    if !aborts {
        let without = format!("without {ABORT_HTTP} or {ABORT_GRPC}; add one, or remove this");
        no_effect(map, &[ABORT_PERCENT], &without, warn);
    }
    if fault.delay.is_none() {
        let without = format!("without {DELAY}; add that, or remove this");
        no_effect(map, &[DELAY_PERCENT], &without, warn);
    }
    if !aborts && fault.delay.is_none() {
        let without = format!("without {DELAY}, {ABORT_HTTP} or {ABORT_GRPC}; add one of them");
        no_effect(map, &[HEADERS], &without, warn);
        return Ok(None);
    }
    Ok(Some(fault))
}

fn delay(s: &str) -> Result<Duration, String> {
    values::between(0..=MAX_DELAY)(s)
}

fn status(s: &str) -> Result<u16, String> {
    s.parse()
        .ok()
        .filter(|status| (200..=599).contains(status))
        .ok_or_else(|| format!("{s:?} is no status of a response; use a number from 200 to 599"))
}

fn percent(s: &str) -> Result<f64, String> {
    let number = s.strip_suffix('%').unwrap_or(s).trim().parse::<f64>().ok();
    number
        .filter(|n| (0.0..=100.0).contains(n))
        .map(|n| n / 100.0)
        .ok_or_else(|| format!("{s:?}: use a number from 0 to 100, as in 12.5"))
}

/// `x-user=alice, x-test~=a.*`: all of them.
fn headers(s: &str) -> Result<Vec<ValueMatch>, String> {
    let one = |part: &str| {
        let (name, value) = part.split_once('=')?;
        let (name, regex) = match name.strip_suffix('~') {
            Some(name) => (name, true),
            None => (name, false),
        };
        let name = values::token(name.trim()).ok()?.to_ascii_lowercase();
        Some(ValueMatch { name, value: value.trim().to_owned(), regex })
    };
    let all: Vec<ValueMatch> = values::list(s)
        .map(|part| {
            one(part).ok_or_else(|| {
                format!("{part:?}: use fields and values, as in x-user=alice,x-test~=a.*")
            })
        })
        .collect::<Result<_, _>>()?;
    all.iter().filter(|field| field.regex).try_for_each(|field| check::pattern(&field.value))?;
    if all.len() > MAX_HEADERS {
        return Err(format!("{} fields; use at most {MAX_HEADERS}", all.len()));
    }
    Ok(all)
}
