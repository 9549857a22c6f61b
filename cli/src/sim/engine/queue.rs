//! What is due when, and the requests under way.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

/// Things that are due; those due together come in the order in which they were put in.
#[derive(Debug)]
pub(super) struct Queue<T> {
    /// When, the order of putting in, and the place of what is due: small, since a heap moves its
    /// entries about.
    due: BinaryHeap<Reverse<(u64, u64, usize)>>,
    what: Vec<Option<T>>,
    free: Vec<usize>,
    next: u64,
}

impl<T> Queue<T> {
    pub(super) fn new() -> Self {
        Self { due: BinaryHeap::new(), what: Vec::new(), free: Vec::new(), next: 0 }
    }

    pub(super) fn put(&mut self, at: Duration, what: T) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.what.push(None);
            self.what.len() - 1
        });
        self.what[place] = Some(what);
        // Enough for 584 years.
        let nanos = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        self.due.push(Reverse((nanos, self.next, place)));
        self.next += 1;
    }

    /// The next one, and when it is due.
    pub(super) fn take(&mut self) -> Option<(Duration, T)> {
        let Reverse((nanos, _, place)) = self.due.pop()?;
        self.free.push(place);
        self.what[place].take().map(|what| (Duration::from_nanos(nanos), what))
    }
}

/// Names a request under way; one that has ended is never found under it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    place: usize,
    number: u64,
}

/// Values under keys, in places that are used again.
#[derive(Debug)]
pub(super) struct Slab<T> {
    places: Vec<Option<(u64, T)>>,
    free: Vec<usize>,
    next: u64,
}

impl<T> Slab<T> {
    pub(super) fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new(), next: 0 }
    }

    pub(super) fn insert(&mut self, value: T) -> Key {
        let number = self.next;
        self.next += 1;
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        self.places[place] = Some((number, value));
        Key { place, number }
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let (number, value) = self.places[key.place].as_mut()?;
        (*number == key.number).then_some(value)
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        self.get_mut(key)?;
        self.free.push(key.place);
        self.places[key.place].take().map(|(_, value)| value)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.places.len()
    }

    /// All of them, by place.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        let all = self.places.iter().enumerate();
        all.filter_map(|(place, slot)| {
            slot.as_ref().map(|(number, value)| (Key { place, number: *number }, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_together_comes_in_the_order_it_was_put_in() {
        let mut queue = Queue::new();
        let ms = Duration::from_millis;
        for (at, what) in [(2, 'c'), (1, 'a'), (2, 'd'), (1, 'b')] {
            queue.put(ms(at), what);
        }
        let order: String = std::iter::from_fn(|| queue.take()).map(|(_, what)| what).collect();
        assert_eq!(order, "abcd");
    }

    #[test]
    fn a_key_of_a_request_that_ended_finds_nothing() {
        let mut slab = Slab::new();
        let first = slab.insert('a');
        assert_eq!(slab.remove(first), Some('a'));
        let second = slab.insert('b');
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get_mut(second), Some(&mut 'b'));
        assert_eq!(slab.iter().count(), 1);
        slab.remove(second);
        assert!(slab.is_empty());
    }
}
