//! Random steps. A step chooses among what is there when its turn comes, so that most of them meet
//! what others did.

use proptest::prelude::*;

use super::op::{New, Op};
use super::{Body, Model};
use crate::id::Ino;
use crate::limits::{FILE_BYTES_MAX, NAME_BYTES_MAX, SYMLINK_BYTES_MAX};
use crate::limits::{XATTR_BYTES_MAX, XATTRS_BYTES_MAX};
use crate::worktree::fixture::{ROOT, USER, noise};
use crate::worktree::{
    Allocate, Caller, NodeKind, RenameMode, Seek, SetAttributes, SetTime, Timestamp, XattrMode,
};

/// Something random that happens to a worktree.
#[derive(Clone, Debug)]
pub(in crate::worktree) enum Step {
    /// An operation; the numbers are what it chooses by.
    Op(Kind, Dice),
    Sync,
    Drain,
    /// These happen while a drain copies.
    DrainDuring(Vec<(Kind, Dice)>),
    Restart,
    /// The power fails; what was not synced is kept, lost or torn as the seed says.
    Crash(u64),
}

/// An operation without what it is done to.
#[derive(Clone, Copy, Debug)]
pub(in crate::worktree) enum Kind {
    Create,
    Link,
    Unlink,
    RemoveDirectory,
    Rename,
    Write,
    Truncate,
    SetAttributes,
    Allocate,
    CopyRange,
    SetXattr,
    RemoveXattr,
    Release,
    Lookup,
    Read,
    Seek,
    List,
}

/// Numbers to choose by, one for each choice of an operation.
#[derive(Clone, Debug)]
pub(in crate::worktree) struct Dice {
    numbers: [u16; 10],
    next: usize,
}

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        let number = self.numbers[self.next % self.numbers.len()];
        self.next += 1;
        usize::from(number) % sides
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.roll(from.len())].clone()
    }

    /// True once in `sides` times.
    fn rarely(&mut self, sides: usize) -> bool {
        self.roll(sides) == sides - 1
    }

    fn caller(&mut self) -> Caller {
        self.pick(&[USER, ROOT])
    }

    /// Bias: the beginning of a file, small files, the border of pages, and now and then beyond what
    /// any file can have.
    fn offset(&mut self) -> u64 {
        let far = self.roll(1 << 16) as u64;
        match self.roll(16) {
            0..5 => 0,
            5..10 => far % 40,
            10..13 => 4090 + far % 20,
            13 => far * 8,
            14 => far * 2,
            _ => FILE_BYTES_MAX + 1 + far,
        }
    }

    /// Bias: short; now and then longer than one chunk.
    fn len(&mut self) -> usize {
        let some = self.roll(1 << 16);
        match self.roll(24) {
            0 => 0,
            1..14 => 1 + some % 40,
            14..21 => 4000 + some % 9000,
            21..23 => some * 4,
            _ => 520_000 + some,
        }
    }
}

/// Random steps. Bias: changes of names and content, in a tree of a few dozen inodes.
pub(in crate::worktree) fn steps(len: usize) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        40 => op().prop_map(|(kind, dice)| Step::Op(kind, dice)),
        1 => Just(Step::Sync),
        2 => Just(Step::Drain),
        1 => prop::collection::vec(op(), 1..6).prop_map(Step::DrainDuring),
        1 => Just(Step::Restart),
        1 => (0..50_u64).prop_map(Step::Crash),
    ];
    prop::collection::vec(step, 1..len)
}

pub(super) fn op() -> impl Strategy<Value = (Kind, Dice)> {
    let kind = prop_oneof![
        6 => Just(Kind::Create),
        3 => Just(Kind::Link),
        4 => Just(Kind::Unlink),
        2 => Just(Kind::RemoveDirectory),
        7 => Just(Kind::Rename),
        8 => Just(Kind::Write),
        3 => Just(Kind::Truncate),
        3 => Just(Kind::SetAttributes),
        3 => Just(Kind::Allocate),
        4 => Just(Kind::CopyRange),
        2 => Just(Kind::SetXattr),
        1 => Just(Kind::RemoveXattr),
        2 => Just(Kind::Release),
        1 => Just(Kind::Lookup),
        2 => Just(Kind::Read),
        2 => Just(Kind::Seek),
        1 => Just(Kind::List),
    ];
    let numbers = prop::array::uniform10(any::<u16>());
    (kind, numbers.prop_map(|numbers| Dice { numbers, next: 0 }))
}

impl Model {
    /// The operation that this one is in this state.
    pub(in crate::worktree) fn choose(&self, kind: Kind, mut dice: Dice) -> Op {
        let dice = &mut dice;
        match kind {
            Kind::Create => Op::Create {
                parent: self.any_directory(dice),
                name: any_name(dice),
                caller: dice.caller(),
                permissions: dice.pick(&[0o644, 0o755, 0o2755, 0o6775, 0o1777]),
                new: new(dice),
            },
            Kind::Link => Op::Link {
                ino: self.any_node(dice),
                parent: self.any_directory(dice),
                name: any_name(dice),
            },
            Kind::Unlink => {
                let (parent, name) = self.any_entry(dice);
                Op::Unlink { parent, name }
            }
            Kind::RemoveDirectory => {
                let (parent, name) = self.any_entry(dice);
                Op::RemoveDirectory { parent, name }
            }
            Kind::Rename => Op::Rename {
                from: self.any_entry(dice),
                to: match dice.roll(3) {
                    0 => self.any_entry(dice),
                    _ => (self.any_directory(dice), any_name(dice)),
                },
                mode: dice.pick(&[
                    RenameMode::Replace,
                    RenameMode::Replace,
                    RenameMode::NoReplace,
                    RenameMode::Exchange,
                ]),
            },
            Kind::Write => {
                let (len, seed) = (dice.len(), dice.roll(1 << 16));
                let data = match dice.roll(3) {
                    0 => vec![seed as u8; len],
                    _ => noise(seed as u64, len),
                };
                let ino = self.any_file(dice);
                Op::Write { ino, offset: dice.offset(), data, kill_set_id: dice.roll(2) == 0 }
            }
            Kind::Truncate => {
                let (ino, caller) = (self.any_file(dice), dice.caller());
                let set = SetAttributes { size: Some(dice.offset()), ..Default::default() };
                Op::SetAttributes { caller, ino, set }
            }
            Kind::SetAttributes => {
                let (ino, caller) = (self.any_node(dice), dice.caller());
                Op::SetAttributes { caller, ino, set: set_attributes(dice) }
            }
            Kind::Allocate => Op::Allocate {
                ino: self.any_file(dice),
                caller: dice.caller(),
                offset: dice.offset(),
                len: dice.len() as u64,
                what: dice.pick(&[
                    Allocate::Reserve(false),
                    Allocate::Reserve(true),
                    Allocate::PunchHole,
                    Allocate::Zero(false),
                    Allocate::Zero(true),
                ]),
            },
            Kind::CopyRange => Op::CopyRange {
                from: (self.any_file(dice), dice.offset()),
                to: (self.any_file(dice), dice.offset()),
                len: match dice.roll(4) {
                    0 => u64::MAX,
                    _ => dice.len() as u64,
                },
                caller: dice.caller(),
            },
            Kind::SetXattr => {
                let limits = [XATTR_BYTES_MAX, XATTR_BYTES_MAX + 1, XATTRS_BYTES_MAX];
                let len = if dice.rarely(12) { dice.pick(&limits) } else { dice.roll(300) };
                Op::SetXattr {
                    ino: self.any_node(dice),
                    name: any_xattr(dice),
                    value: vec![dice.roll(256) as u8; len],
                    mode: dice.pick(&[
                        XattrMode::Any,
                        XattrMode::Any,
                        XattrMode::Create,
                        XattrMode::Replace,
                    ]),
                }
            }
            Kind::RemoveXattr => {
                let with = self.inodes().filter(|(_, node)| !node.xattrs.is_empty());
                let with: Vec<_> = with.map(|(ino, _)| ino).collect();
                let ino = if with.is_empty() { self.any_node(dice) } else { dice.pick(&with) };
                Op::RemoveXattr { ino, name: any_xattr(dice) }
            }
            Kind::Release => {
                let orphans: Vec<_> = self.orphans().into_iter().collect();
                let named = orphans.is_empty() || dice.rarely(4);
                Op::Release { ino: if named { self.any_node(dice) } else { dice.pick(&orphans) } }
            }
            Kind::Lookup => {
                let (parent, name) = self.any_entry(dice);
                Op::Lookup { parent, name }
            }
            Kind::Read => {
                Op::Read { ino: self.any_file(dice), offset: dice.offset(), len: dice.len() }
            }
            Kind::Seek => Op::Seek {
                ino: self.any_file(dice),
                offset: dice.offset(),
                what: dice.pick(&[Seek::Data, Seek::Hole]),
            },
            Kind::List => Op::List { dir: self.any_directory(dice), at_once: 1 + dice.roll(4) },
        }
    }

    fn any_node(&self, dice: &mut Dice) -> Ino {
        dice.pick(&self.inodes().map(|(ino, _)| ino).collect::<Vec<_>>())
    }

    /// Mostly a directory, sometimes a removed one.
    fn any_directory(&self, dice: &mut Dice) -> Ino {
        if dice.rarely(24) {
            return self.any_node(dice);
        }
        let is_directory = |ino: &Ino| self.entries(*ino).is_some();
        let directories = self.inodes().map(|(ino, _)| ino).filter(is_directory);
        dice.pick(&directories.collect::<Vec<_>>())
    }

    /// Mostly a regular file, sometimes one without a name.
    fn any_file(&self, dice: &mut Dice) -> Ino {
        let files = self.inodes().filter(|(_, node)| matches!(node.body, Body::File(_)));
        let files: Vec<_> = files.map(|(ino, _)| ino).collect();
        if files.is_empty() || dice.rarely(24) { self.any_node(dice) } else { dice.pick(&files) }
    }

    /// Mostly an entry that is there.
    fn any_entry(&self, dice: &mut Dice) -> (Ino, Vec<u8>) {
        let names: Vec<_> = self.names().map(|(dir, name, _)| (dir, name.to_vec())).collect();
        if names.is_empty() || dice.rarely(10) {
            return (self.any_directory(dice), any_name(dice));
        }
        dice.pick(&names)
    }
}

/// Mostly one of a few names, those of the base among them; rarely one that cannot be.
fn any_name(dice: &mut Dice) -> Vec<u8> {
    const NAMES: [&str; 12] =
        ["a", "b", "c", "d", "file", "sub", "inner", "deep", "large", "link", ".git", "module"];
    if !dice.rarely(20) {
        return dice.pick(&NAMES).into();
    }
    let odd: [&[u8]; 8] = [
        b"",
        b".",
        b"..",
        b"x/y",
        b"z\0",
        b"\xff\xfe\n",
        &[b'n'; NAME_BYTES_MAX],
        &[b'n'; NAME_BYTES_MAX + 1],
    ];
    dice.pick(&odd).to_vec()
}

fn any_xattr(dice: &mut Dice) -> Vec<u8> {
    if !dice.rarely(12) {
        return dice.pick(&["user.a", "user.b", "user.c"]).into();
    }
    let odd: [&[u8]; 4] = [b"", b"user.\0", &[b'n'; NAME_BYTES_MAX], &[b'n'; NAME_BYTES_MAX + 1]];
    dice.pick(&odd).to_vec()
}

fn new(dice: &mut Dice) -> New {
    let rdev = dice.roll(1 << 16) as u32;
    match dice.roll(12) {
        0..6 => New::File,
        6..9 => New::Directory,
        9 => New::Symlink(b"../target".to_vec()),
        10 => New::Symlink(vec![b't'; SYMLINK_BYTES_MAX as usize + rdev as usize % 2]),
        _ => match rdev % 4 {
            0 => New::Special(NodeKind::Fifo, 0),
            1 => New::Special(NodeKind::Socket, 0),
            2 => New::Special(NodeKind::CharDevice, rdev),
            _ => New::Special(NodeKind::BlockDevice, rdev),
        },
    }
}

fn set_attributes(dice: &mut Dice) -> SetAttributes {
    let mut some = |value: u32| (dice.roll(3) == 0).then_some(value);
    let (permissions, uid, gid) = (some(0o6755), some(5), some(6));
    let time = |dice: &mut Dice| match dice.roll(4) {
        0 => Some(SetTime::Now),
        1 => Some(SetTime::At(Timestamp { seconds: -5, nanoseconds: 999_999_999 })),
        _ => None,
    };
    SetAttributes {
        permissions: permissions.map(|bits| bits as u16),
        uid,
        gid,
        size: None,
        accessed: time(dice),
        modified: time(dice),
    }
}
