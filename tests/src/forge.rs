//! Repositories that git would not write: objects that lie about themselves.
//!
//! Nothing here needs a compressor: what is packed is a stream of stored blocks, or one of zeros, whose
//! codes are written by hand.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::fixture::{git, plain_environment};

/// What an entry of a pack is.
#[derive(Clone, Debug)]
pub enum Form {
    /// A blob, tree, commit or tag, by its number in the format.
    Whole(u8),
    /// A delta to what lies so many bytes before it; to nothing with 0.
    Distance(u64),
    /// A delta to the entry of this number before it.
    Offset(usize),
    /// A delta to an object.
    Base(String),
}

/// The number of a blob among the types of packed objects.
pub const BLOB: u8 = 3;
/// The number of a tree among them.
pub const TREE: u8 = 2;

/// One entry of a pack.
#[derive(Clone, Debug)]
pub struct Packed {
    /// The id under which the index lists it.
    pub id: String,
    /// What it is.
    pub form: Form,
    /// The size that its header states.
    pub size: u64,
    /// Its compressed bytes.
    pub stream: Vec<u8>,
}

impl Packed {
    /// An entry that holds `bytes` and says so.
    pub fn new(id: &str, form: Form, bytes: &[u8]) -> Self {
        Self { id: id.to_owned(), form, size: bytes.len() as u64, stream: stored(bytes) }
    }

    /// The same, that states another size.
    #[must_use]
    pub fn stating(mut self, size: u64) -> Self {
        self.size = size;
        self
    }
}

/// A bare repository.
pub struct Forge {
    dir: PathBuf,
}

impl Forge {
    /// An empty one at `dir`.
    pub fn new(dir: &Path) -> Self {
        fs::create_dir(dir).expect("the directory is new");
        git(dir, &["init", "--quiet", "--bare", "--initial-branch=main"]);
        Self { dir: dir.to_owned() }
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The id of an object, which is written if `write` says so.
    pub fn object(&self, kind: &str, bytes: &[u8], write: bool) -> String {
        let mut hash = Command::new("git");
        hash.arg("-C").arg(&self.dir).args(["hash-object", "-t", kind, "--stdin"]);
        hash.args(write.then_some("-w"));
        plain_environment(&mut hash);
        hash.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = hash.spawn().expect("git runs");
        child.stdin.take().expect("a pipe").write_all(bytes).expect("git reads");
        let output = child.wait_with_output().expect("git ends");
        assert!(output.status.success());
        String::from_utf8(output.stdout).expect("an id").trim().to_owned()
    }

    /// The bytes of a tree with these entries, which are in the order of git.
    pub fn tree(entries: &[(&str, &str, &str)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (mode, name, id) in entries {
            bytes.extend(format!("{mode} {name}\0").bytes());
            bytes.extend(binary(id));
        }
        bytes
    }

    /// Makes a commit of the tree `id` the branch `main`.
    pub fn commit(&self, id: &str) {
        let who = "A U Thor <author@example.com> 1700000000 +0000";
        let text = format!("tree {id}\nauthor {who}\ncommitter {who}\n\nforged\n");
        let commit = self.object("commit", text.as_bytes(), true);
        let reference = self.dir.join("refs/heads/main");
        fs::write(reference, format!("{commit}\n")).expect("a branch");
    }

    /// Writes the loose object `id` with this header, which ends in NUL, and these bytes.
    pub fn loose(&self, id: &str, header: &str, bytes: &[u8]) {
        self.loose_stream(id, &stored(&[header.as_bytes(), bytes].concat()));
    }

    /// Writes the loose object `id` of this compressed stream.
    pub fn loose_stream(&self, id: &str, stream: &[u8]) {
        let dir = self.dir.join("objects").join(&id[..2]);
        fs::create_dir_all(&dir).expect("a directory");
        fs::write(dir.join(&id[2..]), stream).expect("an object");
    }

    /// Writes a pack of these entries, whose index is as git would make it.
    pub fn pack(&self, entries: &[Packed]) {
        let mut pack = [&b"PACK\0\0\0\x02"[..], &(entries.len() as u32).to_be_bytes()].concat();
        let mut offsets = Vec::new();
        for entry in entries {
            let at = pack.len();
            offsets.push(at);
            let (number, base) = match &entry.form {
                Form::Whole(number) => (*number, Vec::new()),
                Form::Distance(distance) => (6, distance_bytes(*distance)),
                Form::Offset(number) => (6, distance_bytes((at - offsets[*number]) as u64)),
                Form::Base(id) => (7, binary(id)),
            };
            pack.extend(header_bytes(number, entry.size));
            pack.extend(base);
            pack.extend(&entry.stream);
        }
        let trailer = self.sha1(&pack);
        pack.extend(&trailer);
        let mut listed: Vec<_> =
            entries.iter().map(|entry| binary(&entry.id)).zip(offsets).collect();
        listed.sort();
        let mut index = b"\xfftOc\0\0\0\x02".to_vec();
        for byte in 0..=255 {
            let below = listed.iter().filter(|(id, _)| id[0] <= byte).count();
            index.extend((below as u32).to_be_bytes());
        }
        listed.iter().for_each(|(id, _)| index.extend(id));
        // No checksums: only git's own transfers look at them.
        listed.iter().for_each(|_| index.extend([0; 4]));
        listed.iter().for_each(|(_, offset)| index.extend((*offset as u32).to_be_bytes()));
        index.extend(&trailer);
        let own = self.sha1(&index);
        index.extend(own);
        let stem = self.dir.join("objects/pack/pack-0123456789012345678901234567890123456789");
        fs::write(stem.with_extension("pack"), pack).expect("a pack");
        fs::write(stem.with_extension("idx"), index).expect("an index");
    }

    fn sha1(&self, bytes: &[u8]) -> Vec<u8> {
        let file = self.dir.join("hashed");
        fs::write(&file, bytes).expect("a file");
        let output = Command::new("sha1sum").arg(&file).output().expect("sha1sum runs");
        fs::remove_file(&file).expect("the file");
        binary(std::str::from_utf8(&output.stdout[..40]).expect("a digest"))
    }
}

/// A delta that states these sizes and has these instructions.
pub fn delta(base: u64, result: u64, instructions: &[u8]) -> Vec<u8> {
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

/// The instruction that copies `len` bytes, at most 255, from `offset`, at most 255.
pub fn copy(offset: u8, len: u8) -> [u8; 3] {
    [0x91, offset, len]
}

/// `bytes` in a zlib stream that compresses nothing.
pub fn stored(bytes: &[u8]) -> Vec<u8> {
    let mut stream = vec![0x78, 0x01];
    let mut blocks = bytes.chunks(0xffff).peekable();
    while let Some(block) = blocks.next() {
        stream.push(u8::from(blocks.peek().is_none()));
        let len = block.len() as u16;
        stream.extend(len.to_le_bytes());
        stream.extend((!len).to_le_bytes());
        stream.extend(block);
    }
    if bytes.is_empty() {
        stream.extend([1, 0, 0, 0xff, 0xff]);
    }
    let (mut low, mut high) = (1_u32, 0_u32);
    for &byte in bytes {
        low = (low + u32::from(byte)) % 65521;
        high = (high + low) % 65521;
    }
    stream.extend((high << 16 | low).to_be_bytes());
    stream
}

/// `head` and then 1 + 258 * `runs` zeros in a zlib stream, 13 bits for each run.
pub fn zeros(head: &[u8], runs: usize) -> Vec<u8> {
    let mut stream = stored(head);
    let trailer = stream.split_off(stream.len() - 4);
    // Where there is a head, its block is not the last one.
    stream[2] = 0;
    let mut bits = Bits { bytes: stream, used: 0 };
    // The last block, with the codes that the format fixes.
    bits.put(0b011, 3);
    // A zero is 00110000, the longest match 11000101, a distance of one byte 00000.
    bits.put(0b0000_1100, 8);
    for _ in 0..runs {
        bits.put(0b1010_0011, 8);
        bits.put(0, 5);
    }
    // The end of the block.
    bits.put(0, 7);
    let mut stream = bits.bytes;
    let start = u32::from_be_bytes(trailer.try_into().expect("four bytes"));
    let (low, high) = (u64::from(start & 0xffff), u64::from(start >> 16));
    let high = (high + low * (1 + 258 * runs as u64)) % 65521;
    stream.extend(((high as u32) << 16 | low as u32).to_be_bytes());
    stream
}

struct Bits {
    bytes: Vec<u8>,
    /// Bits of the last byte that are taken; 0 if all are.
    used: u32,
}

impl Bits {
    /// Puts the lowest `count` bits of `value`, the lowest first.
    fn put(&mut self, value: u32, count: u32) {
        for bit in 0..count {
            if self.used == 0 {
                self.bytes.push(0);
            }
            let last = self.bytes.last_mut().expect("a byte");
            *last |= ((value >> bit & 1) as u8) << self.used;
            self.used = (self.used + 1) % 8;
        }
    }
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

fn binary(hex: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("an id");
    (0..hex.len()).step_by(2).map(digit).collect()
}
