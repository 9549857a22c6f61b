//! SIGKILL to each of the processes: no hang, one line, recovery, nothing left.

use std::{path::Path, time::Duration};

use super::{
    manifests::{idle, namespace, teller},
    mesh::{As, Up, both, eventually, inhabited, installed, sigkill, timed},
};

/// A call that a death has cut off has ended by then, whatever its result.
const PROMPT: Duration = Duration::from_secs(6);
const URL: &str = "http://files/hostname";

fn mesh(name: &str, who: As) -> Option<Up> {
    if !installed(&[("python3", "python3"), ("curl", "curl")]) {
        return None;
    }
    let up = Up::start(name, who, &manifests())?;
    up.wait_ready(0, &PODS);
    up.spread("shop/client", URL, 2);
    Some(up)
}

const PODS: [&str; 4] = ["shop/files-0", "shop/files-1", "shop/client", "outside/observer"];

fn manifests() -> String {
    [
        namespace("shop", true),
        teller("shop", "files", 2),
        idle("shop", "client"),
        idle("outside", "observer"),
    ]
    .concat()
}

/// Kills, sees that nobody hangs and that it comes back, and that it was said once.
fn killed(up: &Up, label: &str, find: impl Fn() -> Option<i32>) {
    let mark = up.mark();
    let old = find().expect("it runs");
    sigkill(old);
    let (took, _) = timed(|| up.get("shop/client", URL));
    assert!(took < PROMPT, "a call after the death of {label} took {took:?}");
    up.wait_for(mark, &[label, "ended with status 137", "starting it again"]);
    eventually(label, || find().filter(|pid| *pid != old));
    up.get_soon("shop/client", URL);
    let said = up.lines(mark, &[label, "ended"]);
    assert_eq!(said.len(), 1, "{said:?}");
}

#[test]
fn a_killed_process_is_started_again_and_nobody_hangs() {
    both(|who| {
        let Some(mut up) = mesh("killed", who) else { return };
        killed(&up, "pod shop/client: proxy", || up.proxy("shop/client"));
        killed(&up, "pod shop/files-0: proxy", || up.proxy("shop/files-0"));
        killed(&up, "control plane", || up.control_plane());

        let mark = up.mark();
        let script = "for p in /proc/[0-9]*; do [ $(readlink $p/ns/net) = $(readlink /proc/self/ns/net) ] && grep -qa http.server $p/cmdline && ! grep -qa readlink $p/cmdline && kill -9 ${p#/proc/}; done; true";
        up.stdout("shop/files-1", &["sh", "-c", script]);
        let (took, _) = timed(|| up.get("shop/client", URL));
        assert!(took < PROMPT, "a call after the death of the application took {took:?}");
        up.wait_for(mark, &["pod shop/files-1: container app", "status 137"]);
        up.wait_ready(mark, &["shop/files-1"]);
        eventually("both replicas serve", || {
            (up.answers("shop/client", URL, 10).ok()?.len() == 2).then_some(())
        });
        assert_eq!(up.lines(mark, &["files-1: container app", "ended"]).len(), 1);

        let (state, networks) = (up.state(), PODS.map(|pod| up.network(pod)));
        assert_eq!(up.interrupt(), Some(0));
        assert_nothing_left(&state, &networks);
        assert!(!state.exists(), "{} is left", state.display());
    });
}

#[test]
fn a_killed_control_plane_leaves_calls_as_they_are() {
    let Some(up) = mesh("outage", As::Me) else { return };
    sigkill(up.control_plane().unwrap());
    // These fall into its absence; none of them may notice.
    up.answers("shop/client", URL, 24).unwrap();
}

#[test]
fn a_killed_up_leaves_nothing_and_its_name_is_free() {
    both(|who| {
        let Some(up) = mesh("upkill", who) else { return };
        let (state, networks) = (up.state(), PODS.map(|pod| up.network(pod)));
        let (dir, name) = up.kill();
        assert_nothing_left(&state, &networks);
        let mut up = Up::again(dir, &name, who, &manifests());
        up.wait_ready(0, &PODS);
        up.spread("shop/client", URL, 2);
        assert_eq!(up.interrupt(), Some(0));
        assert!(!state.exists(), "{} is left", state.display());
    });
}

fn assert_nothing_left(state: &Path, networks: &[String]) {
    eventually(&format!("the networks of {} are empty", state.display()), || {
        networks.iter().all(|network| !inhabited(network)).then_some(())
    });
}
