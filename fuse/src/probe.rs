//! What this machine offers, for a report to people.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::mount::{FsOpenFlags, fsconfig_create, fsconfig_set_string, fsopen};
use rustix::process::getuid;

use crate::error::Error;
use crate::mount::open_device;
use crate::protocol::{Introduction, Op, Request, flag};

/// The least that the kernel hands a request out to.
const REQUEST_BYTES_MIN: usize = 8192;

/// The device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// It can be opened.
    Usable,
    /// It is there, but not for this process. fusermount3 may still open it.
    Denied(String),
    /// It is not there.
    Missing,
}

/// The FUSE of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelFuse {
    /// Protocol version.
    pub major: u32,
    /// Protocol version.
    pub minor: u32,
    /// The capabilities that it offers, by their bits in the protocol.
    pub capabilities: u64,
}

impl KernelFuse {
    /// Whether it offers to bypass us for files that are backed by another one.
    pub const fn passthrough(&self) -> bool {
        self.capabilities & flag::PASSTHROUGH != 0
    }

    /// Whether it offers to carry messages over io_uring, which needs the module's parameter
    /// `enable_uring` as well.
    pub const fn io_uring(&self) -> bool {
        self.capabilities & flag::OVER_IO_URING != 0
    }
}

/// What this machine offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The device.
    pub device: Device,
    /// Whether this process is root and so needs no helper.
    pub root: bool,
    /// The version of fusermount3, if there is one.
    pub fusermount3: Option<String>,
    /// Whether ordinary users may let others in (`user_allow_other` in /etc/fuse.conf).
    pub user_allow_other: bool,
    /// What the kernel offers. Only root can ask without mounting; a mount tells everybody.
    pub kernel: Option<KernelFuse>,
    /// Whether the module's parameter `enable_uring` is on; `None` where there is no such parameter.
    pub io_uring_enabled: Option<bool>,
    /// Why this process can make no ring of io_uring; `None` if it can.
    pub io_uring_obstacle: Option<String>,
    /// Why files cannot be read past this process; `None` if they can where the kernel offers it.
    pub passthrough_obstacle: Option<String>,
    /// Most pages of a message.
    pub pages_max: Option<u32>,
}

/// Looks at what this machine offers. Mounts nothing and leaves nothing.
pub fn probe() -> Probe {
    let opened = open_device();
    let device = match &opened {
        Ok(_) => Device::Usable,
        Err(Error::Device { source }) if source.kind() != std::io::ErrorKind::NotFound => {
            Device::Denied(source.to_string())
        }
        Err(_) => Device::Missing,
    };
    let kernel = opened.ok().and_then(|device| introduction(&device).ok().flatten());
    let conf = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    Probe {
        device,
        root: getuid().is_root(),
        fusermount3: crate::helper::version(),
        user_allow_other: conf.lines().any(|line| line.trim() == "user_allow_other"),
        kernel,
        io_uring_enabled: setting("/sys/module/fuse/parameters/enable_uring")
            .map(|value| value == "Y"),
        io_uring_obstacle: crate::uring::obstacle(),
        passthrough_obstacle: crate::passthrough::obstacle(),
        pages_max: setting("/proc/sys/fs/fuse/max_pages_limit").and_then(|text| text.parse().ok()),
    }
}

fn setting(path: &str) -> Option<String> {
    Some(fs::read_to_string(Path::new(path)).ok()?.trim().to_owned())
}

/// What the kernel says of itself to a file system that is made and never mounted.
fn introduction(device: &OwnedFd) -> rustix::io::Result<Option<KernelFuse>> {
    let fs = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let number = device.as_raw_fd().to_string();
    for (key, value) in
        [("fd", number.as_str()), ("rootmode", "40000"), ("user_id", "0"), ("group_id", "0")]
    {
        fsconfig_set_string(&fs, key, value)?;
    }
    fsconfig_create(&fs)?;
    // It has introduced itself by now; on a kernel that does so later, there is nothing to tell.
    fcntl_setfl(device, OFlags::NONBLOCK)?;
    let mut request = vec![0; REQUEST_BYTES_MIN];
    let len = rustix::io::read(device, &mut request)?;
    Ok(parse_init(&request[..len]))
}

/// What an INIT request says; `None` for anything else.
fn parse_init(request: &[u8]) -> Option<KernelFuse> {
    let request = Request::parse(request).ok()?;
    match request.header.op(request.args).ok()? {
        Op::Init(Introduction { major, minor, capabilities, .. }) => {
            Some(KernelFuse { major, minor, capabilities })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probing_tells_what_is_there() {
        let probe = probe();
        assert_eq!(probe.device == Device::Missing, !Path::new("/dev/fuse").exists());
        if probe.root && probe.device == Device::Usable {
            let kernel = probe.kernel.unwrap();
            assert_eq!(kernel.major, 7);
            assert!(kernel.minor >= 31, "{kernel:?}");
        }
    }
}
