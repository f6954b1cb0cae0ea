//! What a number may be. A struct of hyper-parameters states it for each of its fields, beside their defaults; whoever
//! reads a configuration checks it.

/// Numbers from `least` to `most`; without `least` itself where it is `above`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
    /// Whether the smallest is left out.
    pub above: bool,
}

/// The ranges of a struct's numeric fields, by name.
pub type Ranges = &'static [(&'static str, Range)];

/// From `least` to `most`, both included.
pub const fn from(least: f64, most: f64) -> Range {
    Range { least, most, above: false }
}

/// Above `least`, up to `most`.
pub const fn above(least: f64, most: f64) -> Range {
    Range { least, most, above: true }
}

/// A seed: any.
pub const SEED: Range = from(0.0, u64::MAX as f64);

/// Memory for a pass, in MB.
pub const MEMORY_MB: Range = above(0.0, 1e9);

impl Range {
    /// Whether a number lies in it; NaN lies nowhere.
    pub fn holds(&self, value: f64) -> bool {
        value <= self.most && if self.above { value > self.least } else { value >= self.least }
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let number =
            |x: f64| if x != 0.0 && (x.abs() >= 1e7 || x.abs() < 1e-3) { format!("{x:e}") } else { x.to_string() };
        match (self.above, self.least) {
            (true, 0.0) => write!(f, "positive and at most {}", number(self.most)),
            (true, least) => write!(f, "above {} and at most {}", number(least), number(self.most)),
            (false, least) => write!(f, "at least {} and at most {}", number(least), number(self.most)),
        }
    }
}
