//! What a kubelet does with an admitted pod, in network namespaces: an address, the init container
//! that writes the rules, the sidecar with its resolved environment and volumes, the application.

use std::{
    fs::{self, File},
    future::Future,
    net::Ipv4Addr,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    pin::Pin,
    process::{Child, Command, Stdio},
};

use nix::sched::{CloneFlags, setns};
use remora_cli::up::net;
use remora_tests::{
    sidecar::try_get,
    wait::{eventually, within},
};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::cluster::Cluster;

const INSIDE: &str = "REMORA_TEST_INSIDE_NAMESPACE";
const PROGRAM: &str = env!("CARGO_BIN_EXE_remora-under-test");

/// Runs `body` with the node's network namespace, which is a new one, or says why not.
pub(super) fn on_a_node(test: &str, body: impl Future<Output = ()>) {
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(async {
            net::init_node().await.unwrap();
            body.await;
        });
    }
    // The sidecar's user is what exempts it from its own rules.
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root, for sidecars that run as a user of their own");
        return;
    }
    let probe = Command::new("unshare").args(["--net", "true"]).stderr(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) {
        eprintln!("skipped: this machine forbids network namespaces (unshare --net fails)");
        return;
    }
    let status = Command::new("unshare")
        .args(["--net", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed in its namespaces; see its output above");
}

/// A pod that runs. Dropped, its processes end.
pub(super) struct Running {
    pub(super) name: String,
    pub(super) ip: Ipv4Addr,
    jobs: mpsc::Sender<Job>,
    sidecar: Child,
    /// Holds the network namespace; ends with its standard input.
    anchor: Child,
    _files: tempfile::TempDir,
}

type Job = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

impl Running {
    /// Brings an admitted pod to life, and waits until its sidecar is ready.
    pub(super) async fn start(cluster: &Cluster, pod: &Value, ip: Ipv4Addr) -> Self {
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        let anchor = Command::new("unshare")
            .args(["--net", "--", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let namespace = format!("/proc/{}/ns/net", anchor.id());
        let own = fs::read_link("/proc/self/ns/net").unwrap();
        eventually("a network namespace", async || {
            fs::read_link(&namespace).is_ok_and(|link| link != own).then_some(())
        })
        .await;
        net::attach(anchor.id(), ip).await.unwrap();
        let jobs = enter(&namespace);
        let namespace_name = pod["metadata"]["namespace"].as_str().unwrap();
        let status = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                            "conditions": [{"type": "Ready", "status": "False"}]});
        let patch = json!({"spec": {"nodeName": "node1"}, "status": status});
        let pod = cluster.api.merge("pods", namespace_name, &name, patch);

        let files = tempfile::tempdir().unwrap();
        open(files.path());
        let init = container(&pod, "remora-init");
        let status = run(&jobs, {
            let mut command = command_of(init);
            move || async move { command.status().unwrap() }
        });
        assert!(status.await.success(), "the init container of {name} failed");
        let proxy = container(&pod, "remora-proxy");
        let volumes = mount(cluster, &pod, proxy, files.path()).await;
        let mut command = command_of(proxy);
        command.envs(environment(&pod, proxy, &volumes));
        let user = proxy["securityContext"]["runAsUser"].as_u64().unwrap();
        let user = u32::try_from(user).unwrap();
        command.uid(user).gid(user);
        let sidecar = run(&jobs, move || async move { command.spawn().unwrap() }).await;
        if let Some(hook) = proxy["lifecycle"]["postStart"]["exec"]["command"].as_array() {
            let mut hook = program(hook.iter());
            let status = run(&jobs, move || async move { hook.status().unwrap() }).await;
            assert!(status.success(), "the postStart hook of {name} failed");
        }
        let running = Self { name, ip, jobs, sidecar, anchor, _files: files };
        eventually("a ready sidecar", async || {
            matches!(try_get((ip, 4191).into(), "/ready").await, Some((200, _))).then_some(())
        })
        .await;
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        cluster.api.merge("pods", namespace_name, &running.name, ready);
        running
    }

    /// Runs something in the pod's network; it goes on as long as the pod lives.
    pub(super) async fn run<T, F>(&self, work: impl FnOnce() -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        run(&self.jobs, work).await
    }

    /// Sum of a metric's series that have all these labels.
    pub(super) async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let (_, text) = try_get((self.ip, 4191).into(), "/metrics").await.unwrap();
        remora_tests::sidecar::sum(&text, name, labels)
    }

    /// How many endpoints of a Service the sidecar has.
    pub(super) async fn endpoints(&self, service: &str) -> usize {
        let (_, text) = try_get((self.ip, 4191).into(), "/endpoints").await.unwrap();
        let all: Value = serde_json::from_str(&text).unwrap();
        let mut services = all["services"].as_array().into_iter().flatten();
        let found = services.find(|one| one["name"] == service);
        found.and_then(|one| one["endpoints"].as_array()).map_or(0, Vec::len)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Whoever has ended already does not mind.
        let _ = self.sidecar.kill();
        let _ = self.sidecar.wait();
        let _ = self.anchor.kill();
        let _ = self.anchor.wait();
    }
}

/// A thread inside the namespace that runs what it is given.
fn enter(namespace: &str) -> mpsc::Sender<Job> {
    let namespace = File::open(namespace).unwrap();
    let (jobs, mut queue) = mpsc::channel::<Job>(4);
    std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let tasks = tokio::task::LocalSet::new();
        tasks.block_on(&runtime, async {
            while let Some(job) = queue.recv().await {
                tokio::task::spawn_local(job());
            }
        });
    });
    jobs
}

async fn run<T, F>(jobs: &mpsc::Sender<Job>, work: impl FnOnce() -> F + Send + 'static) -> T
where
    T: Send + 'static,
    F: Future<Output = T> + 'static,
{
    let (result, done) = oneshot::channel();
    let job: Job = Box::new(move || {
        let work = work();
        Box::pin(async move {
            // Nobody waits any more where the test has failed.
            let _ = result.send(work.await);
        })
    });
    assert!(jobs.send(job).await.is_ok(), "the pod's thread ended");
    within("work inside the pod", done).await.unwrap()
}

/// A container of a pod, of either list.
pub(super) fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let lists = [&pod["spec"]["initContainers"], &pod["spec"]["containers"]];
    let mut all = lists.into_iter().filter_map(Value::as_array).flatten();
    all.find(|one| one["name"] == name).unwrap_or_else(|| panic!("no container {name}"))
}

/// A command line of the image's `remora-proxy`, as the one program under test has it.
fn program<'a>(words: impl Iterator<Item = &'a Value>) -> Command {
    let words: Vec<&str> = words.map(|word| word.as_str().unwrap()).collect();
    assert_eq!(words.first(), Some(&"/remora-proxy"));
    let mut command = Command::new(PROGRAM);
    command.arg("proxy").args(&words[1..]).env_clear().stdin(Stdio::null());
    command
}

fn command_of(container: &Value) -> Command {
    let words = [&container["command"], &container["args"]];
    program(words.into_iter().filter_map(Value::as_array).flatten())
}

/// The environment with the downward API's fields filled in.
fn environment(
    pod: &Value,
    container: &Value,
    volumes: &[(String, PathBuf)],
) -> Vec<(String, String)> {
    let variables = container["env"].as_array().unwrap().iter();
    let value = |variable: &Value| {
        let field = variable["valueFrom"]["fieldRef"]["fieldPath"].as_str();
        let text = match field {
            None => variable["value"].as_str().unwrap_or_default(),
            Some("status.podIPs") => pod["status"]["podIP"].as_str().unwrap(),
            Some(path) => {
                let found = path.split('.').try_fold(pod, |at, segment| at.get(segment));
                found.and_then(Value::as_str).unwrap_or_else(|| panic!("no {path} in the pod"))
            }
        };
        let mounted = volumes.iter().find_map(|(path, dir)| {
            let rest = text.strip_prefix(path)?;
            Some(format!("{}{rest}", dir.display()))
        });
        (variable["name"].as_str().unwrap().to_owned(), mounted.unwrap_or(text.to_owned()))
    };
    variables.map(value).collect()
}

/// Writes the volumes that a container mounts: where it expects each, and where it is.
async fn mount(
    cluster: &Cluster,
    pod: &Value,
    container: &Value,
    files: &Path,
) -> Vec<(String, PathBuf)> {
    let mut mounted = Vec::new();
    for mount in container["volumeMounts"].as_array().unwrap() {
        let name = mount["name"].as_str().unwrap();
        let volumes = pod["spec"]["volumes"].as_array().unwrap();
        let volume = volumes.iter().find(|volume| volume["name"] == name).unwrap();
        let dir = files.join(name);
        fs::create_dir(&dir).unwrap();
        open(&dir);
        for (file, text) in content(cluster, pod, volume).await {
            fs::write(dir.join(file), text).unwrap();
        }
        mounted.push((mount["mountPath"].as_str().unwrap().to_owned(), dir));
    }
    mounted
}

/// Files of a volume: a ConfigMap's, or a token.
async fn content(cluster: &Cluster, pod: &Value, volume: &Value) -> Vec<(String, String)> {
    let (namespace, text) =
        (&pod["metadata"]["namespace"], |value: &Value| value.as_str().unwrap().to_owned());
    let namespace = text(namespace);
    if let Some(name) = volume["configMap"]["name"].as_str() {
        // As the kubelet: the pod waits for it.
        let map = cluster.api.until(name, |api| api.object("configmaps", &namespace, name)).await;
        let data = map["data"].as_object().unwrap();
        return data.iter().map(|(key, value)| (key.clone(), text(value))).collect();
    }
    let sources = volume["projected"]["sources"].as_array().into_iter().flatten();
    let token = |source: &Value| {
        let token = &source["serviceAccountToken"];
        let path = token["path"].as_str()?.to_owned();
        let audience = token["audience"].as_str()?;
        let account = text(&pod["spec"]["serviceAccountName"]);
        let name = text(&pod["metadata"]["name"]);
        Some((path, cluster.api.issue_token(&namespace, &account, Some(&name), &[audience])))
    };
    sources.filter_map(token).collect()
}

/// Lets the sidecar's user in.
fn open(dir: &Path) {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
}
