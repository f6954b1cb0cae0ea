//! Profiles: how long and how faithful a run is. Each is a file in `profiles/` and a line here; it fills the keys that
//! are not given. Tables of results never mix profiles.

use anyhow::{Context, Result};
use toml::Table;

use crate::error::unknown;

const LIST: &[(&str, &str)] = &[
    ("paper", include_str!("../../profiles/paper.toml")),
    ("fast", include_str!("../../profiles/fast.toml")),
    ("smoke", include_str!("../../profiles/smoke.toml")),
];

/// What is used where none is named.
pub const DEFAULT: &str = "fast";

/// The profiles' names.
pub const NAMES: [&str; LIST.len()] = {
    let mut names = [""; LIST.len()];
    let mut i = 0;
    while i < LIST.len() {
        names[i] = LIST[i].0;
        i += 1;
    }
    names
};

/// The keys that a profile fills.
pub fn defaults(name: &str) -> Result<Table> {
    let found = LIST.iter().find(|(known, _)| *known == name);
    let (_, text) = found.ok_or_else(|| unknown("profile", name, &NAMES))?;
    text.parse().with_context(|| format!("the profile {name}"))
}
