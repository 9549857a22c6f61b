//! The metrics that `docs/admin.md` documents, with the words that their rows have for labels and values.

use std::collections::{BTreeMap, BTreeSet};

use remora_proxy::error::Reason;

use super::promql::{Matcher, Query, Use};

/// Labels of `deploy/prometheus/scrape.yaml` that proxies' metrics get.
const OF_PROXIES: [&str; 2] = ["proxy_namespace", "proxy_pod"];
/// Those of the control plane's and the injector's.
const OF_PROGRAMS: [&str; 1] = ["replica"];

/// The metrics by name, and which words stand together.
#[derive(Debug)]
pub(super) struct Table {
    metrics: BTreeMap<String, Metric>,
    /// The words in code type of each row about a metric, and of each paragraph and other table.
    together: Vec<BTreeSet<String>>,
}

#[derive(Debug)]
struct Metric {
    histogram: bool,
    labels: BTreeSet<String>,
}

impl Table {
    /// Reads all tables of a page that begin with `| name | type |`. Labels are in the column of that name, where
    /// there is one, else among the words in code type of the last column. *the same* means those of the row
    /// above.
    pub(super) fn read(page: &str) -> Self {
        let mut table = Self { metrics: BTreeMap::new(), together: Vec::new() };
        for block in page.split("\n\n") {
            // A title may stand right above.
            match block.find("| name | type |") {
                Some(head) => table.metrics_of(&block[head..]),
                None => table.together.push(in_code(block).collect()),
            }
        }
        table
    }

    fn metrics_of(&mut self, block: &str) {
        let has_labels = block.lines().next().is_some_and(|head| head.contains("| labels |"));
        let mut above = BTreeSet::new();
        for line in block.lines().skip(2) {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let is_word = |c: char| c.is_ascii_alphanumeric() || "_-/".contains(c);
            let mut labels: BTreeSet<String> = if has_labels {
                cells[2].split(|c| !is_word(c)).map(str::to_owned).collect()
            } else {
                in_code(cells[2]).collect()
            };
            if cells[2].contains("the same") {
                labels.append(&mut above);
            }
            above.clone_from(&labels);
            self.together.push(labels.iter().cloned().chain(in_code(line)).collect());
            for name in in_code(cells[0]) {
                let histogram = cells[1] == "histogram";
                self.metrics.insert(name, Metric { histogram, labels: labels.clone() });
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.metrics.len()
    }

    /// Names of metrics and of series (`_bucket`), as a scrape has them.
    fn find(&self, name: &str) -> Option<(&Metric, bool)> {
        if let Some(metric) = self.metrics.get(name).filter(|metric| !metric.histogram) {
            return Some((metric, false));
        }
        ["_bucket", "_sum", "_count"].iter().find_map(|suffix| {
            let metric = self.metrics.get(name.strip_suffix(suffix)?)?;
            metric.histogram.then_some((metric, *suffix == "_bucket"))
        })
    }

    /// What is wrong with a query; `records` are the names that recording rules give.
    pub(super) fn problems(&self, query: &Query, records: &BTreeSet<String>) -> Vec<String> {
        let mut problems = Vec::new();
        for it in &query.uses {
            let labels = it.matchers.iter().map(|matcher| matcher.label.as_str());
            problems.extend(labels.filter_map(|label| self.lacks(it, label, records)));
            for Matcher { label, value } in &it.matchers {
                // What is chosen by a variable or an expression may be anything.
                let fixed = value.split('|').filter(|value| !value.contains(['$', '.', '*']));
                let unknown = fixed.filter(|value| !self.has_value(label, value));
                problems.extend(unknown.map(|value| format!("{label} is never {value}")));
            }
        }
        let grouped = query.grouped();
        problems.extend(grouped.filter_map(|(it, label)| self.lacks(it, label, records)));
        let unknown = query
            .uses
            .iter()
            .filter(|it| self.find(&it.metric).is_none() && !records.contains(&it.metric));
        problems.extend(unknown.map(|it| format!("{} is not documented", it.metric)));
        problems
    }

    fn has_value(&self, label: &str, value: &str) -> bool {
        let reason = label == "reason" && Reason::from_word(value.as_bytes()).is_some();
        reason || self.together.iter().any(|words| words.contains(label) && words.contains(value))
    }

    fn lacks(&self, it: &Use, label: &str, records: &BTreeSet<String>) -> Option<String> {
        let name = &it.metric;
        let has = if records.contains(name) {
            name.split(':').next().is_some_and(|level| level.split('_').any(|word| word == label))
        } else {
            let own = self.find(name).is_some_and(|(metric, bucket)| {
                metric.labels.contains(label) || bucket && label == "le"
            });
            own || scraped(name).contains(&label)
        };
        (!has).then(|| format!("{name} has no label {label}"))
    }
}

fn scraped(name: &str) -> &'static [&'static str] {
    let program = ["remora_control_plane_", "remora_injector_"].iter().any(|p| name.starts_with(p));
    if program { &OF_PROGRAMS } else { &OF_PROXIES }
}

/// All labels that a scrape adds.
pub(super) fn added() -> BTreeSet<&'static str> {
    OF_PROXIES.into_iter().chain(OF_PROGRAMS).collect()
}

/// The words between backticks.
fn in_code(text: &str) -> impl Iterator<Item = String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned)
}

#[test]
fn what_is_not_documented_is_found() {
    let table = Table::read(
        "| name | type | labels | what |\n|---|---|---|---|\n\
         | `remora_a_total` | counter | namespace, `result` `good`, `bad` | |\n\
         | `remora_b_seconds` | histogram | the same, `route` | |\n\n\
         ## Others\n| name | type | what |\n|---|---|---|\n| `remora_injector_c` | gauge | of a `kind` |\n\n\
         And `kind` is `dog` or\n`cat`.\n",
    );
    let records = BTreeSet::from(["namespace:x:rate5m".to_owned()]);
    let problems = |text| table.problems(&Query::read(text).unwrap(), &records);
    for fine in [
        r#"sum by (namespace) (rate(remora_a_total{result="good"}[5m]))"#,
        r#"histogram_quantile(0.9, sum by (le, route) (rate(remora_b_seconds_bucket{result=~"good|bad"}[5m])))"#,
        r#"sum by (kind, replica) (remora_injector_c{kind="cat"})"#,
        "max by (proxy_pod) (remora_a_total)",
        "sum by (namespace) (namespace:x:rate5m)",
        r#"remora_a_total{result=~"$result", namespace=~".*"}"#,
    ] {
        assert_eq!(problems(fine), Vec::<String>::new(), "{fine}");
    }
    for (wrong, problem) in [
        ("remora_a", "remora_a is not documented"),
        ("remora_b_seconds", "remora_b_seconds is not documented"),
        ("remora_a_total_bucket", "remora_a_total_bucket is not documented"),
        (r#"remora_a_total{route="x"}"#, "remora_a_total has no label route"),
        (r#"remora_a_total{result="ugly"}"#, "result is never ugly"),
        (r#"remora_a_total{result=~"good|ugly"}"#, "result is never ugly"),
        (r#"remora_injector_c{kind="good"}"#, "kind is never good"),
        ("sum by (le) (remora_b_seconds_count)", "remora_b_seconds_count has no label le"),
        ("sum by (replica) (remora_a_total)", "remora_a_total has no label replica"),
        ("sum by (service) (namespace:x:rate5m)", "namespace:x:rate5m has no label service"),
        ("namespace:y:rate5m", "namespace:y:rate5m is not documented"),
    ] {
        assert_eq!(problems(wrong).first().map(String::as_str), Some(problem), "{wrong}");
    }
}
