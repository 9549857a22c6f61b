//! A double of the Kubernetes API server: objects in memory, real HTTP on loopback, the answers of
//! a real server. `tests/fixtures/apiserver` has exchanges with one, which the double is compared
//! with.
//!
//! ```no_run
//! # async fn example() {
//! use remora_tests::apiserver::{ApiServer, Cut, Fault};
//! use serde_json::json;
//!
//! let api = ApiServer::start().await;
//! api.namespace("shop", &[("remora.io/inject", "enabled")]);
//! api.put(json!({"apiVersion": "v1", "kind": "Pod",
//!     "metadata": {"name": "web-1", "namespace": "shop", "labels": {"app": "web"}},
//!     "spec": {"nodeName": "node1", "containers": [{"name": "app", "image": "web"}]},
//!     "status": {"phase": "Running", "podIP": "10.0.0.1"}}));
//! let client = api.client(); // or api.kubeconfig(), for a program
//! let token = api.issue_token("shop", "web", Some("web-1"), &["identity.remora.io"]);
//!
//! api.merge("pods", "shop", "web-1", json!({"metadata": {"labels": {"app": "other"}}}));
//! api.cut_watches(Cut::Broken);
//! api.fail("list", "pods", Fault::TooManyRequests);
//! api.heal();
//! api.compact(); // older watches: 410
//! # }
//! ```
//!
//! - **Kinds** are those of [`kinds::KINDS`]; all objects are plain JSON. Nothing runs: no
//!   controller makes EndpointSlices, no kubelet ends pods. A deleted pod that has a `nodeName`
//!   stays, with its `deletionTimestamp`, until [`ApiServer::remove`]; a deleted namespace is
//!   emptied at once, or where [`ApiServer::keep_terminating`] says so by
//!   [`ApiServer::finish_namespace`].
//! - **Users**: a request without a token may do everything. [`ApiServer::client_as`] sends one;
//!   with [`ApiServer::enforce_rbac`] the stored Roles, ClusterRoles and bindings decide.
//!   [`ApiServer::asked`] tells who asked for what.
//! - **Waiting**: [`ApiServer::until`] looks again after every request and every change.
//! - **What it leaves out**: defaults and checks of most kinds, tables, protobuf, YAML answers,
//!   compression, the ten seconds for which a real server remembers a good token, `metadata` of
//!   reviews, chunks of answers.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use k8s_openapi::jiff::{SignedDuration, Timestamp, Unit};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch as changes, task::AbortHandle};

use self::{faults::Rule, kinds::Kind, review::Token, state::State, store::Id};
use crate::wait::within;

mod access;
mod admission;
mod defaults;
mod discovery;
mod faults;
pub mod kinds;
mod patch;
mod read;
mod request;
mod review;
mod selectors;
mod serve;
mod state;
mod status;
mod store;
mod watch;
mod write;

pub use self::{
    access::{ADMIN, Asked},
    faults::{Cut, Fault},
};

/// A running double. Dropped, it is gone, and its connections with it.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    addr: SocketAddr,
    task: Option<AbortHandle>,
}

/// What requests, watches and the test share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Counts whatever happens.
    changed: changes::Sender<u64>,
    /// Whether watches tear their chunks in the middle of lines.
    torn: AtomicBool,
}

impl Shared {
    /// Changes the state, and tells everybody.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state.lock());
        self.changed.send_modify(|count| *count += 1);
        result
    }

    /// Takes away what is in a namespace that is being deleted, and then itself.
    fn empty_namespace(&self, name: &str) {
        if !self.state.lock().keeps_terminating {
            self.change(|state| finish_namespace(state, name));
        }
    }
}

fn finish_namespace(state: &mut State, name: &str) {
    for kind in kinds::KINDS.iter().filter(|kind| kind.namespaced) {
        let inside: Vec<Id> =
            state.store.objects(kind, Some(name)).map(|(id, _)| id.clone()).collect();
        for id in inside {
            state.store.remove(&id);
        }
    }
    let kind = kinds::plural("namespaces").expect("invariant: in the table");
    state.store.remove(&Id { kind, namespace: String::new(), name: name.to_owned() });
}

impl ApiServer {
    /// Starts on a free port of 127.0.0.1, with the namespaces of a fresh cluster.
    ///
    /// # Panics
    /// Where nothing can be bound.
    pub async fn start() -> Self {
        Self::start_on(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await
    }

    /// Starts on an address.
    ///
    /// # Panics
    /// Where it cannot be bound.
    pub async fn start_on(addr: SocketAddr) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new(fastrand::Rng::new().u64(..))),
            changed: changes::Sender::new(0),
            torn: AtomicBool::new(false),
        });
        let mut server = Self { shared, addr, task: None };
        server.listen().await;
        for name in ["default", "kube-node-lease", "kube-public", "kube-system", "remora-system"] {
            server.namespace(name, &[]);
        }
        server
    }

    async fn listen(&mut self) {
        let listener = TcpListener::bind(self.addr).await;
        let listener = listener.unwrap_or_else(|error| panic!("{}: {error}", self.addr));
        self.addr = listener.local_addr().expect("an address");
        let serving = serve::run(listener, Arc::clone(&self.shared));
        self.task = Some(tokio::spawn(serving).abort_handle());
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where it listens, for clients.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Kills it: connections break, new ones are refused. What is stored stays.
    pub fn kill(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }

    /// Starts it again on its address. As after a real start, no watch can be resumed: its caches
    /// begin later than any version that a client has seen.
    ///
    /// # Panics
    /// Where the address is taken meanwhile.
    pub async fn restart(&mut self) {
        self.kill();
        self.shared.change(|state| {
            state.store.skip_versions(11);
            state.store.compact();
        });
        // The former listener is closed when its task is gone.
        crate::wait::eventually("a free address", async || {
            let probe = TcpListener::bind(self.addr).await;
            probe.is_ok().then_some(())
        })
        .await;
        self.listen().await;
    }

    /// A client that may do everything.
    ///
    /// # Panics
    /// Outside of a runtime.
    #[must_use]
    pub fn client(&self) -> kube::Client {
        self.client_from(None)
    }

    /// A client with a token of this user's, as
    /// `system:serviceaccount:remora-system:remora-control-plane`.
    #[must_use]
    pub fn client_as(&self, user: &str) -> kube::Client {
        self.client_from(Some(self.login(user)))
    }

    fn client_from(&self, token: Option<String>) -> kube::Client {
        let uri = self.uri().parse().expect("invariant: an address is a URI");
        let mut config = kube::Config::new(uri);
        config.auth_info.token = token.map(Into::into);
        kube::Client::try_from(config).expect("a client")
    }

    /// A bearer token of the API for this user.
    #[must_use]
    pub fn login(&self, user: &str) -> String {
        let mut state = self.shared.state.lock();
        let token = format!("api-{}", state.uid());
        state.users.insert(token.clone(), user.to_owned());
        token
    }

    /// A kubeconfig file's content, for a program that runs as this user ([`ADMIN`]: everything).
    #[must_use]
    pub fn kubeconfig(&self, user: &str) -> String {
        let credentials = match user {
            ADMIN => json!({}),
            user => json!({"token": self.login(user)}),
        };
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "double",
            "clusters": [{"name": "double", "cluster": {"server": self.uri()}}],
            "users": [{"name": "user", "user": credentials}],
            "contexts": [{"name": "double", "context": {"cluster": "double", "user": "user"}}],
        })
        .to_string()
    }

    /// Lets the stored roles decide what users other than [`ADMIN`] may do.
    pub fn enforce_rbac(&self) {
        self.shared.change(|state| state.rbac = true);
    }

    /// Who asked for what so far, in order.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.state.lock().asked.iter().cloned().collect()
    }

    /// How many watches of a kind are open.
    #[must_use]
    pub fn watches(&self, plural: &str) -> usize {
        let state = self.shared.state.lock();
        state.open_watches.iter().filter(|kind| kind.plural == plural).count()
    }

    /// Waits until this says something, asked again after every request and every change.
    pub async fn until<T>(&self, what: &str, mut ask: impl FnMut(&Self) -> Option<T>) -> T {
        let mut changed = self.shared.changed.subscribe();
        within(what, async {
            loop {
                changed.borrow_and_update();
                if let Some(answer) = ask(self) {
                    return answer;
                }
                // The sender lives as long as this borrow.
                let _ = changed.changed().await;
            }
        })
        .await
    }
}

/// Objects, from the test's side: nothing is refused, and `status` is written like the rest.
impl ApiServer {
    /// Creates or replaces an object, and gives it as it is stored.
    ///
    /// # Panics
    /// Where its kind is not known.
    pub fn put(&self, mut object: Value) -> Value {
        let text =
            |object: &Value, field: &str| object[field].as_str().unwrap_or_default().to_owned();
        let kind = kinds::of(&text(&object, "apiVersion"), &text(&object, "kind"));
        let kind = kind.unwrap_or_else(|| panic!("not a known kind: {object}"));
        if !object["metadata"].is_object() {
            object["metadata"] = json!({});
        }
        if kind.namespaced && object["metadata"]["namespace"].is_null() {
            object["metadata"]["namespace"] = json!("default");
        }
        let id =
            id(kind, &text(&object["metadata"], "namespace"), &text(&object["metadata"], "name"));
        self.shared.change(|state| {
            let writer = state.writer("test");
            let status = object["status"].clone();
            defaults::fill(kind, &mut object, &writer.suffix);
            if !status.is_null() {
                object["status"] = status;
            }
            let old = state.store.object(&id).map(|old| old["metadata"].clone());
            let old = old.unwrap_or_default();
            for (field, fresh) in [("uid", writer.uid), ("creationTimestamp", writer.time)] {
                let own = object["metadata"][field].take();
                let kept = [own, old[field].clone()].into_iter().find(|value| !value.is_null());
                object["metadata"][field] = kept.unwrap_or_else(|| json!(fresh));
            }
            state.store.insert(id, object)
        })
    }

    /// Merges this into an object (RFC 7396), and gives it as it is stored.
    ///
    /// # Panics
    /// Where it is not there.
    pub fn merge(&self, plural: &str, namespace: &str, name: &str, patch: Value) -> Value {
        let id = id(known(plural), namespace, name);
        self.shared.change(|state| {
            let mut object = state.store.object(&id).cloned();
            let object =
                object.as_mut().unwrap_or_else(|| panic!("no {plural} {namespace}/{name}"));
            json_patch::merge(object, &patch);
            state.store.insert(id, object.clone())
        })
    }

    /// Takes an object away at once, whatever holds it; whether it was there.
    pub fn remove(&self, plural: &str, namespace: &str, name: &str) -> bool {
        let id = id(known(plural), namespace, name);
        self.shared.change(|state| state.store.remove(&id).is_some())
    }

    /// An object as it is stored.
    #[must_use]
    pub fn object(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let id = id(known(plural), namespace, name);
        self.shared.state.lock().store.object(&id).cloned()
    }

    /// All objects of a kind.
    #[must_use]
    pub fn objects(&self, plural: &str) -> Vec<Value> {
        let state = self.shared.state.lock();
        state.store.objects(known(plural), None).map(|(_, object)| object.clone()).collect()
    }

    /// Puts a namespace with these annotations.
    pub fn namespace(&self, name: &str, annotations: &[(&str, &str)]) {
        let own = annotations.iter().map(|(key, value)| ((*key).to_owned(), json!(value)));
        let annotations: serde_json::Map<String, Value> = own.collect();
        let metadata = match annotations.is_empty() {
            true => json!({"name": name}),
            false => json!({"name": name, "annotations": annotations}),
        };
        self.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}));
    }

    /// Lets a deleted namespace stay `Terminating`.
    pub fn keep_terminating(&self) {
        self.shared.change(|state| state.keeps_terminating = true);
    }

    /// Takes away a namespace and everything in it.
    pub fn finish_namespace(&self, name: &str) {
        self.shared.change(|state| finish_namespace(state, name));
    }

    /// A ServiceAccount token as the kubelet gets it for a projected volume.
    ///
    /// # Panics
    /// Where it is to be bound to a pod that is not there.
    #[must_use]
    pub fn issue_token(
        &self,
        namespace: &str,
        account: &str,
        pod: Option<&str>,
        audiences: &[&str],
    ) -> String {
        let uid = |plural: &str, name: &str| {
            let object = self.object(plural, namespace, name)?;
            Some(object["metadata"]["uid"].as_str()?.to_owned())
        };
        let pod = pod.map(|name| {
            let uid = uid("pods", name);
            (name.to_owned(), uid.unwrap_or_else(|| panic!("no pod {namespace}/{name}")))
        });
        let account_uid = uid("serviceaccounts", account);
        let mut state = self.shared.state.lock();
        let token = Token {
            namespace: namespace.to_owned(),
            account: account.to_owned(),
            account_uid: account_uid.unwrap_or_else(|| state.uid()),
            pod,
            audiences: audiences.iter().map(|audience| (*audience).to_owned()).collect(),
            id: state.uid(),
            refused: None,
        };
        let text = format!("e30.{}.c2ln", state.uid());
        state.tokens.insert(text.clone(), token);
        text
    }

    /// Lets reviews refuse a token, for example because `service account token has expired`.
    pub fn refuse_token(&self, token: &str, why: &str) {
        self.shared.change(|state| {
            if let Some(token) = state.tokens.get_mut(token) {
                token.refused = Some(why.to_owned());
            }
        });
    }
}

/// What goes wrong.
impl ApiServer {
    /// Lets every request of this verb and resource (`*`: any) fail until [`ApiServer::heal`].
    /// Reviews are `create` of `tokenreviews`.
    pub fn fail(&self, verb: &str, resource: &str, fault: Fault) {
        self.add_rule(verb, resource, None, fault);
    }

    /// Lets so many of them fail.
    pub fn fail_times(&self, times: usize, verb: &str, resource: &str, fault: Fault) {
        self.add_rule(verb, resource, Some(times), fault);
    }

    fn add_rule(&self, verb: &str, resource: &str, left: Option<usize>, fault: Fault) {
        let (verb, resource) = (verb.to_owned(), resource.to_owned());
        self.shared.change(|state| state.rules.push(Rule { verb, resource, left, fault }));
    }

    /// Ends all faults of [`ApiServer::fail`], and the silence of [`ApiServer::hold_watches`].
    pub fn heal(&self) {
        self.shared.change(|state| {
            state.rules.clear();
            state.held = false;
        });
    }

    /// Ends all open watches.
    pub fn cut_watches(&self, how: Cut) {
        self.shared.change(|state| {
            state.cuts += 1;
            state.cut = how;
        });
    }

    /// Open watches say nothing more, not even bookmarks, until [`ApiServer::heal`].
    pub fn hold_watches(&self) {
        self.shared.change(|state| state.held = true);
    }

    /// Forgets the history: a watch from an older version gets 410, open ones go on.
    pub fn compact(&self) {
        self.shared.change(|state| state.store.compact());
    }

    /// Remembers so many changes only, from now on.
    pub fn keep_history(&self, changes: usize) {
        self.shared.change(|state| state.store.keep(changes));
    }

    /// Lets watches send each chunk in halves, torn anywhere.
    pub fn tear_chunks(&self) {
        self.shared.torn.store(true, Ordering::Relaxed);
    }

    /// Lets bookmarks of new watches come so often; a real server's come every minute.
    pub fn bookmark_every(&self, pause: Duration) {
        self.shared.change(|state| state.bookmark_every = pause);
    }

    /// What `/version` says, as `v1.29.0`.
    pub fn say_version(&self, git_version: &str) {
        self.shared.change(|state| git_version.clone_into(&mut state.version));
    }
}

/// What is around the server.
impl ApiServer {
    /// Where connections to a Service's port go, for webhooks.
    pub fn route_service(&self, namespace: &str, name: &str, port: u16, addr: SocketAddr) {
        let key = (namespace.to_owned(), name.to_owned(), port);
        self.shared.change(|state| state.services.insert(key, addr));
    }

    /// Decides matchConditions of webhooks, which are not evaluated here: from the webhook's name,
    /// the expression and the admission request. Until it is set, all hold.
    pub fn decide_conditions(
        &self,
        decide: impl Fn(&str, &str, &Value) -> bool + Send + Sync + 'static,
    ) {
        self.shared.change(|state| state.condition = Arc::new(decide));
    }

    /// Answers requests through the proxy subresource of pods: from the pod, the port and the path
    /// to status and body.
    pub fn answer_for_pods(
        &self,
        answer: impl Fn(&Value, u16, &str) -> (u16, String) + Send + Sync + 'static,
    ) {
        self.shared.change(|state| state.pod_proxy = Arc::new(answer));
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn known(plural: &str) -> &'static Kind {
    kinds::plural(plural).unwrap_or_else(|| panic!("not a known kind: {plural}"))
}

fn id(kind: &'static Kind, namespace: &str, name: &str) -> Id {
    let namespace = if kind.namespaced { namespace.to_owned() } else { String::new() };
    Id { kind, namespace, name: name.to_owned() }
}

/// The time so many seconds from now, as objects have it.
fn time_after(seconds: i64) -> String {
    #[allow(clippy::disallowed_methods, reason = "timestamps of objects are wall time")]
    let now = Timestamp::try_from(std::time::SystemTime::now()).unwrap_or(Timestamp::UNIX_EPOCH);
    let then = now.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(now);
    then.round(Unit::Second).unwrap_or(then).to_string()
}
