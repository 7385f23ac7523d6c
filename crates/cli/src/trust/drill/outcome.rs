//! What a drill found: values only, for the table, the JSON and the page.

use serde::Serialize;

/// How a breach attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Every attempt was refused, or gained less than the bound.
    Held,
    /// At least one attempt was not.
    GotThrough,
    /// It could not be tried here.
    NotApplicable,
}

impl Outcome {
    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::GotThrough => "got through",
            Self::NotApplicable => "not applicable",
        }
    }
}

/// A drill of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drill {
    /// As `--only` names it.
    pub id: &'static str,
    /// In words.
    pub title: &'static str,
    /// Techniques of MITRE ATLAS 5.6 (`AML.…`).
    pub atlas: &'static [&'static str],
    /// What is tried.
    pub tried: &'static str,
    /// What holds it.
    pub defence: &'static str,
}

/// What was found, before it is put under its drill.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// How it ended.
    pub outcome: Outcome,
    /// Why, in a sentence.
    pub reason: String,
    /// Each attempt with its answer, and figures.
    pub evidence: Vec<Evidence>,
    /// To look at.
    pub figure: Option<Figure>,
}

/// A line of evidence.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evidence {
    /// What was tried or measured.
    pub what: String,
    /// What came of it.
    pub found: String,
    /// This is what got through.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub through: bool,
}

/// A figure of a report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// What it shows.
    pub title: String,
    /// Horizontal axis.
    pub x: String,
    /// Vertical axis.
    pub y: String,
    /// Lines by name.
    pub lines: Vec<Line>,
    /// Where the vertical axis has the bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound: Option<f64>,
}

/// A line of a figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// Its name.
    pub name: String,
    /// Its points.
    pub points: Vec<(f64, f64)>,
}

/// A drill with what it found.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// As `--only` names it.
    pub id: &'static str,
    /// In words.
    pub title: &'static str,
    /// Techniques of MITRE ATLAS.
    pub atlas: &'static [&'static str],
    /// What was tried.
    pub tried: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// Why.
    pub reason: String,
    /// What holds it.
    pub defence: &'static str,
    /// Each attempt with its answer, and figures.
    pub evidence: Vec<Evidence>,
    /// To look at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub figure: Option<Figure>,
    /// How long it took.
    pub seconds: f64,
}

impl Evidence {
    /// A figure, or an attempt that gained nothing.
    pub fn new(what: impl Into<String>, found: impl Into<String>) -> Self {
        Self { what: what.into(), found: found.into(), through: false }
    }

    /// An attempt, which got through or not.
    pub fn attempt(what: impl Into<String>, found: impl Into<String>, through: bool) -> Self {
        Self { what: what.into(), found: found.into(), through }
    }
}

impl Verdict {
    /// It could not be tried.
    pub fn not_applicable(reason: impl Into<String>) -> Self {
        Self { outcome: Outcome::NotApplicable, reason: reason.into(), evidence: Vec::new(), figure: None }
    }

    /// By its attempts: one that got through is enough. Figures beside them are evidence that never gets through.
    pub fn of(evidence: Vec<Evidence>, held: impl Into<String>, through: impl Into<String>) -> Self {
        let got_through = evidence.iter().filter(|line| line.through).count();
        let (outcome, reason) = match got_through {
            0 => (Outcome::Held, held.into()),
            1 => (Outcome::GotThrough, format!("one attempt {}", through.into())),
            count => (Outcome::GotThrough, format!("{count} attempts: {}", through.into())),
        };
        Self { outcome, reason, evidence, figure: None }
    }

    /// The same, unless the rightful way did not work either: then a refusal says nothing.
    #[must_use]
    pub fn unless_broken(self, broken: Option<String>) -> Self {
        match broken {
            Some(why) if self.outcome == Outcome::Held => Self { outcome: Outcome::NotApplicable, reason: why, ..self },
            _ => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_attempt_that_gets_through_is_enough() {
        let refused = Evidence::attempt("a", "401", false);
        let answered = Evidence::attempt("b", "200", true);
        let held = Verdict::of(vec![refused.clone()], "all refused", "answered");
        assert_eq!((held.outcome, held.reason.as_str()), (Outcome::Held, "all refused"));
        let through = Verdict::of(vec![refused, answered], "all refused", "answered");
        assert_eq!(through.outcome, Outcome::GotThrough);
        assert_eq!(through.reason, "one attempt answered");
    }

    #[test]
    fn a_refusal_of_everyone_is_no_defence_but_a_breach_stays_one() {
        let held = Verdict::of(vec![Evidence::attempt("a", "503", false)], "", "");
        assert_eq!(held.unless_broken(Some("503 for all".to_owned())).outcome, Outcome::NotApplicable);
        let through = Verdict::of(vec![Evidence::attempt("a", "200", true)], "", "");
        assert_eq!(through.unless_broken(Some("503 for all".to_owned())).outcome, Outcome::GotThrough);
    }
}
