//! A bound on how many things have series of their own; the others are counted together.
//!
//! Who has none when it is counted first never gets one, so that no counter ever jumps.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// A number of places.
#[derive(Debug)]
pub struct Seats(Arc<AtomicUsize>);

impl Seats {
    /// All free.
    #[must_use]
    pub fn new(places: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(places)))
    }

    /// A place, as long as there is one.
    #[must_use]
    pub fn take(&self) -> Option<Seat> {
        let taken = self.0.fetch_update(Relaxed, Relaxed, |free| free.checked_sub(1));
        taken.ok().map(|_| Seat(Arc::clone(&self.0)))
    }
}

/// A place; free again when dropped.
#[derive(Debug)]
pub struct Seat(Arc<AtomicUsize>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_more_than_were_made_and_those_given_back_are_taken_again() {
        let seats = Seats::new(2);
        let taken = [seats.take().unwrap(), seats.take().unwrap()];
        assert!(seats.take().is_none());
        drop(taken);
        assert!(seats.take().is_some());
    }
}
