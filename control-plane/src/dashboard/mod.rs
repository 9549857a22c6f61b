//! The dashboard: a page on the admin port, and where its figures come from.
//!
//! While somebody looks, a round every two seconds asks the admin endpoints of the pods that have a
//! sidecar what they saw:
//!
//! - `cluster` whom to ask, from the index;
//! - `client` asks, `answers` understands;
//! - `merge` puts the answers together by Service, `load` their figures; pure;
//! - `history` keeps the last five minutes;
//! - `topology` and `detail` are what the page reads, as JSON, `routes` a route in words; pure;
//! - `page/` is the page itself.
//!
//! Nothing of this is on the way of discovery: rounds are tasks beside it, what costs time runs on
//! another thread, and the index is read under its lock only to copy references.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Json, Router,
    extract::{Path, State as Extract},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use futures_util::{StreamExt, stream};
use hyper::body::Bytes;
use parking_lot::Mutex;
use remora_core::drain;
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{discovery::State, index::Name, moment::Moment};

mod answers;
mod client;
mod cluster;
mod detail;
mod history;
mod load;
mod merge;
mod routes;
mod topology;

use answers::Answers;
use client::Failure;
use cluster::{Asked, Cluster};
use history::History;
use merge::Heard;
use topology::Shown;

/// Time from the beginning of a round to that of the next.
const EVERY: Duration = Duration::from_secs(2);
/// Somebody looks for as long as this after the last request.
const LOOKS: Duration = Duration::from_secs(10);
/// Proxies that are asked at a time.
const AT_A_TIME: usize = 16;
/// Longest wait of a request for the first round.
const FIRST: Duration = Duration::from_millis(1500);

/// The page's content. What it loads comes from here; scripts and styles in it do not run.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Dashboard {
    pub(crate) state: Arc<State>,
    pub(crate) clock: fn() -> SystemTime,
    /// When somebody looked last.
    looked: watch::Sender<Option<Instant>>,
    /// The last round.
    round: watch::Sender<Option<Arc<Round>>>,
    history: Mutex<History>,
}

/// What a round brought.
#[derive(Debug)]
struct Round {
    at: Instant,
    /// The Services that are shown, and the certificates that were seen.
    shown: Shown,
    /// The topology as JSON.
    topology: Bytes,
}

/// The page and its data.
pub(crate) fn router(dashboard: Arc<Dashboard>) -> Router {
    Router::new()
        .route("/", get(|| file("text/html; charset=utf-8", include_str!("page/index.html"))))
        .route("/dashboard", get(|| async { Redirect::permanent("./") }))
        .route("/dashboard/", get(|| async { Redirect::permanent("../") }))
        .route("/dashboard/style.css", get(|| file("text/css", include_str!("page/style.css"))))
        .route("/dashboard/page.js", get(|| file(SCRIPT, include_str!("page/page.js"))))
        .route("/dashboard/graph.js", get(|| file(SCRIPT, include_str!("page/graph.js"))))
        .route("/dashboard/service.js", get(|| file(SCRIPT, include_str!("page/service.js"))))
        .route("/dashboard/dom.js", get(|| file(SCRIPT, include_str!("page/dom.js"))))
        .route("/dashboard/icon.svg", get(|| file("image/svg+xml", include_str!("page/icon.svg"))))
        .route("/dashboard/topology.json", get(topology_json))
        .route("/dashboard/services/{namespace}/{file}", get(service_json))
        .with_state(dashboard)
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

async fn file(kind: &'static str, text: &'static str) -> Response {
    answer(kind, text)
}

fn answer(kind: &'static str, body: impl IntoResponse) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // An upgrade of the control plane is seen at once.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    let mut response = body.into_response();
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    let same_origin = HeaderValue::from_static("same-origin");
    response.headers_mut().insert("cross-origin-resource-policy", same_origin);
    response
}

async fn topology_json(Extract(dashboard): Extract<Arc<Dashboard>>) -> Response {
    match dashboard.look().await {
        Some(round) => answer("application/json", round.topology.clone()),
        None => answer("application/json", r#"{"sampled_ms":null}"#),
    }
}

async fn service_json(
    Extract(dashboard): Extract<Arc<Dashboard>>,
    Path((namespace, file)): Path<(String, String)>,
) -> Response {
    let Some(name) = file.strip_suffix(".json") else {
        return answer("text/plain", (StatusCode::NOT_FOUND, "NAMESPACE/NAME.json\n"));
    };
    let name = Name::new(&namespace, name);
    let round = dashboard.look().await;
    let (ports, routes) = dashboard.state.read(|index| {
        let ports: Vec<_> = index.port_snapshots(&name).map(Arc::clone).collect();
        (ports, index.routes_of(&name))
    });
    if ports.is_empty() {
        return answer("text/plain", (StatusCode::NOT_FOUND, "no such Service\n"));
    }
    let series = dashboard.history.lock().of(&name);
    let shown = round.as_ref().map(|round| &round.shown);
    let view = detail::service(&name, &ports, &routes, shown, series);
    answer("application/json", Json(view))
}

impl Dashboard {
    pub(crate) fn new(state: Arc<State>, clock: fn() -> SystemTime) -> Arc<Self> {
        Arc::new(Self {
            state,
            clock,
            looked: watch::channel(None).0,
            round: watch::channel(None).0,
            history: Mutex::default(),
        })
    }

    /// Asks while somebody looks, until draining begins.
    pub(crate) async fn run(self: Arc<Self>, drain: drain::Watch) {
        tokio::select! {
            () = drain.draining() => {}
            () = self.rounds() => {}
        }
    }

    async fn rounds(&self) {
        let mut looked = self.looked.subscribe();
        loop {
            let begin = Instant::now();
            let last = *looked.borrow_and_update();
            if last.is_some_and(|at| begin.duration_since(at) < LOOKS) {
                self.ask_all(begin).await;
                sleep_until(begin + EVERY).await;
                continue;
            }
            tokio::select! {
                changed = looked.changed() => if changed.is_err() { return },
                // Nobody comes back to it.
                () = sleep(history::KEPT), if self.round.borrow().is_some() => {
                    self.history.lock().clear();
                    self.round.send_replace(None);
                }
            }
        }
    }

    /// Somebody looks: the last round, or the first of those that begin now; `None` where that takes
    /// too long.
    async fn look(&self) -> Option<Arc<Round>> {
        let now = Instant::now();
        let mut rounds = self.round.subscribe();
        self.looked.send_replace(Some(now));
        let fresh = |round: &Option<Arc<Round>>| {
            round.as_ref().is_some_and(|round| now.saturating_duration_since(round.at) < LOOKS)
        };
        let fresh = timeout(FIRST, rounds.wait_for(fresh)).await.ok()?.ok()?;
        fresh.clone()
    }

    /// One round.
    async fn ask_all(&self, begin: Instant) {
        let cluster = Cluster::read(&self.state, begin);
        let asked = stream::iter(cluster.asked.clone());
        let mut answers = asked
            .map(|proxy| async move {
                let answer = ask(&proxy).await;
                (proxy, answer)
            })
            .buffer_unordered(AT_A_TIME);
        let mut heard = Heard::default();
        while let Some((proxy, answer)) = answers.next().await {
            match answer {
                Ok(answers) => heard.add(&cluster, &proxy, answers),
                Err(failure) => heard.fail(&proxy, failure.to_string()),
            }
        }
        drop(answers);
        let moment = Moment::at((self.clock)());
        let made = spawn_blocking(move || {
            heard.finish(&cluster);
            let shown = Shown::of(&cluster, heard);
            let topology = topology::topology(&cluster, &shown, &moment, begin);
            (shown, serde_json::to_vec(&topology).unwrap_or_default())
        });
        // It is cancelled only with the program.
        let Ok((shown, topology)) = made.await else { return };
        let figures = shown.services.iter().map(|(name, seen)| (name, seen.load.figures()));
        self.history.lock().add(moment.now, moment.unix_ms(), figures);
        let round = Round { at: moment.now, shown, topology: topology.into() };
        self.round.send_replace(Some(Arc::new(round)));
    }
}

async fn ask(proxy: &Asked) -> Result<Answers, Failure> {
    let bodies = client::get(proxy.admin, answers::PATHS).await?;
    // A MiB of JSON takes a while: not on the thread that serves discovery.
    match spawn_blocking(move || Answers::parse(&bodies)).await {
        Ok(answers) => answers.map_err(Failure::NotUnderstood),
        Err(_) => Err(Failure::NotUnderstood("it was not read".to_owned())),
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
