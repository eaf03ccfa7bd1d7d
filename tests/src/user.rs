//! An ordinary user, for tests that run as root.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::mounts::{self, Mount};

/// `nobody`, whom every machine knows by name; fusermount3 asks for the name.
const NOBODY: u32 = 65534;

/// What the first process of the namespace does: it makes a device of its own that everybody may
/// open, puts it in the place of the machine's, and waits. Nothing of it is seen outside.
const PREPARE: &str = "mount --make-rshared / && mount -t tmpfs -o mode=755 none \"$0\" \
    && mknod -m 666 \"$0/fuse\" c \"$1\" \"$2\" && mount --bind \"$0/fuse\" /dev/fuse \
    && echo ready && exec sleep 600";

/// The user `nobody` in a mount namespace of its own, in which everybody may open `/dev/fuse`. What
/// is mounted there vanishes with it.
pub struct OrdinaryUser {
    holder: Child,
    home: PathBuf,
    program: PathBuf,
}

impl OrdinaryUser {
    /// A user at home in `dir/user`, with a copy of `program`.
    ///
    /// # Panics
    /// If this is not root, or if the machine has no `unshare`.
    pub fn new(dir: &Path, program: &Path) -> Self {
        let [home, bin, dev] = ["user", "bin", "dev"].map(|name| dir.join(name));
        for made in [&home, &bin, &dev] {
            fs::create_dir(made).expect("a directory");
        }
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("the directory is ours");
        chown(&home, Some(NOBODY), Some(NOBODY)).expect("this is root");
        let copy = bin.join(program.file_name().expect("a program has a name"));
        fs::copy(program, &copy).expect("a copy");
        let device = fs::metadata("/dev/fuse").expect("the device").rdev();
        let numbers = [rustix::fs::major(device), rustix::fs::minor(device)];
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", PREPARE])
            .arg(dev)
            .args(numbers.map(|number| number.to_string()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare runs");
        let mut said = String::new();
        let stdout = holder.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut said).expect("a line");
        let user = Self { holder, home, program: copy };
        assert_eq!(said, "ready\n", "no mount namespace could be made");
        user
    }

    /// Where the user may write.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The user's copy of the program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// `program`, run by the user in the namespace.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.enter();
        let id = NOBODY.to_string();
        command.args(["--setgid", &id, "--setuid", &id, "--"]).arg(program).env("HOME", &self.home);
        command
    }

    /// What is mounted at and below `dir` in the namespace, the innermost first.
    pub fn mounts_below(&self, dir: &Path) -> Vec<Mount> {
        mounts::below_as_seen_by(&self.holder.id().to_string(), dir)
    }

    /// Takes `program` away: in the namespace it cannot be run.
    ///
    /// # Panics
    /// If that fails.
    pub fn hide(&self, program: &str) {
        for dir in ["/usr/bin", "/bin", "/usr/local/bin"] {
            let path = Path::new(dir).join(program);
            if path.exists() {
                let hidden = self.enter().args(["mount", "--bind", "/dev/null"]).arg(path).status();
                assert!(hidden.expect("nsenter runs").success());
            }
        }
    }

    /// Gives everything at and below `path` to the user.
    ///
    /// # Panics
    /// If there is nothing.
    pub fn own(&self, path: &Path) {
        let id = format!("{NOBODY}:{NOBODY}");
        let owned = Command::new("chown").args(["-hR", &id]).arg(path).status();
        assert!(owned.expect("chown runs").success());
    }

    fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()));
        command
    }
}

impl Drop for OrdinaryUser {
    fn drop(&mut self) {
        self.holder.kill().ok();
        self.holder.wait().ok();
    }
}
