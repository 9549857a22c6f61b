//! Figures made of what happened in a run.

use std::{collections::BTreeMap, ops::Range, time::Duration};

use serde::Serialize;

use super::{
    expect::{Kind, Measure},
    record::{Record, Sample},
    recovery::{self, Recovery},
    scenario::Scenario,
};

/// Figures of a whole run under one policy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// Requests of callers.
    pub requests: u64,
    /// Share of them that were answered, and neither 5xx nor 429; `None`: there was none.
    pub success: Option<f64>,
    /// The same of the second in which it was smallest.
    pub worst_success: Option<f64>,
    /// What callers waited.
    pub latency: Latencies,
    /// Sends per request.
    pub amplification: Option<f64>,
    /// Sends beyond the first by policy.
    pub retries: u64,
    /// Sends beyond the first because nothing had been sent.
    pub resends: u64,
    /// Retries not made because the budget was used up.
    pub budget_refused: u64,
    /// Retries not made because enough were.
    pub limit_refused: u64,
    /// Breakers that opened.
    pub ejections: u64,
    /// Probes that failed.
    pub failed_probes: u64,
    /// The longest ejection, failed probes included, in seconds.
    pub longest_ejection_s: f64,
    /// The longest time from the end of a disturbance until callers noticed no more of it.
    pub recovery: Recovery,
    /// Root mean square of the step of a server's share from one second to the next, of the server
    /// where it is greatest; `None`: under two seconds had traffic.
    pub oscillation: Option<f64>,
    /// What it would be if each attempt went to a server at random, in the same proportions.
    pub oscillation_by_chance: Option<f64>,
    /// How callers were failed: a status or the proxy's reason word.
    pub failures: BTreeMap<String, u64>,
}

/// Quantiles of what callers waited, failed requests included, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latencies {
    /// Median.
    pub p50_ms: Option<f64>,
    /// 90th percentile.
    pub p90_ms: Option<f64>,
    /// 99th percentile.
    pub p99_ms: Option<f64>,
    /// 99.9th percentile.
    pub p999_ms: Option<f64>,
    /// The longest.
    pub max_ms: Option<f64>,
}

/// One server's part.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServerFigures {
    /// Which.
    pub name: String,
    /// Share of all attempts.
    pub share: Option<f64>,
    /// Attempts.
    pub attempts: u64,
    /// Those of them that failed.
    pub failed: u64,
    /// Breakers that opened.
    pub ejections: u64,
    /// Share of the time that proxies had it ejected, their mean.
    pub ejected: f64,
}

/// One second of a run. Requests belong to the second in which they arrived.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Second {
    /// When it begins, in seconds.
    pub at: u64,
    /// Requests.
    pub requests: u64,
    /// As in [`Figures`].
    pub success: Option<f64>,
    /// Median of what callers waited, in milliseconds.
    pub p50_ms: Option<f64>,
    /// 99th percentile of it.
    pub p99_ms: Option<f64>,
    /// Each server's share of the attempts; `None`: there was none.
    pub shares: Vec<Option<f64>>,
}

/// A run that is over, to be asked.
pub(super) struct Measured<'a> {
    scenario: &'a Scenario,
    record: &'a Record,
}

impl<'a> Measured<'a> {
    pub(super) fn new(scenario: &'a Scenario, record: &'a Record) -> Self {
        Self { scenario, record }
    }

    pub(super) fn figures(&self) -> Figures {
        let all = &self.record.samples[..];
        let ms = |q| quantile(all, q).map(in_ms);
        let servers = &self.record.servers;
        let longest = servers.iter().map(|server| server.longest).max().unwrap_or_default();
        let (oscillation, oscillation_by_chance) = self.oscillation(self.whole()).unzip();
        Figures {
            requests: all.len() as u64,
            success: success(all),
            worst_success: self.worst_success(),
            latency: Latencies {
                p50_ms: ms(0.5),
                p90_ms: ms(0.9),
                p99_ms: ms(0.99),
                p999_ms: ms(0.999),
                max_ms: ms(1.0),
            },
            amplification: amplification(all),
            retries: self.record.retries,
            resends: self.record.resends,
            budget_refused: self.record.budget_refused,
            limit_refused: self.record.limit_refused,
            ejections: servers.iter().map(|server| server.ejections).sum(),
            failed_probes: servers.iter().map(|server| server.failed_probes).sum(),
            longest_ejection_s: longest.as_secs_f64(),
            recovery: self.recovery(),
            oscillation,
            oscillation_by_chance,
            failures: self.record.failures.clone(),
        }
    }

    pub(super) fn servers(&self) -> Vec<ServerFigures> {
        let of = |index: usize| {
            let record = &self.record.servers[index];
            ServerFigures {
                name: self.scenario.servers[index].name.clone(),
                share: self.share(&[index], self.whole()),
                attempts: self.attempts(&[index], self.whole()),
                failed: record.failed,
                ejections: record.ejections,
                ejected: self.ejected(&[index]),
            }
        };
        (0..self.record.servers.len()).map(of).collect()
    }

    pub(super) fn seconds(&self) -> Vec<Second> {
        let second = |at: u64| {
            let span = Duration::from_secs(at)..Duration::from_secs(at + 1);
            let samples = self.within(&span);
            let servers = 0..self.record.servers.len();
            Second {
                at,
                requests: samples.len() as u64,
                success: success(samples),
                p50_ms: quantile(samples, 0.5).map(in_ms),
                p99_ms: quantile(samples, 0.99).map(in_ms),
                shares: servers.map(|server| self.share(&[server], at..at + 1)).collect(),
            }
        };
        self.whole().map(second).collect()
    }

    /// What an expectation asks for; `None`: there was nothing to measure.
    pub(super) fn value(&self, measure: &Measure) -> Option<f64> {
        let end = Duration::from_secs(u64::from(u32::MAX));
        let span = measure.span.clone().unwrap_or(Duration::ZERO..end);
        let seconds = match &measure.span {
            Some(span) => span.start.as_secs()..span.end.as_secs(),
            None => self.whole(),
        };
        let samples = self.within(&span);
        let servers = measure.servers.iter().map(|server| &self.record.servers[*server]);
        Some(match measure.kind {
            Kind::Requests => samples.len() as f64,
            Kind::Success => success(samples)?,
            Kind::Latency(q) => quantile(samples, q)?.as_secs_f64(),
            Kind::Share => self.share(&measure.servers, seconds)?,
            Kind::PeakShare => {
                let second = |at| self.share(&measure.servers, at..at + 1);
                seconds.filter_map(second).max_by(f64::total_cmp)?
            }
            Kind::Amplification => amplification(samples)?,
            Kind::Ejections => servers.map(|server| server.ejections).sum::<u64>() as f64,
            Kind::Ejected => self.ejected(&measure.servers),
            Kind::Recovery => self.recovery().seconds()?,
            Kind::Oscillation => self.oscillation(seconds)?.0,
            Kind::Chance => self.oscillation(seconds)?.1,
            Kind::BudgetRefused => self.record.budget_refused as f64,
            Kind::LimitRefused => self.record.limit_refused as f64,
        })
    }

    /// The whole seconds that count.
    fn whole(&self) -> Range<u64> {
        let warmup = self.scenario.warmup;
        let first = warmup.as_secs() + u64::from(warmup.subsec_nanos() > 0);
        first..self.scenario.duration.as_secs()
    }

    fn worst_success(&self) -> Option<f64> {
        let second = |at| Duration::from_secs(at)..Duration::from_secs(at + 1);
        let seconds = self.whole().filter_map(|at| success(self.within(&second(at))));
        seconds.min_by(f64::total_cmp)
    }

    /// Requests that arrived within a span.
    fn within(&self, span: &Range<Duration>) -> &[Sample] {
        within(&self.record.samples, span)
    }

    fn attempts(&self, servers: &[usize], seconds: Range<u64>) -> u64 {
        let first = usize::try_from(seconds.start).unwrap_or(usize::MAX);
        let count = usize::try_from(seconds.end.saturating_sub(seconds.start)).unwrap_or(0);
        let of = |server: &usize| {
            let attempts = self.record.servers[*server].attempts.iter();
            attempts.skip(first).take(count).map(|n| u64::from(*n)).sum::<u64>()
        };
        servers.iter().map(of).sum()
    }

    fn share(&self, servers: &[usize], seconds: Range<u64>) -> Option<f64> {
        let everyone: Vec<usize> = (0..self.record.servers.len()).collect();
        let all = self.attempts(&everyone, seconds.clone());
        (all > 0).then(|| self.attempts(servers, seconds) as f64 / all as f64)
    }

    /// Share of the time that proxies had these servers ejected, their mean.
    fn ejected(&self, servers: &[usize]) -> f64 {
        let time: Duration =
            servers.iter().map(|server| self.record.servers[*server].ejected).sum();
        let counted = self.scenario.duration - self.scenario.warmup;
        let pairs = f64::from(self.scenario.proxies()) * servers.len() as f64;
        time.as_secs_f64() / (counted.as_secs_f64() * pairs.max(1.0))
    }

    /// The greatest, and what chance alone would make of the same server's share.
    fn oscillation(&self, seconds: Range<u64>) -> Option<(f64, f64)> {
        let of = |server: usize| {
            let mean = self.share(&[server], seconds.clone())?;
            let all: Vec<usize> = (0..self.record.servers.len()).collect();
            let shares: Vec<(f64, f64)> = seconds
                .clone()
                .filter_map(|second| {
                    let sent = self.attempts(&all, second..second + 1);
                    let share = self.share(&[server], second..second + 1)?;
                    Some((share, mean * (1.0 - mean) / sent as f64))
                })
                .collect();
            let steps = shares.windows(2).map(|pair| (pair[1].0 - pair[0].0).powi(2));
            let chance = shares.windows(2).map(|pair| pair[1].1 + pair[0].1);
            let pairs = shares.len().checked_sub(1).filter(|pairs| *pairs > 0)? as f64;
            let root = |sum: f64| (sum / pairs).sqrt();
            Some((root(steps.sum()), root(chance.sum())))
        };
        let all = (0..self.record.servers.len()).filter_map(of);
        all.max_by(|a, b| a.0.total_cmp(&b.0))
    }

    fn recovery(&self) -> Recovery {
        let disturbances = self.scenario.disturbances();
        recovery::measure(
            &self.record.samples,
            disturbances,
            self.scenario.warmup..self.scenario.duration,
        )
    }
}

/// Those of samples in order of arrival that arrived within a span.
pub(super) fn within<'a>(samples: &'a [Sample], span: &Range<Duration>) -> &'a [Sample] {
    let first = samples.partition_point(|sample| sample.arrived() < span.start);
    let end = samples.partition_point(|sample| sample.arrived() < span.end);
    &samples[first..end.max(first)]
}

pub(super) fn success(samples: &[Sample]) -> Option<f64> {
    let good = samples.iter().filter(|sample| sample.ok).count();
    (!samples.is_empty()).then(|| good as f64 / samples.len() as f64)
}

/// By nearest rank: the smallest time within which at least that share was answered.
pub(super) fn quantile(samples: &[Sample], q: f64) -> Option<Duration> {
    let mut times: Vec<Duration> = samples.iter().map(Sample::took).collect();
    let rank = (q * times.len() as f64).ceil() as usize;
    let rank = rank.clamp(1, times.len().max(1)) - 1;
    (!times.is_empty()).then(|| *times.select_nth_unstable(rank).1)
}

fn amplification(samples: &[Sample]) -> Option<f64> {
    let sends: u64 = samples.iter().map(|sample| u64::from(sample.attempts)).sum();
    (!samples.is_empty()).then(|| sends as f64 / samples.len() as f64)
}

fn in_ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario() -> Scenario {
        let text = "duration: 4s\nservers: {a: {latency: 1ms}, b: {latency: 1ms}}\n\
                    clients: {c: {rate: 1}}\n";
        Scenario::parse("case", text).unwrap()
    }

    fn record(took: impl IntoIterator<Item = (u64, u64, bool)>) -> Record {
        let mut record = Record::new(2, Duration::from_secs(4), Duration::ZERO);
        for (at, ms, failed) in took {
            let at = Duration::from_secs(at);
            let failure = failed.then(|| "503".to_owned());
            record.ended(at, at + Duration::from_millis(ms), 2, failure);
        }
        record.close();
        record
    }

    #[test]
    fn quantiles_are_times_that_somebody_waited() {
        let record = record((1..=100).map(|ms| (0, ms, false)));
        let ms = |q| quantile(&record.samples, q).unwrap().as_millis();
        assert_eq!([ms(0.0), ms(0.5), ms(0.99), ms(0.999), ms(1.0)], [1, 50, 99, 100, 100]);
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn failed_requests_count_with_what_they_took() {
        let (scenario, record) = (scenario(), record([(0, 1, false), (1, 9, true), (2, 5, false)]));
        let figures = Measured::new(&scenario, &record).figures();
        assert_eq!((figures.requests, figures.latency.max_ms), (3, Some(9.0)));
        assert_eq!((figures.success, figures.worst_success), (Some(2.0 / 3.0), Some(0.0)));
        assert_eq!((figures.amplification, figures.failures["503"]), (Some(2.0), 1));
    }

    #[test]
    fn a_span_has_the_requests_that_arrived_within_it() {
        let (scenario, record) = (scenario(), record([(0, 1, false), (1, 9, true), (2, 5, false)]));
        let measured = Measured::new(&scenario, &record);
        let value = |kind| {
            let span = Some(Duration::from_secs(1)..Duration::from_secs(2));
            measured.value(&Measure { kind, servers: vec![0, 1], policy: 0, span })
        };
        assert_eq!(value(Kind::Success), Some(0.0));
        assert_eq!(value(Kind::Latency(0.5)), Some(0.009));
        assert_eq!(value(Kind::Share), None, "nothing was sent");
    }

    #[test]
    fn oscillation_is_the_step_from_second_to_second_and_chance_what_lots_would_make() {
        let scenario = scenario();
        let swinging = |shares: [u32; 4]| {
            let mut record = record([]);
            for (second, own) in shares.into_iter().enumerate() {
                record.servers[0].attempts[second] = own;
                record.servers[1].attempts[second] = 100 - own;
            }
            Measured::new(&scenario, &record).figures()
        };
        let steady = swinging([50; 4]);
        assert_eq!(steady.oscillation, Some(0.0));
        let chance = steady.oscillation_by_chance.unwrap();
        assert!((chance - (2.0f64 * 0.25 / 100.0).sqrt()).abs() < 1e-9, "{chance}");
        let wild = swinging([90, 10, 90, 10]).oscillation.unwrap();
        assert!((wild - 0.8).abs() < 1e-9, "{wild}");
    }
}
