use std::{collections::BTreeSet, sync::LazyLock, time::UNIX_EPOCH};

use k8s_openapi::api::core::v1::ConfigMap;
use proptest::prelude::*;
use remora_core::names;
use rustls_pki_types::CertificateDer;

use super::*;
use crate::identity::ca::{Fingerprint, NewRoot};

const SECOND: Duration = Duration::from_secs(1);
const OVERLAP: Duration = Duration::from_secs(60);
const LIFE: Duration = Duration::from_secs(600);
const RULES: Rules = Rules { overlap: OVERLAP, leaf_lifetime: LIFE };

/// A moment in 2027.
fn start() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

struct Pair {
    certificate: CertificateDer<'static>,
    key: String,
}

static PAIRS: LazyLock<Vec<Pair>> = LazyLock::new(|| {
    let made = (0..18).map(|_| NewRoot::generate("cluster.local", start() - 3600 * SECOND));
    let pair =
        |root: NewRoot| Pair { key: root.key.serialize_pem(), certificate: root.certificate };
    made.map(|root| pair(root.unwrap())).collect()
});

fn root(number: usize) -> CertificateDer<'static> {
    PAIRS[number].certificate.clone()
}

/// The authority of a root, in a Secret with other roots beside its own.
fn authority(signs: usize, beside: &[usize]) -> Arc<Authority> {
    let key = rcgen::KeyPair::from_pem(&PAIRS[signs].key).unwrap();
    let mut roots = vec![root(signs)];
    roots.extend(beside.iter().filter(|other| **other != signs).map(|other| root(*other)));
    Arc::new(Authority::new(&[root(signs)], key, roots, LIFE).unwrap())
}

fn published(rotation: &Rotation) -> ConfigMap {
    let bundle = rotation.roots().published();
    let mut map = ConfigMap::default();
    map.metadata.annotations = Some(bundle.annotations);
    map.data = Some([(names::TRUST_BUNDLE_KEY.to_owned(), bundle.pem)].into());
    map
}

fn begin(signs: usize, published: Roots, now: SystemTime) -> Rotation {
    Rotation::begin(RULES, published, authority(signs, &[]), now).unwrap()
}

fn signs(rotation: &Rotation) -> usize {
    let anchors = rotation.signer().authority.anchors();
    (0..PAIRS.len()).find(|n| anchors.contains(&Fingerprint::of(&root(*n)))).unwrap()
}

fn trusted(rotation: &Rotation) -> Vec<usize> {
    let has = |n: &usize| rotation.roots().root(Fingerprint::of(&root(*n))).is_some();
    (0..PAIRS.len()).filter(has).collect()
}

#[test]
fn a_first_start_signs_at_once() {
    let rotation = begin(0, Roots::default(), start());
    assert!(rotation.signer().signs_from <= start());
    assert_eq!(rotation.phase(start()), Phase::Steady);
}

#[test]
fn a_new_root_is_published_first_signs_later_and_the_old_one_goes_last() {
    let mut rotation = begin(0, Roots::default(), start());
    let changed = start() + 100 * SECOND;
    rotation.offer(authority(1, &[]), changed).unwrap();
    assert_eq!((signs(&rotation), trusted(&rotation)), (0, vec![0, 1]));
    assert_eq!(rotation.phase(changed), Phase::Overlap);

    let due = rotation.advance(changed).unwrap();
    assert_eq!(due, changed + OVERLAP);
    rotation.advance(due - SECOND);
    assert_eq!(signs(&rotation), 0);
    let end = rotation.advance(due).unwrap();
    assert_eq!((signs(&rotation), trusted(&rotation)), (1, vec![0, 1]));
    assert_eq!(rotation.phase(due), Phase::Retiring);

    assert!(end >= due + LIFE + CLOCK_SKEW, "a leaf signed just before is alive until then");
    rotation.advance(end - SECOND);
    assert_eq!(trusted(&rotation), [0, 1]);
    assert_eq!(rotation.advance(end), None);
    assert_eq!(trusted(&rotation), [1]);
    assert_eq!(rotation.phase(end), Phase::Steady);
}

#[test]
fn a_root_that_was_added_in_advance_signs_at_once() {
    let mut rotation = begin(0, Roots::default(), start());
    rotation.offer(authority(0, &[1]), start()).unwrap();
    assert_eq!((signs(&rotation), trusted(&rotation)), (0, vec![0, 1]));
    let later = start() + OVERLAP;
    rotation.offer(authority(1, &[0]), later).unwrap();
    assert_eq!(signs(&rotation), 1);
    // As long as the Secret has it, it stays.
    rotation.advance(later + 1000 * LIFE);
    assert_eq!(trusted(&rotation), [0, 1]);
}

#[test]
fn a_return_to_the_issuer_of_before_is_immediate() {
    let mut rotation = begin(0, Roots::default(), start());
    rotation.offer(authority(1, &[]), start()).unwrap();
    rotation.offer(authority(0, &[]), start() + SECOND).unwrap();
    assert_eq!(signs(&rotation), 0);
    let due = rotation.advance(start() + SECOND).unwrap();
    rotation.advance(due);
    assert_eq!(trusted(&rotation), [0]);
}

#[test]
fn an_old_issuer_that_expires_gives_way_at_once() {
    let mut rotation = begin(0, Roots::default(), start());
    let expires = rotation.signer().authority.expires();
    rotation.offer(authority(1, &[]), expires - SECOND).unwrap();
    assert_eq!(signs(&rotation), 0);
    rotation.advance(expires);
    assert_eq!(signs(&rotation), 1);
}

#[test]
fn a_restart_in_the_overlap_signs_when_the_overlap_is_over_and_keeps_the_old_root() {
    let mut before = begin(0, Roots::default(), start());
    before.offer(authority(1, &[]), start()).unwrap();
    let now = start() + 20 * SECOND;
    let mut after = begin(1, Roots::read(&published(&before), now), now);
    assert_eq!((after.phase(now), trusted(&after)), (Phase::Held, vec![0, 1]));
    assert_eq!(after.signer().signs_from, start() + OVERLAP);
    assert_eq!(after.advance(now), Some(start() + OVERLAP));
    let (one, other) = (before.advance(now), after.advance(start() + OVERLAP));
    assert_eq!(after.phase(start() + OVERLAP), Phase::Retiring);
    assert!(one.is_some() && other.unwrap() > start() + OVERLAP + LIFE);
}

#[test]
fn a_rotation_while_nobody_ran_waits_for_the_overlap_and_keeps_the_old_root() {
    let before = begin(0, Roots::default(), start());
    let now = start() + 3600 * SECOND;
    let after = begin(1, Roots::read(&published(&before), now), now);
    assert_eq!((after.phase(now), trusted(&after)), (Phase::Held, vec![0, 1]));
    assert_eq!(after.signer().signs_from, now + OVERLAP);
}

#[test]
fn a_restart_without_a_change_signs_at_once() {
    let before = begin(0, Roots::default(), start());
    let now = start() + SECOND;
    let after = begin(0, Roots::read(&published(&before), now), now);
    assert_eq!(after.phase(now), Phase::Steady);
}

#[test]
fn more_roots_than_a_bundle_holds_are_refused_and_nothing_changes() {
    let mut rotation = begin(0, Roots::default(), start());
    for number in 1..MAX_ROOTS {
        rotation.offer(authority(number, &[]), start()).unwrap();
    }
    let error = rotation.offer(authority(MAX_ROOTS, &[]), start()).unwrap_err();
    assert!(error.to_string().contains("17 roots"), "{error}");
    assert_eq!((signs(&rotation), rotation.roots().len()), (0, MAX_ROOTS));
    // When old ones are gone, there is room again.
    let end = start() + bundle::keep(OVERLAP, LIFE) + OVERLAP + SECOND;
    rotation.advance(end);
    rotation.offer(authority(MAX_ROOTS, &[]), end).unwrap();
}

#[test]
fn what_a_config_map_says_is_bounded_and_never_in_the_future() {
    let mut before = begin(0, Roots::default(), start());
    before.offer(authority(1, &[]), start()).unwrap();
    let map = published(&before);
    // Read by a replica whose clock is behind.
    let early = start() - 30 * SECOND;
    let read = Roots::read(&map, early);
    assert!(read.root(Fingerprint::of(&root(1))).unwrap().since <= early);
    // Read after the old root's end.
    let late = start() + bundle::keep(OVERLAP, LIFE) + SECOND;
    assert_eq!(Roots::read(&map, late).len(), 1);
    // Not ours at all.
    let mut other = map.clone();
    other.data = Some([(names::TRUST_BUNDLE_KEY.to_owned(), "no PEM".to_owned())].into());
    other.metadata.annotations = None;
    assert!(Roots::read(&other, start()).is_empty());
    // Without the annotation the roots count as new, and have no end.
    let mut bare = map;
    bare.metadata.annotations = None;
    let read = Roots::read(&bare, start());
    assert_eq!(read.root(Fingerprint::of(&root(0))).unwrap().since, start());
    assert_eq!(read.root(Fingerprint::of(&root(0))).unwrap().until, None);
}

/// What happens in the world outside.
#[derive(Debug, Clone)]
enum Step {
    /// Time passes, in seconds.
    Wait(u64),
    /// Somebody writes another issuer into the Secret, with other roots beside its own.
    Rotate(usize, Vec<usize>),
    /// A replica is killed and starts again.
    Restart(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop_oneof![1..30u64, 30..200u64, 200..1500u64].prop_map(Step::Wait),
        3 => (0..5usize, prop::collection::vec(0..5usize, 0..3))
            .prop_map(|(signs, beside)| Step::Rotate(signs, beside)),
        1 => (0..2usize).prop_map(Step::Restart),
    ]
}

/// Two replicas, the ConfigMap, and proxies that get each bundle as late as they may.
struct World {
    now: SystemTime,
    secret: Arc<Authority>,
    config_map: ConfigMap,
    replicas: Vec<Replica>,
    /// End of life of leaves, by root.
    leaves: Vec<(SystemTime, Fingerprint)>,
}

struct Replica {
    rotation: Rotation,
    /// How late it sees the Secret change.
    delay: Duration,
    sees: Vec<(SystemTime, Arc<Authority>)>,
    /// Bundles sent, and when the slowest of its proxies has them.
    sent: Vec<(SystemTime, BTreeSet<Fingerprint>)>,
}

const DELIVERY: Duration = Duration::from_secs(25);
const WATCH: Duration = Duration::from_secs(30);

impl Replica {
    /// What the slowest and the fastest of its proxies trust.
    fn trusted(&self, now: SystemTime) -> Vec<&BTreeSet<Fingerprint>> {
        let arrived = self.sent.iter().rposition(|(at, _)| *at <= now).unwrap_or(0);
        self.sent[arrived..].iter().map(|(_, roots)| roots).collect()
    }

    fn send(&mut self, now: SystemTime) {
        let roots: BTreeSet<_> =
            self.rotation.roots().certificates().map(Fingerprint::of).collect();
        if self.sent.last().is_none_or(|(_, last)| *last != roots) {
            self.sent.push((now + DELIVERY, roots));
        }
    }
}

impl World {
    fn new() -> Self {
        let (now, secret) = (start(), authority(0, &[]));
        let replica = |delay| {
            let rotation =
                Rotation::begin(RULES, Roots::default(), Arc::clone(&secret), now).unwrap();
            Replica { rotation, delay, sees: Vec::new(), sent: Vec::new() }
        };
        let replicas = vec![replica(Duration::ZERO), replica(WATCH)];
        let config_map = published(&replicas[0].rotation);
        Self { now, secret, config_map, replicas, leaves: Vec::new() }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Wait(seconds) => (0..seconds).for_each(|_| self.second()),
            Step::Rotate(signs, beside) => {
                self.secret = authority(signs, &beside);
                for replica in &mut self.replicas {
                    replica.sees.push((self.now + replica.delay, Arc::clone(&self.secret)));
                }
            }
            Step::Restart(which) => {
                let known = Roots::read(&self.config_map, self.now);
                let replica = &mut self.replicas[which];
                let secret = Arc::clone(&self.secret);
                replica.rotation = Rotation::begin(RULES, known, secret, self.now).unwrap();
                replica.sees.clear();
            }
        }
        self.second();
    }

    fn second(&mut self) {
        self.now += SECOND;
        let now = self.now;
        for (number, replica) in self.replicas.iter_mut().enumerate() {
            let seen = replica.sees.iter().take_while(|(at, _)| *at <= now).count();
            for (_, authority) in replica.sees.drain(..seen) {
                replica.rotation.offer(authority, now).unwrap();
            }
            replica.rotation.advance(now);
            replica.send(now);
            if number == 0 {
                self.config_map = published(&replica.rotation);
            }
            let signer = replica.rotation.signer();
            if signer.signs_from <= now {
                // Every root of a Secret here signs with its own key.
                self.leaves.push((now + LIFE, signer.authority.anchors()[0]));
            }
        }
        self.leaves.retain(|(end, _)| *end > now);
        self.leaves.sort_by_key(|(end, root)| (*root, std::cmp::Reverse(*end)));
        self.leaves.dedup_by_key(|(_, root)| *root);
    }

    /// Leaves that some proxy would refuse.
    fn refused(&self) -> Option<Fingerprint> {
        let bundles = || self.replicas.iter().flat_map(|replica| replica.trusted(self.now));
        let roots = self.leaves.iter().map(|(_, root)| *root);
        roots.into_iter().find(|root| bundles().any(|bundle| !bundle.contains(root)))
    }
}

/// A replica that had restarted dropped the old root while the other one, which had seen the return
/// to it already, signed with it.
#[test]
fn a_return_to_an_issuer_whose_root_is_about_to_go_waits_for_replicas_that_see_it_later() {
    let mut world = World::new();
    for step in [
        Step::Rotate(0, vec![1]),
        Step::Rotate(2, vec![]),
        Step::Wait(736),
        Step::Restart(1),
        Step::Rotate(0, vec![]),
    ] {
        world.step(step);
    }
    for second in 0..200 {
        world.step(Step::Wait(0));
        assert_eq!(world.refused(), None, "{second} s after the return");
    }
    assert!(world.replicas.iter().all(|replica| signs(&replica.rotation) == 0));
}

#[test]
fn the_return_to_an_issuer_waits_once_its_root_has_been_on_its_way_out_for_the_overlap() {
    let mut rotation = begin(0, Roots::default(), start());
    rotation.offer(authority(1, &[]), start()).unwrap();
    rotation.advance(start() + OVERLAP);
    assert_eq!(signs(&rotation), 1);
    let back = start() + OVERLAP + SECOND;
    rotation.offer(authority(0, &[]), back).unwrap();
    assert_eq!((signs(&rotation), rotation.phase(back)), (1, Phase::Overlap));
    rotation.advance(back + OVERLAP);
    assert_eq!(signs(&rotation), 0);
}

#[test]
fn a_held_replica_keeps_the_roots_that_others_may_still_sign_with() {
    let mut before = begin(0, Roots::default(), start());
    before.offer(authority(1, &[]), start()).unwrap();
    let now = start() + 20 * SECOND;
    let mut after = begin(1, Roots::read(&published(&before), now), now);
    // The other replica, which has the key of 0, signs with it until 2 is trusted.
    let again = start() + 50 * SECOND;
    after.offer(authority(2, &[]), again).unwrap();
    before.offer(authority(2, &[]), again).unwrap();
    assert_eq!((signs(&before), after.phase(again)), (0, Phase::Held));
    let until =
        |rotation: &Rotation| rotation.roots().root(Fingerprint::of(&root(0))).unwrap().until;
    assert_eq!(until(&after), until(&before));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_proxy_ever_refuses_a_leaf_that_is_alive(steps in prop::collection::vec(step(), 1..25)) {
        let mut world = World::new();
        for step in steps {
            let told = format!("{step:?}");
            world.step(step);
            prop_assert_eq!(world.refused(), None, "after {}", told);
        }
    }
}
