use std::sync::Arc;

use http::Method;
use remora_core::drain::{Drain, Drained};
use tokio::task::JoinHandle;

use super::*;
use crate::leader::testing::{Fake, Fault, clock, replica};

const PATH: &str =
    "/apis/coordination.k8s.io/v1/namespaces/remora-system/leases/remora-control-plane";

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn lease(holder: &str, duration: Option<i32>) -> Lease {
    let spec = LeaseSpec {
        holder_identity: Some(holder.to_owned()),
        lease_duration_seconds: duration,
        lease_transitions: Some(4),
        acquire_time: Some(micro_time(clock() - seconds(100))),
        ..LeaseSpec::default()
    };
    let version = Some("7".to_owned());
    Lease {
        metadata: ObjectMeta { resource_version: version, ..ObjectMeta::default() },
        spec: Some(spec),
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_free_when_given_up_or_unchanged_for_its_duration() {
    let since = Instant::now();
    let act = |lease, after| decide("me", &Seen { lease, since }, since + after);
    let zero = Duration::ZERO;
    assert_eq!(act(None, zero), Act::Create);
    assert_eq!(act(Some(lease("", Some(1))), zero), Act::Take);
    assert_eq!(act(Some(Lease::default()), zero), Act::Take);
    assert_eq!(act(Some(lease("me", Some(15))), zero), Act::Renew);
    assert_eq!(act(Some(lease("me", Some(15))), seconds(100)), Act::Renew);
    assert_eq!(act(Some(lease("it", Some(15))), zero), Act::Wait(seconds(15)));
    assert_eq!(act(Some(lease("it", Some(15))), seconds(14)), Act::Wait(seconds(1)));
    assert_eq!(act(Some(lease("it", Some(15))), seconds(15)), Act::Take);
    assert_eq!(act(Some(lease("it", None)), seconds(14)), Act::Wait(seconds(1)));
    assert_eq!(act(Some(lease("it", Some(-3))), seconds(14)), Act::Wait(seconds(1)));
    assert_eq!(act(Some(lease("it", Some(i32::MAX))), seconds(60)), Act::Take);
}

#[tokio::test(start_paused = true)]
async fn only_a_change_starts_the_clock_anew() {
    let start = Instant::now();
    let seen = Seen::next(None, Some(lease("it", Some(15))), start);
    let seen = Seen::next(Some(seen), Some(lease("it", Some(15))), start + seconds(9));
    assert_eq!(seen.since, start);
    let mut renewed = lease("it", Some(15));
    renewed.metadata.resource_version = Some("8".to_owned());
    let seen = Seen::next(Some(seen), Some(renewed), start + seconds(10));
    assert_eq!(seen.since, start + seconds(10));
}

#[tokio::test(start_paused = true)]
async fn taking_counts_a_transition_renewing_does_not_and_the_version_is_kept() {
    let since = Instant::now();
    let claim = |lease| Seen { lease, since }.claim(&replica("me"), clock());
    let taken = claim(Some(lease("it", Some(1))));
    assert_eq!(taken.metadata.resource_version.as_deref(), Some("7"));
    let spec = taken.spec.unwrap();
    assert_eq!((spec.lease_transitions, spec.lease_duration_seconds), (Some(5), Some(15)));
    assert_eq!(spec.acquire_time, spec.renew_time);
    let spec = claim(Some(lease("me", Some(15)))).spec.unwrap();
    assert_eq!(spec.lease_transitions, Some(4));
    assert_eq!(spec.acquire_time, Some(micro_time(clock() - seconds(100))));
    assert_eq!(claim(None).spec.unwrap().lease_transitions, Some(0));
    let text = serde_json::to_string(&taken.metadata.name.is_none()).unwrap();
    assert_eq!(text, "true", "the name comes with what was read");
    let json = serde_json::to_value(spec.renew_time).unwrap();
    assert_eq!(json, "2027-01-15T08:00:00.000000Z", "six decimals, or the API refuses it");
}

struct Running {
    leads: watch::Receiver<bool>,
    drain: Drain,
    task: JoinHandle<()>,
}

fn start(fake: &Arc<Fake>, name: &str, seed: u64) -> Running {
    let (drain, watch) = Drain::new();
    let rng = fastrand::Rng::with_seed(seed);
    let (leads, task) = hold(fake.client(), replica(name), clock, rng, watch.clone());
    let task = tokio::spawn(async move { watch.track(task).await.unwrap_or_default() });
    Running { leads, drain, task }
}

impl Running {
    async fn leads(&mut self) {
        self.leads.wait_for(|leads| *leads).await.unwrap();
    }

    async fn follows(&mut self) {
        self.leads.wait_for(|leads| !*leads).await.unwrap();
    }
}

fn field(fake: &Fake, field: &str) -> serde_json::Value {
    fake.get(PATH).unwrap()["spec"][field].clone()
}

#[tokio::test(start_paused = true)]
async fn the_first_leads_at_once_and_keeps_leading() {
    let fake = Fake::new();
    let began = Instant::now();
    let mut first = start(&fake, "a", 1);
    first.leads().await;
    assert_eq!(began.elapsed(), Duration::ZERO);
    let second = start(&fake, "b", 2);
    tokio::time::sleep(seconds(3600)).await;
    assert!(*first.leads.borrow() && !first.leads.has_changed().unwrap());
    assert!(!*second.leads.borrow());
    assert_eq!(field(&fake, "leaseTransitions"), 0);
    let renewals = fake.writes().len();
    assert!((700..=910).contains(&renewals), "{renewals} in an hour");
    assert_eq!(
        fake.get(PATH).unwrap()["metadata"]["labels"]["app.kubernetes.io/part-of"],
        "remora"
    );
}

#[tokio::test(start_paused = true)]
async fn a_drained_leader_hands_over_within_seconds() {
    let fake = Fake::new();
    let mut first = start(&fake, "a", 1);
    first.leads().await;
    let mut second = start(&fake, "b", 2);
    tokio::time::sleep(seconds(60)).await;
    let began = Instant::now();
    assert_eq!(first.drain.drain(seconds(5)).await, Drained::Clean);
    assert!(!*first.leads.borrow());
    assert_eq!(field(&fake, "holderIdentity"), "");
    assert_eq!(field(&fake, "leaseDurationSeconds"), 1);
    second.leads().await;
    assert!(began.elapsed() <= LOOK + seconds(1), "{:?}", began.elapsed());
    assert_eq!(field(&fake, "holderIdentity"), "b");
    assert_eq!(field(&fake, "leaseTransitions"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_dies_is_followed_after_the_duration_and_not_before() {
    let fake = Fake::new();
    let mut first = start(&fake, "a", 1);
    first.leads().await;
    let mut second = start(&fake, "b", 2);
    tokio::time::sleep(seconds(60)).await;
    first.task.abort();
    let began = Instant::now();
    second.leads().await;
    let passed = began.elapsed();
    assert!(passed >= DURATION - RENEW && passed <= DURATION + LOOK + seconds(1), "{passed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_requests_hang_steps_down_and_leads_again_afterwards() {
    let fake = Fake::new();
    let mut first = start(&fake, "a", 1);
    first.leads().await;
    tokio::time::sleep(seconds(60)).await;
    fake.faults(|_, _| Fault { before: seconds(3600), ..Fault::default() });
    let began = Instant::now();
    first.follows().await;
    assert!(began.elapsed() <= GIVE_UP, "{:?}", began.elapsed());
    fake.faults(|_, _| Fault::default());
    let began = Instant::now();
    first.leads().await;
    assert!(began.elapsed() <= seconds(8), "{:?}", began.elapsed());
    assert_eq!(field(&fake, "leaseTransitions"), 0, "nobody else was there");
}

#[tokio::test(start_paused = true)]
async fn a_deleted_lease_is_made_again() {
    let fake = Fake::new();
    let mut first = start(&fake, "a", 1);
    first.leads().await;
    fake.set(PATH, None);
    tokio::time::sleep(seconds(30)).await;
    assert_eq!(field(&fake, "holderIdentity"), "a");
    assert!(*first.leads.borrow());
}

#[tokio::test(start_paused = true)]
async fn a_lease_taken_by_another_ends_leading_at_the_next_look() {
    let fake = Fake::new();
    let mut first = start(&fake, "a", 1);
    first.leads().await;
    let stolen = serde_json::json!({ "spec": { "holderIdentity": "thief" } });
    fake.set(PATH, Some(stolen));
    let began = Instant::now();
    first.follows().await;
    assert!(began.elapsed() <= RENEW + seconds(2), "{:?}", began.elapsed());
}

/// Requests that are slow, refused, or done though the answer is lost; replicas that come and go.
#[tokio::test(start_paused = true)]
async fn there_are_never_two_leaders_and_there_is_one_again_when_the_faults_end() {
    for seed in 0..10 {
        let fake = Fake::new();
        let mut chance = fastrand::Rng::with_seed(seed);
        fake.faults(move |_: &Method, _: &str| {
            let mut wait = || match chance.u8(..10) {
                0 => Duration::from_millis(chance.u64(..20_000)),
                1..4 => Duration::from_millis(chance.u64(..3000)),
                _ => Duration::ZERO,
            };
            let (before, after) = (wait(), wait());
            let refuse = (chance.u8(..6) == 0).then_some(500);
            Fault { before, after, refuse }
        });
        let mut rng = fastrand::Rng::with_seed(1000 + seed);
        let mut running: Vec<Running> = Vec::new();
        for round in 0..300_u64 {
            if running.len() < 3 {
                running.push(start(&fake, &format!("r{round}"), rng.u64(..)));
            }
            if rng.u8(..20) == 0 {
                let gone = running.swap_remove(rng.usize(..running.len()));
                if rng.bool() {
                    gone.drain.drain(seconds(3)).await;
                }
                gone.task.abort();
                let _ = gone.task.await;
            }
            tokio::time::sleep(Duration::from_millis(rng.u64(..3000))).await;
            let leaders = running.iter().filter(|r| *r.leads.borrow()).count();
            assert!(leaders <= 1, "{leaders} leaders, seed {seed}, round {round}");
        }
        fake.faults(|_, _| Fault::default());
        tokio::time::sleep(seconds(60)).await;
        assert_eq!(running.iter().filter(|r| *r.leads.borrow()).count(), 1, "seed {seed}");
    }
}
