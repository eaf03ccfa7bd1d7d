//! Repositories that git would not write: for tests of hostile and damaged input.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agentfs_engine::{GitOid, HashKind};

use crate::object::{Kind, object_id, to_gix_kind};
use crate::odb::Odb;
use crate::repository::Repository;

/// A bare repository without git.
pub(crate) struct Forge {
    dir: tempfile::TempDir,
    pub(crate) hash: HashKind,
}

/// One entry of a forged pack.
pub(crate) struct Packed {
    /// The id under which the index lists it.
    pub(crate) oid: GitOid,
    pub(crate) form: PackedForm,
    /// The size that its header states; by default the true one.
    pub(crate) size: Option<u64>,
    /// What its compressed stream holds.
    pub(crate) data: Vec<u8>,
}

#[derive(Clone, Copy)]
pub(crate) enum PackedForm {
    Whole(Kind),
    /// A delta to an earlier entry, by number.
    Offset(usize),
    /// A delta to something at this distance before it.
    Distance(u64),
    /// A delta to an object.
    Base(GitOid),
    /// An entry of this type number.
    Type(u8),
}

/// Versions of pack indexes.
#[derive(Clone, Copy)]
pub(crate) enum IndexVersion {
    One,
    Two,
    /// Version 2 with all offsets in the table of 8-byte ones.
    TwoFar,
}

impl Forge {
    pub(crate) fn new(hash: HashKind) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = match hash {
            HashKind::Sha1 => "[core]\nrepositoryformatversion = 0\nbare = true\n",
            HashKind::Sha256 => {
                "[core]\nrepositoryformatversion = 1\nbare = true\n[extensions]\nobjectformat = sha256\n"
            }
        };
        for name in ["objects/pack", "objects/info", "refs/heads"] {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("config"), config).unwrap();
        std::fs::write(dir.path().join("HEAD"), "ref: refs/heads/main\n").unwrap();
        Self { dir, hash }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn odb(&self) -> Arc<Odb> {
        Odb::open(&self.path().join("objects"), self.hash).unwrap()
    }

    pub(crate) fn repository(&self) -> Repository {
        Repository::open(self.path()).unwrap()
    }

    pub(crate) fn id(&self, kind: Kind, bytes: &[u8]) -> GitOid {
        object_id(self.hash, kind, bytes).unwrap()
    }

    /// Writes a true loose object.
    pub(crate) fn loose(&self, kind: Kind, bytes: &[u8]) -> GitOid {
        let oid = self.id(kind, bytes);
        self.loose_as(&oid, &format!("{kind} {}\0", bytes.len()), bytes);
        oid
    }

    /// Writes a loose object of any header and bytes under any id.
    pub(crate) fn loose_as(&self, oid: &GitOid, header: &str, bytes: &[u8]) {
        let path = self.loose_path(oid);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, deflate(&[header.as_bytes(), bytes].concat())).unwrap();
    }

    pub(crate) fn loose_path(&self, oid: &GitOid) -> PathBuf {
        let hex = oid.to_string();
        self.path().join("objects").join(&hex[..2]).join(&hex[2..])
    }

    /// Writes a tree of these entries as they are.
    pub(crate) fn tree(&self, entries: &[(&str, &[u8], GitOid)]) -> GitOid {
        self.loose(Kind::Tree, &tree_bytes(entries))
    }

    /// Writes a pack of these entries and its index; returns its path without an extension.
    pub(crate) fn pack(&self, entries: &[Packed], version: IndexVersion) -> PathBuf {
        let mut pack = b"PACK\0\0\0\x02".to_vec();
        pack.extend_from_slice(&(entries.len() as u32).to_be_bytes());
        let mut offsets: Vec<u64> = Vec::new();
        for entry in entries {
            let offset = pack.len() as u64;
            let size = entry.size.unwrap_or(entry.data.len() as u64);
            let (number, base) = match entry.form {
                PackedForm::Whole(Kind::Commit) => (1, Vec::new()),
                PackedForm::Whole(Kind::Tree) => (2, Vec::new()),
                PackedForm::Whole(Kind::Blob) => (3, Vec::new()),
                PackedForm::Whole(Kind::Tag) => (4, Vec::new()),
                PackedForm::Offset(base) => (6, distance_bytes(offset - offsets[base])),
                PackedForm::Distance(distance) => (6, distance_bytes(distance)),
                PackedForm::Base(oid) => (7, oid.as_bytes().to_vec()),
                PackedForm::Type(number) => (number, Vec::new()),
            };
            offsets.push(offset);
            pack.extend(header_bytes(number, size));
            pack.extend(base);
            pack.extend(deflate(&entry.data));
        }
        let trailer = self.digest(&pack);
        pack.extend_from_slice(&trailer);
        let mut listed: Vec<_> = entries.iter().map(|entry| entry.oid).zip(offsets).collect();
        listed.sort();
        let stem = self.path().join("objects/pack").join(format!("pack-{}", hex(&trailer)));
        std::fs::write(stem.with_extension("pack"), &pack).unwrap();
        std::fs::write(stem.with_extension("idx"), self.index(&listed, &trailer, version)).unwrap();
        stem
    }

    fn index(&self, listed: &[(GitOid, u64)], pack: &[u8], version: IndexVersion) -> Vec<u8> {
        let mut index = Vec::new();
        if !matches!(version, IndexVersion::One) {
            index.extend_from_slice(b"\xfftOc\0\0\0\x02");
        }
        for byte in 0..=255 {
            let count = listed.iter().filter(|(oid, _)| oid.as_bytes()[0] <= byte).count();
            index.extend_from_slice(&(count as u32).to_be_bytes());
        }
        for (oid, offset) in listed {
            if matches!(version, IndexVersion::One) {
                index.extend_from_slice(&(*offset as u32).to_be_bytes());
            }
            index.extend_from_slice(oid.as_bytes());
        }
        if !matches!(version, IndexVersion::One) {
            index.extend(std::iter::repeat_n(0, listed.len() * 4));
            for (number, (_, offset)) in listed.iter().enumerate() {
                let near = match version {
                    IndexVersion::TwoFar => 1 << 31 | number as u32,
                    _ => *offset as u32,
                };
                index.extend_from_slice(&near.to_be_bytes());
            }
        }
        if matches!(version, IndexVersion::TwoFar) {
            listed.iter().for_each(|(_, offset)| index.extend_from_slice(&offset.to_be_bytes()));
        }
        index.extend_from_slice(pack);
        let trailer = self.digest(&index);
        index.extend_from_slice(&trailer);
        index
    }

    fn digest(&self, bytes: &[u8]) -> Vec<u8> {
        let mut hasher = gix::hash::hasher(to_gix_kind(self.hash));
        hasher.update(bytes);
        hasher.try_finalize().unwrap().as_slice().to_vec()
    }
}

impl Packed {
    pub(crate) fn new(oid: GitOid, form: PackedForm, data: &[u8]) -> Self {
        Self { oid, form, size: None, data: data.to_vec() }
    }
}

pub(crate) fn tree_bytes(entries: &[(&str, &[u8], GitOid)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (mode, name, oid) in entries {
        bytes.extend_from_slice(mode.as_bytes());
        bytes.push(b' ');
        bytes.extend_from_slice(name);
        bytes.push(0);
        bytes.extend_from_slice(oid.as_bytes());
    }
    bytes
}

/// A delta with these sizes and instructions.
pub(crate) fn delta(base: u64, result: u64, instructions: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for mut size in [base, result] {
        while size >= 0x80 {
            bytes.push(size as u8 | 0x80);
            size >>= 7;
        }
        bytes.push(size as u8);
    }
    bytes.extend_from_slice(instructions);
    bytes
}

/// The instruction to copy `len` bytes from `offset`, all fields present.
pub(crate) fn copy(offset: u32, len: u32) -> Vec<u8> {
    let mut bytes = vec![0xff];
    bytes.extend_from_slice(&offset.to_le_bytes());
    bytes.extend_from_slice(&len.to_le_bytes()[..3]);
    bytes
}

pub(crate) fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut writer =
        gix::zlib::stream::deflate::Write::new(Vec::new(), gix::zlib::Compression::BEST_SPEED);
    writer.write_all(bytes).unwrap();
    writer.flush().unwrap();
    writer.into_inner()
}

/// Bytes that do not compress, the same every time.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn header_bytes(number: u8, mut size: u64) -> Vec<u8> {
    let mut byte = number << 4 | (size & 15) as u8;
    size >>= 4;
    let mut bytes = Vec::new();
    while size > 0 {
        bytes.push(byte | 0x80);
        byte = (size & 0x7f) as u8;
        size >>= 7;
    }
    bytes.push(byte);
    bytes
}

fn distance_bytes(mut distance: u64) -> Vec<u8> {
    let mut bytes = vec![(distance & 0x7f) as u8];
    while distance >> 7 > 0 {
        distance = (distance >> 7) - 1;
        bytes.push((distance & 0x7f) as u8 | 0x80);
    }
    bytes.reverse();
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
