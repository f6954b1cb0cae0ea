//! Errors that say what was given, what is accepted and how to mend it; those that a caller must tell apart have a
//! type.

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

/// What an error is about, for whoever must tell a result from a mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Another process works there: see [`Claimed`].
    Claimed,
    /// A result: see [`Diverged`].
    Diverged,
    /// A setting.
    Config,
    /// Images or labels.
    Data,
    /// A file of tensors.
    Checkpoint,
    /// A file or folder that cannot be read or written.
    Io,
    /// Anything else.
    Other,
}

impl Kind {
    /// What an error of this library is about. What was marked first, nearest to its cause, counts.
    pub fn of(error: &anyhow::Error) -> Kind {
        if error.is::<Claimed>() {
            return Kind::Claimed;
        }
        if error.is::<Diverged>() {
            return Kind::Diverged;
        }
        let marks = [
            (error.is::<Checkpoint>(), Kind::Checkpoint),
            (error.is::<Data>(), Kind::Data),
            (error.is::<Config>(), Kind::Config),
        ];
        if let Some((_, kind)) = marks.into_iter().find(|(is, _)| *is) {
            return kind;
        }
        if error.chain().any(|cause| cause.is::<std::io::Error>()) { Kind::Io } else { Kind::Other }
    }
}

/// Marks an error as one of the settings.
#[derive(Debug)]
pub struct Config;

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("the settings")
    }
}

/// Marks an error as one of a data set's.
#[derive(Debug)]
pub struct Data(pub String);

impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "data set {}", self.0)
    }
}

/// Marks an error as one of a file of tensors.
#[derive(Debug)]
pub struct Checkpoint;

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a file of tensors")
    }
}

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

/// An error and its causes in one line. candle's errors print a backtrace where RUST_BACKTRACE asks for one, many lines
/// of it.
pub fn sentence(error: &anyhow::Error) -> String {
    let part = |cause: &(dyn std::error::Error + 'static)| match cause.downcast_ref::<candle_core::Error>() {
        Some(error) => plain(error),
        None => cause.to_string(),
    };
    // Marks are for programs.
    let marks = [Config.to_string(), Checkpoint.to_string()];
    let parts = error.chain().map(part).filter(|part| !marks.contains(part));
    parts.collect::<Vec<_>>().join(": ").replace('\n', " ")
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
    use anyhow::Context;

    #[test]
    fn errors_say_what_they_are_about() {
        let config = crate::config::Config::from_table("train.epochs = 0".parse().unwrap()).unwrap_err();
        assert_eq!(Kind::of(&config), Kind::Config);
        assert!(sentence(&config).starts_with("train.epochs is 0"), "{}", sentence(&config));
        let mut source = crate::data::Source::parse("cifar10").unwrap();
        source.dir = Some("/nowhere".into());
        assert_eq!(Kind::of(&source.load(crate::data::Split::Test).unwrap_err()), Kind::Data);
        let file = crate::checkpoint::File::parse("x".into(), vec![1, 2, 3]).map(drop).unwrap_err();
        assert_eq!(Kind::of(&file.context("the teacher's checkpoint")), Kind::Checkpoint);
        let lost = std::fs::read("/nowhere/at/all").context("reading").unwrap_err();
        assert_eq!((Kind::of(&lost), Kind::of(&anyhow::anyhow!("x"))), (Kind::Io, Kind::Other));
        let diverged = anyhow::Error::from(Diverged { step: 3, terms: vec![], what: "the loss is NaN".into() });
        assert_eq!(Kind::of(&diverged.context("in a run")), Kind::Diverged);
    }

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
