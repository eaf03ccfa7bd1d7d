//! The machine a run is made on, and whether it is quiet enough to be believed.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::mounts;
use crate::process::{Run, installed};

/// Creating a file takes a native file system some 35 us. Above this it is avoiding inodes that
/// were deleted in the last minutes, and every native rival would look slower than it is.
const CREATE_SECONDS_MAX: f64 = 150e-6;
/// How many files are created to find out.
const CREATE_FILES: u32 = 500;
/// How long to wait for the file system to forget a deletion.
const SETTLE: Duration = Duration::from_secs(360);

/// What the figures of a run depend on beside the code.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Short name for file names: processor and cores.
    pub name: String,
    pub processor: String,
    pub cores: usize,
    pub memory_bytes: u64,
    pub kernel: String,
    pub file_system: String,
    /// The load over one minute before the run.
    pub load: f64,
    /// What creating one file cost before the run, in seconds.
    pub create_seconds: f64,
    pub git: String,
    /// `None`: not installed.
    pub ripgrep: Option<String>,
    pub root: bool,
}

impl Machine {
    /// Looks at this machine, with `dir` on the file system to be measured.
    pub fn look(dir: &Path, name: Option<&str>) -> Result<Self> {
        let processor = processor()?;
        let cores = std::thread::available_parallelism()?.get();
        let uname = rustix::system::uname();
        let memory = rustix::system::sysinfo();
        let version = |program: &str| -> Result<String> {
            let text = Run::new(program).arg("--version").ok()?.text();
            Ok(text.lines().next().unwrap_or_default().to_owned())
        };
        Ok(Self {
            name: name.map_or_else(|| format!("{}-{cores}c", slug(&processor)), slug),
            processor,
            cores,
            memory_bytes: memory.totalram.saturating_mul(u64::from(memory.mem_unit)),
            kernel: format!(
                "{} {}",
                uname.sysname().to_string_lossy(),
                uname.release().to_string_lossy()
            ),
            file_system: mounts::kind_of(&fs::canonicalize(dir)?)?,
            load: load()?,
            create_seconds: creation_cost(dir)?,
            git: version("git").context("git is needed: it is the rival")?,
            ripgrep: if installed("rg") { Some(version("rg")?) } else { None },
            root: rustix::process::geteuid().is_root(),
        })
    }

    /// Refuses a machine that is busy with something else.
    pub fn demand_quiet(&self) -> Result<()> {
        let bound = self.cores as f64 / 2.0;
        if self.load > bound {
            bail!(
                "the machine is busy (load {:.2} over one minute, at most {bound:.1} is allowed): \
                 wait until it is quiet, or pass --unrecorded to look without recording",
                self.load
            );
        }
        Ok(())
    }

    /// Waits until creating files has its usual price again after a large deletion.
    pub fn settle(&mut self, dir: &Path) -> Result<()> {
        let start = Instant::now();
        while self.create_seconds > CREATE_SECONDS_MAX && start.elapsed() < SETTLE {
            std::thread::sleep(Duration::from_secs(30));
            self.create_seconds = self.create_seconds.min(creation_cost(dir)?);
        }
        if self.create_seconds > CREATE_SECONDS_MAX {
            bail!(
                "creating a file takes {:.0} us here, even {} s after the last deletion of ours: native \
                 figures would suffer; pass --unrecorded to look without recording",
                self.create_seconds * 1e6,
                SETTLE.as_secs()
            );
        }
        Ok(())
    }
}

fn processor() -> Result<String> {
    let text = fs::read_to_string("/proc/cpuinfo").context("cannot read the processor's name")?;
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    Ok(name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned()))
}

fn load() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").context("cannot read the load")?;
    let first = text.split(' ').next().unwrap_or_default();
    first.parse().with_context(|| format!("the load is no number: {first}"))
}

/// Letters, digits and single dashes, for file names.
fn slug(text: &str) -> String {
    let lower = text.to_lowercase().replace("(r)", " ").replace("(tm)", " ");
    let words = lower.split(|c: char| !c.is_ascii_alphanumeric());
    let kept: Vec<&str> =
        words.filter(|w| !w.is_empty() && *w != "cpu" && *w != "processor").collect();
    kept.join("-")
}

/// Creates files in a fresh directory below `dir` and returns the seconds each cost. They stay:
/// deleting them would disturb what follows.
fn creation_cost(dir: &Path) -> Result<f64> {
    let stamp = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
    let probe = dir.join(format!("probe-{stamp}"));
    fs::create_dir(&probe).with_context(|| format!("cannot create {}", probe.display()))?;
    let start = Instant::now();
    for index in 0..CREATE_FILES {
        fs::write(probe.join(index.to_string()), b"probe")?;
    }
    Ok(start.elapsed().as_secs_f64() / f64::from(CREATE_FILES))
}

/// Why cold phases cannot run here, if they cannot.
pub fn cold_obstacle() -> Option<&'static str> {
    let writable = fs::OpenOptions::new().write(true).open("/proc/sys/vm/drop_caches").is_ok();
    (!writable).then_some("dropping the page cache needs root")
}

/// Writes everything back and empties the kernel's caches.
pub fn drop_caches() -> Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop the page cache")
}

/// Free bytes and free inodes of the file system that holds `dir`.
pub fn free_space(dir: &Path) -> Result<(u64, u64)> {
    let free = rustix::fs::statvfs(dir).context("cannot ask for free space")?;
    Ok((free.f_bavail.saturating_mul(free.f_frsize), free.f_favail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_file_names() {
        assert_eq!(slug("Intel(R) Xeon(R) Processor @ 2.90GHz"), "intel-xeon-2-90ghz");
        assert_eq!(slug("AMD EPYC 9R14"), "amd-epyc-9r14");
    }

    #[test]
    fn a_busy_machine_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut machine = Machine::look(dir.path(), Some("My Box")).unwrap();
        assert_eq!(machine.name, "my-box");
        machine.cores = 4;
        machine.load = 2.0;
        machine.demand_quiet().unwrap();
        machine.load = 2.1;
        let shown = machine.demand_quiet().unwrap_err().to_string();
        assert!(shown.contains("busy") && shown.contains("--unrecorded"), "{shown}");
    }
}
