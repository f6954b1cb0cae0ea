use crate::cli::*;
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum What {
    Methods,
}
pub fn run(_: Option<What>) -> anyhow::Result<Done> {
    anyhow::bail!("todo")
}
