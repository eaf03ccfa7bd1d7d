//! The operations of a ledger: each one change for those who look at the directory.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{XattrFlags, removexattr, setxattr};

use super::dice::Dice;
use super::model::{Model, Node};
use super::view::View;

/// The extended attribute that is set and removed.
pub(super) const ATTRIBUTE: &str = "user.ledger";
/// The modes of what is made, which no usual umask cuts.
pub(super) const NEW_FILE_MODE: u32 = 0o600;
pub(super) const NEW_DIRECTORY_MODE: u32 = 0o700;
/// Length in bytes that a file does not grow beyond.
const FILE_BYTES_MAX: usize = 2 << 20;
/// Names in each directory.
const NAMES: u64 = 12;

#[derive(Clone, Debug)]
pub(super) enum Op {
    Create {
        name: String,
        file: u64,
    },
    /// Writes `len` bytes that are those of no other operation but `bytes`; at the end without `at`.
    Write {
        name: String,
        at: Option<usize>,
        len: usize,
        bytes: u64,
        sync: bool,
    },
    Truncate {
        name: String,
        len: usize,
    },
    Mode {
        name: String,
        mode: u32,
    },
    Times {
        name: String,
        seconds: i64,
    },
    Attribute {
        name: String,
        value: Option<Vec<u8>>,
    },
    Rename {
        from: String,
        to: String,
    },
    HardLink {
        from: String,
        to: String,
    },
    Symlink {
        name: String,
        target: String,
    },
    MakeDirectory {
        name: String,
    },
    Remove {
        name: String,
    },
    RemoveDirectory {
        name: String,
    },
    SyncDirectory {
        name: String,
    },
}

impl Op {
    /// An operation that is possible now; `number` is that of no other.
    pub(super) fn choose(model: &Model, dice: &mut Dice, number: u64) -> Self {
        let dirs: Vec<&String> = directories(model).collect();
        let parent = match dice.roll(dirs.len() as u64 + 1) as usize {
            0 => String::new(),
            at => format!("{}/", dirs[at - 1]),
        };
        let name = format!("{parent}n{}", dice.roll(NAMES));
        match model.nodes.get(&name) {
            None => Self::of_nothing(model, dice, name, number),
            Some(Node::Link(_)) => Self::Remove { name },
            Some(Node::Directory(_)) => Self::of_directory(model, dice, name),
            Some(Node::File(_)) => Self::of_file(model, dice, name, number),
        }
    }

    fn of_nothing(model: &Model, dice: &mut Dice, name: String, number: u64) -> Self {
        match dice.roll(8) {
            0 if name.matches('/').count() < 3 => Self::MakeDirectory { name },
            1 => Self::Symlink { name, target: format!("target-{number}") },
            2 => match some_file(model, dice) {
                Some(from) => Self::HardLink { from, to: name },
                None => Self::Create { name, file: number },
            },
            _ => Self::Create { name, file: number },
        }
    }

    fn of_directory(model: &Model, dice: &mut Dice, name: String) -> Self {
        let beside =
            name.rsplit_once('/').map_or(String::new(), |(parent, _)| format!("{parent}/"));
        let parent = if dice.roll(2) == 0 { String::new() } else { beside };
        let to = format!("{parent}n{}", dice.roll(NAMES));
        match dice.roll(6) {
            0 => Self::Mode { name, mode: 0o700 | dice.roll(0o100) as u32 },
            1 | 2 if model.is_empty(&name) => Self::RemoveDirectory { name },
            // Over nothing, or over an empty directory.
            3 | 4
                if to != name
                    && match model.nodes.get(&to) {
                        None => true,
                        Some(Node::Directory(_)) => model.is_empty(&to),
                        Some(_) => false,
                    } =>
            {
                Self::Rename { from: name, to }
            }
            _ => Self::SyncDirectory { name },
        }
    }

    fn of_file(model: &Model, dice: &mut Dice, name: String, number: u64) -> Self {
        let now = model.file(&name).map_or(0, |state| state.bytes.len());
        let len = [10, 5_000, 70_000, 400_000][dice.roll(4) as usize];
        let sync = dice.roll(8) == 0;
        match dice.roll(16) {
            0..5 if now < FILE_BYTES_MAX => {
                Self::Write { name, at: None, len, bytes: number, sync }
            }
            5..7 => {
                let at = dice.roll(now as u64 + 1) as usize;
                Self::Write { name, at: Some(at), len: len.min(9_000), bytes: number, sync }
            }
            7 | 8 => {
                let longest = (now * 2).clamp(1, FILE_BYTES_MAX) as u64;
                Self::Truncate { name, len: dice.roll(longest + 1) as usize }
            }
            9 => Self::Mode { name, mode: 0o600 | dice.roll(0o100) as u32 },
            10 => Self::Times { name, seconds: 1_000_000_000 + number as i64 },
            11 => {
                let value = (dice.roll(3) > 0).then(|| number.to_string().into_bytes());
                Self::Attribute { name, value }
            }
            12 | 13 => match some_file(model, dice) {
                // Between names of one file a rename does nothing.
                Some(to) if model.nodes[&to].file() != model.nodes[&name].file() => {
                    Self::Rename { from: name, to }
                }
                _ => Self::Remove { name },
            },
            14 => {
                let parent =
                    directories(model).next().map_or(String::new(), |dir| format!("{dir}/"));
                let to = format!("{parent}n{}", dice.roll(NAMES));
                match model.nodes.get(&to) {
                    None => Self::Rename { from: name, to },
                    Some(_) => Self::Remove { name },
                }
            }
            _ => Self::Remove { name },
        }
    }

    /// The bytes of a write.
    pub(super) fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Write { len, bytes, .. } => Dice::new(*bytes << 20).bytes(*len),
            _ => Vec::new(),
        }
    }

    /// How many bytes of a write are found, from its first on; of anything else all there are.
    pub(super) fn taken(&self, before: &Model, found: &View) -> usize {
        let Self::Write { name, at, .. } = self else { return usize::MAX };
        let Some(found) = found.bytes_of(name) else { return 0 };
        let at = at.unwrap_or_else(|| before.file(name).map_or(0, |state| state.bytes.len()));
        let there = found.get(at..).unwrap_or_default();
        self.bytes().iter().zip(there).take_while(|(new, is)| new == is).count()
    }

    /// Does it in `dir`, and counts the bytes that are acknowledged while it is under way.
    pub(super) fn perform(&self, dir: &Path, written: &mut usize) -> io::Result<()> {
        let path = |name: &str| dir.join(name);
        match self {
            Self::Create { name, .. } => OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(NEW_FILE_MODE)
                .open(path(name))
                .map(drop),
            Self::Write { name, at, sync, .. } => {
                let file = OpenOptions::new().write(true).append(at.is_none()).open(path(name))?;
                let bytes = self.bytes();
                while *written < bytes.len() {
                    let rest = &bytes[*written..];
                    *written += match at {
                        Some(at) => file.write_at(rest, (at + *written) as u64)?,
                        None => io::Write::write(&mut &file, rest)?,
                    };
                }
                if *sync { file.sync_all() } else { Ok(()) }
            }
            Self::Truncate { name, len } => {
                OpenOptions::new().write(true).open(path(name))?.set_len(*len as u64)
            }
            Self::Mode { name, mode } => {
                fs::set_permissions(path(name), Permissions::from_mode(*mode))
            }
            Self::Times { name, seconds } => {
                let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs());
                File::open(path(name))?.set_modified(time)
            }
            Self::Attribute { name, value: Some(value) } => {
                Ok(setxattr(path(name), ATTRIBUTE, value, XattrFlags::empty())?)
            }
            Self::Attribute { name, value: None } => match removexattr(path(name), ATTRIBUTE) {
                Err(rustix::io::Errno::NODATA) => Ok(()),
                done => Ok(done?),
            },
            Self::Rename { from, to } => fs::rename(path(from), path(to)),
            Self::HardLink { from, to } => fs::hard_link(path(from), path(to)),
            Self::Symlink { name, target } => symlink(target, path(name)),
            Self::MakeDirectory { name } => {
                fs::DirBuilder::new().mode(NEW_DIRECTORY_MODE).create(path(name))
            }
            Self::Remove { name } => fs::remove_file(path(name)),
            Self::RemoveDirectory { name } => fs::remove_dir(path(name)),
            Self::SyncDirectory { name } => File::open(path(name))?.sync_all(),
        }
    }
}

fn directories(model: &Model) -> impl Iterator<Item = &String> {
    model.nodes.iter().filter(|(_, node)| matches!(node, Node::Directory(_))).map(|(name, _)| name)
}

fn some_file(model: &Model, dice: &mut Dice) -> Option<String> {
    let files: Vec<&String> = model
        .nodes
        .iter()
        .filter(|(_, node)| node.file().is_some())
        .map(|(name, _)| name)
        .collect();
    let at = dice.roll(files.len().max(1) as u64) as usize;
    files.get(at).map(|name| (*name).clone())
}
