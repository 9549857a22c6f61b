//! A pod's sidecar: its token, the redirect rules in its network, the proxy process.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use remora_core::names::{self, ports};
use remora_injector::{ProxySettings, owner};
use tokio::{process::Command, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    anchor::command_in,
    cluster::Shared,
    console::Log,
    error::{Doing, Error},
    manifests::Key,
    mesh,
    net::{self, NODE},
    pod::Pod,
    probe,
    process::{Kept, Program, Restart, keep},
};

/// How often a proxy that is not ready yet is asked.
pub const POLL: Duration = Duration::from_millis(25);
/// How often one that is ready is asked.
const STEADY_POLL: Duration = Duration::from_secs(1);
/// Time for an answer.
const ANSWER: Duration = Duration::from_secs(1);

/// Where a sidecar runs.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Process that holds the pod's namespaces.
    pub anchor: u32,
    /// The pod's address.
    pub address: Ipv4Addr,
}

/// Starts the sidecar of a pod.
///
/// # Errors
/// Where the token cannot be written or the rules cannot be put in force.
pub async fn start(
    pod: &Pod,
    settings: &ProxySettings,
    shared: &Arc<Shared>,
    place: Place,
    stop: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> Result<Kept, Error> {
    shared.plane().await;
    let (namespace, name) = &pod.key;
    let token = Token::issue(pod, shared)?;
    let (rules, one_user) = (settings.clone(), shared.one_user);
    net::inside(place.anchor, move || mesh::redirect(&rules, one_user)).await??;
    let log = shared.state.path("logs").join(format!("{namespace}_{name}.proxy.log"));
    let grace = settings.shutdown_grace_period;
    let proxy = Proxy {
        key: pod.key.clone(),
        settings: settings.clone(),
        workload: owner(&pod.object).name,
        place,
        token,
        bundle: shared.state.path("proxies").join("trust-bundle.pem"),
        snapshot: SnapshotDir::make(&shared.state.path("proxies"), &pod.key, one_user)?,
        one_user,
    };
    let program = Program {
        label: format!("pod {namespace}/{name}: proxy"),
        command: Box::new(move || proxy.command()),
        log: Log::at(&log),
        prefix: None,
        restart: Restart::Always,
        // It keeps its own deadline; ours is for one that hangs.
        grace: grace + Duration::from_secs(2),
    };
    let (kept, work) = keep(program, shared.console, stop.clone());
    tasks.spawn(work);
    Ok(kept)
}

/// Keeps the pod's knowledge of whether its proxy is ready.
pub async fn watch(
    pod: Arc<Pod>,
    shared: Arc<Shared>,
    proxy: Kept,
    address: Ipv4Addr,
    stop: CancellationToken,
) {
    let admin = SocketAddr::from((address, ports::PROXY_ADMIN));
    let mut state = proxy.state();
    let mut known = false;
    loop {
        state.mark_unchanged();
        let asked = tokio::time::timeout(ANSWER, probe::get(admin, "/ready", &[])).await;
        let ready = matches!(asked, Ok(Ok(200))) && proxy.pid().is_some();
        if ready != known {
            known = ready;
            pod.proxy_is_ready(ready);
            shared.publish().await;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            // A proxy that has died is known at once.
            _ = state.changed() => {}
            () = sleep(if ready { STEADY_POLL } else { POLL }) => {}
        }
    }
}

struct Proxy {
    key: Key,
    settings: ProxySettings,
    /// What the pod belongs to, by name.
    workload: String,
    place: Place,
    token: Token,
    bundle: PathBuf,
    snapshot: SnapshotDir,
    one_user: bool,
}

impl Proxy {
    fn command(&self) -> Command {
        let (namespace, name) = &self.key;
        let mut words: Vec<String> = vec!["/proc/self/exe".into(), "proxy".into()];
        let grace = self.settings.shutdown_grace_period;
        let mut flag = |name: &str, value: String| words.extend([name.to_owned(), value]);
        let loopback = Ipv4Addr::LOCALHOST;
        flag("--outbound-listen", format!("{loopback}:{0}", ports::OUTBOUND));
        flag("--inbound-listen", format!("0.0.0.0:{}", ports::INBOUND));
        flag("--admin-listen", format!("0.0.0.0:{}", ports::PROXY_ADMIN));
        flag("--control-plane", format!("{NODE}:{}", ports::CONTROL_PLANE));
        flag("--trust-bundle", self.bundle.display().to_string());
        flag("--token-file", self.token.file.display().to_string());
        flag("--pod-namespace", namespace.clone());
        flag("--pod-name", name.clone());
        flag("--pod-ips", self.place.address.to_string());
        flag("--snapshot", self.snapshot.file().display().to_string());
        flag("--node", super::NODE_NAME.into());
        flag("--workers", self.settings.resources.workers().to_string());
        flag("--shutdown-grace-period", format!("{}ms", grace.as_millis()));
        if self.one_user {
            flag("--mark", format!("{:#x}", names::PROXY_MARK));
        }
        let uid = (!self.one_user).then_some(names::PROXY_UID);
        let mut command = command_in(self.place.anchor, Path::new("/"), uid, &words);
        command.env(names::env::LOG, &self.settings.log_level);
        let max_header_size = self.settings.max_header_size.to_string();
        command.env(names::env::MAX_HEADER_SIZE, max_header_size);
        command.env(names::env::ACCESS_LOG, self.settings.access_log.to_string());
        if let Some(format) = self.settings.access_log_format {
            command.env(names::env::ACCESS_LOG_FORMAT, format.to_string());
        }
        if let Some(collector) = &self.settings.trace_collector {
            let rate = self.settings.trace_sample_rate.to_string();
            command.env(names::env::TRACE_COLLECTOR, collector.as_str());
            command.env(names::env::TRACE_SAMPLE_RATE, rate);
            command.env(names::env::SERVICE_NAME, &self.workload);
        }
        command
    }
}

/// Where a proxy keeps its last answers, so that one that is started again while the control plane
/// is away knows them. A directory, because the proxy writes beside the file and renames.
struct SnapshotDir(PathBuf);

impl SnapshotDir {
    fn make(proxies: &Path, (namespace, name): &Key, one_user: bool) -> Result<Self, Error> {
        let dir = proxies.join(format!("{namespace}_{name}.snapshot"));
        let made = fs::DirBuilder::new().mode(0o700).create(&dir);
        made.doing(|| format!("create {}", dir.display()))?;
        let made = Self(dir);
        if !one_user {
            hand_over(&made.0)?;
        }
        Ok(made)
    }

    fn file(&self) -> PathBuf {
        self.0.join("answers")
    }
}

impl Drop for SnapshotDir {
    fn drop(&mut self) {
        // The next pod of the name starts from nothing.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn hand_over(path: &Path) -> Result<(), Error> {
    let owner = Some(names::PROXY_UID);
    chown(path, owner, owner).doing(|| format!("hand over {}", path.display()))
}

/// The token is the pod's proof; the registry knows its hash.
struct Token {
    file: PathBuf,
    registered: PathBuf,
}

impl Token {
    fn issue(pod: &Pod, shared: &Shared) -> Result<Self, Error> {
        let (namespace, name) = &pod.key;
        let mut random = [0; 32];
        aws_lc_rs::rand::fill(&mut random)
            .map_err(|_| std::io::Error::other("no random numbers"))
            .doing(|| "make a token".into())?;
        let token = hex(&random);
        let hash = hex(digest(&SHA256, token.as_bytes()).as_ref());
        let account = pod.object.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
        let record = serde_json::json!({
            "namespace": namespace,
            "serviceAccount": account.unwrap_or_else(|| "default".into()),
            "pod": name,
        });
        let registered = shared.state.path("tokens").join(format!("{hash}.json"));
        let file = shared.state.path("proxies").join(format!("{namespace}_{name}.token"));
        for (path, text) in [(&registered, record.to_string()), (&file, token)] {
            write_secret(path, text.as_bytes()).doing(|| format!("write {}", path.display()))?;
        }
        if !shared.one_user {
            hand_over(&file)?;
        }
        Ok(Self { file, registered })
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        // The pod is gone: its proof is worth nothing any more.
        let _ = fs::remove_file(&self.registered);
        let _ = fs::remove_file(&self.file);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write_secret(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?;
    std::io::Write::write_all(&mut file, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(dir: &Path, settings: ProxySettings) -> Proxy {
        let key = ("shop".to_owned(), "orders-0".to_owned());
        Proxy {
            snapshot: SnapshotDir::make(dir, &key, true).unwrap(),
            key,
            settings,
            workload: "orders".to_owned(),
            place: Place { anchor: 1, address: Ipv4Addr::LOCALHOST },
            token: Token { file: dir.join("t"), registered: dir.join("r") },
            bundle: dir.join("bundle"),
            one_user: true,
        }
    }

    #[test]
    fn what_annotations_say_of_requests_reaches_the_proxy() {
        let dir = tempfile::tempdir().unwrap();
        let settings = ProxySettings {
            access_log: "sampled".parse().unwrap(),
            access_log_format: Some("json".parse().unwrap()),
            trace_collector: Some("10.0.0.9:4317".parse().unwrap()),
            trace_sample_rate: "0.25".parse().unwrap(),
            ..ProxySettings::default()
        };
        let command = proxy(dir.path(), settings).command();
        let told = |name: &str| {
            let mut all = command.as_std().get_envs();
            all.find_map(|(key, value)| (key == name).then_some(value?.to_str()?.to_owned()))
        };
        for (name, value) in [
            (names::env::ACCESS_LOG, "sampled"),
            (names::env::ACCESS_LOG_FORMAT, "json"),
            (names::env::TRACE_COLLECTOR, "10.0.0.9:4317"),
            (names::env::TRACE_SAMPLE_RATE, "0.25"),
            (names::env::SERVICE_NAME, "orders"),
        ] {
            assert_eq!(told(name).as_deref(), Some(value), "{name}");
        }
    }

    #[test]
    fn a_proxy_keeps_its_answers_as_long_as_its_pod_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let key = ("shop".to_owned(), "orders-0".to_owned());
        let proxy = proxy(dir.path(), ProxySettings::default());
        let command = proxy.command();
        let words: Vec<_> = command.as_std().get_args().collect();
        let at = words.iter().position(|word| *word == "--snapshot").unwrap();
        let file = PathBuf::from(words[at + 1]);
        assert!(!file.exists(), "it starts from nothing");
        fs::write(&file, "answers").unwrap();
        drop(proxy);
        assert!(!file.exists() && !file.parent().unwrap().exists());
        SnapshotDir::make(dir.path(), &key, true).unwrap();
    }
}
