//! Messages as JSON, by their descriptors: the form in which Triton's extensions show them over REST.

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};

use crate::core::{ServeError, ServeErrorKind};

/// A message of the protocol as JSON with the fields' own names and plain numbers.
pub(crate) fn to_json(name: &str, message: &impl Message) -> Result<serde_json::Value, ServeError> {
    let fail = |text: String| ServeError::new(ServeErrorKind::Internal, text);
    static POOL: std::sync::LazyLock<Option<DescriptorPool>> =
        std::sync::LazyLock::new(|| DescriptorPool::decode(crate::proto::DESCRIPTORS).ok());
    let descriptor = POOL.as_ref().and_then(|pool| pool.get_message_by_name(name));
    let descriptor = descriptor.ok_or_else(|| fail(format!("no descriptor of `{name}`")))?;
    let dynamic =
        DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).map_err(|e| fail(e.to_string()))?;
    let options =
        SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(false).skip_default_fields(false);
    dynamic.serialize_with_options(serde_json::value::Serializer, &options).map_err(|e| fail(e.to_string()))
}
