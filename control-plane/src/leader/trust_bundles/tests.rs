use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use remora_core::drain::Drain;
use serde_json::json;
use tokio::task::JoinHandle;

use super::*;
use crate::leader::testing::{Fake, Fault};

struct Running {
    fake: Arc<Fake>,
    leading: watch::Sender<bool>,
    bundle: watch::Sender<Arc<PublishedBundle>>,
    namespaces: watch::Sender<Arc<BTreeSet<Arc<str>>>>,
    _drain: Drain,
    _task: JoinHandle<()>,
}

fn bundle(pem: &str) -> Arc<PublishedBundle> {
    let annotations = [("remora.io/kept".to_owned(), format!("{pem} until"))].into();
    Arc::new(PublishedBundle { pem: pem.to_owned(), annotations })
}

fn set(names: &[&str]) -> Arc<BTreeSet<Arc<str>>> {
    Arc::new(names.iter().map(|name| Arc::from(*name)).collect())
}

fn start(pem: &str, names: &[&str]) -> Running {
    let fake = Fake::new();
    let (drain, watch) = Drain::new();
    let (leading, leads) = watch::channel(true);
    let (bundle, content) = watch::channel(self::bundle(pem));
    let (namespaces, wanted) = watch::channel(set(names));
    let task = tokio::spawn(publish(
        fake.client(),
        "remora-system".to_owned(),
        leads,
        content,
        wanted,
        fastrand::Rng::with_seed(1),
        watch,
    ));
    Running { fake, leading, bundle, namespaces, _drain: drain, _task: task }
}

fn path(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/configmaps/remora-trust-bundle")
}

impl Running {
    async fn settle(&self, seconds: u64) -> Vec<String> {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let mut writes = self.fake.writes();
        for write in &mut writes {
            let namespace = write.split('/').nth(4).unwrap_or_default().to_owned();
            *write = namespace;
        }
        writes.sort();
        writes
    }

    fn pem(&self, namespace: &str) -> Option<String> {
        let map = self.fake.get(&path(namespace))?;
        map["data"]["ca.crt"].as_str().map(ToOwned::to_owned)
    }
}

#[tokio::test(start_paused = true)]
async fn own_and_wanted_namespaces_get_it_and_a_new_one_within_a_second() {
    let running = start("one", &["shop"]);
    assert_eq!(running.settle(1).await, ["remora-system", "shop"]);
    let map = running.fake.get(&path("shop")).unwrap();
    assert_eq!(map["metadata"]["labels"]["app.kubernetes.io/part-of"], "remora");
    assert_eq!(map["metadata"]["annotations"]["remora.io/kept"], "one until");
    running.namespaces.send_replace(set(&["shop", "new"]));
    assert_eq!(running.settle(1).await, ["new"]);
    assert_eq!(running.pem("new").as_deref(), Some("one"));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_without_a_bundle_or_without_leading() {
    let running = start("", &["shop"]);
    assert!(running.settle(3600).await.is_empty());
    running.leading.send_replace(false);
    running.bundle.send_replace(bundle("one"));
    assert!(running.settle(3600).await.is_empty());
    running.leading.send_replace(true);
    assert_eq!(running.settle(1).await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_new_bundle_reaches_all_and_what_others_added_stays() {
    let running = start("one", &["shop"]);
    running.settle(1).await;
    let theirs = json!({ "metadata": { "labels": { "team": "x" } }, "data": { "more": "theirs" } });
    running.fake.set(&path("shop"), Some(theirs));
    assert!(running.settle(60).await.is_empty(), "that is none of our business");
    running.bundle.send_replace(bundle("one and two"));
    assert_eq!(running.settle(1).await, ["remora-system", "shop"]);
    let map = running.fake.get(&path("shop")).unwrap();
    assert_eq!(map["data"], json!({ "more": "theirs", "ca.crt": "one and two" }));
    assert_eq!(map["metadata"]["labels"]["team"], "x");
}

#[tokio::test(start_paused = true)]
async fn what_somebody_deletes_or_changes_comes_back() {
    let running = start("one", &["shop", "bank"]);
    running.settle(5).await;
    running.fake.set(&path("shop"), None);
    assert_eq!(running.settle(2).await, ["shop"]);
    assert_eq!(running.pem("shop").as_deref(), Some("one"));
    running.fake.set(&path("bank"), Some(json!({ "data": { "ca.crt": "forged" } })));
    assert_eq!(running.settle(2).await, ["bank"]);
    assert_eq!(running.pem("bank").as_deref(), Some("one"));
}

#[tokio::test(start_paused = true)]
async fn all_are_written_again_every_ten_minutes() {
    let running = start("one", &["shop"]);
    running.settle(1).await;
    let written = running.settle(3600).await.len();
    assert!((12..=14).contains(&written), "{written} of two namespaces in an hour");
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_goes_is_left_alone_until_it_is_there_again() {
    let running = start("one", &[]);
    running.settle(1).await;
    running.fake.terminate("going", true);
    let requests = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&requests);
    running.fake.faults(move |_, path| {
        count.fetch_add(usize::from(path.contains("/going/")), Ordering::SeqCst);
        Fault::default()
    });
    running.namespaces.send_replace(set(&["going"]));
    assert!(running.settle(300).await.is_empty());
    assert!((15..=25).contains(&requests.load(Ordering::SeqCst)), "{requests:?} in 5 minutes");
    running.fake.terminate("going", false);
    assert_eq!(running.settle(16).await, ["going"]);
}

#[tokio::test(start_paused = true)]
async fn failures_are_repeated_and_hold_up_no_other_namespace() {
    let running = start("one", &[]);
    running.settle(1).await;
    running.fake.faults(|_, path| Fault {
        refuse: path.contains("/full/").then_some(403),
        ..Fault::default()
    });
    running.namespaces.send_replace(set(&["full", "shop"]));
    assert_eq!(running.settle(1).await, ["shop"]);
    running.settle(20).await;
    running.fake.faults(|_, _| Fault::default());
    assert_eq!(running.settle(60).await, ["full"]);
}

#[tokio::test(start_paused = true)]
async fn at_most_eight_are_written_at_a_time() {
    let names: Vec<String> = (0..100).map(|n| format!("ns-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let running = start("", &names);
    running.fake.faults(|_, _| Fault { before: Duration::from_millis(50), ..Fault::default() });
    running.bundle.send_replace(bundle("one"));
    assert_eq!(running.settle(2).await.len(), 101);
    assert_eq!(running.fake.most_writing(), AT_ONCE);
}
