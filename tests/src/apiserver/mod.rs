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
//! - **Kinds** are those of [`kinds::KINDS`], Gateway API's only where
//!   [`ApiServer::serve_gateway_api`] says so; all objects are plain JSON. Nothing runs: no
//!   controller makes EndpointSlices, no kubelet ends pods. A deleted pod that has a `nodeName`
//!   stays, with its `deletionTimestamp`, until [`ApiServer::remove`]; a deleted namespace is
//!   emptied at once, or where [`ApiServer::keep_terminating`] says so by
//!   [`ApiServer::finish_namespace`].
//! - **Users**: a request without a token may do everything. [`ApiServer::client_as`] sends one;
//!   with [`ApiServer::enforce_rbac`] the stored Roles, ClusterRoles and bindings decide.
//!   [`ApiServer::asked`] tells who asked for what, [`ApiServer::refused`] what the roles denied.
//! - **Admission**: creations go through the stored MutatingWebhookConfigurations, creations and
//!   changes through the ValidatingWebhookConfigurations, over HTTPS to where
//!   [`ApiServer::route_service`] says. matchConditions are the test's to decide:
//!   [`ApiServer::decide_conditions`].
//! - **Waiting**: [`ApiServer::until`] looks again after every request and every change.
//! - **What it leaves out**: defaults and checks of most kinds, tables, protobuf, YAML answers,
//!   compression, the ten seconds for which a real server remembers a good token, `metadata` of
//!   reviews, chunks of answers.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::AtomicBool},
};

use k8s_openapi::jiff::{SignedDuration, Timestamp, Unit};
use parking_lot::Mutex;
use serde_json::json;
use tokio::{net::TcpListener, sync::watch as changes, task::AbortHandle};

use self::{state::State, store::Id};
use crate::wait::within;

mod access;
mod admission;
mod defaults;
mod discovery;
mod faults;
mod forward;
pub mod kinds;
mod objects;
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

    /// Serves Gateway API's kinds from now on, as when their definitions are installed.
    pub fn serve_gateway_api(&self) {
        self.shared.change(|state| state.gateway_api = true);
    }

    /// Who asked for what so far, in order.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.state.lock().asked.iter().cloned().collect()
    }

    /// What the stored roles did not allow so far.
    #[must_use]
    pub fn refused(&self) -> Vec<Asked> {
        self.shared.state.lock().refused.iter().cloned().collect()
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

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The time so many seconds from now, as objects have it.
fn time_after(seconds: i64) -> String {
    #[allow(clippy::disallowed_methods, reason = "timestamps of objects are wall time")]
    let now = Timestamp::try_from(std::time::SystemTime::now()).unwrap_or(Timestamp::UNIX_EPOCH);
    let then = now.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(now);
    then.round(Unit::Second).unwrap_or(then).to_string()
}
