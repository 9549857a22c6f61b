//! The API server and the nodes.

use super::{count, named, version};
use crate::check::{
    api::{Listed, Read},
    certificate::span,
    facts::{Facts, Node, Stage},
    report::Line,
};

/// The first minor version of Kubernetes 1 with native sidecars.
const NATIVE: u64 = 29;
/// The first with matchConditions of webhooks, which keep pods that opted out from the webhook.
const LEAST: u64 = 28;

pub(super) fn lines(facts: &Facts) -> Vec<Line> {
    let info = match &facts.version {
        Ok(info) => info,
        Err(why) => {
            return vec![Line::failed(
                "kubernetes.api",
                format!("API server {} (context {}): {why}", facts.url, facts.context),
                "see that kubectl version works with this context; name another with --context",
            )];
        }
    };
    let stage = match &facts.stage {
        Stage::Before(before) if before.asked => "; looked at as before an install (--pre)",
        Stage::Before(_) => "; nothing is installed, so looked at as before an install",
        _ => "",
    };
    let api = format!(
        "API server {} answers (context {}): Kubernetes {}{stage}",
        facts.url, facts.context, info.git_version
    );
    let mut lines = vec![
        Line::ok("kubernetes.api", api),
        server_version(&format!("{}.{}", info.major, info.minor)),
    ];
    match &facts.stage {
        Stage::Unreachable => {}
        Stage::Before(before) => {
            lines.push(nodes(&before.nodes));
            lines.extend(local_clock(facts));
        }
        Stage::After(after) => lines.push(nodes(&after.nodes)),
    }
    lines
}

fn server_version(text: &str) -> Line {
    const CHECK: &str = "kubernetes.version";
    match version(text) {
        Some(v) if v >= (1, NATIVE) => Line::ok(
            CHECK,
            format!("version {text} is new enough (1.{NATIVE}), with native sidecars"),
        ),
        Some(v) if v >= (1, LEAST) => Line::warning(
            CHECK,
            format!("version {text} has no native sidecars: Jobs end only when asked to"),
            format!("upgrade to 1.{NATIVE} or newer; until then proxies are ordinary containers"),
        ),
        _ => Line::failed(
            CHECK,
            format!("version {text} is too old"),
            format!("upgrade to Kubernetes 1.{NATIVE} or newer"),
        ),
    }
}

fn nodes(nodes: &Read<Listed<Node>>) -> Line {
    const CHECK: &str = "kubernetes.nodes";
    let nodes = match nodes {
        Ok(listed) => &listed.items,
        Err(why) => return Line::unread(CHECK, "versions of the nodes", why),
    };
    let linux: Vec<&Node> = nodes.iter().filter(|node| node.os == "linux").collect();
    let old: Vec<String> = linux
        .iter()
        .filter(|node| version(&node.kubelet).is_some_and(|v| v < (1, NATIVE)))
        .map(|node| format!("{} ({})", node.name, node.kubelet))
        .collect();
    if linux.is_empty() {
        return Line::failed(
            CHECK,
            "there is no Linux node",
            "add one: the mesh runs on Linux only",
        );
    }
    if !old.is_empty() {
        return Line::warning(
            CHECK,
            format!("kubelets without native sidecars: {}", named(&old)),
            format!(
                "upgrade them to 1.{NATIVE}, or set config.remora.io/native-sidecar: disabled for \
                 what runs there"
            ),
        );
    }
    let others = match nodes.len() - linux.len() {
        0 => String::new(),
        n => format!("; {} not Linux, whose pods get no sidecar", count(n, "node")),
    };
    Line::ok(
        CHECK,
        format!("{} with Linux and a kubelet new enough{others}", count(linux.len(), "node")),
    )
}

/// Before an install there is nothing else whose clock could be compared.
fn local_clock(facts: &Facts) -> Option<Line> {
    let ahead = facts.clock?.ahead;
    let off = ahead.abs() as i64;
    Some(if off <= super::clocks::LIMIT {
        Line::ok("clocks.api-server", "this machine's clock and the API server's agree")
    } else {
        Line::warning(
            "clocks.api-server",
            format!(
                "the API server's clock is {} {} this machine's",
                span(off),
                if ahead > 0.0 { "ahead of" } else { "behind" }
            ),
            "set both by NTP; certificates depend on the cluster's clocks",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::report::Status;

    #[test]
    fn versions_without_native_sidecars_are_warned_about_and_older_ones_fail() {
        for (text, status) in [
            ("1.36", Status::Ok),
            ("1.29", Status::Ok),
            ("1.29+", Status::Ok),
            ("1.28", Status::Warning),
            ("1.27", Status::Failed),
            ("unknown", Status::Failed),
        ] {
            assert_eq!(server_version(text).status, status, "{text}");
        }
    }

    fn node(name: &str, kubelet: &str, os: &str) -> Node {
        Node { name: name.to_owned(), kubelet: kubelet.to_owned(), os: os.to_owned() }
    }

    #[test]
    fn an_old_kubelet_is_named() {
        let judged = |items| nodes(&Ok(Listed { items, cut: false }));
        let line = judged(vec![node("a", "v1.34.1", "linux"), node("b", "v1.28.9", "linux")]);
        assert_eq!(line.status, Status::Warning);
        assert!(line.message.contains("b (v1.28.9)") && !line.message.contains("a (v"));
        let line = judged(vec![node("a", "v1.34.1", "linux"), node("w", "v1.20.0", "windows")]);
        assert_eq!(line.status, Status::Ok);
        assert!(line.message.contains("1 node not Linux"));
        assert_eq!(judged(vec![node("w", "v1.34.0", "windows")]).status, Status::Failed);
    }
}
