//! Whose turn it is to write: first come, first served.
//!
//! A plain mutex would let the background writer take the lock again, batch after batch, while
//! others wait for seconds.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The line of those who want to write.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Leaf lock.
    tickets: Mutex<Tickets>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct Tickets {
    /// The next number to be given out.
    next: u64,
    /// The number whose turn it is.
    now: u64,
}

/// A place in the line. Dropping it ends the turn, for which it first waits if it has not come yet.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    number: u64,
}

impl Turns {
    /// Joins the line.
    pub(super) fn join(&self) -> Turn<'_> {
        let mut tickets = self.lock();
        let number = tickets.next;
        tickets.next += 1;
        Turn { turns: self, number }
    }

    /// Whether somebody waits behind the one whose turn it is.
    pub(super) fn is_wanted(&self) -> bool {
        let tickets = self.lock();
        tickets.next > tickets.now + 1
    }

    fn lock(&self) -> MutexGuard<'_, Tickets> {
        // Each change is one step.
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// Waits until it is its turn.
    pub(super) fn wait(&self) {
        let mut tickets = self.turns.lock();
        while tickets.now != self.number {
            tickets = self.turns.moved.wait(tickets).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.wait();
        self.turns.lock().now += 1;
        self.turns.moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_taken_one_at_a_time_in_the_order_of_joining() {
        let turns = Turns::default();
        let order = Mutex::new(Vec::new());
        let first = turns.join();
        first.wait();
        assert!(!turns.is_wanted());
        std::thread::scope(|scope| {
            for number in 0..20 {
                let turn = turns.join();
                let order = &order;
                scope.spawn(move || {
                    turn.wait();
                    // Only one thread is ever here.
                    order.try_lock().unwrap().push(number);
                });
            }
            assert!(turns.is_wanted());
            drop(first);
        });
        assert_eq!(order.into_inner().unwrap(), (0..20).collect::<Vec<_>>());
        assert!(!turns.is_wanted());
    }
}
