//! `config.pbtxt`, read strictly: a field that has no effect here is an error that names it.

use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, ReflectMessage as _, Value};

use crate::proto::{self, ModelConfig, model_version_policy::PolicyChoice};

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
];

/// Reads the text form. The error names the field, or the place in the text.
pub fn parse(text: &str) -> Result<ModelConfig, String> {
    let message = DynamicMessage::parse_text_format(descriptor()?, &with_colons(text)).map_err(|e| e.to_string())?;
    checked(message)
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
    Ok(())
}

/// The engine that the configuration names; none where it leaves the choice open.
pub fn engine(config: &ModelConfig) -> Result<Option<&'static str>, String> {
    match (config.platform.as_str(), config.backend.as_str()) {
        ("", "") => Ok(None),
        ("onnxruntime_onnx" | "", "onnxruntime" | "") => Ok(None),
        ("" | "rten", "rten") | ("rten", "") => Ok(Some("rten")),
        (platform, backend) => Err(format!(
            "platform `{platform}` with backend `{backend}` is not served here, expected `onnxruntime_onnx`, `onnxruntime` or `rten`"
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
            ("name: ", "expected"),
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
