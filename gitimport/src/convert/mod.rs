//! What a checkout makes of a blob: line endings, `$Id$`, encodings and filter drivers, as the
//! attributes of its path and the user's configuration demand.
//!
//! The measure is what git writes, byte for byte. gix matches attributes, converts line endings and
//! speaks with filter drivers; keywords and encodings are ours, since those of gix differ from
//! git's. A driver that is not configured leaves the file as it is: the pointer of git-lfs stays.
//!
//! Filter programs run with `GIT_DIR` set. While a tree is imported there is no worktree of it, so
//! they start in the main worktree of the repository if it has one.

mod child;
mod encoding;
mod filter;
mod ident;
mod rules;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agentfs_engine::{ContentId, GitOid};
use gix::attrs::search::{MetadataCollection, Outcome};
use gix::attrs::{AssignmentRef, Search, StateRef};
use gix::bstr::{BStr, BString, ByteSlice};
use gix::filter::plumbing::Driver;
use gix::filter::plumbing::eol::{self, AttributesDigest, AutoCrlf, Mode};
use gix::glob::pattern::Case;

use self::filter::Filters;
use self::rules::{ATTRIBUTES, Effect, Macros, Rules};
use crate::error::{Error, Result};
use crate::limits::CONVERTED_BYTES_MAX;
use crate::repository::Repository;

/// Part of every context, to be changed when the same rules lead to other bytes.
const CONTEXT_VERSION: u8 = 1;
/// The macro that git knows without being told.
const BUILTIN: &[u8] = b"[attr]binary -diff -merge -text\n";

/// The conversions of one repository, with everything that is not in its trees: configuration and
/// the attribute files outside of them, as they were when the plan was made.
#[derive(Clone)]
pub struct Plan(Arc<Inner>);

struct Inner {
    eol: eol::Configuration,
    case: Case,
    drivers: Vec<Driver>,
    filters: Filters,
    /// Attribute files of the machine and of the user, weakest first.
    outer: Vec<u8>,
    /// `info/attributes`, which overrides all others.
    info: Vec<u8>,
    /// What the configuration contributes to a context; `None` for none.
    configuration: Option<[u8; 32]>,
    /// What replaced objects contribute to it.
    replaced: Option<[u8; 32]>,
}

/// What applies in one directory: the attribute files above it and in it.
#[derive(Clone)]
pub struct Scope {
    plan: Arc<Inner>,
    /// `None` above the root.
    level: Option<Arc<Level>>,
}

struct Level {
    above: Option<Arc<Level>>,
    name: Box<[u8]>,
    /// The rules of the directory itself.
    own: Option<Search>,
    /// In the root, the rules around the tree; the levels below have none.
    outer: Option<Search>,
    info: Option<Arc<Search>>,
    macros: Arc<Macros>,
    attributes: Arc<MetadataCollection>,
    /// Whether any rule can lead to a conversion.
    effective: bool,
    /// Whether what any rule does depends on the path.
    by_path: bool,
    /// All rules in force; `None` if there are none.
    rules: Option<[u8; 32]>,
    path: [u8; 32],
}

/// Why a conversion gave no output.
enum Failure {
    /// A program failed or could not be run, or the content cannot be converted.
    Failed(String),
    /// The output exceeds [`CONVERTED_BYTES_MAX`].
    TooLarge,
}

impl Failure {
    fn failed(why: &dyn fmt::Display) -> Self {
        Self::Failed(why.to_string())
    }
}

/// What is to be done to one file.
struct Action<'a> {
    ident: bool,
    eol: AttributesDigest,
    encoding: Option<BString>,
    driver: Option<&'a Driver>,
}

impl Plan {
    /// The conversions of `repository`.
    ///
    /// # Errors
    /// [`Error::Git`] for configuration that cannot be read, [`Error::Io`] for attribute files.
    pub fn new(repository: &Repository) -> Result<Self> {
        Self::of(&repository.gix(), repository.replacements().context())
    }

    fn of(repository: &gix::Repository, replaced: Option<[u8; 32]>) -> Result<Self> {
        let failed = |error: gix::Error| Error::Git {
            action: "read the configuration of conversions".into(),
            git_dir: repository.git_dir().to_owned(),
            source: error.into(),
        };
        let options = gix::filter::Pipeline::options(repository).map_err(failed)?;
        let drivers: Vec<Driver> = options
            .drivers
            .into_iter()
            .filter(|driver| {
                driver.clean.is_some() || driver.smudge.is_some() || driver.process.is_some()
            })
            .map(filter::normalized)
            .collect();
        let config = repository.config_snapshot();
        let ignore_case = config.boolean("core.ignoreCase").unwrap_or(false);
        let mut outer = BUILTIN.to_vec();
        for path in outer_files(&config) {
            outer.extend_from_slice(&read_if_there(&path)?);
            outer.push(b'\n');
        }
        let info = read_if_there(&repository.common_dir().join("info/attributes"))?;
        let configuration = configuration_id(&options.eol_config, ignore_case, &drivers);
        Ok(Self(Arc::new(Inner {
            eol: options.eol_config,
            case: if ignore_case { Case::Fold } else { Case::Sensitive },
            drivers,
            filters: Filters::new(repository.command_context().map_err(failed)?),
            outer,
            info,
            configuration,
            replaced,
        })))
    }

    /// The scope above the root directory, which is entered with an empty name.
    pub fn root(&self) -> Scope {
        Scope { plan: Arc::clone(&self.0), level: None }
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("eol", &self.0.eol).finish_non_exhaustive()
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("path", &self.path(b"").as_bstr()).finish_non_exhaustive()
    }
}

/// The attribute files outside of any repository, weakest first.
fn outer_files(config: &gix::config::Snapshot<'_>) -> Vec<PathBuf> {
    let location =
        |source: gix::attrs::Source| source.storage_location(&mut |name| gix::path::env::var(name));
    let user = match config.trusted_path("core.attributesFile") {
        Ok(Some(path)) => Some(path),
        _ => location(gix::attrs::Source::Git),
    };
    location(gix::attrs::Source::System).into_iter().chain(user).collect()
}

/// An attribute file outside of a tree; empty if there is none.
fn read_if_there(path: &Path) -> Result<Vec<u8>> {
    match std::fs::read(path) {
        Ok(file) => Ok(match file.strip_prefix(rules::BYTE_ORDER_MARK) {
            Some(rest) => rest.to_vec(),
            None => file,
        }),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        Err(source) => Err(Error::io("read", path, source)),
    }
}

fn configuration_id(
    eol: &eol::Configuration,
    ignore_case: bool,
    drivers: &[Driver],
) -> Option<[u8; 32]> {
    let crlf = eol.to_eol() == Mode::CrLf;
    if !crlf && !ignore_case && drivers.is_empty() {
        return None;
    }
    let mut id = Digest::default();
    id.add(&[u8::from(crlf), u8::from(eol.auto_crlf == AutoCrlf::Enabled), u8::from(ignore_case)]);
    for driver in drivers {
        id.add(&driver.name);
        for program in [&driver.clean, &driver.smudge, &driver.process] {
            id.add(&[u8::from(program.is_some())]);
            id.add(program.as_ref().map_or(b"", |program| program.as_slice()));
        }
        id.add(&[u8::from(driver.required)]);
    }
    Some(id.finish())
}

impl Inner {
    /// What an assignment alone can lead to.
    fn effect(&self, assignment: &AssignmentRef<'_>) -> Effect {
        let value = match assignment.state {
            StateRef::Value(value) => Some(value.as_bstr()),
            _ => None,
        };
        let set = value.is_some() || assignment.state == StateRef::Set;
        let converts = match assignment.name.as_str() {
            "text" | "crlf" => set && self.eol.to_eol() == Mode::CrLf,
            "eol" => value == Some("crlf".into()),
            "ident" => assignment.state == StateRef::Set,
            "working-tree-encoding" => set,
            "filter" if value.is_some_and(|name| self.driver(name).is_some()) => {
                return Effect::Program;
            }
            _ => false,
        };
        if converts { Effect::Content } else { Effect::None }
    }

    fn driver(&self, name: &BStr) -> Option<&Driver> {
        self.drivers.iter().find(|driver| driver.name == *name)
    }

    fn rules(&self, file: &[u8], macros: &Macros, may_define: bool) -> Rules {
        Rules::of(file, macros, may_define, |assignment| self.effect(assignment))
    }
}

impl Scope {
    /// Enters the directory `name`, whose `.gitattributes` file, if it is a regular one, holds
    /// `gitattributes`. From the scope of [`Plan::root`] the root directory is entered.
    ///
    /// # Errors
    /// [`Error::Io`] if the rules cannot be kept.
    pub fn enter(&self, name: &[u8], gitattributes: Option<&[u8]>) -> Result<Self> {
        let level = match &self.level {
            None => self.root_level(gitattributes.unwrap_or_default())?,
            Some(above) => self.level_below(above, name, gitattributes.unwrap_or_default())?,
        };
        Ok(Self { plan: Arc::clone(&self.plan), level: Some(Arc::new(level)) })
    }

    fn root_level(&self, file: &[u8]) -> Result<Level> {
        let plan = &*self.plan;
        let mut macros = Macros::new();
        for file in [&plan.outer, file, &plan.info] {
            rules::add_macros(file, &mut macros);
        }
        // The definition of a macro that is read last holds, as that of the strongest file does.
        let all = [plan.outer.as_slice(), file, &plan.info].map(|f| plan.rules(f, &macros, true));
        let mut attributes = MetadataCollection::default();
        let [outer, own, info] = all.each_ref().map(|rules| rules.search(&mut attributes));
        let kept = |search: std::io::Result<Search>| {
            search.map_err(|source| Error::io("parse", ".gitattributes".as_ref(), source))
        };
        let mut digest = Digest::default();
        all.iter().for_each(|rules| digest.add(&rules.lines));
        let some = all.iter().any(|rules| rules.lines != BUILTIN && !rules.lines.is_empty());
        Ok(Level {
            above: None,
            name: Box::default(),
            own: Some(kept(own)?),
            outer: Some(kept(outer)?),
            info: Some(Arc::new(kept(info)?)),
            macros: Arc::new(macros),
            attributes: Arc::new(attributes),
            effective: plan.eol.auto_crlf == AutoCrlf::Enabled
                || all.iter().any(|rules| rules.effective),
            by_path: all.iter().any(|rules| rules.by_path),
            rules: some.then(|| digest.finish()),
            path: [0; 32],
        })
    }

    fn level_below(&self, above: &Arc<Level>, name: &[u8], file: &[u8]) -> Result<Level> {
        let rules = self.plan.rules(file, &above.macros, false);
        let mut attributes = Arc::clone(&above.attributes);
        let mut own = None;
        let mut digest = above.rules;
        if !rules.lines.is_empty() {
            let search = rules.search(Arc::make_mut(&mut attributes));
            own = Some(
                search.map_err(|source| Error::io("parse", ".gitattributes".as_ref(), source))?,
            );
            let mut chain = Digest::default();
            chain.add(&above.rules.unwrap_or_default());
            chain.add(&rules.lines);
            digest = Some(chain.finish());
        }
        let mut path = Digest::default();
        path.add(&above.path);
        path.add(name);
        Ok(Level {
            above: Some(Arc::clone(above)),
            name: name.into(),
            own,
            outer: None,
            info: above.info.clone(),
            macros: Arc::clone(&above.macros),
            attributes,
            effective: above.effective || rules.effective,
            by_path: above.by_path || rules.by_path,
            rules: digest,
            path: path.finish(),
        })
    }

    /// Everything outside of a subtree that decides how its files are converted: where a git tree
    /// has been imported under the same context, the result can be used again. All zero if there is
    /// nothing.
    pub fn context(&self) -> [u8; 32] {
        let rules = self.level.as_ref().and_then(|level| level.rules);
        let Inner { configuration, replaced, .. } = &*self.plan;
        if rules.is_none() && configuration.is_none() && replaced.is_none() {
            return [0; 32];
        }
        let mut context = Digest::default();
        context.add(&[CONTEXT_VERSION]);
        context.add(&configuration.unwrap_or_default());
        context.add(&rules.unwrap_or_default());
        if let Some(level) = self.level.as_ref().filter(|level| level.by_path) {
            context.add(&level.path);
        }
        if let Some(replaced) = replaced {
            context.add(b"replaced");
            context.add(replaced);
        }
        context.finish()
    }

    /// Whether the file `name` of this directory may change when it is checked out. False costs
    /// next to nothing where no rule can convert anything.
    pub fn needs_conversion(&self, name: &[u8]) -> bool {
        let Some(level) = self.level.as_ref().filter(|level| level.effective) else {
            return false;
        };
        let action = self.action(level, self.path(name).as_bstr());
        action.ident
            || action.eol.to_eol(self.plan.eol) == Some(Mode::CrLf)
            || action.encoding.is_some()
            || action.driver.is_some()
    }

    /// What a checkout writes for the file `name` of this directory whose blob `oid` is `bytes`;
    /// `None` if that is the blob itself. `held` is the object that has these bytes: `oid`, unless
    /// that is replaced.
    ///
    /// # Errors
    /// [`Error::Conversion`] where `git checkout` would fail, [`Error::TooLarge`] past a limit.
    pub fn convert(
        &self,
        name: &[u8],
        oid: &GitOid,
        held: &GitOid,
        bytes: &[u8],
    ) -> Result<Option<Vec<u8>>> {
        let Some(level) = self.level.as_ref().filter(|level| level.effective) else {
            return Ok(None);
        };
        let path = self.path(name);
        let action = self.action(level, path.as_bstr());
        let mut content = Cow::Borrowed(bytes);
        if action.ident {
            let grown = bytes.len() as u64 + ident::growth(bytes, oid);
            if grown > CONVERTED_BYTES_MAX {
                return Err(too_large(&path, grown));
            }
            let streamed = action.is_streamed();
            let shown = if streamed { oid } else { held };
            if let Some(expanded) = ident::expand(bytes, shown, streamed) {
                content = expanded.into();
            }
        }
        let mut converted = Vec::new();
        match eol::convert_to_worktree(&content, action.eol, &mut converted, self.plan.eol) {
            Ok(true) => content = converted.into(),
            Ok(false) => {}
            Err(error) => return Err(failed(&path, error.to_string())),
        }
        if let Some(name) = &action.encoding {
            content = encode(&path, name.as_bstr(), content)?;
        }
        if let Some(driver) = action.driver {
            content = self.smudge(driver, &path, oid, content)?;
        }
        Ok(match content {
            Cow::Owned(content) if content != bytes => Some(content),
            _ => None,
        })
    }

    fn smudge<'a>(
        &self,
        driver: &Driver,
        path: &[u8],
        oid: &GitOid,
        content: Cow<'a, [u8]>,
    ) -> Result<Cow<'a, [u8]>> {
        let why = match self.plan.filters.smudge(driver, path.as_bstr(), oid, &content) {
            Ok(Some(output)) => return Ok(output.into()),
            Ok(None) => "it has no smudge program".to_owned(),
            Err(Failure::Failed(why)) => why,
            Err(Failure::TooLarge) => return Err(too_large(path, CONVERTED_BYTES_MAX + 1)),
        };
        if driver.required {
            return Err(failed(path, format!("filter {} is required: {why}", driver.name)));
        }
        tracing::debug!(path = %path.as_bstr(), filter = %driver.name, %why, "not filtered");
        Ok(content)
    }

    /// The path of `name` in this directory, from the root.
    fn path(&self, name: &[u8]) -> BString {
        let mut names = vec![name];
        let mut level = self.level.as_ref();
        while let Some(at) = level {
            names.push(&at.name);
            level = at.above.as_ref();
        }
        names.reverse();
        // The root has no name.
        names.get(1..).unwrap_or_default().join(&b'/').into()
    }

    fn action(&self, level: &Arc<Level>, path: &BStr) -> Action<'_> {
        let mut found = Outcome::default();
        found.initialize_with_selection(&level.attributes, ATTRIBUTES);
        level.match_all(path, self.plan.case, &mut found);
        let mut states = found.iter_selected().map(|found| found.assignment.state);
        let [text, crlf, eol, ident, encoding, filter] =
            ATTRIBUTES.map(|_| states.next().unwrap_or(StateRef::Unspecified));
        Action {
            ident: ident == StateRef::Set,
            eol: line_endings(text, crlf, eol, self.plan.eol),
            encoding: encoding_name(encoding),
            driver: match filter {
                StateRef::Value(name) => self.plan.driver(name.as_bstr()),
                _ => None,
            },
        }
    }
}

impl Level {
    /// Matches `path` against all rules in force, the strongest first: the first value that an
    /// attribute gets is its value.
    fn match_all(&self, path: &BStr, case: Case, found: &mut Outcome) {
        if let Some(info) = &self.info {
            info.pattern_matching_relative_path(path, case, Some(false), found);
        }
        let name = path.rfind_byte(b'/').map_or(0, |slash| slash + 1);
        let (mut level, mut start) = (Some(self), name);
        while let Some(at) = level.filter(|_| !found.is_done()) {
            if let Some(own) = &at.own {
                own.pattern_matching_relative_path(
                    path[start..].as_bstr(),
                    case,
                    Some(false),
                    found,
                );
            }
            if let Some(outer) = &at.outer {
                outer.pattern_matching_relative_path(path, case, Some(false), found);
            }
            start = start.saturating_sub(at.name.len() + 1);
            level = at.above.as_deref();
        }
    }
}

impl Action<'_> {
    /// Whether git would convert the file while it writes it.
    fn is_streamed(&self) -> bool {
        self.driver.is_none()
            && self.encoding.is_none()
            && !matches!(self.eol, AttributesDigest::TextAuto | AttributesDigest::TextAutoCrlf)
    }
}

/// What the attributes and the configuration say about line endings, as git combines them.
fn line_endings(
    text: StateRef<'_>,
    crlf: StateRef<'_>,
    eol: StateRef<'_>,
    configuration: eol::Configuration,
) -> AttributesDigest {
    use AttributesDigest::{
        Binary, Text, TextAuto, TextAutoCrlf, TextAutoInput, TextCrlf, TextInput,
    };
    let kind = |state: StateRef<'_>| match state {
        StateRef::Set => Some(Text),
        StateRef::Unset => Some(Binary),
        StateRef::Value(value) if value.as_bstr() == "input" => Some(TextInput),
        StateRef::Value(value) if value.as_bstr() == "auto" => Some(TextAuto),
        _ => None,
    };
    let said = match eol {
        StateRef::Value(value) if value.as_bstr() == "lf" => Some(Mode::Lf),
        StateRef::Value(value) if value.as_bstr() == "crlf" => Some(Mode::CrLf),
        _ => None,
    };
    match (kind(text).or_else(|| kind(crlf)), said) {
        (Some(Binary), _) => Binary,
        (Some(TextAuto), Some(Mode::Lf)) => TextAutoInput,
        (Some(TextAuto), Some(Mode::CrLf)) => TextAutoCrlf,
        (_, Some(Mode::Lf)) => TextInput,
        (_, Some(Mode::CrLf)) => TextCrlf,
        (Some(Text), None) => configuration.to_eol().into(),
        (Some(other), None) => other,
        (None, None) => configuration.auto_crlf.into(),
    }
}

/// The encoding of a file that is not UTF-8. A name that is none is kept, to be refused.
fn encoding_name(state: StateRef<'_>) -> Option<BString> {
    match state {
        StateRef::Value(name) if name.as_bstr().is_empty() => None,
        StateRef::Value(name) if encoding::is_utf8(name.as_bstr()) => None,
        StateRef::Value(name) => Some(name.as_bstr().to_owned()),
        StateRef::Set => Some(BString::default()),
        StateRef::Unset | StateRef::Unspecified => None,
    }
}

fn encode<'a>(path: &[u8], name: &BStr, content: Cow<'a, [u8]>) -> Result<Cow<'a, [u8]>> {
    if name.is_empty() {
        return Err(failed(path, "working-tree-encoding has no value".into()));
    }
    if content.is_empty() {
        return Ok(content);
    }
    match encoding::encode(&content, name) {
        Ok(encoded) => Ok(encoded.into()),
        Err(Failure::TooLarge) => Err(too_large(path, CONVERTED_BYTES_MAX + 1)),
        Err(Failure::Failed(why)) => {
            tracing::warn!(path = %path.as_bstr(), encoding = %name, %why, "not encoded");
            Ok(content)
        }
    }
}

fn failed(path: &[u8], why: String) -> Error {
    Error::Conversion { path: path.to_str_lossy().into_owned(), why }
}

fn too_large(path: &[u8], size: u64) -> Error {
    let what = format!("{:?} as checked out", path.as_bstr());
    Error::TooLarge { what, size, limit: CONVERTED_BYTES_MAX }
}

/// A blake3 over fields, each with its length.
#[derive(Default)]
struct Digest(Vec<u8>);

impl Digest {
    fn add(&mut self, field: &[u8]) {
        self.0.extend_from_slice(&(field.len() as u64).to_le_bytes());
        self.0.extend_from_slice(field);
    }

    fn finish(self) -> [u8; 32] {
        *ContentId::of(&self.0).as_bytes()
    }
}
