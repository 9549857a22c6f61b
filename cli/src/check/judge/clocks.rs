//! Clocks: a certificate is backdated by 20 s, so clocks further apart refuse each other's.

use super::named;
use crate::check::{api::Clock, certificate::span, facts::After, report::Line};

/// By how many seconds a leaf certificate is backdated.
pub(super) const LIMIT: i64 = 20;

/// Compares the API server, this machine, and the nodes of our pods and of the proxies asked.
pub(super) fn lines(api: Option<Clock>, after: &After) -> Vec<Line> {
    const CHECK: &str = "clocks.cluster";
    let Some(api) = api else {
        return vec![Line::skipped(CHECK, "clocks not checked: the API server tells no date")];
    };
    let ours = after.replicas.iter().map(|replica| (&replica.node, replica.clock));
    let proxies = after.mesh.sample.iter().map(|proxy| (&proxy.node, proxy.clock));
    let mut nodes: Vec<(&str, f64)> = ours
        .chain(proxies)
        .filter_map(|(node, clock)| Some((node.as_str(), clock?.ahead - api.ahead)))
        .collect();
    nodes.sort_by(|a, b| a.0.cmp(b.0).then(b.1.abs().total_cmp(&a.1.abs())));
    nodes.dedup_by_key(|(node, _)| *node);
    let off: Vec<String> = nodes
        .iter()
        .filter(|(_, ahead)| is_off(*ahead))
        .map(|(node, ahead)| format!("{node} ({})", told(*ahead)))
        .collect();
    let mut lines = Vec::new();
    if !off.is_empty() {
        lines.push(Line::failed(
            CHECK,
            format!(
                "clocks of nodes differ from the API server's by more than {LIMIT} s: {}; new \
                 certificates are refused there",
                named(&off)
            ),
            "set the nodes' clocks by NTP",
        ));
    } else if nodes.is_empty() {
        lines.push(Line::skipped(CHECK, "clocks of nodes not checked: no pod of ours told a date"));
    } else {
        let n = super::count(nodes.len(), "node");
        lines.push(Line::ok(CHECK, format!("clocks of the API server and {n} agree")));
    }
    if is_off(api.ahead) {
        // The others agree, or are named above.
        lines.push(Line::warning(
            "clocks.local",
            format!("this machine's clock is off: the API server's is {}", told(api.ahead)),
            "set this machine's clock by NTP; the mesh does not depend on it",
        ));
    }
    lines
}

/// A Date has whole seconds.
fn is_off(ahead: f64) -> bool {
    ahead.abs() > LIMIT as f64 + 1.0
}

fn told(ahead: f64) -> String {
    let word = if ahead > 0.0 { "ahead" } else { "behind" };
    format!("{} {word}", span(ahead.abs() as i64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{judge::fixtures, report::Status};

    fn clock(ahead: f64) -> Option<Clock> {
        Some(Clock { now: fixtures::NOW, ahead })
    }

    #[test]
    fn the_clock_that_is_off_is_named() {
        let mut after = fixtures::after();
        after.replicas[0].clock = clock(0.4);
        assert_eq!(lines(clock(0.0), &after)[0].status, Status::Ok);
        after.replicas[0].clock = clock(-600.0);
        let judged = lines(clock(0.0), &after);
        assert_eq!((judged.len(), judged[0].status), (1, Status::Failed));
        assert!(judged[0].message.contains("node1 (10 minutes behind)"), "{judged:?}");
    }

    #[test]
    fn where_all_others_agree_this_machine_is_off() {
        let mut after = fixtures::after();
        after.replicas[0].clock = clock(3600.0);
        after.mesh.sample.clear();
        let judged = lines(clock(3600.2), &after);
        assert_eq!((judged[0].status, judged[1].status), (Status::Ok, Status::Warning));
        assert_eq!(judged[1].check, "clocks.local");
    }
}
