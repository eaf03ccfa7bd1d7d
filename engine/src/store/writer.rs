//! The background writer: one thread behind a channel that is bounded in bytes.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Batch, Core, Hold, Stored};
use crate::content::{PreparedChunk, PreparedContent, StreamedContent};
use crate::error::{Error, Result};
use crate::id::GitOid;
use crate::limits::WRITER_QUEUE_BYTES;
use crate::tree::EncodedTree;

/// A batch is committed at this age, however small it is.
const BATCH_AGE_MAX: Duration = Duration::from_secs(2);

/// What an item costs in memory beside its payload.
const ITEM_BYTES: usize = 256;

/// Something to be stored in the background.
#[derive(Debug)]
pub enum WriteItem {
    /// A git blob and its content.
    Blob {
        /// The git blob.
        oid: GitOid,
        /// Its content.
        content: PreparedContent,
    },
    /// A chunk of a content whose manifest follows.
    Chunk(PreparedChunk),
    /// The manifest of a content whose chunks were all sent before.
    Manifest {
        /// The git blob, if the content is one.
        oid: Option<GitOid>,
        /// The manifest.
        content: StreamedContent,
        /// Taken before the first of its chunks was sent.
        hold: Hold,
    },
    /// A directory object whose subtrees were all sent before.
    Tree {
        /// The git tree.
        oid: GitOid,
        /// The conversion context under which it was made.
        context: [u8; 32],
        /// The directory object.
        tree: EncodedTree,
    },
    /// A content that checkout conversion made, which is no git blob.
    ConvertedContent(PreparedContent),
}

impl WriteItem {
    fn bytes(&self) -> usize {
        let stored = |content: &PreparedContent| -> usize {
            content.chunks.iter().map(|chunk| chunk.stored.len()).sum()
        };
        ITEM_BYTES
            + match self {
                Self::Blob { content, .. } | Self::ConvertedContent(content) => stored(content),
                Self::Chunk(chunk) => chunk.stored.len(),
                Self::Manifest { content, .. } => size_of_val(content.chunks.as_slice()),
                Self::Tree { tree, .. } => tree.bytes.len(),
            }
    }

    fn put(&self, batch: &mut Batch<'_>) -> Result<()> {
        match self {
            Self::Blob { oid, content } => {
                batch.put_content(content)?;
                batch.map_blob(oid, Stored { id: content.id, size: content.size });
            }
            Self::Chunk(chunk) => batch.put_chunk(chunk)?,
            Self::Manifest { oid, content, .. } => {
                batch.put_manifest(content)?;
                if let Some(oid) = oid {
                    batch.map_blob(oid, Stored { id: content.id, size: content.size });
                }
            }
            Self::Tree { oid, context, tree } => {
                batch.put_tree(tree)?;
                batch.map_tree(oid, context, &tree.subtree)?;
            }
            Self::ConvertedContent(content) => batch.put_content(content)?,
        }
        Ok(())
    }
}

/// The background writer of a store. What is sent becomes durable in the order of sending, some
/// time later. It ends, and commits what it has, with the store.
///
/// What is on its way when a write fails is lost, and every [`Session`] that has sent some of it is
/// told. If there was no room, sessions that begin later write again. After any other error it takes
/// nothing more until the store is opened again.
#[derive(Debug)]
pub struct Writer {
    channel: Arc<Channel>,
    thread: Option<JoinHandle<()>>,
}

/// What one task sends to the writer. Whatever is lost of it, or of what others have sent since it
/// began, is an error here: all that a session has sent refers only to what is stored.
#[derive(Clone, Copy, Debug)]
pub struct Session<'w> {
    channel: &'w Channel,
    /// Items that do not concern it, since they were sent before.
    start: u64,
}

#[derive(Debug)]
struct Channel {
    /// Only the line of writers is locked under it.
    queue: Mutex<Queue>,
    /// Something to do for the thread.
    work: Condvar,
    /// Room in the queue, a durable batch or a failure, for senders.
    done: Condvar,
    store: Arc<Core>,
}

#[derive(Debug, Default)]
struct Queue {
    items: VecDeque<WriteItem>,
    bytes: usize,
    /// Items ever sent.
    sent: u64,
    /// How many of them are durable or lost.
    settled: u64,
    /// How many of them must become durable without delay.
    wanted: u64,
    closed: bool,
    /// The newest.
    failure: Option<Failure>,
}

#[derive(Debug)]
struct Failure {
    /// For the first who asks; errors cannot be cloned.
    first: Option<Error>,
    why: String,
    /// Items sent before it, of which those that were not durable are lost; `None` if it has ended
    /// all writing.
    lost: Option<u64>,
}

impl Writer {
    pub(super) fn start(store: Arc<Core>) -> Result<Self> {
        let dir = store.dir.clone();
        let channel = Arc::new(Channel::new(store));
        let runner = Arc::clone(&channel);
        let thread = std::thread::Builder::new()
            .name("agentfs-writer".into())
            .spawn(move || runner.run())
            .map_err(|error| Error::io("start the writer of", &dir, error))?;
        Ok(Self { channel, thread: Some(thread) })
    }

    /// Begins a session.
    pub fn session(&self) -> Session<'_> {
        Session { channel: &self.channel, start: self.channel.lock().sent }
    }

    /// Hands over an item that is no loss, unless that would have to wait or the writer has stopped;
    /// whether it did.
    pub fn try_send(&self, item: WriteItem) -> bool {
        let bytes = item.bytes();
        let mut queue = self.channel.lock();
        let possible = !queue.has_stopped() && queue.has_room(bytes);
        if possible {
            self.channel.push(&mut queue, item, bytes);
        }
        possible
    }

    /// Waits until everything that was sent before, by whomever, is durable and visible.
    ///
    /// # Errors
    /// That of the writer if some of it is lost, or if it has stopped.
    pub fn flush(&self) -> Result<()> {
        let start = self.channel.lock().settled;
        Session { channel: &self.channel, start }.flush()
    }

    /// Makes the thread look whether its batch is in somebody's way.
    pub(super) fn wake(&self) {
        let _queue = self.channel.lock();
        self.channel.work.notify_one();
    }
}

impl Session<'_> {
    /// Hands over an item. Waits while too many bytes are on their way; so do not call it while you
    /// hold a [`Batch`], for which the writer itself may have to wait.
    ///
    /// # Errors
    /// That of the writer, if something of this session was lost. So is the item then.
    pub fn send(&self, item: WriteItem) -> Result<()> {
        let bytes = item.bytes();
        let mut queue = self.channel.lock();
        loop {
            self.channel.check(&mut queue, self.start)?;
            if queue.has_room(bytes) {
                break;
            }
            queue = self.channel.wait(&self.channel.done, queue);
        }
        self.channel.push(&mut queue, item, bytes);
        Ok(())
    }

    /// Waits until everything that was sent before is durable and visible.
    ///
    /// # Errors
    /// That of the writer, if something of this session was lost.
    pub fn flush(&self) -> Result<()> {
        let mut queue = self.channel.lock();
        let target = queue.sent;
        queue.wanted = target;
        self.channel.work.notify_one();
        while queue.settled < target {
            self.channel.check(&mut queue, self.start)?;
            queue = self.channel.wait(&self.channel.done, queue);
        }
        self.channel.check(&mut queue, self.start)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.channel.lock().closed = true;
        self.channel.work.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic was reported as a failure to whoever sent something.
            let _ = thread.join();
        }
    }
}

impl Queue {
    fn has_room(&self, bytes: usize) -> bool {
        // A single larger item passes when it is alone.
        self.items.is_empty() || self.bytes + bytes <= WRITER_QUEUE_BYTES
    }

    fn has_stopped(&self) -> bool {
        self.failure.as_ref().is_some_and(|failure| failure.lost.is_none())
    }
}

impl Failure {
    /// The error for one more who asks.
    fn tell(&mut self, dir: &Path) -> Error {
        self.first.take().unwrap_or_else(|| match self.lost {
            Some(_) => Error::io("write to", dir, rustix::io::Errno::NOSPC.into()),
            None => Error::Poisoned { path: dir.to_owned(), why: self.why.clone() },
        })
    }
}

/// What the thread does next.
enum Step {
    Put(WriteItem),
    Commit { durable: u64 },
    End,
}

impl Channel {
    fn new(store: Arc<Core>) -> Self {
        Self { queue: Mutex::default(), work: Condvar::new(), done: Condvar::new(), store }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Each change of the queue is complete before anything can panic.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, event: &Condvar, queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
        event.wait(queue).unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, queue: &mut Queue, item: WriteItem, bytes: usize) {
        queue.items.push_back(item);
        queue.bytes += bytes;
        queue.sent += 1;
        self.work.notify_one();
    }

    /// The error for a session that began after `start` items were sent.
    fn check(&self, queue: &mut Queue, start: u64) -> Result<()> {
        match &mut queue.failure {
            Some(failure) if failure.lost.is_none_or(|lost| lost > start) => {
                Err(failure.tell(&self.store.dir))
            }
            _ => Ok(()),
        }
    }

    /// Gives up what is on its way; whether the writer goes on with what comes next.
    fn fail(&self, error: Error) -> bool {
        tracing::error!(%error, "the writer of the store failed");
        let mut queue = self.lock();
        // The next batch finds the store as the last durable one has left it.
        let lost = error.is_full().then_some(queue.sent);
        queue.failure = Some(Failure { why: error.to_string(), first: Some(error), lost });
        queue.items.clear();
        queue.bytes = 0;
        queue.settled = queue.sent;
        self.done.notify_all();
        lost.is_some()
    }

    fn run(&self) {
        loop {
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.write_all()));
            let error = match ended {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error,
                Err(_) => Error::Poisoned {
                    path: self.store.dir.clone(),
                    why: "the writer thread panicked".into(),
                },
            };
            if !self.fail(error) {
                return;
            }
        }
    }

    fn write_all(&self) -> Result<()> {
        let mut taken = self.lock().settled;
        let mut batch: Option<(Batch<'_>, Instant)> = None;
        loop {
            let open = batch.as_ref().map(|(batch, since)| (batch.is_full(), *since));
            match self.next(open, taken) {
                Step::Put(item) => {
                    let (batch, _) = match &mut batch {
                        Some(batch) => batch,
                        None => {
                            let turn = self.store.turns.join();
                            batch.insert((Batch::begin(&self.store, turn)?, Instant::now()))
                        }
                    };
                    item.put(batch)?;
                    taken += 1;
                }
                Step::Commit { durable } => {
                    if let Some((batch, _)) = batch.take() {
                        batch.commit()?;
                    }
                    self.lock().settled = durable;
                    self.done.notify_all();
                }
                Step::End => return Ok(()),
            }
        }
    }

    /// Waits for something to do. `open` says of the open batch whether it is full and when it
    /// was begun, `taken` how many items were taken so far.
    fn next(&self, open: Option<(bool, Instant)>, taken: u64) -> Step {
        let mut queue = self.lock();
        loop {
            let wanted = queue.wanted > queue.settled && taken >= queue.wanted;
            let last = queue.closed && queue.items.is_empty();
            let in_the_way = self.store.turns.is_wanted();
            let due = open.is_some_and(|(full, since)| full || since.elapsed() >= BATCH_AGE_MAX);
            if open.is_some() && (wanted || last || due || in_the_way) {
                return Step::Commit { durable: taken };
            }
            if let Some(item) = queue.items.pop_front() {
                queue.bytes -= item.bytes();
                self.done.notify_all();
                return Step::Put(item);
            }
            if queue.closed {
                return Step::End;
            }
            queue = match open {
                Some((_, since)) => {
                    let left = BATCH_AGE_MAX.saturating_sub(since.elapsed());
                    self.work.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.wait(&self.work, queue),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ContentId;
    use crate::store::Store;

    #[test]
    fn what_comes_next() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let channel = Channel::new(Arc::clone(&store.core));
        let send = |wanted| {
            let content = StreamedContent { id: ContentId::of(b""), size: 0, chunks: Vec::new() };
            let mut queue = channel.lock();
            let hold = store.hold();
            channel.push(&mut queue, WriteItem::Manifest { oid: None, content, hold }, ITEM_BYTES);
            if wanted {
                queue.wanted = queue.sent;
            }
        };
        // A batch begun in the future never grows old.
        let young = Some((false, Instant::now() + Duration::from_secs(3600)));
        let old = Instant::now().checked_sub(BATCH_AGE_MAX).map(|since| (false, since));
        let commits = |open, taken| match channel.next(open, taken) {
            Step::Commit { durable } => {
                assert_eq!(durable, taken);
                true
            }
            Step::Put(_) => false,
            Step::End => panic!("it was not closed"),
        };

        (0..6).for_each(|_| send(false));
        assert!(!commits(None, 0));
        assert!(!commits(young, 1));
        assert!(commits(Some((true, Instant::now())), 2), "full");
        assert!(commits(old, 2), "old");
        {
            let turns = &store.core.turns;
            let (mine, theirs) = (turns.join(), turns.join());
            assert!(commits(young, 2), "in the way");
            drop((mine, theirs));
        }
        send(true);
        assert!(!commits(young, 2), "what is wanted durable must be taken first");
        (3..7).for_each(|taken| assert!(!commits(young, taken)));
        assert!(commits(young, 7), "wanted");
        assert_eq!(channel.lock().bytes, 0);
        channel.lock().settled = 7;
        channel.lock().closed = true;
        assert!(commits(young, 7), "the last");
        assert!(matches!(channel.next(None, 7), Step::End));
    }
}
