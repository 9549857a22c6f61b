//! One proxy's stream.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use parking_lot::Mutex;
use remora_core::spiffe::SpiffeId;
use remora_proto::v1::{
    self as pb, TrustBundle, WatchRequest, WatchResponse, subscribe, watch_request::Kind,
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{Outgoing, Proxy, State, wire, wire::Place};
use crate::{
    index::{
        SubscriberId,
        answer::{Answer, Caller, Target},
    },
    server,
};

/// Most targets of one proxy, which keeps as many, and one subscription to its own inbound policy.
pub(super) const MAX_SUBSCRIPTIONS: usize = 10_000 + 1;

/// What others see of a stream, and how they tell it that something changed.
#[derive(Debug)]
pub(super) struct Shared {
    caller: Caller,
    identity: String,
    version: String,
    due: Mutex<Due>,
    wake: Notify,
}

/// Subscriptions whose answer may have changed, in order, and since when.
#[derive(Debug, Default)]
struct Due {
    order: VecDeque<u64>,
    since: HashMap<u64, Instant>,
    /// Sent but not confirmed: the version and since when.
    unacked: HashMap<u64, Unacked>,
    subscriptions: usize,
}

#[derive(Debug, Clone, Copy)]
struct Unacked {
    /// The oldest version that is not confirmed and when its event came.
    oldest: (u64, Instant),
    /// The newest that was sent.
    newest: (u64, Instant),
}

impl Shared {
    pub(super) fn new(caller: &Caller, identity: &SpiffeId, version: String) -> Self {
        Self {
            caller: caller.clone(),
            identity: identity.to_string(),
            version,
            due: Mutex::new(Due::default()),
            wake: Notify::new(),
        }
    }

    /// Something that a subscription's answer depends on has changed.
    pub(super) fn touch(&self, id: u64, now: Instant) {
        let mut due = self.due.lock();
        if let Entry::Vacant(entry) = due.since.entry(id) {
            entry.insert(now);
            due.order.push_back(id);
        }
        drop(due);
        self.wake.notify_one();
    }

    /// Has the stream look at what is due.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    pub(super) fn describe(&self, now: Instant) -> Proxy {
        let due = self.due.lock();
        let unsent = due.since.values().copied();
        let oldest = due.unacked.values().map(|unacked| unacked.oldest.1).chain(unsent).min();
        let due_only = due.since.keys().filter(|id| !due.unacked.contains_key(id)).count();
        Proxy {
            namespace: self.caller.namespace.clone(),
            pod: self.caller.pod.clone(),
            node: self.caller.node.clone(),
            zone: self.caller.zone.clone(),
            identity: self.identity.clone(),
            version: self.version.clone(),
            subscriptions: due.subscriptions,
            behind: due.unacked.len() + due_only,
            behind_seconds: oldest.map_or(0.0, |at| now.duration_since(at).as_secs_f64()),
        }
    }

    fn next_due(&self) -> Option<(u64, Instant)> {
        let mut due = self.due.lock();
        // Ids of closed subscriptions are left in the order; they have no time.
        while let Some(id) = due.order.pop_front() {
            if let Some(since) = due.since.remove(&id) {
                return Some((id, since));
            }
        }
        None
    }

    fn sent(&self, id: u64, version: u64, since: Instant) {
        let newest = (version, since);
        let mut due = self.due.lock();
        due.unacked
            .entry(id)
            .and_modify(|unacked| unacked.newest = newest)
            .or_insert(Unacked { oldest: newest, newest });
    }

    /// Takes a confirmation and answers since when the confirmed state was due.
    fn acked(&self, id: u64, version: u64) -> Option<Instant> {
        let mut due = self.due.lock();
        let Entry::Occupied(mut entry) = due.unacked.entry(id) else { return None };
        let Unacked { oldest, newest } = *entry.get();
        if version < oldest.0 {
            return None;
        }
        if version >= newest.0 {
            entry.remove();
        } else {
            entry.get_mut().oldest = newest;
        }
        Some(oldest.1)
    }

    fn subscribed(&self, count: usize) {
        self.due.lock().subscriptions = count;
    }

    fn forget(&self, id: u64) {
        let mut due = self.due.lock();
        due.since.remove(&id);
        due.unacked.remove(&id);
        // Otherwise a proxy that opens and closes without reading could make the order long.
        if due.order.len() > 2 * MAX_SUBSCRIPTIONS {
            let Due { order, since, .. } = &mut *due;
            order.retain(|id| since.contains_key(id));
        }
    }
}

/// The stream's own side.
pub(super) struct Stream {
    state: Arc<State>,
    number: u64,
    shared: Arc<Shared>,
    caller: Arc<Caller>,
    open: HashMap<u64, Sent>,
}

/// What the proxy was told last.
#[derive(Default)]
struct Sent {
    version: u64,
    answer: Option<Answer>,
}

impl Stream {
    pub(super) fn new(state: Arc<State>, number: u64, shared: Arc<Shared>, caller: Caller) -> Self {
        Self { state, number, shared, caller: Arc::new(caller), open: HashMap::new() }
    }

    /// Serves until the proxy leaves, its connection is asked to go, or the proxy breaks the contract.
    pub(super) async fn run(
        &mut self,
        requests: &mut Streaming<WatchRequest>,
        outgoing: &mpsc::Sender<Outgoing>,
        mut bundle: watch::Receiver<Arc<TrustBundle>>,
        leaving: &CancellationToken,
    ) -> Result<(), Status> {
        bundle.mark_changed();
        let mut bundle_due = false;
        let mut ready = None;
        loop {
            if ready.is_none() && !bundle_due && self.state.is_loaded() {
                ready = self.shared.next_due();
            }
            let has_work = bundle_due || ready.is_some();
            tokio::select! {
                biased;
                () = leaving.cancelled() => return Err(server::leave()),
                permit = outgoing.reserve(), if has_work => {
                    let Ok(permit) = permit else { return Ok(()) };
                    if std::mem::take(&mut bundle_due) {
                        let message = wire::trust_bundle(&bundle.borrow_and_update());
                        permit.send(Box::new(Ok(message)));
                    } else if let Some(due) = ready.take()
                        && let Some(message) = self.message(due)
                    {
                        self.state.metrics.updates.inc();
                        permit.send(Box::new(Ok(message)));
                    }
                }
                request = requests.message() => match request? {
                    Some(request) => self.request(request)?,
                    None => return Ok(()),
                },
                changed = bundle.changed(), if !bundle_due => {
                    if changed.is_err() {
                        return Err(Status::unavailable("control plane is shutting down"));
                    }
                    bundle_due = true;
                }
                () = self.shared.wake.notified(), if ready.is_none() => {}
                () = outgoing.closed() => return Ok(()),
            }
        }
    }

    fn request(&mut self, request: WatchRequest) -> Result<(), Status> {
        match request.kind {
            Some(Kind::Subscribe(subscribe)) => self.subscribe(subscribe),
            Some(Kind::Unsubscribe(pb::Unsubscribe { id })) => {
                self.unsubscribe(id);
                Ok(())
            }
            Some(Kind::Ack(pb::Ack { id, version })) => {
                if let Some(since) = self.shared.acked(id, version) {
                    self.state.metrics.ack.observe(since.elapsed().as_secs_f64());
                }
                Ok(())
            }
            Some(Kind::Hello(_)) => Err(Status::invalid_argument("Hello comes once, first")),
            // A newer proxy's request that this version does not know.
            None => Ok(()),
        }
    }

    fn subscribe(&mut self, subscribe: pb::Subscribe) -> Result<(), Status> {
        let id = subscribe.id;
        let target = target(subscribe.target)?;
        if self.open.len() >= MAX_SUBSCRIPTIONS {
            return Err(Status::resource_exhausted(format!(
                "more than {MAX_SUBSCRIPTIONS} subscriptions; unsubscribe from what is not used"
            )));
        }
        if self.open.insert(id, Sent::default()).is_some() {
            return Err(Status::invalid_argument(format!("subscription {id} is open already")));
        }
        self.state.metrics.subscriptions.inc();
        self.shared.subscribed(self.open.len());
        let subscriber = SubscriberId { stream: self.number, id };
        self.state.index.write().subscribe(subscriber, target, Arc::clone(&self.caller));
        self.shared.touch(id, Instant::now());
        Ok(())
    }

    fn unsubscribe(&mut self, id: u64) {
        if self.open.remove(&id).is_none() {
            return;
        }
        self.state.metrics.subscriptions.dec();
        self.state.index.write().unsubscribe(SubscriberId { stream: self.number, id });
        self.shared.forget(id);
        self.shared.subscribed(self.open.len());
    }

    /// What to tell the proxy so that it knows what holds now; `None` where it does.
    fn message(&mut self, (id, since): (u64, Instant)) -> Option<WatchResponse> {
        let sent = self.open.get_mut(&id)?;
        let subscriber = SubscriberId { stream: self.number, id };
        let now = self.state.index.read().answer(subscriber)?;
        let version = sent.version + 1;
        let message = match (&sent.answer, &now) {
            (Some(old), now) if old == now => return None,
            (Some(Answer::Service(old)), Answer::Service(new)) if old.has_head_of(new) => {
                wire::delta(id, version, old, new)
            }
            _ => {
                let zone = self.state.index.read().zone_of(&self.caller);
                let place = Place { node: self.caller.node.as_str().into(), zone };
                wire::update(id, version, &now, &place)
            }
        };
        *sent = Sent { version, answer: Some(now) };
        self.shared.sent(id, version, since);
        Some(message)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.state.close(self.number);
        self.state.metrics.subscriptions.dec_by(i64::try_from(self.open.len()).unwrap_or(0));
        let mut index = self.state.index.write();
        for id in self.open.keys() {
            index.unsubscribe(SubscriberId { stream: self.number, id: *id });
        }
    }
}

fn target(target: Option<subscribe::Target>) -> Result<Target, Status> {
    match target {
        Some(subscribe::Target::Address(address)) => {
            let ip = match address.ip.len() {
                4 => <[u8; 4]>::try_from(&address.ip[..]).ok().map(IpAddr::from),
                16 => <[u8; 16]>::try_from(&address.ip[..]).ok().map(IpAddr::from),
                _ => None,
            };
            let port = u16::try_from(address.port).ok().filter(|port| *port > 0);
            match (ip, port) {
                (Some(ip), Some(port)) => Ok(Target::Address(SocketAddr::new(ip, port))),
                _ => Err(Status::invalid_argument("address of 4 or 16 bytes and port 1 to 65535")),
            }
        }
        Some(subscribe::Target::Authority(authority)) => Target::authority(&authority)
            .ok_or_else(|| Status::invalid_argument("authority must be host:port")),
        Some(subscribe::Target::Inbound(_)) => Ok(Target::Inbound),
        None => Err(Status::invalid_argument("subscription without a target")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::index::Index;

    fn shared() -> Shared {
        let identity = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        Shared::new(&Caller::default(), &identity, String::new())
    }

    #[tokio::test(start_paused = true)]
    async fn changes_to_one_subscription_are_one_message_as_old_as_the_first() {
        let (shared, first) = (shared(), Instant::now());
        for second in 0..1000 {
            shared.touch(1, first + Duration::from_secs(second));
            shared.touch(2, first + Duration::from_secs(second));
        }
        assert_eq!(shared.next_due(), Some((1, first)));
        assert_eq!(shared.next_due(), Some((2, first)));
        assert_eq!(shared.next_due(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_proxy_is_behind_until_it_confirms_the_newest_version() {
        let (shared, start) = (shared(), Instant::now());
        let later = start + Duration::from_secs(5);
        shared.sent(1, 1, start);
        shared.sent(1, 2, later);
        let behind = |at| (shared.describe(at).behind, shared.describe(at).behind_seconds);
        assert_eq!(behind(later), (1, 5.0));
        assert_eq!(shared.acked(1, 0), None, "confirms nothing that was sent");
        assert_eq!(shared.acked(1, 1), Some(start));
        assert_eq!(behind(later), (1, 0.0));
        assert_eq!(shared.acked(1, 2), Some(later));
        assert_eq!(behind(later), (0, 0.0));
        assert_eq!(shared.acked(1, 2), None, "counted once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_proxy_with_all_its_targets_still_learns_its_inbound_policy() {
        let state = State::new(Index::new("cluster.local", "cluster.local"), Arc::default());
        let mut stream = Stream::new(state, 0, Arc::new(shared()), Caller::default());
        let mut open = |id, target| {
            stream.subscribe(pb::Subscribe { id, target: Some(target) }).map_err(|s| s.code())
        };
        let service = |id| subscribe::Target::Authority(format!("s{id}.shop:80"));
        // The proxy's own bound.
        for id in 2..10_002 {
            assert_eq!(open(id, service(id)), Ok(()), "{id}");
        }
        assert_eq!(open(1, subscribe::Target::Inbound(pb::InboundTarget {})), Ok(()));
        assert_eq!(open(20_000, service(20_000)), Err(tonic::Code::ResourceExhausted));
    }

    #[tokio::test(start_paused = true)]
    async fn opening_and_closing_without_reading_stays_bounded() {
        let shared = shared();
        for id in 0..100_000 {
            shared.touch(id, Instant::now());
            shared.forget(id);
        }
        assert!(shared.due.lock().order.len() <= 2 * MAX_SUBSCRIPTIONS + 1);
        assert_eq!(shared.next_due(), None);
    }
}
