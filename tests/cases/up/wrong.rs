//! Wrong input: one line that says what, where and the mend, and the right exit status.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
};

use super::{
    manifests::teller,
    mesh::{As, Up, installed, open_dir, remora},
};

/// A program that must end by itself: status and what it said.
fn run(args: &[&str]) -> (Option<i32>, String) {
    let output = remora(As::Me).unwrap().args(args).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// It failed with one line that has all of these.
#[track_caller]
fn assert_one_line(args: &[&str], parts: &[&str]) {
    let (code, said) = run(args);
    assert_eq!(code, Some(1), "{said}");
    let complaints: Vec<&str> = said.lines().filter(|l| l.starts_with("remora: ")).collect();
    assert_eq!(complaints.len(), 1, "{said}");
    for part in parts {
        assert!(complaints[0].contains(part), "{part:?} is not in {said}");
    }
}

fn up_on(text: &str) -> (tempfile::TempDir, String) {
    let dir = open_dir();
    fs::write(dir.path().join("a.yaml"), text).unwrap();
    let path = dir.path().to_str().unwrap().to_owned();
    (dir, path)
}

#[test]
fn an_unknown_flag_is_wrong_usage() {
    for program in ["up", "proxy", "control-plane", "exec", "demo"] {
        let (code, said) = run(&[program, "--no-such-flag"]);
        assert_eq!(code, Some(2), "{program}: {said}");
        assert!(said.contains("--no-such-flag"), "{program}: {said}");
    }
}

#[test]
fn unreadable_manifests_name_file_and_place() {
    let (_dir, path) =
        up_on("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers: [\n");
    assert_one_line(&["up", &path], &["a.yaml:5"]);
    let (_dir, path) =
        up_on("apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: x}]}\n");
    assert_one_line(&["up", &path], &["a.yaml:", "port"]);
    assert_one_line(&["up", "/no/such/directory"], &["/no/such/directory"]);
}

#[test]
fn a_service_port_that_no_pod_has_is_named() {
    if !installed(&[("python3", "python3")]) {
        return;
    }
    let good = teller("shop", "files", 2);
    let bad = good.replace("targetPort: main", "targetPort: nope");
    let Some(up) = Up::start("noport", As::Me, &bad) else { return };
    let line = up.wait_for(0, &["shop/files", "nope"]);
    assert!(line.contains("targetPort"), "{line}");
    up.wait_ready(0, &["shop/files-0", "shop/files-1"]);
    assert_eq!(up.lines(0, &["nope"]).len(), 1);
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let files = Files::new();
    let mut args = files.proxy("127.0.0.1:1");
    args.extend(["--admin-listen".into(), address.clone()]);
    assert_one_line(&words(&args), &[&address, "in use"]);
    let args = files.control_plane(&address, "127.0.0.1:0");
    assert_one_line(&words(&args), &[&address, "in use"]);
}

#[test]
fn a_corrupt_ca_file_is_named() {
    let files = Files::new();
    for name in ["ca.crt", "tls.crt", "tls.key"] {
        files.ca(name, "no certificate\n");
    }
    assert_one_line(&words(&files.control_plane("127.0.0.1:0", "127.0.0.1:0")), &["ca"]);
}

#[test]
fn an_expired_ca_is_named() {
    let files = Files::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2020, 1, 2);
    let certificate = params.self_signed(&key).unwrap().pem();
    for (name, text) in
        [("ca.crt", &certificate), ("tls.crt", &certificate), ("tls.key", &key.serialize_pem())]
    {
        files.ca(name, text);
    }
    let args = files.control_plane("127.0.0.1:0", "127.0.0.1:0");
    assert_one_line(&words(&args), &["expired", "crt"]);
}

#[test]
fn a_foreign_control_plane_is_not_believed() {
    let (one, other) = (Files::new(), Files::new());
    let (grpc, admin) = (free_port(), free_port());
    let mut plane = Kept::start(&one.control_plane(&grpc, &admin));
    plane.wait_file(&one.path().join("bundle.pem"));
    // The other's roots, for a proxy of the one.
    let mut foreign = Kept::start(&other.control_plane("127.0.0.1:0", "127.0.0.1:0"));
    foreign.wait_file(&other.path().join("bundle.pem"));
    let admin = free_port();
    let mut args = other.proxy(&grpc);
    args.extend(["--admin-listen".into(), admin.clone()]);
    let mut proxy = Kept::start(&args);
    let line = proxy.wait_line(&["WARN"]);
    assert!(line.contains(&grpc), "{line}");
    assert_eq!(status(&admin, "/ready"), 503);
    assert_eq!(status(&admin, "/live"), 200);
}

/// What the two programs are told to use.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let dir = open_dir();
        for sub in ["manifests", "tokens", "ca"] {
            fs::create_dir(dir.path().join(sub)).unwrap();
        }
        fs::write(dir.path().join("token"), "0".repeat(64)).unwrap();
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn ca(&self, name: &str, text: &str) {
        let path = self.path().join("ca").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn at(&self, name: &str) -> String {
        self.path().join(name).to_str().unwrap().to_owned()
    }

    fn control_plane(&self, listen: &str, admin: &str) -> Vec<String> {
        let mut args = vec!["control-plane".to_owned()];
        for (flag, value) in [
            ("--manifests", self.at("manifests")),
            ("--token-dir", self.at("tokens")),
            ("--ca-dir", self.at("ca")),
            ("--trust-bundle-out", self.at("bundle.pem")),
            ("--listen", listen.to_owned()),
            ("--admin-listen", admin.to_owned()),
        ] {
            args.extend([flag.to_owned(), value]);
        }
        args
    }

    fn proxy(&self, control_plane: &str) -> Vec<String> {
        let mut args = vec!["proxy".to_owned()];
        for (flag, value) in [
            ("--outbound-listen", "127.0.0.1:0".to_owned()),
            ("--inbound-listen", "127.0.0.1:0".to_owned()),
            ("--control-plane", control_plane.to_owned()),
            ("--trust-bundle", self.at("bundle.pem")),
            ("--token-file", self.at("token")),
            ("--pod-namespace", "shop".to_owned()),
            ("--pod-name", "p".to_owned()),
            ("--pod-ips", "127.0.0.1".to_owned()),
        ] {
            args.extend([flag.to_owned(), value]);
        }
        args
    }
}

fn words(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// A program that runs until it is dropped.
struct Kept {
    child: std::process::Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Kept {
    fn start(args: &[String]) -> Self {
        use std::io::BufRead;
        let mut command: Command = remora(As::Me).unwrap();
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (tx, lines) = std::sync::mpsc::sync_channel(10_000);
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let copy = tx.clone();
        std::thread::spawn(move || {
            std::io::BufReader::new(out)
                .lines()
                .map_while(Result::ok)
                .try_for_each(|l| copy.send(l))
        });
        std::thread::spawn(move || {
            std::io::BufReader::new(err).lines().map_while(Result::ok).try_for_each(|l| tx.send(l))
        });
        Self { child, lines }
    }

    fn wait_line(&mut self, parts: &[&str]) -> String {
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(std::time::Duration::from_secs(20)) {
                Ok(line) if parts.iter().all(|part| line.contains(part)) => return line,
                Ok(line) => seen.push(line),
                Err(_) => panic!("no line with {parts:?} in {seen:#?}"),
            }
        }
    }

    fn wait_file(&mut self, file: &Path) {
        super::mesh::eventually(&file.display().to_string(), || file.exists().then_some(()));
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Taken and given back, so that most likely it is free.
fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Status of a GET by hand: nothing need be installed.
fn status(address: &str, path: &str) -> u16 {
    use std::io::{Read, Write};
    let answer = super::mesh::eventually(&format!("{address} accepts"), || {
        let mut stream = std::net::TcpStream::connect(address).ok()?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    });
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}
