//! The commands of `docs/reasons.md` that need no cluster, in a mesh.

use super::read;
use crate::up::{
    manifests::{idle, namespace, service, teller},
    mesh::{As, Up, installed},
};

/// The page's commands that ask a proxy or the control plane.
fn commands(page: &str) -> Vec<&str> {
    page.lines().filter(|line| line.starts_with("curl ")).collect()
}

#[test]
fn every_curl_of_the_page_of_reasons_works() {
    let needed = [("curl", "curl"), ("jq", "jq"), ("python3", "python3"), ("sh", "dash")];
    if !installed(&needed) {
        return;
    }
    let manifests = [
        namespace("shop", true),
        teller("shop", "orders", 1),
        service("shop", "nobody", 80, "main"),
        idle("shop", "web"),
    ];
    let Some(up) = Up::start("reasons", As::Me, &manifests.concat()) else { return };
    up.wait_ready(0, &["shop/orders-0", "shop/web"]);
    up.get_soon("shop/web", "http://orders/");
    let answer = up.stdout("shop/web", &["curl", "-s", "http://nobody/"]);
    assert!(answer.ends_with("\nsee docs/reasons.md#no-endpoints\n"), "{answer}");

    let page = read("docs/reasons.md");
    let all = commands(&page);
    assert!(all.len() > 30, "{}", all.len());
    let mut shown = String::new();
    for command in all {
        let known = ["localhost:4191/", "localhost:9990/"].iter().any(|at| command.contains(at));
        assert!(known, "{command} asks somebody else");
        let command = command.replace("localhost:9990", "10.244.0.1:9990");
        let (curl, rest) = command.split_once(" | ").unwrap_or((&command, "cat"));
        // What stands before a pipe may fail unseen.
        let output = up.stdout("shop/web", &["sh", "-c", &curl.replace("curl ", "curl --fail ")]);
        let script = format!("printf %s \"$0\" | {rest}");
        let result = up.exec("shop/web", &["sh", "-c", &script, &output]);
        let problem = String::from_utf8_lossy(&result.stderr);
        // grep found nothing to show: nothing is wrong here.
        let nothing = rest.starts_with("grep") && result.status.code() == Some(1);
        assert!((result.status.success() || nothing) && problem.is_empty(), "{command}: {problem}");
        shown.push_str(&String::from_utf8_lossy(&result.stdout));
    }
    assert!(
        shown.contains("\"target\": \"shop/nobody:80\""),
        "the failure is in /decisions: {shown}"
    );
    assert!(shown.contains("\"reason\": \"no-endpoints\""), "{shown}");
}
