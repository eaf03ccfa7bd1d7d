//! Goal: the house stays as docs/ARCHITECTURE.md draws it. Dependencies between crates point one
//! way, each outside library has one owner, and only the command line reads the environment or
//! prints. A forbidden edge fails here with its name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What each crate may depend on within the workspace.
const ALLOWED: [(&str, &[&str]); 6] = [
    ("agentfs-engine", &[]),
    ("agentfs-gitimport", &["agentfs-engine"]),
    ("agentfs-fuse", &["agentfs-engine"]),
    ("agentfs", &["agentfs-engine", "agentfs-gitimport", "agentfs-fuse"]),
    ("agentfs-tests", &["agentfs-engine", "agentfs-gitimport", "agentfs-fuse"]),
    ("agentfs-benches", &["agentfs-engine", "agentfs-gitimport", "agentfs-fuse"]),
];

/// Libraries that only one crate may know.
const OWNED: [(&str, &str); 5] = [
    ("gix", "agentfs-gitimport"),
    ("io-uring", "agentfs-fuse"),
    ("redb", "agentfs-engine"),
    ("clap", "agentfs"),
    ("tokio", "agentfs"),
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(workspace())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = |value: &serde_json::Value| value.as_str().expect("a name").to_owned();
    metadata["packages"]
        .as_array()
        .expect("packages")
        .iter()
        .map(|package| {
            let names = package["dependencies"].as_array().expect("dependencies");
            (text(&package["name"]), names.iter().map(|edge| text(&edge["name"])).collect())
        })
        .collect()
}

fn sources(crate_dir: &str) -> Vec<(PathBuf, String)> {
    let mut pending = vec![workspace().join(crate_dir).join("src")];
    let mut files = Vec::new();
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(dir).expect("a source directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                pending.push(path);
            } else {
                let text = std::fs::read_to_string(&path).expect("UTF-8");
                files.push((path, text));
            }
        }
    }
    files
}

#[test]
fn crates_depend_one_way() {
    let found = dependencies();
    assert_eq!(
        found.keys().map(String::as_str).collect::<BTreeSet<_>>(),
        ALLOWED.iter().map(|(name, _)| *name).collect(),
        "a crate was added or renamed: say here what it may depend on"
    );
    for (name, allowed) in ALLOWED {
        for edge in found[name].iter().filter(|edge| edge.starts_with("agentfs")) {
            assert!(allowed.contains(&edge.as_str()), "{name} must not depend on {edge}");
        }
    }
}

#[test]
fn each_outside_library_has_one_owner() {
    let found = dependencies();
    for (library, owner) in OWNED {
        for (name, edges) in &found {
            let outside_tests = name != "agentfs-benches" && name != "agentfs-tests";
            if outside_tests && name != owner {
                assert!(!edges.contains(library), "only {owner} may know {library}, not {name}");
            }
        }
    }
}

#[test]
fn redb_is_known_to_the_store_alone() {
    for (path, text) in sources("engine") {
        let inside = path.components().any(|part| part.as_os_str() == "store")
            || path.file_name().is_some_and(|name| name == "testing.rs");
        assert!(inside || !text.contains("redb::"), "{} uses redb", path.display());
    }
}

#[test]
fn libraries_neither_print_nor_read_the_environment() {
    for crate_dir in ["engine", "gitimport", "fuse"] {
        for (path, text) in sources(crate_dir) {
            let test = path.components().any(|part| part.as_os_str() == "tests")
                || path.file_name().is_some_and(|name| name.to_string_lossy().contains("test"));
            let code = text.split("#[cfg(test)]\nmod").next().unwrap_or_default();
            for forbidden in ["println!", "eprintln!", "print!(", "env::var", "env::args"] {
                assert!(test || !code.contains(forbidden), "{} uses {forbidden}", path.display());
            }
        }
    }
    for (path, text) in sources("cli") {
        let owner = path.file_name().is_some_and(|name| name == "environment.rs");
        assert!(owner || !text.contains("env::var"), "{} reads the environment", path.display());
    }
}
