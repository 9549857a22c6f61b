//! The story: seven chapters, each an event, a time to watch, and a verdict.

mod chapters;
mod feed;
mod verdict;
mod window;

use std::{collections::BTreeSet, time::Duration};

use serde::Serialize;
use tokio::time::Instant;

use super::{
    cluster::{Cluster, Error, Pod},
    load::Class,
    manifests::{self, Values},
    screen::{Frame, Screen},
    shop::Behaviour,
};

pub(crate) use verdict::{Check, Measured, percent};
pub(crate) use window::Window;

use feed::Feed;
use window::Recent;

/// Time for the shop to come up.
const STARTS_WITHIN: Duration = Duration::from_secs(45);
/// Time for the first good answers of every class.
const WARMS_WITHIN: Duration = Duration::from_secs(20);
/// Time between two looks at pods and sidecars.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Number of chapters.
pub(crate) const CHAPTERS: usize = 7;
/// Pods of the shop and how many of each there are at the beginning.
const CAST: [(&str, usize); 5] = [
    ("web", 1),
    ("orders", manifests::ORDERS_REPLICAS as usize),
    ("inventory", 2),
    ("ticker", 1),
    ("load", 1),
];

/// How long things are watched.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Requests that are not counted.
    warm_up: Duration,
    steady: Duration,
    /// From an event to the moment from which shares count.
    reaction: Duration,
    /// From there to the end of the chapter.
    effect: Duration,
    outage: Duration,
    after: Duration,
    /// Validity of the sidecars' certificates: short, so that they rotate in front of the viewer,
    /// and longer than the outage, which no certificate may expire in.
    pub(crate) leaf_lifetime: Duration,
}

impl Pace {
    /// For people: about half a minute.
    pub(crate) const FULL: Self = Self {
        warm_up: Duration::from_millis(1000),
        steady: Duration::from_millis(3000),
        reaction: Duration::from_millis(1000),
        effect: Duration::from_millis(2500),
        outage: Duration::from_millis(3000),
        after: Duration::from_millis(1500),
        leaf_lifetime: Duration::from_secs(20),
    };
    /// For continuous integration.
    pub(crate) const SHORT: Self = Self {
        warm_up: Duration::from_millis(1000),
        steady: Duration::from_millis(1000),
        reaction: Duration::from_millis(700),
        effect: Duration::from_millis(1000),
        outage: Duration::from_millis(1300),
        after: Duration::from_millis(600),
        leaf_lifetime: Duration::from_secs(12),
    };
}

/// What is known at the end.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    /// Whether every chapter held.
    pub(crate) held: bool,
    /// How the mesh was put up.
    pub(crate) mode: &'static str,
    /// Length of the story.
    pub(crate) seconds: f64,
    /// Calls per second to web over kept connections.
    pub(crate) rate: u32,
    pub(crate) chapters: Vec<Chapter>,
}

/// One chapter, as it went.
#[derive(Debug, Serialize)]
pub(crate) struct Chapter {
    pub(crate) number: usize,
    pub(crate) title: &'static str,
    /// What was to be expected.
    pub(crate) expected: &'static str,
    pub(crate) held: bool,
    pub(crate) checks: Vec<Check>,
    pub(crate) seconds: f64,
    pub(crate) measured: Measured,
}

/// What web's sidecar has counted.
#[derive(Debug, Clone, Copy, Default)]
struct Counters {
    ejections: u64,
    retries: u64,
}

/// The teller.
pub(crate) struct Story<C> {
    cluster: C,
    values: Values,
    pace: Pace,
    screen: Screen,
    feed: Feed,
    /// Since the chapter began.
    whole: Window,
    /// Since the mesh had time to react.
    settled: Window,
    recent: Recent,
    /// Replicas of orders that web's sidecar keeps away from.
    ejected: BTreeSet<String>,
    /// What happens now.
    now: String,
    /// Counts of web's sidecar when the chapter began.
    counted: Counters,
    began: Instant,
}

impl<C: Cluster> Story<C> {
    /// Waits until the shop is up and answers.
    pub(crate) async fn begin(
        mut cluster: C,
        values: Values,
        pace: Pace,
        mut screen: Screen,
    ) -> Result<Self, Error> {
        screen.say("The shop opens: web → orders × 3 → inventory × 2, and a ticker.");
        wait_for_cast(&mut cluster).await?;
        let mut story = Self {
            feed: Feed::listen(&values.report)?,
            cluster,
            values,
            pace,
            screen,
            whole: Window::default(),
            settled: Window::default(),
            recent: Recent::default(),
            ejected: BTreeSet::new(),
            now: "warming up".into(),
            counted: Counters::default(),
            began: Instant::now(),
        };
        story.warm_up().await?;
        Ok(story)
    }

    /// Stays after the story: prints what can be tried and keeps the load's reports flowing.
    pub(crate) async fn keep(&mut self) -> Result<(), Error> {
        let pods = self.cluster.pods().await?;
        self.screen.say("\nThe shop stays open. Try:");
        for line in self.cluster.to_try(&pods) {
            self.screen.say(&format!("  {line}"));
        }
        self.screen.say("Ctrl-C ends it.");
        self.now = "open until Ctrl-C".into();
        loop {
            self.watch(Duration::from_secs(1)).await?;
        }
    }

    /// The screen, for the summary.
    pub(crate) fn screen(&mut self) -> &mut Screen {
        &mut self.screen
    }

    async fn warm_up(&mut self) -> Result<(), Error> {
        let limit = Instant::now() + WARMS_WITHIN;
        while Class::ALL.iter().any(|&class| self.whole.class(class).ok < 3) {
            if Instant::now() > limit {
                let why: Vec<_> = self.whole.failures().keys().cloned().collect();
                let missing = if why.is_empty() {
                    "the load reports nothing".into()
                } else {
                    format!("calls fail: {}", why.join("; "))
                };
                return Err(Error::NotReady { waited: WARMS_WITHIN, missing });
            }
            self.observe(LOOK_EVERY).await?;
        }
        self.observe(self.pace.warm_up).await
    }

    /// Takes reports in and shows them for a while.
    async fn observe(&mut self, length: Duration) -> Result<(), Error> {
        let end = Instant::now() + length;
        loop {
            tokio::select! {
                report = self.feed.next() => {
                    let Some(report) = report else {
                        return Err(Error::LoadEnded);
                    };
                    self.whole.take(&report);
                    self.settled.take(&report);
                    self.recent.take(report);
                    self.screen.show(&Frame {
                        recent: &self.recent.window(),
                        ejected: &self.ejected,
                        now: &self.now,
                    });
                }
                () = tokio::time::sleep_until(end) => return Ok(()),
            }
        }
    }

    /// Observes and keeps looking whom web's sidecar has ejected.
    async fn watch(&mut self, length: Duration) -> Result<(), Error> {
        let end = Instant::now() + length;
        while Instant::now() < end {
            self.observe(LOOK_EVERY.min(end - Instant::now())).await?;
            self.look_at_endpoints().await?;
        }
        Ok(())
    }

    async fn look_at_endpoints(&mut self) -> Result<(), Error> {
        let mut ejected = BTreeSet::new();
        for web in self.pods_of("web").await? {
            // One missed look does not matter; what it would have told, the next one does.
            let services = web.services().await.unwrap_or_default();
            let pods = services.of("orders").filter(|e| e.is_ejected()).map(|e| e.pod.clone());
            ejected.extend(pods);
        }
        self.ejected = ejected;
        Ok(())
    }

    async fn counters(&mut self) -> Result<Counters, Error> {
        let mut sum = Counters::default();
        for web in self.pods_of("web").await? {
            let metrics = web.metrics().await?;
            sum.ejections += metrics.sum("remora_outbound_ejections_total") as u64;
            sum.retries += metrics.sum("remora_outbound_retries_total") as u64;
        }
        Ok(sum)
    }

    async fn pods_of(&mut self, deployment: &str) -> Result<Vec<Pod>, Error> {
        let mut pods = self.cluster.pods().await?;
        pods.retain(|pod| pod.is_of(deployment));
        pods.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(pods)
    }

    /// Turns the knobs of one pod.
    fn control(&self, pod: &str, behaviour: Behaviour) -> Result<(), Error> {
        let text = serde_json::json!(behaviour).to_string();
        manifests::replace(&self.values.control.join(format!("{pod}.json")), &text)
    }

    async fn open(
        &mut self,
        number: usize,
        title: &'static str,
        now: String,
    ) -> Result<Instant, Error> {
        self.screen.heading(number, title, &now);
        self.now = now;
        self.counted = self.counters().await?;
        self.whole = Window::default();
        self.settled = Window::default();
        Ok(Instant::now())
    }

    /// From now on shares and settled latency count.
    fn settle(&mut self) {
        self.settled = Window::default();
    }

    async fn measured(&mut self) -> Result<Measured, Error> {
        let counted = self.counters().await?;
        Ok(Measured::new(
            &self.whole,
            &self.settled,
            counted.ejections.saturating_sub(self.counted.ejections),
            counted.retries.saturating_sub(self.counted.retries),
        ))
    }
}

async fn wait_for_cast(cluster: &mut impl Cluster) -> Result<(), Error> {
    let limit = Instant::now() + STARTS_WITHIN;
    loop {
        let missing = missing(&cluster.pods().await?);
        if missing.is_empty() {
            return Ok(());
        }
        if Instant::now() > limit {
            return Err(Error::NotReady { waited: STARTS_WITHIN, missing: missing.join(", ") });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Which Deployments of the cast are short of ready pods.
fn missing(pods: &[Pod]) -> Vec<String> {
    CAST.iter()
        .filter_map(|&(name, wanted)| {
            let ready = pods.iter().filter(|pod| pod.is_of(name) && pod.ready).count();
            (ready < wanted).then(|| format!("{name}: {ready} of {wanted} ready"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, ready: bool) -> Pod {
        Pod { name: name.into(), admin: ([127, 0, 0, 1], 4191).into(), ready }
    }

    #[test]
    fn the_story_waits_for_the_whole_cast() {
        let mut pods: Vec<_> = CAST
            .iter()
            .flat_map(|&(name, n)| (0..n).map(move |i| pod(&format!("{name}-{i}"), true)))
            .collect();
        assert_eq!(missing(&pods), Vec::<String>::new());
        pods.retain(|pod| pod.name != "load-0");
        pods.iter_mut().find(|pod| pod.name == "orders-1").unwrap().ready = false;
        assert_eq!(missing(&pods), ["orders: 2 of 3 ready", "load: 0 of 1 ready"]);
    }
}
