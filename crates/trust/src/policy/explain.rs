//! Why a request was decided so: the policies that came nearest to permitting it, and what of each was not met.
//!
//! Each part of a policy (a part of its scope, a condition, an operand of `&&` in a condition) is put to Cedar as a policy of its own.

use std::{str::FromStr as _, sync::Arc};

use cedar_policy::{Expression, Policy, PolicySet, Request as CedarRequest, eval_expression};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    context::{Keys, Observed},
    decision::{Decision, PolicyInfo, Request},
    evaluate::roomy,
    rules::{Prepared, Rules},
};

/// Policies that are looked at part by part.
const EXAMINED_MAX: usize = 64;

/// A decision with the policies that came nearest to permitting it.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// What was decided.
    pub decision: Decision,
    /// Permits that do not apply, those with the fewest unmet parts first.
    pub nearest: Vec<Nearest>,
}

/// A policy that does not apply.
#[derive(Clone, Debug, Serialize)]
pub struct Nearest {
    /// Which.
    pub policy: Arc<PolicyInfo>,
    /// What of it is not met.
    pub unmet: Vec<Unmet>,
}

/// A part of a policy that is not met.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Unmet {
    /// `principal`, `action`, `resource`, `when` or `unless`.
    pub part: &'static str,
    /// Its text.
    pub text: String,
    /// What it speaks of, with the values that were found.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<(String, String)>,
    /// Why it cannot be evaluated, where it cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The question that parts are put to.
struct Probe<'a> {
    rules: &'a Rules,
    prepared: &'a Prepared,
    request: CedarRequest,
}

impl Rules {
    /// Decides, and names up to `nearest_max` permits that came nearest to applying.
    pub fn explain(&self, request: &Request<'_>, observed: &Observed, nearest_max: usize) -> Explanation {
        let decision = self.decide(request, observed);
        let (Ok(Some(prepared)), Some(reach)) = (self.prepare(request), self.reach(request)) else {
            return Explanation { decision, nearest: Vec::new() };
        };
        let Ok(asked) = prepared.question.request(Keys::ALL, observed) else {
            return Explanation { decision, nearest: Vec::new() };
        };
        let probe = Probe { rules: self, prepared: &prepared, request: asked };
        let mut permits: Vec<(&Policy, &Arc<PolicyInfo>)> = self
            .policies
            .policies()
            .filter_map(|policy| Some((policy, self.infos.get(policy.id())?)))
            .filter(|(_, info)| !info.forbids && !decision.policies.iter().any(|decided| decided.id == info.id))
            .collect();
        permits.sort_by_cached_key(|(policy, info)| (self.index.unmet(policy, &reach), info.place.clone()));
        let examined = permits.into_iter().take(EXAMINED_MAX.max(nearest_max));
        let mut nearest: Vec<Nearest> = examined
            .map(|(policy, info)| Nearest { policy: Arc::clone(info), unmet: roomy(|| probe.unmet(policy)) })
            .filter(|nearest| !nearest.unmet.is_empty())
            .collect();
        nearest.sort_by_key(|nearest| nearest.unmet.len());
        nearest.truncate(nearest_max);
        Explanation { decision, nearest }
    }
}

impl Probe<'_> {
    fn unmet(&self, policy: &Policy) -> Vec<Unmet> {
        let Ok(whole) = policy.to_json() else { return Vec::new() };
        let mut unmet = Vec::new();
        for part in ["principal", "action", "resource"] {
            if let Some(scope) = whole.get(part) {
                let mut alone = blank();
                alone[part] = scope.clone();
                unmet.extend(self.put(part, &alone, None));
            }
        }
        for condition in whole.get("conditions").and_then(Value::as_array).into_iter().flatten() {
            let Some(body) = condition.get("body") else { continue };
            // `unless { a || b }` needs both false, `when { a && b }` both true.
            let (part, operator) =
                if condition.get("kind") == Some(&json!("unless")) { ("unless", "||") } else { ("when", "&&") };
            let before = unmet.len();
            for operand in operands(body, operator) {
                let mut alone = blank();
                alone["conditions"] = json!([{ "kind": part, "body": operand }]);
                if let Some(found) = self.put(part, &alone, Some(operand)) {
                    // What only fails because an operand before it guards it says nothing new.
                    if found.error.is_none() || unmet.len() == before {
                        unmet.push(found);
                    }
                }
            }
        }
        unmet
    }

    /// Whether a policy of one part is met; what it says where not.
    fn put(&self, part: &'static str, alone: &Value, operand: Option<&Value>) -> Option<Unmet> {
        let policy = Policy::from_json(None, alone.clone()).ok()?;
        // As written in JSON: `to_cedar` would say `!(a < b)` for `a >= b`.
        let text = policy.to_string();
        let set = PolicySet::from_policies([policy]).ok()?;
        let response = self.rules.authorizer.is_authorized(&self.request, &set, &self.prepared.question.entities);
        if response.decision() == cedar_policy::Decision::Allow {
            return None;
        }
        let error = response.diagnostics().errors().next().map(|error| match error {
            cedar_policy::AuthorizationError::PolicyEvaluationError(error) => error.inner().to_string(),
        });
        let values = operand.map(|operand| self.values(operand)).unwrap_or_default();
        Some(Unmet { part, text: only(part, &text), values, error })
    }

    /// The attributes that an expression reads, with their values.
    fn values(&self, expression: &Value) -> Vec<(String, String)> {
        let mut names = Vec::new();
        attributes(expression, &mut names);
        names.sort();
        names.dedup();
        let value = |name: &String| {
            let expression = Expression::from_str(name).ok()?;
            let value = eval_expression(&self.request, &self.prepared.question.entities, &expression).ok()?;
            Some((name.clone(), value.to_string()))
        };
        names.iter().filter_map(value).collect()
    }
}

fn blank() -> Value {
    json!({
        "effect": "permit", "principal": { "op": "All" }, "action": { "op": "All" }, "resource": { "op": "All" }, "conditions": [],
    })
}

/// The operands of nested `operator`s, in their order.
fn operands<'a>(expression: &'a Value, operator: &str) -> Vec<&'a Value> {
    match expression.get(operator) {
        Some(both) => ["left", "right"]
            .iter()
            .filter_map(|side| both.get(side))
            .flat_map(|side| operands(side, operator))
            .collect(),
        None => vec![expression],
    }
}

fn attributes(expression: &Value, names: &mut Vec<String>) {
    match expression {
        Value::Object(map) => {
            if let Some(access) = map.get(".") {
                let variable = access.get("left").and_then(|left| left.get("Var")).and_then(Value::as_str);
                if let (Some(variable), Some(name)) = (variable, access.get("attr").and_then(Value::as_str)) {
                    names.push(format!("{variable}[{}]", Value::from(name)));
                }
            }
            map.values().for_each(|value| attributes(value, names));
        }
        Value::Array(list) => list.iter().for_each(|value| attributes(value, names)),
        _ => {}
    }
}

/// The text of one part out of the policy of that part alone.
fn only(part: &str, policy: &str) -> String {
    let text = policy.split_whitespace().collect::<Vec<_>>().join(" ");
    let inner = match part {
        "when" | "unless" => text.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}')).map(|(inner, _)| inner),
        _ => {
            let scope = text.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')')).map(|(inner, _)| inner);
            scope.and_then(|scope| {
                let start = scope.find(part)?;
                let rest = &scope[start..];
                let next = ["principal", "action", "resource"].iter().filter(|other| **other != part);
                let end = next.filter_map(|other| rest.find(&format!(", {other}"))).min().unwrap_or(rest.len());
                rest.get(..end)
            })
        }
    };
    inner.unwrap_or(&text).trim().trim_end_matches(',').to_owned()
}
