//! Goal: who reads a large file past us reads the same bytes in every way, from pages that all mounts share;
//! nobody who writes changes the cache or leaves a reader with what was, and what is damaged in the cache is not
//! served.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agentfs_engine::ContentId;
use agentfs_engine::worktree::{Worktree, WorktreeOptions};

use super::fixture::{self, GID, Mount, Point, TIME, UID, big};
use super::mapping::Mapping;
use super::process;
use crate::cache::Levers;
use crate::counters::Message;
use crate::mount::MountOptions;
use crate::notify::Stale;
use crate::passthrough;

const NAME: &str = "big.bin";

fn levers() -> Levers {
    Levers { passthrough: true, ..Levers::default() }
}

/// Whether the kernel and this process can do it. Where mounts must be testable, so must this.
fn can_pass() -> bool {
    let offered = || crate::probe().kernel.is_some_and(|kernel| kernel.passthrough());
    let can = fixture::can_mount() && offered() && passthrough::obstacle().is_none();
    if !can {
        #[expect(clippy::print_stderr, reason = "a skipped test says so")]
        {
            eprintln!("skipped: this test needs FUSE passthrough, and to see all processes");
        }
    }
    can
}

fn reading() -> Option<Mount> {
    let mount = can_pass().then(|| Mount::new(levers())).flatten()?;
    assert!(mount.mounted.passthrough());
    Some(mount)
}

fn writing() -> Option<Mount> {
    can_pass().then(|| Mount::writable(fixture::items(), levers())).flatten()
}

fn passed(mount: &Mount) -> u64 {
    let counters = mount.mounted.counters();
    counters.into_iter().find(|(name, _)| *name == "files_passed").unwrap().1
}

/// The plain file from which it is read.
fn plain(mount: &Mount) -> PathBuf {
    mount.stored.dir.path().join("files").join(ContentId::of(&big()).to_string())
}

fn all(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; big().len() + 1];
    let read = file.read_at(&mut bytes, 0).unwrap();
    bytes.truncate(read);
    bytes
}

fn is_refused(opened: std::io::Result<File>) -> bool {
    opened.is_err_and(|error| error.kind() == ErrorKind::ExecutableFileBusy)
}

fn to_write(mount: &Mount) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).open(mount.path(NAME))
}

/// What `work` finds, as soon as it finds something: closes are told late.
fn soon<T>(work: impl Fn() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = work() {
            return found;
        }
        assert!(Instant::now() < end, "it did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn every_way_of_reading_shows_the_same_bytes() {
    for mount in [reading(), writing()].into_iter().flatten() {
        let bytes = big();
        let file = File::open(mount.path(NAME)).unwrap();
        assert_eq!(passed(&mount), 1);
        let (read, stat) = (mount.count(Message::Read), file.metadata().unwrap());
        assert!(all(&file) == bytes);
        // Page by page, over the end.
        let mut page = [0; 4096];
        for at in (0..bytes.len() + 4096).step_by(4096) {
            let len = file.read_at(&mut page, at as u64).unwrap();
            assert!(page[..len] == bytes[at.min(bytes.len())..(at + 4096).min(bytes.len())]);
        }
        let mapped = Mapping::readable(&file, bytes.len());
        assert!(mapped.get(0, bytes.len()) == bytes);
        // Past the page cache, which takes a buffer at the border of a page.
        let direct =
            OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(mount.path(NAME));
        let mut aligned = crate::buffer::Buffer::new(8192).unwrap();
        let len = direct.unwrap().read_at(&mut aligned, 1 << 20).unwrap();
        assert!(len == 8192 && aligned[..8192] == bytes[1 << 20..][..8192]);
        // `io::copy` has the kernel do it, by splice(2) where one end is a pipe.
        let mut from = File::open(mount.path(NAME)).unwrap();
        let (mut out, mut into) = std::io::pipe().unwrap();
        let spliced = std::thread::scope(|scope| {
            let copied = scope.spawn(|| {
                let copied = std::io::copy(&mut from, &mut into).unwrap();
                drop(into);
                copied
            });
            let mut spliced = Vec::new();
            out.read_to_end(&mut spliced).unwrap();
            assert_eq!(copied.join().unwrap(), bytes.len() as u64);
            spliced
        });
        assert!(spliced == bytes);
        assert_eq!(mount.count(Message::Read), read, "nobody asked us");
        // What is said of the file is ours to say.
        let again = file.metadata().unwrap();
        assert_eq!((again.len(), again.ino()), (bytes.len() as u64, stat.ino()));
        assert_eq!((again.mtime(), again.atime(), again.blocks()), (TIME, TIME, stat.blocks()));
        from.seek(std::io::SeekFrom::End(-3)).unwrap();
        let mut end = Vec::new();
        from.read_to_end(&mut end).unwrap();
        assert!(end == bytes[bytes.len() - 3..]);
        // A small one is not worth it.
        assert_eq!(fs::read(mount.path("a.txt")).unwrap(), b"hello\n");
        assert_eq!(passed(&mount), 3);
    }
}

#[test]
fn two_mounts_share_the_pages_that_one_has_read() {
    let Some(one) = writing() else { return };
    for (shared, levers) in [(true, levers()), (false, Levers::default())] {
        let options = WorktreeOptions { uid: UID, gid: GID, time: TIME, git_file: None };
        let first = &one.stored.worktree;
        let second = Worktree::new(Arc::clone(first.base()), Arc::clone(first.contents()), options);
        let point = Point::new();
        let mut options = MountOptions { levers, ..fixture::usual() };
        options.levers.io_uring |= fixture::over_io_uring();
        let second = crate::mount(second, &point.path, &options).unwrap();
        let file = File::open(one.path(NAME)).unwrap();
        assert!(all(&file) == big());
        let other = File::open(point.path.join(NAME)).unwrap();
        let mapped = Mapping::readable(&other, big().len());
        let pages = big().len().div_ceil(rustix::param::page_size());
        assert_eq!(mapped.resident(), if shared { pages } else { 0 });
        assert!(mapped.get(0, big().len()) == big());
        assert_eq!(second.counts().of(Message::Read) == 0, shared);
        drop((mapped, other, file));
    }
}

#[test]
fn nobody_writes_while_a_file_is_read_past_us() {
    let Some(mount) = writing() else { return };
    let path = mount.path(NAME);
    let reader = File::open(&path).unwrap();
    let began = Instant::now();
    assert!(is_refused(to_write(&mount)));
    assert!(began.elapsed() >= Duration::from_millis(100), "it waits for who is about to close");
    assert!(is_refused(OpenOptions::new().append(true).open(&path)));
    assert!(is_refused(OpenOptions::new().write(true).truncate(true).open(&path)));
    // Truncated by its name, also by who opens it for reading.
    let truncated = rustix::fs::open(
        &path,
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::TRUNC,
        rustix::fs::Mode::empty(),
    );
    assert_eq!(truncated.unwrap_err(), rustix::io::Errno::TXTBSY);
    let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    #[expect(unsafe_code, reason = "truncate(2) has no safe form")]
    // SAFETY: a string that lives until the call returns.
    let done = unsafe { libc::truncate(name.as_ptr(), 5) };
    assert_eq!(done, -1);
    assert_eq!(std::io::Error::last_os_error().kind(), ErrorKind::ExecutableFileBusy);
    assert_eq!(reader.metadata().unwrap().len(), big().len() as u64);
    // What is not its content can be changed.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(&path, mount.path("moved")).unwrap();
    assert!(all(&reader) == big());
    fs::rename(mount.path("moved"), &path).unwrap();
    drop(reader);
    // At once: that the close is told later is not seen.
    let mut writer = to_write(&mount).unwrap();
    writer.write_all(b"written").unwrap();
    assert!(fs::read(&path).unwrap().starts_with(b"written"));
    assert!(fs::read(plain(&mount)).unwrap() == big(), "the cache is as it was");
}

#[test]
fn a_file_that_was_replaced_goes_on_for_who_reads_it() {
    let Some(mount) = writing() else { return };
    let reader = File::open(mount.path(NAME)).unwrap();
    fs::write(mount.path("new"), b"new").unwrap();
    fs::rename(mount.path("new"), mount.path(NAME)).unwrap();
    assert_eq!(fs::read(mount.path(NAME)).unwrap(), b"new");
    assert!(all(&reader) == big());
    fs::remove_file(mount.path(NAME)).unwrap();
    assert!(all(&reader) == big());
}

#[test]
fn a_mapping_that_outlives_its_file_keeps_writers_away() {
    let Some(mount) = writing() else { return };
    let file = File::open(mount.path(NAME)).unwrap();
    let mapped = Mapping::readable(&file, 4096);
    drop(file);
    soon(|| (mount.count(Message::Release) > 0).then_some(()));
    assert!(is_refused(to_write(&mount)));
    // Also when the kernel has thrown away what it can of it.
    let name = NAME.as_bytes();
    mount.mounted.invalidate(Stale::Entry { parent: agentfs_engine::Ino::ROOT, name }).unwrap();
    assert!(is_refused(to_write(&mount)));
    // That of another process.
    let mut child = process::start("map", &mount.path(NAME));
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().ends_with("mapped")));
    drop(mapped);
    assert!(is_refused(to_write(&mount)));
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    let mut writer = soon(|| to_write(&mount).ok());
    writer.write_all(b"written").unwrap();
    assert!(fs::read(mount.path(NAME)).unwrap().starts_with(b"written"));
}

/// Has a file mapped and not open until there is nothing more to be read.
pub(super) fn map_in_a_process(path: &Path) {
    let file = File::open(path).unwrap();
    let mapped = Mapping::readable(&file, 4096);
    drop(file);
    let mut out = std::io::stdout();
    writeln!(out, "mapped").unwrap();
    out.flush().unwrap();
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    assert_eq!(mapped.get(0, 16), big()[..16]);
}

#[test]
fn who_reads_while_another_writes_reads_through_us_and_sees_it() {
    let Some(mount) = writing() else { return };
    let mut writer = to_write(&mount).unwrap();
    let reader = File::open(mount.path(NAME)).unwrap();
    let mapped = Mapping::readable(&reader, 4096);
    writer.write_all(b"seen at once").unwrap();
    let mut start = [0; 12];
    reader.read_exact_at(&mut start, 0).unwrap();
    assert_eq!((&start, mapped.get(0, 12).as_slice()), (b"seen at once", &b"seen at once"[..]));
    // It is the branch's from now on.
    drop((writer, reader, mapped));
    soon(|| (mount.count(Message::Release) == 2).then_some(()));
    assert!(fs::read(mount.path(NAME)).unwrap().starts_with(b"seen at once"));
    // Nor is one that was only opened for writing lost to who reads it later.
    assert_eq!(passed(&mount), 0);
}

#[test]
fn a_writer_that_has_written_nothing_leaves_the_file_to_readers() {
    let Some(mount) = writing() else { return };
    drop(to_write(&mount).unwrap());
    soon(|| (mount.count(Message::Release) == 1).then_some(()));
    assert!(all(&File::open(mount.path(NAME)).unwrap()) == big());
    assert_eq!(passed(&mount), 1);
    // A copy within the file system takes what the base has.
    let (from, to) = (File::open(mount.path(NAME)).unwrap(), mount.path("copy"));
    std::io::copy(&mut &from, &mut File::create(&to).unwrap()).unwrap();
    assert!(fs::read(to).unwrap() == big());
}

#[test]
fn what_is_damaged_in_the_cache_is_made_anew_and_never_served() {
    let Some(mount) = reading() else { return };
    let path = plain(&mount);
    assert!(all(&File::open(mount.path(NAME)).unwrap()) == big());
    soon(|| (mount.count(Message::Release) > 0).then_some(()));
    let mut damaged = big();
    damaged[1_234_567] ^= 1;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&path, &damaged).unwrap();
    assert!(all(&File::open(mount.path(NAME)).unwrap()) == big());
    fs::remove_file(&path).unwrap();
    soon(|| (mount.count(Message::Release) > 1).then_some(()));
    assert!(all(&File::open(mount.path(NAME)).unwrap()) == big());
    assert_eq!(passed(&mount), 3);
    // Removed while it is read: who has it open goes on, and so does who opens it meanwhile.
    let reader = File::open(mount.path(NAME)).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(all(&reader) == big());
    assert!(all(&File::open(mount.path(NAME)).unwrap()) == big());
}

#[test]
fn backings_end_with_the_last_open_and_the_file_stays_in_the_cache_until_then() {
    let Some(mount) = reading() else { return };
    let opens: Vec<_> = (0..50).map(|_| File::open(mount.path(NAME)).unwrap()).collect();
    assert_eq!(passed(&mount), 50);
    for one in opens {
        assert!(all(&one) == big());
        drop(one);
    }
    soon(|| (mount.count(Message::Release) == 50).then_some(()));
    soon(|| mount.mounted.ops().passthrough().unwrap().is_idle().then_some(()));
}

#[test]
fn a_bar_keeps_files_from_being_read_past_us_and_tells_of_those_that_are() {
    let Some(mount) = writing() else { return };
    let ino = agentfs_engine::Ino(fs::metadata(mount.path(NAME)).unwrap().ino());
    let reader = File::open(mount.path(NAME)).unwrap();
    let bar = mount.mounted.bar_passthrough().unwrap();
    assert_eq!(bar.in_use(&[agentfs_engine::Ino(7), ino]), Some(ino));
    drop(reader);
    assert_eq!(bar.in_use(&[ino]), None);
    let plain = File::open(mount.path(NAME)).unwrap();
    assert!(all(&plain) == big());
    assert_eq!((passed(&mount), bar.in_use(&[ino])), (1, None));
    drop((bar, plain));
    soon(|| (mount.count(Message::Release) == 2).then_some(()));
    drop(File::open(mount.path(NAME)).unwrap());
    assert_eq!(passed(&mount), 2);
}

#[test]
fn opens_that_come_at_once_agree() {
    let Some(mount) = writing() else { return };
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let mount = &mount;
            scope.spawn(move || {
                for round in 0..20 {
                    if (thread + round) % 5 == 0 {
                        match to_write(mount) {
                            Ok(file) => assert!(all(&file) == big()),
                            Err(error) => assert_eq!(error.kind(), ErrorKind::ExecutableFileBusy),
                        }
                    } else {
                        // Never `EIO`, by which the kernel says that we are wrong.
                        let file = File::open(mount.path(NAME)).unwrap();
                        let mut byte = [0; 100];
                        file.read_exact_at(&mut byte, 2_000_000).unwrap();
                        assert_eq!(byte, big()[2_000_000..2_000_100]);
                    }
                }
            });
        }
    });
}

#[test]
fn without_the_right_to_it_a_mount_is_as_it_was() {
    let Some(mount) = Mount::new(Levers::default()) else { return };
    assert!(!mount.mounted.passthrough() && mount.mounted.bar_passthrough().is_none());
    assert!(all(&File::open(mount.path(NAME)).unwrap()) == big());
    assert!(!plain(&mount).exists());
    assert_eq!(passed(&mount), 0);
}
