//! The environment variables that agentfs reads; nothing else in the workspace reads one.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use crate::error::{Failure, Kind, Result};

/// Names the store.
pub const STORE: &str = "AGENTFS_HOME";

/// What the environment says.
#[derive(Clone, Debug)]
pub struct Environment {
    /// The directory of the store, absolute.
    pub store: PathBuf,
    /// How much the daemon logs: one of `error`, `warn`, `info`, `debug`, `trace`.
    pub log: Option<String>,
    /// Names of the levers of a mount that are to be off.
    pub levers_off: Vec<String>,
    /// Names of those that are to be on, although by default they are not.
    pub levers_on: Vec<String>,
}

impl Environment {
    /// Reads `AGENTFS_HOME`, `XDG_DATA_HOME`, `HOME`, `AGENTFS_LOG`, `AGENTFS_LEVERS_OFF`
    /// and `AGENTFS_LEVERS_ON`.
    ///
    /// # Errors
    /// If none of the first three names a place for the store.
    pub fn read() -> Result<Self> {
        let store = store_of(|name| env::var_os(name).filter(|value| !value.is_empty()))?;
        let store = std::path::absolute(&store)
            .map_err(|error| Failure::io("find the current directory for", &store, &error))?;
        let names = |variable| -> Vec<String> {
            let list = env::var(variable).unwrap_or_default();
            list.split([',', ' ']).filter(|name| !name.is_empty()).map(str::to_owned).collect()
        };
        Ok(Self {
            store,
            log: env::var("AGENTFS_LOG").ok(),
            levers_off: names("AGENTFS_LEVERS_OFF"),
            levers_on: names("AGENTFS_LEVERS_ON"),
        })
    }
}

/// Variables that point git at one repository. A daemon outlives the command that started it, so it
/// must not inherit those that a git hook, for example, has set.
pub const GIT_LOCAL: [&str; 14] = [
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_CEILING_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_CONFIG",
    "GIT_CONFIG_COUNT",
    "GIT_CONFIG_PARAMETERS",
    "GIT_DIR",
    "GIT_INDEX_FILE",
    "GIT_INTERNAL_SUPER_PREFIX",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_SHALLOW_FILE",
    "GIT_WORK_TREE",
];

/// The variables that add `settings` to git's configuration, after those that are set in the same
/// way already.
pub fn git_settings(settings: &[(&str, &str)]) -> Vec<(String, String)> {
    let set = env::var("GIT_CONFIG_COUNT").ok().and_then(|count| count.parse().ok());
    let set: usize = set.unwrap_or(0);
    let mut variables = vec![("GIT_CONFIG_COUNT".to_owned(), (set + settings.len()).to_string())];
    for (number, (key, value)) in settings.iter().enumerate() {
        variables.push((format!("GIT_CONFIG_KEY_{}", set + number), (*key).to_owned()));
        variables.push((format!("GIT_CONFIG_VALUE_{}", set + number), (*value).to_owned()));
    }
    variables
}

/// Whether a directory of `PATH` has a file called `name`, be it a program or not. A directory that
/// this user may not enter has none.
pub fn is_on_path(name: &OsStr) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|dir| dir.join(name).symlink_metadata().is_ok())
}

fn store_of(variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    if let Some(home) = variable(STORE) {
        return Ok(home.into());
    }
    // The XDG specification has relative paths ignored.
    if let Some(data) = variable("XDG_DATA_HOME").map(PathBuf::from).filter(|d| d.is_absolute()) {
        return Ok(data.join("agentfs"));
    }
    if let Some(home) = variable("HOME") {
        return Ok(PathBuf::from(home).join(".local/share/agentfs"));
    }
    Err(Failure::new(Kind::Usage, "there is no place for the store: HOME is not set")
        .hint("set the environment variable AGENTFS_HOME to a directory for it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(variables: &[(&str, &str)]) -> Result<PathBuf> {
        store_of(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
        })
    }

    #[test]
    fn the_store_is_where_the_first_of_three_variables_says() {
        let all = [("AGENTFS_HOME", "/a"), ("XDG_DATA_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(store(&all).unwrap(), PathBuf::from("/a"));
        assert_eq!(store(&all[1..]).unwrap(), PathBuf::from("/x/agentfs"));
        assert_eq!(store(&all[2..]).unwrap(), PathBuf::from("/h/.local/share/agentfs"));
        let relative = [("XDG_DATA_HOME", "x"), ("HOME", "/h")];
        assert_eq!(store(&relative).unwrap(), PathBuf::from("/h/.local/share/agentfs"));
        assert_eq!(store(&[]).unwrap_err().kind, Kind::Usage);
    }
}
