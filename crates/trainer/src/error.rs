//! Errors that say what was given, what is accepted and how to mend it.

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
