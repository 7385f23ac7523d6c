//! The vocabulary of policies, read once: Cedar parses each name that it is handed, which costs more than what is done with it.

use std::{collections::HashMap, sync::LazyLock};

use cedar_policy::{EntityId, EntityTypeName, EntityUid, Schema};

use super::sources::invalid;
use crate::TrustError;

const SCHEMA: &str = include_str!("../../policies/schema.cedarschema");

struct Words {
    schema: Schema,
    kinds: HashMap<String, EntityTypeName>,
}

fn words() -> Result<&'static Words, TrustError> {
    static READ: LazyLock<Result<Words, String>> = LazyLock::new(|| {
        let (schema, _) = Schema::from_cedarschema_str(SCHEMA).map_err(|error| error.to_string())?;
        let action = "Action".parse().map_err(|error: cedar_policy::ParseErrors| error.to_string())?;
        let kinds = schema.entity_types().cloned().chain([action]);
        let kinds = kinds.map(|kind| (kind.to_string(), kind)).collect();
        Ok(Words { schema, kinds })
    });
    READ.as_ref().map_err(|error| invalid(format!("the schema is wrong: {error}")))
}

/// The schema of this program.
pub(super) fn schema() -> Result<&'static Schema, TrustError> {
    words().map(|words| &words.schema)
}

/// An entity of a kind that is written in this crate.
pub(super) fn uid_of(kind: &str, id: &str) -> Result<EntityUid, TrustError> {
    let kind = words()?.kinds.get(kind).ok_or_else(|| invalid(format!("`{kind}` is no kind of entity")))?;
    Ok(EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id)))
}

/// Reads `KIND::NAME`; the kind need not be of the schema.
pub(super) fn parse_uid(text: &str) -> Option<EntityUid> {
    let (kind, id) = text.split_once("::")?;
    let known = words().ok()?.kinds.get(kind).cloned();
    Some(EntityUid::from_type_name_and_id(known.or_else(|| kind.parse().ok())?, EntityId::new(id)))
}
