use crate::cli::*;
pub fn run(_: &ConvertArgs) -> anyhow::Result<Done> {
    anyhow::bail!("todo")
}
