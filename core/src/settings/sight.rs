//! What a proxy tells of single requests: the access log and traces.

use std::{fmt, str::FromStr};

use crate::authority::Authority;

/// Value of `config.remora.io/access-log`: which requests get a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AccessLog {
    /// None.
    #[default]
    Off,
    /// Those that failed.
    Errors,
    /// Those that failed, one in a hundred of the others, and those whose caller asked for a record.
    Sampled,
    /// Each.
    All,
}

impl AccessLog {
    const ALL: [Self; 4] = [Self::Off, Self::Errors, Self::Sampled, Self::All];

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Errors => "errors",
            Self::Sampled => "sampled",
            Self::All => "all",
        }
    }
}

impl FromStr for AccessLog {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|which| which.as_str() == s);
        found.ok_or_else(|| format!("{s:?} is no access log; use off, errors, sampled or all"))
    }
}

impl fmt::Display for AccessLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Value of `config.remora.io/trace-collector`: where spans go, OTLP over gRPC without TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceCollector(Box<str>);

impl TraceCollector {
    /// `host:port`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TraceCollector {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let port = s.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
        if port && s.parse::<Authority>().is_ok() {
            Ok(Self(s.into()))
        } else {
            Err(format!("{s:?} is no collector; use host:port as in collector.observability:4317"))
        }
    }
}

impl fmt::Display for TraceCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Value of `config.remora.io/trace-sample-rate`: the share of requests that are traced of those
/// whose caller does not say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleRate(f64);

impl SampleRate {
    /// Whether a trace is among the share, by its id: whoever asks gets the same answer.
    #[must_use]
    pub fn takes(self, trace: u128) -> bool {
        // The right half is by chance in ids of all kinds (W3C Trace Context §2.2.4). A share of 1 is
        // 2^64, which the conversion turns to the largest number: asked for apart.
        let bound = (self.0 * 2f64.powi(64)) as u64;
        self.0 >= 1.0 || (trace as u64) < bound
    }
}

impl Default for SampleRate {
    /// None: only those whose caller says that it records.
    fn default() -> Self {
        Self(0.0)
    }
}

impl FromStr for SampleRate {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        super::parse_ratio(s).map(Self)
    }
}

impl fmt::Display for SampleRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_logs_are_read_as_they_are_written() {
        for which in AccessLog::ALL {
            assert_eq!(which.to_string().parse(), Ok(which));
        }
        assert!("some".parse::<AccessLog>().unwrap_err().contains("sampled"));
    }

    #[test]
    fn a_collector_has_a_port() {
        for good in ["collector.observability:4317", "10.0.0.9:4317", "[fd00::1]:4317"] {
            assert_eq!(good.parse::<TraceCollector>().unwrap().as_str(), good);
        }
        for bad in ["", "collector", "http://collector:4317", "collector:0", "[fd00::1]"] {
            assert!(bad.parse::<TraceCollector>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_rate_takes_its_share_and_the_same_trace_always() {
        let rate = |text: &str| text.parse::<SampleRate>().unwrap();
        let traces = (0..1000u128).map(|n| n << 64 | u128::from(n as u64 * (u64::MAX / 1000)));
        let taken = |rate: SampleRate| traces.clone().filter(|trace| rate.takes(*trace)).count();
        assert_eq!(taken(rate("0")), 0);
        assert!((249..=251).contains(&taken(rate("0.25"))));
        assert_eq!(taken(rate("1.0")), 1000);
        assert!(rate("1").takes(u128::MAX));
        for bad in ["1.1", "-0.1", "NaN", "", "10%"] {
            assert!(bad.parse::<SampleRate>().is_err(), "{bad}");
        }
    }
}
