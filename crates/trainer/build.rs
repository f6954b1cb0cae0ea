//! Puts the commit into the program, so that every checkpoint can say what made it; one with changes on top carries a
//! mark.

use std::process::Command;

/// What the program is built from, seen from the repository's root.
const SOURCES: [&str; 4] = ["crates", "checkpoints", "Cargo.toml", "Cargo.lock"];

fn main() {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").current_dir("../..").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let changed = git(&[&["status", "--porcelain", "--"], &SOURCES[..]].concat()).is_some_and(|list| !list.is_empty());
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).map(|c| if changed { c + "-dirty" } else { c });
    println!("cargo:rustc-env=COMMIT={}", commit.unwrap_or_else(|| "unknown".into()));
    SOURCES.iter().for_each(|s| println!("cargo:rerun-if-changed=../../{s}"));
    // The current commit changes in one of these, in a linked working tree too.
    for file in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--path-format=absolute", "--git-path", file]) {
            println!("cargo:rerun-if-changed={path}");
        }
    }
}
