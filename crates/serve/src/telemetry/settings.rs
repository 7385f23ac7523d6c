//! The trace settings extension: what is traced of which model, how often and how long.
//!
//! A model follows the global settings in all that was not set for it. A reader takes no lock: every change makes a
//! new plan.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::core::{ServeError, ServeErrorKind};

/// As Triton has it.
pub(super) const RATE_DEFAULT: u64 = 1000;

/// What a trace holds; nothing for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceLevels {
    /// When each part of the work began and ended.
    pub timestamps: bool,
    /// Inputs and outputs.
    pub tensors: bool,
}

impl TraceLevels {
    /// Reads `OFF`, `TIMESTAMPS` and `TENSORS`. The error names the word.
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut levels = Self::default();
        for word in words {
            match word {
                "OFF" => levels = Self::default(),
                "TIMESTAMPS" => levels.timestamps = true,
                "TENSORS" => levels.tensors = true,
                other => {
                    return Err(format!("trace level `{other}` is unknown, expected OFF, TIMESTAMPS or TENSORS"));
                }
            }
        }
        Ok(levels)
    }

    fn any(self) -> bool {
        self.timestamps || self.tensors
    }

    fn words(self) -> Vec<String> {
        let words = [("TIMESTAMPS", self.timestamps), ("TENSORS", self.tensors), ("OFF", !self.any())];
        words.into_iter().filter(|(_, set)| *set).map(|(word, _)| word.to_owned()).collect()
    }
}

/// What holds of one model, or of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) levels: TraceLevels,
    pub(super) rate: u64,
    /// Traces still to come; below 0 without end.
    pub(super) count: i64,
    pub(super) log_frequency: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { levels: TraceLevels::default(), rate: RATE_DEFAULT, count: -1, log_frequency: 0 }
    }
}

/// What was set for a model and does not follow the global settings.
#[derive(Clone, Copy, Debug, Default)]
struct Own {
    levels: Option<TraceLevels>,
    rate: Option<u64>,
    count: Option<i64>,
    log_frequency: Option<u64>,
}

/// One setting of an update; none of its values clears it.
#[derive(Clone, Debug)]
pub(crate) struct Update {
    pub(crate) name: String,
    pub(crate) values: Option<Vec<String>>,
}

#[derive(Debug)]
struct Scope {
    settings: Settings,
    seen: AtomicU64,
    /// Shared by all that follow the same count.
    left: Arc<AtomicI64>,
}

#[derive(Debug)]
struct Plan {
    global: Arc<Scope>,
    models: HashMap<Arc<str>, Arc<Scope>>,
}

struct State {
    global: Settings,
    models: BTreeMap<Arc<str>, Own>,
}

/// The settings of one server.
pub(crate) struct TraceSettings {
    active: AtomicBool,
    log_frequency: AtomicU64,
    plan: ArcSwap<Plan>,
    state: Mutex<State>,
    start: Settings,
    mode: &'static str,
    path: String,
    /// There is a place to write traces to.
    sink: bool,
}

fn refuse(text: impl Into<String>) -> ServeError {
    ServeError::new(ServeErrorKind::InvalidArgument, text)
}

impl TraceSettings {
    pub(super) fn new(start: Settings, mode: &'static str, path: String, sink: bool) -> Self {
        let left = Arc::new(AtomicI64::new(start.count));
        let global = Arc::new(Scope { settings: start, seen: AtomicU64::new(0), left });
        Self {
            active: AtomicBool::new(sink && start.levels.any()),
            log_frequency: AtomicU64::new(start.log_frequency),
            plan: ArcSwap::from_pointee(Plan { global, models: HashMap::new() }),
            state: Mutex::new(State { global: start, models: BTreeMap::new() }),
            start,
            mode,
            path,
            sink,
        }
    }

    /// True where any request may be traced.
    pub(super) fn active(&self) -> bool {
        self.active.load(Relaxed)
    }

    pub(super) fn log_frequency(&self) -> u64 {
        self.log_frequency.load(Relaxed)
    }

    /// What to trace of this request; none where it is not its turn. A caller that has decided is followed.
    pub(super) fn sample(&self, model: &str, decided: Option<bool>) -> Option<TraceLevels> {
        let plan = self.plan.load();
        let scope = plan.models.get(model).unwrap_or(&plan.global);
        if !scope.settings.levels.any() || decided == Some(false) {
            return None;
        }
        if decided.is_none() && !scope.seen.fetch_add(1, Relaxed).is_multiple_of(scope.settings.rate) {
            return None;
        }
        let one_less = |left: i64| (left != 0).then_some(if left > 0 { left - 1 } else { left });
        scope.left.fetch_update(Relaxed, Relaxed, one_less).ok()?;
        Some(scope.settings.levels)
    }

    /// The settings of `model`, or the global ones, in the protocol's words. Levels may be several.
    pub(crate) fn get(&self, model: Option<&str>) -> Vec<(&'static str, Vec<String>)> {
        let plan = self.plan.load();
        let scope = model.and_then(|name| plan.models.get(name)).unwrap_or(&plan.global);
        let settings = scope.settings;
        vec![
            ("trace_file", vec![self.path.clone()]),
            ("trace_level", settings.levels.words()),
            ("trace_rate", vec![settings.rate.to_string()]),
            ("trace_count", vec![scope.left.load(Relaxed).to_string()]),
            ("log_frequency", vec![settings.log_frequency.to_string()]),
            ("trace_mode", vec![self.mode.to_owned()]),
        ]
    }

    /// Changes settings, of one model or globally; all or none. Cleared settings of a model follow the global ones,
    /// cleared global ones are as at the start.
    pub(crate) fn update(&self, model: Option<&str>, updates: &[Update]) -> Result<(), ServeError> {
        let mut state = self.state.lock();
        let plan = self.plan.load_full();
        let mut own = match model {
            Some(name) => state.models.get(name).copied().unwrap_or_default(),
            None => Own::from(state.global),
        };
        own.count = own.count.map(|_| {
            let scope = model.and_then(|name| plan.models.get(name)).unwrap_or(&plan.global);
            scope.left.load(Relaxed)
        });
        for update in updates {
            own.set(update)?;
        }
        if own.levels.is_some_and(TraceLevels::any) && !self.sink {
            return Err(refuse(
                "traces have no place to go: start the server with `--trace-file FILE` or `--otlp-endpoint URL`",
            ));
        }
        match model {
            Some(name) if updates.is_empty() => drop(state.models.remove(name)),
            Some(name) => drop(state.models.insert(name.into(), own)),
            None => state.global = own.over(self.start),
        }
        let counted = updates.iter().any(|u| u.name == "trace_count");
        self.replan(&state, &plan, (model, counted));
        Ok(())
    }

    fn replan(&self, state: &State, old: &Plan, (changed, counted): (Option<&str>, bool)) {
        let recount = |scope: &Scope, of: Option<&str>, count: i64| {
            if counted && of == changed { Arc::new(AtomicI64::new(count)) } else { scope.left.clone() }
        };
        let left = recount(&old.global, None, state.global.count);
        let global = Arc::new(Scope { settings: state.global, seen: AtomicU64::new(0), left });
        let models = state.models.iter().map(|(name, own)| {
            let left = match (own.count, old.models.get(name)) {
                (None, _) => global.left.clone(),
                (Some(count), Some(scope)) => recount(scope, Some(name), count),
                (Some(count), None) => Arc::new(AtomicI64::new(count)),
            };
            (name.clone(), Arc::new(Scope { settings: own.over(state.global), seen: AtomicU64::new(0), left }))
        });
        let models: HashMap<Arc<str>, Arc<Scope>> = models.collect();
        let any = [&global].into_iter().chain(models.values()).any(|scope| scope.settings.levels.any());
        self.log_frequency.store(global.settings.log_frequency, Relaxed);
        self.plan.store(Arc::new(Plan { global, models }));
        self.active.store(self.sink && any, Relaxed);
    }
}

impl From<Settings> for Own {
    fn from(s: Settings) -> Self {
        Self { levels: Some(s.levels), rate: Some(s.rate), count: Some(s.count), log_frequency: Some(s.log_frequency) }
    }
}

impl Own {
    /// What holds where the rest is `base`.
    fn over(self, base: Settings) -> Settings {
        Settings {
            levels: self.levels.unwrap_or(base.levels),
            rate: self.rate.unwrap_or(base.rate),
            count: self.count.unwrap_or(base.count),
            log_frequency: self.log_frequency.unwrap_or(base.log_frequency),
        }
    }

    fn set(&mut self, update: &Update) -> Result<(), ServeError> {
        let (name, values) = (update.name.as_str(), update.values.as_deref());
        match name {
            "trace_level" => {
                let levels = values.map(|words| TraceLevels::parse(words.iter().map(String::as_str)));
                self.levels = levels.transpose().map_err(refuse)?;
            }
            "trace_rate" => self.rate = number(name, values, 1)?.map(i64::cast_unsigned),
            "trace_count" => self.count = number(name, values, -1)?,
            "log_frequency" => self.log_frequency = number(name, values, 0)?.map(i64::cast_unsigned),
            "trace_file" | "trace_mode" => {
                return Err(refuse(format!(
                    "`{name}` cannot be changed over the network; start the server with `--trace-file` or `--otlp-endpoint`"
                )));
            }
            _ => {
                return Err(refuse(format!(
                    "trace setting `{name}` is unknown, expected trace_level, trace_rate, trace_count or log_frequency"
                )));
            }
        }
        Ok(())
    }
}

fn number(name: &str, values: Option<&[String]>, min: i64) -> Result<Option<i64>, ServeError> {
    let Some(values) = values else { return Ok(None) };
    let found = match values {
        [one] => one.parse().ok().filter(|&n: &i64| n >= min),
        _ => None,
    };
    let text = || format!("`{name}` is `{}`, expected one whole number of at least {min}", values.join(", "));
    found.map(Some).ok_or_else(|| refuse(text()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(name: &str, values: &[&str]) -> Update {
        let values = (!values.is_empty()).then(|| values.iter().map(|v| (*v).to_owned()).collect());
        Update { name: name.to_owned(), values }
    }

    fn shown(settings: &TraceSettings, model: Option<&str>, name: &str) -> String {
        settings.get(model).into_iter().find(|(n, _)| *n == name).unwrap().1.join(",")
    }

    #[test]
    fn a_model_follows_what_is_not_its_own() {
        let all = TraceSettings::new(Settings::default(), "triton", "t".to_owned(), true);
        assert!(!all.active());
        all.update(Some("a"), &[update("trace_level", &["TIMESTAMPS"]), update("trace_rate", &["2"])]).unwrap();
        assert!(all.active() && all.sample("b", None).is_none());
        let sampled: Vec<bool> = (0..4).map(|_| all.sample("a", None).is_some()).collect();
        assert_eq!(sampled, [true, false, true, false]);
        all.update(None, &[update("trace_level", &["TENSORS"]), update("log_frequency", &["7"])]).unwrap();
        assert_eq!(shown(&all, Some("a"), "trace_level"), "TIMESTAMPS");
        assert_eq!(shown(&all, Some("a"), "log_frequency"), "7");
        all.update(Some("a"), &[update("trace_level", &[]), update("trace_rate", &[])]).unwrap();
        assert_eq!(shown(&all, Some("a"), "trace_level"), "TENSORS");
        all.update(None, &[update("trace_level", &[])]).unwrap();
        assert_eq!(shown(&all, None, "trace_level"), "OFF");
        assert!(!all.active());
    }

    #[test]
    fn a_count_runs_out_and_shows_what_is_left() {
        let all = TraceSettings::new(Settings::default(), "triton", "t".to_owned(), true);
        let on = [update("trace_level", &["TIMESTAMPS"]), update("trace_rate", &["1"]), update("trace_count", &["3"])];
        all.update(None, &on).unwrap();
        assert!(all.sample("a", None).is_some() && all.sample("b", None).is_some());
        assert_eq!(shown(&all, None, "trace_count"), "1");
        // A change of something else does not begin the count anew.
        all.update(None, &[update("log_frequency", &["1"])]).unwrap();
        assert!(all.sample("a", None).is_some() && all.sample("a", None).is_none());
        all.update(None, &[update("trace_count", &["-1"])]).unwrap();
        assert!(all.sample("a", None).is_some());
    }

    #[test]
    fn a_caller_that_decided_is_followed() {
        let levels = TraceLevels { timestamps: true, tensors: false };
        let all = TraceSettings::new(Settings { levels, ..Settings::default() }, "opentelemetry", String::new(), true);
        assert!(all.sample("a", Some(false)).is_none());
        assert!((0..5).all(|_| all.sample("a", Some(true)).is_some()));
    }

    #[test]
    fn what_cannot_be_meant_changes_nothing() {
        let all = TraceSettings::new(Settings::default(), "triton", "t".to_owned(), true);
        for (name, value) in [
            ("trace_level", "SOME"),
            ("trace_rate", "0"),
            ("trace_rate", "x"),
            ("trace_count", "-2"),
            ("log_frequency", "-1"),
            ("trace_file", "/f"),
            ("trace_mode", "triton"),
            ("pace", "1"),
        ] {
            let updates = [update("trace_level", &["TENSORS"]), update(name, &[value])];
            let error = all.update(None, &updates).unwrap_err();
            assert!(error.message.contains(name) || error.message.contains(value), "{error}");
        }
        assert_eq!(shown(&all, None, "trace_level"), "OFF");
        let nowhere = TraceSettings::new(Settings::default(), "triton", String::new(), false);
        assert!(nowhere.update(None, &[update("trace_level", &["TIMESTAMPS"])]).is_err());
    }
}
