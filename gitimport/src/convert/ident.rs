//! Expansion of `$Id$` keywords.
//!
//! git has two implementations that differ in corner cases: one for files that it converts in
//! memory, one for those that it converts while it writes them. Which one serves a file depends on
//! its other attributes, so both are here.

use agentfs_engine::GitOid;

const KEYWORD: &[u8] = b"$Id";

/// Expands the keywords of `content`, whose blob is `oid`; `None` if there are none. `streamed`
/// tells which implementation git would use.
pub(super) fn expand(content: &[u8], oid: &GitOid, streamed: bool) -> Option<Vec<u8>> {
    if !content.windows(KEYWORD.len()).any(|window| window == KEYWORD) {
        return None;
    }
    let expansion = format!(": {oid} $").into_bytes();
    let expanded = if streamed {
        Stream::default().run(content, &expansion)
    } else {
        in_memory(content, &expansion)
    };
    (expanded != content).then_some(expanded)
}

/// Bytes that [`expand`] may add.
pub(super) fn growth(content: &[u8], oid: &GitOid) -> u64 {
    let keywords = content.windows(KEYWORD.len()).filter(|window| *window == KEYWORD).count();
    keywords as u64 * (oid.as_bytes().len() as u64 * 2 + 4)
}

fn find(content: &[u8], byte: u8) -> Option<usize> {
    content.iter().position(|&found| found == byte)
}

/// git's `ident_to_worktree`.
fn in_memory(content: &[u8], expansion: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + expansion.len());
    let mut rest = content;
    while let Some(dollar) = find(rest, b'$') {
        out.extend_from_slice(&rest[..=dollar]);
        rest = &rest[dollar + 1..];
        if rest.len() < 3 || !rest.starts_with(b"Id") {
            continue;
        }
        let end = match rest[2] {
            b'$' => 2,
            b':' => {
                let Some(length) = find(&rest[3..], b'$') else {
                    break;
                };
                let value = &rest[3..3 + length];
                let foreign =
                    value.get(1..).and_then(|value| find(value, b' ')).is_some_and(|space| {
                        // Spaces before the last byte: a keyword of another version control.
                        space + 2 < length
                    });
                if value.contains(&b'\n') || foreign {
                    continue;
                }
                3 + length
            }
            _ => continue,
        };
        rest = &rest[end + 1..];
        out.extend_from_slice(b"Id");
        out.extend_from_slice(expansion);
    }
    out.extend_from_slice(rest);
    out
}

/// git's `ident_filter_fn`, which sees one byte at a time, with all that it does to keywords that
/// follow each other closely.
#[derive(Default)]
struct Stream {
    out: Vec<u8>,
    /// Bytes of [`Stream::HEAD`] seen.
    matched: usize,
    /// Where in `out` the bytes start that git holds back.
    held: usize,
    /// Whether the value of a keyword is being read.
    in_value: bool,
}

impl Stream {
    /// The keyword with the NUL that ends it in C, which git compares too.
    const HEAD: &[u8] = b"$Id\0";

    fn run(mut self, content: &[u8], expansion: &[u8]) -> Vec<u8> {
        for &byte in content {
            self.step(byte, expansion);
        }
        self.out.extend_from_slice(&Self::HEAD[..self.matched]);
        self.out
    }

    fn step(&mut self, byte: u8, expansion: &[u8]) {
        if self.in_value {
            self.out.push(byte);
            if byte == b'$' && !is_foreign(&self.out[self.held..]) {
                self.out.truncate(self.held + KEYWORD.len());
                self.out.extend_from_slice(expansion);
            }
            if matches!(byte, b'$' | b'\n') {
                self.release();
            }
            return;
        }
        if Self::HEAD.get(self.matched) == Some(&byte) {
            self.matched += 1;
            return;
        }
        self.out.extend_from_slice(&Self::HEAD[..self.matched]);
        match (self.matched == KEYWORD.len(), byte) {
            (true, b'$') => {
                self.out.extend_from_slice(expansion);
                self.release();
            }
            (true, _) => {
                self.out.push(byte);
                self.matched = 0;
                self.in_value = byte == b':';
            }
            (false, _) => {
                self.out.push(byte);
                self.release();
            }
        }
    }

    fn release(&mut self) {
        self.held = self.out.len();
        self.matched = 0;
        self.in_value = false;
    }
}

/// Whether what git holds back starts with a keyword whose value is not one of git's.
fn is_foreign(held: &[u8]) -> bool {
    let Some(value) = held.strip_prefix(b"$Id: ") else {
        return false;
    };
    let end = find(value, 0).unwrap_or(value.len());
    (0..end).any(|at| {
        matches!(value[at], b' ' | b'\t' | b'\n' | b'\r') && value.get(at + 1) != Some(&b'$')
    })
}
