//! The files that `git clone` checks out are the measure: every blob of a commit is converted by us
//! and compared with the file that git wrote for it under the same configuration.

use std::io::Write;
use std::process::Stdio;

use super::*;
use crate::gittest::{Sandbox, command, git, skip};
use crate::object::from_gix;

type File = (String, Vec<u8>);

/// Commits `files` as they are, whatever their attributes say.
fn commit_raw(repository: &Path, files: &[File]) {
    let mut import = command(repository, &["fast-import", "--quiet", "--force"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = import.stdin.take().unwrap();
    stdin
        .write_all(
            b"commit refs/heads/main\ncommitter C <c@example.com> 1700000000 +0000\ndata 1\nm\n",
        )
        .unwrap();
    for (path, content) in files {
        write!(stdin, "M 100644 inline {path}\ndata {}\n", content.len()).unwrap();
        stdin.write_all(content).unwrap();
        stdin.write_all(b"\n").unwrap();
    }
    drop(stdin);
    assert!(import.wait().unwrap().success());
}

/// Clones `source` with `configuration` into a checkout.
fn checkout(sandbox: &Sandbox, source: &Path, configuration: &[&str]) -> Result<PathBuf, String> {
    let into = sandbox.path("checkout");
    let _ = std::fs::remove_dir_all(&into);
    let mut arguments = vec!["clone", "-q"];
    for setting in configuration {
        arguments.extend(["-c", setting]);
    }
    if sandbox.path("template").exists() {
        arguments.extend(["--template", "template"]);
    }
    arguments.extend([source.to_str().unwrap(), into.to_str().unwrap()]);
    let output = command(&sandbox.path(""), &arguments).output().unwrap();
    if output.status.success() {
        return Ok(into);
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn scopes(
    tree: &gix::Tree<'_>,
    scope: &Scope,
    visit: &mut dyn FnMut(&Scope, &[u8], gix::Object<'_>),
) {
    let attributes =
        tree.find_entry(".gitattributes").map(|entry| entry.object().unwrap().detach().data);
    // The caller has entered the directory without its file; enter it again with it.
    let scope = match &scope.level {
        None => scope.enter(b"", attributes.as_deref()).unwrap(),
        Some(level) => {
            let above = Scope { plan: Arc::clone(&scope.plan), level: level.above.clone() };
            above.enter(&level.name, attributes.as_deref()).unwrap()
        }
    };
    for entry in tree.iter().map(Result::unwrap) {
        let object = entry.object().unwrap();
        if entry.mode().is_tree() {
            let below = scope.enter(entry.filename(), None).unwrap();
            scopes(&object.into_tree(), &below, visit);
        } else {
            visit(&scope, entry.filename(), object);
        }
    }
}

/// Converts everything in the checkout's commit and compares; returns how many files changed.
fn compare(checkout: &Path) -> usize {
    let repository = gix::open(checkout).unwrap();
    let plan = Plan::of(&repository, None).unwrap();
    let tree = repository.head_tree().unwrap();
    let mut changed = 0;
    scopes(&tree, &plan.root(), &mut |scope, name, object| {
        let path = scope.path(name);
        let expected = std::fs::read(checkout.join(path.to_str().unwrap())).unwrap();
        let oid = from_gix(&object.id).unwrap();
        let converted = scope.convert(name, &oid, &oid, &object.data).unwrap();
        changed += usize::from(converted.is_some());
        assert!(
            scope.needs_conversion(name) || converted.is_none(),
            "{path} is converted without need"
        );
        let converted = converted.unwrap_or_else(|| object.data.clone());
        assert!(
            converted == expected,
            "{path}: ours {:?}, git's {:?}",
            converted.as_bstr(),
            expected.as_bstr()
        );
    });
    changed
}

/// Contents that the conversions treat differently.
fn contents() -> Vec<(&'static str, Vec<u8>)> {
    let mut bytes: Vec<u8> = (0..=255).collect();
    bytes.push(b'\n');
    let mut long = b"$Id$ a line of text\n".repeat(5000);
    long.extend_from_slice(b"$Id: x");
    vec![
        ("empty", vec![]),
        ("lf", b"one\ntwo\n".to_vec()),
        ("crlf", b"one\r\ntwo\r\n".to_vec()),
        ("mixed", b"one\r\ntwo\nthree\r\r\n".to_vec()),
        ("cr", b"one\rtwo\n".to_vec()),
        ("unended", b"one\ntwo".to_vec()),
        ("nul", b"one\n\0two\n".to_vec()),
        ("bytes", bytes),
        ("ctrl-z", b"one\ntwo\n\x1a".to_vec()),
        ("controls", b"\x01\x02\x03\n".to_vec()),
        ("utf8", "h\u{e9}llo \u{20ac} \u{1f600}\n\u{3042}\n".into()),
        ("latin", "h\u{e9}llo\n\u{a0}\u{ff}\n".into()),
        ("japanese", "\u{3042}\u{30a2}\u{4e9c}\\~\n".into()),
        ("mark", "\u{feff}marked\n".into()),
        ("invalid", b"\xff\xfe\n".to_vec()),
        ("long", long),
        ("id", b"$Id$\n".to_vec()),
        ("id-expanded", b"a $Id: 0123456789 $ b\n$Id:$ $Id: $ $Id:x$ $Id: x$\n".to_vec()),
        ("id-foreign", b"$Id: foo.c 1.2 user $\n$Id:foo bar$ $Id:  x$ $Id: a\tb$\n".to_vec()),
        ("id-broken", b"$Id: no end\n$Id$ $Idx $Id:\n$ $id$ $ID$ $Id".to_vec()),
        ("id-dollars", b"$$Id$ $Id$Id$ $Id:$Id$ $ $I $I$Id$\n$Id: a$b$Id$".to_vec()),
        ("id-close", b"$Idx$Id: a$ $Idx$Id: b c$\n$Idy$Id$\n".to_vec()),
        ("id-nul", b"$Id\0$Id$ $Id: \0x y$ $Id: x \0$\n$Id$".to_vec()),
        ("id-unended", b"text $Id: never".to_vec()),
    ]
}

const ATTRIBUTE_SETS: &[&str] = &[
    "other",
    "text",
    "-text",
    "!text",
    "text=auto",
    "text=input",
    "text=weird",
    "eol=crlf",
    "eol=lf",
    "eol=CRLF",
    "text eol=crlf",
    "text eol=lf",
    "text=auto eol=crlf",
    "text=auto eol=lf",
    "-text eol=crlf",
    "crlf",
    "-crlf",
    "crlf=input",
    "crlf=auto",
    "text=auto -crlf",
    "binary",
    "binary eol=crlf",
    "ident",
    "-ident",
    "ident text=auto",
    "ident eol=crlf",
    "ident text=auto eol=crlf",
    "ident -text",
    "working-tree-encoding=UTF-16",
    "working-tree-encoding=UTF-16LE",
    "working-tree-encoding=UTF-16BE",
    "working-tree-encoding=UTF-16LE-BOM",
    "working-tree-encoding=utf-16be-bom",
    "working-tree-encoding=utf16",
    "working-tree-encoding=UTF-32",
    "working-tree-encoding=UTF-32BE",
    "working-tree-encoding=utf-32le",
    "working-tree-encoding=UTF-8",
    "working-tree-encoding=utf8",
    "working-tree-encoding=",
    "working-tree-encoding=ISO-8859-1",
    "working-tree-encoding=latin-1",
    "working-tree-encoding=SHIFT-JIS",
    "working-tree-encoding=nonsense",
    "text eol=crlf working-tree-encoding=UTF-16",
    "ident working-tree-encoding=UTF-16LE",
    "filter=upper",
    "filter=missing",
    "filter=clean-only",
    "filter=fails",
    "filter=empty",
    "filter=path",
    "filter=early",
    "filter=upper ident eol=crlf working-tree-encoding=UTF-16",
];

const CONFIGURATIONS: &[&[&str]] = &[
    &[],
    &["core.autocrlf=true"],
    &["core.autocrlf=input"],
    &["core.eol=crlf"],
    &["core.eol=lf"],
    &["core.autocrlf=input", "core.eol=crlf"],
];

const FILTERS: &[&str] = &[
    "filter.upper.smudge=tr a-z A-Z",
    "filter.clean-only.clean=tr a-z A-Z",
    "filter.fails.smudge=echo partial; false",
    "filter.empty.smudge=",
    "filter.path.smudge=echo %f; cat",
    "filter.early.smudge=head -c 2",
];

#[test]
fn every_file_is_what_git_checks_out() {
    let sandbox = Sandbox::new();
    let mut files = Vec::new();
    for (number, set) in ATTRIBUTE_SETS.iter().enumerate() {
        files.push((format!("{number:02}/.gitattributes"), format!("* {set}\n").into_bytes()));
        for (name, content) in contents() {
            files.push((format!("{number:02}/{name}"), content));
        }
    }
    files.push(("plain".into(), b"one\ntwo\n".to_vec()));
    for hash in ["sha1", "sha256"] {
        let source = sandbox.empty_repository(hash, &[&format!("--object-format={hash}")]);
        commit_raw(&source, &files);
        for configuration in CONFIGURATIONS {
            let checkout =
                checkout(&sandbox, &source, &[*configuration, FILTERS].concat()).unwrap();
            let changed = compare(&checkout);
            assert!(changed > 100, "only {changed} files changed under {configuration:?}");
            if hash == "sha256" {
                break;
            }
        }
    }
}

#[test]
fn rules_come_from_every_level_in_the_order_of_git() {
    let sandbox = Sandbox::new();
    let source = sandbox.empty_repository("source", &[]);
    let long = format!("long-line eol=crlf {}\n", "x".repeat(2048));
    let text = |path: &str, content: &str| (path.to_owned(), content.as_bytes().to_vec());
    let mut files = vec![
        text(
            ".gitattributes",
            &format!(
                "# comment\n[attr]dos text eol=crlf\n*.dos dos\n*.undone dos -text\n\
                 *.txt eol=crlf\n!*.neg eol=crlf\n\"quoted name\" eol=crlf\n\
                 a/b/*.deep eol=crlf\n/top eol=crlf\n**/any eol=crlf\na/**/x eol=crlf\n\
                 d/ eol=crlf\nd/* eol=crlf\n[ab]c eol=crlf\n   spaced\t eol=crlf  \r\n\
                 bad -bad-@name eol=crlf\n{long}*.info eol=lf\n*.glob eol=lf\n\
                 *.late never\n[attr]never eol=crlf\n*.lf text=auto eol=lf\n"
            ),
        ),
        text("a/.gitattributes", "*.txt !eol\n[attr]sub eol=crlf\n*.sub sub\n*.dos -text\n"),
        text("a/b/.gitattributes", "*.txt text eol=crlf\nc/*.c eol=crlf\n*.early early\n"),
        text("mark/.gitattributes", "\u{feff}*.txt eol=lf\n*.other eol=crlf\n"),
        text("nul/.gitattributes", "*.one eol=crlf\n\0*.two eol=crlf\n"),
        text("case/.gitattributes", "README eol=crlf\n"),
    ];
    let names = [
        "x.dos",
        "x.undone",
        "x.txt",
        "x.neg",
        "!x.neg",
        "quoted name",
        "x.deep",
        "top",
        "any",
        "x",
        "d/x",
        "d/d/x",
        "ac",
        "bc",
        "cc",
        "spaced",
        "bad",
        "long-line",
        "x.info",
        "x.glob",
        "x.late",
        "x.lf",
        "x.sub",
        "x.early",
        "x.one",
        "x.two",
        "x.other",
        "c/x.c",
        "readme",
        "README",
        "x.user",
        "x.both",
    ];
    for directory in ["", "a/", "a/b/", "a/b/c/", "other/", "mark/", "nul/", "case/"] {
        for name in names {
            files.push(text(&format!("{directory}{name}"), "one\ntwo\n"));
        }
    }
    commit_raw(&source, &files);
    std::fs::create_dir_all(sandbox.path("template/info")).unwrap();
    std::fs::write(
        sandbox.path("template/info/attributes"),
        "\u{feff}*.info eol=crlf\na/x.txt eol=crlf\n[attr]early eol=crlf\n*.both eol=lf\n",
    )
    .unwrap();
    std::fs::write(
        sandbox.path("user"),
        "*.glob eol=crlf\n*.user dos\n*.both eol=crlf\na/b/x eol=crlf\n",
    )
    .unwrap();
    let user = format!("core.attributesFile={}", sandbox.path("user").display());
    for configuration in [&[user.as_str()][..], &[&user, "core.ignoreCase=true"], &[]] {
        let checkout = checkout(&sandbox, &source, configuration).unwrap();
        let changed = compare(&checkout);
        assert!(changed > 40, "only {changed} files changed");
    }
}

#[test]
fn a_required_filter_and_a_wrong_encoding_fail_as_in_git() {
    let sandbox = Sandbox::new();
    let fails = |name: &str, attributes: &str, configuration: &[&str]| {
        let source = sandbox.empty_repository(name, &[]);
        let attributes = format!("dir/file {attributes}\n").into_bytes();
        commit_raw(
            &source,
            &[(".gitattributes".into(), attributes), ("dir/file".into(), b"text\n".to_vec())],
        );
        let theirs = checkout(&sandbox, &source, configuration);
        let repository = gix::open_opts(
            &source,
            gix::open::Options::default().config_overrides(configuration.iter().copied()),
        )
        .unwrap();
        let mut ours = Ok(());
        let tree = repository.rev_parse_single("main").unwrap().object().unwrap();
        let plan = Plan::of(&repository, None).unwrap();
        scopes(&tree.peel_to_tree().unwrap(), &plan.root(), &mut |scope, name, object| {
            let oid = from_gix(&object.id).unwrap();
            if let Err(error) = scope.convert(name, &oid, &oid, &object.data) {
                assert!(matches!(&error, Error::Conversion { path, .. } if path == "dir/file"));
                assert!(scope.needs_conversion(name));
                ours = Err(error.to_string());
            }
        });
        assert_eq!(ours.is_err(), theirs.is_err(), "{name}: ours {ours:?}, git's {theirs:?}");
        ours.is_err()
    };
    let required = "filter.x.required=true";
    assert!(fails("program", "filter=x", &["filter.x.smudge=false", required]));
    assert!(fails("missing", "filter=x", &["filter.x.smudge=/no/such/program", required]));
    assert!(fails("clean", "filter=x", &["filter.x.clean=cat", required]));
    assert!(fails("process", "filter=x", &["filter.x.process=false", required]));
    assert!(fails("set", "working-tree-encoding", &[]));
    assert!(!fails("unset", "-working-tree-encoding", &[]));
    // An optional process that ends at once is not compared: what git says of it is a race.
    assert!(!fails("gone", "filter=x", &["filter.x.smudge=/no/such/program"]));
    assert!(!fails("nothing", "filter=x", &[required]));
    assert!(!fails("fine", "filter=x", &["filter.x.smudge=cat", required]));
}

/// A filter that stays running: it turns text to upper case, and fails or gives up where the path
/// says so.
const PROCESS: &str = r#"
import sys
i, o = sys.stdin.buffer, sys.stdout.buffer
def read():
    size = int(i.read(4) or b"0", 16)
    return i.read(size - 4) if size else None
def lines():
    return list(iter(read, None))
def send(*packets):
    for packet in packets:
        o.write(b"%04x" % (len(packet) + 4) + packet if packet is not None else b"0000")
    o.flush()
lines(); send(b"git-filter-server\n", b"version=2\n", None)
lines(); send(b"capability=clean\n", b"capability=smudge\n", None)
while True:
    header = i.read(4)
    if not header: break
    meta = [i.read(int(header, 16) - 4)] + lines()
    path = [line for line in meta if line.startswith(b"pathname=")][0]
    data = b"".join(lines())
    if b"error" in path: send(b"status=error\n", None)
    elif b"abort" in path: send(b"status=abort\n", None)
    elif b"late" in path: send(b"status=success\n", None, data[:3], None, b"status=error\n", None)
    else:
        send(b"status=success\n", None)
        data = data.upper()
        for at in range(0, len(data), 60000): send(data[at:at + 60000])
        send(None, None)
"#;

#[test]
fn a_filter_that_stays_running() {
    let sandbox = Sandbox::new();
    if std::process::Command::new("python3").arg("--version").output().is_err() {
        return skip("there is no python3");
    }
    std::fs::write(sandbox.path("filter.py"), PROCESS).unwrap();
    let source = sandbox.empty_repository("source", &[]);
    let mut files = vec![(".gitattributes".to_owned(), b"* filter=up\n.* -filter\n".to_vec())];
    for (name, content) in contents() {
        files.push((format!("a/{name}"), content.clone()));
        files.push((format!("b/{name}"), [content.as_slice(); 3].concat()));
    }
    for name in ["error", "late", "zero"] {
        files.push((name.to_owned(), b"text\n".to_vec()));
    }
    commit_raw(&source, &files);
    let process = format!("filter.up.process=python3 {}", sandbox.path("filter.py").display());
    let configuration = [process.as_str(), "filter.up.smudge=tr a-z x"];
    assert!(compare(&checkout(&sandbox, &source, &configuration).unwrap()) > 40);
    // After this path git sends it nothing any more.
    files.push(("y-abort".into(), b"text\n".to_vec()));
    commit_raw(&source, &files);
    compare(&checkout(&sandbox, &source, &configuration).unwrap());
}

fn scope_of(plan: &Plan, root: &str, directory: &str, file: &str) -> Scope {
    let scope = plan.root().enter(b"", Some(root.as_bytes())).unwrap();
    let below =
        directory.split('/').fold(scope, |scope, name| scope.enter(name.as_bytes(), None).unwrap());
    match file {
        "" => below,
        file => below.enter(b"last", Some(file.as_bytes())).unwrap(),
    }
}

#[test]
fn contexts_tell_apart_what_matters_and_nothing_else() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source");
    let plan = |settings: &[&str]| {
        let options = gix::open::Options::isolated().config_overrides(settings.iter().copied());
        Plan::of(&gix::open_opts(&source, options).unwrap(), None).unwrap()
    };
    let none = plan(&[]);
    let context =
        |plan: &Plan, root: &str, directory: &str| scope_of(plan, root, directory, "").context();
    // Nothing to convert: no context, no work, wherever it is.
    for root in ["", "*.png diff=exif -merge\n*.rs linguist-language=Rust\n", "# eol=crlf\n"] {
        assert_eq!(context(&none, root, "a/b"), [0; 32], "{root}");
    }
    for root in ["* text=auto\n*.sh eol=lf\n*.png binary\n", "*.bin filter=lfs\n"] {
        let scope = scope_of(&none, root, "a", "");
        assert!(!scope.level.as_ref().unwrap().effective);
        assert!(!scope.needs_conversion(b"x.sh"));
        assert_ne!(scope.context(), [0; 32], "a file below may build on these rules");
    }
    // Names match anywhere, paths only where they are.
    let names = "*.txt eol=crlf\n";
    assert_eq!(context(&none, names, "a"), context(&none, names, "b/c"));
    for paths in ["a/*.txt eol=crlf\n", "/x eol=crlf\n"] {
        assert_ne!(context(&none, paths, "a"), context(&none, paths, "b"));
    }
    assert_ne!(context(&none, names, "a"), context(&none, "*.txt eol=crlf -text\n", "a"));
    assert_eq!(
        context(&none, names, "a"),
        context(&none, "*.rs diff=rust\n*.txt eol=crlf\n", "a"),
        "other attributes do not matter"
    );
    // A file of its own below is part of what is inherited further down.
    let with = |file| scope_of(&none, names, "a", file).enter(b"x", None).unwrap().context();
    assert_ne!(with("*.c ident\n"), with("*.h ident\n"));
    assert_eq!(with("*.c diff=c\n"), with("*.c diff=d\n"));
    // The configuration is part of it.
    let settings: [&[&str]; 6] = [
        &["core.autocrlf=true"],
        &["core.eol=crlf"],
        &["filter.lfs.smudge=a"],
        &["filter.lfs.smudge=b"],
        &["filter.lfs.process=a"],
        &["core.ignoreCase=true"],
    ];
    let contexts: std::collections::HashSet<_> =
        settings.iter().map(|settings| context(&plan(settings), "", "a")).collect();
    assert_eq!(contexts.len(), settings.len());
    assert_eq!(context(&plan(&["core.autocrlf=input"]), "", "a"), [0; 32]);
}

#[test]
fn what_grows_beyond_the_limit_is_refused() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source");
    let options =
        gix::open::Options::isolated().config_overrides(["filter.endless.smudge=cat /dev/zero"]);
    let plan = Plan::of(&gix::open_opts(&source, options).unwrap(), None).unwrap();
    let scope = scope_of(&plan, "*.id ident\n*.zero filter=endless\n", "a", "");
    let oid = from_gix(&gix::open(&source).unwrap().head_id().unwrap()).unwrap();
    let bomb = b"$Id$".repeat(13 << 20);
    let refused = scope.convert(b"x.id", &oid, &oid, &bomb);
    assert!(matches!(refused, Err(Error::TooLarge { .. })));
    let refused = scope.convert(b"x.zero", &oid, &oid, b"x");
    assert!(matches!(refused, Err(Error::TooLarge { .. })));
}

#[test]
fn deep_chains_of_attribute_files_stay_small() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source");
    let plan =
        Plan::of(&gix::open_opts(&source, gix::open::Options::isolated()).unwrap(), None).unwrap();
    let file = "*.txt eol=crlf\n".repeat(1000);
    let mut scope = plan.root().enter(b"", None).unwrap();
    let mut all = Vec::new();
    for _ in 0..1000 {
        scope = scope.enter(&[b'n'; 255], Some(file.as_bytes())).unwrap();
        all.push(scope.clone());
    }
    assert!(scope.needs_conversion(b"x.txt"));
    assert!(!scope.needs_conversion(b"x.rs"));
    assert_eq!(scope.path(b"x").len(), 1000 * 256 + 1);
    drop(git(&source, &["status"]));
}
