//! How many connections the proxy carries at a time, and who gets them when they run short.
//!
//! The bound is what the process has room for: file descriptors (each connection needs two, ours and
//! the one it is carried on) and memory. At the bound a caller is told so, as long as that is not too
//! many at a time either, and is refused at once after that. Nobody waits without end.
//!
//! HTTP/2 carries many requests on one connection, so its streams are bounded beside that.
//!
//! One address must not take it all: while more than half of the places are taken, none may have more
//! than a quarter of them, so that whoever opens connections and says nothing keeps no other caller
//! out. The pod's own application is no such caller.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;

/// Descriptors for everything that is no connection: listeners, the control plane, admin, files.
const RESERVED: u64 = 128;
/// Memory that one connection is reckoned to take, with its upstream and both buffers.
const PER_CONNECTION: u64 = 48 * 1024;
/// Memory that one HTTP/2 stream is reckoned to take.
const PER_STREAM: u64 = 16 * 1024;
/// Memory for everything that is no connection.
const BASE: u64 = 32 * 1024 * 1024;
/// Why a request is not carried for which there is no place.
pub const STREAMS: &str = "as many HTTP/2 streams are open as this proxy has room for";
/// Callers that are told so at a time.
const TOLD: usize = 64;
/// The bound where nothing else sets one.
const MOST: usize = 65_536;
const MOST_STREAMS: usize = 262_144;
/// No machine is so small that it cannot carry these.
const LEAST: usize = 64;

/// The places, shared by all listeners of the process.
#[derive(Debug)]
pub struct Admission {
    limit: usize,
    open: AtomicUsize,
    stream_limit: usize,
    streams: AtomicUsize,
    told: AtomicUsize,
    sources: Mutex<HashMap<IpAddr, usize>>,
}

/// Whether a connection is carried.
#[derive(Debug)]
pub enum Admitted {
    /// It is.
    Yes(Place),
    /// There is no place for it, but time to say so.
    No(Place),
}

/// An HTTP/2 stream, until this is dropped.
#[derive(Debug)]
pub struct Stream(Arc<Admission>);

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A place that is taken until this is dropped.
#[derive(Debug)]
pub struct Place {
    admission: Arc<Admission>,
    source: Option<IpAddr>,
    told: bool,
}

impl Admission {
    /// So many places for connections, and for streams of HTTP/2.
    #[must_use]
    pub fn new(limit: usize, stream_limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit: limit.max(1),
            open: AtomicUsize::new(0),
            stream_limit: stream_limit.max(1),
            streams: AtomicUsize::new(0),
            told: AtomicUsize::new(0),
            sources: Mutex::default(),
        })
    }

    /// Places that there are.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Places that are taken.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Takes a place; `source` is the caller's address where callers compete. `None`: refuse it at
    /// once.
    #[must_use]
    pub fn admit(self: &Arc<Self>, source: Option<IpAddr>) -> Option<Admitted> {
        let place = |source, told| Place { admission: Arc::clone(self), source, told };
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        let fair = source.is_none_or(|source| self.count(source, before));
        if before < self.limit && fair {
            return Some(Admitted::Yes(place(source, false)));
        }
        self.open.fetch_sub(1, Ordering::Relaxed);
        if let Some(source) = source.filter(|_| fair) {
            self.uncount(source);
        }
        if self.told.fetch_add(1, Ordering::Relaxed) < TOLD {
            return Some(Admitted::No(place(None, true)));
        }
        self.told.fetch_sub(1, Ordering::Relaxed);
        None
    }

    /// Takes a place for an HTTP/2 stream; `None` where there is none.
    #[must_use]
    pub fn stream(self: &Arc<Self>) -> Option<Stream> {
        // Counted first: of several that race for the last place one gets it.
        let stream = Stream(Arc::clone(self));
        (self.streams.fetch_add(1, Ordering::Relaxed) < self.stream_limit).then_some(stream)
    }

    /// Counts one more of a source, unless it has its share.
    fn count(&self, source: IpAddr, open: usize) -> bool {
        let mut sources = self.sources.lock();
        let own = sources.entry(source).or_default();
        let short = open >= self.limit / 2;
        if short && *own >= self.limit.div_ceil(4) {
            return false;
        }
        *own += 1;
        true
    }

    fn uncount(&self, source: IpAddr) {
        let mut sources = self.sources.lock();
        if let Some(own) = sources.get_mut(&source) {
            *own -= 1;
            if *own == 0 {
                sources.remove(&source);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Self { admission, source, told } = self;
        if *told {
            admission.told.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        admission.open.fetch_sub(1, Ordering::Relaxed);
        if let Some(source) = *source {
            admission.uncount(source);
        }
    }
}

/// Places for a process with so many descriptors and so much memory (bytes); `None`: no bound.
#[must_use]
pub fn places(descriptors: u64, memory: Option<u64>) -> usize {
    let by_descriptors = descriptors.saturating_sub(RESERVED) / 2;
    let by_memory = memory.map(|memory| memory.saturating_sub(BASE) / PER_CONNECTION);
    let places = by_descriptors.min(by_memory.unwrap_or(u64::MAX));
    usize::try_from(places).unwrap_or(MOST).clamp(LEAST, MOST)
}

/// HTTP/2 streams for which so much memory (bytes) has room; `None`: no bound.
#[must_use]
pub fn streams(memory: Option<u64>) -> usize {
    let by_memory = memory.map_or(u64::MAX, |memory| memory.saturating_sub(BASE) / PER_STREAM);
    usize::try_from(by_memory).unwrap_or(MOST_STREAMS).clamp(LEAST, MOST_STREAMS)
}

/// The memory limit of this process's control group (`memory.max` of cgroup v2), where it has one.
#[must_use]
pub fn memory_limit(memory_max: Option<&str>) -> Option<u64> {
    memory_max?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    fn yes(admitted: Option<Admitted>) -> Place {
        match admitted {
            Some(Admitted::Yes(place)) => place,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn beyond_the_bound_callers_are_told_and_beyond_that_refused() {
        let admission = Admission::new(2, 1);
        let taken: Vec<_> = (0..2).map(|_| yes(admission.admit(None))).collect();
        let told: Vec<_> = (0..TOLD).map(|_| admission.admit(None)).collect();
        assert!(told.iter().all(|t| matches!(t, Some(Admitted::No(_)))));
        assert!(admission.admit(None).is_none());
        drop(taken);
        let _place = yes(admission.admit(None));
        assert_eq!(admission.open(), 1);
    }

    #[test]
    fn one_address_does_not_keep_the_others_out() {
        let admission = Admission::new(100, 1);
        let mut greedy = Vec::new();
        while let Some(Admitted::Yes(place)) = admission.admit(Some(ip(1))) {
            greedy.push(place);
        }
        assert_eq!(greedy.len(), 50);
        let others: Vec<_> = (0..25).map(|_| yes(admission.admit(Some(ip(2))))).collect();
        assert!(matches!(admission.admit(Some(ip(2))), Some(Admitted::No(_))));
        let _third = yes(admission.admit(Some(ip(3))));
        drop(others);
        assert!(matches!(admission.admit(Some(ip(1))), Some(Admitted::No(_))), "it has its share");
    }

    #[test]
    fn a_stream_too_many_is_none() {
        let admission = Admission::new(1, 2);
        let (one, two) = (admission.stream(), admission.stream());
        assert!(one.is_some() && two.is_some() && admission.stream().is_none());
        drop(one);
        assert!(admission.stream().is_some());
    }

    #[test]
    fn places_follow_descriptors_and_memory() {
        const MIB: u64 = 1024 * 1024;
        assert_eq!(places(1024, None), 448);
        assert_eq!(places(1 << 20, None), MOST);
        assert_eq!(places(1 << 20, Some(250 * MIB)), 4650);
        assert_eq!(places(1 << 20, Some(8 * MIB)), LEAST);
        assert_eq!((streams(None), streams(Some(250 * MIB))), (MOST_STREAMS, 13_952));
        assert_eq!(memory_limit(Some("max\n")), None);
        assert_eq!(memory_limit(Some("262144000\n")), Some(250 * MIB));
    }

    proptest! {
        #[test]
        fn what_is_taken_is_given_back(steps in prop::collection::vec((any::<bool>(), 0u8..5), 0..200)) {
            let admission = Admission::new(20, 1);
            let mut places: Vec<(u8, Admitted)> = Vec::new();
            for (take, n) in steps {
                if take {
                    let source = (n > 0).then(|| ip(n));
                    places.extend(admission.admit(source).map(|admitted| (n, admitted)));
                } else {
                    places.pop();
                }
                let carried = |p: &&(u8, Admitted)| matches!(p.1, Admitted::Yes(_));
                prop_assert_eq!(admission.open(), places.iter().filter(carried).count());
                prop_assert!(admission.open() <= 20);
            }
            drop(places);
            prop_assert_eq!(admission.open(), 0);
            prop_assert!(admission.sources.lock().is_empty());
        }
    }
}
