//! Structured logs to standard error: lines for people on a terminal, JSON elsewhere.

use std::{
    fmt,
    io::{self, IsTerminal as _},
    sync::Arc,
};

use edgeward_serve::{LogControl, LogLevels};
use tracing::{Level, Metadata, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer as _, Registry,
    filter::FilterFn,
    layer::{Filter, SubscriberExt as _},
    reload,
    util::SubscriberInitExt as _,
};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One readable line each
    Text,
    /// One JSON object each
    Json,
}

type AnyFilter = Box<dyn Filter<Registry> + Send + Sync>;

/// Changes what is logged while the program runs.
struct Control {
    start: LogLevels,
    handle: reload::Handle<AnyFilter, Registry>,
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("start", &self.start).finish_non_exhaustive()
    }
}

/// Starts logging: at `info`, or as the filter says that `EDGEWARD_LOG` holds, e.g. `debug` or `edgeward_serve=trace`.
/// The result changes the levels later on.
pub fn init(format: Option<LogFormat>) -> Arc<dyn LogControl> {
    let filter = EnvFilter::try_from_env("EDGEWARD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let most = filter.max_level_hint().unwrap_or(LevelFilter::TRACE);
    let start = LogLevels {
        error: most >= LevelFilter::ERROR,
        warning: most >= LevelFilter::WARN,
        info: most >= LevelFilter::INFO,
        verbose: u32::from(most >= LevelFilter::DEBUG) + u32::from(most >= LevelFilter::TRACE),
    };
    let (filter, handle) = reload::Layer::new(Box::new(filter) as AnyFilter);
    let terminal = io::stderr().is_terminal();
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(terminal);
    let format = format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    // A logger that is there already stays.
    let _ = match format {
        LogFormat::Text => Registry::default().with(layer.with_target(false).with_filter(filter)).try_init(),
        LogFormat::Json => Registry::default().with(layer.json().flatten_event(true).with_filter(filter)).try_init(),
    };
    Arc::new(Control { start, handle })
}

impl LogControl for Control {
    fn levels(&self) -> LogLevels {
        self.start
    }

    fn apply(&self, levels: LogLevels) -> Result<(), String> {
        self.handle.reload(filter(levels)).map_err(|e| e.to_string())
    }
}

/// Exactly the levels asked for; details of other libraries only where everything is asked for.
fn filter<S: Subscriber>(levels: LogLevels) -> Box<dyn Filter<S> + Send + Sync> {
    let wanted = move |metadata: &Metadata<'_>| {
        let own = metadata.target().starts_with("edgeward");
        match *metadata.level() {
            Level::ERROR => levels.error,
            Level::WARN => levels.warning,
            Level::INFO => levels.info,
            Level::DEBUG => levels.verbose >= if own { 1 } else { 3 },
            Level::TRACE => levels.verbose >= if own { 2 } else { 4 },
        }
    };
    let most = match levels {
        LogLevels { verbose: 2.., .. } => LevelFilter::TRACE,
        LogLevels { verbose: 1, .. } => LevelFilter::DEBUG,
        LogLevels { info: true, .. } => LevelFilter::INFO,
        LogLevels { warning: true, .. } => LevelFilter::WARN,
        LogLevels { error: true, .. } => LevelFilter::ERROR,
        _ => LevelFilter::OFF,
    };
    Box::new(FilterFn::new(wanted).with_max_level_hint(most))
}
