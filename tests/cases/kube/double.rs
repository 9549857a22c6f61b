//! The double itself, as a client of kube sees it.

use std::{collections::BTreeMap, time::Duration};

use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    coordination::v1::Lease,
    core::v1::{ConfigMap, Namespace, Pod},
};
use kube::{
    Api, Error, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
    runtime::watcher,
};
use remora_tests::{
    apiserver::{ApiServer, Cut, Fault},
    wait::within,
};
use serde_json::json;

fn config_map(name: &str, value: &str) -> ConfigMap {
    let data = BTreeMap::from([("k".to_owned(), value.to_owned())]);
    let mut map = ConfigMap { data: Some(data), ..ConfigMap::default() };
    map.metadata.name = Some(name.to_owned());
    map
}

fn code<T>(result: Result<T, Error>) -> u16 {
    match result {
        Err(Error::Api(status)) => status.code,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("no error"),
    }
}

#[tokio::test]
async fn writes_are_checked_against_versions_and_names() {
    let api = ApiServer::start().await;
    let maps: Api<ConfigMap> = Api::namespaced(api.client(), "default");
    let params = PostParams::default();
    let made = maps.create(&params, &config_map("a", "1")).await.unwrap();
    assert!(made.metadata.uid.is_some() && made.metadata.creation_timestamp.is_some());
    assert_eq!(code(maps.create(&params, &config_map("a", "1")).await), 409);
    assert_eq!(code(maps.get("b").await), 404);

    let mut newer = made.clone();
    newer.data = config_map("a", "2").data;
    let replaced = maps.replace("a", &params, &newer).await.unwrap();
    assert_ne!(replaced.resource_version(), made.resource_version());
    assert_eq!(code(maps.replace("a", &params, &newer).await), 409, "a stale version");
    let patch = Patch::Merge(json!({"data": {"k": "2"}}));
    let same = maps.patch("a", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(same.resource_version(), replaced.resource_version(), "nothing changed");

    let mut apply = PatchParams::apply("other");
    let patch = Patch::Apply(json!({"data": {"k": "3"}}));
    assert_eq!(code(maps.patch("a", &apply, &patch).await), 400, "an apply without apiVersion");
    let patch = Patch::Apply(config_map("a", "3"));
    assert_eq!(code(maps.patch("a", &apply, &patch).await), 409, "the field is another's");
    apply.force = true;
    let applied = maps.patch("a", &apply, &patch).await.unwrap();
    assert_eq!(applied.data.unwrap()["k"], "3");
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(code(maps.get("a").await), 404);
    let absent: Api<ConfigMap> = Api::namespaced(api.client(), "nope");
    assert_eq!(code(absent.create(&params, &config_map("a", "1")).await), 404);
}

#[tokio::test]
async fn lists_come_in_pages_of_one_version() {
    let api = ApiServer::start().await;
    for number in 0..5 {
        api.put(json!({"apiVersion": "v1", "kind": "ConfigMap",
                       "metadata": {"name": format!("m{number}"), "labels": {"odd": (number % 2).to_string()}}}));
    }
    let maps: Api<ConfigMap> = Api::all(api.client());
    let first = maps.list(&ListParams::default().limit(2)).await.unwrap();
    assert_eq!((first.items.len(), first.metadata.remaining_item_count), (2, Some(3)));
    api.remove("configmaps", "default", "m3");
    let token = first.metadata.continue_.clone().unwrap();
    let next = ListParams::default().limit(2).continue_token(&token);
    let second = maps.list(&next).await.unwrap();
    let names: Vec<String> = second.iter().map(ResourceExt::name_any).collect();
    assert_eq!(names, ["m2", "m3"], "as it was when the list began");
    assert_eq!(second.metadata.resource_version, first.metadata.resource_version);
    let odd = maps.list(&ListParams::default().labels("odd=1")).await.unwrap();
    assert_eq!(odd.items.len(), 1);
    let named = maps.list(&ListParams::default().fields("metadata.name=m4")).await.unwrap();
    assert_eq!(named.items.len(), 1);
    let metadata = maps.list_metadata(&ListParams::default()).await.unwrap();
    assert_eq!(metadata.items.len(), 4);
    api.compact();
    assert_eq!(code(maps.list(&next).await), 410, "the version is forgotten");
}

#[tokio::test]
async fn a_watch_tells_history_then_what_happens_then_ends() {
    let api = ApiServer::start().await;
    let before =
        api.put(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}));
    let version = before["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    api.merge("configmaps", "default", "a", json!({"metadata": {"labels": {"x": "1"}}}));
    let maps: Api<ConfigMap> = Api::all(api.client());
    let params = WatchParams::default().labels("x=1").timeout(20);
    let mut events = maps.watch(&params, &version).await.unwrap().boxed();
    let mut next = async || within("an event", events.try_next()).await.unwrap();
    assert!(matches!(next().await, Some(WatchEvent::Added(_))));
    api.merge("configmaps", "default", "a", json!({"data": {"k": "v"}}));
    assert!(matches!(next().await, Some(WatchEvent::Modified(_))));
    api.merge("configmaps", "default", "a", json!({"metadata": {"labels": {"x": "2"}}}));
    let Some(WatchEvent::Deleted(left)) = next().await else { panic!("not deleted") };
    assert_eq!(left.labels()["x"], "1", "it leaves the selection as it was in it");
    assert_eq!(api.watches("configmaps"), 1);
    api.cut_watches(Cut::Clean);
    assert!(next().await.is_none());
}

#[tokio::test]
async fn a_forgotten_version_is_410_and_a_watcher_lists_again() {
    let api = ApiServer::start().await;
    let namespaces: Api<Namespace> = Api::all(api.client());
    let config = watcher::Config::default();
    let mut events = watcher(namespaces, config).boxed();
    let mut names = Vec::new();
    loop {
        match within("the first list", events.try_next()).await.unwrap().unwrap() {
            watcher::Event::InitApply(namespace) => names.push(namespace.name_any()),
            watcher::Event::InitDone => break,
            _ => {}
        }
    }
    assert_eq!(names.len(), 5);
    api.namespace("shop", &[]);
    let event = within("an event", events.try_next()).await.unwrap().unwrap();
    assert!(matches!(event, watcher::Event::Apply(namespace) if namespace.name_any() == "shop"));
    api.cut_watches(Cut::Expired);
    let lists = |api: &ApiServer| api.asked().iter().filter(|asked| asked.verb == "list").count();
    let before = lists(&api);
    loop {
        match within("a new list", events.next()).await.unwrap() {
            Ok(watcher::Event::InitDone) => break,
            Ok(_) => {}
            Err(error) => assert!(error.to_string().contains("too old"), "{error}"),
        }
    }
    assert!(lists(&api) > before);
}

#[tokio::test]
async fn a_pod_with_a_node_stays_terminating_until_it_is_removed() {
    let api = ApiServer::start().await;
    let pods: Api<Pod> = Api::namespaced(api.client(), "default");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "web-"},
                     "spec": {"nodeName": "node1", "containers": [{"name": "app", "image": "i"}]}});
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let made = pods.create(&PostParams::default(), &pod).await.unwrap();
    let name = made.name_any();
    assert!(name.starts_with("web-") && name.len() == 9, "{name}");
    let left = pods.delete(&name, &DeleteParams::default()).await.unwrap().left().unwrap();
    assert!(left.metadata.deletion_timestamp.is_some());
    assert!(pods.get(&name).await.is_ok());
    assert!(api.remove("pods", "default", &name));
    assert_eq!(code(pods.get(&name).await), 404);
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let dry = pods.create(&dry, &pod).await.unwrap();
    assert!(dry.resource_version().is_none());
    assert_eq!(api.objects("pods").len(), 0);
}

#[tokio::test]
async fn tokens_are_reviewed_by_audience_and_pod() {
    let api = ApiServer::start().await;
    let container = json!([{"name": "app"}]);
    api.put(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
                   "spec": {"nodeName": "node1", "containers": container}}));
    let token = api.issue_token("default", "web", Some("web"), &["identity.remora.io"]);
    let reviews: Api<TokenReview> = Api::all(api.client());
    let review = async |token: &str, audience: &str| {
        let audiences = Some(vec![audience.to_owned()]);
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences };
        let review = TokenReview { spec, ..TokenReview::default() };
        let review = reviews.create(&PostParams::default(), &review).await.unwrap();
        review.status.unwrap()
    };
    let good = review(&token, "identity.remora.io").await;
    assert_eq!(good.authenticated, Some(true));
    let user = good.user.unwrap();
    assert_eq!(user.username.as_deref(), Some("system:serviceaccount:default:web"));
    assert_eq!(user.extra.unwrap()["authentication.kubernetes.io/pod-name"], ["web"]);
    for (token, audience) in [(token.as_str(), "other"), ("nonsense", "identity.remora.io")] {
        let bad = review(token, audience).await;
        assert!(bad.authenticated.is_none() && bad.error.is_some());
    }
    api.remove("pods", "default", "web");
    let gone = review(&token, "identity.remora.io").await;
    assert!(gone.error.unwrap().contains("has been invalidated"));
}

#[tokio::test]
async fn roles_decide_once_they_count() {
    let api = ApiServer::start().await;
    let user = "system:serviceaccount:remora-system:remora-control-plane";
    let client = api.client_as(user);
    let leases: Api<Lease> = Api::namespaced(client.clone(), "remora-system");
    assert_eq!(code(leases.get("a").await), 404);
    api.enforce_rbac();
    assert_eq!(code(leases.get("a").await), 403);
    let subject = json!([{"kind": "ServiceAccount", "name": "remora-control-plane",
                          "namespace": "remora-system"}]);
    let group = "rbac.authorization.k8s.io";
    api.put(json!({"apiVersion": format!("{group}/v1"), "kind": "Role",
        "metadata": {"name": "r", "namespace": "remora-system"},
        "rules": [{"apiGroups": ["coordination.k8s.io"], "resources": ["leases"],
                   "resourceNames": ["a"], "verbs": ["get"]}]}));
    api.put(json!({"apiVersion": format!("{group}/v1"), "kind": "RoleBinding",
        "metadata": {"name": "r", "namespace": "remora-system"}, "subjects": subject,
        "roleRef": {"apiGroup": group, "kind": "Role", "name": "r"}}));
    assert_eq!(code(leases.get("a").await), 404);
    assert_eq!(code(leases.get("b").await), 403);
    assert_eq!(code(leases.list(&ListParams::default()).await), 403);
    let elsewhere: Api<Lease> = Api::namespaced(client, "default");
    assert_eq!(code(elsewhere.get("a").await), 403);
    assert!(api.asked().iter().any(|asked| asked.user == user && asked.verb == "list"));
}

#[tokio::test]
async fn requests_fail_as_told_and_a_restart_forgets_versions() {
    let mut api = ApiServer::start().await;
    let namespaces: Api<Namespace> = Api::all(api.client());
    api.fail_times(1, "list", "namespaces", Fault::Forbidden);
    assert_eq!(code(namespaces.list(&ListParams::default()).await), 403);
    // The client repeats what was refused for a moment.
    api.fail_times(1, "*", "*", Fault::TooManyRequests);
    assert!(namespaces.list(&ListParams::default()).await.is_ok());
    api.fail_times(1, "*", "*", Fault::Internal);
    assert_eq!(code(namespaces.list(&ListParams::default()).await), 500);
    api.fail_times(1, "*", "*", Fault::Reset);
    assert!(namespaces.list(&ListParams::default()).await.is_err());
    api.fail("list", "*", Fault::Hang);
    let everything = ListParams::default();
    let hung = namespaces.list(&everything);
    assert!(tokio::time::timeout(Duration::from_millis(50), hung).await.is_err());
    api.heal();
    let list = namespaces.list(&ListParams::default()).await.unwrap();
    let version = list.metadata.resource_version.unwrap();

    api.kill();
    assert!(namespaces.list(&ListParams::default()).await.is_err());
    api.restart().await;
    assert_eq!(namespaces.list(&ListParams::default()).await.unwrap().items.len(), 5);
    let mut events = namespaces.watch(&WatchParams::default(), &version).await.unwrap().boxed();
    let event = within("an event", events.try_next()).await.unwrap().unwrap();
    assert!(matches!(event, WatchEvent::Error(status) if status.code == 410));
}
