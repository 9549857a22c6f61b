//! How a rule treats requests: the standard's fields win over the route's annotations, group by group.

use std::{ops::RangeInclusive, time::Duration};

use remora_core::settings::parse_duration;

use super::{
    check,
    parse::Problem,
    rule::{Policy, RouteTimeouts, Session},
};
use crate::{
    index::policy::{
        retry::{MAX_RETRIES, Retry},
        route::RoutePolicy,
    },
    source::route,
};

/// What the longest pause between two sends is of the first, where only that is said.
const BACKOFF_GROWTH: u32 = 10;
/// Longest name of a cookie or field (`sessionName`).
const MAX_SESSION_NAME: usize = 128;

/// Of an HTTPRoute's rule.
pub(super) fn of_http(
    annotated: &RoutePolicy,
    rule: &route::HttpRule,
    name: &str,
) -> Result<Policy, Problem> {
    let timeouts = rule.timeouts.as_ref().map(|timeouts| {
        Ok((bound(timeouts.request.as_ref())?, bound(timeouts.backend_request.as_ref())?))
    });
    let (request, backend_request) = timeouts.transpose()?.unwrap_or_default();
    Ok(Policy {
        retry: rule.retry.as_ref().map(|asked| retry(annotated, asked)).transpose()?,
        timeouts: Some(RouteTimeouts { request, backend_request, ..RouteTimeouts::default() }),
        session: session(rule.session_persistence.as_ref(), name)?,
        fault: None,
    }
    .with(annotated))
}

/// Of a GRPCRoute's rule.
pub(super) fn of_grpc(
    annotated: &RoutePolicy,
    rule: &route::GrpcRule,
    name: &str,
) -> Result<Policy, Problem> {
    let session = session(rule.session_persistence.as_ref(), name)?;
    Ok(Policy { session, ..Policy::default() }.with(annotated))
}

impl Policy {
    /// What annotations say goes where the rule itself says nothing.
    fn with(self, annotated: &RoutePolicy) -> Self {
        let own = self.timeouts.unwrap_or_default();
        let timeouts = RouteTimeouts { annotated: annotated.timeouts.clone(), ..own };
        Self {
            retry: self.retry.or_else(|| annotated.retry.clone()),
            timeouts: (timeouts != RouteTimeouts::default()).then_some(timeouts),
            session: self.session,
            fault: annotated.fault.clone(),
        }
    }
}

/// GEP-2257 durations; none at all means no bound (GEP-1742).
fn bound(text: Option<&String>) -> Result<Option<Option<Duration>>, Problem> {
    let Some(text) = text else { return Ok(None) };
    let bound = duration(text)?;
    Ok(Some(Some(bound).filter(|bound| !bound.is_zero())))
}

fn duration(text: &str) -> Result<Duration, Problem> {
    parse_duration(text).map_err(Problem::unsupported)
}

/// GEP-1731. Which methods, which gRPC codes and how long an attempt may take is left to annotations.
fn retry(annotated: &RoutePolicy, asked: &route::Retry) -> Result<Retry, Problem> {
    let mut retry = Retry { unanswered: true, ..annotated.how.clone() };
    if !asked.codes.is_empty() {
        retry.http = asked.codes.iter().map(|code| status(*code)).collect::<Result<_, _>>()?;
    }
    if let Some(attempts) = asked.attempts {
        retry.limit = u32::try_from(attempts).unwrap_or(0).min(MAX_RETRIES);
    }
    if let Some(backoff) = &asked.backoff {
        // A proxy waits between half and all of it, and the standard's is the least.
        retry.backoff = duration(backoff)?.saturating_mul(2);
        retry.max_backoff = retry.backoff.saturating_mul(BACKOFF_GROWTH);
    }
    Ok(retry)
}

fn status(code: i32) -> Result<RangeInclusive<u16>, Problem> {
    let code = u16::try_from(code).ok().filter(|code| (400..=599).contains(code));
    let code = code.ok_or_else(|| Problem::unsupported("retry.codes: not from 400 to 599"))?;
    Ok(code..=code)
}

/// GEP-1619. A rule's sessions are its own, so a name that is not given is made of the rule's.
fn session(
    written: Option<&route::SessionPersistence>,
    rule: &str,
) -> Result<Option<Session>, Problem> {
    let Some(written) = written else { return Ok(None) };
    let named = written.session_name.as_deref().filter(|name| !name.is_empty());
    let name = match named {
        Some(name) if name.len() > MAX_SESSION_NAME || !check::is_token(name) => {
            return Err(Problem::unsupported(format!("sessionName {name:?} is no name")));
        }
        Some(name) => name.to_owned(),
        None => format!("remora-session-{:016x}", fingerprint(rule)),
    };
    let lasting = match written.cookie_config.as_ref().and_then(|c| c.lifetime_type.as_deref()) {
        None | Some("Session") => false,
        Some("Permanent") => true,
        Some(other) => {
            let problem = format!("{other:?} is no lifetime of a cookie that is known here");
            return Err(Problem::unsupported(problem));
        }
    };
    let timeout = written.absolute_timeout.as_deref().map(duration).transpose()?;
    match written.kind.as_deref().unwrap_or("Cookie") {
        "Cookie" => Ok(Some(Session::Cookie { name, timeout: timeout.filter(|_| lasting) })),
        "Header" => Ok(Some(Session::Header { name })),
        other => {
            let problem = format!("{other:?} is no session persistence that is known here");
            Err(Problem::unsupported(problem))
        }
    }
}

/// FNV-1a: the same in every replica and version.
fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
