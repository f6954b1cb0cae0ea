//! Whatever is wrong, the program says so in one line that names the fault and the remedy, and fails.

mod checkpoints;
mod folders;
mod images;
mod settings;

use anyhow::Result;
use tempfile::TempDir;
use testkit::program::{Call, call, command, finish};

const QUICK: &str = "
    [data]
    name = 'cifar10-mini'
    limit = 64
    [student]
    arch = 'wrn-10-1'
    [train]
    epochs = 1
    batch = 32
";

fn lab() -> Result<TempDir> {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("quick.toml"), QUICK)?;
    Ok(dir)
}

fn path(dir: &TempDir, name: &str) -> String {
    dir.path().join(name).display().to_string()
}

fn train(dir: &TempDir, run: &str, sets: &[&str]) -> Call {
    let (config, run) = (path(dir, "quick.toml"), path(dir, run));
    let mut arguments = vec!["train", &config, "--quiet", "--run", &run];
    sets.iter().for_each(|set| arguments.extend(["--set", set]));
    call(&arguments)
}

/// The program under a limit of the shell's.
fn limited(limit: &str, arguments: &[&str]) -> Call {
    let inner = command(arguments);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &format!("{limit}; exec \"$@\""), "sh"]).arg(inner.get_program()).args(inner.get_args());
    shell.current_dir(testkit::program::root());
    finish(shell)
}
