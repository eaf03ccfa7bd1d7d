//! Which entries of a tree are refused for their names: those that `git fsck` reports, since a
//! checkout of them on some file system would write where it must not.
//!
//! Two file systems give `.git` other names. HFS+ ignores certain code points and letter case; NTFS
//! ignores trailing dots and spaces, takes `:` as the start of a stream's name and `\` as a
//! separator, and gives every long name a short one. A worktree here has neither property, but what
//! is committed from it may be checked out where they hold.

use agentfs_engine::tree::{EntryKind, name_fault};

/// Why an entry of this kind and name must not be in a tree; `None` if it may be.
pub fn fault(kind: EntryKind, name: &[u8]) -> Option<&'static str> {
    if let Some(fault) = name_fault(name) {
        return Some(fault);
    }
    // Every disguise of either name holds a tilde or begins with a dot, an ignored code point or
    // a backslash further on; most names have none of these.
    if name[0].is_ascii_alphanumeric() && !name.iter().any(|&byte| byte == b'~' || byte == b'\\') {
        return None;
    }
    if any_component(name, is_dot_git) {
        return Some("an entry that some file system takes for .git");
    }
    if kind == EntryKind::Symlink && any_component(name, is_dot_gitmodules) {
        return Some("a symbolic link that some file system takes for .gitmodules");
    }
    None
}

/// Whether `test` holds for the name, or under NTFS for what follows any backslash in it.
fn any_component(name: &[u8], test: fn(&[u8], FileSystem) -> bool) -> bool {
    test(name, FileSystem::Hfs)
        || test(name, FileSystem::Ntfs)
        || name
            .iter()
            .enumerate()
            .any(|(at, &byte)| byte == b'\\' && test(&name[at + 1..], FileSystem::Ntfs))
}

#[derive(Clone, Copy)]
enum FileSystem {
    Hfs,
    Ntfs,
}

fn is_dot_git(name: &[u8], system: FileSystem) -> bool {
    match system {
        FileSystem::Hfs => is_hfs_dot(name, b"git"),
        FileSystem::Ntfs => [b".git".as_slice(), b"git~1"]
            .iter()
            .any(|taken| strip_prefix(name, taken).is_some_and(|rest| is_ntfs_tail(rest, true))),
    }
}

fn is_dot_gitmodules(name: &[u8], system: FileSystem) -> bool {
    match system {
        FileSystem::Hfs => is_hfs_dot(name, b"gitmodules"),
        FileSystem::Ntfs => {
            strip_prefix(name, b".gitmodules").is_some_and(|rest| is_ntfs_tail(rest, false))
                || ntfs_short_name(name).is_some_and(|rest| is_ntfs_tail(rest, false))
        }
    }
}

fn strip_prefix<'a>(name: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (head, rest) = name.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// Whether NTFS ignores what follows a name: spaces and dots, up to the end, the name of a stream
/// or, where `separators` count, the next component.
fn is_ntfs_tail(rest: &[u8], separators: bool) -> bool {
    for &byte in rest {
        match byte {
            b':' => return true,
            b'\\' if separators => return true,
            b' ' | b'.' => {}
            _ => return false,
        }
    }
    true
}

/// What follows an 8.3 name of `.gitmodules`: `gitmod~1` to `gitmod~4`, then `gi7eba~1` and so on
/// with ever fewer characters before the tilde, eight in all.
fn ntfs_short_name(name: &[u8]) -> Option<&[u8]> {
    let (short, rest) = name.split_at_checked(8)?;
    if strip_prefix(short, b"gitmod~").is_some_and(|digit| matches!(digit, [b'1'..=b'4'])) {
        return Some(rest);
    }
    let tilde = short.iter().position(|&byte| byte == b'~')?;
    let number = &short[tilde + 1..];
    let fits = tilde <= 6
        && short[..tilde].eq_ignore_ascii_case(&b"gi7eba"[..tilde])
        && number.first().is_some_and(|digit| *digit != b'0')
        && number.iter().all(u8::is_ascii_digit);
    fits.then_some(rest)
}

/// Whether HFS+ takes `name` for a dot and `needle`. Bytes that are not UTF-8 end the name there,
/// as git has it.
fn is_hfs_dot(name: &[u8], needle: &[u8]) -> bool {
    let mut rest = name;
    let mut next = || {
        loop {
            let (point, len) = first_code_point(rest)?;
            rest = &rest[len..];
            if !is_ignored_by_hfs(point) {
                return Some(point);
            }
        }
    };
    next() == Some('.')
        && needle
            .iter()
            .all(|byte| next().is_some_and(|point| point.to_ascii_lowercase() == char::from(*byte)))
        && next().is_none()
}

const fn is_ignored_by_hfs(point: char) -> bool {
    matches!(point, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}')
}

/// The first code point of `bytes` and its length; `None` at the end and where they are not UTF-8
/// or one of the two that are no characters.
fn first_code_point(bytes: &[u8]) -> Option<(char, usize)> {
    let len = match bytes.first()? {
        0..=0x7f => 1,
        0xc0..=0xdf => 2,
        0xe0..=0xef => 3,
        _ => 4,
    };
    let text = std::str::from_utf8(bytes.get(..len)?).ok()?;
    let point = text.chars().next().filter(|point| !matches!(point, '\u{fffe}' | '\u{ffff}'))?;
    Some((point, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: EntryKind = EntryKind::File;

    #[test]
    fn every_disguise_of_dot_git_is_refused() {
        for name in [
            b".git".as_slice(),
            b".GIT",
            b".Git",
            b".git ",
            b".git.",
            b".git . .",
            b".git::$INDEX_ALLOCATION",
            b".git:x",
            b"git~1",
            b"GIT~1 .",
            b"git~1:stream",
            b".git\\hooks",
            b"a\\.git",
            b"a\\b\\git~1",
            ".g\u{200c}it".as_bytes(),
            "\u{feff}.git".as_bytes(),
            ".gi\u{206f}T\u{200e}".as_bytes(),
            b".git\xff",
        ] {
            assert!(fault(FILE, name).is_some(), "{:?}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn names_that_only_resemble_it_pass() {
        for name in [
            b".gitignore".as_slice(),
            b".gitmodules",
            b".gitattributes",
            b".github",
            b"git",
            b"git~2",
            b"git~10",
            b".git~1",
            b".gi",
            b"x.git",
            b"agit~1",
            b".git-x",
            b"a\\b",
            b"~",
            "\u{200c}git".as_bytes(),
            "\u{212a}.git".as_bytes(),
            b"\xff\xfe",
            b"...",
            b" ",
        ] {
            assert_eq!(fault(FILE, name), None, "{:?}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn gitmodules_is_refused_as_a_link_only() {
        for name in [
            b".gitmodules".as_slice(),
            b".GITMODULES .",
            b"gitmod~1",
            b"GITMOD~4",
            b"gi7eba~1",
            b"gi7eb~10",
            b"g~123456",
            b"~1000000",
            b"x\\.gitmodules",
            ".gitmodules\u{200d}".as_bytes(),
        ] {
            assert!(fault(EntryKind::Symlink, name).is_some(), "{}", String::from_utf8_lossy(name));
            assert_eq!(fault(FILE, name), None, "{}", String::from_utf8_lossy(name));
        }
        for name in [b"gitmod~5".as_slice(), b"gi7eba~0", b"gi7ebb~1", b"gitmodules", b"~"] {
            assert_eq!(fault(EntryKind::Symlink, name), None, "{}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn plain_faults_are_refused() {
        for name in [b"".as_slice(), b".", b"..", b"a/b", b"a\0b", &[b'x'; 256]] {
            assert!(fault(FILE, name).is_some());
        }
        assert_eq!(fault(FILE, &[b'x'; 255]), None);
    }
}
