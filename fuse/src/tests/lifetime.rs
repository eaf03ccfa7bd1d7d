//! Goal: a mount begins and ends as asked, its end is noticed whoever brings it about, and nothing
//! waits for a mount that is dead or hung.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;

use super::fixture::{self, Mount, Point};
use super::process::start;
use crate::cache::Levers;
use crate::error::Error;
use crate::helper;
use crate::mount::{self, MountState, mount_state, unmount_path};

fn becomes(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end, "it never came to be that {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn alive(name: &str) -> MountState {
    MountState::OurFs { alive: true, name: name.into() }
}

#[test]
fn a_mount_comes_and_goes() {
    let Some(mount) = Mount::new(Levers::default()) else { return };
    let path = mount.point.path.clone();
    assert!(mount.mounted.is_alive());
    assert_eq!(mount_state(&path).unwrap(), alive("agentfs:repo@branch"));
    assert_eq!(mount_state(&path.join("sub")).unwrap(), MountState::NotMounted);
    mount.mounted.unmount(false).unwrap();
    assert!(!mount.mounted.is_alive());
    assert_eq!(mount_state(&path).unwrap(), MountState::NotMounted);
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
    // Once more is once too often for the path, and none too often for the mount.
    assert!(matches!(unmount_path(&path, false), Err(Error::NotMounted { .. })));
    mount.mounted.unmount(false).unwrap();
}

#[test]
fn a_mount_is_known_by_a_link_to_it() {
    let Some(mount) = Mount::new(Levers::default()) else { return };
    let link = mount.point.path.with_file_name("link");
    std::os::unix::fs::symlink(&mount.point.path, &link).unwrap();
    assert_eq!(mount_state(&link).unwrap(), alive("agentfs:repo@branch"));
    unmount_path(&link, false).unwrap();
    assert_eq!(mount_state(&mount.point.path).unwrap(), MountState::NotMounted);
}

#[test]
fn a_busy_mount_says_so_and_goes_on() {
    let Some(mount) = Mount::new(Levers::default()) else { return };
    let path = &mount.point.path;
    let file = File::open(mount.path("a.txt")).unwrap();
    assert!(matches!(mount.mounted.unmount(false), Err(Error::Busy { .. })));
    assert!(matches!(unmount_path(path, false), Err(Error::Busy { .. })));
    assert_eq!(mount_state(path).unwrap(), alive("agentfs:repo@branch"));
    assert_eq!(fs::read(mount.path("sub/b.txt")).unwrap(), b"b\n");
    // Lazily it vanishes, and serves who is in it until he leaves.
    mount.mounted.unmount(true).unwrap();
    assert_eq!(mount_state(path).unwrap(), MountState::NotMounted);
    assert!(mount.mounted.is_alive());
    assert_eq!(std::io::read_to_string(&file).unwrap(), "hello\n");
    drop(file);
    becomes("the session ended", || !mount.mounted.is_alive());
}

#[test]
fn an_unmount_by_somebody_else_is_noticed() {
    let Some(mount) = Mount::new(Levers::default()) else { return };
    rustix::mount::unmount(&mount.point.path, UnmountFlags::empty()).unwrap();
    becomes("the session ended", || !mount.mounted.is_alive());
    assert!(mount.mounted.warm(100).is_err());
    mount.mounted.unmount(false).unwrap();
}

#[test]
fn only_the_own_mount_is_unmounted() {
    let Some(mount) = Mount::new(Levers::default()) else { return };
    let path = &mount.point.path;
    rustix::mount::unmount(path, UnmountFlags::empty()).unwrap();
    becomes("the session ended", || !mount.mounted.is_alive());
    // It gets the very numbers of the one that is gone.
    drop(mount::attach(path, &fixture::usual()).unwrap());
    mount.mounted.unmount(false).unwrap();
    assert_eq!(mount_state(path).unwrap(), MountState::Dead);
}

#[test]
fn dropping_it_unmounts() {
    let Some(mount) = Mount::new(Levers::default()) else { return };
    let Mount { mounted, point, .. } = mount;
    drop(mounted);
    assert_eq!(mount_state(&point.path).unwrap(), MountState::NotMounted);
}

#[test]
fn no_mount_is_put_on_another() {
    let Some(lower) = Mount::new(Levers::default()) else { return };
    let stored = fixture::worktree(fixture::items());
    for name in ["", "sub"] {
        let worktree = Arc::clone(&stored.worktree);
        let refused = crate::mount(worktree, &lower.path(name), &fixture::usual());
        assert!(matches!(refused.err(), Some(Error::Nested { .. })), "{name:?}");
    }
}

#[test]
fn many_mounts_live_side_by_side() {
    let mounts: Vec<_> = (0..10).map_while(|_| Mount::new(Levers::default())).collect();
    for mount in &mounts {
        assert_eq!(fs::read(mount.path("a.txt")).unwrap(), b"hello\n");
    }
    let mut devices: Vec<_> = mounts.iter().map(|mount| mount.mounted.dev()).collect();
    devices.sort_unstable();
    devices.dedup();
    assert_eq!(devices.len(), mounts.len());
}

/// Serves a mount until it is killed.
pub(super) fn serve_in_a_process(path: &Path) {
    let stored = fixture::worktree(fixture::items());
    let mut options = fixture::usual();
    options.levers.io_uring = fixture::over_io_uring();
    let mounted = crate::mount(Arc::clone(&stored.worktree), path, &options).unwrap();
    assert_eq!(mounted.io_uring(), fixture::over_io_uring());
    fs::write(path.with_file_name("ready"), b"").unwrap();
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

#[test]
fn a_server_that_is_killed_leaves_a_dead_mount_and_nobody_waiting() {
    if !fixture::can_mount() {
        return;
    }
    let point = Point::new();
    let mut server = start("serve", &point.path);
    becomes("it serves", || point.path.with_file_name("ready").exists());
    thread::scope(|scope| {
        for caller in 0..4 {
            let path = &point.path;
            // Until it is refused: nobody waits for ever.
            scope.spawn(move || {
                let missing = |n: u64| fs::symlink_metadata(path.join(format!("no-{caller}-{n}")));
                let refused = |n: &u64| {
                    missing(*n).is_err_and(|error| error.raw_os_error() != Some(libc::ENOENT))
                };
                assert!((0..).find(refused).is_some());
            });
        }
        thread::sleep(Duration::from_millis(50));
        server.kill().unwrap();
        server.wait().unwrap();
    });
    assert_eq!(mount_state(&point.path).unwrap(), MountState::Dead);
    unmount_path(&point.path, false).unwrap();
}

#[test]
fn a_dead_mount_is_known_and_cleared() {
    if !fixture::can_mount() {
        return;
    }
    let point = Point::new();
    let device = mount::attach(&point.path, &fixture::usual()).unwrap();
    drop(device);
    assert_eq!(mount_state(&point.path).unwrap(), MountState::Dead);
    unmount_path(&point.path, false).unwrap();
    assert_eq!(mount_state(&point.path).unwrap(), MountState::NotMounted);
}

/// Reads one request and answers it with `reply` bytes after the header, if at all.
#[expect(clippy::host_endian_bytes, reason = "as the kernel writes them")]
fn serve_one(device: &OwnedFd, reply: Option<&[u8]>) {
    let mut request = vec![0; 1 << 20];
    let len = rustix::io::read(device, &mut request).unwrap();
    assert!(len >= 40);
    if let Some(reply) = reply {
        let mut bytes = (16 + reply.len() as u32).to_ne_bytes().to_vec();
        bytes.extend(0_i32.to_ne_bytes());
        bytes.extend(&request[8..16]);
        bytes.extend(reply);
        rustix::io::write(device, &bytes).unwrap();
    }
}

#[test]
#[expect(clippy::host_endian_bytes, reason = "as the kernel reads them")]
fn a_hung_mount_holds_nobody_up() {
    if !fixture::can_mount() {
        return;
    }
    let hung = MountState::OurFs { alive: false, name: "agentfs:repo@branch".into() };
    // One server does not even introduce itself; the other does, takes a request and is silent.
    for silent in [true, false] {
        let point = Point::new();
        let device = mount::attach(&point.path, &fixture::usual()).unwrap();
        let taker = (!silent).then(|| {
            let mut init = [0; 64];
            init[..4].copy_from_slice(&7_u32.to_ne_bytes());
            init[4..8].copy_from_slice(&31_u32.to_ne_bytes());
            init[20..24].copy_from_slice(&4096_u32.to_ne_bytes());
            let device = device.try_clone().unwrap();
            thread::spawn(move || {
                serve_one(&device, Some(&init));
                serve_one(&device, None);
                device
            })
        });
        assert_eq!(mount_state(&point.path).unwrap(), hung, "silent from the start: {silent}");
        let device = (device, taker.map(|taker| taker.join().unwrap()));
        // Whoever waits is freed by the unmount, although the device stays open.
        let waiting = {
            let path = point.path.clone();
            thread::spawn(move || fs::read_dir(&path).map(|_| ()))
        };
        thread::sleep(Duration::from_millis(100));
        unmount_path(&point.path, true).unwrap();
        assert_eq!(mount_state(&point.path).unwrap(), MountState::NotMounted);
        becomes("the waiting thread was freed", || waiting.is_finished());
        assert!(waiting.join().unwrap().is_err());
        drop(device);
    }
}

#[test]
fn the_helper_mounts_and_unmounts() {
    if !fixture::can_mount() || helper::version().is_none() {
        return;
    }
    let point = Point::new();
    let options = "nosuid,nodev,subtype=agentfs,fsname=agentfs:a\\,b,ro,default_permissions";
    let device = helper::mount(&point.path, options.as_ref()).unwrap();
    let hung = MountState::OurFs { alive: false, name: "agentfs:a,b".into() };
    assert_eq!(mount_state(&point.path).unwrap(), hung);
    helper::unmount(&point.path, true).unwrap();
    drop(device);
    let refused = helper::unmount(&point.path, false);
    assert!(matches!(refused, Err(Error::Helper { .. })), "{refused:?}");
    let refused = helper::mount(&point.path.join("missing"), options.as_ref());
    assert!(matches!(refused, Err(Error::Helper { .. })), "{refused:?}");
}

#[test]
fn the_kernel_introduces_itself() {
    let Some(mount) = Mount::new(Levers::default()) else { return };
    let kernel = mount.mounted.kernel().unwrap();
    assert_eq!(kernel.major, 7);
    // Asked without a mount, it says the same.
    assert_eq!(crate::probe().kernel.map(|kernel| kernel.minor), Some(kernel.minor));
}
