//! The examples are short, and do what they say.

use std::process::Command;

use anyhow::{Context, Result};
use testkit::program::{example, root};

/// What an example prints.
fn run(name: &str) -> Result<String> {
    let output = Command::new(example(name)).current_dir(root()).output()?;
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

fn lines(name: &str) -> Result<usize> {
    Ok(std::fs::read_to_string(root().join(format!("crates/trainer/examples/{name}.rs")))?.lines().count())
}

#[test]
fn own_model_learns_from_its_teacher() -> Result<()> {
    assert!(lines("own_model")? < 60);
    let text = run("own_model")?;
    let totals: Vec<f64> = text
        .lines()
        .map(|line| line.split_whitespace().nth(1).context("a loss")?.parse().context("a number"))
        .collect::<Result<_>>()?;
    assert_eq!(totals.len(), 100);
    assert!(totals[99] < 0.7 * totals[0], "{} to {}", totals[0], totals[99]);
    assert!(["ce", "kd", "explanation", "attention"].iter().all(|term| text.contains(term)), "{text}");
    Ok(())
}

#[test]
fn explain_shows_every_method() -> Result<()> {
    assert!(lines("explain")? < 40);
    let text = run("explain")?;
    assert!(
        cams::methods::Methods::NAMES
            .iter()
            .all(|name| text.lines().any(|l| l.starts_with(&format!("{name}: [2, 6, 6]")))),
        "{text}"
    );
    Ok(())
}
