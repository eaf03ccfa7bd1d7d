//! Abbreviated object ids.

use agentfs_engine::GitOid;

use super::{Odb, Reader};
use crate::error::{Error, Result};

/// Shortest abbreviation in hexadecimal digits, as git has it.
const DIGITS_MIN: usize = 4;
/// So many objects with the same abbreviation are looked at.
const CANDIDATES_MAX: usize = 64;

/// The first digits of an object id.
#[derive(Debug)]
pub(super) struct Prefix {
    /// The digits, followed by zeros.
    bytes: [u8; 32],
    digits: usize,
}

impl Prefix {
    fn parse(text: &str) -> Option<Self> {
        let digits = text.len();
        if !(DIGITS_MIN..=64).contains(&digits) {
            return None;
        }
        let mut bytes = [0; 32];
        for (at, digit) in text.chars().enumerate() {
            let value = digit.to_digit(16)? as u8;
            bytes[at / 2] |= if at % 2 == 0 { value << 4 } else { value };
        }
        Some(Self { bytes, digits })
    }

    /// The least id that begins so, of `len` bytes.
    pub(super) fn least(&self, len: usize) -> &[u8] {
        &self.bytes[..len]
    }

    pub(super) fn matches(&self, id: &[u8]) -> bool {
        let whole = self.digits / 2;
        id.len() * 2 >= self.digits
            && id[..whole] == self.bytes[..whole]
            && (self.digits.is_multiple_of(2) || id[whole] & 0xf0 == self.bytes[whole])
    }
}

impl Reader {
    /// The objects whose ids begin with the hexadecimal digits `text`, at least four of them, by id.
    /// A crowd of them is not listed to its end.
    ///
    /// # Errors
    /// [`Error::CorruptFile`] or [`Error::Io`] about a part of the database.
    pub fn abbreviated(&mut self, text: &str) -> Result<Vec<GitOid>> {
        let hash = self.odb().hash();
        let Some(prefix) = Prefix::parse(text).filter(|prefix| prefix.digits <= hash.len() * 2)
        else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        for pack in self.packs() {
            pack.index().with_prefix(&prefix, CANDIDATES_MAX, &mut found)?;
        }
        loose(self.odb(), &prefix, &mut found)?;
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }
}

/// Adds the loose objects that begin with `prefix`.
fn loose(odb: &Odb, prefix: &Prefix, found: &mut Vec<GitOid>) -> Result<()> {
    let first = format!("{:02x}", prefix.bytes[0]);
    for dir in &odb.dirs {
        let dir = dir.join(&first);
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::io("list", &dir, error)),
        };
        for entry in entries {
            let name = entry.map_err(|error| Error::io("list", &dir, error))?.file_name();
            let digits = format!("{first}{}", name.to_string_lossy());
            let Some(id) = Prefix::parse(&digits).filter(|id| id.digits == odb.hash.len() * 2)
            else {
                continue;
            };
            let id = id.least(odb.hash.len());
            if prefix.matches(id) && found.len() < CANDIDATES_MAX {
                found.extend(GitOid::from_slice(odb.hash, id));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use agentfs_engine::HashKind;

    use crate::forge::{Forge, IndexVersion, Packed, PackedForm};
    use crate::object::Kind;

    #[test]
    fn packed_and_loose_objects_by_their_first_digits() {
        for hash in [HashKind::Sha1, HashKind::Sha256] {
            for version in [IndexVersion::One, IndexVersion::Two] {
                let forge = Forge::new(hash);
                let mut ids: Vec<_> = (0..3000_u32)
                    .map(|number| forge.id(Kind::Blob, &number.to_le_bytes()))
                    .collect();
                let entries: Vec<_> = (0..3000_u32)
                    .zip(&ids)
                    .map(|(number, oid)| {
                        let form = PackedForm::Whole(Kind::Blob);
                        Packed::new(*oid, form, &number.to_le_bytes())
                    })
                    .collect();
                forge.pack(&entries, version);
                ids.push(forge.loose(Kind::Blob, b"loose"));
                ids.sort_unstable();
                let mut reader = forge.odb().reader();
                for oid in ids.iter().step_by(7).chain(ids.last()) {
                    for digits in [4, 5, 9, hash.len() * 2] {
                        let text = &oid.to_string()[..digits];
                        let expected: Vec<_> =
                            ids.iter().filter(|id| id.to_string().starts_with(text)).collect();
                        let found = reader.abbreviated(text).unwrap();
                        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{text}");
                    }
                }
                for none in ["", "abc", "xyzw", "0000000000", &"f".repeat(80)] {
                    assert_eq!(reader.abbreviated(none).unwrap(), [], "{none}");
                }
            }
        }
    }
}
