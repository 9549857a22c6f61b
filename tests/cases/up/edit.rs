//! Manifests edited while they run.

use std::{process::Stdio, time::Duration};

use super::{
    manifests::{idle, namespace, teller},
    mesh::{As, Up, eventually, installed, timed},
};

const URL: &str = "http://files/hostname";

fn mesh(name: &str, replicas: u32) -> Option<Up> {
    if !installed(&[("python3", "python3"), ("curl", "curl")]) {
        return None;
    }
    let up = Up::start(name, As::Me, &manifests(true, replicas))?;
    up.wait_ready(0, &["shop/files-0", "shop/client", "outside/observer"]);
    Some(up)
}

fn manifests(meshed: bool, replicas: u32) -> String {
    [
        namespace("shop", meshed),
        teller("shop", "files", replicas),
        idle("shop", "client"),
        idle("outside", "observer"),
    ]
    .concat()
}

#[test]
fn a_new_replica_gets_traffic_within_two_seconds_of_ready() {
    let Some(up) = mesh("grow", 1) else { return };
    up.get_soon("shop/client", URL);
    let mark = up.mark();
    up.edit(&manifests(true, 2));
    up.wait_ready(mark, &["shop/files-1"]);
    let (took, ()) = timed(|| {
        eventually("the new replica answers", || {
            (up.get("shop/client", URL).unwrap() == "files-1").then_some(())
        });
    });
    assert!(took < Duration::from_secs(2), "traffic {took:?} after ready");
}

#[test]
fn a_replica_leaves_under_load_without_a_lost_request() {
    let Some(up) = mesh("shrink", 3) else { return };
    up.wait_ready(0, &["shop/files-1", "shop/files-2"]);
    let script = format!(
        "while [ ! -e @STOP@ ]; do curl -sS --fail --max-time 5 -o /dev/null {URL} && echo ok || echo lost; done"
    );
    let stop = up.dir.path().join("stop");
    let script = script.replace("@STOP@", stop.to_str().unwrap());
    let mut load = up.command("shop/client", &["sh", "-c", &script]);
    let load = load.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mark = up.mark();
    up.edit(&manifests(true, 1));
    for pod in ["shop/files-1", "shop/files-2"] {
        up.wait_for(mark, &[&format!("pod {pod} is gone")]);
    }
    std::fs::write(stop, "").unwrap();
    let output = load.wait_with_output().unwrap();
    let (said, problems) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(said.matches("ok").count() > 2, "{said} {problems}");
    assert_eq!(said.matches("lost").count(), 0, "{said} {problems}");
}

#[test]
fn a_route_holds_for_as_long_as_it_is_in_the_directory() {
    if !installed(&[("python3", "python3"), ("curl", "curl")]) {
        return;
    }
    let plain = manifests(true, 1) + &teller("shop", "others", 1);
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
                 metadata: {name: elsewhere, namespace: shop}\nspec:\n\
                 \x20 parentRefs: [{group: '', kind: Service, name: files, port: 80}]\n\
                 \x20 rules: [{backendRefs: [{name: others, port: 80}]}]\n---\n";
    let Some(up) = Up::start("routed", As::Me, &(plain.clone() + route)) else { return };
    up.wait_ready(0, &["shop/files-0", "shop/others-0", "shop/client"]);
    let reaches = |pod: &str| {
        eventually(&format!("files leads to {pod}"), || {
            (up.get("shop/client", URL).ok()? == pod).then_some(())
        });
    };
    reaches("others-0");
    up.edit(&plain);
    reaches("files-0");
}

#[test]
fn disabling_injection_takes_the_sidecars_away() {
    let Some(up) = mesh("disable", 1) else { return };
    assert!(up.proxy("shop/files-0").is_some());
    let mark = up.mark();
    up.edit(&manifests(false, 1));
    for pod in ["shop/files-0", "shop/client"] {
        up.wait_for(mark, &[&format!("pod {pod} is gone")]);
    }
    up.wait_ready(mark, &["shop/files-0", "shop/client"]);
    assert_eq!(up.proxy("shop/files-0"), None);
    assert_eq!(up.proxy("shop/client"), None);
    assert_eq!(up.get_soon("shop/client", URL), "files-0");
}

#[test]
fn a_bad_edit_is_one_line_and_what_was_in_force_stays() {
    let Some(up) = mesh("bad", 1) else { return };
    up.get_soon("shop/client", URL);
    for (bad, parts) in [
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: BAD}\nspec: {containers: [{name: c}]}\n",
            &["mesh.yaml", "BAD"][..],
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers: [\n",
            &["mesh.yaml:5"][..],
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n  ports: [{port: eighty}]\n",
            &["mesh.yaml:", "port"][..],
        ),
    ] {
        let mark = up.mark();
        up.edit(bad);
        up.wait_for(mark, &[parts, &["what was in force stays"][..]].concat());
        assert_eq!(up.get("shop/client", URL).as_deref(), Ok("files-0"), "after {bad}");
        let said = up.lines(mark, &["mesh.yaml"]);
        assert_eq!(said.len(), 1, "{said:?}");
    }
    // And a good one is in force again.
    let mark = up.mark();
    up.edit(&manifests(true, 2));
    up.wait_ready(mark, &["shop/files-1"]);
}
