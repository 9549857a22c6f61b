use std::time::Duration;

use remora_core::drain::Drain;
use tokio::task::JoinHandle;

use super::*;
use crate::leader::testing::{Fake, Fault, clock, replica};

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn levels_are_thirty_seven_and_one_days_and_the_end() {
    let now = clock();
    let at = |left| Expiry::at(now, now + left);
    assert_eq!(at(DAY * 31), None);
    assert_eq!(at(DAY * 30), Some(Expiry::Month));
    assert_eq!(at(DAY * 7 + HOUR), Some(Expiry::Month));
    assert_eq!(at(DAY * 7), Some(Expiry::Week));
    assert_eq!(at(DAY), Some(Expiry::Day));
    assert_eq!(at(Duration::ZERO), Some(Expiry::Over));
    assert_eq!(Expiry::at(now, now - DAY), Some(Expiry::Over));
}

#[test]
fn an_event_is_what_the_api_takes() {
    let notice =
        Notice { note: "ä".repeat(2000), ..Notice::expiry(Expiry::Week, "AB:CD:EF:01", clock()) };
    assert_eq!(notice.key, "expiry-abcdef01-7d");
    let event = event(&notice, &replica("cp-0"), clock());
    assert_eq!(event.metadata.name.as_deref(), Some("remora-identity-issuer.expiry-abcdef01-7d"));
    assert_eq!(event.note.map(|note| note.len()), Some(1024));
    let wire = serde_json::to_value(&event.event_time).unwrap();
    assert_eq!(wire, "2027-01-15T08:00:00.000000Z");
    let plain = Notice::expiry(Expiry::Day, "ab", clock());
    assert!(plain.note.contains("2027-01-15T08:00:00Z"), "{}", plain.note);
    assert_ne!(plain.key, Notice::expiry(Expiry::Week, "ab", clock()).key);
}

struct Running {
    fake: Arc<Fake>,
    leading: watch::Sender<bool>,
    notices: watch::Sender<Arc<Vec<Notice>>>,
    _drain: Drain,
    _task: JoinHandle<()>,
}

fn start(fake: &Arc<Fake>, name: &str) -> Running {
    let (drain, watch) = Drain::new();
    let (leading, leads) = watch::channel(false);
    let (notices, receiver) = watch::channel(Arc::default());
    let rng = fastrand::Rng::with_seed(1);
    let task =
        tokio::spawn(report(fake.client(), replica(name), leads, receiver, clock, rng, watch));
    Running { fake: Arc::clone(fake), leading, notices, _drain: drain, _task: task }
}

impl Running {
    async fn written(&self) -> usize {
        // Time passes by itself once nothing is left to do.
        tokio::time::sleep(HOUR).await;
        self.fake.writes().len()
    }
}

#[tokio::test(start_paused = true)]
async fn a_notice_is_told_once_by_the_leader_alone() {
    let fake = Fake::new();
    let (one, two) = (start(&fake, "a"), start(&fake, "b"));
    let notice = Notice::refused("4711", "tls.key does not fit tls.crt");
    for replica in [&one, &two] {
        replica.notices.send_replace(Arc::new(vec![notice.clone()]));
    }
    assert_eq!(one.written().await, 0, "nobody leads");
    one.leading.send_replace(true);
    assert_eq!(one.written().await, 1);
    one.notices.send_replace(Arc::new(vec![notice.clone()]));
    assert_eq!(one.written().await, 0, "it was told");
    one.leading.send_replace(false);
    two.leading.send_replace(true);
    assert_eq!(two.written().await, 0, "another replica told it");
    let more = Notice::expiry(Expiry::Day, "ab", clock());
    two.notices.send_replace(Arc::new(vec![notice, more]));
    assert_eq!(two.written().await, 1);
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_told_is_told_later() {
    let fake = Fake::new();
    let mut left = 5;
    fake.faults(move |_, _| {
        left -= i32::from(left > 0);
        Fault { refuse: (left > 0).then_some(500), ..Fault::default() }
    });
    let one = start(&fake, "a");
    one.leading.send_replace(true);
    one.notices.send_replace(Arc::new(vec![Notice::refused("1", "bad")]));
    assert_eq!(one.written().await, 1);
}
