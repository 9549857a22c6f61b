//! What the values of several groups mean.

use std::{ops::RangeInclusive, time::Duration};

use remora_core::settings::parse_duration;

pub(super) fn positive(s: &str) -> Result<Duration, String> {
    match parse_duration(s)? {
        Duration::ZERO => Err(format!("{s:?} is no time at all; remove the annotation for none")),
        duration => Ok(duration),
    }
}

/// A duration within bounds in seconds.
pub(super) fn between(seconds: RangeInclusive<u64>) -> impl Fn(&str) -> Result<Duration, String> {
    move |s| {
        let (least, most) = (*seconds.start(), *seconds.end());
        let bounds = Duration::from_secs(least)..=Duration::from_secs(most);
        let duration = parse_duration(s)?;
        bounds.contains(&duration).then_some(duration).ok_or_else(|| {
            format!("{s:?} is out of bounds; use a duration from {least}s to {most}s")
        })
    }
}

pub(super) fn count(s: &str) -> Result<u32, String> {
    s.parse().map_err(|_| format!("{s:?} is no number; use a whole number from 0"))
}

pub(super) fn count_from_one(s: &str) -> Result<u32, String> {
    s.parse().ok().filter(|n| *n > 0).ok_or_else(|| {
        format!("{s:?}: use a whole number from 1, or remove the annotation for no bound")
    })
}

/// A token, as names of header fields (RFC 9110 §5.6.2) and cookies (RFC 6265 §4.1.1) are.
pub(super) fn token(s: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if s.is_empty() || s.len() > 255 || !s.bytes().all(allowed) {
        return Err(format!("{s:?} is no name; use at most 255 letters, digits, '-' and '_'"));
    }
    Ok(s.to_owned())
}

pub(super) fn list(s: &str) -> impl Iterator<Item = &str> {
    s.split(',').map(str::trim).filter(|part| !part.is_empty())
}
