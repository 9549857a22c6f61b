//! A recorded story, decoded and indexed as it came, and in other orders than it came.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::LazyLock,
};

use proptest::prelude::*;
use serde::Deserialize;
use serde_json::Value;

use super::{kinds::Watched, reflector::decoded, *};
use crate::index::{
    Index,
    answer::{Answer, Caller, Target},
};

const STORY: &str = include_str!("fixtures/story.ndjson");
const CART: &str = "10.96.64.233:80";

#[derive(Deserialize)]
struct Line {
    at: f64,
    kind: String,
    #[serde(rename = "type")]
    what: String,
    object: Value,
}

fn story() -> &'static [(Line, Option<Event>)] {
    static DECODED: LazyLock<Vec<(Line, Option<Event>)>> = LazyLock::new(decode);
    &DECODED
}

fn decode() -> Vec<(Line, Option<Event>)> {
    let line = |text: &str| {
        let line: Line = serde_json::from_str(text).unwrap();
        let raw = serde_json::json!({"type": line.what, "object": line.object}).to_string();
        let event = match line.kind.as_str() {
            "namespaces" => event::<NamespaceMeta>(&raw),
            "nodes" => event::<NodeMeta>(&raw),
            "services" => event::<core::Service>(&raw),
            "pods" => event::<core::Pod>(&raw),
            "endpointslices" => event::<EndpointSlice>(&raw),
            other => panic!("{other}"),
        };
        (line, event)
    };
    STORY.lines().map(line).collect()
}

fn event<K: Watched>(line: &str) -> Option<Event> {
    decoded::<K>(line.as_bytes()).unwrap().map(Told::into_event)
}

fn at(index: &Index, address: &str) -> Answer {
    let caller = Caller { namespace: "shop".to_owned(), ..Caller::default() };
    index.resolve(&Target::Address(address.parse().unwrap()), &caller)
}

/// What the EndpointSlice's conditions say can take traffic, as kube-proxy reads them.
fn by_conditions(slice: &Value) -> BTreeSet<SocketAddr> {
    let endpoints = slice["endpoints"].as_array().cloned().unwrap_or_default();
    let those = |wanted: &dyn Fn(&Value) -> bool| -> BTreeSet<SocketAddr> {
        let chosen = endpoints.iter().filter(|endpoint| wanted(&endpoint["conditions"]));
        chosen
            .map(|e| format!("{}:8080", e["addresses"][0].as_str().unwrap()).parse().unwrap())
            .collect()
    };
    let ready = those(&|c| c["ready"] == true);
    if !ready.is_empty() {
        return ready;
    }
    those(&|c| c["serving"] == true && c["terminating"] == true)
}

#[test]
fn endpoints_follow_the_conditions_from_line_to_line() {
    let mut index = Index::new("cluster.local", "cluster.local");
    let mut ended = BTreeSet::new();
    let (mut seen, mut most) = (0, 0);
    for (line, event) in story() {
        index.apply(event.clone());
        if line.kind == "pods" && line.object["status"]["phase"] == "Failed" {
            let ip = line.object["status"]["podIP"].as_str().unwrap();
            ended.insert(format!("{ip}:8080").parse::<SocketAddr>().unwrap());
        }
        if line.kind != "endpointslices" || line.what == "DELETED" {
            continue;
        }
        let Answer::Service(snapshot) = at(&index, CART) else { panic!("at {}", line.at) };
        let now: BTreeSet<SocketAddr> = snapshot.endpoints.iter().map(|e| e.address).collect();
        let mut expected = by_conditions(&line.object);
        expected.retain(|address| !ended.contains(address));
        assert_eq!(now, expected, "at {}", line.at);
        for endpoint in &*snapshot.endpoints {
            assert_eq!((&*endpoint.owner, &*endpoint.zone), ("Deployment/cart", "zone-a"));
            assert_eq!(endpoint.identity, None, "no sidecar in this story");
        }
        seen += 1;
        most = most.max(now.len());
    }
    assert!(seen > 30 && most == 6, "{seen} slices, {most} endpoints");
    assert_eq!(at(&index, CART), Answer::NotOurs, "deleted in the end");
}

proptest! {
    /// Watches of different kinds are not ordered against each other, and any of them may list
    /// anew at any moment.
    #[test]
    fn any_interleaving_of_the_kinds_ends_in_the_same_state(
        until in 0usize..200,
        picks in prop::collection::vec((any::<u8>(), 0u8..12), 200),
    ) {
        let events = story().iter().filter_map(|(_, event)| event.clone()).take(until);
        let mut expected = Index::new("cluster.local", "cluster.local");
        let mut queues: BTreeMap<Kind, VecDeque<Event>> = BTreeMap::new();
        for event in events {
            let kind = match &event {
                Event::Apply(object) => object.kind(),
                Event::Delete(key) => key.kind,
                _ => panic!("no other events in a watch"),
            };
            queues.entry(kind).or_default().push_back(event.clone());
            expected.apply([event]);
        }
        let mut index = Index::new("cluster.local", "cluster.local");
        let mut listed = First::default();
        let mut picks = picks.into_iter();
        while !queues.is_empty() {
            let (which, relist) = picks.next().unwrap_or_default();
            let kind = *queues.keys().nth(usize::from(which) % queues.len()).unwrap();
            let queue = queues.get_mut(&kind).unwrap();
            let event = queue.pop_front().unwrap();
            if queue.is_empty() {
                queues.remove(&kind);
            }
            listed.take(Told::Changed(event.clone()));
            // A list instead of the change, now and then.
            if relist == 0 {
                let all = listed.0.get(&kind).into_iter().flat_map(BTreeMap::values).cloned();
                index.apply([Event::Replace(kind, all.collect())]);
            } else {
                index.apply([event]);
            }
        }
        prop_assert_eq!(at(&index, CART), at(&expected, CART));
        for last in 2..16 {
            let pod = format!("10.244.0.{last}:8080");
            prop_assert_eq!(at(&index, &pod), at(&expected, &pod));
        }
    }
}
