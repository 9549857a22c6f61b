//! What `remora up` says on the terminal, as people run it.

#![allow(clippy::unwrap_used, reason = "the functions that tests share are tests too")]

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    time::Duration,
};

/// Longest wait for a line; nothing takes this long where it works.
const LONG: Duration = Duration::from_secs(60);

/// A running mesh and what it says.
struct Up {
    child: Child,
    lines: Receiver<String>,
    _dir: tempfile::TempDir,
}

impl Up {
    fn start(name: &str, manifests: &str, flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), manifests).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_remora"))
            .arg("up")
            .arg(dir.path())
            .args(["--name", &format!("{name}-{}", std::process::id())])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (tell, lines) = sync_channel(1000);
        let said = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            said.lines().map_while(Result::ok).try_for_each(|line| tell.send(line))
        });
        Self { child, lines, _dir: dir }
    }

    /// All lines up to the one that contains `part`; `None` where this machine allows no `up`.
    fn until(&self, part: &str) -> Option<Vec<String>> {
        let mut said = Vec::new();
        loop {
            match self.lines.recv_timeout(LONG) {
                Ok(line) if line.contains("does not allow") => {
                    eprintln!("skipped: {line}");
                    return None;
                }
                Ok(line) => said.push(line),
                Err(RecvTimeoutError::Timeout) => panic!("no line with {part:?} in {said:#?}"),
                Err(RecvTimeoutError::Disconnected) => panic!("up ended: {said:#?}"),
            }
            if said.last().is_some_and(|line| line.contains(part)) {
                return Some(said);
            }
        }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_quiet_one_says_that_a_pod_is_ready_and_what_went_wrong() {
    let manifests = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n\
                     spec: {containers: [{name: c, command: [sleep, \"1000\"]}]}\n---\n\
                     apiVersion: v1\nkind: Pod\nmetadata: {name: q}\n\
                     spec: {containers: [{name: c, command: [\"false\"]}]}\n";
    let up = Up::start("quiet", manifests, &["--quiet"]);
    let Some(said) = up.until("pod default/p is ready at 10.244.") else { return };
    if !said.iter().any(|line| line.contains("container c ended with status 1")) {
        up.until("pod default/q: container c ended with status 1; starting it again");
    }
}

#[test]
fn a_mesh_all_of_whose_pods_are_refused_says_so_once() {
    let manifests = "apiVersion: v1\nkind: Pod\n\
                     metadata: {name: p, annotations: {remora.io/inject: \"true\"}}\n\
                     spec: {containers: [{name: c, command: [sleep, \"1000\"]}]}\n";
    let up = Up::start("refused", manifests, &[]);
    let Some(said) = up.until("logs are in") else { return };
    let with = |part: &str| said.iter().filter(|line| line.contains(part)).count();
    assert_eq!(with("pod default/p is not started: annotation remora.io/inject"), 1, "{said:#?}");
    assert_eq!(with("no pod runs: each was refused"), 1, "{said:#?}");
}
