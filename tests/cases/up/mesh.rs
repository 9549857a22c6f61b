//! A running `remora up`, its output, and the ways into its pods.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};

/// Longest wait for anything; nothing takes this long where it works.
const LONG: Duration = Duration::from_secs(30);
/// Meshes at a time: each has a dozen processes, and the machine may have two cores.
const AT_A_TIME: usize = 2;
/// A user without rights.
const NOBODY: &str = "65534";
/// Quiet but for failures, which say why where a proxy made the answer itself.
const CURL: &[&str] =
    &["-sS", "--fail", "--max-time", "5", "-w", "%{stderr}%header{remora-proxy-error}"];
/// Between two looks at a fact that nothing announces.
const LOOK: Duration = Duration::from_millis(20);

/// Who runs `remora`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum As {
    Me,
    Nobody,
}

/// A mesh that is running; dropped, it is killed.
pub(crate) struct Up {
    child: Child,
    said: Arc<Said>,
    pub(crate) name: String,
    who: As,
    pub(crate) dir: tempfile::TempDir,
    _turn: Turn,
}

/// What `up` itself has said so far, and whether it has ended.
#[derive(Default)]
struct Said {
    lines: Mutex<(Vec<String>, bool)>,
    more: Condvar,
}

impl Up {
    /// Runs `remora up` on manifests that may name their own directory as `@DIR@`; `None`, with
    /// the reason on the terminal, where this machine cannot.
    pub(crate) fn start(name: &str, who: As, manifests: &str) -> Option<Self> {
        let turn = Turn::take();
        let dir = open_dir();
        Self::start_in(dir, &format!("{name}-{}", std::process::id()), who, manifests, turn)
    }

    /// The same with a directory that holds files already.
    pub(crate) fn start_with(
        dir: tempfile::TempDir,
        name: &str,
        who: As,
        manifests: &str,
    ) -> Option<Self> {
        let turn = Turn::take();
        Self::start_in(dir, &format!("{name}-{}", std::process::id()), who, manifests, turn)
    }

    fn start_in(
        dir: tempfile::TempDir,
        name: &str,
        who: As,
        manifests: &str,
        turn: Turn,
    ) -> Option<Self> {
        write_manifests(dir.path(), manifests);
        let mut command = remora(who)?;
        command.arg("up").arg(dir.path()).args(["--name", name]);
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let said = Arc::new(Said::default());
        let (writer, stderr) = (Arc::clone(&said), child.stderr.take().unwrap());
        std::thread::spawn(move || writer.follow(BufReader::new(stderr)));
        let up = Self { child, said, name: name.to_owned(), who, dir, _turn: turn };
        let first = up.said.wait(|lines| {
            lines
                .iter()
                .find(|l| l.contains("does not allow") || l.contains("logs are in"))
                .cloned()
        });
        if first.contains("does not allow") {
            eprintln!("skipped as {who:?}: {first}");
            return None;
        }
        Some(up)
    }

    /// How many lines were said so far: a place to look from.
    pub(crate) fn mark(&self) -> usize {
        self.said.lines.lock().unwrap().0.len()
    }

    /// Waits for a line after `mark` that contains all of these.
    pub(crate) fn wait_for(&self, mark: usize, parts: &[&str]) -> String {
        self.said.wait(|lines| {
            lines[mark..].iter().find(|line| parts.iter().all(|p| line.contains(p))).cloned()
        })
    }

    /// The lines after `mark` that contain all of these, so far.
    pub(crate) fn lines(&self, mark: usize, parts: &[&str]) -> Vec<String> {
        let lines = self.said.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let matching = lines.0[mark..].iter().filter(|l| parts.iter().all(|p| l.contains(p)));
        matching.cloned().collect()
    }

    /// Waits until each of these pods has said, after `mark`, that it is ready.
    pub(crate) fn wait_ready(&self, mark: usize, pods: &[&str]) {
        for pod in pods {
            self.wait_for(mark, &[&format!("pod {pod} is ready")]);
        }
    }

    /// The address with which a pod was last announced.
    pub(crate) fn address(&self, pod: &str) -> String {
        let line = self.lines(0, &[&format!("pod {pod} is ready at ")]).pop().unwrap();
        line.rsplit(' ').next().unwrap().to_owned()
    }

    /// `remora exec` in `namespace/pod`.
    pub(crate) fn command(&self, pod: &str, command: &[&str]) -> Command {
        let (namespace, pod) = pod.split_once('/').unwrap();
        let mut exec = remora(self.who).unwrap();
        exec.args(["exec", "--name", &self.name, "-n", namespace, pod, "--"]).args(command);
        exec
    }

    pub(crate) fn exec(&self, pod: &str, command: &[&str]) -> Output {
        self.command(pod, command).output().unwrap()
    }

    /// Output of a command that must succeed.
    pub(crate) fn stdout(&self, pod: &str, command: &[&str]) -> String {
        let output = self.exec(pod, command);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let problem = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {}: {text} {problem}", output.status);
        text
    }

    /// GET by curl; the body, or what curl or the status said.
    pub(crate) fn get(&self, from: &str, url: &str) -> Result<String, String> {
        let output = self.exec(from, &[&["curl"], CURL, &[url]].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// GET until it succeeds; nothing announces that a caller has learnt of a change.
    pub(crate) fn get_soon(&self, from: &str, url: &str) -> String {
        eventually(&format!("GET {url} from {from}"), || self.get(from, url).ok())
    }

    /// Calls until so many different pods have answered. Peak EWMA rightly prefers the endpoint
    /// that was fastest so far, so this takes an unknown number of calls; none of them may fail
    /// once the first has succeeded.
    pub(crate) fn spread(&self, from: &str, url: &str, pods: usize) -> BTreeSet<String> {
        let mut seen = eventually(&format!("{url} answers"), || self.answers(from, url, 1).ok());
        eventually(&format!("{pods} pods answer {url}"), || {
            let more = self.answers(from, url, 24);
            seen.extend(more.unwrap_or_else(|problem| panic!("{url}: {problem}")));
            (seen.len() >= pods).then(|| std::mem::take(&mut seen))
        })
    }

    /// The different answers of so many calls, six at a time; what curl said where one failed.
    pub(crate) fn answers(
        &self,
        from: &str,
        url: &str,
        calls: u32,
    ) -> Result<BTreeSet<String>, String> {
        let script = format!(
            "seq {calls} | xargs -P 6 -I@ curl -sS --fail --max-time 5 \
             -w '%{{stderr}}%header{{remora-proxy-error}}' {url}"
        );
        let output = self.exec(from, &["sh", "-c", &script]);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            return Err(text(&output.stderr));
        }
        Ok(text(&output.stdout).lines().map(str::to_owned).collect())
    }

    /// Sum of a proxy's series whose name and labels contain all of these; `from` is a pod
    /// without a sidecar.
    pub(crate) fn metric(&self, from: &str, pod: &str, parts: &[&str]) -> f64 {
        let text = self.get(from, &format!("http://{}:4191/metrics", self.address(pod))).unwrap();
        let series = text.lines().filter(|l| !l.starts_with('#'));
        series
            .filter(|line| parts.iter().all(|part| line.contains(part)))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Replaces the manifests in one step.
    pub(crate) fn edit(&self, manifests: &str) {
        write_manifests(self.dir.path(), manifests);
    }

    /// Process id of this mesh's sidecar of a pod.
    pub(crate) fn proxy(&self, pod: &str) -> Option<i32> {
        let token = format!("/{}/proxies/{}.token", self.name, pod.replace('/', "_"));
        process(|words| words.get(1).is_some_and(|w| w == "proxy") && contains(words, &token))
    }

    /// Process id of this mesh's control plane.
    pub(crate) fn control_plane(&self) -> Option<i32> {
        let resolved = format!("/{}/resolved", self.name);
        process(|words| {
            words.get(1).is_some_and(|w| w == "control-plane") && contains(words, &resolved)
        })
    }

    /// Ends `up` as Ctrl-C does; its exit status.
    pub(crate) fn interrupt(&mut self) -> Option<i32> {
        signal(i32::try_from(self.child.id()).unwrap(), Signal::SIGINT);
        self.child.wait().unwrap().code()
    }

    /// SIGKILL to the outer process; the directory stays for another `up` of the same name.
    pub(crate) fn kill(mut self) -> (tempfile::TempDir, String) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        (std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap()), self.name.clone())
    }

    /// Another `up` of the same full name.
    pub(crate) fn again(dir: tempfile::TempDir, name: &str, who: As, manifests: &str) -> Self {
        let turn = Turn::take();
        Self::start_in(dir, name, who, manifests, turn).expect("it could before")
    }

    /// The network namespace of a pod, as /proc shows it.
    pub(crate) fn network(&self, pod: &str) -> String {
        self.stdout(pod, &["readlink", "/proc/self/ns/net"]).trim().to_owned()
    }

    /// Where this mesh keeps its state.
    pub(crate) fn state(&self) -> PathBuf {
        let line = self.lines(0, &["logs are in "]).remove(0);
        let logs = line.split("logs are in ").nth(1).and_then(|l| l.split(';').next()).unwrap();
        Path::new(logs).parent().unwrap().to_owned()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Ok(lines) = self.said.lines.lock()
        {
            eprintln!("{} said: {:#?}", self.name, lines.0);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The next `up` would clear what a killed one leaves; there may be none.
        if !self.lines(0, &["logs are in "]).is_empty() {
            let _ = fs::remove_dir_all(self.state());
        }
    }
}

impl Said {
    fn follow(&self, stderr: impl BufRead) {
        for line in stderr.lines().map_while(Result::ok) {
            self.lines.lock().unwrap().0.push(line);
            self.more.notify_all();
        }
        self.lines.lock().unwrap().1 = true;
        self.more.notify_all();
    }

    fn wait<T>(&self, find: impl Fn(&[String]) -> Option<T>) -> T {
        let deadline = now() + LONG;
        let mut lines = self.lines.lock().unwrap();
        loop {
            if let Some(found) = find(&lines.0) {
                return found;
            }
            if lines.1 {
                let said = lines.0.clone();
                drop(lines);
                panic!("up ended: {said:#?}");
            }
            let left = deadline.saturating_duration_since(now());
            lines = self.more.wait_timeout(lines, left).unwrap().0;
            if now() >= deadline {
                let said = lines.0.clone();
                drop(lines);
                panic!("not said within {LONG:?}: {said:#?}");
            }
        }
    }
}

/// One of the places for meshes that run at the same time.
struct Turn;

static TURNS: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

impl Turn {
    fn take() -> Self {
        let taken = TURNS.0.lock().unwrap();
        *TURNS.1.wait_while(taken, |taken| *taken >= AT_A_TIME).unwrap() += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TURNS.0.lock().unwrap() -= 1;
        TURNS.1.notify_one();
    }
}

/// As whoever runs the tests, and, where that is root, as a user without rights too.
pub(crate) fn both(test: fn(As)) {
    test(As::Me);
    if geteuid().is_root() {
        test(As::Nobody);
    }
}

/// A directory that every user may read.
pub(crate) fn open_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    dir
}

/// Whether these programs are installed; says which package has the one that is not.
pub(crate) fn installed(needed: &[(&str, &str)]) -> bool {
    let here = |program: &str| {
        ["/usr/bin", "/usr/sbin"].iter().any(|dir| Path::new(dir).join(program).exists())
    };
    match needed.iter().find(|(program, _)| !here(program)) {
        None => true,
        Some((program, package)) => {
            eprintln!("skipped: no {program}; it is in Debian's package {package}");
            false
        }
    }
}

/// `None` where this user cannot become that one.
pub(crate) fn remora(who: As) -> Option<Command> {
    let binary = env!("CARGO_BIN_EXE_remora-under-test");
    let mut command = match who {
        As::Me => Command::new(binary),
        As::Nobody => {
            let become_nobody = ["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", binary];
            let reachable = Command::new("setpriv").args(become_nobody).arg("--version").output();
            if !reachable.is_ok_and(|output| output.status.success()) {
                eprintln!("skipped as nobody: cannot run {binary} as another user");
                return None;
            }
            let mut command = Command::new("setpriv");
            command.args(become_nobody).env_remove("XDG_RUNTIME_DIR").env("HOME", "/");
            command
        }
    };
    command.env("PATH", "/usr/bin:/usr/sbin:/bin").current_dir("/").stdin(Stdio::null());
    Some(command)
}

/// Looks until there is something; for facts that nothing announces.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = now() + LONG;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(now() < deadline, "not within {LONG:?}: {what}");
        pause();
    }
}

/// How long that took, with its result.
pub(crate) fn timed<T>(act: impl FnOnce() -> T) -> (Duration, T) {
    let start = now();
    let result = act();
    (start.elapsed(), result)
}

/// Whether a process of this machine is in that network namespace.
pub(crate) fn inhabited(network: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|process| fs::read_link(process.path().join("ns/net")).ok())
        .any(|theirs| theirs.as_os_str() == network)
}

/// SIGKILL to a process of a mesh of ours.
pub(crate) fn sigkill(pid: i32) {
    signal(pid, Signal::SIGKILL);
}

fn signal(pid: i32, signal: Signal) {
    assert!(pid > 1);
    kill(Pid::from_raw(pid), signal).unwrap();
}

fn contains(words: &[String], part: &str) -> bool {
    words.iter().any(|word| word.contains(part))
}

/// The process whose command line is like that.
fn process(like: impl Fn(&[String]) -> bool) -> Option<i32> {
    fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let words: Vec<String> = line
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        like(&words).then_some(pid)
    })
}

fn write_manifests(dir: &Path, manifests: &str) {
    let text = manifests.replace("@DIR@", dir.to_str().unwrap());
    let text = text.replace("@REMORA@", env!("CARGO_BIN_EXE_remora-under-test"));
    let part = dir.join(".mesh.part");
    fs::write(&part, text).unwrap();
    fs::set_permissions(&part, fs::Permissions::from_mode(0o644)).unwrap();
    fs::rename(part, dir.join("mesh.yaml")).unwrap();
}

#[allow(clippy::disallowed_methods, reason = "deadlines over real processes are real time")]
fn now() -> Instant {
    Instant::now()
}

#[allow(clippy::disallowed_methods, reason = "polls outside facts that nothing announces")]
fn pause() {
    std::thread::sleep(LOOK);
}
