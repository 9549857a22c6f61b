//! The namespaces' label follows their annotation.

use std::{sync::Arc, time::Duration};

use remora_core::drain::Drain;
use serde_json::{Value, json};

use super::{NAMESPACES, api::Api, fixed_time, namespace};
use crate::webhook::{
    events::{self, Events},
    metrics::Metrics,
    namespaces::{Lookup, Namespaces},
};

struct Mirror {
    api: Api,
    namespaces: Arc<Namespaces>,
    metrics: Arc<Metrics>,
    drain: Drain,
}

fn start(api: &Api) -> Mirror {
    let metrics = Arc::new(Metrics::default());
    let (events, queue) = Events::new(Arc::clone(&metrics));
    let namespaces = Namespaces::new(api.client(), "remora-system".into(), Arc::clone(&metrics));
    let (drain, watch) = Drain::new();
    let (watching, writing) = (Arc::clone(&namespaces), Arc::clone(&namespaces));
    let (client, counted) = (api.client(), Arc::clone(&metrics));
    tokio::spawn(watch.track({
        let watch = watch.clone();
        async move {
            tokio::join!(
                watching.watch(&events, &watch),
                writing.mirror(&watch),
                events::write(queue, client, "replica-0", fixed_time, &counted, &watch),
            )
        }
    }));
    Mirror { api: api.clone(), namespaces, metrics, drain }
}

fn key(name: &str) -> String {
    format!("{NAMESPACES}/{name}")
}

fn annotated(value: &str) -> Value {
    namespace(&json!({ "remora.io/inject": value }), &json!({ "team": "a" }))
}

impl Mirror {
    /// Waits until a namespace has this label, and nothing else has changed.
    async fn label(&self, name: &str, label: Option<&str>) {
        let is_right = |object: Option<&Value>| {
            object.is_some_and(|o| o["metadata"]["labels"]["remora.io/inject"].as_str() == label)
        };
        self.api.until(&key(name), is_right).await;
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.metrics.registry()).unwrap();
        text
    }
}

#[tokio::test]
async fn the_label_follows_the_annotation_through_its_life() {
    let api = Api::new();
    api.put(&key("before"), annotated("enabled"));
    let mirror = start(&api);
    mirror.label("before", Some("enabled")).await;
    api.put(&key("shop"), annotated("enabled"));
    mirror.label("shop", Some("enabled")).await;
    assert_eq!(api.get(&key("shop")).unwrap()["metadata"]["labels"]["team"], "a");
    for (value, label) in [("disabled", Some("disabled")), ("enabled", Some("enabled"))] {
        let labels = api.get(&key("shop")).unwrap()["metadata"]["labels"].clone();
        api.put(&key("shop"), namespace(&json!({ "remora.io/inject": value }), &labels));
        mirror.label("shop", label).await;
    }
    api.put(&key("shop"), namespace(&json!({}), &json!({ "remora.io/inject": "enabled" })));
    mirror.label("shop", None).await;
}

#[tokio::test]
async fn several_replicas_come_to_rest() {
    let api = Api::new();
    let mirrors = [start(&api), start(&api), start(&api)];
    for name in ["a", "b", "c"] {
        api.put(&key(name), annotated("enabled"));
        mirrors[0].label(name, Some("enabled")).await;
    }
    // A namespace after the others: what the replicas had to do before is done.
    api.put(&key("z"), annotated("disabled"));
    for mirror in mirrors {
        mirror.label("z", Some("disabled")).await;
        mirror.drain.drain(Duration::from_secs(5)).await;
    }
    let stored = |name| api.get(&key(name)).unwrap()["metadata"]["resourceVersion"].clone();
    // One version by its creator, one by a replica.
    for (name, version) in [("a", "2"), ("b", "4"), ("c", "6"), ("z", "8")] {
        assert_eq!(stored(name), version, "{name}");
    }
}

#[tokio::test]
async fn system_namespaces_are_left_alone() {
    let api = Api::new();
    for name in ["kube-system", "kube-node-lease", "remora-system"] {
        api.put(&key(name), annotated("enabled"));
    }
    let mirror = start(&api);
    api.put(&key("zz"), annotated("enabled"));
    mirror.label("zz", Some("enabled")).await;
    assert_eq!(api.writes(), [format!("PATCH {}", key("zz"))]);
}

#[tokio::test]
async fn a_bad_value_takes_the_label_away_and_is_told() {
    let api = Api::new();
    api.put(&key("shop"), annotated("enabled"));
    let mirror = start(&api);
    mirror.label("shop", Some("enabled")).await;
    let labels = json!({ "remora.io/inject": "enabled" });
    api.put(&key("shop"), namespace(&json!({ "remora.io/inject": "true" }), &labels));
    mirror.label("shop", None).await;
    let events = "apis/events.k8s.io/v1/namespaces/default/events/";
    let mut changes = api.keys(events);
    while changes.is_empty() {
        tokio::task::yield_now().await;
        changes = api.keys(events);
    }
    let event = api.get(&changes[0]).unwrap();
    assert_eq!(
        (&event["reason"], &event["type"]),
        (&json!("InvalidAnnotation"), &json!("Warning"))
    );
    assert_eq!(event["regarding"]["kind"], "Namespace");
    assert!(event["note"].as_str().unwrap().contains("\"true\" is neither enabled nor disabled"));
    assert!(mirror.metrics().contains("remora_injector_namespaces_invalid 1"));
    api.delete(&key("shop"));
    while !mirror.metrics().contains("remora_injector_namespaces_invalid 0") {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_namespace_that_cannot_be_labelled_holds_up_no_other() {
    let api = Api::new();
    let mirror = start(&api);
    api.put(&key("sync"), annotated("enabled"));
    mirror.label("sync", Some("enabled")).await;
    api.refuse(&key("a"), 403);
    api.put(&key("a"), annotated("enabled"));
    api.put(&key("b"), annotated("enabled"));
    mirror.label("b", Some("enabled")).await;
    api.refuse(&key("a"), 200);
    mirror.label("a", Some("enabled")).await;
}

#[tokio::test]
async fn a_lookup_is_answered_from_the_watch_and_else_by_asking() {
    let api = Api::new();
    api.put(&key("shop"), annotated("enabled"));
    let mirror = start(&api);
    mirror.label("shop", Some("enabled")).await;
    assert!(mirror.namespaces.is_synced());
    assert!(matches!(mirror.namespaces.lookup("shop").await, Lookup::Cached(_)));
    assert!(matches!(mirror.namespaces.lookup("gone").await, Lookup::Unknown(_)));
    mirror.drain.drain(Duration::from_secs(5)).await;
    api.put(&key("late"), annotated("enabled"));
    assert!(matches!(mirror.namespaces.lookup("late").await, Lookup::Asked(_)));
}
