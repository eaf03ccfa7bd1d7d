//! Why goals are missed: written by hand, kept apart from the figures, merged into the page.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::catalogue;

/// The section about the memory of many agents, which misses no goal but has a choice to explain.
pub const AGENTS: &str = "agents_memory";
/// The section about the daemon's memory, which is no phase.
pub const MEMORY: &str = "memory";
/// The sentence about how the time until usable grows, which is no phase either.
pub const USABLE_GROWTH: &str = "growth";

/// Causes by phase.
#[derive(Default)]
pub struct Causes(BTreeMap<String, String>);

impl Causes {
    /// Reads a file in which each heading `## PHASE`, `## memory` or `## growth` is followed by its text. No file:
    /// no causes.
    pub fn load(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = fs::read_to_string(path)?;
        Self::parse(&text).with_context(|| format!("in {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let mut causes = BTreeMap::new();
        for section in text.split("\n## ").skip(1) {
            let (id, body) = section.split_once('\n').unwrap_or((section, ""));
            let id = id.trim();
            if ![MEMORY, USABLE_GROWTH].contains(&id)
                && !catalogue::all().any(|phase| phase.id == id)
            {
                bail!("there is no phase `{id}`");
            }
            let body = body.split_whitespace().collect::<Vec<_>>().join(" ");
            causes.insert(id.to_owned(), body);
        }
        Ok(Self(causes))
    }

    /// Why the phase misses its goal.
    pub fn of(&self, id: &str) -> &str {
        let cause = self.0.get(id).map(String::as_str);
        cause.filter(|cause| !cause.is_empty()).unwrap_or("The cause has not been measured yet.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_found_and_unknown_phases_refused() {
        let causes = Causes::parse("# x\n\nwords\n\n## fsck\n\nOne\ntwo.\n\n## find\n").unwrap();
        assert_eq!(causes.of("fsck"), "One two.");
        assert!(causes.of("find").contains("not been measured"));
        assert!(Causes::parse("# x\n\n## fsk\n\nOne\n").is_err());
    }
}
