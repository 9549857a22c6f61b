//! Dashboards, rules and queries in the documentation, against the table of metrics in `docs/admin.md`; by
//! Prometheus's own tools and a Prometheus that scrapes a mesh, where they are installed.

#![allow(clippy::unwrap_used, reason = "clippy sees only the tests themselves as tests")]

mod commands;
mod prometheus;
mod promql;
mod table;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde_json::Value;

use promql::Query;
use table::Table;

const DASHBOARDS: [&str; 3] = ["overview", "service", "control-plane"];

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn dashboard(name: &str) -> Value {
    serde_json::from_str(&read(&format!("deploy/grafana/{name}.json"))).unwrap()
}

fn documents(name: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&read(name)).unwrap()
}

fn rules() -> Vec<Value> {
    let file = documents("deploy/prometheus/rules.yaml").remove(0);
    let groups = file["groups"].as_array().unwrap().iter();
    groups.flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

/// Each query of a dashboard, with where it is and how its series are named.
fn queries(dashboard: &Value) -> Vec<(String, String, String)> {
    let of = |panel: &Value| -> Vec<_> {
        let title = text(panel, "title").to_owned();
        let query = |target: &Value| {
            (
                title.clone(),
                text(target, "expr").to_owned(),
                text(target, "legendFormat").to_owned(),
            )
        };
        list(panel, "targets").map(query).collect()
    };
    list(dashboard, "panels").flat_map(of).collect()
}

/// Metric and label of `label_values(metric, label)`, of each variable that is looked up.
fn variables(dashboard: &Value) -> Vec<(String, String)> {
    let all = list(&dashboard["templating"], "list").filter(|variable| variable["type"] == "query");
    let parts = all.map(|variable| {
        let query = variable["query"]["query"].as_str().unwrap();
        let inside = query.strip_prefix("label_values(").unwrap().strip_suffix(')').unwrap();
        let (metric, label) = inside.rsplit_once(", ").unwrap();
        (metric.to_owned(), label.to_owned())
    });
    parts.collect()
}

fn records() -> BTreeSet<String> {
    rules().iter().filter_map(|rule| rule["record"].as_str().map(str::to_owned)).collect()
}

fn check(table: &Table, place: &str, query: &str) -> Query {
    let read = Query::read(query).unwrap_or_else(|error| panic!("{place}: {error}\n{query}"));
    assert!(!read.uses.is_empty(), "{place} asks for nothing of ours: {query}");
    assert_eq!(table.problems(&read, &records()), Vec::<String>::new(), "{place}: {query}");
    read
}

fn documented() -> Table {
    let table = Table::read(&read("docs/admin.md"));
    assert!(table.len() > 50, "only {} metrics were found", table.len());
    table
}

/// `{{name}}` and `{{ $labels.name }}`.
fn named(text: &str) -> impl Iterator<Item = &str> {
    let inside = text.split("{{").skip(1).filter_map(|rest| rest.split("}}").next());
    inside.filter_map(|inside| {
        let inside = inside.trim();
        match inside.strip_prefix("$labels.") {
            Some(label) => Some(label),
            None => (!inside.starts_with('$')).then_some(inside),
        }
    })
}

#[test]
fn every_query_of_the_dashboards_is_about_metrics_and_labels_that_are_documented() {
    let table = documented();
    for name in DASHBOARDS {
        let dashboard = dashboard(name);
        let queries = queries(&dashboard);
        assert!(queries.len() > 15, "{name} has {} queries", queries.len());
        for (title, query, legend) in queries {
            let place = format!("{name}, {title}");
            let query = check(&table, &place, &query);
            let labels: BTreeSet<&str> = query.labels().collect();
            let strange: Vec<&str> =
                named(&legend).filter(|label| !labels.contains(label)).collect();
            assert!(strange.is_empty(), "{place}: series have no label {strange:?}");
        }
        for (metric, label) in variables(&dashboard) {
            check(&table, name, &format!("sum by ({label}) ({metric})"));
        }
    }
}

#[test]
fn every_rule_is_about_metrics_and_labels_that_are_documented() {
    let table = documented();
    for rule in rules() {
        let name = format!("{}{}", text(&rule, "record"), text(&rule, "alert"));
        let query = check(&table, &name, text(&rule, "expr"));
        let labels: BTreeSet<&str> = query.labels().collect();
        if let Some((level, _)) = text(&rule, "record").split_once(':') {
            let left: BTreeSet<&str> =
                labels.iter().copied().filter(|label| *label != "le").collect();
            let missing: Vec<_> = level.split('_').filter(|label| !left.contains(label)).collect();
            assert!(missing.is_empty(), "{name} is by {level}, not {labels:?}");
        }
        let summary = text(&rule["annotations"], "summary");
        // Alerts on what a recording rule gives have the labels of its level.
        let level =
            query.uses.iter().find_map(|it| it.metric.split_once(':')).map(|(level, _)| level);
        let level: BTreeSet<&str> = level.into_iter().flat_map(|level| level.split('_')).collect();
        let strange: Vec<&str> = named(summary)
            .filter(|label| !labels.contains(label) && !level.contains(label))
            .collect();
        assert!(strange.is_empty(), "{name} has no label {strange:?}");
    }
}

#[test]
fn every_query_of_the_pages_is_about_metrics_and_labels_that_are_documented() {
    let table = documented();
    let page = read("docs/reasons.md");
    let queries: Vec<&str> =
        page.split("```promql\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(queries.len() > 5, "{queries:?}");
    for query in queries {
        check(&table, "docs/reasons.md", query);
    }
}

#[test]
fn dashboards_are_whole_and_their_variables_are_theirs() {
    let mut uids = BTreeSet::new();
    for name in DASHBOARDS {
        let dashboard = dashboard(name);
        assert!(uids.insert(text(&dashboard, "uid").to_owned()), "{name}: uid");
        let defined: BTreeSet<&str> =
            list(&dashboard["templating"], "list").map(|variable| text(variable, "name")).collect();
        let whole = read(&format!("deploy/grafana/{name}.json"));
        let used = whole.split('$').skip(1).map(|rest| {
            let rest = rest.trim_start_matches('{');
            &rest[..rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(0)]
        });
        let ours = used.filter(|word| !word.starts_with("__"));
        let strange: Vec<&str> = ours.filter(|word| !defined.contains(word)).collect();
        assert!(strange.is_empty(), "{name}: {strange:?}");
        let mut ids = BTreeSet::new();
        let mut taken = BTreeMap::new();
        for panel in list(&dashboard, "panels") {
            let title = text(panel, "title");
            assert!(
                !title.is_empty() && ids.insert(panel["id"].as_u64().unwrap()),
                "{name}, {title}"
            );
            let grid = |key: &str| panel["gridPos"][key].as_u64().unwrap();
            assert!(grid("x") + grid("w") <= 24, "{name}, {title} is too wide");
            for x in grid("x")..grid("x") + grid("w") {
                for y in grid("y")..grid("y") + grid("h") {
                    let other = taken.insert((x, y), title);
                    assert_eq!(other, None, "{name}: {title} covers another");
                }
            }
            if panel["type"] != "row" {
                assert!(list(panel, "targets").count() > 0, "{name}, {title}: no query");
                assert!(!text(panel, "description").is_empty(), "{name}, {title}: what is it?");
                assert_eq!(panel["datasource"]["uid"], "${datasource}", "{name}, {title}");
            }
        }
    }
}

#[test]
fn both_ways_to_scrape_give_the_labels_that_queries_use() {
    let of = |relabels: &Value, key: &str, target: &str| -> BTreeSet<String> {
        let all = list(relabels, key).filter_map(|rule| rule[target].as_str());
        all.map(str::to_owned).collect()
    };
    let file = documents("deploy/prometheus/scrape.yaml").remove(0);
    let plain: Vec<_> = list(&file, "scrape_configs")
        .map(|job| {
            assert_eq!(job["honor_labels"], true);
            of(job, "relabel_configs", "target_label")
        })
        .collect();
    let monitors: Vec<_> = documents("deploy/prometheus/podmonitor.yaml")
        .iter()
        .flat_map(|monitor| {
            list(&monitor["spec"], "podMetricsEndpoints").cloned().collect::<Vec<_>>()
        })
        .map(|endpoint| {
            assert_eq!(endpoint["honorLabels"], true);
            of(&endpoint, "relabelings", "targetLabel")
        })
        .collect();
    assert_eq!((plain.len(), &plain), (3, &monitors));
    let all: BTreeSet<&str> = plain.iter().flatten().map(String::as_str).collect();
    assert_eq!(all, table::added());
}

#[test]
fn every_alert_has_a_page_to_read_on_and_a_test() {
    let tests = documents("deploy/prometheus/rules_test.yaml").remove(0);
    let tested: BTreeSet<&str> = list(&tests, "tests")
        .flat_map(|test| list(test, "alert_rule_test"))
        .filter(|case| list(case, "exp_alerts").count() > 0)
        .map(|case| text(case, "alertname"))
        .collect();
    let rules = rules();
    let alerts: Vec<&Value> = rules.iter().filter(|rule| rule["alert"].is_string()).collect();
    assert!(alerts.len() > 15, "{}", alerts.len());
    for alert in &alerts {
        let name = text(alert, "alert");
        assert!(["critical", "warning"].contains(&text(&alert["labels"], "severity")), "{name}");
        let (page, anchor) = match text(&alert["annotations"], "runbook").split_once('#') {
            Some((page, anchor)) => (page, Some(anchor)),
            None => (text(&alert["annotations"], "runbook"), None),
        };
        let page = read(page);
        let titles = page.lines().filter(|line| line.starts_with('#'));
        let anchors: BTreeSet<String> = titles.map(anchor_of).collect();
        assert!(anchor.is_none_or(|anchor| anchors.contains(anchor)), "{name}: {anchor:?}");
    }
    let named: BTreeSet<&str> = alerts.iter().map(|alert| text(alert, "alert")).collect();
    assert_eq!(tested, named, "each fires in a test");
}

/// As GitHub makes them.
fn anchor_of(title: &str) -> String {
    let kept = title.trim_start_matches('#').trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}
