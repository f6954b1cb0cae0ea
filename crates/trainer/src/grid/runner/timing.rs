//! How long a grid's work takes, by what has been done of it.

use std::time::Duration;

use super::{Status, Work};
use crate::grid::GridRun;
use crate::report::statistics;

impl Work<'_> {
    pub(super) fn left(&self) -> Option<Duration> {
        self.options.limit.map(|limit| limit.saturating_sub(self.began.elapsed()))
    }

    /// How long a run takes, by the finished ones of its block.
    pub(super) fn expected(&self, at: usize) -> Option<Duration> {
        let block = &self.grid.runs[at].block;
        self.mean_time(|run| run.block == *block)
    }

    /// How long those of some runs that have finished took.
    fn mean_time(&self, of: impl Fn(&GridRun) -> bool) -> Option<Duration> {
        let runs = self.grid.runs.iter().zip(&self.statuses).filter(|(run, _)| of(run));
        let done: Vec<f64> = runs
            .filter_map(|(_, status)| match status {
                Status::Done { seconds, .. } => Some(*seconds),
                _ => None,
            })
            .collect();
        (!done.is_empty()).then(|| Duration::from_secs_f64(statistics::mean(&done)))
    }

    /// When everything will be done, if the finished runs tell; a block that has none takes what the others do.
    pub(super) fn eta(&self) -> Option<Duration> {
        let (all, mut seconds) = (self.mean_time(|_| true)?, 0.0);
        let left: Vec<usize> = (0..self.runs.len()).filter(|at| !self.statuses[*at].is_over()).collect();
        for &at in &left {
            let process = self.processes.iter().find(|p| p.at == at);
            let spent = process.map_or(0.0, |p| p.began.elapsed().as_secs_f64());
            seconds += (self.expected(at).unwrap_or(all).as_secs_f64() - spent).max(0.0);
        }
        Some(Duration::from_secs_f64(seconds / self.options.jobs.min(left.len()).max(1) as f64))
    }
}
