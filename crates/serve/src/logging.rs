//! The log settings extension: which lines the server's own log holds.

use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::core::{ServeError, ServeErrorKind};

/// Which lines are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLevels {
    /// Errors.
    pub error: bool,
    /// Warnings.
    pub warning: bool,
    /// What happens in the ordinary run of things.
    pub info: bool,
    /// 0 for no more than that, 1 for details, 2 for everything.
    pub verbose: u32,
}

/// Changes what the log holds; given by who started the log.
pub trait LogControl: std::fmt::Debug + Send + Sync {
    /// What it holds at the start.
    fn levels(&self) -> LogLevels;
    /// From now on.
    fn apply(&self, levels: LogLevels) -> Result<(), String>;
}

/// The one form that lines have: their times are ISO 8601.
const FORMAT: &str = "ISO8601";

/// The settings of one server.
pub(crate) struct LogSettings {
    control: Option<Arc<dyn LogControl>>,
    levels: Mutex<LogLevels>,
}

fn refuse(text: impl Into<String>) -> ServeError {
    ServeError::new(ServeErrorKind::InvalidArgument, text)
}

impl LogSettings {
    pub(crate) fn new(control: Option<Arc<dyn LogControl>>) -> Self {
        let unknown = LogLevels { error: true, warning: true, info: true, verbose: 0 };
        let levels = Mutex::new(control.as_ref().map_or(unknown, |control| control.levels()));
        Self { control, levels }
    }

    /// All settings in the protocol's words.
    pub(crate) fn get(&self) -> Vec<(&'static str, Value)> {
        let levels = *self.levels.lock();
        vec![
            ("log_file", json!("")),
            ("log_info", json!(levels.info)),
            ("log_warning", json!(levels.warning)),
            ("log_error", json!(levels.error)),
            ("log_verbose_level", json!(levels.verbose)),
            ("log_format", json!(FORMAT)),
        ]
    }

    /// Changes what is named; all or nothing.
    pub(crate) fn update(&self, updates: &serde_json::Map<String, Value>) -> Result<(), ServeError> {
        let mut current = self.levels.lock();
        let mut levels = *current;
        for (name, value) in updates {
            let flag = || {
                let text = || format!("`{name}` is `{value}`, expected true or false");
                value.as_bool().ok_or_else(|| refuse(text()))
            };
            match name.as_str() {
                "log_info" => levels.info = flag()?,
                // Triton's documents have the plural, its server the singular.
                "log_warning" | "log_warnings" => levels.warning = flag()?,
                "log_error" | "log_errors" => levels.error = flag()?,
                "log_verbose_level" => {
                    let level = value.as_u64().and_then(|level| u32::try_from(level).ok());
                    let text = || format!("`{name}` is `{value}`, expected a whole number of at least 0");
                    levels.verbose = level.ok_or_else(|| refuse(text()))?;
                }
                "log_format" if value == FORMAT => {}
                "log_format" => {
                    return Err(refuse(format!("`{name}` is `{value}`, every line has the form `{FORMAT}`")));
                }
                "log_file" if value == "" => {}
                "log_file" => {
                    let text = "`log_file` is refused: a caller must not choose which file the server writes; the log goes to standard error";
                    return Err(refuse(text));
                }
                _ => {
                    return Err(refuse(format!(
                        "log setting `{name}` is unknown, expected log_info, log_warning, log_error or log_verbose_level"
                    )));
                }
            }
        }
        if levels != *current {
            let Some(control) = &self.control else {
                let text = "the log of this server cannot be changed while it runs";
                return Err(ServeError::new(ServeErrorKind::Unsupported, text));
            };
            control.apply(levels).map_err(|text| ServeError::new(ServeErrorKind::Internal, text))?;
            *current = levels;
        }
        Ok(())
    }
}
