//! `config.pbtxt`, read strictly: a field that has no effect here is an error that names it.

use std::num::NonZeroUsize;

use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, ReflectMessage as _, Value};

use crate::proto::{
    self, ModelConfig, ModelDynamicBatching, ModelEnsembling, model_config::SchedulingChoice,
    model_version_policy::PolicyChoice,
};

/// What this server acts on; every other field that is set is refused.
const SUPPORTED: &[&str] = &[
    "name",
    "platform",
    "backend",
    "max_batch_size",
    "input",
    "input.name",
    "input.data_type",
    "input.dims",
    "output",
    "output.name",
    "output.data_type",
    "output.dims",
    "output.label_filename",
    "version_policy",
    "version_policy.latest",
    "version_policy.latest.num_versions",
    "version_policy.all",
    "version_policy.specific",
    "version_policy.specific.versions",
    "instance_group",
    "instance_group.count",
    "instance_group.kind",
    "default_model_filename",
    "dynamic_batching",
    "dynamic_batching.preferred_batch_size",
    "dynamic_batching.max_queue_delay_microseconds",
    "dynamic_batching.preserve_ordering",
    "dynamic_batching.priority_levels",
    "dynamic_batching.default_priority_level",
    "dynamic_batching.default_queue_policy",
    "dynamic_batching.default_queue_policy.timeout_action",
    "dynamic_batching.default_queue_policy.default_timeout_microseconds",
    "dynamic_batching.default_queue_policy.allow_timeout_override",
    "dynamic_batching.default_queue_policy.max_queue_size",
    "dynamic_batching.priority_queue_policy",
    "model_warmup",
    "model_warmup.name",
    "model_warmup.batch_size",
    "model_warmup.inputs",
    "model_warmup.count",
    "ensemble_scheduling",
    "ensemble_scheduling.step",
    "ensemble_scheduling.step.model_name",
    "ensemble_scheduling.step.model_version",
    "ensemble_scheduling.step.input_map",
    "ensemble_scheduling.step.output_map",
    "response_cache",
    "response_cache.enable",
    "parameters",
    "optimization",
    "optimization.execution_accelerators",
    "optimization.execution_accelerators.cpu_execution_accelerator",
    "optimization.execution_accelerators.cpu_execution_accelerator.name",
];

/// Priority levels at most.
const LEVELS_MAX: u64 = 1024;
/// The one key of `parameters`: threads within one run, as Triton's ONNX Runtime backend has it.
const THREADS_KEY: &str = "intra_op_thread_count";

/// Reads the text form. The error names the field, or the place in the text.
pub fn parse(text: &str) -> Result<ModelConfig, String> {
    let text = with_colons(text);
    let message = DynamicMessage::parse_text_format(descriptor()?, &text).map_err(|e| at_line(&e, &text))?;
    checked(message)
}

/// The parser knows where it failed, and says it only to who asks.
fn at_line(error: &prost_reflect::text_format::ParseError, text: &str) -> String {
    let place = miette::Diagnostic::labels(error).and_then(|mut labels| labels.next());
    let before = place.and_then(|label| text.get(..label.offset().min(text.len())));
    // What is wrong with the end of the text has no place.
    let line = before.unwrap_or(text).lines().count().max(1);
    let opened = before.is_some_and(|before| before.ends_with('\n'));
    format!("line {}: {error}", line + usize::from(opened))
}

/// The text format allows `input [ … ]` for `input: [ … ]`, and most files are written so; the parser wants the colon.
fn with_colons(text: &str) -> String {
    let (mut out, mut last, mut quote, mut comment) = (String::with_capacity(text.len() + 16), ' ', None, false);
    let mut escaped = false;
    for c in text.chars() {
        match quote {
            Some(q) => {
                quote = if c == q && !escaped { None } else { Some(q) };
                escaped = c == '\\' && !escaped;
            }
            None if comment => comment = c != '\n',
            None => match c {
                '"' | '\'' => quote = Some(c),
                '#' => comment = true,
                '[' if last.is_ascii_alphanumeric() || last == '_' => out.push(':'),
                _ => {}
            },
        }
        out.push(c);
        if !c.is_whitespace() && !comment {
            last = c;
        }
    }
    out
}

/// Reads the JSON form, which the load call may bring along.
pub fn parse_json(text: &str) -> Result<ModelConfig, String> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let message = DynamicMessage::deserialize(descriptor()?, &mut reader).map_err(|e| e.to_string())?;
    reader.end().map_err(|e| e.to_string())?;
    checked(message)
}

fn descriptor() -> Result<prost_reflect::MessageDescriptor, String> {
    let pool = DescriptorPool::decode(proto::DESCRIPTORS).map_err(|e| e.to_string())?;
    pool.get_message_by_name("inference.ModelConfig").ok_or_else(|| "no ModelConfig in the descriptors".to_owned())
}

fn checked(message: DynamicMessage) -> Result<ModelConfig, String> {
    let mut unsupported = Vec::new();
    collect(&message, "", &mut unsupported);
    if !unsupported.is_empty() {
        return Err(format!("`{}` is not supported; remove it or serve the model elsewhere", unsupported.join("`, `")));
    }
    let config = ModelConfig::decode(message.encode_to_vec().as_slice()).map_err(|e| e.to_string())?;
    checked_values(&config)?;
    Ok(config)
}

fn collect(message: &DynamicMessage, prefix: &str, unsupported: &mut Vec<String>) {
    for (field, value) in message.fields() {
        let path = if prefix.is_empty() { field.name().to_owned() } else { format!("{prefix}.{}", field.name()) };
        if !SUPPORTED.contains(&path.as_str()) {
            if !unsupported.contains(&path) {
                unsupported.push(path);
            }
            continue;
        }
        match value {
            Value::Message(inner) => collect(inner, &path, unsupported),
            Value::List(items) => {
                items.iter().filter_map(Value::as_message).for_each(|inner| collect(inner, &path, unsupported));
            }
            _ => {}
        }
    }
    debug_assert!(message.descriptor().fields().len() > 0 || message.fields().next().is_none());
}

fn checked_values(config: &ModelConfig) -> Result<(), String> {
    engine(config)?;
    if config.max_batch_size < 0 {
        return Err(format!("`max_batch_size` is {}, expected 0 or more", config.max_batch_size));
    }
    for group in &config.instance_group {
        use proto::model_instance_group::Kind;
        if matches!(group.kind(), Kind::Gpu | Kind::Model) {
            return Err(format!(
                "`instance_group.kind` is {}, expected KIND_CPU or KIND_AUTO",
                group.kind().as_str_name()
            ));
        }
        if !(0..=1024).contains(&group.count) {
            return Err(format!("`instance_group.count` is {}, expected 1 to 1024", group.count));
        }
    }
    if let Some(key) = config.parameters.keys().find(|key| *key != THREADS_KEY) {
        return Err(format!("`parameters` has the key `{key}`, only `{THREADS_KEY}` is acted on"));
    }
    threads(config)?;
    batching(config).map_or(Ok(()), |batching| checked_batching(batching, config.max_batch_size))
}

/// The graph of models; none where the model is one of its own.
pub fn ensembling(config: &ModelConfig) -> Option<&ModelEnsembling> {
    match &config.scheduling_choice {
        Some(SchedulingChoice::EnsembleScheduling(ensembling)) => Some(ensembling),
        _ => None,
    }
}

/// How requests are joined; none where each runs by itself.
pub fn batching(config: &ModelConfig) -> Option<&ModelDynamicBatching> {
    match &config.scheduling_choice {
        Some(SchedulingChoice::DynamicBatching(batching)) => Some(batching),
        _ => None,
    }
}

fn checked_batching(batching: &ModelDynamicBatching, max_batch: i32) -> Result<(), String> {
    if max_batch == 0 {
        return Err("`dynamic_batching` needs `max_batch_size` of 1 or more".to_owned());
    }
    if let Some(size) = batching.preferred_batch_size.iter().find(|size| !(1..=max_batch).contains(*size)) {
        return Err(format!(
            "`dynamic_batching.preferred_batch_size` holds {size}, expected 1 to `max_batch_size` ({max_batch})"
        ));
    }
    let (levels, default) = (batching.priority_levels, batching.default_priority_level);
    if levels > LEVELS_MAX {
        return Err(format!("`dynamic_batching.priority_levels` is {levels}, the limit is {LEVELS_MAX}"));
    }
    if levels > 0 && !(1..=levels).contains(&default) || levels == 0 && default > 0 {
        return Err(format!("`dynamic_batching.default_priority_level` is {default}, expected 1 to {levels}"));
    }
    if let Some(level) = batching.priority_queue_policy.keys().find(|level| !(1..=levels).contains(*level)) {
        return Err(format!("`dynamic_batching.priority_queue_policy` has the key {level}, expected 1 to {levels}"));
    }
    Ok(())
}

/// Threads within one run; none where the configuration leaves the choice open.
pub fn threads(config: &ModelConfig) -> Result<Option<NonZeroUsize>, String> {
    let Some(value) = config.parameters.get(THREADS_KEY).map(|p| p.string_value.as_str()) else { return Ok(None) };
    match value.parse::<usize>() {
        Ok(count @ 0..=1024) => Ok(NonZeroUsize::new(count)),
        _ => Err(format!("`parameters.{THREADS_KEY}` is `{value}`, expected 0 to 1024, 0 for the engine's own choice")),
    }
}

/// The engine that an execution accelerator of Triton's ONNX Runtime backend stands for.
fn accelerator(config: &ModelConfig) -> Result<Option<&'static str>, String> {
    let accelerators = config.optimization.as_ref().and_then(|o| o.execution_accelerators.as_ref());
    match accelerators.map(|a| a.cpu_execution_accelerator.as_slice()) {
        None | Some([]) => Ok(None),
        Some([one]) if one.name == "openvino" => Ok(Some("openvino")),
        Some(all) => {
            let names: Vec<&str> = all.iter().map(|a| a.name.as_str()).collect();
            Err(format!("`cpu_execution_accelerator` is `{}`, expected `openvino`", names.join("`, `")))
        }
    }
}

/// The engine that the configuration names; none where it leaves the choice open.
pub fn engine(config: &ModelConfig) -> Result<Option<&'static str>, String> {
    match (config.platform.as_str(), config.backend.as_str()) {
        ("ensemble", "") if ensembling(config).is_some() => Ok(None),
        ("ensemble", "") => Err("platform `ensemble` needs `ensemble_scheduling` with its steps".to_owned()),
        _ if ensembling(config).is_some() => {
            Err("`ensemble_scheduling` needs platform `ensemble` and no backend".to_owned())
        }
        ("onnxruntime_onnx" | "", "onnxruntime" | "") => accelerator(config),
        ("" | "rten", "rten") | ("rten", "") => Ok(Some("rten")),
        ("" | "openvino", "openvino") | ("openvino", "") => Ok(Some("openvino")),
        (platform, backend) => Err(format!(
            "platform `{platform}` with backend `{backend}` is not served here, expected `onnxruntime_onnx`, `onnxruntime`, `openvino` or `rten`"
        )),
    }
}

/// Which of the versions there are should serve; newest last.
pub fn wanted(config: &ModelConfig, mut versions: Vec<u64>) -> Vec<u64> {
    versions.sort_unstable();
    match config.version_policy.as_ref().and_then(|p| p.policy_choice.as_ref()) {
        Some(PolicyChoice::All(_)) => versions,
        Some(PolicyChoice::Specific(specific)) => {
            versions.retain(|v| specific.versions.iter().any(|&s| u64::try_from(s) == Ok(*v)));
            versions
        }
        Some(PolicyChoice::Latest(latest)) => keep_last(versions, latest.num_versions.max(1) as usize),
        None => keep_last(versions, 1),
    }
}

/// The versions that the policy names one by one.
pub fn named(config: &ModelConfig) -> Vec<i64> {
    match config.version_policy.as_ref().and_then(|p| p.policy_choice.as_ref()) {
        Some(PolicyChoice::Specific(specific)) => specific.versions.clone(),
        _ => Vec::new(),
    }
}

fn keep_last(mut versions: Vec<u64>, count: usize) -> Vec<u64> {
    versions.split_off(versions.len().saturating_sub(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_without_effect_are_named() {
        let config = parse("name: \"m\" max_batch_size: 4 instance_group [ { count: 2 kind: KIND_CPU } ]").unwrap();
        assert_eq!((config.max_batch_size, config.instance_group[0].count), (4, 2));
        let text = "# input [ ]\nname: \"a [ b\" # x [\ninput [ { name: \"x\" dims: [ 3 ] } ]";
        assert_eq!(parse(text).unwrap().input[0].dims, [3]);
        let error = parse("sequence_batching { } optimization { priority: PRIORITY_MAX }").unwrap_err();
        assert!(error.contains("`sequence_batching`") && error.contains("`optimization"), "{error}");
        for (text, part) in [
            ("max_batch_size: -1", "-1"),
            ("platform: \"tensorflow_graphdef\"", "tensorflow_graphdef"),
            ("instance_group { kind: KIND_GPU }", "KIND_GPU"),
            ("no_such_field: 1", "no_such_field"),
            ("dynamic_batching { }", "`max_batch_size` of 1"),
            ("max_batch_size: 4 dynamic_batching { preferred_batch_size: [ 2, 8 ] }", "holds 8"),
            ("max_batch_size: 4 dynamic_batching { priority_levels: 2 }", "default_priority_level` is 0"),
            ("max_batch_size: 4 dynamic_batching { priority_queue_policy { key: 1 value { } } }", "key 1"),
            ("max_batch_size: 4 dynamic_batching { priority_levels: 9999999 default_priority_level: 1 }", "9999999"),
            ("parameters { key: \"enable_mem_arena\" value { string_value: \"0\" } }", "`enable_mem_arena`"),
            ("parameters { key: \"intra_op_thread_count\" value { string_value: \"-1\" } }", "`-1`"),
            ("optimization { cuda { graphs: true } }", "`optimization.cuda`"),
            ("name: ", "line 1: expected"),
            ("name: \"m\"\n\n  max_batch_size: x", "line 3: expected"),
            ("name: \"m\"\nmax_batch: 4", "line 2: field 'max_batch'"),
            ("input [\n  { name: \"x\" }\n", "line 2: "),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(parse_json(r#"{"max_batch_size": 8}"#).unwrap().max_batch_size == 8);
        assert!(parse_json("{").is_err());
    }

    #[test]
    fn versions_follow_the_policy() {
        let of = |text: &str| wanted(&parse(text).unwrap(), vec![3, 1, 2]);
        assert_eq!(of(""), [3]);
        assert_eq!(of("version_policy { latest { num_versions: 2 } }"), [2, 3]);
        assert_eq!(of("version_policy { all {} }"), [1, 2, 3]);
        assert_eq!(of("version_policy { specific { versions: [1, 3, 9] } }"), [1, 3]);
    }
}
