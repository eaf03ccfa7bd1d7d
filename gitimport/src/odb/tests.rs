//! What a reader returns is what the id says, or an error; from true, forged and damaged objects.

use std::io::Read;

use agentfs_engine::progress::Cancel;
use agentfs_engine::{GitOid, HashKind};

use super::Reader;
use crate::error::{Error, Result};
use crate::forge::{Forge, IndexVersion, Packed, PackedForm, copy, delta, noise};
use crate::limits::{DELTA_BASES_BYTES_MAX, DELTA_CHAIN_MAX, WHOLE_OBJECT_BYTES_MAX};
use crate::object::Kind;

const LIMIT: u64 = 1 << 20;
const HASHES: [HashKind; 2] = [HashKind::Sha1, HashKind::Sha256];
const WHOLE: PackedForm = PackedForm::Whole(Kind::Blob);

fn read(reader: &mut Reader, oid: &GitOid) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.read(oid, Kind::Blob, LIMIT, &mut bytes)?;
    Ok(bytes)
}

fn stream(reader: &mut Reader, oid: &GitOid) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut stream = reader.stream(oid)?;
    stream.read_to_end(&mut bytes).map_err(|error| Error::read(oid, error))?;
    assert_eq!(stream.size(), bytes.len() as u64);
    Ok(bytes)
}

/// Both ways of reading find that object `oid` is damaged and say this of it, or one this and the
/// other that, with a bar between.
fn assert_damaged(forge: &Forge, oid: &GitOid, why: &str) {
    let mut reader = forge.odb().reader();
    let _ = reader.header(oid);
    let both = [read(&mut reader, oid), stream(&mut reader, oid)];
    for (result, why) in both.into_iter().zip(why.split('|').cycle()) {
        let error = result.expect_err(why);
        assert!(error.is_corruption(), "{error}");
        let text = error.to_string();
        assert!(text.contains(why) && text.contains(&oid.to_string()), "{text} instead of {why}");
    }
}

#[test]
fn packed_objects_of_all_forms_and_index_versions() {
    for hash in HASHES {
        for version in [IndexVersion::One, IndexVersion::Two, IndexVersion::TwoFar] {
            let forge = Forge::new(hash);
            let base = noise(100_000, 1);
            let middle = [&base[..50_000], b"changed", &base[50_000..]].concat();
            let end = middle[10..].to_vec();
            let ids = [&base, &middle, &end].map(|bytes| forge.id(Kind::Blob, bytes));
            let to_middle =
                [copy(0, 50_000), b"\x07changed".to_vec(), copy(50_000, 50_000)].concat();
            forge.pack(
                &[
                    Packed::new(ids[0], WHOLE, &base),
                    Packed::new(
                        ids[1],
                        PackedForm::Offset(0),
                        &delta(100_000, 100_007, &to_middle),
                    ),
                    Packed::new(
                        ids[2],
                        PackedForm::Base(ids[1]),
                        &delta(100_007, 99_997, &copy(10, 99_997)),
                    ),
                ],
                version,
            );
            let mut reader = forge.odb().reader();
            for _ in 0..2 {
                for (oid, expected) in ids.iter().zip([&base, &middle, &end]).rev() {
                    let size = expected.len() as u64;
                    assert_eq!(reader.header(oid).unwrap(), (Kind::Blob, size));
                    assert!(read(&mut reader, oid).unwrap() == *expected);
                    assert!(stream(&mut reader, oid).unwrap() == *expected);
                }
            }
            let positions = ids.map(|oid| reader.position(&oid).unwrap());
            assert!(positions.is_sorted());
        }
    }
}

#[test]
fn loose_and_alternate_objects() {
    for hash in HASHES {
        let donor = Forge::new(hash);
        let far = donor.loose(Kind::Blob, &noise(300_000, 2));
        let forge = Forge::new(hash);
        let near = forge.loose(Kind::Blob, b"near");
        let mut reader = forge.odb().reader();
        assert!(matches!(reader.header(&far), Err(Error::MissingObject(oid)) if oid == far));
        let list = format!("{}\n", donor.path().join("objects").display());
        std::fs::write(forge.path().join("objects/info/alternates"), list).unwrap();
        let mut reader = forge.odb().reader();
        assert_eq!(read(&mut reader, &near).unwrap(), b"near");
        assert!(read(&mut reader, &far).unwrap() == noise(300_000, 2));
        assert!(stream(&mut reader, &far).unwrap() == noise(300_000, 2));
        assert_eq!(reader.header(&forge.odb().empty_tree()).unwrap(), (Kind::Tree, 0));
    }
}

#[test]
fn a_missing_alternate_is_named() {
    let forge = Forge::new(HashKind::Sha1);
    let oid = forge.id(Kind::Blob, b"gone");
    let alternates = forge.path().join("objects/info/alternates");
    std::fs::write(alternates, "/nonexistent/objects\n").unwrap();
    let error = forge.odb().reader().header(&oid).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/objects"), "{error}");
}

#[test]
fn packs_that_appear_later_are_found() {
    let forge = Forge::new(HashKind::Sha1);
    let odb = forge.odb();
    let mut reader = odb.reader();
    let oid = forge.id(Kind::Blob, b"later");
    assert!(reader.header(&oid).is_err());
    let first = forge.pack(&[Packed::new(oid, WHOLE, b"later")], IndexVersion::Two);
    assert_eq!(read(&mut reader, &oid).unwrap(), b"later");
    // What git gc does: another pack has it, and this one goes.
    let other = forge.id(Kind::Blob, b"other");
    forge.pack(
        &[Packed::new(oid, WHOLE, b"later"), Packed::new(other, WHOLE, b"other")],
        IndexVersion::Two,
    );
    std::fs::remove_file(first.with_extension("idx")).unwrap();
    std::fs::remove_file(first.with_extension("pack")).unwrap();
    assert_eq!(read(&mut reader, &oid).unwrap(), b"later");
    assert_eq!(read(&mut reader, &other).unwrap(), b"other");
}

#[test]
fn another_copy_replaces_a_damaged_one() {
    let forge = Forge::new(HashKind::Sha1);
    let oid = forge.id(Kind::Blob, b"good");
    forge.pack(&[Packed::new(oid, WHOLE, b"evil")], IndexVersion::Two);
    assert_damaged(&forge, &oid, "its bytes are object");
    forge.loose(Kind::Blob, b"good");
    assert_eq!(read(&mut forge.odb().reader(), &oid).unwrap(), b"good");
}

#[test]
fn forged_loose_objects() {
    for (header, bytes, why) in [
        ("blob 3\0", &b"abcd"[..], "more bytes than stated"),
        ("blob 5\0", b"abcd", "fewer than stated"),
        ("blob 18446744073709551615\0", b"abcd", "it states 18446744073709551615 bytes"),
        ("blob 04\0", b"abcd", "its header is"),
        ("bulb 4\0", b"abcd", "its header is"),
        ("blob 4", b"", "its header does not end"),
        ("blob 44444444444444444444444444444444", b"", "its header does not end"),
        ("blob 4\0", b"evil", "its bytes are object"),
        ("tree 4\0", b"good", "its bytes are object|stored as a tree"),
    ] {
        let forge = Forge::new(HashKind::Sha1);
        let oid = forge.id(Kind::Blob, b"good");
        forge.loose_as(&oid, header, bytes);
        assert_damaged(&forge, &oid, why);
    }
    let forge = Forge::new(HashKind::Sha1);
    let oid = forge.loose(Kind::Blob, &noise(10_000, 3));
    let path = forge.loose_path(&oid);
    let whole = std::fs::read(&path).unwrap();
    for len in [0, 1, 2, 10, 5000, whole.len() - 1] {
        std::fs::write(&path, &whole[..len]).unwrap();
        assert_damaged(&forge, &oid, "");
    }
    std::fs::write(&path, b"not compressed").unwrap();
    assert_damaged(&forge, &oid, "its compressed bytes are wrong");
}

/// Packs of a base "0123456789" and one entry more, which is forged.
#[test]
fn forged_packed_objects() {
    let base = b"0123456789";
    let whole = |size, data: &[u8]| (WHOLE, Some(size), data.to_vec());
    let made = |data: Vec<u8>| (PackedForm::Offset(0), None, data);
    for ((form, size, data), why) in [
        (whole(3, b"good"), "more than the 3 bytes stated|more bytes than stated"),
        (whole(5, b"good"), "instead of the 5 stated|fewer than stated"),
        (whole(4, b"evil"), "its bytes are object"),
        (
            (PackedForm::Whole(Kind::Tag), None, b"good".to_vec()),
            "its bytes are object|stored as a tag",
        ),
        ((PackedForm::Type(5), None, b"good".to_vec()), "5"),
        ((PackedForm::Type(0), None, b"good".to_vec()), "0"),
        (made(delta(11, 4, &copy(0, 4))), "another size of its base"),
        (made(delta(10, 4, &copy(0, 5))), "more bytes than it states"),
        (made(delta(10, 4, &copy(0, 3))), "fewer bytes than it states"),
        (made(delta(10, 4, &copy(8, 4))), "outside its base"),
        (made(delta(10, 4, &copy(u32::MAX, 4))), "outside its base"),
        (made(delta(10, 4, b"\x04go")), "middle of an instruction"),
        (made(delta(10, 4, b"\x91")), "middle of an instruction"),
        (made(delta(10, 4, b"\0")), "reserved"),
        (made(b"".to_vec()), "ends in its header"),
        (made(b"\x0a".to_vec()), "ends in its header"),
        (made(vec![0xff; 30]), "more than 64 bits"),
        (made(delta(10, 4, &copy(0, 4))), "its bytes are object"),
        ((PackedForm::Offset(0), Some(9), delta(10, 4, &copy(0, 4))), "stated"),
        ((PackedForm::Distance(0), None, delta(10, 4, &copy(0, 4))), "outside the pack"),
        ((PackedForm::Distance(1 << 40), None, delta(10, 4, &copy(0, 4))), "outside the pack"),
        ((PackedForm::Distance(u64::MAX), None, delta(10, 4, &copy(0, 4))), ""),
        ((PackedForm::Distance(1), None, delta(10, 4, &copy(0, 4))), ""),
    ] {
        let forge = Forge::new(HashKind::Sha1);
        let oid = forge.id(Kind::Blob, b"good");
        let entry = Packed { oid, form, size, data };
        let base = Packed::new(forge.id(Kind::Blob, base), WHOLE, base);
        forge.pack(&[base, entry], IndexVersion::Two);
        assert_damaged(&forge, &oid, why);
    }
}

#[test]
fn immense_sizes_take_no_memory() {
    let forge = Forge::new(HashKind::Sha1);
    let base = forge.id(Kind::Blob, b"base");
    let ids: Vec<_> = (0..4_u8).map(|number| forge.id(Kind::Blob, &[number])).collect();
    forge.pack(
        &[
            Packed::new(base, WHOLE, b"base"),
            Packed { oid: ids[0], form: WHOLE, size: Some(u64::MAX), data: b"x".to_vec() },
            Packed {
                oid: ids[1],
                form: PackedForm::Offset(0),
                size: Some(LIMIT + 1),
                data: noise(2000, 1),
            },
            Packed::new(ids[2], PackedForm::Offset(0), &delta(4, u64::MAX >> 1, &copy(0, 4))),
            Packed::new(ids[3], PackedForm::Offset(0), &delta(u64::MAX, LIMIT + 1, &copy(0, 1))),
        ],
        IndexVersion::Two,
    );
    let mut reader = forge.odb().reader();
    // What cannot be true is noticed by whoever only asks for the size.
    for oid in [&ids[0], &ids[2]] {
        assert!(reader.header(oid).unwrap_err().is_corruption());
        assert!(read(&mut reader, oid).unwrap_err().is_corruption());
        assert!(stream(&mut reader, oid).unwrap_err().is_corruption());
    }
    for oid in [&ids[1], &ids[3]] {
        let error = read(&mut reader, oid).unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{oid} {error}");
        let error = stream(&mut reader, oid).unwrap_err();
        assert!(error.is_corruption(), "{error}");
    }
}

/// A base of 64 KiB, and deltas each of what is before it that make 1 GiB.
fn gibibytes(forge: &Forge, count: usize) -> Vec<GitOid> {
    let id = |number: usize| forge.id(Kind::Blob, &number.to_le_bytes());
    let base = vec![0; 1 << 16];
    let mut entries = vec![Packed::new(id(0), WHOLE, &base)];
    // A command without any field copies 64 KiB from the start.
    let copies = vec![0x80; 1 << 14];
    for number in 1..count {
        let base_len = if number == 1 { 1 << 16 } else { 1 << 30 };
        let form = PackedForm::Offset(number - 1);
        entries.push(Packed::new(id(number), form, &delta(base_len, 1 << 30, &copies)));
    }
    forge.pack(&entries, IndexVersion::Two);
    (0..count).map(id).collect()
}

#[test]
fn a_chain_of_large_bases_is_refused_as_a_whole() {
    let forge = Forge::new(HashKind::Sha1);
    let count = (DELTA_BASES_BYTES_MAX >> 30) as usize + 3;
    let ids = gibibytes(&forge, count);
    let limit = DELTA_BASES_BYTES_MAX;
    // Each base is below the limit for one, and the work to do is known before any is done.
    let error = forge.odb().reader().stream(&ids[count - 1]).err().unwrap();
    assert!(matches!(error, Error::TooLarge { limit: found, .. } if found == limit), "{error}");
    assert!(error.to_string().contains(&ids[count - 1].to_string()), "{error}");
}

#[test]
fn writing_bases_ends_when_it_is_cancelled() {
    let forge = Forge::new(HashKind::Sha1);
    let ids = gibibytes(&forge, 3);
    let cancel = Cancel::default();
    cancel.cancel();
    let mut reader = forge.odb().reader().cancelled_by(&cancel);
    let error = reader.stream(&ids[2]).err().unwrap();
    assert!(matches!(error, Error::Engine(agentfs_engine::Error::Cancelled)), "{error}");
}

#[test]
fn chains_that_do_not_end() {
    let forge = Forge::new(HashKind::Sha1);
    let [one, two] = [b"1", b"2"].map(|bytes| forge.id(Kind::Blob, bytes));
    let step = delta(1, 1, &copy(0, 1));
    let stranger = forge.id(Kind::Blob, b"stranger");
    let lost = forge.id(Kind::Blob, b"lost");
    forge.pack(
        &[
            Packed::new(one, PackedForm::Base(two), &step),
            Packed::new(two, PackedForm::Base(one), &step),
            Packed::new(lost, PackedForm::Base(stranger), &step),
        ],
        IndexVersion::Two,
    );
    assert!(forge.odb().reader().header(&one).unwrap_err().is_corruption());
    assert_damaged(&forge, &one, "does not end");
    // A base outside the pack, even one that exists, is none.
    forge.loose(Kind::Blob, b"stranger");
    assert_damaged(&forge, &lost, "is not in the pack");
}

#[test]
fn the_longest_chain_is_read() {
    let forge = Forge::new(HashKind::Sha1);
    let id = |number: usize| forge.id(Kind::Blob, &number.to_le_bytes());
    let mut entries = vec![Packed::new(id(0), WHOLE, &0_usize.to_le_bytes())];
    for number in 1..=DELTA_CHAIN_MAX + 1 {
        let insert = [&[8][..], &number.to_le_bytes()].concat();
        entries.push(Packed::new(
            id(number),
            PackedForm::Offset(number - 1),
            &delta(8, 8, &insert),
        ));
    }
    forge.pack(&entries, IndexVersion::Two);
    let mut reader = forge.odb().reader();
    assert_eq!(read(&mut reader, &id(DELTA_CHAIN_MAX)).unwrap(), DELTA_CHAIN_MAX.to_le_bytes());
    assert_damaged(&forge, &id(DELTA_CHAIN_MAX + 1), "does not end");
}

#[test]
fn large_deltas_are_streamed() {
    let forge = Forge::new(HashKind::Sha1);
    let size = WHOLE_OBJECT_BYTES_MAX as usize + 12_345;
    let base = noise(size, 4);
    let middle = [&base[1000..], b"end"].concat();
    let small = middle[size - 1000..].to_vec();
    let ids = [&base, &middle, &small].map(|bytes| forge.id(Kind::Blob, bytes));
    let part = 0xff_ffff_usize.min(size - 1000);
    let to_middle = [copy(1000, part as u32), b"\x03end".to_vec()].concat();
    assert_eq!(part, size - 1000);
    forge.pack(
        &[
            Packed::new(ids[0], WHOLE, &base),
            Packed::new(
                ids[1],
                PackedForm::Offset(0),
                &delta(size as u64, middle.len() as u64, &to_middle),
            ),
            Packed::new(
                ids[2],
                PackedForm::Offset(1),
                &delta(
                    middle.len() as u64,
                    small.len() as u64,
                    &copy(size as u32 - 1000, small.len() as u32),
                ),
            ),
        ],
        IndexVersion::Two,
    );
    let mut reader = forge.odb().reader();
    for (oid, expected) in ids.iter().zip([&base, &middle, &small]) {
        // Also the small one, for its base is large.
        assert!(matches!(read(&mut reader, oid), Err(Error::TooLarge { .. })));
        assert!(stream(&mut reader, oid).unwrap() == *expected);
    }
    let left: Vec<_> = std::fs::read_dir(forge.path().join("objects")).unwrap().collect();
    assert_eq!(left.len(), 2, "temporary files leave nothing: {left:?}");
}

#[test]
fn a_bomb_is_not_inflated_whole() {
    // 64 MiB of zeros in 64 KiB, under a header that states 1,000 bytes.
    let forge = Forge::new(HashKind::Sha1);
    let oid = forge.id(Kind::Blob, b"bomb");
    let entry = Packed { oid, form: WHOLE, size: Some(1000), data: vec![0; 64 << 20] };
    forge.pack(&[entry], IndexVersion::Two);
    let mut reader = forge.odb().reader();
    let mut bytes = Vec::new();
    let error = reader.read(&oid, Kind::Blob, LIMIT, &mut bytes).unwrap_err();
    assert!(error.is_corruption() && bytes.capacity() < 1 << 20);
    let mut counted = reader.stream(&oid).unwrap();
    assert!(std::io::copy(&mut counted, &mut std::io::sink()).is_err());
}

#[test]
fn damaged_files_are_named() {
    let fresh = || {
        let forge = Forge::new(HashKind::Sha1);
        let oid = forge.id(Kind::Blob, b"good");
        let stem = forge.pack(&[Packed::new(oid, WHOLE, b"good")], IndexVersion::Two);
        (forge, oid, stem)
    };
    let change = |path: std::path::PathBuf, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = std::fs::read(&path).unwrap();
        change(&mut bytes);
        std::fs::write(path, bytes).unwrap();
    };
    for damage in [
        &(|bytes: &mut Vec<u8>| bytes.truncate(100)) as &dyn Fn(&mut Vec<u8>),
        &|bytes| bytes.truncate(bytes.len() - 30),
        &|bytes| bytes.clear(),
        &|bytes| bytes[7] = 3,
        &|bytes| bytes[8] = 0xff,
        &|bytes| bytes[8 + 1020] = 0xff,
    ] {
        let (forge, _, stem) = fresh();
        change(stem.with_extension("idx"), damage);
        let error = super::Odb::open(&forge.path().join("objects"), HashKind::Sha1).unwrap_err();
        assert!(error.is_corruption() && error.to_string().contains(".idx"), "{error}");
    }
    // An id that is no longer found: the checksum tells why.
    let (forge, oid, stem) = fresh();
    change(stem.with_extension("idx"), &|bytes| bytes[8 + 1024 + 19] ^= 1);
    let error = read(&mut forge.odb().reader(), &oid).unwrap_err();
    assert!(error.to_string().contains("checksum"), "{error}");
    for damage in [
        &(|bytes: &mut Vec<u8>| bytes[0] = b'p') as &dyn Fn(&mut Vec<u8>),
        &|bytes| bytes[7] = 9,
        &|bytes| bytes[11] = 9,
        &|bytes| bytes.truncate(20),
        &|bytes| bytes.truncate(5),
    ] {
        let (forge, oid, stem) = fresh();
        change(stem.with_extension("pack"), damage);
        let error = read(&mut forge.odb().reader(), &oid).unwrap_err();
        assert!(error.is_corruption() && error.to_string().contains(".pack"), "{error}");
    }
}
