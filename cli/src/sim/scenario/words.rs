//! Quantities as scenarios write them: times, shares and distributions of latency.

use std::{str::FromStr, time::Duration};

use remora_core::settings;

/// Longest time that a scenario can name.
const LONGEST: Duration = Duration::from_secs(3600);
/// Longest time that a server is busy with one request, however long the tail.
const LONGEST_SERVICE: Duration = Duration::from_secs(600);
/// Distance of the 99th percentile from the median of a normal distribution, in standard
/// deviations.
const Z99: f64 = 2.326_347_874_040_841;

/// A time: `250ms`, `2.5ms`, `500us`, `1m30s`, at most an hour.
///
/// # Errors
/// Repeats the value and the form.
pub(crate) fn duration(s: &str) -> Result<Duration, String> {
    let fail = || format!("{s:?} is no time; use for example 500us, 2.5ms, 10s or 1m30s");
    let long = || format!("{s:?} is longer than an hour, the longest that is simulated");
    let digits = s.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
    let (number, unit) = s.split_at(digits);
    let scale = match unit {
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        _ => {
            let time = settings::parse_duration(s).map_err(|_| fail())?;
            return if time <= LONGEST { Ok(time) } else { Err(long()) };
        }
    };
    let seconds = number.parse::<f64>().map_err(|_| fail())? * scale;
    let time = Duration::try_from_secs_f64(seconds).map_err(|_| long())?;
    if time <= LONGEST { Ok(time) } else { Err(long()) }
}

/// A time above zero.
pub(super) fn positive(s: &str) -> Result<Duration, String> {
    match duration(s)? {
        Duration::ZERO => Err(format!("{s:?} is no time at all; use for example 10s")),
        time => Ok(time),
    }
}

/// A share: `0.05` or `5%`.
pub(super) fn share(s: &str) -> Result<f64, String> {
    number(s)
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| format!("{s:?} is no share; use a number from 0 to 1, or percent as in 5%"))
}

/// A number, perhaps percent.
pub(crate) fn number(s: &str) -> Option<f64> {
    match s.strip_suffix('%') {
        // Not divided by a hundred: 99.9% is 0.999 as that is read.
        Some(percent) => format!("{}e-2", percent.trim_end()).parse().ok(),
        None => s.parse().ok(),
    }
}

/// A whole number within bounds.
pub(super) fn count(s: &str, from: u32, to: u32) -> Result<u32, String> {
    let number = s.parse().ok().filter(|n| (from..=to).contains(n));
    number.ok_or_else(|| format!("{s:?}: use a whole number from {from} to {to}"))
}

/// A number per second, `50` or `50/s`, above zero.
pub(super) fn rate(s: &str) -> Result<f64, String> {
    let number = s.strip_suffix("/s").unwrap_or(s).parse().ok();
    number
        .filter(|rate| (0.001..=1e6).contains(rate))
        .ok_or_else(|| format!("{s:?}: use a number per second from 0.001 to 1000000, as in 50"))
}

/// How long a server is busy with a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Latency {
    /// Always the same.
    Constant(Duration),
    /// Any between two, all alike.
    Uniform {
        /// The shortest.
        min: Duration,
        /// The longest.
        max: Duration,
    },
    /// Exponential: as from a memoryless server.
    Exponential {
        /// The mean.
        mean: Duration,
    },
    /// Lognormal: as real services mostly are.
    LogNormal {
        /// The median.
        p50: Duration,
        /// The 99th percentile.
        p99: Duration,
    },
    /// One of two.
    Bimodal {
        /// Mostly.
        fast: Duration,
        /// Sometimes.
        slow: Duration,
        /// How often it is the slow one, 0 to 1.
        share: f64,
    },
}

impl Latency {
    /// One draw, at most ten minutes.
    pub(crate) fn draw(&self, rng: &mut fastrand::Rng) -> Duration {
        let seconds = match self {
            Self::Constant(time) => return *time,
            Self::Uniform { min, max } => {
                min.as_secs_f64() + (*max - *min).as_secs_f64() * rng.f64()
            }
            Self::Exponential { mean } => mean.as_secs_f64() * -above_zero(rng).ln(),
            Self::LogNormal { p50, p99 } => {
                let sigma = (p99.as_secs_f64() / p50.as_secs_f64()).ln() / Z99;
                p50.as_secs_f64() * (sigma * normal(rng)).exp()
            }
            Self::Bimodal { fast, slow, share } => {
                return if rng.f64() < *share { *slow } else { *fast };
            }
        };
        Duration::from_secs_f64(seconds.min(LONGEST_SERVICE.as_secs_f64()))
    }
}

/// More than 0, at most 1.
pub(crate) fn above_zero(rng: &mut fastrand::Rng) -> f64 {
    1.0 - rng.f64()
}

/// Box and Muller's transform.
fn normal(rng: &mut fastrand::Rng) -> f64 {
    let radius = (-2.0 * above_zero(rng).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.f64()).cos()
}

impl FromStr for Latency {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let mut words = s.split_whitespace();
        let kind = words.next().unwrap_or_default();
        let rest: Vec<&str> = words.collect();
        let latency = match kind {
            "constant" => Self::Constant(duration(only(s, &rest)?)?),
            "uniform" => {
                let [min, max] = named(s, &rest, ["min", "max"])?;
                Self::Uniform { min: duration(min)?, max: duration(max)? }
            }
            "exponential" => {
                let [mean] = named(s, &rest, ["mean"])?;
                Self::Exponential { mean: duration(mean)? }
            }
            "lognormal" => {
                let [p50, p99] = named(s, &rest, ["p50", "p99"])?;
                Self::LogNormal { p50: positive(p50)?, p99: duration(p99)? }
            }
            "bimodal" => {
                let [fast, slow, often] = named(s, &rest, ["fast", "slow", "share"])?;
                let (fast, slow) = (duration(fast)?, duration(slow)?);
                Self::Bimodal { fast, slow, share: share(often)? }
            }
            _ if rest.is_empty() && kind.starts_with(|c: char| c.is_ascii_digit()) => {
                Self::Constant(duration(kind)?)
            }
            _ => return Err(unknown(s)),
        };
        let ordered = match latency {
            Self::Uniform { min: low, max: high } | Self::LogNormal { p50: low, p99: high } => {
                low <= high
            }
            _ => true,
        };
        if ordered { Ok(latency) } else { Err(format!("{s:?}: the first is the smaller one")) }
    }
}

fn unknown(s: &str) -> String {
    format!(
        "{s:?} is no latency; use 5ms, uniform min=5ms max=15ms, exponential mean=10ms, \
         lognormal p50=5ms p99=20ms or bimodal fast=5ms slow=200ms share=5%"
    )
}

fn only<'a>(s: &str, words: &[&'a str]) -> Result<&'a str, String> {
    match words {
        [word] => Ok(word),
        _ => Err(unknown(s)),
    }
}

/// The values of `name=value` words, in the order of `names`.
fn named<'a, const N: usize>(
    s: &str,
    words: &[&'a str],
    names: [&str; N],
) -> Result<[&'a str; N], String> {
    let mut values = [""; N];
    for word in words {
        let place = word.split_once('=').and_then(|(name, value)| {
            Some((names.iter().position(|known| *known == name)?, value))
        });
        match place {
            Some((at, value)) if values[at].is_empty() => values[at] = value,
            _ => return Err(unknown(s)),
        }
    }
    if values.contains(&"") { Err(unknown(s)) } else { Ok(values) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn quantile(latency: &str, q: f64) -> f64 {
        let latency: Latency = latency.parse().unwrap();
        let mut rng = fastrand::Rng::with_seed(7);
        let mut all: Vec<f64> =
            (0..20_000).map(|_| latency.draw(&mut rng).as_secs_f64() * 1000.0).collect();
        all.sort_by(f64::total_cmp);
        all[(q * all.len() as f64) as usize]
    }

    #[test]
    fn times_may_have_a_fraction_and_several_units() {
        assert_eq!(duration("2.5ms"), Ok(Duration::from_micros(2500)));
        assert_eq!(duration("500us"), Ok(MS / 2));
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for bad in ["", "5", "ms", "-1s", "1.2.3s", "1s1m", "2h", "999999999999m", "NaNs", "infs"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shares_may_be_percent() {
        assert_eq!((share("5%"), share("99.9%"), share("100 %")), (Ok(0.05), Ok(0.999), Ok(1.0)));
        for bad in ["101%", "-0.1", "five", "NaN", ""] {
            assert!(share(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn distributions_have_the_quantiles_that_they_name() {
        let near =
            |is: f64, should: f64| assert!((is / should - 1.0).abs() < 0.06, "{is} {should}");
        near(quantile("lognormal p50=10ms p99=80ms", 0.5), 10.0);
        near(quantile("lognormal p50=10ms p99=80ms", 0.99), 80.0);
        near(quantile("exponential mean=10ms", 0.5), 10.0 * 2f64.ln());
        near(quantile("uniform min=10ms max=20ms", 0.5), 15.0);
        near(quantile("bimodal fast=5ms slow=200ms share=5%", 0.949), 5.0);
        near(quantile("bimodal fast=5ms slow=200ms share=5%", 0.96), 200.0);
        near(quantile("5ms", 0.99), 5.0);
    }

    #[test]
    fn what_is_no_latency_is_answered_with_the_forms() {
        for bad in [
            "",
            "fast",
            "uniform 5ms 10ms",
            "lognormal p50=5ms",
            "lognormal p50=5ms p99=x",
            "lognormal p50=0ms p99=5ms",
            "uniform min=9ms max=5ms",
            "constant",
            "5ms 6ms",
            "uniform min=5ms min=6ms max=9ms",
            "bimodal fast=1ms slow=2ms share=2",
        ] {
            assert!(bad.parse::<Latency>().is_err(), "{bad}");
        }
        let said = "slow".parse::<Latency>().unwrap_err();
        assert!(said.starts_with("\"slow\" is no latency; use 5ms, uniform min="), "{said}");
    }

    proptest! {
        #[test]
        fn parsers_never_panic_and_draws_are_bounded(s in "\\PC{0,24}|[a-z]{4,11} [a-z0-9=. ]{0,24}") {
            let _ = (duration(&s), share(&s), rate(&s), count(&s, 0, 9));
            if let Ok(latency) = s.parse::<Latency>() {
                let drawn = latency.draw(&mut fastrand::Rng::with_seed(1));
                prop_assert!(drawn <= LONGEST);
            }
        }
    }
}
