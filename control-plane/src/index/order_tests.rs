//! Whatever the order in which objects of different kinds come, and however they come: the same
//! answers, and those whose answer changed are told.

use std::collections::VecDeque;

use k8s_openapi::api::discovery::v1 as discovery;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// One change of one object: `None` deletes it.
type Op = (Key, Option<Object>);

fn key(kind: Kind, name: &str) -> Key {
    let namespace = if matches!(kind, Kind::Namespace | Kind::Node) { "" } else { "shop" };
    Key { kind, namespace: namespace.to_owned(), name: name.to_owned() }
}

fn annotated(value: bool, annotations: Value) -> Value {
    if value { annotations } else { json!({}) }
}

/// A small world in which addresses, names and nodes collide often.
fn op() -> impl Strategy<Value = Op> {
    (0u8..7, 0u8..3, 0u8..4, any::<[bool; 3]>()).prop_map(|(kind, which, variant, flags)| {
        let gone = variant == 3;
        let (key, object) = match kind {
            0 => namespace(flags),
            1 => node(which, flags),
            2 => service(which, variant, flags),
            3 => pod(which, variant, flags),
            4 => route(which, variant, flags),
            5 => grant(flags),
            _ => slice(which, variant, flags),
        };
        (key, (!gone).then_some(object))
    })
}

fn namespace(flags: [bool; 3]) -> (Key, Object) {
    let all = [
        ("config.remora.io/skip-inbound-ports", "8080"),
        ("config.remora.io/ingress", "enabled"),
        ("config.remora.io/default-outbound-policy", "deny"),
    ];
    let chosen = all.iter().zip(flags).filter(|(_, flag)| *flag).map(|(pair, _)| *pair);
    let annotations: BTreeMap<&str, &str> = chosen.collect();
    let object = json!({"metadata": {"name": "shop", "annotations": annotations}});
    let object: core::Namespace = serde_json::from_value(object).unwrap();
    (key(Kind::Namespace, "shop"), Object::Namespace(Arc::new((&object).into())))
}

fn node(which: u8, flags: [bool; 3]) -> (Key, Object) {
    let name = Name::new("", &format!("n{which}"));
    let zone = if flags[0] { "a" } else { "b" }.into();
    (key(Kind::Node, &name.name), Object::Node(Arc::new(source::Node { name, zone })))
}

fn service(which: u8, variant: u8, flags: [bool; 3]) -> (Key, Object) {
    let name = format!("s{which}");
    let object = json!({"metadata": {"name": name, "namespace": "shop"}, "spec": {
        "clusterIP": if flags[0] { format!("10.96.0.{variant}") } else { "None".to_owned() },
        "ports": [{"name": "http", "port": 80, "appProtocol": if flags[1] { "http" } else { "" }}]}});
    let object: core::Service = serde_json::from_value(object).unwrap();
    (key(Kind::Service, &name), Object::Service(Arc::new((&object).into())))
}

fn pod(which: u8, variant: u8, flags: [bool; 3]) -> (Key, Object) {
    let name = format!("p{which}");
    let meshed = json!({"remora.io/proxy-version": "1"});
    let object = json!({
        "metadata": {"name": name, "namespace": "shop", "annotations": annotated(flags[0], meshed)},
        "spec": {"nodeName": format!("n{}", variant % 2), "containers": []},
        "status": {"podIP": format!("10.244.0.{variant}"),
            "phase": if flags[1] && flags[2] { "Failed" } else { "Running" }},
    });
    let object: core::Pod = serde_json::from_value(object).unwrap();
    (key(Kind::Pod, &name), Object::Pod(Arc::new(source::Pod::described(&object))))
}

fn slice(which: u8, variant: u8, flags: [bool; 3]) -> (Key, Object) {
    let name = format!("e{which}");
    let pod = |n: u8| json!({"kind": "Pod", "namespace": "shop", "name": format!("p{n}")});
    let endpoint = |n: u8, named: bool| {
        json!({"addresses": [format!("10.244.0.{n}")], "conditions": {"ready": flags[1]},
            "targetRef": if named { pod(which) } else { Value::Null }})
    };
    let object = json!({
        "metadata": {"name": name, "namespace": "shop",
            "labels": {"kubernetes.io/service-name": format!("s{}", variant % 3)}},
        "addressType": "IPv4",
        "endpoints": [endpoint(variant, flags[0]), endpoint((variant + 1) % 3, false)],
        "ports": [{"name": "http", "port": 8080}],
    });
    let object: discovery::EndpointSlice = serde_json::from_value(object).unwrap();
    (key(Kind::EndpointSlice, &name), Object::EndpointSlice(Arc::new((&object).into())))
}

/// Of either kind and either namespace, to Services that may be there.
fn route(which: u8, variant: u8, flags: [bool; 3]) -> (Key, Object) {
    let (name, namespace) = (format!("r{which}"), if flags[0] { "shop" } else { "web" });
    let object = json!({
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": format!("s{}", variant % 2),
                "namespace": "shop"}],
            "rules": [{"backendRefs": [{"name": format!("s{which}"), "port": 80, "namespace":
                if flags[2] { "shop" } else { "other" }}]}],
        },
    });
    let (kind, route) = if flags[1] {
        (Kind::HttpRoute, source::route::Route::http(&serde_json::from_value(object).unwrap()))
    } else {
        (Kind::GrpcRoute, source::route::Route::grpc(&serde_json::from_value(object).unwrap()))
    };
    (Key { kind, namespace: namespace.to_owned(), name }, Object::Route(Arc::new(route)))
}

fn grant(flags: [bool; 3]) -> (Key, Object) {
    let object = json!({
        "metadata": {"name": "g", "namespace": "other"},
        "spec": {
            "from": [{"group": "gateway.networking.k8s.io", "namespace": "shop",
                "kind": if flags[0] { "HTTPRoute" } else { "GRPCRoute" }}],
            "to": [{"group": "", "kind": "Service"}],
        },
    });
    let object: source::route::WrittenGrant = serde_json::from_value(object).unwrap();
    let key =
        Key { kind: Kind::ReferenceGrant, namespace: "other".to_owned(), name: "g".to_owned() };
    (key, Object::ReferenceGrant(Arc::new((&object).into())))
}

fn event((key, object): Op) -> Event {
    object.map_or(Event::Delete(key), Event::Apply)
}

fn targets() -> Vec<Target> {
    let mut all = vec![Target::Inbound];
    for n in 0..4 {
        for address in
            [format!("10.96.0.{n}:80"), format!("10.96.0.{n}:81"), format!("10.244.0.{n}:8080")]
        {
            all.push(Target::Address(address.parse().unwrap()));
        }
        all.push(Target::authority(&format!("s{n}.shop:80")).unwrap());
    }
    all
}

/// One of the Services' namespace, and one of another.
fn callers() -> [Arc<Caller>; 2] {
    ["shop", "web"].map(|namespace| {
        let (namespace, pod) = (namespace.to_owned(), "p0".to_owned());
        Arc::new(Caller { namespace, pod, ..Caller::default() })
    })
}

fn questions() -> Vec<(Target, Arc<Caller>)> {
    let of = |caller: Arc<Caller>| {
        targets().into_iter().map(move |target| (target, Arc::clone(&caller)))
    };
    callers().into_iter().flat_map(of).collect()
}

fn answers(index: &Index) -> Vec<Answer> {
    questions().iter().map(|(target, caller)| index.resolve(target, caller)).collect()
}

fn statuses(index: &Index) -> BTreeMap<routes::RouteId, Option<routes::RouteStatus>> {
    index.route_ids().map(|id| (id.clone(), index.route_status(id))).collect()
}

proptest! {
    #[test]
    fn any_interleaving_of_kinds_with_lists_in_between_gives_the_same_answers(
        ops in prop::collection::vec(op(), 0..60),
        picks in prop::collection::vec((0u8..5, 0u8..8, any::<bool>()), 60),
    ) {
        let mut expected = Index::new("cluster.local", "cluster.local");
        ops.iter().cloned().for_each(|op| _ = expected.apply([event(op)]));

        let mut queues: BTreeMap<Kind, VecDeque<Op>> = BTreeMap::new();
        ops.into_iter().for_each(|op| queues.entry(op.0.kind).or_default().push_back(op));
        let mut known: BTreeMap<Kind, BTreeMap<Key, Object>> = BTreeMap::new();
        let mut index = Index::new("cluster.local", "cluster.local");
        for (id, (target, caller)) in questions().into_iter().enumerate() {
            index.subscribe(SubscriberId { stream: 0, id: id as u64 }, target, caller);
        }
        let (mut told, mut said) = (answers(&index), BTreeMap::new());
        let mut batch = Vec::new();
        let mut picks = picks.into_iter();
        while !queues.is_empty() {
            let (which, relist, more) = picks.next().unwrap_or_default();
            let kind = *queues.keys().nth(usize::from(which) % queues.len()).unwrap();
            let queue = queues.get_mut(&kind).unwrap();
            let (key, object) = queue.pop_front().unwrap();
            if queue.is_empty() {
                queues.remove(&kind);
            }
            let of_kind = known.entry(kind).or_default();
            match &object {
                Some(object) => _ = of_kind.insert(key.clone(), object.clone()),
                None => _ = of_kind.remove(&key),
            }
            batch.push(match relist {
                0 => Event::Replace(kind, of_kind.values().cloned().collect()),
                1 => Event::Reset(known.values().flat_map(BTreeMap::values).cloned().collect()),
                _ => event((key, object)),
            });
            if more && !queues.is_empty() {
                continue;
            }
            let applied = index.apply(std::mem::take(&mut batch));
            for id in applied.touched {
                told[id.id as usize] = index.answer(id).unwrap();
            }
            prop_assert_eq!(&told, &answers(&index), "someone was not told");
            for id in index.take_routes_due() {
                said.insert(id.clone(), index.route_status(&id));
            }
            said.retain(|id, _| index.route_status(id).is_some());
            prop_assert_eq!(&said, &statuses(&index), "a status was not written");
        }
        prop_assert_eq!(answers(&index), answers(&expected));
        prop_assert_eq!(statuses(&index), statuses(&expected));
    }
}
