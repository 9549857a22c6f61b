//! Deadlines that gRPC callers set (`grpc-timeout`, in the protocol's "Requests" section).

use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::fields::Fields;

/// The field.
pub static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// `TimeoutValue TimeoutUnit`: at most eight digits, and one of `H M S m u n`. Anything else is no
/// deadline; the server is left to complain.
#[must_use]
pub fn read(fields: &impl Fields) -> Option<Duration> {
    let value = fields.get(&GRPC_TIMEOUT)?;
    let (unit, digits) = value.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let n: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(n * 3600),
        b'M' => Duration::from_secs(n * 60),
        b'S' => Duration::from_secs(n),
        b'm' => Duration::from_millis(n),
        b'u' => Duration::from_micros(n),
        b'n' => Duration::from_nanos(n),
        _ => return None,
    })
}

/// What is left of a deadline, in the finest unit that eight digits hold, rounded down.
#[must_use]
pub fn value(left: Duration) -> HeaderValue {
    let units = [(left.as_nanos(), 'n'), (left.as_micros(), 'u'), (left.as_millis(), 'm')];
    let seconds = u128::from(left.as_secs());
    let coarse = [(seconds, 'S'), (seconds / 60, 'M'), (seconds / 3600, 'H')];
    let fits = units.into_iter().chain(coarse).find(|(n, _)| *n < 100_000_000);
    let (n, unit) = fits.unwrap_or((99_999_999, 'H'));
    HeaderValue::try_from(format!("{n}{unit}"))
        .expect("invariant: digits and a letter are a field value")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderMap;
    use proptest::prelude::*;

    fn read_text(text: &str) -> Option<Duration> {
        let value = HeaderValue::from_str(text).unwrap();
        read(&HeaderMap::from_iter([(GRPC_TIMEOUT.clone(), value)]))
    }

    #[test]
    fn every_unit_is_read_and_nonsense_is_no_deadline() {
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("5n", Some(Duration::from_nanos(5))),
            ("100000000n", None),
            ("m", None),
            ("5", None),
            ("-5m", None),
            ("5s", None),
        ] {
            assert_eq!(read_text(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_passed_on_is_never_longer_and_hardly_shorter(nanos in 0u64..u64::MAX / 2) {
            let left = Duration::from_nanos(nanos);
            let passed = read_text(value(left).to_str().unwrap()).unwrap();
            prop_assert!(passed <= left);
            prop_assert!(left - passed <= left / 1_000 + Duration::from_nanos(1), "{passed:?} of {left:?}");
        }
    }
}
