use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use remora_core::drain::Drain;

use super::*;
use crate::{
    index::Index,
    leader::testing::{self, Fake, Fault},
    source::{Event, Object, route::Route},
};

const PATH: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/r";

fn service() -> Event {
    let service: Service = serde_json::from_value(json!({
        "metadata": {"namespace": "shop", "name": "cart"},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}}))
    .unwrap();
    Event::Apply(Object::Service(Arc::new((&service).into())))
}

/// A route of a generation, with an entry of another controller.
fn route(generation: i64) -> Value {
    json!({
        "metadata": {"namespace": "shop", "name": "r", "generation": generation},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "cart"}],
            "rules": [{"backendRefs": [{"name": "cart", "port": 80}]}]},
        "status": {"parents": [{"parentRef": {"name": "edge"}, "controllerName": "other.example/x",
            "conditions": [], "theirs": 1}]},
    })
}

fn seen(object: Value) -> Event {
    Event::Apply(Object::Route(Arc::new(Route::http(&serde_json::from_value(object).unwrap()))))
}

/// A leader that writes, and what it needs.
struct Writer {
    fake: Arc<Fake>,
    state: Arc<State>,
    leading: watch::Sender<bool>,
    _drain: Drain,
}

impl Writer {
    fn start() -> Self {
        let (drain, watching) = Drain::new();
        let fake = Fake::new();
        let state = State::new(Index::new("cluster.local", "cluster.local"), Arc::default());
        let (leading, led) = watch::channel(true);
        let rng = fastrand::Rng::with_seed(1);
        let clock = testing::clock;
        let run = publish(fake.client(), led, Arc::clone(&state), clock, rng, watching.clone());
        tokio::spawn(watching.track(run));
        Self { fake, state, leading, _drain: drain }
    }

    /// The API has it, and the watch has told it.
    fn put(&self, object: Value) {
        self.fake.set(PATH, Some(object));
        self.watch();
    }

    fn watch(&self) {
        let object = self.fake.get(PATH).unwrap();
        self.state.apply([service(), seen(object)], Instant::now());
    }

    async fn settled(&self) {
        tokio::time::sleep(Duration::from_secs(120)).await;
    }

    /// Controllers of the entries, and our reason.
    fn entries(&self) -> Vec<String> {
        let object = self.fake.get(PATH).unwrap();
        let entries = object["status"]["parents"].as_array().unwrap();
        let shown = |entry: &Value| {
            let reason = entry["conditions"][0]["reason"].as_str().unwrap_or_default();
            format!("{} {reason}", entry["controllerName"].as_str().unwrap())
        };
        entries.iter().map(shown).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn our_entry_is_written_once_beside_those_of_others() {
    let writer = Writer::start();
    writer.put(route(1));
    writer.settled().await;
    assert_eq!(writer.entries(), ["other.example/x ", "remora.io/mesh-controller Accepted"]);
    let object = writer.fake.get(PATH).unwrap();
    assert_eq!(object["status"]["parents"][0]["theirs"], 1, "left as it is");
    let condition = &object["status"]["parents"][1]["conditions"][0];
    assert_eq!(condition["observedGeneration"], 1);
    assert_eq!(condition["lastTransitionTime"], "2027-01-15T08:00:00Z");
    assert_eq!(writer.fake.writes(), [format!("PATCH {PATH}/status")]);
    writer.watch();
    writer.settled().await;
    assert_eq!(writer.fake.writes(), [] as [String; 0], "it says it already");
}

#[tokio::test(start_paused = true)]
async fn only_the_leader_writes_and_a_new_one_begins_with_all() {
    let writer = Writer::start();
    writer.leading.send_replace(false);
    writer.put(route(1));
    writer.settled().await;
    assert_eq!(writer.fake.writes(), [] as [String; 0]);
    writer.leading.send_replace(true);
    writer.settled().await;
    assert_eq!(writer.fake.writes().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_conflict_is_read_again_and_a_failure_tried_again() {
    let writer = Writer::start();
    let mut refusals = [409, 500, 503].into_iter();
    writer.fake.faults(move |method, _| {
        let refuse = if *method == http::Method::PATCH { refusals.next() } else { None };
        Fault { refuse, ..Fault::default() }
    });
    writer.put(route(1));
    writer.settled().await;
    assert_eq!(writer.entries()[1], "remora.io/mesh-controller Accepted");
    assert_eq!(writer.fake.writes().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_version_that_is_not_known_yet_is_not_judged() {
    let writer = Writer::start();
    writer.fake.set(PATH, Some(route(2)));
    writer.state.apply([service(), seen(route(1))], Instant::now());
    writer.settled().await;
    assert_eq!(writer.fake.writes(), [] as [String; 0]);
    writer.watch();
    writer.settled().await;
    assert_eq!(writer.fake.writes().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_route_that_is_gone_is_let_go() {
    let writer = Writer::start();
    writer.state.apply([service(), seen(route(1))], Instant::now());
    writer.settled().await;
    assert_eq!(writer.fake.writes(), [] as [String; 0]);
}
