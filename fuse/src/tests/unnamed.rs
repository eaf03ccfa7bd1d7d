//! Goal: a file that was made without a name is one, can be given a name, and is gone when it is closed
//! without.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::thread;
use std::time::{Duration, Instant};

use agentfs_engine::Ino;
use rustix::fs::{AtFlags, CWD, linkat};
use rustix::io::Errno;

use super::fixture::{self, Mount};
use super::process::as_user;
use super::twin::{Side, Twin, errno};
use crate::cache::Levers;
use crate::counters::Message;

fn unnamed(side: &Side, dir: &str, flags: i32) -> Result<File, Errno> {
    let mut options = File::options();
    options.read(true).write(true).mode(0o640).custom_flags(libc::O_TMPFILE | flags);
    errno(options.open(side.path(dir)))
}

fn link(side: &Side, file: &File, name: &str) -> Result<(), Errno> {
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(CWD, open, CWD, side.path(name), AtFlags::SYMLINK_FOLLOW)
}

#[test]
fn files_without_names_are_those_of_the_host() {
    for no_open in [true, false] {
        let levers = Levers { no_open, ..Levers::default() };
        let Some(mut twin) = Twin::with(levers) else { return };
        twin.step("made and written", |side| {
            let mut file = unnamed(side, "sub", 0)?;
            errno(file.write_all(b"without a name"))?;
            let stat = errno(file.metadata())?;
            side.keep("file", file);
            Ok::<_, Errno>((stat.len(), stat.nlink(), stat.mode(), stat.uid(), stat.gid()))
        })
        .unwrap();
        twin.step("named", |side| link(side, side.file("file"), "sub/name")).unwrap();
        twin.step("named again", |side| link(side, side.file("file"), "second")).unwrap();
        let nlink = twin
            .step("counted", |side| errno(side.file("file").metadata()).map(|stat| stat.nlink()));
        assert_eq!(nlink, Ok(2));
        let taken = twin.step("a name that is taken", |side| {
            let file = unnamed(side, "", 0)?;
            link(side, &file, "a.txt")
        });
        assert_eq!(taken, Err(Errno::EXIST));
        let exclusive = twin.step("one that is to stay without", |side| {
            let file = unnamed(side, "", libc::O_EXCL)?;
            link(side, &file, "third")
        });
        assert_eq!(exclusive, Err(Errno::NOENT));
        twin.step("for a group", |side| {
            errno(std::os::unix::fs::lchown(side.path("sub"), None, Some(77)))?;
            let mode = rustix::fs::Mode::from_raw_mode(0o2777);
            rustix::fs::chmodat(CWD, side.path("sub"), mode, AtFlags::empty())?;
            let stat = as_user(1000, 1000, || {
                unnamed(side, "sub", 0).and_then(|file| errno(file.metadata()))
            })?;
            Ok::<_, Errno>((stat.uid(), stat.gid(), stat.mode()))
        })
        .unwrap();
        let no_directory = twin.step("in no directory", |side| unnamed(side, "a.txt", 0).map(drop));
        assert_eq!(no_directory, Err(Errno::NOTDIR));
        assert!(twin.mount.count(Message::Tmpfile) >= 4);
    }
}

#[test]
fn a_file_that_got_no_name_is_gone_when_it_is_closed() {
    let Some(mount) = Mount::writable(fixture::items(), Levers::default()) else { return };
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_TMPFILE);
    let mut file = options.open(mount.path("sub")).unwrap();
    file.write_all(b"bytes").unwrap();
    let ino = Ino(file.metadata().unwrap().ino());
    let ops = mount.mounted.ops();
    assert_eq!(ops.references(ino), 1);
    // Its bytes are ours, not only the kernel's.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let mut text = String::new();
    std::io::Seek::rewind(&mut file).unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "bytes");
    drop(file);
    let end = Instant::now() + Duration::from_secs(20);
    while ops.attributes(ino) != Err(Errno::STALE) {
        assert!(Instant::now() < end, "the file is still there");
        thread::sleep(Duration::from_millis(5));
    }
}
