//! When each request is due, when counting begins, and when it is over.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::ensure;
use tokio::{sync::Semaphore, time::Instant};

/// The plan that all connections take their turns from.
#[derive(Debug)]
pub(crate) struct Plan {
    start: Instant,
    warm: Instant,
    end: Option<Instant>,
    most: u64,
    taken: AtomicU64,
    pace: Option<Pace>,
}

/// A constant rate: one permit per request that has become due.
#[derive(Debug)]
struct Pace {
    interval: Duration,
    due: Arc<Semaphore>,
}

impl Plan {
    /// A plan that starts now.
    pub(crate) fn new(
        requests: Option<u64>,
        seconds: Option<f64>,
        warm_up: f64,
        rate: Option<f64>,
    ) -> anyhow::Result<Self> {
        let start = Instant::now();
        let warm = start + Duration::try_from_secs_f64(warm_up)?;
        let end = seconds.map(Duration::try_from_secs_f64).transpose()?.map(|time| warm + time);
        let pace = rate.map(|rate| Pace::start(rate, start, end)).transpose()?;
        Ok(Self { start, warm, end, most: requests.unwrap_or(u64::MAX), taken: 0.into(), pace })
    }

    /// Waits for a turn; returns when the request was due, or none where it is over.
    pub(crate) async fn turn(&self) -> Option<Instant> {
        let paced = match &self.pace {
            Some(pace) => {
                // Closed at the end of the time.
                pace.due.acquire().await.ok()?.forget();
                Some(pace.interval)
            }
            None => None,
        };
        let number = self.taken.fetch_add(1, Relaxed);
        if number >= self.most || self.is_late() {
            // Others may wait for permits that nobody will need any more.
            self.pace.iter().for_each(|pace| pace.due.close());
            return None;
        }
        match paced {
            Some(interval) => Some(self.start + interval.mul_f64(number as f64)),
            None => Some(Instant::now()),
        }
    }

    /// When counting begins.
    pub(crate) fn warm(&self) -> Instant {
        self.warm
    }

    /// Does something that happened at this moment count?
    pub(crate) fn counts(&self, at: Instant) -> bool {
        at >= self.warm && self.end.is_none_or(|end| at <= end)
    }

    /// Has it ended?
    pub(crate) fn is_over(&self) -> bool {
        self.taken.load(Relaxed) >= self.most || self.is_late()
    }

    fn is_late(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() >= end)
    }

    /// Length of the part that counts, seen from its end.
    pub(crate) fn measured(&self, now: Instant) -> Duration {
        self.end.unwrap_or(now).saturating_duration_since(self.warm)
    }
}

impl Pace {
    /// A thread that makes requests due: the runtime's timers are as coarse as a millisecond, which
    /// is longer than what is to be measured.
    fn start(rate: f64, start: Instant, end: Option<Instant>) -> anyhow::Result<Self> {
        ensure!((1.0..=1e6).contains(&rate), "--rate {rate}: use 1 to 1000000");
        let interval = Duration::from_secs_f64(1.0 / rate);
        let due = Arc::new(Semaphore::new(0));
        let permits = Arc::clone(&due);
        std::thread::Builder::new().name("pace".to_owned()).spawn(move || {
            let mut given = 0_u64;
            while !permits.is_closed() {
                let now = Instant::now();
                if end.is_some_and(|end| now >= end) {
                    return permits.close();
                }
                let by_now = 1 + ((now - start).as_secs_f64() * rate) as u64;
                permits.add_permits((by_now - given) as usize);
                given = by_now;
                let next = start + interval.mul_f64(given as f64);
                let next = end.map_or(next, |end| next.min(end));
                std::thread::park_timeout(next.saturating_duration_since(Instant::now()));
            }
        })?;
        Ok(Self { interval, due })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn as_many_turns_as_requests() {
        let plan = Plan::new(Some(3), None, 0.0, None).unwrap();
        for _ in 0..3 {
            assert!(plan.turn().await.is_some());
        }
        assert!(plan.turn().await.is_none());
        assert!(plan.is_over());
    }

    #[tokio::test]
    async fn at_a_rate_requests_are_due_when_the_rate_says_however_late_they_are_taken() {
        let plan = Plan::new(Some(4), None, 0.0, Some(1000.0)).unwrap();
        for number in 0..4 {
            let due = plan.turn().await.unwrap();
            assert_eq!(due - plan.start, Duration::from_millis(number));
            assert!(Instant::now() >= due);
        }
        assert!(plan.turn().await.is_none());
    }

    #[tokio::test]
    async fn the_end_of_the_time_ends_those_who_wait_for_a_turn() {
        let plan = Plan::new(None, Some(0.01), 0.0, Some(1.0)).unwrap();
        assert!(plan.turn().await.is_some());
        assert!(plan.turn().await.is_none());
    }

    #[test]
    fn absurd_rates_and_times_are_refused() {
        for (seconds, rate) in [(-1.0, None), (f64::NAN, None), (1.0, Some(0.0)), (1.0, Some(-5.0))]
        {
            assert!(Plan::new(None, Some(seconds), 0.0, rate).is_err(), "{seconds} {rate:?}");
        }
    }
}
