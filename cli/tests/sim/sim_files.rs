//! The scenarios that are shipped: they hold, and with a worse policy they would not.

use std::{fs, path::PathBuf};

use remora_cli::sim::{self, Report, Scenario};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/examples/sim")
}

fn scenario(name: &str) -> Scenario {
    let text = fs::read_to_string(folder().join(name).with_extension("yaml")).unwrap();
    Scenario::parse(name, &text).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn failed(report: &Report) -> Vec<&str> {
    let failed = report.expect.iter().filter(|expected| !expected.held);
    failed.map(|expected| expected.text.as_str()).collect()
}

const SHIPPED: [&str; 9] = [
    "all-failing",
    "churn",
    "flapping",
    "herd",
    "new-replica",
    "rate-limited",
    "retries",
    "slow-replica",
    "surge-overload",
];

#[test]
fn every_shipped_scenario_holds_with_its_own_seed_and_another() {
    for name in SHIPPED {
        let scenario = scenario(name);
        assert!(scenario.expect.len() > 2 && !scenario.about.is_empty(), "{name}");
        for seed in [scenario.seed, 7] {
            let report = sim::run(&scenario, seed).unwrap();
            assert_eq!(failed(&report), Vec::<&str>::new(), "{name}, seed {seed}");
        }
    }
}

#[test]
fn all_of_the_folder_is_in_the_list() {
    let mut names: Vec<String> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    assert_eq!(names, SHIPPED);
}

#[test]
fn a_worse_policy_is_noticed() {
    for (name, words, expected) in [
        ("slow-replica", &[("algorithm", "least-request")][..], "share.slow <="),
        ("slow-replica", &[("decay", "500ms")], "p99 <="),
        ("all-failing", &[("budget-ratio", "0.5")], "amplification"),
        ("flapping", &[("failure-accrual", "none")], "success.round-robin >="),
        ("flapping", &[("failure-penalty", "0s")], "success@20s..60s >="),
        ("herd", &[("algorithm", "random")], "share.a-1@20s..25s <="),
        ("herd", &[("decay", "100s")], "share.a-1@50s..60s >="),
        ("rate-limited", &[("failure-penalty", "0s")], "success >="),
        ("retries", &[("budget-ratio", "0.5")], "amplification@30s"),
        ("surge-overload", &[("budget-ratio", "1")], "amplification"),
    ] {
        let mut scenario = scenario(name);
        for (word, value) in words {
            scenario.set(word, value).unwrap();
        }
        let report = sim::run(&scenario, scenario.seed).unwrap();
        let failed = failed(&report);
        let noticed = failed.iter().any(|text| text.starts_with(expected));
        assert!(noticed, "{name} with {words:?} failed only {failed:?}");
    }
}
