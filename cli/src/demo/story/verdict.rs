//! Whether a chapter held: pure functions of what was measured.
//!
//! The thresholds are what a caller may rely on, not the best that was seen: they must hold on a
//! busy machine with two cores. What may not give is the success rate: no request is lost, ever.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::window::{Latency, Tally, Window};
use crate::demo::load::Class;

/// Calls below which a window says nothing.
const MIN_CALLS: u64 = 50;
/// Steady p99. Healthy is a few milliseconds; this only tells whether something is stuck.
const STEADY_P99_MS: f64 = 250.0;
/// Largest share of a slow replica, as part of its fair share.
const SLOW_OF_FAIR: f64 = 0.5;
/// Longest time from ready to the first answer.
const FIRST_ANSWER: Duration = Duration::from_secs(1);

/// All that a chapter measured; what does not apply is empty.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Measured {
    /// Calls by class, over the whole chapter.
    pub(crate) calls: BTreeMap<Class, Tally>,
    /// Share of all calls that ended well, 0 to 1.
    pub(crate) success_rate: f64,
    /// Latency of the calls to web, over the whole chapter.
    pub(crate) latency: Latency,
    /// The same after the mesh had time to react.
    pub(crate) settled_latency: Latency,
    /// Share of the answers by replica of orders, after the mesh had time to react.
    pub(crate) shares: BTreeMap<String, f64>,
    /// Breakers of web's sidecar that opened.
    pub(crate) ejections: u64,
    /// Requests that web's sidecar sent again.
    pub(crate) retries: u64,
    /// Why calls failed.
    pub(crate) failures: BTreeMap<String, u64>,
}

impl Measured {
    /// Sums up a chapter.
    pub(crate) fn new(whole: &Window, settled: &Window, ejections: u64, retries: u64) -> Self {
        Self {
            calls: Class::ALL.into_iter().map(|class| (class, whole.class(class))).collect(),
            success_rate: whole.total().success_rate().unwrap_or(0.0),
            latency: whole.latency(),
            settled_latency: settled.latency(),
            shares: settled.shares(),
            ejections,
            retries,
            failures: whole.failures().clone(),
        }
    }

    fn share(&self, pod: &str) -> f64 {
        self.shares.get(pod).copied().unwrap_or(0.0)
    }

    fn total(&self) -> Tally {
        self.calls.values().fold(Tally::default(), |sum, tally| Tally {
            ok: sum.ok + tally.ok,
            failed: sum.failed + tally.failed,
        })
    }
}

/// One thing that was expected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// Whether it was so.
    pub(crate) held: bool,
    /// What was measured and what was expected.
    pub(crate) said: String,
}

fn check(held: bool, said: String) -> Check {
    Check { held, said }
}

/// Every chapter's first demand: all calls of all classes were answered, and there were some.
pub(crate) fn nothing_lost(measured: &Measured) -> Vec<Check> {
    let total = measured.total();
    let mut checks = vec![check(
        total.failed == 0,
        format!("{} of {} calls failed, expected 0", total.failed, total.count()),
    )];
    if total.count() < MIN_CALLS {
        checks.push(check(
            false,
            format!("only {} calls ended, too few to say anything", total.count()),
        ));
    }
    for (class, tally) in &measured.calls {
        if tally.count() == 0 {
            checks.push(check(false, format!("no call of class {} ended", class.name())));
        }
    }
    checks
}

/// 1: all replicas serve, and quickly.
pub(crate) fn steady(measured: &Measured, replicas: &[String]) -> Vec<Check> {
    let mut checks = nothing_lost(measured);
    // How even the shares are is no promise of the balancer: one slow answer on a busy machine
    // costs a replica its part for seconds. That each is used is.
    for pod in replicas.iter().filter(|pod| measured.share(pod) <= 0.0) {
        checks.push(check(false, format!("{pod} gave no answer, expected some")));
    }
    let p99 = measured.latency.p99_ms;
    checks.push(check(
        p99 <= STEADY_P99_MS,
        format!("p99 {p99:.1} ms, expected {STEADY_P99_MS} ms or less"),
    ));
    checks
}

/// 2: the slow replica gets less than its part.
pub(crate) fn slow(measured: &Measured, pod: &str, replicas: usize) -> Vec<Check> {
    let mut checks = nothing_lost(measured);
    let most = SLOW_OF_FAIR / replicas.max(1) as f64;
    let share = measured.share(pod);
    checks.push(check(
        share <= most,
        format!("{pod} gave {} of the answers, expected {} or less", percent(share), percent(most)),
    ));
    checks
}

/// 3: the failing replica is ejected, and its failures were sent again elsewhere.
pub(crate) fn failing(measured: &Measured, pod: &str, seen_ejected: bool) -> Vec<Check> {
    let mut checks = nothing_lost(measured);
    checks.push(check(
        seen_ejected && measured.ejections > 0,
        format!(
            "{pod} was {}ejected ({} ejections), expected 1 or more",
            if seen_ejected { "" } else { "never seen " },
            measured.ejections
        ),
    ));
    checks.push(check(
        measured.retries > 0,
        format!("{} requests were sent again, expected 1 or more", measured.retries),
    ));
    checks
}

/// 4: the new replica became ready and answered soon after.
pub(crate) fn added(measured: &Measured, pod: &str, first_answer: Option<Duration>) -> Vec<Check> {
    let mut checks = nothing_lost(measured);
    checks.push(match first_answer {
        Some(after) => check(
            after <= FIRST_ANSWER,
            format!(
                "{pod} answered {} ms after it was ready, expected {} ms or less",
                after.as_millis(),
                FIRST_ANSWER.as_millis()
            ),
        ),
        None => check(false, format!("{pod} never answered")),
    });
    checks
}

/// 5: traffic went on, and every sidecar found the control plane again.
pub(crate) fn outage(
    measured: &Measured,
    sidecars: usize,
    cut_off: usize,
    reconnected: usize,
) -> Vec<Check> {
    let mut checks = nothing_lost(measured);
    checks.push(check(
        cut_off > 0,
        format!("{cut_off} of {sidecars} sidecars noticed that it was gone, expected 1 or more"),
    ));
    checks.push(check(
        reconnected == sidecars,
        format!("{reconnected} of {sidecars} sidecars found it again, expected all"),
    ));
    checks
}

/// 6: every sidecar has a new certificate.
pub(crate) fn rotated(measured: &Measured, sidecars: usize, renewed: usize) -> Vec<Check> {
    let mut checks = nothing_lost(measured);
    checks.push(check(
        sidecars > 0 && renewed == sidecars,
        format!("{renewed} of {sidecars} sidecars renewed their certificate, expected all"),
    ));
    checks
}

/// 7: the replica left, and answers come from the others.
pub(crate) fn drained(
    measured: &Measured,
    pod: &str,
    gone: bool,
    answers_before: u64,
    answers_after: u64,
) -> Vec<Check> {
    let mut checks = nothing_lost(measured);
    checks.push(check(gone, format!("{pod} is {}", if gone { "gone" } else { "still there" })));
    checks.push(check(
        answers_before > 0,
        format!("{pod} gave {answers_before} answers before it left, expected 1 or more"),
    ));
    checks.push(check(
        answers_after == 0,
        format!("{pod} gave {answers_after} answers after it left, expected 0"),
    ));
    checks
}

/// `0.5` as `50.0 %`.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Measured {
        Measured {
            calls: Class::ALL.into_iter().map(|c| (c, Tally { ok: 100, failed: 0 })).collect(),
            success_rate: 1.0,
            latency: Latency { p50_ms: 2.0, p99_ms: 9.0, p999_ms: 12.0, max_ms: 13.0 },
            shares: [("a", 0.4), ("b", 0.35), ("c", 0.25)].map(|(p, s)| (p.to_owned(), s)).into(),
            ejections: 1,
            retries: 3,
            ..Measured::default()
        }
    }

    fn pods() -> Vec<String> {
        ["a", "b", "c"].map(str::to_owned).to_vec()
    }

    fn held(checks: &[Check]) -> bool {
        checks.iter().all(|check| check.held)
    }

    #[test]
    fn one_lost_call_fails_every_chapter() {
        let mut lost = good();
        lost.calls.get_mut(&Class::Tcp).unwrap().failed = 1;
        let second = Some(Duration::from_millis(200));
        let verdicts = |m: &Measured| {
            [
                held(&steady(m, &pods())),
                held(&slow(m, "d", 3)),
                held(&failing(m, "a", true)),
                held(&added(m, "c", second)),
                held(&outage(m, 8, 8, 8)),
                held(&rotated(m, 8, 8)),
                held(&drained(m, "c", true, 4, 0)),
            ]
        };
        assert_eq!(verdicts(&good()), [true; 7]);
        assert_eq!(verdicts(&lost), [false; 7]);
    }

    #[test]
    fn a_class_without_calls_or_too_few_calls_prove_nothing() {
        let mut silent = good();
        silent.calls.insert(Class::Fresh, Tally::default());
        assert!(!held(&nothing_lost(&silent)));
        let mut few = good();
        few.calls.values_mut().for_each(|tally| tally.ok = 2);
        assert!(!held(&nothing_lost(&few)));
    }

    #[test]
    fn steady_wants_every_replica_and_a_sane_tail() {
        assert!(held(&steady(&good(), &pods())));
        let mut idle = good();
        idle.shares.remove("b");
        assert!(!held(&steady(&idle, &pods())));
        let mut stuck = good();
        stuck.latency.p99_ms = 900.0;
        assert!(!held(&steady(&stuck, &pods())));
    }

    #[test]
    fn a_slow_replica_must_lose_half_of_its_fair_share() {
        assert!(!held(&slow(&good(), "c", 3)));
        let mut shunned = good();
        shunned.shares.insert("c".into(), 0.16);
        assert!(held(&slow(&shunned, "c", 3)));
    }

    #[test]
    fn an_ejection_must_be_seen_and_counted_and_retries_made() {
        assert!(held(&failing(&good(), "a", true)));
        assert!(!held(&failing(&good(), "a", false)));
        assert!(!held(&failing(&Measured { ejections: 0, ..good() }, "a", true)));
        assert!(!held(&failing(&Measured { retries: 0, ..good() }, "a", true)));
    }

    #[test]
    fn a_new_replica_has_one_second() {
        assert!(held(&added(&good(), "c", Some(Duration::from_millis(1000)))));
        assert!(!held(&added(&good(), "c", Some(Duration::from_millis(1001)))));
        assert!(!held(&added(&good(), "c", None)));
    }

    #[test]
    fn an_outage_must_be_real_and_end_for_all() {
        assert!(held(&outage(&good(), 8, 1, 8)));
        assert!(!held(&outage(&good(), 8, 0, 8)));
        assert!(!held(&outage(&good(), 8, 8, 7)));
    }

    #[test]
    fn every_certificate_must_be_renewed() {
        assert!(held(&rotated(&good(), 8, 8)));
        assert!(!held(&rotated(&good(), 8, 7)));
        assert!(!held(&rotated(&good(), 0, 0)));
    }

    #[test]
    fn a_leaver_served_before_is_gone_and_serves_no_more() {
        assert!(held(&drained(&good(), "c", true, 1, 0)));
        assert!(!held(&drained(&good(), "c", false, 1, 0)));
        assert!(!held(&drained(&good(), "c", true, 0, 0)));
        assert!(!held(&drained(&good(), "c", true, 1, 1)));
    }
}
