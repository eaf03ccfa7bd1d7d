//! Every transport on this machine, against what `git clone` of the same URL makes.

use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use agentfs_engine::progress::Silent;

use super::*;
use crate::fetch::clone_bare;
use crate::gittest::{Sandbox, command, commit, describe, git, rich, skip};

/// How long a server may take to answer, and a clone to end.
const PATIENCE: Duration = Duration::from_secs(60);

fn clone(source: &str, into: &Path, options: &CloneOptions) -> Result<()> {
    clone_bare(source, into, options, &Silent, &Cancel::default())
}

fn on(branch: &str) -> CloneOptions {
    CloneOptions { branch: Some(branch.into()), rev: None }
}

fn at(rev: &str) -> CloneOptions {
    CloneOptions { branch: None, rev: Some(rev.into()) }
}

/// What `git clone` makes of `url`.
fn by_git(sandbox: &Sandbox, url: &str, branch: Option<&str>) -> String {
    let theirs = sandbox.path("theirs");
    let _ = std::fs::remove_dir_all(&theirs);
    let mut arguments = vec!["clone", "-q", "--no-checkout"];
    arguments.extend(branch.map(|branch| ["--branch", branch]).into_iter().flatten());
    arguments.extend([url, theirs.to_str().unwrap()]);
    git(&sandbox.path(""), &arguments);
    described(&theirs.join(".git"))
}

/// As [`describe`], without what gix writes beyond what git does.
fn described(repository: &Path) -> String {
    let own = |line: &&str| {
        !line.contains("core.ignorecase=false") && !line.contains("core.precomposeunicode=false")
    };
    describe(repository).lines().filter(own).collect::<Vec<_>>().join("\n")
}

/// Whether gix has made this clone: the files that it puts beside the hooks are its own.
fn is_by_gix(repository: &Path) -> bool {
    repository.join("hooks/docs.url").exists()
}

fn same_as_git(sandbox: &Sandbox, url: &str, branch: Option<&str>) -> PathBuf {
    let ours = sandbox.path("ours");
    let _ = std::fs::remove_dir_all(&ours);
    let options = branch.map(on).unwrap_or_default();
    clone(url, &ours, &options).unwrap();
    assert_eq!(described(&ours), by_git(sandbox, url, branch), "{url}");
    assert_eq!(git(&ours, &["rev-parse", "--is-bare-repository"]), "true");
    assert_eq!(is_by_gix(&ours), url.contains("://"), "{url}");
    ours
}

fn file_url(path: &Path) -> String {
    format!("file://{}", path.display())
}

/// A process that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn serve(command: &mut Command, port: u16) -> Server {
    let server = Server(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "the server does not answer");
        std::thread::sleep(Duration::from_millis(10));
    }
    server
}

/// Not a test of its own: clones in a process with other variables of the environment.
#[test]
#[ignore = "run by other tests"]
fn clone_as_told() {
    let variable = |name: &str| std::env::var(name).unwrap();
    let (source, into) = (variable("TEST_SOURCE"), variable("TEST_INTO"));
    let options = CloneOptions { branch: std::env::var("TEST_BRANCH").ok(), rev: None };
    clone(&source, Path::new(&into), &options).unwrap();
}

fn clone_in_process(source: &str, into: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["transport::tests::clone_as_told", "--exact", "--ignored"])
        .env("TEST_SOURCE", source)
        .env("TEST_INTO", into)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

#[test]
fn file_urls() {
    let sandbox = Sandbox::new();
    let source = rich(&sandbox);
    let url = file_url(&source);
    same_as_git(&sandbox, &url, None);
    same_as_git(&sandbox, &url, Some("feature/with/slashes"));
    same_as_git(&sandbox, &url, Some("annotated"));
    let missing = clone(&url, &sandbox.path("missing"), &on("nowhere"));
    assert!(matches!(missing, Err(Error::NoSuchBranch { .. })), "{missing:?}");
    git(&source, &["checkout", "-q", "--detach", "HEAD~1"]);
    commit(&source, "detached", b"on no branch");
    same_as_git(&sandbox, &url, None);
    same_as_git(&sandbox, &file_url(&sandbox.empty_repository("empty", &[])), None);
    let sha256 = sandbox.empty_repository("sha256", &["--object-format=sha256"]);
    commit(&sha256, "file", b"x");
    same_as_git(&sandbox, &file_url(&sha256), None);
    git(&sandbox.path(""), &["clone", "-q", "--depth=1", &url, "shallow"]);
    same_as_git(&sandbox, &file_url(&sandbox.path("shallow")), None);
}

#[test]
fn revisions_that_no_branch_names() {
    let sandbox = Sandbox::new();
    let source = rich(&sandbox);
    let url = file_url(&source);
    let ours = sandbox.path("ours");
    let known = |rev: &str| git(&source, &["rev-parse", rev]);
    clone(&url, &ours, &at("refs/pull/1/head")).unwrap();
    assert_eq!(git(&ours, &["rev-parse", "refs/pull/1/head"]), known("refs/pull/1/head"));
    git(&source, &["checkout", "-q", "--detach"]);
    commit(&source, "hidden", b"x");
    let hidden = known("HEAD");
    git(&source, &["checkout", "-q", "main"]);
    let second = sandbox.path("second");
    clone(&url, &second, &at(&hidden)).unwrap();
    assert_eq!(git(&second, &["cat-file", "-t", &hidden]), "commit");
    // What the clone has anyway, and what only the caller can judge.
    clone(&url, &sandbox.path("third"), &at("main~1")).unwrap();
    clone(&url, &sandbox.path("fourth"), &at("no-such-thing")).unwrap();
    for (number, rev) in ["refs/heads/none", "1".repeat(40).as_str()].iter().enumerate() {
        let refused = clone(&url, &sandbox.path(&format!("refused-{number}")), &at(rev));
        assert!(matches!(refused, Err(Error::NoSuchRevision { .. })), "{refused:?}");
    }
}

#[test]
fn git_urls() {
    let sandbox = Sandbox::new();
    rich(&sandbox);
    // Run directly: git would start it as a child, which would outlive the test.
    let daemon = Path::new(&git(&sandbox.path(""), &["--exec-path"])).join("git-daemon");
    if !daemon.exists() {
        return skip("there is no git daemon");
    }
    let port = free_port();
    let mut daemon = Command::new(daemon);
    daemon.args(["--reuseaddr", "--export-all", "--listen=127.0.0.1"]);
    daemon.arg(format!("--port={port}"));
    daemon.arg(format!("--base-path={}", sandbox.path("").display()));
    let _server = serve(&mut daemon, port);
    let url = format!("git://127.0.0.1:{port}/rich");
    same_as_git(&sandbox, &url, None);
    same_as_git(&sandbox, &url, Some("loose"));
    let nothing = clone(&format!("{url}-not"), &sandbox.path("nothing"), &CloneOptions::default());
    assert!(matches!(nothing, Err(Error::GitFailed { .. })), "{nothing:?}");
}

#[test]
fn ssh_urls() {
    let sandbox = Sandbox::new();
    let source = rich(&sandbox);
    // Instead of connecting, it runs the command here.
    let ssh = sandbox.path("ssh");
    let script = "#!/bin/sh\nwhile :; do case \"$1\" in\n-[op]) shift 2;;\n-*) shift;;\n*) break;;\n\
                  esac; done\nshift\nexec sh -c \"$*\"\n";
    std::fs::write(&ssh, script).unwrap();
    std::fs::set_permissions(&ssh, std::fs::Permissions::from_mode(0o755)).unwrap();
    let urls = [format!("ssh://host{}", source.display()), format!("host:{}", source.display())];
    for url in urls {
        let (ours, theirs) = (sandbox.path("ours"), sandbox.path("theirs"));
        for path in [&ours, &theirs] {
            let _ = std::fs::remove_dir_all(path);
        }
        let top = sandbox.path("");
        let theirs_path = theirs.to_str().unwrap();
        let mut commands = [
            clone_in_process(&url, &ours),
            command(&top, &["clone", "-q", "--no-checkout", &url, theirs_path]),
        ];
        for command in &mut commands {
            command.env("GIT_SSH_COMMAND", &ssh).env("GIT_SSH_VARIANT", "ssh");
            assert!(command.status().unwrap().success(), "{url}");
        }
        assert_eq!(described(&ours), described(&theirs.join(".git")), "{url}");
        assert!(is_by_gix(&ours), "{url}");
    }
}

/// A server of smart HTTP over `git http-backend` that asks for a password.
const HTTP: &str = r#"
import http.server, os, subprocess, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def serve(self):
        if self.headers.get("Authorization") != "Basic dXNlcjpzZWNyZXQ=":
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="test"')
            self.send_header("Content-Length", "0")
            return self.end_headers()
        path, _, query = self.path.partition("?")
        environment = dict(os.environ, GIT_PROJECT_ROOT=sys.argv[2], GIT_HTTP_EXPORT_ALL="1",
            PATH_INFO=path, QUERY_STRING=query, REQUEST_METHOD=self.command, REMOTE_USER="user",
            CONTENT_TYPE=self.headers.get("Content-Type", ""),
            HTTP_CONTENT_ENCODING=self.headers.get("Content-Encoding", ""),
            GIT_PROTOCOL=self.headers.get("Git-Protocol", ""))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        out = subprocess.run(["git", "http-backend"], input=body, env=environment,
            stdout=subprocess.PIPE).stdout
        head, _, body = out.partition(b"\r\n\r\n")
        headers = [line.split(": ", 1) for line in head.decode().split("\r\n")]
        status = next((int(v.split()[0]) for k, v in headers if k == "Status"), 200)
        self.send_response(status)
        for key, value in headers:
            if key != "Status": self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_GET = do_POST = serve
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
if len(sys.argv) > 3:
    import ssl
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[3], sys.argv[4])
    server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"#;

#[test]
fn http_urls_with_the_credentials_of_the_user() {
    let sandbox = Sandbox::new();
    let source = rich(&sandbox);
    if Command::new("python3").arg("--version").output().is_err() {
        return skip("there is no python3");
    }
    let port = free_port();
    let mut python = Command::new("python3");
    python.args(["-c", HTTP, &port.to_string()]).arg(sandbox.path(""));
    let _server = serve(&mut python, port);
    let url = format!("http://127.0.0.1:{port}/rich/.git");
    let configuration = sandbox.path("configuration");
    let helper = "!f() { echo username=user; echo password=secret; }; f";
    git(
        &sandbox.path(""),
        &["config", "--file", configuration.to_str().unwrap(), "credential.helper", helper],
    );
    let into = sandbox.path("ours");
    let mut child = clone_in_process(&url, &into);
    assert!(child.env("GIT_CONFIG_GLOBAL", &configuration).status().unwrap().success());
    let theirs = by_git(&sandbox, &file_url(&source), None).replace(&file_url(&source), &url);
    assert_eq!(described(&into), theirs);
    assert!(!is_by_gix(&into));
    // Without the password.
    let mut child = clone_in_process(&url, &sandbox.path("refused"));
    child.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_TERMINAL_PROMPT", "0");
    assert!(!child.stderr(Stdio::null()).status().unwrap().success());
}

#[test]
fn https_urls_with_the_certificates_of_the_user() {
    let sandbox = Sandbox::new();
    let source = rich(&sandbox);
    let (key, certificate) = (sandbox.path("key"), sandbox.path("certificate"));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=x"]);
    openssl.args(["-addext", "subjectAltName=IP:127.0.0.1", "-keyout"]).arg(&key);
    openssl.arg("-out").arg(&certificate).stderr(Stdio::null());
    if !openssl.status().is_ok_and(|status| status.success()) {
        return skip("there is no openssl");
    }
    if Command::new("python3").arg("--version").output().is_err() {
        return skip("there is no python3");
    }
    let port = free_port();
    let mut python = Command::new("python3");
    python.args(["-c", HTTP, &port.to_string()]).arg(sandbox.path("")).args([&certificate, &key]);
    let _server = serve(python.stderr(Stdio::null()), port);
    let url = format!("https://user:secret@127.0.0.1:{port}/rich/.git");
    let into = sandbox.path("ours");
    let mut child = clone_in_process(&url, &into);
    assert!(child.env("GIT_SSL_CAINFO", &certificate).status().unwrap().success());
    let known = git(&source, &["rev-parse", "HEAD"]);
    assert_eq!(git(&into, &["rev-parse", "HEAD"]), known);
    git(&into, &["fsck"]);
    // One that nobody vouches for.
    let mut child = clone_in_process(&url, &sandbox.path("refused"));
    assert!(!child.stderr(Stdio::null()).status().unwrap().success());
    assert!(!sandbox.path("refused").exists());
}

/// The user's `url.*.insteadOf` holds for each way in which a source can be named.
#[test]
fn addresses_that_the_user_has_rewritten() {
    let sandbox = Sandbox::new();
    let source = rich(&sandbox);
    let bundle = sandbox.path("all.bundle");
    git(&source, &["bundle", "create", "-q", bundle.to_str().unwrap(), "--all"]);
    let top = sandbox.path("");
    let configuration = sandbox.path("configuration");
    let rewrite = |from: &str, to: &str| {
        let key = format!("url.{to}.insteadOf");
        git(&top, &["config", "--file", configuration.to_str().unwrap(), "--add", &key, from]);
    };
    rewrite("short:", &format!("file://{}/", top.display()));
    rewrite("https://host.invalid/", &format!("file://{}/", top.display()));
    rewrite("plain:", &format!("{}/", top.display()));
    for url in [
        "short:rich",
        "https://host.invalid/rich",
        "plain:rich",
        "plain:all.bundle",
        "ssh://not/rewritten",
    ] {
        let (ours, theirs) = (sandbox.path("ours"), sandbox.path("theirs"));
        for path in [&ours, &theirs] {
            let _ = std::fs::remove_dir_all(path);
        }
        let mut commands = [
            clone_in_process(url, &ours),
            command(&top, &["clone", "-q", "--no-checkout", url, theirs.to_str().unwrap()]),
        ];
        let done = commands.each_mut().map(|command| {
            command.env("GIT_CONFIG_GLOBAL", &configuration).env("GIT_SSH_COMMAND", "false");
            command.stderr(Stdio::null()).status().unwrap().success()
        });
        assert_eq!(done, [!url.starts_with("ssh"); 2], "{url}");
        if done[0] {
            assert_eq!(described(&ours), described(&theirs.join(".git")), "{url}");
        }
    }
}

#[test]
fn bundles_and_what_is_no_repository() {
    let sandbox = Sandbox::new();
    let source = rich(&sandbox);
    let bundle = sandbox.path("all.bundle");
    git(&source, &["bundle", "create", "-q", bundle.to_str().unwrap(), "--all"]);
    same_as_git(&sandbox, bundle.to_str().unwrap(), None);
    let refused = |source: &str| clone(source, &sandbox.path("refused"), &CloneOptions::default());
    let directory = sandbox.path("directory");
    std::fs::create_dir(&directory).unwrap();
    for path in [directory.clone(), sandbox.path("nowhere")] {
        let refused = refused(path.to_str().unwrap());
        assert!(matches!(refused, Err(Error::NotARepository { .. })), "{refused:?}");
    }
    let exists = clone(source.to_str().unwrap(), &directory, &CloneOptions::default());
    assert!(matches!(exists, Err(Error::Exists { .. })), "{exists:?}");
    // Commands in URLs and options in names get nowhere.
    let trap = sandbox.path("trap");
    let touch = format!("ext::touch {}", trap.display());
    for source in [touch.as_str(), "--upload-pack=touch trap:x", "ssh://-oProxyCommand=touch/x"] {
        assert!(refused(source).is_err(), "{source}");
    }
    assert!(!trap.exists());
    let left = std::fs::read_dir(sandbox.path("")).unwrap().flatten();
    assert!(left.into_iter().all(|entry| !entry.file_name().to_str().unwrap().starts_with(".inc")));
}

/// Counts what it is told.
#[derive(Default)]
struct Counted {
    objects: AtomicU64,
    bytes: AtomicU64,
}

impl Progress for Counted {
    fn begin(&self, _: Phase, _: Option<u64>, _: Option<u64>) {}

    fn advance(&self, phase: Phase, objects: u64, bytes: u64) {
        assert_eq!(phase, Phase::Fetch);
        self.objects.fetch_add(objects, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn end(&self, _: Phase) {}
}

#[test]
fn progress_tells_objects_and_bytes() {
    let sandbox = Sandbox::new();
    let source = rich(&sandbox);
    let progress = Counted::default();
    let ours = sandbox.path("ours");
    let options = CloneOptions::default();
    clone_bare(&file_url(&source), &ours, &options, &progress, &Cancel::default()).unwrap();
    let packed = git(&ours, &["rev-list", "--objects", "--all"]).lines().count() as u64;
    assert!(progress.objects.into_inner() >= packed);
    assert!(progress.bytes.into_inner() > 100);
}

#[test]
fn a_clone_that_hangs_can_be_cancelled() {
    let sandbox = Sandbox::new();
    // A server that accepts and says nothing.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    for scheme in ["http", "git"] {
        let url = format!("{scheme}://127.0.0.1:{port}/x");
        let cancel = Cancel::default();
        let started = Instant::now();
        let result = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(300));
                cancel.cancel();
            });
            clone_bare(&url, &sandbox.path("ours"), &CloneOptions::default(), &Silent, &cancel)
        });
        let cancelled = matches!(result, Err(Error::Engine(agentfs_engine::Error::Cancelled)));
        assert!(cancelled, "{result:?}");
        assert!(started.elapsed() < GRACE * 3, "{scheme}");
    }
    assert_eq!(std::fs::read_dir(sandbox.path("")).unwrap().count(), 0);
}

#[test]
fn killed_clones_leave_nothing_that_the_next_does_not_remove() {
    let sandbox = Sandbox::new();
    let source = rich(&sandbox);
    for number in 0..2000 {
        std::fs::write(source.join(format!("file-{number}")), number.to_string()).unwrap();
    }
    git(&source, &["add", "-A"]);
    git(&source, &["commit", "-q", "-m", "many"]);
    let store = sandbox.path("store");
    std::fs::create_dir(&store).unwrap();
    let mut killed = 0;
    for (number, url) in
        [source.to_str().unwrap().to_owned(), file_url(&source)].iter().cycle().take(16).enumerate()
    {
        let into = store.join("clone");
        let mut child = clone_in_process(url, &into).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(5 * number as u64));
        child.kill().unwrap();
        child.wait().unwrap();
        for entry in std::fs::read_dir(&store).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(name == "clone" || name.starts_with(".incoming-"), "{name}");
        }
        if into.exists() {
            git(&into, &["fsck"]);
            std::fs::remove_dir_all(&into).unwrap();
        } else {
            killed += 1;
        }
    }
    assert!(killed > 0, "none was killed early enough");
    clone(&file_url(&source), &store.join("clone"), &CloneOptions::default()).unwrap();
    let left: Vec<_> = std::fs::read_dir(&store).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}
