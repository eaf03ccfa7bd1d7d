//! An account of a directory that is kept outside of it: what was acknowledged, and what was under way.
//!
//! A [`Ledger`] makes random changes to a directory, one system call each, and notes what the directory
//! must show from then on. When changes stop because whoever serves the directory was killed,
//! [`Ledger::settle`] compares every name, byte and attribute. The one operation that was under way may have
//! happened or not; a write may have happened as far as a prefix of it.

mod dice;
mod model;
mod op;
mod view;

use std::io;
use std::path::{Path, PathBuf};

pub use dice::Dice;
use model::Model;
use op::Op;
use view::View;

/// What a directory must show.
pub struct Ledger {
    dir: PathBuf,
    model: Model,
    /// What was begun and not acknowledged.
    pending: Option<Pending>,
    /// Numbers the operations, so that no two write the same bytes.
    operations: u64,
}

struct Pending {
    op: Op,
    /// How many bytes of a write were acknowledged: the kernel may take one in parts.
    written: usize,
}

impl Ledger {
    /// The account of `dir`, which is empty.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, model: Model::default(), pending: None, operations: 0 }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How many operations were begun.
    pub fn operations(&self) -> u64 {
        self.operations
    }

    /// Makes one change, chosen by `dice`, and notes that it was acknowledged.
    ///
    /// # Errors
    /// What the system said. The operation is under way then until [`Ledger::settle`].
    ///
    /// # Panics
    /// If another one is under way.
    pub fn step(&mut self, dice: &mut Dice) -> io::Result<()> {
        assert!(self.pending.is_none(), "what failed has to be settled first");
        self.operations += 1;
        let op = Op::choose(&self.model, dice, self.operations);
        let pending = self.pending.insert(Pending { op, written: 0 });
        pending.op.perform(&self.dir, &mut pending.written)?;
        if let Some(Pending { op, .. }) = self.pending.take() {
            self.model.apply(&op, usize::MAX);
        }
        Ok(())
    }

    /// Compares with what is there, and takes over what became of the operation under way.
    ///
    /// # Errors
    /// What differs.
    ///
    /// # Panics
    /// If the directory cannot be read.
    pub fn settle(&mut self) -> Result<(), String> {
        let found = View::of_directory(&self.dir);
        let difference = found.difference(&self.model);
        let Some(Pending { op, written }) = self.pending.take() else {
            return difference.map_or(Ok(()), Err);
        };
        let before = match difference {
            None if written == 0 => return Ok(()),
            difference => difference.unwrap_or_else(|| format!("{written} bytes are lost")),
        };
        let mut after = self.model.clone();
        let taken = op.taken(&self.model, &found);
        if taken < written {
            return Err(format!("{op:?}: {written} bytes were acknowledged, {taken} are there"));
        }
        after.apply(&op, taken);
        match found.difference(&after) {
            None => self.model = after,
            Some(after) => {
                return Err(format!(
                    "{op:?} was under way. If it has not happened: {before}. If it has: {after}"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileExt, PermissionsExt};

    use super::*;

    /// A ledger of a directory of the host with something of everything in it.
    fn filled(seed: u64) -> (tempfile::TempDir, Ledger) {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::new(dir.path().to_owned());
        let mut dice = Dice::new(seed);
        for _ in 0..600 {
            ledger.step(&mut dice).unwrap();
        }
        ledger.settle().unwrap();
        (dir, ledger)
    }

    /// Some file with at least 100 bytes and one name.
    fn some_file(ledger: &Ledger) -> PathBuf {
        let found = View::of_directory(ledger.dir());
        ledger.dir().join(found.file_of(100).expect("there is one"))
    }

    #[test]
    fn a_directory_of_the_host_is_what_its_ledger_says() {
        for seed in 0..8 {
            let (_dir, ledger) = filled(seed);
            let kinds = View::of_directory(ledger.dir()).kinds();
            assert!(kinds.iter().all(|count| *count > 0), "seed {seed}: {kinds:?}");
        }
    }

    #[test]
    fn whatever_is_lost_or_changed_is_noticed() {
        type Damage = fn(&Path, &Path);
        let damages: [(&str, Damage); 9] = [
            ("a byte", |_, file| {
                let file = fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
                let modified = file.metadata().unwrap().modified().unwrap();
                let mut byte = [0];
                file.read_exact_at(&mut byte, 50).unwrap();
                file.write_all_at(&[byte[0] ^ 1], 50).unwrap();
                file.set_modified(modified).unwrap();
            }),
            ("the end of a file", |_, file| {
                let file = fs::OpenOptions::new().write(true).open(file).unwrap();
                file.set_len(99).unwrap();
            }),
            ("a byte more", |_, file| {
                let len = fs::metadata(file).unwrap().len();
                fs::OpenOptions::new().write(true).open(file).unwrap().set_len(len + 1).unwrap();
            }),
            ("a name", |_, file| fs::remove_file(file).unwrap()),
            ("a name that was removed", |dir, _| fs::write(dir.join("back"), "").unwrap()),
            ("a directory that was removed", |dir, _| fs::create_dir(dir.join("back")).unwrap()),
            ("a mode", |_, file| {
                let mode = fs::metadata(file).unwrap().permissions().mode() ^ 0o100;
                fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
            }),
            ("another name", |dir, file| fs::hard_link(file, dir.join("back")).unwrap()),
            ("a rename", |dir, file| fs::rename(file, dir.join("back")).unwrap()),
        ];
        for (what, damage) in damages {
            let (_dir, mut ledger) = filled(9);
            let file = some_file(&ledger);
            damage(ledger.dir(), &file);
            assert!(ledger.settle().is_err(), "{what} is not noticed");
        }
    }

    #[test]
    fn a_write_under_way_may_have_happened_in_part_but_not_otherwise() {
        let made = |len: usize, written: usize| {
            let dir = tempfile::tempdir().unwrap();
            let mut ledger = Ledger::new(dir.path().to_owned());
            let create = Op::Create { name: "f".into(), file: 1 };
            create.perform(dir.path(), &mut 0).unwrap();
            ledger.model.apply(&create, usize::MAX);
            let op = Op::Write { name: "f".into(), at: None, len: 1000, bytes: 7, sync: false };
            op.perform(dir.path(), &mut 0).unwrap();
            ledger.pending = Some(Pending { op, written });
            fs::OpenOptions::new()
                .write(true)
                .open(dir.path().join("f"))
                .unwrap()
                .set_len(len as u64)
                .unwrap();
            (dir, ledger)
        };
        for (len, written, fits) in
            [(0, 0, true), (10, 0, true), (1000, 0, true), (1001, 0, false), (9, 10, false)]
        {
            let (_dir, mut ledger) = made(len, written);
            assert_eq!(ledger.settle().is_ok(), fits, "{len} bytes, {written} acknowledged");
        }
        let (dir, mut ledger) = made(1000, 0);
        let file = fs::OpenOptions::new().write(true).open(dir.path().join("f")).unwrap();
        file.write_all_at(&[0; 8], 500).unwrap();
        assert!(ledger.settle().is_err(), "a hole in what was written is not noticed");
    }
}
