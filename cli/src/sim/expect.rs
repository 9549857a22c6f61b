//! What a scenario expects: `share.slow <= 0.05`, `p99.default <= 0.6 * p99.round-robin`.
//!
//! An expectation is `MEASURE OP VALUE` or `MEASURE OP [NUMBER *] MEASURE`, with `OP` one of `<=`,
//! `<`, `>=`, `>`. A measure is a name, the server where it is one of a server, the policy where it
//! is not the first, and a span of time where not the whole run counts: `share.slow.default@20s..30s`.

use std::{ops::Range, time::Duration};

use super::scenario::{Group, Scenario, Server, words};

/// One expectation.
#[derive(Debug, Clone, PartialEq)]
pub struct Expectation {
    /// As it was written.
    pub text: String,
    left: Measure,
    op: Op,
    right: Right,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Op {
    AtMost,
    Below,
    AtLeast,
    Above,
}

#[derive(Debug, Clone, PartialEq)]
enum Right {
    Value(f64),
    Times(f64, Measure),
}

/// Something that is measured, under one policy.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Measure {
    pub(crate) kind: Kind,
    /// Whose; all where it is not a server's.
    pub(crate) servers: Vec<usize>,
    /// Index of the policy.
    pub(crate) policy: usize,
    /// When; all the time where absent.
    pub(crate) span: Option<Range<Duration>>,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Requests,
    Success,
    /// A quantile of what callers waited, 0 to 1; 1 is the longest.
    Latency(f64),
    Share,
    /// The greatest share in any second.
    PeakShare,
    Amplification,
    Ejections,
    Ejected,
    Recovery,
    Oscillation,
    Chance,
    BudgetRefused,
    LimitRefused,
}

/// Names of the measures. A name that begins another stands after it.
const KINDS: [(&str, Kind); 17] = [
    ("requests", Kind::Requests),
    ("success", Kind::Success),
    ("p50", Kind::Latency(0.5)),
    ("p90", Kind::Latency(0.9)),
    ("p99.9", Kind::Latency(0.999)),
    ("p99", Kind::Latency(0.99)),
    ("max", Kind::Latency(1.0)),
    ("share", Kind::Share),
    ("peak-share", Kind::PeakShare),
    ("amplification", Kind::Amplification),
    ("ejections", Kind::Ejections),
    ("ejected", Kind::Ejected),
    ("recovery", Kind::Recovery),
    ("oscillation-by-chance", Kind::Chance),
    ("oscillation", Kind::Oscillation),
    ("budget-refused", Kind::BudgetRefused),
    ("limit-refused", Kind::LimitRefused),
];

impl Kind {
    /// Whether its unit is the second.
    pub(crate) fn is_time(self) -> bool {
        matches!(self, Self::Latency(_) | Self::Recovery)
    }

    fn of_a_server(self) -> bool {
        matches!(self, Self::Share | Self::PeakShare | Self::Ejected)
    }

    fn has_spans(self) -> bool {
        matches!(
            self,
            Self::Requests
                | Self::Success
                | Self::Latency(_)
                | Self::Share
                | Self::PeakShare
                | Self::Amplification
                | Self::Oscillation
                | Self::Chance
        )
    }
}

/// How an expectation ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) held: bool,
    /// What was measured, and with what it was compared; `None`: there was nothing to measure.
    pub(crate) left: Option<f64>,
    pub(crate) right: Option<f64>,
}

impl Expectation {
    /// Reads one line.
    pub(super) fn parse(text: &str, scenario: &Scenario) -> Result<Self, String> {
        let form = || {
            format!(
                "{text:?} is no expectation; write for example share.slow <= 0.05 or p99 <= \
                 0.6 * p99.round-robin"
            )
        };
        let words: Vec<&str> = text.split_whitespace().collect();
        let (left, op, rest) = match words[..] {
            [left, op, ref rest @ ..] => (measure(left, scenario)?, op, rest),
            _ => return Err(form()),
        };
        let op = match op {
            "<=" => Op::AtMost,
            "<" => Op::Below,
            ">=" => Op::AtLeast,
            ">" => Op::Above,
            _ => return Err(form()),
        };
        let right = match rest {
            [factor, "*", right] => {
                Right::Times(number(factor)?, same_unit(&left, measure(right, scenario)?, text)?)
            }
            [word] if word.starts_with(|c: char| c.is_ascii_digit()) => {
                let time = |word| words::duration(word).map(|time| time.as_secs_f64());
                Right::Value(if left.kind.is_time() { time(word)? } else { number(word)? })
            }
            [word] => Right::Times(1.0, same_unit(&left, measure(word, scenario)?, text)?),
            _ => return Err(form()),
        };
        Ok(Self { text: words.join(" "), left, op, right })
    }

    /// What must be measured for it.
    pub(crate) fn measures(&self) -> impl Iterator<Item = &Measure> {
        let right = match &self.right {
            Right::Value(_) => None,
            Right::Times(_, measure) => Some(measure),
        };
        [Some(&self.left), right].into_iter().flatten()
    }

    /// Whether what it compares are times.
    pub(crate) fn is_time(&self) -> bool {
        self.left.kind.is_time()
    }

    /// Compares. What could not be measured does not hold.
    pub(crate) fn check(&self, value: impl Fn(&Measure) -> Option<f64>) -> Verdict {
        let left = value(&self.left);
        let right = match &self.right {
            Right::Value(right) => Some(*right),
            Right::Times(factor, measure) => value(measure).map(|value| factor * value),
        };
        let held = left.zip(right).is_some_and(|(left, right)| match self.op {
            Op::AtMost => left <= right,
            Op::Below => left < right,
            Op::AtLeast => left >= right,
            Op::Above => left > right,
        });
        Verdict { held, left, right }
    }
}

/// The servers that a name means: one, those of a group, or all.
pub(super) fn members(name: &str, groups: &[Group], servers: &[Server]) -> Option<Vec<usize>> {
    if name == "all" {
        return Some((0..servers.len()).collect());
    }
    if let Some(group) = groups.iter().find(|group| group.name == name) {
        return Some(group.members.clone().collect());
    }
    servers.iter().position(|server| server.name == name).map(|server| vec![server])
}

fn measure(text: &str, scenario: &Scenario) -> Result<Measure, String> {
    let (subject, span) = match text.split_once('@') {
        Some((subject, span)) => (subject, Some(parse_span(text, span, scenario)?)),
        None => (text, None),
    };
    let named = |(name, kind): &(&str, Kind)| {
        let rest = subject.strip_prefix(name)?;
        if rest.is_empty() { Some((*kind, "")) } else { Some((*kind, rest.strip_prefix('.')?)) }
    };
    let Some((kind, rest)) = KINDS.iter().find_map(named) else {
        let known: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
        return Err(format!("{text:?} is no measure; use one of {}", known.join(", ")));
    };
    let (server, policy) = match rest.split_once('.') {
        Some((server, policy)) => (server, policy),
        None if kind.of_a_server() => (rest, ""),
        None if kind == Kind::Ejections && policy_index(rest, scenario).is_none() => (rest, ""),
        None => ("", rest),
    };
    let servers = match server {
        "" if kind.of_a_server() => return Err(format!("{text:?}: whose? write {subject}.SERVER")),
        "" => (0..scenario.servers.len()).collect(),
        name => members(name, &scenario.groups, &scenario.servers).ok_or_else(|| {
            let known: Vec<&str> =
                scenario.groups.iter().map(|group| group.name.as_str()).collect();
            format!("{text:?}: no server {name:?}; there are {}", known.join(", "))
        })?,
    };
    let policy = policy_index(policy, scenario).ok_or_else(|| {
        let known: Vec<&str> = scenario.policies.iter().map(|p| p.name.as_str()).collect();
        format!("{text:?}: no policy {policy:?}; there are {}", known.join(", "))
    })?;
    if span.is_some() && !kind.has_spans() {
        return Err(format!("{text:?}: this is measured over the whole run; leave @ out"));
    }
    Ok(Measure { kind, servers, policy, span })
}

fn policy_index(name: &str, scenario: &Scenario) -> Option<usize> {
    if name.is_empty() {
        return Some(0);
    }
    scenario.policies.iter().position(|policy| policy.name == name)
}

fn parse_span(text: &str, span: &str, scenario: &Scenario) -> Result<Range<Duration>, String> {
    let form = || format!("{text:?}: write a span as @10s..20s, in whole seconds");
    let (from, to) = span.split_once("..").ok_or_else(form)?;
    let (from, to) = (words::duration(from)?, words::duration(to)?);
    if from.subsec_nanos() + to.subsec_nanos() > 0 || from >= to {
        return Err(form());
    }
    if to > scenario.duration {
        return Err(format!("{text:?}: the run is over after {:?}", scenario.duration));
    }
    Ok(from..to)
}

fn same_unit(left: &Measure, right: Measure, text: &str) -> Result<Measure, String> {
    if left.kind.is_time() == right.kind.is_time() {
        return Ok(right);
    }
    Err(format!("{text:?} compares a time with a number"))
}

fn number(word: &str) -> Result<f64, String> {
    words::number(word)
        .filter(|number| (0.0..=1e9).contains(number))
        .ok_or_else(|| format!("{word:?} is no number; use for example 0.05 or 5%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario() -> Scenario {
        let text = "duration: 60s\nservers: {a: {count: 2, latency: 1ms}, b: {latency: 1ms}}\n\
                    clients: {c: {rate: 1}}\npolicies: {default: {}, rr: {algorithm: round-robin}}\n";
        Scenario::parse("case", text).unwrap()
    }

    fn parse(text: &str) -> Result<Expectation, String> {
        Expectation::parse(text, &scenario())
    }

    fn left(text: &str) -> Measure {
        parse(text).unwrap().left
    }

    #[test]
    fn a_measure_names_its_server_its_policy_and_its_span() {
        let measure = left("share.a.rr@10s..20s <= 5%");
        assert_eq!((measure.kind, measure.policy), (Kind::Share, 1));
        assert_eq!(measure.servers, [0, 1]);
        assert_eq!(measure.span, Some(Duration::from_secs(10)..Duration::from_secs(20)));
        assert_eq!(left("share.b < 1").servers, [2]);
        assert_eq!(left("peak-share.a-2 < 1").servers, [1]);
        assert_eq!((left("p99.9 < 1s").kind, left("p99.9 < 1s").policy), (Kind::Latency(0.999), 0));
        assert_eq!(
            (left("p99.9.rr < 1s").kind, left("p99.rr < 1s").policy),
            (Kind::Latency(0.999), 1)
        );
        assert_eq!(left("ejections < 1").servers, [0, 1, 2]);
        assert_eq!(
            (left("ejections.b < 1").servers, left("ejections.rr < 1").policy),
            (vec![2], 1)
        );
    }

    #[test]
    fn values_have_the_unit_of_their_measure() {
        let right = |text: &str| parse(text).unwrap().right;
        assert_eq!(right("p99 <= 50ms"), Right::Value(0.05));
        assert_eq!(right("success >= 99.9%"), Right::Value(0.999));
        assert_eq!(right("requests > 100"), Right::Value(100.0));
        let Right::Times(factor, measure) = right("p99 <= 0.6 * p99.rr") else { panic!() };
        assert_eq!((factor, measure.policy), (0.6, 1));
        assert!(matches!(right("p99 <= p50"), Right::Times(1.0, _)));
    }

    #[test]
    fn what_is_no_expectation_is_answered_with_the_mend() {
        for (text, said) in [
            ("", "\"\" is no expectation; write for example"),
            ("p99", "\"p99\" is no expectation"),
            ("p99 = 5ms", "\"p99 = 5ms\" is no expectation"),
            ("p99 <= 5ms please", "\"p99 <= 5ms please\" is no expectation"),
            ("p98 <= 5ms", "\"p98\" is no measure; use one of requests, success, p50"),
            ("p99 <= 0.5", "\"0.5\" is no time"),
            ("success >= 5ms", "\"5ms\" is no number"),
            ("share <= 0.5", "\"share\": whose? write share.SERVER"),
            ("share.c <= 0.5", "\"share.c\": no server \"c\"; there are a, b"),
            ("p99.x <= 5ms", "\"p99.x\": no policy \"x\"; there are default, rr"),
            ("p99 <= 2 * success", "\"p99 <= 2 * success\" compares a time with a number"),
            ("p99@1s <= 5ms", "\"p99@1s\": write a span as @10s..20s"),
            ("p99@1s..1500ms <= 5ms", "\"p99@1s..1500ms\": write a span as"),
            ("p99@9s..90s <= 5ms", "\"p99@9s..90s\": the run is over after 60s"),
            ("recovery@1s..9s <= 5s", "\"recovery@1s..9s\": this is measured over the whole run"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(said), "{text}: {error}");
        }
    }

    #[test]
    fn it_holds_by_its_operator_and_never_without_a_measurement() {
        let held = |text: &str, value: Option<f64>| parse(text).unwrap().check(|_| value).held;
        let all = |text: &str| [0.4, 0.5, 0.6].map(|value| held(text, Some(value)));
        assert_eq!(all("success <= 0.5"), [true, true, false]);
        assert_eq!(all("success < 0.5"), [true, false, false]);
        assert_eq!(all("success >= 0.5"), [false, true, true]);
        assert_eq!(all("success > 0.5"), [false, false, true]);
        assert!(!held("success <= 1", None) && !held("success >= success.rr", None));
        assert!(!held("recovery <= 3600s", Some(f64::INFINITY)));
    }
}
