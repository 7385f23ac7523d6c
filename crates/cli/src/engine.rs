//! `edgeward engine`: which engines there are, and fetching the ones that are not built in.

use std::time::Duration;

use edgeward_engine::{NAMES, install};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::{
    Context, engines,
    failure::{Failure, Outcome},
    print,
};

/// Options of `engine`.
#[derive(clap::Args)]
pub struct EngineCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// The engines, their versions and what they run on
    List,
    /// Fetch engines with pip, checked by hash, into the user's cache folder
    Install {
        /// Names, as `list` shows them; all that can be fetched where none
        names: Vec<String>,
    },
    /// Print where an engine's library is
    Path {
        /// Engine
        name: String,
    },
}

#[derive(Serialize)]
struct Line {
    name: &'static str,
    available: bool,
    version: Option<String>,
    library: Option<std::path::PathBuf>,
    providers: Vec<String>,
    reason: Option<String>,
}

/// Runs the command.
pub fn run(args: &EngineCommand, context: &Context) -> Outcome {
    match &args.action {
        Action::List => list(context),
        Action::Install { names } => install_all(names, context),
        Action::Path { name } => path(name, context),
    }
}

fn list(context: &Context) -> Outcome {
    let registry = engines::registry(&context.settings.engine);
    let lines: Vec<Line> = NAMES
        .iter()
        .map(|&name| match registry.get(name) {
            Ok(engine) => {
                let info = engine.info();
                let (version, library, providers) = (Some(info.version), info.library, info.providers);
                Line { name, available: true, version, library, providers, reason: None }
            }
            Err(error) => {
                let reason = Some(error.message().to_owned());
                Line { name, available: false, version: None, library: None, providers: Vec::new(), reason }
            }
        })
        .collect();
    if context.json {
        return print::json(&lines);
    }
    let row = |line: &Line| {
        let place = line.library.as_ref().map_or_else(|| "built in".to_owned(), |path| path.display().to_string());
        let what = line.reason.clone().unwrap_or(place);
        vec![line.name.to_owned(), line.version.clone().unwrap_or_default(), line.providers.join(", "), what]
    };
    print::table(&["engine", "version", "runs on", "library"], lines.iter().map(row).collect(), 4)
}

fn install_all(names: &[String], context: &Context) -> Outcome {
    let known: Vec<&str> = install::list().iter().map(|entry| entry.name).collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(Failure::input(format!("`{unknown}` cannot be installed; expected `{}`", known.join("` or `"))));
    }
    let wanted = if names.is_empty() { known } else { names.iter().map(String::as_str).collect() };
    let mut installed = serde_json::Map::new();
    for name in wanted {
        let path = install_one(name)?;
        if !context.json {
            print::line(&format!("{name}: {}", path.display()))?;
        }
        installed.insert(name.to_owned(), path.display().to_string().into());
    }
    if context.json { print::json(&installed) } else { Ok(()) }
}

/// Installs with a spinner on a terminal.
pub fn install_one(name: &str) -> Result<std::path::PathBuf, Failure> {
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner:.cyan} {prefix}: {msg} {elapsed:.dim}") {
        spinner.set_style(style);
    }
    spinner.set_prefix(name.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(100));
    let result = install::install(name, &mut |step| spinner.set_message(step.to_owned()));
    spinner.finish_and_clear();
    Ok(result?)
}

fn path(name: &str, context: &Context) -> Outcome {
    let known: Vec<&str> = install::list().iter().map(|entry| entry.name).collect();
    if !known.contains(&name) {
        return Err(Failure::input(format!("`{name}` has no library; expected `{}`", known.join("` or `"))));
    }
    let found = install::path(name)
        .ok_or_else(|| anyhow::anyhow!("`{name}` is not installed; `edgeward engine install {name}` fetches it"))?;
    let text = found.display().to_string();
    if context.json { print::json(&serde_json::json!({ "name": name, "path": text })) } else { print::line(&text) }
}
