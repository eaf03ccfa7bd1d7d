//! The lines of attribute files that can have a part in conversions.
//!
//! Most repositories say nothing in their `.gitattributes` that changes a file at checkout. Lines
//! about other attributes are dropped here, so that they neither cost a match for every file nor
//! make equal directories look different.

use std::collections::HashSet;

use gix::attrs::parse::Kind;
use gix::attrs::search::MetadataCollection;
use gix::attrs::{AssignmentRef, Search};
use gix::bstr::ByteSlice;
use gix::glob::pattern::Mode;

/// The attributes that decide how a file is converted.
pub(super) const ATTRIBUTES: [&str; 6] =
    ["text", "crlf", "eol", "ident", "working-tree-encoding", "filter"];

/// git skips lines of this length or longer.
const LINE_BYTES_MAX: usize = 2048;

/// git drops it from files outside of a tree, where [`super::Plan`] does the same.
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Names of macros, which are attributes that stand for others.
pub(super) type Macros = HashSet<String>;

/// The relevant lines of one file.
#[derive(Default)]
pub(super) struct Rules {
    /// The lines, each with its line feed.
    pub(super) lines: Vec<u8>,
    /// Whether one of them alone can lead to a conversion.
    pub(super) effective: bool,
    /// Whether what one of them does depends on the path: it matches whole paths, not just names,
    /// or it runs a program, which is told the path.
    pub(super) by_path: bool,
}

/// What an assignment alone can lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// A conversion that depends on the content alone.
    Content,
    /// A conversion by a program that is told the path.
    Program,
}

impl Rules {
    /// Picks the relevant lines of `file`. `effect` tells what an assignment can lead to. Macros may
    /// be defined only in the root and above it.
    pub(super) fn of(
        file: &[u8],
        macros: &Macros,
        may_define: bool,
        effect: impl Fn(&AssignmentRef<'_>) -> Effect,
    ) -> Self {
        let mut rules = Self::default();
        for line in lines(file) {
            let Some(Ok((kind, assignments, _))) = gix::attrs::parse(line).next() else {
                continue;
            };
            let mut relevant = matches!(kind, Kind::Macro(_));
            if relevant && !may_define {
                continue;
            }
            let mut strongest = Effect::None;
            let well_formed = assignments.into_iter().all(|assignment| {
                let Ok(assignment) = assignment else {
                    return false;
                };
                let name = assignment.name.as_str();
                relevant |= ATTRIBUTES.contains(&name) || macros.contains(name);
                strongest = strongest.max(effect(&assignment));
                true
            });
            if !(relevant && well_formed) {
                continue;
            }
            if let Kind::Pattern(pattern) = &kind {
                rules.by_path |= pattern.mode.contains(Mode::ABSOLUTE)
                    || !pattern.mode.contains(Mode::NO_SUB_DIR);
            }
            rules.effective |= strongest != Effect::None;
            rules.by_path |= strongest == Effect::Program;
            rules.lines.extend_from_slice(line);
            rules.lines.push(b'\n');
        }
        rules
    }

    /// The lines in a form that can be matched, with their attributes added to `collection`.
    pub(super) fn search(&self, collection: &mut MetadataCollection) -> std::io::Result<Search> {
        let mut search = Search::default();
        // Paths are matched relative to the directory of the file, so no root is given.
        search.add_patterns_buffer(&self.lines, Default::default(), None, collection, true)?;
        Ok(search)
    }
}

/// Adds the names of the macros that `file` defines.
pub(super) fn add_macros(file: &[u8], macros: &mut Macros) {
    for line in lines(file).filter(|line| line.contains_str("[attr]")) {
        if let Some(Ok((Kind::Macro(name), ..))) = gix::attrs::parse(line).next() {
            macros.insert(name.as_str().to_owned());
        }
    }
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    // To git a file ends at its first NUL.
    let text = file.split(|&byte| byte == 0).next().unwrap_or_default();
    // gix would drop a byte order mark that git takes for part of the first pattern.
    text.split(|&byte| byte == b'\n')
        .filter(|line| line.len() < LINE_BYTES_MAX && !line.starts_with(BYTE_ORDER_MARK))
}
