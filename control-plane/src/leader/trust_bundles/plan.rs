//! Which namespace is written when. Pure: time and chance are arguments.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

/// Written again after at most this long, whatever happened; a tenth of it is chance.
const AGAIN: Duration = Duration::from_secs(600);
/// Time until one is tried again whose namespace was not there: it may be made anew.
const AFTER_GONE: Duration = Duration::from_secs(15);
/// Shortest time between two writes to a namespace where somebody else keeps changing it.
const CALM: Duration = Duration::from_secs(1);

/// How a write ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is there.
    Written,
    /// Try again.
    Failed,
    /// The namespace is not there, or not for long.
    Gone,
}

/// All namespaces that are wanted, each with the time of its next write.
#[derive(Debug, Default)]
pub(super) struct Plan {
    all: BTreeMap<Arc<str>, Entry>,
    /// Those that are not being written, by time.
    queue: BTreeSet<(Instant, Arc<str>)>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    next: Instant,
    failures: u32,
    /// When it was written last.
    written: Option<Instant>,
    /// A write is on its way.
    writing: bool,
    /// Meanwhile something changed: write once more, at this time.
    again: Option<Instant>,
}

impl Plan {
    /// These namespaces and no others; new ones are due at once.
    pub(super) fn want(&mut self, wanted: BTreeSet<Arc<str>>, now: Instant) {
        self.all.retain(|namespace, entry| {
            let keep = wanted.contains(namespace);
            if !keep {
                self.queue.remove(&(entry.next, namespace.clone()));
            }
            keep
        });
        for namespace in wanted {
            if !self.all.contains_key(&namespace) {
                self.queue.insert((now, namespace.clone()));
                let entry =
                    Entry { next: now, failures: 0, written: None, writing: false, again: None };
                self.all.insert(namespace, entry);
            }
        }
    }

    /// The content changed: all are due.
    pub(super) fn all_due(&mut self, now: Instant) {
        let all: Vec<_> = self.all.keys().cloned().collect();
        for namespace in all {
            self.due_at(&namespace, now);
        }
    }

    /// Somebody else changed or deleted it.
    pub(super) fn touch(&mut self, namespace: &Arc<str>, now: Instant) {
        let Some(entry) = self.all.get(namespace) else { return };
        let calm = entry.written.map_or(now, |written| written + CALM);
        self.due_at(namespace, calm.max(now));
    }

    /// The next one that is due, which is then on its way.
    pub(super) fn start(&mut self, now: Instant) -> Option<Arc<str>> {
        if self.next()? > now {
            return None;
        }
        let (_, namespace) = self.queue.pop_first()?;
        let entry = self.all.get_mut(&namespace)?;
        entry.writing = true;
        Some(namespace)
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// A write ended.
    pub(super) fn finish(
        &mut self,
        namespace: &Arc<str>,
        outcome: Outcome,
        now: Instant,
        rng: &mut fastrand::Rng,
    ) {
        // No longer wanted.
        let Some(entry) = self.all.get_mut(namespace) else { return };
        if !entry.writing {
            return;
        }
        entry.writing = false;
        entry.failures = if outcome == Outcome::Failed { entry.failures + 1 } else { 0 };
        let regular = now + AGAIN.mul_f64(0.9 + 0.1 * rng.f64());
        let next = match outcome {
            Outcome::Failed => now + super::super::pause(entry.failures, rng),
            Outcome::Written => {
                entry.written = Some(now);
                entry.again.map_or(regular, |again| again.max(now))
            }
            Outcome::Gone => now + AFTER_GONE,
        };
        entry.again = None;
        entry.next = next;
        self.queue.insert((next, namespace.clone()));
    }

    /// Brings the next write forward.
    fn due_at(&mut self, namespace: &Arc<str>, at: Instant) {
        let Some(entry) = self.all.get_mut(namespace) else { return };
        if entry.writing {
            entry.again = Some(entry.again.map_or(at, |again| again.min(at)));
        } else if at < entry.next && entry.failures == 0 {
            self.queue.remove(&(entry.next, namespace.clone()));
            entry.next = at;
            self.queue.insert((at, namespace.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    fn drain(plan: &mut Plan, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| plan.start(now)).map(|name| name.to_string()).collect()
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_new_namespace_is_due_at_once_and_written_again_within_ten_minutes() {
        let (mut plan, now, mut rng) =
            (Plan::default(), Instant::now(), fastrand::Rng::with_seed(1));
        plan.want(set(&["a", "b"]), now);
        assert_eq!(drain(&mut plan, now), ["a", "b"]);
        assert_eq!(plan.next(), None, "both are on their way");
        plan.finish(&"a".into(), Outcome::Written, now, &mut rng);
        plan.want(set(&["a", "b", "c"]), now + SECOND);
        assert_eq!(drain(&mut plan, now + SECOND), ["c"]);
        let again = plan.next().unwrap() - now;
        assert!((AGAIN * 9 / 10..=AGAIN).contains(&again), "{again:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_while_writing_is_written_once_more() {
        let (mut plan, now, mut rng) =
            (Plan::default(), Instant::now(), fastrand::Rng::with_seed(1));
        plan.want(set(&["a"]), now);
        assert_eq!(drain(&mut plan, now), ["a"]);
        plan.all_due(now);
        plan.all_due(now);
        assert_eq!(plan.next(), None, "one write at a time");
        plan.finish(&"a".into(), Outcome::Written, now, &mut rng);
        assert_eq!(drain(&mut plan, now), ["a"]);
        plan.finish(&"a".into(), Outcome::Written, now, &mut rng);
        assert_eq!(drain(&mut plan, now), [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn someone_who_keeps_changing_it_makes_one_write_a_second() {
        let (mut plan, start, mut rng) =
            (Plan::default(), Instant::now(), fastrand::Rng::with_seed(1));
        plan.want(set(&["a"]), start);
        let mut writes = 0;
        for millis in 0..10_000 {
            let now = start + Duration::from_millis(millis);
            plan.touch(&"a".into(), now);
            for _ in drain(&mut plan, now) {
                writes += 1;
                plan.finish(&"a".into(), Outcome::Written, now, &mut rng);
            }
        }
        assert!((9..=11).contains(&writes), "{writes}");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_repeated_ever_more_slowly_and_nothing_hurries_them() {
        let (mut plan, mut now, mut rng) =
            (Plan::default(), Instant::now(), fastrand::Rng::with_seed(1));
        plan.want(set(&["a"]), now);
        for round in 1..20_u32 {
            assert_eq!(drain(&mut plan, now), ["a"]);
            plan.finish(&"a".into(), Outcome::Failed, now, &mut rng);
            plan.touch(&"a".into(), now);
            let pause = plan.next().unwrap() - now;
            let step = (SECOND * (1 << (round - 1).min(10))).min(SECOND * 60);
            assert!((step / 2..=step).contains(&pause), "{pause:?} in round {round}");
            now += pause;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_wanted_any_more_is_left_alone() {
        let (mut plan, now, mut rng) =
            (Plan::default(), Instant::now(), fastrand::Rng::with_seed(1));
        plan.want(set(&["a", "b"]), now);
        assert_eq!(plan.start(now).as_deref(), Some("a"));
        plan.want(set(&[]), now);
        plan.finish(&"a".into(), Outcome::Written, now, &mut rng);
        plan.touch(&"b".into(), now);
        assert_eq!(plan.next(), None);
        plan.want(set(&["a"]), now);
        assert_eq!(drain(&mut plan, now), ["a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_queue_always_holds_exactly_what_is_wanted_and_not_on_its_way() {
        let mut rng = fastrand::Rng::with_seed(3);
        let (mut plan, mut now, mut writing) = (Plan::default(), Instant::now(), BTreeSet::new());
        let names = ["a", "b", "c", "d"];
        for _ in 0..5000 {
            let name: Arc<str> = names[rng.usize(..4)].into();
            match rng.u8(..6) {
                0 => plan
                    .want(names.iter().filter(|_| rng.bool()).map(|n| (*n).into()).collect(), now),
                1 => plan.all_due(now),
                2 => plan.touch(&name, now),
                3 => writing.extend(plan.start(now)),
                4 => {
                    if let Some(name) = writing.pop_first() {
                        let outcomes = [Outcome::Written, Outcome::Failed, Outcome::Gone];
                        plan.finish(&name, outcomes[rng.usize(..3)], now, &mut rng);
                    }
                }
                _ => now += Duration::from_millis(rng.u64(..700_000)),
            }
            let waiting: BTreeSet<_> = plan
                .all
                .iter()
                .filter(|(_, e)| !e.writing)
                .map(|(n, e)| (e.next, n.clone()))
                .collect();
            assert_eq!(plan.queue, waiting);
        }
    }
}
