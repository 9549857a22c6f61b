//! What a mesh of `remora up` says of itself: `endpoints`, `routes`, `top`, `why`, `why-endpoint`,
//! `diag`, as root and as an ordinary user.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use super::{
    manifests::{idle, namespace, teller},
    mesh::{As, Up, both, eventually, installed, remora},
};

/// Somebody's secret, in an environment and in a query.
const PLANTED: &str = "hunter2hunter2";

fn mesh(name: &str, who: As) -> Option<Up> {
    if !installed(&[("python3", "python3"), ("curl", "curl")]) {
        return None;
    }
    let keeper = idle("shop", "client")
        .replace("{name: c,", &format!("{{name: c, env: [{{name: PASSWORD, value: {PLANTED}}}],"));
    let manifests = [namespace("shop", true), teller("shop", "files", 2), keeper].concat();
    let up = Up::start(name, who, &manifests)?;
    up.wait_ready(0, &["shop/files-0", "shop/files-1", "shop/client"]);
    up.get_soon("shop/client", &format!("http://files/hostname?k={PLANTED}"));
    Some(up)
}

fn run(up: &Up, who: As, words: &[&str]) -> Output {
    let mut command = remora(who).unwrap();
    command.args(words).args(["--name", &up.name]).output().unwrap()
}

fn stdout(up: &Up, who: As, words: &[&str]) -> String {
    let output = run(up, who, words);
    assert!(output.status.success(), "{words:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(up: &Up, who: As, words: &[&str]) -> Value {
    serde_json::from_str(&stdout(up, who, &[words, &["--json"]].concat())).unwrap()
}

/// The address of a ready endpoint, once the caller's proxy knows both.
fn endpoint(up: &Up, who: As) -> String {
    eventually("the caller knows both endpoints", || {
        let seen = json(up, who, &["endpoints", "files.shop"]);
        let endpoints = seen["services"][0]["endpoints"].as_array()?;
        let ready = endpoints.iter().filter(|endpoint| endpoint["state"] == "ready");
        (ready.count() == 2).then(|| endpoints[0]["address"].as_str().unwrap().to_owned())
    })
}

#[test]
fn a_local_mesh_is_found_and_its_proxies_say_what_they_see() {
    both(|who| {
        let Some(up) = mesh("observe", who) else { return };
        let address = endpoint(&up, who);
        let seen = json(&up, who, &["endpoints", "files"]);
        assert_eq!((&seen["proxies"], &seen["unreachable"]), (&3.into(), &serde_json::json!([])));
        assert_eq!(seen["services"][0]["endpoints"][0]["known_to"], 1);

        let output = run(&up, who, &["top"]);
        let table = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(table.contains("shop/files:80") && table.contains("2 of 2 ready"), "{table}");
        let said = stderr(&output);
        let mesh = format!("3 of 3 proxies answer in the mesh {} on this machine", up.name);
        assert!(said.contains(&mesh), "{said}");
        assert!(stdout(&up, who, &["routes"]).contains("no routes"));
        assert!(stdout(&up, who, &["why-endpoint", &address]).contains(&address));

        let unknown = run(&up, who, &["why", "0123456789abcdef"]);
        assert_eq!(unknown.status.code(), Some(1));
        assert!(stderr(&unknown).contains("no decision 0123456789abcdef: 3 proxies were asked"));
        let nowhere = run(&up, who, &["endpoints", "--namespace", "nowhere"]);
        assert_eq!(nowhere.status.code(), Some(1));
        assert!(stderr(&nowhere).contains("no proxy runs in namespace nowhere"));
        assert_eq!(run(&up, who, &["why", "no-id"]).status.code(), Some(2));
    });
}

#[test]
fn an_archive_of_a_local_mesh_has_its_logs_and_answers_and_no_secret() {
    both(|who| {
        let Some(up) = mesh("diag", who) else { return };
        let file = up.dir.path().join("diag.tar");
        stdout(&up, who, &["diag", "--output", file.to_str().unwrap()]);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let bytes = fs::read(&file).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        for part in [
            "remora-diag/versions.json",
            "remora-diag/proxies/shop/client/endpoints.json",
            "remora-diag/proxies/shop/files-1/certs.json",
            "remora-diag/control-plane/remora-system/control-plane/services.json",
            "remora-diag/logs/control-plane.log",
            "remora-diag/logs/shop_client.proxy.log",
            "remora-diag/MANIFEST.txt",
        ] {
            assert!(text.contains(part), "no {part} in the archive");
        }
        assert!(!text.contains(PLANTED), "a secret is in the archive");
        for entry in fs::read_dir(up.state().join("proxies")).unwrap().flatten() {
            if entry.path().extension().is_some_and(|ending| ending == "token") {
                let token = fs::read_to_string(entry.path()).unwrap();
                assert!(!text.contains(token.trim()), "a token is in the archive");
            }
        }
    });
}

#[test]
fn top_on_a_terminal_is_redrawn_obeys_keys_and_leaves_the_terminal_as_it_was() {
    if !installed(&[("script", "bsdutils"), ("stty", "coreutils")]) {
        return;
    }
    let who = As::Me;
    let Some(up) = mesh("top", who) else { return };
    let binary = env!("CARGO_BIN_EXE_remora-under-test");
    let shell = format!("stty -a > before; {binary} top --name {}; stty -a > after", up.name);
    let mut script = Command::new("script")
        .args(["-q", "-e", "-f", "-c", &shell, "typescript"])
        .current_dir(up.dir.path())
        .env_remove("NO_COLOR")
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let drawn = |part: &str| {
        eventually(&format!("{part:?} is drawn"), || {
            let text = fs::read(up.dir.path().join("typescript")).ok()?;
            String::from_utf8_lossy(&text).contains(part).then_some(())
        });
    };
    let mut keys = script.stdin.take().unwrap();
    let mut press = |key: &str| {
        use std::io::Write;
        keys.write_all(key.as_bytes()).unwrap();
        keys.flush().unwrap();
    };
    drawn("\x1b[?1049h");
    drawn("shop/files:80");
    drawn("by rps");
    press("s");
    drawn("by success");
    press("q");
    assert!(script.wait().unwrap().success());
    drawn("\x1b[?1049l");
    let state = |file: &str| fs::read_to_string(up.dir.path().join(file)).unwrap();
    assert_eq!(state("before"), state("after"));
}

#[test]
fn a_request_that_is_tapped_is_told_by_its_id_from_both_sides() {
    both(|who| {
        let Some(up) = mesh("tap", who) else { return };
        let mut tap = remora(who).unwrap();
        tap.args(["tap", "files.shop", "--max", "1", "--json", "--name", &up.name]);
        let mut tap = tap.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(tap.stderr.take().unwrap()).lines();
        assert!(said.next().unwrap().unwrap().contains("listening to 3 proxies"));
        let explained = ["curl", "-s", "-o", "/dev/null", "-H", "remora-explain: 1"];
        up.stdout("shop/client", &[&explained[..], &["http://files/hostname"]].concat());
        let record = tap.wait_with_output().unwrap();
        let record: Value = serde_json::from_slice(&record.stdout).unwrap();
        assert_eq!((&record["proxy"], &record["status"]), (&"shop/client".into(), &200.into()));
        let id = record["id"].as_str().unwrap();
        let story = stdout(&up, who, &["why", id]);
        let story = story.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(story.starts_with("The proxy of shop/client took GET /hostname"), "{story}");
        assert!(story.contains("Attempt 1, ") && story.contains("over mTLS"), "{story}");
        assert!(
            story.contains("took GET /hostname from spiffe://cluster.local/ns/shop/sa/default"),
            "{story}"
        );
    });
}
