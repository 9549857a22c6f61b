use remora_core::drain::Drain;
use tokio::task::JoinHandle;

use super::*;
use crate::leader::testing::{Fake, Fault};

const PATH: &str =
    "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/remora-lint";

struct Running {
    fake: Arc<Fake>,
    leading: watch::Sender<bool>,
    bundle: watch::Sender<Arc<PublishedBundle>>,
    _drain: Drain,
    _task: JoinHandle<()>,
}

fn bundle(pem: &str) -> Arc<PublishedBundle> {
    Arc::new(PublishedBundle { pem: pem.to_owned(), ..PublishedBundle::default() })
}

/// As the installation has it.
fn installed() -> Value {
    let hook = |name: &str| {
        json!({"name": name, "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "failurePolicy": "Ignore", "timeoutSeconds": 2,
            "clientConfig": {"service": {"name": "remora-control-plane", "namespace": "remora-system"}}})
    };
    let webhooks = [hook("routes.lint.remora.io"), hook("services.lint.remora.io")];
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "remora-lint"}, "webhooks": webhooks})
}

fn start(pem: &str, configuration: Option<Value>) -> Running {
    let fake = Fake::new();
    fake.set(PATH, configuration);
    let (drain, watch) = Drain::new();
    let (leading, leads) = watch::channel(true);
    let (bundle, content) = watch::channel(self::bundle(pem));
    let rng = fastrand::Rng::with_seed(1);
    let task = tokio::spawn(publish(fake.client(), leads, content, rng, watch));
    Running { fake, leading, bundle, _drain: drain, _task: task }
}

impl Running {
    /// Writes within a time.
    async fn settle(&self, seconds: u64) -> usize {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        self.fake.writes().len()
    }

    /// The bundles of both webhooks.
    fn bundles(&self) -> Vec<String> {
        let configuration = self.fake.get(PATH).unwrap();
        let bundle = |webhook: &Value| {
            let bundle = webhook["clientConfig"]["caBundle"].clone();
            let bundle: Option<ByteString> = serde_json::from_value(bundle).unwrap();
            String::from_utf8(bundle.unwrap_or_default().0).unwrap()
        };
        configuration["webhooks"].as_array().unwrap().iter().map(bundle).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn both_webhooks_get_the_roots_and_keep_everything_else() {
    let running = start("one", Some(installed()));
    assert_eq!(running.settle(1).await, 1);
    assert_eq!(running.bundles(), ["one", "one"]);
    let configuration = running.fake.get(PATH).unwrap();
    assert_eq!(configuration["webhooks"][1]["timeoutSeconds"], 2);
    assert_eq!(
        configuration["webhooks"][1]["clientConfig"]["service"]["name"],
        "remora-control-plane"
    );
    assert_eq!(running.settle(3600).await, 0, "nothing is wrong any more");
}

#[tokio::test(start_paused = true)]
async fn while_a_root_is_replaced_both_are_there_and_then_the_new_one_alone() {
    let running = start("one\n", Some(installed()));
    running.settle(1).await;
    for pem in ["one\ntwo\n", "two\n"] {
        running.bundle.send_replace(bundle(pem));
        assert_eq!(running.settle(1).await, 1);
        assert_eq!(running.bundles(), [pem, pem]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_somebody_takes_away_or_forges_comes_back_within_a_minute() {
    let running = start("one", Some(installed()));
    running.settle(1).await;
    let mut forged = running.fake.get(PATH).unwrap();
    forged["webhooks"][0]["clientConfig"]["caBundle"] = json!(ByteString(b"forged".to_vec()));
    forged["webhooks"][1]["clientConfig"]["caBundle"] = Value::Null;
    running.fake.set(PATH, Some(forged));
    assert_eq!(running.settle(61).await, 1);
    assert_eq!(running.bundles(), ["one", "one"]);
}

#[tokio::test(start_paused = true)]
async fn without_a_configuration_nothing_is_written_until_there_is_one() {
    let running = start("one", None);
    assert_eq!(running.settle(3600).await, 0);
    assert_eq!(running.fake.get(PATH), None);
    running.fake.set(PATH, Some(installed()));
    assert_eq!(running.settle(61).await, 1);
    assert_eq!(running.bundles(), ["one", "one"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_without_roots_or_without_leading() {
    let running = start("", Some(installed()));
    assert_eq!(running.settle(3600).await, 0);
    running.leading.send_replace(false);
    running.bundle.send_replace(bundle("one"));
    assert_eq!(running.settle(3600).await, 0);
    running.leading.send_replace(true);
    assert_eq!(running.settle(1).await, 1);
}

#[tokio::test(start_paused = true)]
async fn failures_are_repeated_with_growing_pauses() {
    let running = start("", Some(installed()));
    running.settle(1).await;
    let requests = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = Arc::clone(&requests);
    running.fake.faults(move |_, _| {
        count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Fault { refuse: Some(403), ..Fault::default() }
    });
    running.bundle.send_replace(bundle("one"));
    assert_eq!(running.settle(600).await, 0);
    let asked = requests.load(std::sync::atomic::Ordering::SeqCst);
    assert!((12..=26).contains(&asked), "{asked} in ten minutes");
    running.fake.faults(|_, _| Fault::default());
    assert_eq!(running.settle(61).await, 1);
}
