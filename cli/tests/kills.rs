//! What is killed comes back, what is scaled is not noticed, and wrong input is answered in a
//! line: `remora up` and the programs by themselves.

#![allow(clippy::unwrap_used, reason = "the functions that tests share are tests too")]

mod harness;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, sync_channel},
};

use harness::{
    As, LONG, Up, in_namespace, meshed_shop, missing, pod, remora, service, wait_endpoints,
};

const CLIENT: &str = "shop/client";
/// Calls without a failure after which a Service is taken to be well again.
const ENOUGH: usize = 20;

/// A call that has returned.
#[derive(Debug)]
struct Call {
    /// Milliseconds since 1970, by the clock that `kill` reads too.
    at: u64,
    status: u16,
    /// curl's; 28 is a call that did not return in 5 s.
    exit: i32,
}

/// One call after the other, each on a connection of its own, until the mesh ends.
struct Calls {
    child: Child,
    returned: Receiver<Call>,
}

impl Calls {
    fn start(up: &Up, url: &str) -> Self {
        let script = format!(
            "while :; do r=$(curl -s -m5 -o /dev/null -w '%{{http_code}} %{{exitcode}}' {url}); \
             echo \"$(date +%s%3N) $r\"; sleep 0.02; done"
        );
        let mut command = remora(As::Me).unwrap();
        command.args(["exec", "--name", &up.name, "-n", "shop", "client", "--"]);
        command.args(["sh", "-c", &script]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (tx, returned) = sync_channel(100_000);
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| tx.send(parse(&line)))
        });
        Self { child, returned }
    }

    /// The next call that returned after this time.
    fn next_after(&self, at: u64) -> Call {
        loop {
            let call = self.returned.recv_timeout(LONG).unwrap();
            assert_ne!(call.exit, 28, "a call took 5 s: {call:?}");
            if call.at > at {
                return call;
            }
        }
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parse(line: &str) -> Call {
    let mut parts = line.split(' ');
    let mut part = || parts.next().unwrap();
    Call {
        at: part().parse().unwrap(),
        status: part().parse().unwrap(),
        exit: part().parse().unwrap(),
    }
}

/// Kills what this pattern finds in the mesh, and says when.
fn kill(up: &Up, pattern: &str) -> u64 {
    let script = "date +%s%3N; exec pkill -9 -f -- \"$0\"";
    up.stdout("outside/client", &["sh", "-c", script, pattern]).trim().parse().unwrap()
}

#[test]
fn whatever_is_killed_comes_back_and_no_call_hangs() {
    if missing("/usr/bin/curl", "curl") {
        return;
    }
    let serve = r#"[/usr/bin/python3, -m, http.server, "8000", -d, /etc]"#;
    let manifests = [meshed_shop(), pod("web-0", serve, 8000), service("web", 80)];
    let Some(mut up) = Up::start("kills", As::Me, &manifests.concat(), &[]) else { return };
    wait_endpoints(&up, &["shop/web-0"]);
    let calls = Calls::start(&up, "http://web/hostname");
    assert_eq!(calls.next_after(0).status, 200);
    for (pattern, said) in [
        ("proxy .*--pod-name client", "pod shop/client: proxy ended with status 137"),
        ("proxy .*--pod-name web-0", "pod shop/web-0: proxy ended with status 137"),
        ("^/proc/self/exe control-plane", "control plane ended with status 137"),
        ("http.server", "pod shop/web-0: container app ended with status 137"),
    ] {
        let killed = kill(&up, pattern);
        up.wait_for(&[said, "starting it again"]);
        let mut streak = 0;
        while streak < ENOUGH {
            let call = calls.next_after(killed);
            streak = if call.status == 200 { streak + 1 } else { 0 };
            assert!(streak > 0 || call.at < killed + 10_000, "{pattern}: {call:?}");
        }
    }
    let pods = [CLIENT, "shop/web-0", "outside/client"];
    let networks = pods.map(|pod| up.stdout(pod, &["readlink", "/proc/self/ns/net"]));
    assert!(networks.iter().all(|network| in_namespace(network.trim())));
    let pid = up.child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert_eq!(up.child.wait().unwrap().code(), Some(0));
    assert!(networks.iter().all(|network| !in_namespace(network.trim())));
    assert!(!Path::new("/run/remora").join(&up.name).exists());
    // Each end was said once.
    let again: Vec<_> = up.lines.iter().filter(|line| line.contains("status 137")).collect();
    assert!(again.is_empty(), "{again:#?}");
}

#[test]
fn replicas_come_and_go_without_a_failed_call() {
    if missing("/usr/bin/curl", "curl") {
        return;
    }
    let manifests = |replicas: u32| {
        format!(
            r#"{}{}---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, namespace: shop}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: app
        command: [/usr/bin/python3, -m, http.server, "8000", -d, /etc]
        ports: [{{name: app, containerPort: 8000}}]
        readinessProbe: {{httpGet: {{path: /hostname, port: app}}, periodSeconds: 1}}
"#,
            meshed_shop(),
            service("web", 80)
        )
    };
    let Some(up) = Up::start("replicas", As::Me, &manifests(3), &[]) else { return };
    wait_endpoints(&up, &["shop/web-0", "shop/web-1", "shop/web-2"]);
    let calls = Calls::start(&up, "http://web/hostname");
    // Reads every call until now, at least some.
    let well = |what: &str| {
        let now: u64 = up.stdout(CLIENT, &["date", "+%s%3N"]).trim().parse().unwrap();
        let mut seen = 0;
        loop {
            let call = calls.next_after(0);
            assert_eq!((call.status, call.exit), (200, 0), "{what}: {call:?}");
            seen += 1;
            if seen > ENOUGH && call.at > now {
                return;
            }
        }
    };
    well("three");
    for _ in 0..2 {
        up.edit(&manifests(1));
        up.wait_for(&["pod shop/web-", "is gone"]);
        up.wait_for(&["pod shop/web-", "is gone"]);
        well("one");
        up.edit(&manifests(3));
        up.wait_ready(&["shop/web-1", "shop/web-2"]);
        well("three again");
    }
}

/// A directory with what both programs want: manifests, tokens, a CA directory.
fn program_files() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["manifests", "tokens", "ca"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";
    fs::write(dir.path().join("manifests/a.yaml"), namespace).unwrap();
    fs::write(dir.path().join("token"), "0".repeat(64)).unwrap();
    dir
}

/// `remora control-plane` on ports of its own choice.
fn control_plane(files: &Path) -> Command {
    let mut command = remora(As::Me).unwrap();
    command.current_dir(files).arg("control-plane").args(["--manifests", "manifests"]);
    command.args(["--token-dir", "tokens", "--ca-dir", "ca"]);
    command.args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    command
}

/// `remora proxy` that trusts the file `bundle`.
fn proxy(files: &Path, admin: &str, control_plane: &str) -> Command {
    let mut command = remora(As::Me).unwrap();
    command.current_dir(files).arg("proxy").args(["--admin-listen", admin]);
    command.args(["--outbound-listen", "127.0.0.1:0", "--inbound-listen", "127.0.0.1:0"]);
    command.args(["--control-plane", control_plane, "--trust-bundle", "bundle"]);
    command.args(["--token-file", "token", "--pod-namespace", "shop", "--pod-name", "web-0"]);
    command.args(["--pod-ips", "127.0.0.1"]);
    command
}

/// A self-signed CA that is valid until the end of this year: certificate and key in PEM.
fn root(last_year: i32) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(last_year, 12, 31);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// Runs a program that must end at once, with one line that has all of these parts.
fn refuses(command: &mut Command, parts: &[&str]) {
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    assert!(parts.iter().all(|part| said.contains(part)), "{said}");
}

/// A program that runs until it is dropped, and what it logs.
struct Program {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStderr>>,
}

impl Program {
    fn start(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, lines }
    }

    fn wait_for(&mut self, part: &str) -> String {
        self.lines.find_map(|line| line.ok().filter(|line| line.contains(part))).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_ca_directory_that_cannot_be_used_is_refused_by_file() {
    let files = program_files();
    let ca = files.path().join("ca");
    let (certificate, key) = root(2100);
    let write = |certificate: &str, key: &str| {
        fs::write(ca.join("ca.crt"), certificate).unwrap();
        fs::write(ca.join("tls.crt"), certificate).unwrap();
        fs::write(ca.join("tls.key"), key).unwrap();
        fs::set_permissions(ca.join("tls.key"), fs::Permissions::from_mode(0o600)).unwrap();
    };
    write("no certificate", &key);
    refuses(&mut control_plane(files.path()), &["ca/ca.crt", "no certificate in it", "restore"]);
    write(&certificate, "no key");
    refuses(&mut control_plane(files.path()), &["ca/tls.key", "no private key", "restore"]);
    fs::remove_file(ca.join("ca.crt")).unwrap();
    refuses(&mut control_plane(files.path()), &["ca/ca.crt", "missing", "restore"]);
    let (expired, key) = root(2021);
    write(&expired, &key);
    refuses(&mut control_plane(files.path()), &["ca/tls.crt", "expired", "put a new CA"]);
}

#[test]
fn a_proxy_whose_admin_port_is_taken_says_so_and_ends() {
    let files = program_files();
    fs::write(files.path().join("bundle"), root(2100).0).unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = taken.local_addr().unwrap().to_string();
    refuses(&mut proxy(files.path(), &admin, "127.0.0.1:9"), &[&admin, "in use", "another"]);
}

#[test]
fn a_proxy_that_trusts_another_ca_names_it_and_is_not_ready() {
    let files = program_files();
    fs::write(files.path().join("bundle"), root(2100).0).unwrap();
    let mut control_plane = Program::start(control_plane(files.path()));
    let serving = control_plane.wait_for("control plane serving");
    let (_, address) = serving.split_once("listen=").unwrap();
    let address = address.split(' ').next().unwrap();
    // Taken and given back, so that most likely it is free.
    let admin = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut proxy = Program::start(proxy(files.path(), &admin, address));
    let warned = proxy.wait_for("no certificate");
    assert!(warned.contains(address) && warned.contains("trust bundle"), "{warned}");
    let mut stream = TcpStream::connect(&admin).unwrap();
    stream.write_all(b"GET /ready HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(" 503 ") && answer.contains("no certificate yet"), "{answer}");
}

#[test]
fn a_service_whose_target_port_no_container_has_is_answered_with_the_mend() {
    if missing("/usr/bin/curl", "curl") {
        return;
    }
    let serve = r#"[/usr/bin/python3, -m, http.server, "8000", -d, /etc]"#;
    let wrong = service("web", 80).replace("targetPort: app", "targetPort: none");
    let manifests = [meshed_shop(), pod("web-0", serve, 8000), wrong];
    let Some(up) = Up::start("target", As::Me, &manifests.concat(), &[]) else { return };
    up.wait_ready(&["shop/web-0", CLIENT]);
    let answer = up.stdout(CLIENT, &["curl", "-si", "-m2", "http://web/"]);
    let parts = [" 503 ", "remora-proxy-error: no-endpoints", "shop/web:80", "target port"];
    assert!(parts.iter().all(|part| answer.contains(part)), "{answer}");
}
