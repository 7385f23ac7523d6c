//! Policies out of files: each file is cut into its policies, which are parsed and checked on all cores.

mod statement;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    num::NonZero,
    str::FromStr as _,
    sync::Arc,
};

use cedar_policy::{
    Effect as CedarEffect, Policy, PolicyId, PolicySet, Schema, ValidationMode, ValidationResult, Validator,
};
use miette::Diagnostic;
use serde_json::Value;

use self::statement::{Statement, statements};
use super::{
    context::Keys,
    decision::PolicyInfo,
    sources::{SourceFile, invalid, line_column},
    terms::Terms,
};
use crate::{ErrorKind, TrustError};

/// How far policies may follow attributes: `principal.strength` is one step. Requests carry the entities of that one step only.
const LEVEL: u32 = 1;
/// Fewer are not worth a thread.
const PER_THREAD_MIN: usize = 64;
/// How deep Cedar reads must not depend on who calls. Several times what the deepest policy needs; what is not touched costs nothing.
const STACK_BYTES: usize = 64 << 20;
/// Brackets and conditions within each other, and letters of operators, of one policy: each may cost a part of the stack.
const NESTED_MAX: usize = 64;
const OPERATORS_MAX: usize = 1000;

/// A policy that was read.
pub(super) struct Read<'a> {
    pub(super) policy: Policy,
    pub(super) info: Arc<PolicyInfo>,
    pub(super) keys: Keys,
    form: String,
    /// Letters of operators.
    pub(super) operators: usize,
    file: &'a SourceFile,
    offset: usize,
}

/// Reads the policies of all files, in their order.
///
/// # Errors
/// The place and the reason of the first that is wrong.
pub(super) fn policies(files: &[SourceFile]) -> Result<Vec<Read<'_>>, TrustError> {
    let all = files.iter().flat_map(|file| statements(&file.text).into_iter().map(move |found| (file, found)));
    let all: Vec<(&SourceFile, Statement<'_>)> = all.collect();
    // All before the first is parsed: an error has Cedar read the whole file once more.
    all.iter().try_for_each(|(file, found)| shallow(file, found))?;
    let parts = on_all_cores(&all, read_part).into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(parts.into_iter().flatten().collect())
}

/// An error where a statement is deeper than Cedar may be asked to read.
fn shallow(file: &SourceFile, found: &Statement<'_>) -> Result<(), TrustError> {
    let wrong = |what: String| Err(invalid(format!("{}:{}: {what}", file.name, found.line)));
    if found.nested > NESTED_MAX {
        return wrong(format!(
            "brackets and conditions are nested {} deep; at most {NESTED_MAX}: make it several policies",
            found.nested
        ));
    }
    if found.operators > OPERATORS_MAX {
        return wrong(format!(
            "a policy with {} letters of operators (`&`, `|`, `.`, `!`, and eight times those of `+`, `-`, `*`); at most {OPERATORS_MAX}: \
             make it several policies, or compare with a set, as `[\"a\", \"b\"].contains(…)`",
            found.operators
        ));
    }
    Ok(())
}

/// Runs a work where the stack is deep enough for all policies that are read.
///
/// # Errors
/// `Unavailable` where there is no thread to be had.
pub(super) fn deep<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, TrustError> {
    std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work).map_err(|error| {
                TrustError::new(ErrorKind::Unavailable, format!("no thread to read policies with: {error}"))
            })?;
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Ends at the first error.
fn read_part<'a>(part: &[(&'a SourceFile, Statement<'a>)]) -> Result<Vec<Read<'a>>, TrustError> {
    part.iter().map(|(file, found)| read_one(file, found)).collect()
}

fn read_one<'a>(file: &'a SourceFile, found: &Statement<'a>) -> Result<Read<'a>, TrustError> {
    let place = format!("{}:{}", file.name, found.line);
    let wrong = |message: &str| invalid(format!("{place}: {message}"));
    let policy = Policy::parse(None, found.text).map_err(|error| unreadable(file, found, &error))?;
    let annotations: BTreeMap<String, String> =
        policy.annotations().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let terms = Terms::read(annotations.iter().map(|(name, value)| (name.as_str(), value.as_str())))
        .map_err(|message| wrong(&message))?;
    let forbids = policy.effect() == CedarEffect::Forbid;
    if forbids && !terms.is_empty() {
        return Err(wrong("terms of a `forbid` have no effect; put them on the `permit`s that they are for"));
    }
    let id = annotations.get("id").cloned().unwrap_or_else(|| place.clone());
    let policy = policy.new_id(PolicyId::new(&id));
    // Out of the parsed form; Cedar would parse the text once more for its JSON otherwise.
    let json = Policy::from(policy.as_ref().clone()).to_json().map_err(|error| wrong(&error.to_string()))?;
    let (keys, form) = (Keys::of(&json), form(json));
    let info = Arc::new(PolicyInfo { id, place, forbids, annotations, terms });
    Ok(Read { policy, info, keys, form, operators: found.operators, file, offset: found.offset })
}

/// What is wrong with a statement: as Cedar says it of the whole file, which knows what was expected in its place.
fn unreadable(file: &SourceFile, found: &Statement<'_>, alone: &cedar_policy::ParseErrors) -> TrustError {
    let (whole, offset) = match PolicySet::from_str(&file.text) {
        Ok(set) if set.templates().next().is_some() => {
            let message = "templates (`?principal`) are not used; name a group";
            return invalid(format!("{}:{}: {message}", file.name, found.line));
        }
        Ok(_) => (None, found.offset),
        Err(error) => (Some(error), 0),
    };
    let error = whole.as_ref().unwrap_or(alone);
    // The first of several is enough: the others often follow from it.
    match error.iter().next() {
        Some(first) => located(file, offset, first, &first.to_string()),
        None => invalid(format!("{}:{}: {error}", file.name, found.line)),
    }
}

/// What the schema's rules see of a policy, but which entities its scope names as principal and resource: to them those of a kind are
/// alike. Names that could be taken for others are told apart, since Cedar warns of them.
fn form(mut json: Value) -> String {
    if let Some(policy) = json.as_object_mut() {
        policy.remove("annotations");
    }
    for part in ["/principal/entity/id", "/resource/entity/id", "/principal/in/entity/id", "/resource/in/entity/id"] {
        if let Some(id) = json.pointer_mut(part)
            && id.as_str().is_some_and(|id| id.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()))
        {
            *id = Value::Null;
        }
    }
    json.to_string()
}

/// Checks policies against the schema, one of each form, and all of a form of which there is something to say. Returns the warnings.
///
/// # Errors
/// All that is wrong, each with its place.
pub(super) fn validate(read: &[Read<'_>], schema: &Schema) -> Result<Vec<String>, TrustError> {
    let by_id: HashMap<&PolicyId, &Read<'_>> = read.iter().map(|read| (read.policy.id(), read)).collect();
    let mut seen = HashSet::new();
    let firsts: Vec<&Read<'_>> = read.iter().filter(|read| seen.insert(read.form.as_str())).collect();
    let mut conspicuous = HashSet::new();
    for result in check(&firsts, schema)? {
        let ids = result.validation_errors().map(cedar_policy::ValidationError::policy_id);
        let ids = ids.chain(result.validation_warnings().map(cedar_policy::ValidationWarning::policy_id));
        conspicuous.extend(ids.filter_map(|id| by_id.get(id)).map(|read| read.form.as_str()));
    }
    let all: Vec<&Read<'_>> = read.iter().filter(|read| conspicuous.contains(read.form.as_str())).collect();
    validate_each(&all, schema)
}

/// Checks each policy.
fn validate_each(all: &[&Read<'_>], schema: &Schema) -> Result<Vec<String>, TrustError> {
    let by_id: HashMap<&PolicyId, &&Read<'_>> = all.iter().map(|read| (read.policy.id(), read)).collect();
    let place = |id: &PolicyId, error: &dyn Diagnostic| {
        let Some(read) = by_id.get(id) else { return String::new() };
        match error.labels().and_then(|mut labels| labels.next()) {
            Some(label) => {
                let (line, column) = line_column(&read.file.text, read.offset + label.offset());
                format!("{}:{line}:{column}", read.file.name)
            }
            None => read.info.place.clone(),
        }
    };
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    for result in check(all, schema)? {
        let found = result.validation_errors();
        errors.extend(found.map(|error| format!("{}: {error}{}", place(error.policy_id(), error), help(error))));
        let found = result.validation_warnings();
        warnings.extend(found.map(|warning| format!("{}: {warning}", place(warning.policy_id(), warning))));
    }
    errors.sort();
    errors.dedup();
    if errors.is_empty() { Ok(warnings) } else { Err(invalid(errors.join("\n"))) }
}

fn check(policies: &[&Read<'_>], schema: &Schema) -> Result<Vec<ValidationResult>, TrustError> {
    let results = on_all_cores(policies, |part| {
        let set = PolicySet::from_policies(part.iter().map(|read| read.policy.clone()));
        let set = set.map_err(|error| invalid(error.to_string()))?;
        Ok(Validator::new(schema.clone()).validate_with_level(&set, ValidationMode::Strict, LEVEL))
    });
    results.into_iter().collect()
}

/// Does a work on the parts of a list, each on a thread of its own where the list is long.
fn on_all_cores<T: Sync, R: Send>(list: &[T], work: impl Fn(&[T]) -> R + Sync) -> Vec<R> {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let length = list.len().div_ceil(cores).max(PER_THREAD_MIN);
    std::thread::scope(|scope| {
        let start = |part| {
            let work = &work;
            std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, move || work(part))
        };
        let started: Vec<_> = list.chunks(length).map(|part| (part, start(part))).collect();
        let ended = started.into_iter().map(|(part, thread)| match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            // No more threads are to be had.
            Err(_) => work(part),
        });
        ended.collect()
    })
}

fn located(file: &SourceFile, offset: usize, error: &dyn Diagnostic, message: &str) -> TrustError {
    let label = error.labels().and_then(|mut labels| labels.next()).map_or(0, |label| label.offset());
    let (line, column) = line_column(&file.text, offset + label);
    invalid(format!("{}:{line}:{column}: {message}{}", file.name, help(error)))
}

fn help(error: &dyn Diagnostic) -> String {
    error.help().map_or_else(String::new, |help| format!("; {help}"))
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::select};

    use super::*;

    /// Parts that fit the schema or do not, and ids that Cedar warns of: bidirectional, invisible, of two scripts.
    fn policy() -> impl Strategy<Value = String> {
        let id = || select(&["a", "b", "x y", "\u{202e}c", "\u{200b}", "pаypal", "ü", "\\u{202e}"][..]);
        let principal = select(
            &[
                "principal",
                "principal == User::",
                "principal in Group::",
                "principal is User in Tenant::",
                "principal in Site::",
                "principal == Nobody::",
            ][..],
        );
        let action = select(
            &[
                "action",
                "action == Action::\"infer\"",
                "action in Action::\"use\"",
                "action == Action::\"get\"",
                "action == Action::\"none\"",
            ][..],
        );
        let resource = select(
            &[
                "resource",
                "resource == Model::",
                "resource in Segment::",
                "resource is Endpoint",
                "resource == Endpoint::",
            ][..],
        );
        let condition = select(
            &[
                "",
                "when { context.score > 3 }",
                "when { context.skore > 3 }",
                "when { resource == Model::\"a\" }",
                "when { principal.strength }",
                "when { User::\"a\".strength > 1 }",
                "when { \"a\" == \"b\" }",
                "unless { context.site like \"\u{202e}*\" }",
            ][..],
        );
        let named =
            |part: &str, id: &str| if part.ends_with("::") { format!("{part}\"{id}\"") } else { part.to_owned() };
        (principal, id(), action, resource, id(), condition).prop_map(
            move |(principal, who, action, resource, what, condition)| {
                format!("permit({}, {action}, {}) {condition};\n", named(principal, who), named(resource, what))
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn one_of_a_form_speaks_for_all(texts in proptest::collection::vec(policy(), 1..24)) {
            let files = [SourceFile { name: "p.cedar".to_owned(), text: texts.concat() }];
            let read = policies(&files).unwrap();
            let schema = crate::policy::schema::schema().unwrap();
            let sorted = |result: Result<Vec<String>, TrustError>| result.map_err(|error| error.to_string()).map(|mut list| {
                list.sort();
                list
            });
            let each: Vec<&Read<'_>> = read.iter().collect();
            prop_assert_eq!(sorted(validate(&read, schema)), sorted(validate_each(&each, schema)));
        }
    }

    #[test]
    fn the_entities_of_the_schema_are_of_kinds_and_not_of_names() {
        // Entities that are enumerated in the schema would be known by their names, of which forms know nothing.
        let text = include_str!("../../policies/schema.cedarschema");
        assert!(!text.contains("enum ["), "{text}");
    }
}
