//! Where the `agentfs` binary is.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The binary, built from the same sources and with the same profile as this test.
///
/// cargo builds the binaries of a package only for the tests of that package, so this asks cargo to,
/// once a process. A test that runs outside cargo takes the binary that is there.
///
/// # Panics
/// If there is none.
pub fn agentfs() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let path = profile_dir().join("agentfs");
        if let Some(cargo) = std::env::var_os("CARGO") {
            let mut build = Command::new(cargo);
            build.args(["build", "--quiet", "--package", "agentfs", "--target-dir"]);
            build.arg(target_dir());
            if profile_dir().ends_with("release") {
                build.arg("--release");
            }
            build.current_dir(workspace());
            let built = build.status().expect("cargo runs");
            assert!(built.success(), "cargo could not build agentfs");
        }
        assert!(path.exists(), "{} is missing: run `cargo build` first", path.display());
        path
    })
}

/// The directory of the workspace.
pub fn workspace() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().expect("a member lies in its workspace")
}

/// `target/release` or `target/debug`: this process runs in `deps` below it.
fn profile_dir() -> PathBuf {
    let own = std::env::current_exe().expect("a process knows its program");
    own.ancestors().nth(2).expect("a test runs in target/PROFILE/deps").to_owned()
}

/// The directory in which cargo builds.
pub(crate) fn target_dir() -> PathBuf {
    profile_dir().parent().expect("a profile lies in the target directory").to_owned()
}
