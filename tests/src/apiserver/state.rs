//! What the double is made of, behind one lock.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use serde_json::Value;

use super::{
    access::Asked,
    faults::{Cut, Rule},
    kinds::{self, Kind},
    review::Token,
    store::Store,
    write::Writer,
};

/// Requests remembered.
const LOG: usize = 100_000;
/// Admission requests remembered.
const ADMISSIONS: usize = 1000;
/// Bookmarks of a watch come so often.
const BOOKMARKS: Duration = Duration::from_secs(60);

/// Decides a webhook's matchCondition: the webhook's name, the expression, the request.
pub(super) type Condition = dyn Fn(&str, &str, &Value) -> bool + Send + Sync;
/// Answers what is asked of a pod through the proxy subresource.
pub(super) type PodProxy = dyn Fn(&Value, u16, &str) -> (u16, String) + Send + Sync;

/// Everything that changes.
pub(super) struct State {
    pub(super) store: Store,
    pub(super) rng: fastrand::Rng,
    /// Tokens that a review knows.
    pub(super) tokens: HashMap<String, Token>,
    /// Bearer tokens of the API itself, and whose they are.
    pub(super) users: HashMap<String, String>,
    /// Whether roles count.
    pub(super) rbac: bool,
    pub(super) rules: Vec<Rule>,
    pub(super) asked: VecDeque<Asked>,
    /// What the roles did not allow.
    pub(super) refused: BTreeSet<Asked>,
    /// Webhooks called, and the requests they got.
    pub(super) admissions: VecDeque<(String, Value)>,
    /// Kinds of the open watches.
    pub(super) open_watches: Vec<&'static Kind>,
    /// How often watches were cut, and how the last time.
    pub(super) cuts: u64,
    pub(super) cut: Cut,
    /// Whether watches are silent.
    pub(super) held: bool,
    pub(super) bookmark_every: Duration,
    /// Whether a deleted namespace stays until it is removed by the test.
    pub(super) keeps_terminating: bool,
    /// Whether the kinds of Gateway API are there.
    pub(super) gateway_api: bool,
    /// `gitVersion` of `/version`.
    pub(super) version: String,
    /// Where Services are, by namespace, name and port.
    pub(super) services: HashMap<(String, String, u16), SocketAddr>,
    /// How late admission learns of webhook configurations.
    pub(super) webhook_lag: Duration,
    pub(super) condition: Arc<Condition>,
    pub(super) pod_proxy: Arc<PodProxy>,
    /// Where ports of pods are, by namespace, name and port.
    pub(super) pod_ports: HashMap<(String, String, u16), SocketAddr>,
    /// Logs of pods, by namespace and name.
    pub(super) logs: HashMap<(String, String), String>,
}

impl State {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            store: Store::new(),
            rng: fastrand::Rng::with_seed(seed),
            tokens: HashMap::new(),
            users: HashMap::new(),
            rbac: false,
            rules: Vec::new(),
            asked: VecDeque::new(),
            refused: BTreeSet::new(),
            admissions: VecDeque::new(),
            open_watches: Vec::new(),
            cuts: 0,
            cut: Cut::Clean,
            held: false,
            bookmark_every: BOOKMARKS,
            keeps_terminating: false,
            gateway_api: false,
            version: "v1.36.2".to_owned(),
            services: HashMap::new(),
            webhook_lag: Duration::ZERO,
            condition: Arc::new(|_, _, _| true),
            pod_proxy: Arc::new(|_, _, _| (503, "no answer is set for pods".to_owned())),
            pod_ports: HashMap::new(),
            logs: HashMap::new(),
        }
    }

    /// Whether a kind is there.
    pub(super) fn serves(&self, kind: &Kind) -> bool {
        self.gateway_api || kind.group != kinds::GATEWAY
    }

    /// A write of this manager, now.
    pub(super) fn writer(&mut self, manager: &str) -> Writer {
        let suffix = (0..5).map(|_| self.rng.choice(LETTERS).copied().unwrap_or(b'x') as char);
        let suffix = suffix.collect();
        let uid = self.uid();
        Writer { manager: manager.to_owned(), time: super::time_after(0), suffix, uid }
    }

    /// A random uid.
    pub(super) fn uid(&mut self) -> String {
        let (a, b) = (self.rng.u64(..), self.rng.u64(..));
        format!(
            "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
            a >> 32,
            (a >> 16) & 0xffff,
            a & 0xfff,
            0x8000 | ((b >> 48) & 0x3fff),
            b & 0xffff_ffff_ffff
        )
    }

    /// Remembers a call of a webhook.
    pub(super) fn admitted(&mut self, webhook: &str, request: &Value) {
        if self.admissions.len() == ADMISSIONS {
            self.admissions.pop_front();
        }
        self.admissions.push_back((webhook.to_owned(), request.clone()));
    }

    pub(super) fn log(&mut self, asked: Asked) {
        if self.asked.len() == LOG {
            self.asked.pop_front();
        }
        self.asked.push_back(asked);
    }
}

/// What generated names end with.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("version", &self.store.version()).finish_non_exhaustive()
    }
}
