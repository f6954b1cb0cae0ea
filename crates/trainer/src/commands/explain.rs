use crate::cli::*;
pub fn run(_: &ExplainArgs, _: &Global) -> anyhow::Result<Done> {
    anyhow::bail!("todo")
}
