//! The seven chapters.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::{
    super::{
        cluster::{Cluster, Error, Pod},
        manifests::ORDERS_REPLICAS,
        shop::Behaviour,
    },
    Chapter, Check, LOOK_EVERY, Measured, Story, Summary, verdict,
};

/// Time for every replica to have answered, even one that began with a slow answer.
const ALL_SERVE_WITHIN: Duration = Duration::from_secs(10);
/// What the slow replica adds to each answer.
const SLOW: u64 = 250;
/// Time for a new replica to become ready, and for a leaving one to be gone.
const POD_WITHIN: Duration = Duration::from_secs(20);
/// Time for a ready replica to be used; beyond the second that is expected, to tell late from never.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// Time for the sidecars to find the control plane again, back-off included.
const RECONNECTS_WITHIN: Duration = Duration::from_secs(15);

impl<C: Cluster> Story<C> {
    /// Tells all chapters. That a chapter does not hold does not end the story.
    pub(crate) async fn tell(&mut self, mode: &'static str) -> Result<Summary, Error> {
        self.began = Instant::now();
        let certificates = self.refreshes().await?;
        let chapters = vec![
            self.steady().await?,
            self.slow().await?,
            self.failing().await?,
            self.added().await?,
            self.outage().await?,
            self.rotated(&certificates).await?,
            self.drained().await?,
        ];
        Ok(Summary {
            held: chapters.iter().all(|chapter| chapter.held),
            mode,
            seconds: self.began.elapsed().as_secs_f64(),
            rate: self.values.rate,
            chapters,
        })
    }

    fn close(
        &mut self,
        number: usize,
        title: &'static str,
        expected: &'static str,
        began: Instant,
        (measured, checks): (Measured, Vec<Check>),
    ) -> Chapter {
        let chapter = Chapter {
            number,
            title,
            expected,
            held: checks.iter().all(|check| check.held),
            checks,
            seconds: began.elapsed().as_secs_f64(),
            measured,
        };
        self.screen.verdict(&chapter);
        chapter
    }

    async fn steady(&mut self) -> Result<Chapter, Error> {
        let title = "Steady";
        let now = "Requests flow; every hop is mTLS, and no program knows.";
        let began = self.open(1, title, now.into()).await?;
        let replicas: Vec<_> =
            self.pods_of("orders").await?.into_iter().map(|pod| pod.name).collect();
        self.watch(self.pace.steady).await?;
        let limit = began + ALL_SERVE_WITHIN;
        while replicas.iter().any(|pod| self.whole.answers_of(pod) == 0) && Instant::now() < limit {
            self.watch(LOOK_EVERY).await?;
        }
        let measured = self.measured().await?;
        let checks = verdict::steady(&measured, &replicas);
        let expected = "all three replicas of orders serve, and nothing fails";
        Ok(self.close(1, title, expected, began, (measured, checks)))
    }

    async fn slow(&mut self) -> Result<Chapter, Error> {
        let title = "A replica turns slow";
        let (pod, replicas) = self.replica(0).await?;
        let now = format!("{pod} takes {SLOW} ms longer for each answer.");
        let began = self.open(2, title, now).await?;
        self.control(&pod, Behaviour { delay_ms: SLOW, fail: false })?;
        self.watch(self.pace.reaction).await?;
        self.settle();
        self.watch(self.pace.effect).await?;
        let measured = self.measured().await?;
        self.control(&pod, Behaviour::default())?;
        let checks = verdict::slow(&measured, &pod, replicas);
        let expected = "its share falls to less than half of the fair one, and nothing fails";
        Ok(self.close(2, title, expected, began, (measured, checks)))
    }

    async fn failing(&mut self) -> Result<Chapter, Error> {
        let title = "A replica fails every call";
        let (pod, _) = self.replica(1).await?;
        let now = format!("{pod} answers everything with 503.");
        let began = self.open(3, title, now).await?;
        self.control(&pod, Behaviour { delay_ms: 0, fail: true })?;
        let mut seen_ejected = false;
        let end = began + self.pace.reaction + self.pace.effect;
        while Instant::now() < end {
            self.watch(LOOK_EVERY).await?;
            seen_ejected |= self.ejected.contains(&pod);
        }
        let measured = self.measured().await?;
        self.control(&pod, Behaviour::default())?;
        let checks = verdict::failing(&measured, &pod, seen_ejected);
        let expected = "it is ejected, its failures are sent again, and callers do not notice";
        Ok(self.close(3, title, expected, began, (measured, checks)))
    }

    async fn added(&mut self) -> Result<Chapter, Error> {
        let title = "A replica is added";
        let before: Vec<_> = self.pods_of("orders").await?.into_iter().map(|p| p.name).collect();
        let now = format!("The manifest now says replicas: {}.", ORDERS_REPLICAS + 1);
        let began = self.open(4, title, now).await?;
        self.values.write_orders(self.cluster.manifests(), ORDERS_REPLICAS + 1)?;
        let limit = began + POD_WITHIN;
        let mut added = None;
        while added.is_none() && Instant::now() < limit {
            self.observe(LOOK_EVERY).await?;
            let pods = self.pods_of("orders").await?;
            added = pods.into_iter().find(|pod| pod.ready && !before.contains(&pod.name));
        }
        let ready = Instant::now();
        let pod = added.map_or_else(|| "the new replica".to_owned(), |pod| pod.name);
        let mut first_answer = None;
        while first_answer.is_none() && ready.elapsed() < ANSWERS_WITHIN {
            if self.whole.answers_of(&pod) > 0 {
                first_answer = Some(ready.elapsed());
                self.now = format!("{pod} is ready and has its first answers out.");
            } else {
                self.observe(LOOK_EVERY / 2).await?;
            }
        }
        self.settle();
        self.watch(self.pace.after).await?;
        let measured = self.measured().await?;
        let checks = verdict::added(&measured, &pod, first_answer);
        let expected = "it answers within a second of being ready";
        Ok(self.close(4, title, expected, began, (measured, checks)))
    }

    async fn outage(&mut self) -> Result<Chapter, Error> {
        let title = "The control plane is killed";
        let now = "SIGKILL to the control plane; requests and new connections go on.";
        let began = self.open(5, title, now.into()).await?;
        self.cluster.kill_control_plane().await?;
        self.watch(self.pace.outage).await?;
        let (connected, sidecars) = self.connected().await?;
        let cut_off = sidecars - connected;
        self.cluster.revive_control_plane().await?;
        self.now = "The control plane is back; the sidecars find it again.".into();
        let limit = Instant::now() + RECONNECTS_WITHIN;
        let mut reconnected = self.connected().await?.0;
        while reconnected < sidecars && Instant::now() < limit {
            self.watch(LOOK_EVERY).await?;
            reconnected = self.connected().await?.0;
        }
        let measured = self.measured().await?;
        let checks = verdict::outage(&measured, sidecars, cut_off, reconnected);
        let expected = "traffic goes on, new connections too, and all sidecars reconnect";
        Ok(self.close(5, title, expected, began, (measured, checks)))
    }

    async fn rotated(&mut self, before: &BTreeMap<String, u64>) -> Result<Chapter, Error> {
        let title = "Certificates rotate";
        let lifetime = self.pace.leaf_lifetime;
        let now = format!("Certificates live {lifetime:?} here; each is renewed under load.");
        let began = self.open(6, title, now).await?;
        self.watch(self.pace.after).await?;
        let limit = began + lifetime;
        let renewed = loop {
            let renewed = count_renewed(before, &self.refreshes().await?);
            if renewed == before.len() || Instant::now() > limit {
                break renewed;
            }
            self.now = format!("{renewed} of {} sidecars have renewed.", before.len());
            self.watch(LOOK_EVERY).await?;
        };
        let measured = self.measured().await?;
        let checks = verdict::rotated(&measured, before.len(), renewed);
        let expected = "every sidecar has renewed its certificate since the beginning";
        Ok(self.close(6, title, expected, began, (measured, checks)))
    }

    async fn drained(&mut self) -> Result<Chapter, Error> {
        let title = "A replica leaves";
        let before = self.pods_of("orders").await?;
        let now = format!("The manifest says replicas: {ORDERS_REPLICAS} again; one drains.");
        let began = self.open(7, title, now).await?;
        self.watch(self.pace.reaction).await?;
        self.values.write_orders(self.cluster.manifests(), ORDERS_REPLICAS)?;
        let limit = Instant::now() + POD_WITHIN;
        let gone = loop {
            self.watch(LOOK_EVERY).await?;
            let left = self.pods_of("orders").await?;
            let gone = before.iter().find(|pod| left.iter().all(|p| p.name != pod.name));
            if gone.is_some() || Instant::now() > limit {
                break gone;
            }
        };
        let pod = gone.map_or_else(|| "the replica".to_owned(), |pod: &Pod| pod.name.clone());
        self.now = format!("{pod} is gone.");
        // What the load has not reported yet was answered before.
        self.watch(2 * LOOK_EVERY).await?;
        let answers_before = self.whole.answers_of(&pod);
        self.settle();
        self.watch(self.pace.after).await?;
        let answers_after = self.settled.answers_of(&pod);
        let measured = self.measured().await?;
        let gone = gone.is_some();
        let checks = verdict::drained(&measured, &pod, gone, answers_before, answers_after);
        let expected = "it finishes its requests and goes, and none is lost";
        Ok(self.close(7, title, expected, began, (measured, checks)))
    }

    /// Name of the nth replica of orders, and how many there are.
    async fn replica(&mut self, nth: usize) -> Result<(String, usize), Error> {
        let pods = self.pods_of("orders").await?;
        let pod = pods.get(nth).ok_or_else(|| Error::NotReady {
            waited: Duration::ZERO,
            missing: format!("orders has only {} replicas", pods.len()),
        })?;
        Ok((pod.name.clone(), pods.len()))
    }

    /// How many sidecars have an open discovery stream, and how many there are.
    async fn connected(&mut self) -> Result<(usize, usize), Error> {
        let pods = self.cluster.pods().await?;
        let mut connected = 0;
        for pod in &pods {
            // A sidecar that does not answer is not connected, which is for the verdict to say.
            let metrics = pod.metrics().await.unwrap_or_default();
            connected += usize::from(metrics.sum("remora_discovery_connected") > 0.0);
        }
        Ok((connected, pods.len()))
    }

    /// How often each sidecar has renewed its certificate.
    async fn refreshes(&mut self) -> Result<BTreeMap<String, u64>, Error> {
        let mut refreshes = BTreeMap::new();
        for pod in self.cluster.pods().await? {
            // A sidecar that does not answer now is asked again, or missed in the verdict.
            if let Ok(certificate) = pod.certificate().await {
                refreshes.insert(pod.name, certificate.refreshes);
            }
        }
        Ok(refreshes)
    }
}

/// How many of the sidecars in `before` have renewed since.
fn count_renewed(before: &BTreeMap<String, u64>, now: &BTreeMap<String, u64>) -> usize {
    before.iter().filter(|(pod, was)| now.get(*pod).is_some_and(|is| is > *was)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sidecar_that_is_new_or_gone_has_not_renewed() {
        let counts = |list: &[(&str, u64)]| {
            list.iter().map(|(pod, n)| ((*pod).to_owned(), *n)).collect::<BTreeMap<_, _>>()
        };
        let before = counts(&[("a", 0), ("b", 2), ("c", 1)]);
        assert_eq!(count_renewed(&before, &counts(&[("a", 1), ("b", 2), ("d", 9)])), 1);
    }
}
