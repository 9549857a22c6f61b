//! A mesh under test, and small manifests for it.

#![allow(clippy::unwrap_used, reason = "the functions that tests share are tests too")]
#![allow(unreachable_pub, dead_code, reason = "each test program uses a part")]

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    time::Duration,
};

/// Longest wait for anything; nothing takes this long where it works.
pub const LONG: Duration = Duration::from_secs(60);
/// A user without rights.
const NOBODY: &str = "65534";

/// Who runs `remora`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum As {
    Me,
    Nobody,
}

/// A mesh that is running.
pub struct Up {
    pub child: Child,
    pub lines: Receiver<String>,
    pub name: String,
    who: As,
    pub dir: tempfile::TempDir,
}

impl Up {
    /// Runs `remora up`; `None`, with the reason on the terminal, where this machine cannot.
    pub fn start(name: &str, who: As, manifests: &str, flags: &[&str]) -> Option<Self> {
        for needed in ["/usr/bin/python3", "/usr/bin/getent"] {
            if !Path::new(needed).exists() {
                eprintln!("skipped: there is no {needed}");
                return None;
            }
        }
        let name = format!("{name}-{}", std::process::id());
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(dir.path().join("a.yaml"), manifests).unwrap();
        let mut command = remora(who)?;
        command.arg("up").arg(dir.path()).args(["--name", &name]).args(flags);
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let (tx, lines) = sync_channel(10_000);
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            stderr.lines().map_while(Result::ok).try_for_each(|line| tx.send(line))
        });
        let up = Self { child, lines, name, who, dir };
        loop {
            match up.lines.recv_timeout(LONG) {
                Ok(line) if line.contains("does not allow") => {
                    eprintln!("skipped as {who:?}: {line}");
                    return None;
                }
                Ok(line) if line.contains("logs are in") => return Some(up),
                Ok(_) => {}
                Err(error) => panic!("up did not start: {error}"),
            }
        }
    }

    /// Waits for a line that contains all of these.
    pub fn wait_for(&self, parts: &[&str]) -> String {
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(LONG) {
                Ok(line) if parts.iter().all(|part| line.contains(part)) => return line,
                Ok(line) => seen.push(line),
                Err(RecvTimeoutError::Timeout) => panic!("no line with {parts:?} in {seen:#?}"),
                Err(RecvTimeoutError::Disconnected) => panic!("up ended: {seen:#?}"),
            }
        }
    }

    /// Waits until each of these pods has said that it is ready, in whatever order.
    pub fn wait_ready(&self, pods: &[&str]) {
        let mut left: Vec<&str> = pods.to_vec();
        while !left.is_empty() {
            let line = self.wait_for(&["is ready"]);
            left.retain(|pod| !line.contains(&format!("pod {pod} ")));
        }
    }

    pub fn exec(&self, pod: &str, command: &[&str]) -> Output {
        let (namespace, pod) = pod.split_once('/').unwrap();
        let mut exec = remora(self.who).unwrap();
        exec.args(["exec", "--name", &self.name, "-n", namespace, pod, "--"]).args(command);
        exec.output().unwrap()
    }

    pub fn stdout(&self, pod: &str, command: &[&str]) -> String {
        let output = self.exec(pod, command);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let problem = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {}: {text} {problem}", output.status);
        text
    }

    pub fn edit(&self, manifests: &str) {
        let file = self.dir.path().join("a.yaml");
        let part = self.dir.path().join(".a.part");
        fs::write(&part, manifests).unwrap();
        fs::rename(part, file).unwrap();
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `None` where this user cannot become that one.
pub fn remora(who: As) -> Option<Command> {
    let binary = env!("CARGO_BIN_EXE_remora");
    let mut command = match who {
        As::Me => Command::new(binary),
        As::Nobody => {
            let reachable = Command::new("setpriv")
                .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", binary, "--version"])
                .output();
            if !reachable.is_ok_and(|output| output.status.success()) {
                eprintln!("skipped as nobody: cannot run {binary} as another user");
                return None;
            }
            let mut command = Command::new("setpriv");
            command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", binary]);
            command.env_remove("XDG_RUNTIME_DIR").env("HOME", "/");
            command
        }
    };
    command.env("PATH", "/usr/local/bin:/usr/bin:/bin").current_dir("/").stdin(Stdio::null());
    Some(command)
}

/// Whether a process of this machine is in that network namespace.
pub fn in_namespace(link: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|process| fs::read_link(process.path().join("ns/net")).ok())
        .any(|theirs| theirs.as_os_str() == link)
}

/// Says so on the terminal when a program is not on this machine.
pub fn missing(program: &str, package: &str) -> bool {
    let missing = !Path::new(program).exists();
    if missing {
        eprintln!("skipped: there is no {program}; Debian's package is {package}");
    }
    missing
}

/// A namespace `shop` whose pods get sidecars, with `client` in it, and `outside/client` that has
/// none.
pub fn meshed_shop() -> String {
    let client = |namespace| {
        format!(
            "---\napiVersion: v1\nkind: Pod\n\
             metadata: {{name: client, namespace: {namespace}}}\n\
             spec: {{terminationGracePeriodSeconds: 1, \
             containers: [{{name: c, command: [sleep, \"1000\"]}}]}}\n"
        )
    };
    format!(
        "apiVersion: v1\nkind: Namespace\n\
         metadata: {{name: shop, annotations: {{remora.io/inject: enabled}}}}\n{}{}",
        client("shop"),
        client("outside"),
    )
}

/// Waits until these pods and the clients are ready and the control plane knows the pods as
/// endpoints, which is a moment later.
pub fn wait_endpoints(up: &Up, pods: &[&str]) {
    up.wait_ready(&[pods, &["shop/client", "outside/client"]].concat());
    for pod in pods {
        let name = pod.split('/').next_back().unwrap();
        let known = format!(
            "until curl -s http://10.244.0.1:9990/services | grep -q '\"pod\":\"{name}\"'; \
             do sleep 0.05; done"
        );
        up.stdout(pod, &["timeout", "20", "sh", "-c", &known]);
    }
}

/// A pod of `shop` that is ready when its program accepts; its label `app` is its name up to `-`.
/// The probe asks inside the pod: for `tcpSocket` it is the sidecar that accepts.
pub fn pod(name: &str, command: &str, port: u16) -> String {
    let app = name.split('-').next().unwrap();
    format!(
        r#"---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop, labels: {{app: {app}}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: app
    command: {command}
    env: [{{name: POD_IP, valueFrom: {{fieldRef: {{fieldPath: status.podIP}}}}}}]
    ports: [{{name: app, containerPort: {port}}}]
    readinessProbe:
      exec: {{command: [bash, -c, "exec 3<>/dev/tcp/127.0.0.1/{port}"]}}
      periodSeconds: 1
"#
    )
}

/// A Service of `shop` for the pods of that `app`.
pub fn service(app: &str, port: u16) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {app}, namespace: shop}}\n\
         spec: {{selector: {{app: {app}}}, ports: [{{port: {port}, targetPort: app}}]}}\n"
    )
}

/// What a pod's proxy counts under this series; 0 before its first count.
pub fn metric(up: &Up, pod: &str, series: &str) -> u64 {
    let metrics = up.stdout(pod, &["curl", "-s", "-m5", "http://127.0.0.1:4191/metrics"]);
    let value = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse().unwrap())
}

/// The series of connections in this direction.
pub fn connections(direction: &str, tls: &str) -> String {
    format!("remora_tcp_connections_total{{direction=\"{direction}\",tls=\"{tls}\"}}")
}
