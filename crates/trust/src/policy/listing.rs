//! What is listed: the entities of the operator's files, checked against the schema, with their ancestors.
//!
//! A file has one table per entity: `[Model.chest-xray]`. `in` names its parents (`"Segment::st-mary/imaging/north"`), every other key is a
//! label. A `Model` may say `any_version = true`, a `Tenant` whose credentials may claim it (`issuers`).

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ops::Range,
};

use cedar_policy::{Entities, Entity, EntityId, EntityTypeName, EntityUid, RestrictedExpression, Schema};
use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

use super::sources::{SourceFile, invalid, line_column};
use crate::TrustError;

/// The server's own routes and calls.
const BASE: &str = include_str!("../../policies/base.toml");
/// Labels that only credentials give.
const CLAIMS: &str = "claim.";

/// The listed entities.
pub(super) struct Listing {
    entities: Entities,
    any_version: HashSet<String>,
    issuers: HashMap<String, BTreeSet<String>>,
    tags: HashMap<EntityUid, Vec<(String, String)>>,
}

/// One table of a file.
#[derive(Default)]
struct Entry {
    parents: Vec<(String, usize)>,
    tags: Vec<(String, String)>,
    any_version: bool,
    issuers: Option<BTreeSet<String>>,
}

/// An entry and where it was read.
struct Placed<'a> {
    file: &'a SourceFile,
    offset: usize,
    entry: Entry,
}

impl Listing {
    /// Reads and checks entity files.
    ///
    /// # Errors
    /// The place (`file:line`) and the reason of the first thing that is wrong: a kind that the schema lacks, a parent that is not listed or
    /// not allowed, an entity that is listed twice, a circle.
    pub(super) fn read(files: &[SourceFile], schema: &Schema) -> Result<Self, TrustError> {
        let base = SourceFile { name: "base.toml".to_owned(), text: BASE.to_owned() };
        let mut placed: HashMap<EntityUid, Placed<'_>> = HashMap::new();
        for file in files {
            for (uid, offset, entry) in read_file(file, schema)? {
                if let Some(first) = placed.get(&uid) {
                    let (line, _) = line_column(&first.file.text, first.offset);
                    let message = format!("`{}` is listed twice, first at {}:{line}", shown(&uid), first.file.name);
                    return Err(at(file, offset, &message));
                }
                placed.insert(uid, Placed { file, offset, entry });
            }
        }
        // The operator's entry wins: it may add labels.
        for (uid, offset, entry) in read_file(&base, schema)? {
            placed.entry(uid).or_insert(Placed { file: &base, offset, entry });
        }
        let mut listing = Self {
            entities: Entities::empty(),
            any_version: HashSet::new(),
            issuers: HashMap::new(),
            tags: HashMap::new(),
        };
        let mut entities = Vec::with_capacity(placed.len());
        for (uid, entry) in &placed {
            entities.push(entry.entity(uid, &placed)?);
            let id = uid.id().unescaped().to_owned();
            if entry.entry.any_version {
                listing.any_version.insert(id.clone());
            }
            if let Some(issuers) = &entry.entry.issuers {
                listing.issuers.insert(id, issuers.clone());
            }
        }
        listing.entities = Entities::from_entities(entities.iter().cloned(), Some(schema))
            .map_err(|error| blame(entities, &placed, schema, &error.to_string()))?;
        let tagged = placed.into_iter().filter(|(_, placed)| !placed.entry.tags.is_empty());
        listing.tags = tagged.map(|(uid, placed)| (uid, placed.entry.tags)).collect();
        Ok(listing)
    }

    /// All entities, with the actions of the schema.
    pub(super) fn all(&self) -> &Entities {
        &self.entities
    }

    /// Whether an entity is listed.
    pub(super) fn contains(&self, uid: &EntityUid) -> bool {
        self.entities.get(uid).is_some()
    }

    /// Labels of an entity.
    pub(super) fn tags(&self, uid: &EntityUid) -> &[(String, String)] {
        self.tags.get(uid).map_or(&[], Vec::as_slice)
    }

    /// All that a listed entity is in, directly or not.
    pub(super) fn ancestors(&self, uid: &EntityUid) -> impl Iterator<Item = &EntityUid> {
        self.entities.ancestors(uid).into_iter().flatten()
    }

    /// Whether every version of a model counts as listed.
    pub(super) fn any_version(&self, model: &str) -> bool {
        self.any_version.contains(model)
    }

    /// Whether an issuer's word is enough for membership of a tenant: it is listed and does not name other issuers.
    pub(super) fn vouches(&self, issuer: &str, tenant: &EntityUid) -> bool {
        let id: &str = tenant.id().unescaped();
        self.contains(tenant) && self.issuers.get(id).is_none_or(|issuers| issuers.contains(issuer))
    }

    /// Every listed entity.
    pub(super) fn iter(&self) -> impl Iterator<Item = EntityUid> {
        self.entities.iter().map(Entity::uid)
    }
}

impl Placed<'_> {
    fn entity(&self, uid: &EntityUid, all: &HashMap<EntityUid, Placed<'_>>) -> Result<Entity, TrustError> {
        let (kind, id) = (uid.type_name().basename(), uid.id().unescaped());
        let mut parents = HashSet::new();
        for (text, offset) in &self.entry.parents {
            let parent = parse_uid(text).ok_or_else(|| {
                at(
                    self.file,
                    *offset,
                    &format!("`{text}` is no entity; expected `KIND::NAME`, as `Group::radiologists`"),
                )
            })?;
            if !all.contains_key(&parent) {
                let (kind, id) = (parent.type_name(), parent.id().escaped());
                let message = format!(
                    "`{}` is in `{text}`, which is listed nowhere; list it as `[{kind}.\"{id}\"]` or mend the name",
                    shown(uid)
                );
                return Err(at(self.file, *offset, &message));
            }
            parents.insert(parent);
        }
        if kind == "ModelVersion" {
            let model = id.rsplit_once('/').map(|(model, _)| uid_of("Model", model)).transpose()?;
            let model = model.filter(|model| all.contains_key(model)).ok_or_else(|| {
                let message = format!("`{}` is no version of a listed model; expected `MODEL/VERSION`", shown(uid));
                at(self.file, self.offset, &message)
            })?;
            parents.insert(model);
        }
        if kind == "Segment" {
            for part in ["Tenant", "ModelGroup", "Site"] {
                if parents.iter().filter(|parent| parent.type_name().basename() == part).count() != 1 {
                    let message = format!(
                        "`{}` must be in exactly one `{part}`: a segment is tenant × model group × site",
                        shown(uid)
                    );
                    return Err(at(self.file, self.offset, &message));
                }
            }
        }
        // What credentials say stands in an entity that is made per caller; these only satisfy the schema.
        let text = |value: &str| RestrictedExpression::new_string(value.to_owned());
        let attributes = if matches!(kind, "User" | "Workload") {
            vec![
                ("method".to_owned(), text("")),
                ("issuer".to_owned(), text("")),
                ("strength".to_owned(), RestrictedExpression::new_long(0)),
            ]
        } else {
            Vec::new()
        };
        let tags = self.entry.tags.iter().map(|(name, value)| (name.clone(), text(value)));
        Entity::new_with_tags(uid.clone(), attributes, parents, tags)
            .map_err(|error| at(self.file, self.offset, &error.to_string()))
    }
}

fn read_file(file: &SourceFile, schema: &Schema) -> Result<Vec<(EntityUid, usize, Entry)>, TrustError> {
    let document = DeTable::parse(&file.text)
        .map_err(|error| at(file, error.span().map_or(0, |span| span.start), error.message()))?;
    let kinds: HashMap<&str, &EntityTypeName> =
        schema.entity_types().filter(|kind| kind.basename() != "Action").map(|kind| (kind.basename(), kind)).collect();
    let mut found = Vec::new();
    for (kind, table) in document.get_ref() {
        let Some(&type_name) = kinds.get(&**kind.get_ref()) else {
            let mut known: Vec<_> = kinds.keys().copied().collect();
            known.sort_unstable();
            let message = format!("kind `{}` is unknown; expected one of `{}`", kind.get_ref(), known.join("`, `"));
            return Err(at(file, kind.span().start, &message));
        };
        let DeValue::Table(entries) = table.get_ref() else {
            let message = format!("`{}` holds no entities; expected tables, as `[{0}.NAME]`", kind.get_ref());
            return Err(at(file, kind.span().start, &message));
        };
        for (id, value) in entries {
            let DeValue::Table(keys) = value.get_ref() else {
                let message =
                    format!("`{}` is no entity; expected a table, as `[{}.NAME]`", id.get_ref(), kind.get_ref());
                return Err(at(file, id.span().start, &message));
            };
            let uid = EntityUid::from_type_name_and_id(type_name.clone(), EntityId::new(&**id.get_ref()));
            found.push((uid, id.span().start, read_entry(file, kind.get_ref(), keys)?));
        }
    }
    Ok(found)
}

fn read_entry(file: &SourceFile, kind: &str, keys: &DeTable<'_>) -> Result<Entry, TrustError> {
    let mut entry = Entry::default();
    for (key, value) in keys {
        let name: &str = key.get_ref();
        match (name, kind) {
            ("in", _) => entry.parents = texts(file, key, value)?.map(|(text, span)| (text, span.start)).collect(),
            ("issuers", "Tenant") => entry.issuers = Some(texts(file, key, value)?.map(|(text, _)| text).collect()),
            ("any_version", "Model") => match value.get_ref() {
                DeValue::Boolean(any) => entry.any_version = *any,
                _ => return Err(at(file, value.span().start, "`any_version` is wrong; expected `true` or `false`")),
            },
            _ if name.starts_with(CLAIMS) => {
                let message =
                    format!("label `{name}` is wrong: `{CLAIMS}…` is what credentials claim; choose another name");
                return Err(at(file, key.span().start, &message));
            }
            _ => match value.get_ref() {
                DeValue::String(text) => entry.tags.push((name.to_owned(), text.to_string())),
                _ => {
                    let message = format!("label `{name}` is wrong; expected a text, as `{name} = \"high\"`");
                    return Err(at(file, value.span().start, &message));
                }
            },
        }
    }
    Ok(entry)
}

/// A text or a list of texts, each with its place.
fn texts(
    file: &SourceFile,
    key: &Spanned<DeString<'_>>,
    value: &Spanned<DeValue<'_>>,
) -> Result<impl Iterator<Item = (String, Range<usize>)> + use<>, TrustError> {
    let one = |value: &Spanned<DeValue<'_>>| match value.get_ref() {
        DeValue::String(text) => Ok((text.to_string(), value.span())),
        _ => Err(at(file, value.span().start, &format!("`{}` is wrong; expected a list of texts", key.get_ref()))),
    };
    let list = match value.get_ref() {
        DeValue::Array(list) => list.iter().map(one).collect::<Result<Vec<_>, _>>()?,
        _ => vec![one(value)?],
    };
    Ok(list.into_iter())
}

/// Cedar's complaint about all entities names no place; the one that it is about is found by asking for each alone.
fn blame(entities: Vec<Entity>, placed: &HashMap<EntityUid, Placed<'_>>, schema: &Schema, whole: &str) -> TrustError {
    for entity in entities {
        let uid = entity.uid();
        if let (Err(error), Some(place)) = (Entities::from_entities([entity], Some(schema)), placed.get(&uid)) {
            let cause = std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
            return at(place.file, place.offset, &format!("{error}{cause}"));
        }
    }
    invalid(format!("the entities do not fit together: {whole}"))
}

fn at(file: &SourceFile, offset: usize, message: &str) -> TrustError {
    let (line, column) = line_column(&file.text, offset);
    invalid(format!("{}:{line}:{column}: {message}", file.name))
}

/// Reads `KIND::NAME`; the kind need not be of the schema.
pub(super) fn parse_uid(text: &str) -> Option<EntityUid> {
    let (kind, id) = text.split_once("::")?;
    Some(EntityUid::from_type_name_and_id(kind.parse().ok()?, EntityId::new(id)))
}

/// An entity of a kind that is written in this crate.
pub(super) fn uid_of(kind: &str, id: &str) -> Result<EntityUid, TrustError> {
    let kind = kind.parse().map_err(|_| invalid(format!("`{kind}` is no kind of entity")))?;
    Ok(EntityUid::from_type_name_and_id(kind, EntityId::new(id)))
}

/// `KIND::NAME`, as entity files write it.
pub(super) fn shown(uid: &EntityUid) -> String {
    let id: &str = uid.id().unescaped();
    format!("{}::{id}", uid.type_name())
}
