//! Where the threads run that serve a mount over io_uring, and what they do about programs that run away.
//!
//! A request comes to the processor that its program runs on, and is served fastest there: no other processor
//! has to be woken. That ends when the reply wakes the program, which the kernel puts on a processor that is idle
//! if there is one, instead of the one on which we are still busy with the reply. From there on each request is
//! made on the other processor than the last, and a wake-up of a processor that sleeps costs as much as
//! three requests.
//!
//! - *A processor that sleeps for good is left alone.* In a virtual machine the kernel passes over one that its
//!   host has taken away, which happens when it has been idle for a fifth of a millisecond. So where a program
//!   goes back and forth with each request, one reply is held back for longer than that, and it stays.
//!   Where that does not help it is done less and less often.
//! - *Large reads go anywhere.* They are sent ahead of the program, which copies while we do: on its processor
//!   we would only be in its way.

use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tracing::debug;

/// From this many bytes of a reply on a thread may go anywhere: read-ahead asks for so many.
const LARGE_BYTES: usize = 128 << 10;
/// How long a processor is idle before its host takes it away: KVM waits for at most 200 us (`halt_poll_ns`).
const TAKEN_AWAY_AFTER: Duration = Duration::from_micros(250);
/// After so many moves in a row a reply is held back, if that has helped before.
const MOVES_MIN: u32 = 8;
/// The same if it never helps: it then costs a hundredth of what the moves do.
const MOVES_MAX: u32 = 1 << 11;
/// A program that has made so many requests in a row on one processor stays.
const STAYS: u32 = 64;

/// Follows the program that asks most from processor to processor.
#[derive(Debug)]
pub(crate) struct Trail {
    /// The thread that asked last, and where.
    task: u32,
    processor: u16,
    moves: u32,
    stays: u32,
    /// After how many moves a reply is held back.
    patience: u32,
}

impl Default for Trail {
    fn default() -> Self {
        Self { task: 0, processor: 0, moves: 0, stays: 0, patience: MOVES_MIN }
    }
}

impl Trail {
    /// A request of the thread `task` came from `processor`; 0 stands for the kernel itself. Returns how long
    /// its reply is to be held back.
    pub(crate) fn came(&mut self, task: u32, processor: u16) -> Option<Duration> {
        if task == 0 {
            return None;
        }
        let (same, stayed) = (task == self.task, processor == self.processor);
        (self.task, self.processor) = (task, processor);
        match (same, stayed) {
            (true, false) => {
                self.stays = 0;
                self.moves += 1;
                if self.moves < self.patience {
                    return None;
                }
                self.moves = 0;
                self.patience = (self.patience * 2).min(MOVES_MAX);
                Some(TAKEN_AWAY_AFTER)
            }
            (true, true) => {
                self.moves = 0;
                self.stays += 1;
                if self.stays >= STAYS {
                    (self.stays, self.patience) = (0, MOVES_MIN);
                }
                None
            }
            (false, _) => {
                (self.moves, self.stays) = (0, 0);
                None
            }
        }
    }
}

/// Where one thread runs.
pub(crate) struct Place {
    home: CpuSet,
    anywhere: CpuSet,
    away: bool,
}

impl Place {
    /// Keeps the calling thread on `processor`. `None` if it runs anywhere: there is none, or it must not.
    pub(crate) fn settle(processor: Option<usize>) -> Option<Self> {
        let mut home = CpuSet::new();
        home.set(processor?);
        let settled = sched_getaffinity(None).and_then(|anywhere| {
            sched_setaffinity(None, &home)?;
            Ok(Self { home, anywhere, away: false })
        });
        settled.inspect_err(|errno| debug!("a thread runs anywhere: {errno}")).ok()
    }

    /// Moves the calling thread, whose reply has `bytes`.
    pub(crate) fn replying(&mut self, bytes: usize) {
        let away = bytes >= LARGE_BYTES;
        if away == self.away {
            return;
        }
        let moved: Result<(), Errno> =
            sched_setaffinity(None, if away { &self.anywhere } else { &self.home });
        match moved {
            Ok(()) => self.away = away,
            // Its processors were taken from us meanwhile; it is served where it is.
            Err(errno) => debug!("a thread stays where it is: {errno}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `times` requests of one thread, each from the next of `processors`, are held back.
    fn held_back(trail: &mut Trail, times: usize, processors: &[u16]) -> usize {
        let from = processors.iter().cycle().take(times);
        from.filter(|&&processor| trail.came(7, processor).is_some()).count()
    }

    #[test]
    fn a_program_that_goes_back_and_forth_is_held_back_and_less_often_where_that_is_no_use() {
        let mut trail = Trail::default();
        assert_eq!(held_back(&mut trail, MOVES_MIN as usize, &[0, 1]), 0);
        assert_eq!(held_back(&mut trail, 1, &[0]), 1);
        // 16, 32, 64, ... moves later.
        assert_eq!(held_back(&mut trail, 16 + 32 + 64, &[1, 0]), 3);
        assert_eq!(held_back(&mut trail, 100 * MOVES_MAX as usize, &[1, 0]), 4 + 99);
        // It stays: that has helped.
        assert_eq!(held_back(&mut trail, STAYS as usize + 1, &[0]), 0);
        assert_eq!(held_back(&mut trail, MOVES_MIN as usize, &[1, 0]), 1);
    }

    #[test]
    fn who_stays_or_is_somebody_else_is_not_held_back() {
        let mut trail = Trail::default();
        assert_eq!(held_back(&mut trail, 1000, &[1]), 0);
        assert_eq!(held_back(&mut trail, 1000, &[0, 0, 0, 1]), 0);
        let mut others = (1..1000_u32).map(|task| trail.came(task, (task % 2) as u16));
        assert!(others.all(|held| held.is_none()));
        let mut kernel = (0..1000_u16).map(|turn| trail.came(0, turn % 2));
        assert!(kernel.all(|held| held.is_none()));
    }

    #[test]
    fn a_thread_is_at_home_but_for_large_replies() {
        let allowed = |set: &CpuSet| (0..1024).filter(|&one| set.is_set(one)).collect::<Vec<_>>();
        std::thread::spawn(move || {
            let anywhere = allowed(&sched_getaffinity(None).unwrap());
            let home = anywhere[0];
            let mut place = Place::settle(Some(home)).unwrap();
            let mut after = |bytes| {
                place.replying(bytes);
                allowed(&sched_getaffinity(None).unwrap())
            };
            assert_eq!(after(0), [home]);
            assert_eq!(after(LARGE_BYTES), anywhere);
            assert_eq!(after(LARGE_BYTES), anywhere);
            assert_eq!(after(LARGE_BYTES - 1), [home]);
            assert!(Place::settle(None).is_none());
        })
        .join()
        .unwrap();
    }
}
