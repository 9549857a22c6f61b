//! What came of a scenario: figures, seconds and verdicts, for people (`text`, `svg`) and programs.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use serde::Serialize;

use super::{
    engine::{self, TooManyRequests},
    expect::Measure,
    measure::{Figures, Measured, Second, ServerFigures},
    scenario::{MAX_REQUESTS, Scenario},
};

/// What came of a scenario.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Its name.
    pub scenario: String,
    /// What it is about.
    pub about: String,
    /// The seed: the same file and seed give the same report.
    pub seed: u64,
    /// How long clients sent, in seconds.
    pub duration_s: f64,
    /// The part of it at the beginning that does not count, in seconds.
    pub warmup_s: f64,
    /// Proxies.
    pub proxies: u32,
    /// From when to when something was disturbed, in seconds.
    pub disturbances: Vec<(f64, f64)>,
    /// One run for each policy, in the order of the file.
    pub policies: Vec<PolicyReport>,
    /// What was expected, in the order of the file.
    pub expect: Vec<Expected>,
    /// Whether all of it held.
    pub held: bool,
}

/// A run under one policy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PolicyReport {
    /// Its name.
    pub name: String,
    /// The words that it was written with.
    pub policy: BTreeMap<String, String>,
    /// Of the whole run.
    pub figures: Figures,
    /// Of each server.
    pub servers: Vec<ServerFigures>,
    /// Of each second.
    pub seconds: Vec<Second>,
}

/// An expectation and its end.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Expected {
    /// As it was written.
    pub text: String,
    /// Whether it held.
    pub held: bool,
    /// What was measured: seconds, or a number; `None`: nothing could be, or it is without bound.
    pub measured: Option<f64>,
    /// With what it was compared.
    pub compared_with: Option<f64>,
    /// Whether these are seconds.
    pub is_time: bool,
}

/// Simulates a scenario under each of its policies.
///
/// # Errors
/// Where a closed loop sends more than is simulated.
pub fn run(scenario: &Scenario, seed: u64) -> Result<Report, TooManyRequests> {
    let mut values: Vec<(Measure, Option<f64>)> = Vec::new();
    let mut policies = Vec::new();
    for (index, policy) in scenario.policies.iter().enumerate() {
        let record = engine::run(scenario, index, seed, MAX_REQUESTS)?;
        let measured = Measured::new(scenario, &record);
        let wanted = scenario.expect.iter().flat_map(|expected| expected.measures());
        for measure in wanted.filter(|measure| measure.policy == index) {
            values.push((measure.clone(), measured.value(measure)));
        }
        policies.push(PolicyReport {
            name: policy.name.clone(),
            policy: policy.words.iter().cloned().collect(),
            figures: measured.figures(),
            servers: measured.servers(),
            seconds: measured.seconds(),
        });
    }
    let value = |wanted: &Measure| {
        let known = values.iter().find(|(measure, _)| measure == wanted);
        known.and_then(|(_, value)| *value)
    };
    let expected = scenario.expect.iter().map(|expectation| {
        let verdict = expectation.check(value);
        Expected {
            text: expectation.text.clone(),
            held: verdict.held,
            measured: verdict.left,
            compared_with: verdict.right,
            is_time: expectation.is_time(),
        }
    });
    let expect: Vec<Expected> = expected.collect();
    let seconds = |span: &std::ops::Range<std::time::Duration>| {
        (span.start.as_secs_f64(), span.end.min(scenario.duration).as_secs_f64())
    };
    Ok(Report {
        scenario: scenario.name.clone(),
        about: scenario.about.clone(),
        seed,
        duration_s: scenario.duration.as_secs_f64(),
        warmup_s: scenario.warmup.as_secs_f64(),
        proxies: scenario.proxies(),
        disturbances: scenario.disturbances().iter().map(seconds).collect(),
        policies,
        held: expect.iter().all(|expected| expected.held),
        expect,
    })
}

impl Report {
    /// Writes it for programs: one JSON object.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn json(&self, out: &mut impl Write) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut *out, self)?;
        writeln!(out)
    }
}
