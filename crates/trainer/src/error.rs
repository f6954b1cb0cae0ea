//! Errors that say what was given, what is accepted and how to mend it; those that a caller must tell apart have a type.

use std::fmt;
use std::path::PathBuf;

/// A folder is another process's.
#[derive(Debug)]
pub struct Claimed {
    /// The folder.
    pub dir: PathBuf,
    /// Who has it.
    pub holder: String,
}

impl fmt::Display for Claimed {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "{} is in use by {}: wait for it, or choose another folder with --run (a sweep with --set needs one for each run)",
            self.dir.display(),
            self.holder
        )
    }
}

impl std::error::Error for Claimed {}

/// The loss, its gradient or the weights are no longer finite: a result, not a mistake.
#[derive(Debug)]
pub struct Diverged {
    /// The step at which it happened.
    pub step: usize,
    /// The terms of the loss at that step, unweighted, as far as they were known.
    pub terms: Vec<(String, f64)>,
    /// What happened, and what usually helps.
    pub what: String,
}

impl fmt::Display for Diverged {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Diverged {}

/// The accepted word nearest to `given`, if any is near enough to be meant.
pub fn nearest<'a>(given: &str, accepted: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    accepted
        .into_iter()
        .map(|a| (strsim::damerau_levenshtein(given, a), a))
        .filter(|(d, a)| *d <= 1 + a.len().min(given.len()) / 3)
        .min()
        .map(|(_, a)| a)
}

/// `unknown <what> "<given>"`, the nearest accepted word, and all of them.
pub fn unknown(what: &str, given: &str, accepted: &[&str]) -> anyhow::Error {
    let hint = nearest(given, accepted.iter().copied()).map(|n| format!(" (did you mean \"{n}\"?)"));
    anyhow::anyhow!("unknown {what} \"{given}\"{}; accepted: {}", hint.unwrap_or_default(), accepted.join(", "))
}

/// An error and its causes in one line. candle's errors print a backtrace where RUST_BACKTRACE asks for one, many lines of it.
pub fn sentence(error: &anyhow::Error) -> String {
    let part = |cause: &(dyn std::error::Error + 'static)| match cause.downcast_ref::<candle_core::Error>() {
        Some(error) => plain(error),
        None => cause.to_string(),
    };
    error.chain().map(part).collect::<Vec<_>>().join(": ").replace('\n', " ")
}

/// candle's own words, without backtraces.
fn plain(error: &candle_core::Error) -> String {
    use candle_core::Error;
    match error {
        Error::WithBacktrace { inner, .. } => plain(inner),
        Error::Context { inner, context } => format!("{context}: {}", plain(inner)),
        Error::WithPath { inner, path } => format!("{}: {}", path.display(), plain(inner)),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backtrace_is_no_part_of_a_sentence() {
        let traced = |error| candle_core::Error::WithBacktrace {
            inner: Box::new(error),
            backtrace: Box::new(std::backtrace::Backtrace::force_capture()),
        };
        let error = traced(traced(candle_core::Error::Msg("no such layer".into())).context("reading"));
        assert_eq!(sentence(&anyhow::Error::from(error).context("method cam")), "method cam: reading: no such layer");
    }
}
