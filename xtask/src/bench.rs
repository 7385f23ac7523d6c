//! Benchmarks, each with its peers in one run.

/// Runs the benchmark that `args` name.
pub fn run(args: &[String]) -> anyhow::Result<()> {
    anyhow::bail!("no benchmark `{}`", args.join(" "))
}
