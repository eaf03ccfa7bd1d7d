//! `working-tree-encoding`.
//!
//! The Unicode encodings are made here. The others are left to iconv(1), which shares its tables
//! with the iconv(3) that git uses; the tables of gix are those of the web and differ.

use std::process::{Command, Stdio};

use gix::bstr::{BStr, ByteSlice};

use super::{Failure, child};

/// Longest name of an encoding in bytes that is passed on.
const NAME_BYTES_MAX: usize = 64;

/// Whether a file in this encoding is stored as it is.
pub(super) fn is_utf8(name: &BStr) -> bool {
    utf_suffix(name).as_deref() == Some("8")
}

/// Encodes `content`, which should be UTF-8, as git does.
///
/// # Errors
/// [`Failure::Failed`] if that is impossible. git then leaves the file as it is.
pub(super) fn encode(content: &[u8], name: &BStr) -> Result<Vec<u8>, Failure> {
    let Some(unicode) = utf_suffix(name).and_then(|suffix| Unicode::named(&suffix)) else {
        return iconv(content, name);
    };
    let text = std::str::from_utf8(content).map_err(|error| Failure::failed(&error))?;
    Ok(unicode.encode(text))
}

/// What follows `UTF` or `UTF-` in the name of an encoding, in lower case.
fn utf_suffix(name: &BStr) -> Option<String> {
    let name = name.to_str().ok()?.to_ascii_lowercase();
    let suffix = name.strip_prefix("utf")?;
    Some(suffix.strip_prefix('-').unwrap_or(suffix).to_owned())
}

#[derive(Clone, Copy)]
struct Unicode {
    wide: bool,
    big_endian: bool,
    mark: bool,
}

impl Unicode {
    fn named(suffix: &str) -> Option<Self> {
        let (wide, big_endian, mark) = match suffix {
            "16" | "16le-bom" => (false, false, true),
            "16le" => (false, false, false),
            "16be" => (false, true, false),
            "16be-bom" => (false, true, true),
            "32" => (true, false, true),
            "32le" => (true, false, false),
            "32be" => (true, true, false),
            _ => return None,
        };
        Some(Self { wide, big_endian, mark })
    }

    fn encode(self, text: &str) -> Vec<u8> {
        let mut out = Vec::with_capacity(text.len() * 2 + 4);
        for char in self.mark.then_some('\u{feff}').into_iter().chain(text.chars()) {
            match (self.wide, self.big_endian) {
                (true, true) => out.extend_from_slice(&u32::from(char).to_be_bytes()),
                (true, false) => out.extend_from_slice(&u32::from(char).to_le_bytes()),
                (false, big_endian) => {
                    for unit in char.encode_utf16(&mut [0; 2]) {
                        let bytes =
                            if big_endian { unit.to_be_bytes() } else { unit.to_le_bytes() };
                        out.extend_from_slice(&bytes);
                    }
                }
            }
        }
        out
    }
}

/// Converts with iconv(1). Its `-t` would take a path for a table to load, so names are restricted
/// to what names look like.
fn iconv(content: &[u8], name: &BStr) -> Result<Vec<u8>, Failure> {
    let name = match name.to_str() {
        Ok("latin-1") => "ISO-8859-1",
        Ok(name) => name,
        Err(error) => return Err(Failure::failed(&error)),
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:+()".contains(&byte);
    if name.len() > NAME_BYTES_MAX || !name.bytes().all(plain) {
        return Err(Failure::Failed("that is no name of an encoding".into()));
    }
    let mut command = Command::new("iconv");
    child::pipe_through(command.args(["-f", "UTF-8", "-t", name]).stderr(Stdio::null()), content)
}
