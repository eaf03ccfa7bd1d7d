//! Goal: io_uring carries what `/dev/fuse` does, frees whoever waits when it ends, and where it cannot be
//! had, mounts work as before.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::fixture::{self, Mount, Point, TRANSPORT};
use crate::cache::Levers;
use crate::counters::Message;
use crate::devfuse;
use crate::mount::{self, MountOptions};
use crate::ops::Ops;
use crate::session;
use crate::start::Start;
use crate::uring;

/// Whether the kernel carries FUSE over io_uring. Where it must, one that does not fails the test.
fn can_ring() -> bool {
    let can = fixture::can_mount()
        && crate::probe().kernel.is_some_and(|kernel| kernel.io_uring())
        && crate::uring::obstacle().is_none();
    let required = std::env::var_os("AGENTFS_REQUIRE_URING").is_some_and(|value| value == "1");
    assert!(can || !required, "AGENTFS_REQUIRE_URING=1, but the kernel does not offer it");
    if !can {
        #[expect(clippy::print_stderr, reason = "a skipped test says so")]
        {
            eprintln!("skipped: this test needs /sys/module/fuse/parameters/enable_uring to be 1");
        }
    }
    can
}

fn ringing() -> Option<Mount> {
    can_ring().then(Mount::ringing).flatten()
}

/// All other tests of this crate, in a process in which every mount is served over io_uring.
#[test]
fn whatever_holds_over_the_device_holds_over_io_uring() {
    if fixture::over_io_uring() || !can_ring() {
        return;
    }
    let tests = Command::new(std::env::current_exe().unwrap())
        .args(["tests::", "--test-threads", "4"])
        .env(TRANSPORT, "io_uring")
        .output()
        .unwrap();
    let (said, cried) = (tests.stdout.as_slice(), tests.stderr.as_slice());
    let told = [said, cried].map(String::from_utf8_lossy).join("");
    assert!(tests.status.success(), "{told}");
    // Not because there was nothing to do.
    assert!(told.contains("test tests::writing::"), "{told}");
}

#[test]
fn requests_come_over_the_rings_and_forgets_over_the_device() {
    let Some(mount) = ringing() else { return };
    assert!(mount.mounted.io_uring());
    assert_eq!(fs::read(mount.path("sub/deep/up")).unwrap(), b"hello\n");
    let threads = fs::read_dir("/proc/self/task").unwrap().filter(|task| {
        let name = task.as_ref().unwrap().path().join("comm");
        fs::read_to_string(name).is_ok_and(|name| name.starts_with("agentfs-uring-"))
    });
    assert!(threads.count() >= 2);
}

/// As on a machine with more possible processors than there are: their queues are served by threads of others.
#[test]
fn queues_of_processors_that_are_not_for_us_are_served() {
    if !can_ring() {
        return;
    }
    let only = |processor| {
        let mut set = CpuSet::new();
        set.set(processor);
        sched_setaffinity(None, &set).unwrap();
    };
    let allowed = sched_getaffinity(None).unwrap();
    let allowed: Vec<usize> = (0..1024).filter(|&one| allowed.is_set(one)).collect();
    thread::spawn(move || {
        only(allowed[0]);
        let Some(mount) = Mount::ringing() else { return };
        thread::scope(|scope| {
            for processor in allowed {
                let mount = &mount;
                scope.spawn(move || {
                    only(processor);
                    for round in 0..100 {
                        assert!(!mount.path(&format!("none-{processor}-{round}")).exists());
                    }
                    assert_eq!(fs::read(mount.path("a.txt")).unwrap(), b"hello\n");
                });
            }
        });
    })
    .join()
    .unwrap();
}

#[test]
fn what_a_large_message_has_touched_is_given_back_and_used_again() {
    let Some(mount) = ringing() else { return };
    let content = fs::read(mount.path("big.bin")).unwrap();
    assert!(content.len() > devfuse::KEPT_BYTES);
    for _ in 0..2 {
        thread::sleep(Duration::from_millis(1200));
        let big = fs::File::open(mount.path("big.bin")).unwrap();
        rustix::fs::fadvise(&big, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let reads = mount.count(Message::Read);
        assert_eq!(fs::read(mount.path("big.bin")).unwrap(), content);
        assert!(mount.count(Message::Read) > reads);
    }
}

#[test]
fn many_callers_at_once_are_all_served() {
    let Some(mount) = ringing() else { return };
    thread::scope(|scope| {
        for caller in 0..16 {
            let mount = &mount;
            scope.spawn(move || {
                for round in 0..200 {
                    let name =
                        format!("many/file-{:05}", (caller * 61 + round * 7) % fixture::MANY);
                    assert_eq!(fs::read(mount.path(&name)).unwrap(), b"one of many\n");
                    assert!(!mount.path(&format!("none-{caller}-{round}")).exists());
                }
            });
        }
    });
}

#[test]
fn who_waits_when_the_mount_is_cut_off_is_freed() {
    let Some(mount) = ringing() else { return };
    let Mount { mounted, point, stored } = mount;
    thread::scope(|scope| {
        let callers: Vec<_> = (0..8)
            .map(|caller| {
                let path = &point.path;
                scope.spawn(move || {
                    // Until it is refused: nobody waits for ever.
                    (0_u64..).find(|round| {
                        let name = path.join(format!("none-{caller}-{round}"));
                        fs::symlink_metadata(name)
                            .is_err_and(|error| error.raw_os_error() != Some(libc::ENOENT))
                    })
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(50));
        let _ = rustix::mount::unmount(&point.path, UnmountFlags::FORCE);
        for caller in callers {
            assert!(caller.join().unwrap().is_some());
        }
    });
    let end = Instant::now() + Duration::from_secs(20);
    while mounted.is_alive() {
        assert!(Instant::now() < end, "a thread of the session did not end");
        thread::sleep(Duration::from_millis(5));
    }
    drop((mounted, stored));
}

#[test]
fn where_it_was_not_agreed_on_a_mount_is_served_over_the_device() {
    if !fixture::can_mount() || can_ring() {
        return;
    }
    // The kernel has it switched off.
    let stored = fixture::worktree(fixture::items());
    let point = Point::new();
    let levers = Levers { io_uring: true, ..Levers::default() };
    let options = MountOptions { levers, ..fixture::usual() };
    let mounted = crate::mount(Arc::clone(&stored.worktree), &point.path, &options).unwrap();
    assert!(!mounted.io_uring());
    assert_eq!(fs::read(point.path.join("a.txt")).unwrap(), b"hello\n");
}

#[test]
fn a_queue_that_the_kernel_refuses_ends_the_start() {
    if !can_ring() {
        return;
    }
    let stored = fixture::worktree(fixture::items());
    let point = Point::new();
    let device = mount::attach(&point.path, &fixture::usual()).unwrap();
    let ops = Ops::new(Arc::clone(&stored.worktree), Levers::default());
    let mut workers = uring::prepare().unwrap();
    workers.last_mut().unwrap().spoil();
    assert!(devfuse::handshake(&device, &ops, || true, false).unwrap().io_uring);
    let (start, starting) = Start::new(workers.len());
    let path = point.path.clone();
    let session = thread::spawn(move || {
        starting.run(workers, &device, &ops, &path, || panic!("served"));
    });
    let refused = start.wait().unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
    session.join().unwrap();
    assert!(fs::read_dir(&point.path).is_err());
}

#[test]
fn a_mount_whose_queues_are_refused_is_made_again_over_the_device() {
    if !can_ring() {
        return;
    }
    let stored = fixture::worktree(fixture::items());
    let point = Point::new();
    let levers = Levers { io_uring: true, ..Levers::default() };
    let options = MountOptions { levers, ..fixture::usual() };
    let spoiled = || {
        let mut workers = uring::prepare()?;
        workers[0].spoil();
        Ok(workers)
    };
    let worktree = Arc::clone(&stored.worktree);
    let mounted = session::mount_by(worktree, &point.path, &options, spoiled).unwrap();
    assert!(!mounted.io_uring());
    assert_eq!(fs::read(point.path.join("a.txt")).unwrap(), b"hello\n");
}

#[test]
fn a_kernel_that_waits_for_queues_lets_go_when_none_come() {
    if !can_ring() {
        return;
    }
    let stored = fixture::worktree(fixture::items());
    let point = Point::new();
    let device = mount::attach(&point.path, &fixture::usual()).unwrap();
    let ops = Ops::new(Arc::clone(&stored.worktree), Levers::default());
    assert!(devfuse::handshake(&device, &ops, || true, false).unwrap().io_uring);
    let waiting = {
        let path = point.path.clone();
        thread::spawn(move || fs::read_dir(&path).map(drop))
    };
    // What a session does that could not be started: the device closes.
    drop(device);
    assert!(waiting.join().unwrap().is_err());
}
