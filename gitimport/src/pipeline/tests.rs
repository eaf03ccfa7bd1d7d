//! What is stored is what git has, whatever was damaged before or interrupted meanwhile.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use agentfs_engine::progress::{Cancel, Phase, Progress, Silent};
use agentfs_engine::store::Store;
use agentfs_engine::{GitOid, HashKind};

use super::{IngestReport, ingest};
use crate::convert::Plan;
use crate::error::{Error, Result};
use crate::forge::{Forge, IndexVersion, Packed, PackedForm, copy, delta, noise};
use crate::gittest::{Sandbox, git};
use crate::limits::{DAMAGED_BLOBS_MAX, LIGHT_OBJECT_BYTES_MAX, WHOLE_OBJECT_BYTES_MAX};
use crate::object::Kind;
use crate::odb::{Odb, Reader};
use crate::repository::{Commit, Repository};
use crate::walk::{Imported, import_tree};

const WHOLE: PackedForm = PackedForm::Whole(Kind::Blob);

struct Target {
    _dir: tempfile::TempDir,
    store: std::sync::Arc<Store>,
}

impl Target {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        Self { _dir: dir, store }
    }

    fn walk(&self, repository: &Repository, tree: &GitOid) -> Result<Imported> {
        let plan = Plan::new(repository)?;
        import_tree(&self.store, repository, tree, &plan, &Silent, &Cancel::default())
    }

    fn import(&self, repository: &Repository, tree: &GitOid) -> Result<IngestReport> {
        let Imported { root, trees, .. } = self.walk(repository, tree)?;
        ingest(&self.store, repository, root.id, &trees, &Silent, &Cancel::default())
    }

    /// Whether the git map has `tree` under the conversions that hold in a root.
    fn knows(&self, repository: &Repository, tree: &GitOid) -> bool {
        let scope = Plan::new(repository).unwrap().root().enter(b"", None).unwrap();
        self.store.tree_of(tree, &scope.context()).unwrap().is_some()
    }

    fn read(&self, oid: &GitOid) -> Vec<u8> {
        let stored = self.store.content_of(oid).unwrap().unwrap();
        let mut bytes = vec![0; stored.size as usize];
        assert_eq!(self.store.read_at(stored.id, 0, &mut bytes).unwrap(), bytes.len());
        bytes
    }
}

#[test]
fn blobs_of_every_size_arrive() {
    let forge = Forge::new(HashKind::Sha256);
    let light = LIGHT_OBJECT_BYTES_MAX as usize;
    let whole = WHOLE_OBJECT_BYTES_MAX as usize;
    let blobs: Vec<_> = [0, 1, 1000, light - 1, light, light + 1, 3 * light, whole + 1]
        .into_iter()
        .map(|size| noise(size, size as u64))
        .collect();
    let mut entries = Vec::new();
    for bytes in &blobs {
        entries.push(Packed::new(forge.id(Kind::Blob, bytes), WHOLE, bytes));
    }
    // A small one that is a delta to the largest.
    let tail = &blobs[7][whole - 99..];
    let instructions = copy(whole as u32 - 99, 100);
    let tail_id = forge.id(Kind::Blob, tail);
    let base_len = whole as u64 + 1;
    entries.push(Packed::new(tail_id, PackedForm::Offset(7), &delta(base_len, 100, &instructions)));
    forge.pack(&entries, IndexVersion::Two);
    let names: Vec<_> = (0..entries.len()).map(|number| number.to_string()).collect();
    let listed: Vec<_> = names
        .iter()
        .zip(&entries)
        .map(|(name, entry)| ("100644", name.as_bytes(), entry.oid))
        .collect();
    let target = Target::new();
    let report = target.import(&forge.repository(), &forge.tree(&listed)).unwrap();
    let bytes: usize = blobs.iter().map(Vec::len).sum();
    assert_eq!(report, IngestReport { blobs: 9, bytes: bytes as u64 + 100, known: 0 });
    for (entry, bytes) in entries.iter().zip(blobs.iter().map(Vec::as_slice).chain([tail])) {
        assert!(target.read(&entry.oid) == bytes, "{} bytes", bytes.len());
    }
}

/// Cancels after so many blobs.
struct StopAfter(AtomicU64, Cancel);

impl Progress for StopAfter {
    fn begin(&self, _: Phase, _: Option<u64>, _: Option<u64>) {}

    fn advance(&self, phase: Phase, objects: u64, _: u64) {
        if phase == Phase::Ingest && self.0.fetch_sub(objects, Ordering::Relaxed) == 1 {
            self.1.cancel();
        }
    }

    fn end(&self, _: Phase) {}
}

#[test]
fn an_interrupted_ingest_is_continued() {
    let forge = Forge::new(HashKind::Sha1);
    let blobs: Vec<_> =
        (0..500_u32).map(|number| noise(2000, u64::from(number) * 7919 + 1)).collect();
    let entries: Vec<_> =
        blobs.iter().map(|bytes| Packed::new(forge.id(Kind::Blob, bytes), WHOLE, bytes)).collect();
    let names: Vec<_> = (0..500).map(|number| format!("{number:03}")).collect();
    let listed: Vec<_> = names
        .iter()
        .zip(&entries)
        .map(|(name, entry)| ("100644", name.as_bytes(), entry.oid))
        .collect();
    let tree = forge.tree(&listed);
    forge.pack(&entries, IndexVersion::Two);
    let target = Target::new();
    let repository = forge.repository();
    let imported = target.walk(&repository, &tree).unwrap();
    let cancel = Cancel::default();
    let stop = StopAfter(AtomicU64::new(100), cancel.clone());
    let result =
        ingest(&target.store, &repository, imported.root.id, &imported.trees, &stop, &cancel);
    assert!(matches!(result, Err(Error::Engine(agentfs_engine::Error::Cancelled))));
    target.store.writer().flush().unwrap();
    assert!(!target.knows(&repository, &tree));
    let report = target.import(&repository, &tree).unwrap();
    assert!(report.known >= 100 && report.blobs < 500, "{report:?}");
    assert_eq!(report.known + report.blobs, 500);
    assert!(target.knows(&repository, &tree));
    assert_eq!(target.import(&repository, &tree).unwrap().known, 500);
}

#[test]
fn damaged_blobs_are_named_and_the_others_stored() {
    let forge = Forge::new(HashKind::Sha1);
    let good = forge.loose(Kind::Blob, b"good");
    let bad: Vec<_> = (0..2_u8).map(|number| forge.id(Kind::Blob, &[number])).collect();
    for oid in &bad {
        forge.loose_as(oid, "blob 4\0", b"evil");
    }
    let sub = forge.tree(&[("100644", b"one", bad[0]), ("100644", b"two", good)]);
    let one = forge.tree(&[("40000", b"dir", sub)]);
    let target = Target::new();
    let error = target.import(&forge.repository(), &one).unwrap_err();
    let text = error.to_string();
    assert!(error.is_corruption(), "{text}");
    assert!(text.contains("\"dir/one\"") && text.contains(&bad[0].to_string()), "{text}");
    assert_eq!(target.read(&good), b"good");
    assert!(target.store.content_of(&bad[0]).unwrap().is_none());
    let two = forge.tree(&[("40000", b"dir", sub), ("100644", b"two", bad[1])]);
    let error = target.import(&forge.repository(), &two).unwrap_err();
    assert!(matches!(&error, Error::Blobs { failed: 2, .. }) && error.is_corruption(), "{error}");
    // It gives up where nothing is whole.
    let names: Vec<_> = (0..100_u8).map(|number| format!("{number:02}")).collect();
    let listed: Vec<_> = names
        .iter()
        .zip(2_u8..)
        .map(|(name, number)| {
            let oid = forge.id(Kind::Blob, &[number]);
            forge.loose_as(&oid, "blob 4\0", b"evil");
            ("100644", name.as_bytes(), oid)
        })
        .collect();
    let error = target.import(&forge.repository(), &forge.tree(&listed)).unwrap_err();
    let Error::Blobs { failed, .. } = error else { panic!("{error}") };
    assert!((DAMAGED_BLOBS_MAX..50).contains(&failed));
}

/// A packed repository with deltas, and what git says it holds.
fn packed_repository(
    sandbox: &Sandbox,
    format: &str,
) -> (std::path::PathBuf, Vec<(String, Vec<u8>)>) {
    let path = sandbox.empty_repository("repo", &[&format!("--object-format={format}")]);
    let lines: Vec<_> = (0..120).map(|line| format!("line {line} of a file\n")).collect();
    for version in 0..3 {
        for file in ["a", "dir/b", "dir/sub/c"] {
            let text = lines.concat().replace(&format!("line {version}1 "), file);
            std::fs::create_dir_all(path.join(file).parent().unwrap()).unwrap();
            std::fs::write(path.join(file), text).unwrap();
        }
        git(&path, &["add", "-A"]);
        git(&path, &["commit", "-qm", &version.to_string()]);
    }
    git(&path, &["repack", "-adfq", "--depth=10"]);
    git(&path, &["prune-packed", "-q"]);
    let files = ["a", "dir/b", "dir/sub/c"].map(|file| {
        (
            git(&path, &["rev-parse", &format!("HEAD:{file}")]),
            std::fs::read(path.join(file)).unwrap(),
        )
    });
    (path.join(".git"), files.into())
}

fn pack_file(git_dir: &Path, extension: &str) -> std::path::PathBuf {
    std::fs::read_dir(git_dir.join("objects/pack"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|found| found == extension))
        .unwrap()
}

/// Calls `check` with every `stride`th byte of `path` changed, in three ways.
fn flip_bytes(path: &Path, stride: usize, check: &mut dyn FnMut(usize)) {
    let whole = std::fs::read(path).unwrap();
    let mut permissions = path.metadata().unwrap().permissions();
    #[allow(clippy::permissions_set_readonly_false)]
    permissions.set_readonly(false);
    std::fs::set_permissions(path, permissions).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    for at in (0..whole.len()).step_by(stride) {
        for mask in [0x01, 0x80, 0xff] {
            file.write_all_at(&[whole[at] ^ mask], at as u64).unwrap();
            check(at);
        }
        file.write_all_at(&whole[at..=at], at as u64).unwrap();
    }
}

/// Reads a commit and every object of its tree.
fn read_all(git_dir: &Path, commit: &Commit) -> Result<Vec<(String, Vec<u8>)>> {
    fn below(reader: &mut Reader, tree: &GitOid, found: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
        let mut bytes = Vec::new();
        reader.read(tree, Kind::Tree, LIGHT_OBJECT_BYTES_MAX, &mut bytes)?;
        let tree = crate::tree::GitTree::parse(tree.kind(), bytes).unwrap();
        for entry in tree.entries() {
            if entry.kind.is_directory() {
                below(reader, &entry.oid, found)?;
            } else {
                let mut bytes = Vec::new();
                reader.read(&entry.oid, Kind::Blob, LIGHT_OBJECT_BYTES_MAX, &mut bytes)?;
                found.push((entry.oid.to_string(), bytes));
            }
        }
        Ok(())
    }
    let mut reader = Odb::open(&git_dir.join("objects"), commit.id.kind())?.reader();
    reader.read(&commit.id, Kind::Commit, LIGHT_OBJECT_BYTES_MAX, &mut Vec::new())?;
    let mut found = Vec::new();
    below(&mut reader, &commit.tree, &mut found)?;
    Ok(found)
}

#[test]
fn any_flipped_byte_is_harmless_or_named() {
    for format in ["sha1", "sha256"] {
        let sandbox = Sandbox::new();
        let (git_dir, files) = packed_repository(&sandbox, format);
        let commit = Repository::open(&git_dir).unwrap().resolve("HEAD").unwrap();
        assert_eq!(read_all(&git_dir, &commit).unwrap(), files);
        for extension in ["pack", "idx"] {
            let path = pack_file(&git_dir, extension);
            let mut failures = 0;
            let mut runs = 0;
            flip_bytes(&path, 1, &mut |at| {
                runs += 1;
                match read_all(&git_dir, &commit) {
                    Ok(found) => assert!(found == files, "byte {at} of {extension}: wrong bytes"),
                    Err(error) => {
                        failures += 1;
                        assert_named(&error, at, extension);
                    }
                }
            });
            assert!(failures > 0 && failures < runs);
            assert_eq!(read_all(&git_dir, &commit).unwrap(), files);
        }
    }
}

fn assert_named(error: &Error, at: usize, extension: &str) {
    let text = error.to_string();
    let id = text.split(|byte: char| !byte.is_ascii_hexdigit()).any(|word| word.len() >= 40);
    let file = text.contains(".pack") || text.contains(".idx");
    assert!(error.is_corruption() && (id || file), "byte {at} of {extension}: {text} ({error:?})");
}

#[test]
fn a_flipped_byte_is_found_by_an_import() {
    let sandbox = Sandbox::new();
    let (git_dir, files) = packed_repository(&sandbox, "sha1");
    for extension in ["pack", "idx"] {
        flip_bytes(&pack_file(&git_dir, extension), 97, &mut |at| {
            let target = Target::new();
            let result = Repository::open(&git_dir).and_then(|repository| {
                let commit = repository.resolve("HEAD")?;
                target.import(&repository, &commit.tree)
            });
            match result {
                Ok(report) => {
                    assert_eq!(report.blobs, 3);
                    for (oid, bytes) in &files {
                        let id = gix::ObjectId::from_hex(oid.as_bytes()).unwrap();
                        assert!(target.read(&crate::object::from_gix(&id).unwrap()) == *bytes);
                    }
                }
                Err(error) => assert_named(&error, at, extension),
            }
        });
    }
}
