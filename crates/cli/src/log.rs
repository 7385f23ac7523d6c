//! Structured logs to standard error: lines for people on a terminal, JSON elsewhere.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One readable line each
    Text,
    /// One JSON object each
    Json,
}

/// Starts logging: at `info`, or as the filter says that `EDGEWARD_LOG` holds, e.g. `debug` or `edgeward_serve=trace`.
pub fn init(format: Option<LogFormat>) {
    let filter = EnvFilter::try_from_env("EDGEWARD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(terminal);
    let format = format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    // A logger that is there already stays.
    let _ = match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}
