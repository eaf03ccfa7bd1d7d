//! The transport over io_uring: the kernel puts requests into memory of ours and finds the replies there.
//!
//! A request goes to the queue of the processor that its caller runs on, and each queue hands it to an
//! entry that waits: a header and a payload that were registered once. The completion of an entry says
//! that a request is in it; the submission that commits the reply asks for the next one at once, so
//! that a busy entry takes one system call for each request, where `/dev/fuse` takes two.
//!
//! - *There is a queue for every possible processor*, and none is used before each has an entry; who asks
//!   meanwhile waits. So all are registered before anybody is told of the mount, and if one cannot
//!   be, the mount is given up and made again without this transport.
//! - *A thread has one entry of the queue of its processor*, and runs there ([`crate::placement`]). An entry
//!   waits only while its thread does, so no request is given to a thread that is busy with another. Queues of
//!   processors on which we may not run, or that are not there yet, have an entry on some thread.
//! - *Forgets still come through `/dev/fuse`*, where one thread reads them, and notifications go there.
//! - *The end of the mount ends every entry* with an error of its own. A thread ends with its last one.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::thread::sched_getaffinity;

use crate::buffer::Buffer;
use crate::devfuse::{IDLE_SECONDS, KEPT_BYTES};
use crate::ops::Ops;
use crate::placement::{Place, Trail};
use crate::protocol::{Args, Header, IN_HEADER_BYTES, MESSAGE_BYTES_MAX, OUT_HEADER_BYTES};
use crate::protocol::{Writer, out_header};
use crate::serve::{Outcome, serve};

/// Threads of each processor that we may run on: while one waits for the disk, the other serves.
const THREADS_OF_PROCESSOR: usize = 2;
/// On more processors a mount would have more threads than over `/dev/fuse`, several times over: that was
/// never measured.
const PROCESSORS_MAX: usize = 8;
/// Which processors there can be.
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";

const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;

/// The header of an entry: that of the message, the first argument, and what is beside the payload.
const ENTRY_HEADER_BYTES: usize = 288;
const FIRST_ARGUMENT_AT: usize = 128;
const FIRST_ARGUMENT_BYTES_MAX: usize = 128;
const COMMIT_ID_AT: usize = 264;
const PAYLOAD_BYTES_AT: usize = 272;
/// Room for the reply to a request that fills the payload itself: none such is longer than the longest
/// value of an extended attribute.
const REPLY_BYTES_MAX: usize = 128 << 10;

type Ring = IoUring<squeue::Entry128, cqueue::Entry>;

/// One thread that is to serve a mount.
pub(crate) struct Worker {
    /// Where it is to run.
    processor: Option<usize>,
    /// The queues that it has an entry of.
    queues: Vec<u16>,
    /// Where programs go, as all workers of the mount see it. Leaf lock.
    trail: Arc<Mutex<Trail>>,
}

/// A thread that serves a mount.
struct Serving {
    // Goes before the entries, whose memory it writes to.
    ring: Ring,
    entries: Vec<Entry>,
    /// Those in which a request was as soon as they were registered.
    early: Vec<usize>,
    /// Where a reply is made while the payload still holds the request.
    reply: Vec<u8>,
    place: Option<Place>,
    trail: Arc<Mutex<Trail>>,
    /// Whether a message was large.
    touched: bool,
}

/// The memory of one request at a time.
struct Entry {
    queue: u16,
    header: Box<[u8]>,
    payload: Buffer,
    /// Where these two are, for the kernel.
    places: Box<[libc::iovec; 2]>,
    /// What is to be submitted next, or was submitted last: to commit the request of this number.
    committing: Option<u64>,
    state: State,
}

/// Whose an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Ours.
    Ours,
    /// Submitted: the kernel may write to it at any time.
    Kernels,
}

// SAFETY: the pointers in it lead to memory that it owns.
#[expect(unsafe_code, reason = "the places of buffers are told to the kernel as pointers")]
unsafe impl Send for Entry {}

impl Entry {
    fn new(queue: u16) -> io::Result<Self> {
        let mut header = vec![0; ENTRY_HEADER_BYTES].into_boxed_slice();
        let mut payload = Buffer::new(MESSAGE_BYTES_MAX)?;
        let place = |bytes: &mut [u8]| libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        let places = Box::new([place(&mut header), place(&mut payload)]);
        Ok(Self { queue, header, payload, places, committing: None, state: State::Ours })
    }

    /// What tells the kernel of it for the first time, or that its reply is complete.
    fn command(&self, index: usize) -> squeue::Entry128 {
        let operation = if self.committing.is_some() { COMMIT_AND_FETCH } else { REGISTER };
        let mut fields = [0; 80];
        let mut out = Writer::new(&mut fields);
        out.u64(0);
        out.u64(self.committing.unwrap_or(0));
        out.u16(self.queue);
        let command = opcode::UringCmd80::new(types::Fixed(0), operation).cmd(fields);
        let places = (&raw const *self.places) as u64;
        let command = if self.committing.is_some() { command } else { command.addr(Some(places)) };
        let mut command = command.build().user_data(index as u64);
        if self.committing.is_none() {
            set_len(&mut command, self.places.len() as u32);
        }
        command
    }

    /// The request that is in it, and the room for its reply.
    fn request(&self) -> Option<(Header, usize, usize)> {
        let header = Header::parse(self.header.get(..IN_HEADER_BYTES)?).ok()?;
        let payload = Args::new(&self.header[PAYLOAD_BYTES_AT..], &[]).u32().ok()? as usize;
        let first = (header.len as usize).checked_sub(IN_HEADER_BYTES)?.checked_sub(payload)?;
        let fits = first <= FIRST_ARGUMENT_BYTES_MAX && payload <= self.payload.len();
        fits.then_some((header, first, payload))
    }

    /// Serves the request that is in it and leaves the reply in its place. Returns who has asked, and how long
    /// request and reply are beside their headers.
    fn serve(&mut self, ops: &Ops, reply: &mut [u8]) -> (u32, usize, usize) {
        self.committing = Args::new(&self.header[COMMIT_ID_AT..], &[]).u64().ok();
        let Some((header, first, payload_len)) = self.request() else {
            ops.malformed(0, &"its parts are not as long as they say");
            self.answer(self.committing.unwrap_or(0), libc::EIO, 0);
            return (0, 0, 0);
        };
        let first = &self.header[FIRST_ARGUMENT_AT..FIRST_ARGUMENT_AT + first];
        let outcome = if payload_len == 0 {
            // What is read or listed has its place already.
            serve(ops, &header, Args::new(first, &[]), &mut self.payload)
        } else {
            let args = Args::new(first, &self.payload[..payload_len]);
            let outcome = serve(ops, &header, args, reply);
            if let Outcome::Reply(len) = outcome {
                self.payload[..len].copy_from_slice(&reply[..len]);
            }
            outcome
        };
        let (error, len) = match outcome {
            Outcome::Reply(len) => (0, len),
            Outcome::Refused(errno) => (errno.raw_os_error(), 0),
            Outcome::Nothing => (0, 0),
        };
        self.answer(header.unique, error, len);
        (header.task, payload_len, len)
    }

    fn answer(&mut self, unique: u64, error: i32, payload: usize) {
        let header = out_header(unique, error, payload);
        self.header[..OUT_HEADER_BYTES].copy_from_slice(&header);
        let mut out = Writer::new(&mut self.header[PAYLOAD_BYTES_AT..]);
        out.u32(payload as u32);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // The kernel may still write to it, after the ring was closed as well.
        if self.state == State::Kernels {
            std::mem::forget(std::mem::take(&mut self.header));
            self.payload.leak();
        }
    }
}

/// States how many places a command names, for which the crate has no method.
#[expect(unsafe_code, reason = "a field of the kernel's structure that the crate hides")]
fn set_len(command: &mut squeue::Entry128, len: u32) {
    const LEN_AT: usize = 24;
    const { assert!(size_of::<squeue::Entry128>() == 128) };
    // SAFETY: an entry is the kernel's structure of 128 bytes, in which this field is plain data.
    unsafe { (&raw mut *command).byte_add(LEN_AT).cast::<u32>().write_unaligned(len) };
}

/// Why mounts cannot be served like this here; `None` if they can. It makes a ring and throws it away.
pub(crate) fn obstacle() -> Option<String> {
    prepare().err().map(|failure| failure.to_string())
}

fn ring(entries: usize) -> io::Result<Ring> {
    let entries = entries.next_power_of_two() as u32;
    IoUring::builder().setup_cqsize(entries * 2).setup_submit_all().dontfork().build(entries)
}

/// The threads that serve a mount over io_uring.
///
/// # Errors
/// If there can be no rings, or the processors are not known, or are too many.
pub(crate) fn prepare() -> io::Result<Vec<Worker>> {
    drop(ring(1)?);
    let queues = processors(&std::fs::read_to_string(POSSIBLE)?)
        .ok_or_else(|| io::Error::other(format!("{POSSIBLE} is no list of processors")))?;
    let allowed = sched_getaffinity(None)?;
    let allowed = (0..queues).filter(|&processor| allowed.is_set(processor)).collect::<Vec<_>>();
    if let Some(why) = too_many(allowed.len()) {
        return Err(io::Error::other(why));
    }
    let trail = Arc::default();
    let worker = |(processor, queues)| Worker { processor, queues, trail: Arc::clone(&trail) };
    Ok(distribute(queues, &allowed).into_iter().map(worker).collect())
}

/// Why so many processors are too many, if they are.
fn too_many(processors: usize) -> Option<String> {
    (processors > PROCESSORS_MAX)
        .then(|| format!("each mount would take {} threads", processors * THREADS_OF_PROCESSOR))
}

/// The number of processors in a list like `0-3,8`.
fn processors(list: &str) -> Option<usize> {
    let mut count = 0_usize;
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
        count += usize::from(last.checked_sub(first)?) + 1;
    }
    Some(count)
}

/// Which queues each thread serves, and where it runs. There are `queues` of them, and the processors
/// on which we may run are `allowed`.
fn distribute(queues: usize, allowed: &[usize]) -> Vec<(Option<usize>, Vec<u16>)> {
    let own = allowed.iter().filter(|&&processor| processor < queues);
    let own = own.flat_map(|&processor| [processor; THREADS_OF_PROCESSOR]);
    let mut threads: Vec<_> =
        own.map(|processor| (Some(processor), vec![processor as u16])).collect();
    if threads.is_empty() {
        threads.push((None, Vec::new()));
    }
    let others = (0..queues).filter(|processor| !allowed.contains(processor));
    let count = threads.len();
    for (index, queue) in others.enumerate() {
        threads[index % count].1.push(queue as u16);
    }
    threads
}

impl Worker {
    /// Makes the kernel refuse its first entry.
    #[cfg(test)]
    pub(crate) fn spoil(&mut self) {
        self.queues[0] = u16::MAX;
    }

    /// Registers its entries, tells `report` whether the kernel took them, and serves them when
    /// `go` says so. Ends when `go` says nothing, or with the mount.
    ///
    /// # Errors
    /// If the mount is there and can no longer be served.
    pub(crate) fn run(
        self,
        device: &OwnedFd,
        ops: &Ops,
        report: &Sender<io::Result<()>>,
        go: &Receiver<()>,
    ) -> io::Result<()> {
        let place = Place::settle(self.processor);
        // Whoever waits for it counts the reports.
        let serving = match Serving::open(device, &self.queues, place, self.trail) {
            Ok(serving) => {
                let _ = report.send(Ok(()));
                serving
            }
            Err(failure) => {
                let _ = report.send(Err(failure));
                return Ok(());
            }
        };
        if go.recv().is_err() {
            return Ok(());
        }
        serving.serve(ops)
    }
}

impl Serving {
    /// Makes a ring on this thread and registers an entry of each of `queues`.
    ///
    /// A ring that is closed is not gone before the thread that made it has taken note. One that waits for
    /// an answer of this mount does not, and the ring keeps the device open: so it is made by the
    /// thread that serves it, which waits for nothing else.
    fn open(
        device: &OwnedFd,
        queues: &[u16],
        place: Option<Place>,
        trail: Arc<Mutex<Trail>>,
    ) -> io::Result<Self> {
        let ring = ring(queues.len())?;
        ring.submitter().register_files(&[device.as_raw_fd()])?;
        let entries = queues.iter().copied().map(Entry::new).collect::<io::Result<_>>()?;
        let (early, reply) = (Vec::new(), vec![0; REPLY_BYTES_MAX]);
        let mut serving = Self { ring, entries, early, reply, place, trail, touched: false };
        serving.register()?;
        Ok(serving)
    }

    /// Hands all entries to the kernel, which refuses one at once or not at all.
    fn register(&mut self) -> io::Result<()> {
        for index in 0..self.entries.len() {
            self.push(index)?;
        }
        self.ring.submit()?;
        while let Some((index, result)) = self.completed() {
            match result {
                // A request is there already.
                0 => self.early.push(index),
                _ => return Err(io::Error::from_raw_os_error(-result)),
            }
        }
        Ok(())
    }

    /// Submits the entry `index` with the next submission.
    #[expect(unsafe_code, reason = "the kernel is given memory to write to")]
    fn push(&mut self, index: usize) -> io::Result<()> {
        let entry = &mut self.entries[index];
        let command = entry.command(index);
        entry.state = State::Kernels;
        // SAFETY: what the command points to is on the heap and belongs to the entry. That neither reads
        // nor writes it until a completion says that it is ours again, and gives it up for lost if it is
        // dropped before.
        let pushed = unsafe { self.ring.submission().push(&command) };
        // There are as many places as entries, each of which has one command at most.
        pushed.map_err(io::Error::other)
    }

    /// The next entry that is ours again, with what the kernel said.
    fn completed(&mut self) -> Option<(usize, i32)> {
        loop {
            let done = self.ring.completion().next()?;
            let index = usize::try_from(done.user_data()).ok();
            if let Some(index) = index.filter(|&index| index < self.entries.len()) {
                self.entries[index].state = State::Ours;
                return Some((index, done.result()));
            }
        }
    }

    /// Serves the request in an entry and submits the reply with the next submission.
    fn serve_one(&mut self, index: usize, ops: &Ops) -> io::Result<()> {
        let (task, asked, replied) = self.entries[index].serve(ops, &mut self.reply);
        self.touched |= asked.max(replied) > KEPT_BYTES;
        if let Some(place) = &mut self.place {
            place.replying(replied);
        }
        // Who finds it taken is not alone, and a program that goes back and forth is.
        let held_back = match self.trail.try_lock() {
            Ok(mut trail) => trail.came(task, self.entries[index].queue),
            Err(_) => None,
        };
        if let Some(time) = held_back {
            thread::sleep(time);
        }
        self.push(index)
    }

    /// Submits what is to be submitted and waits until something is completed. After a large message it
    /// waits a while and then gives back what that has touched.
    fn submit_and_wait(&mut self) -> io::Result<()> {
        let submitted = if self.touched {
            let idle = Timespec::new().sec(IDLE_SECONDS);
            self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&idle))
        } else {
            self.ring.submit_and_wait(1)
        };
        match submitted {
            Err(late) if late.raw_os_error() == Some(libc::ETIME) => {
                // The kernel copies a request on this thread, when that calls it or comes back from a call: not
                // now, although the entries are its own.
                self.entries.iter_mut().for_each(|entry| entry.payload.give_back());
                self.touched = false;
                Ok(())
            }
            Err(signal) if signal.kind() == io::ErrorKind::Interrupted => Ok(()),
            submitted => submitted.map(drop),
        }
    }

    fn serve(mut self, ops: &Ops) -> io::Result<()> {
        for index in std::mem::take(&mut self.early) {
            self.serve_one(index, ops)?;
        }
        while self.entries.iter().any(|entry| entry.state == State::Kernels) {
            self.submit_and_wait()?;
            while let Some((index, result)) = self.completed() {
                match -result {
                    0 => self.serve_one(index, ops)?,
                    // It was taken back before it was looked at.
                    libc::EAGAIN | libc::EINTR => self.push(index)?,
                    // Unmounted, or aborted.
                    libc::ENOTCONN | libc::ECONNABORTED | libc::ENODEV => {}
                    errno => return Err(io::Error::from_raw_os_error(errno)),
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted() {
        for (list, count) in [("0", 1), ("0-1\n", 2), ("0-3,8,10-11", 7)] {
            assert_eq!(processors(list), Some(count), "{list:?}");
        }
        for list in ["", "x", "3-1", "0-", "0,,1", "-1"] {
            assert_eq!(processors(list), None, "{list:?}");
        }
    }

    #[test]
    fn every_queue_has_an_entry_and_every_thread_one_of_its_own() {
        let cases = [(2, &[0, 1][..]), (8, &[0, 1]), (8, &[6]), (3, &[]), (1, &[0, 5])];
        for (queues, allowed) in cases {
            let threads = distribute(queues, allowed);
            let mut entries = vec![0; queues];
            for (processor, queues) in &threads {
                queues.iter().for_each(|&queue| entries[usize::from(queue)] += 1);
                if let Some(processor) = *processor {
                    assert_eq!(usize::from(queues[0]), processor);
                }
            }
            for (queue, count) in entries.into_iter().enumerate() {
                let expected = if allowed.contains(&queue) { THREADS_OF_PROCESSOR } else { 1 };
                assert_eq!(count, expected, "queue {queue} of {queues}, allowed {allowed:?}");
            }
        }
    }

    #[test]
    fn threads_of_a_mount_are_bounded() {
        assert_eq!(too_many(PROCESSORS_MAX), None);
        let why = too_many(PROCESSORS_MAX + 1).unwrap();
        assert!(why.contains("18 threads"), "{why}");
    }

    #[test]
    fn commands_are_laid_out_as_the_kernel_reads_them() {
        let mut entry = Entry::new(5).unwrap();
        let bytes = |entry: &Entry| {
            let command = entry.command(3);
            let mut bytes = [0_u8; 128];
            let at = (&raw const command).cast::<u8>();
            // SAFETY: plain data of this length.
            #[expect(unsafe_code, reason = "the crate hides the fields")]
            unsafe {
                at.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len());
            }
            bytes
        };
        let register = bytes(&entry);
        let field = |bytes: &[u8; 128], at: usize| Args::new(&bytes[at..], &[]).u64().unwrap();
        let places = (&raw const *entry.places) as u64;
        assert_eq!((field(&register, 8), field(&register, 16)), (1, places));
        assert_eq!((register[24], field(&register, 32)), (2, 3));
        assert_eq!((field(&register, 48), field(&register, 56), register[64]), (0, 0, 5));
        entry.committing = Some(77);
        let commit = bytes(&entry);
        assert_eq!((field(&commit, 8), field(&commit, 16), commit[24]), (2, 0, 0));
        assert_eq!((field(&commit, 48), field(&commit, 56), commit[64]), (0, 77, 5));
    }

    #[test]
    fn a_request_is_no_longer_than_its_parts() {
        let mut entry = Entry::new(0).unwrap();
        let mut claim = |len: u32, payload: u32| {
            Writer::new(&mut entry.header).u32(len);
            Writer::new(&mut entry.header[PAYLOAD_BYTES_AT..]).u32(payload);
            entry.request().map(|(_, first, payload)| (first, payload))
        };
        assert_eq!(claim(40, 0), Some((0, 0)));
        assert_eq!(claim(40 + 128 + 9, 9), Some((128, 9)));
        assert_eq!(claim(40 + 1 + MESSAGE_BYTES_MAX as u32, 1 << 20), Some((1, 1 << 20)));
        for (len, payload) in [(39, 0), (40 + 129, 0), (45, 6), (u32::MAX, u32::MAX - 40)] {
            assert_eq!(claim(len, payload), None, "{len}, {payload}");
        }
    }
}
