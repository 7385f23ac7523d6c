//! What is known of a request beside who asks for what, as policies see it (`context.…`).
//!
//! A policy that does not name an attribute decides the same without it, so only the attributes that the policies at hand name are made.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use cedar_policy::{Context, RestrictedExpression};
use serde_json::Value;

use crate::score::{Network, Part, Score};

/// What was observed of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// Now.
    pub now: SystemTime,
    /// Address of the peer, where it has one.
    pub source: Option<IpAddr>,
    /// Where that lies.
    pub network: Network,
    /// Where this server runs; empty where that was not said.
    pub site: String,
    /// Since when the session lives.
    pub session_age: Duration,
    /// Since when workload or device is attested, where it is.
    pub attested_age: Option<Duration>,
    /// Size of the request.
    pub request_bytes: u64,
    /// The trust score.
    pub score: Score,
}

impl Observed {
    /// Hour of the day (0 to 23) and day of the week (1 is Monday), UTC.
    pub fn hour_and_weekday(now: SystemTime) -> (u8, u8) {
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        // 1 January 1970 was a Thursday.
        ((seconds % 86_400 / 3600) as u8, ((seconds / 86_400 + 3) % 7) as u8 + 1)
    }
}

/// Names of the attributes, in the order of the bits of [`Keys`].
const NAMES: [&str; 17] = [
    "score",
    "score_identity",
    "score_posture",
    "score_network",
    "score_time",
    "score_rate",
    "score_novelty",
    "score_detectors",
    "now",
    "hour",
    "weekday",
    "source",
    "network",
    "site",
    "session_age_s",
    "attested_age_s",
    "request_bytes",
];

/// The attributes of the context that policies name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Keys(u32);

impl Keys {
    pub(super) const ALL: Self = Self(u32::MAX);

    /// Those that a policy in Cedar's JSON names; all, where it uses the context otherwise than by an attribute.
    pub(super) fn of(policy: &Value) -> Self {
        match policy {
            Value::Object(map) => {
                if let Some(name) = [".", "has"].into_iter().find_map(|operator| attribute(map.get(operator)?)) {
                    return Self::named(name);
                }
                if map.get("Var").and_then(Value::as_str) == Some("context") {
                    return Self::ALL;
                }
                map.values().map(Self::of).fold(Self::default(), Self::and)
            }
            Value::Array(list) => list.iter().map(Self::of).fold(Self::default(), Self::and),
            _ => Self::default(),
        }
    }

    fn named(name: &str) -> Self {
        match NAMES.iter().position(|known| *known == name) {
            Some(bit) => Self(1 << bit),
            None => Self::ALL,
        }
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Makes the context of these attributes.
    pub(super) fn context(self, observed: &Observed) -> Result<Context, String> {
        if self == Self::default() {
            return Ok(Context::empty());
        }
        let named = NAMES.iter().enumerate().filter(|(bit, _)| self.0 & (1 << bit) != 0);
        let pairs = named.filter_map(|(_, &name)| Some((name.to_owned(), value(name, observed)?)));
        Context::from_pairs(pairs).map_err(|error| format!("the context cannot be made: {error}"))
    }
}

/// The name `a` where the operand is `context.a` or `context has a`.
fn attribute(operand: &Value) -> Option<&str> {
    let is_context = operand.get("left")?.get("Var")?.as_str()? == "context";
    operand.get("attr")?.as_str().filter(|_| is_context)
}

fn value(name: &str, observed: &Observed) -> Option<RestrictedExpression> {
    let long = |value: u64| Some(RestrictedExpression::new_long(i64::try_from(value).unwrap_or(i64::MAX)));
    let part = |part| long(observed.score.part(part).into());
    let (hour, weekday) = Observed::hour_and_weekday(observed.now);
    match name {
        "score" => long(observed.score.total.into()),
        "score_identity" => part(Part::Identity),
        "score_posture" => part(Part::Posture),
        "score_network" => part(Part::Network),
        "score_time" => part(Part::Time),
        "score_rate" => part(Part::Rate),
        "score_novelty" => part(Part::Novelty),
        "score_detectors" => part(Part::Detectors),
        "now" => Some(RestrictedExpression::new_datetime(datetime(observed.now))),
        "hour" => long(hour.into()),
        "weekday" => long(weekday.into()),
        "source" => observed.source.map(|address| RestrictedExpression::new_ip(address.to_canonical().to_string())),
        "network" => Some(RestrictedExpression::new_string(observed.network.name().to_owned())),
        "site" => Some(RestrictedExpression::new_string(observed.site.clone())),
        "session_age_s" => long(observed.session_age.as_secs()),
        "attested_age_s" => observed.attested_age.and_then(|age| long(age.as_secs())),
        "request_bytes" => long(observed.request_bytes),
        _ => None,
    }
}

/// `YYYY-MM-DDThh:mm:ssZ`; the years 1970 to 9999 are what Cedar reads.
fn datetime(time: SystemTime) -> String {
    let last = UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_seconds(time.clamp(UNIX_EPOCH, last)).to_string()
}
