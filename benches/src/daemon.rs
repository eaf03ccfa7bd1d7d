//! A daemon as a process of this machine: whether it lives, what it uses, and its end by force.

use std::fs;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

/// A process, told apart from a later one with the same id by when it was started.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Daemon {
    pub pid: u32,
    /// In ticks since the machine was booted.
    started: u64,
}

/// A process's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    pub resident: u64,
    /// The part of it that is not file pages.
    pub anonymous: u64,
    pub peak: u64,
}

/// What `/proc/PID/stat` tells, as far as it is used here.
struct Stat {
    state: char,
    /// Processor time, user and system, in ticks of 10 ms.
    ticks: u64,
    threads: u64,
    started: u64,
}

impl Daemon {
    /// The living process with this id.
    pub fn find(pid: u32) -> Result<Self> {
        let stat = Stat::read(pid).with_context(|| format!("there is no process {pid}"))?;
        Ok(Self { pid, started: stat.started })
    }

    fn stat(self) -> Option<Stat> {
        Stat::read(self.pid).filter(|stat| stat.started == self.started)
    }

    /// Whether it still holds anything. Its program and its memory go long before its files and
    /// their locks do; those are gone when nothing but its exit status is left.
    pub fn lives(self) -> bool {
        self.stat().is_some_and(|stat| !"ZX".contains(stat.state) || stat.threads > 1)
    }

    /// Ends it by force.
    pub fn kill(self) {
        if let Some(pid) = Pid::from_raw(self.pid.cast_signed())
            && self.lives()
        {
            // Ended by itself in the meantime: as good.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }

    /// Processor time used so far, in ticks of 10 ms.
    pub fn ticks(self) -> Result<u64> {
        self.stat().map(|stat| stat.ticks).with_context(|| self.ended())
    }

    /// What its memory holds now and held at most.
    pub fn memory(self) -> Result<Memory> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok();
        text.and_then(|text| Memory::parse(&text)).with_context(|| self.ended())
    }

    fn ended(self) -> String {
        format!("the daemon {} has ended", self.pid)
    }
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The fields behind the program's name, which may hold anything.
    fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        Some(Self {
            state: fields.first()?.chars().next()?,
            ticks: number(11)? + number(12)?,
            threads: number(17)?,
            started: number(19)?,
        })
    }
}

impl Memory {
    /// Reads `/proc/PID/status`.
    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| -> Option<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
        };
        Some(Self {
            resident: field("VmRSS")?,
            anonymous: field("RssAnon")?,
            peak: field("VmHWM")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn memory_is_read_from_status() {
        let text = "Name:\tagentfs\nVmHWM:\t   2048 kB\nVmRSS:\t   1024 kB\nRssAnon:\t    512 kB\n";
        let memory = Memory::parse(text).unwrap();
        assert_eq!(memory, Memory { resident: 1 << 20, anonymous: 1 << 19, peak: 1 << 21 });
        assert_eq!(Memory::parse("Name:\tzombie\n"), None);
    }

    #[test]
    fn a_name_with_blanks_and_brackets_is_no_obstacle() {
        let text = "7 (a) b) S 1 7 7 0 -1 4194304 1 0 0 0 30 12 0 0 20 0 5 0 999 1 2";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.state, stat.ticks, stat.threads, stat.started), ('S', 42, 5, 999));
        assert!(Stat::parse("7 (cut) S 1").is_none());
    }

    #[test]
    fn a_process_lives_until_only_its_status_is_left() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let daemon = Daemon::find(child.id()).unwrap();
        assert!(daemon.lives());
        assert!(daemon.memory().unwrap().peak > 0);
        daemon.ticks().unwrap();
        daemon.kill();
        // Not waited for yet, so it stays as a zombie.
        while daemon.lives() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(daemon.ticks().is_err() && daemon.memory().is_err());
        let other = Daemon { started: 1, ..Daemon::find(std::process::id()).unwrap() };
        assert!(!other.lives(), "another process with the same id");
    }
}
