//! What is listed: the entities of the operator's files, checked against the schema, with their ancestors.
//!
//! A file has one table per entity: `[Model.chest-xray]`. `in` names its parents (`"Segment::st-mary/imaging/north"`), every other key is a
//! label. A `Model` may say `any_version = true`, a `Tenant` whose credentials may claim it (`issuers`).

mod ancestry;

use std::{
    collections::{BTreeSet, HashMap, HashSet, hash_map},
    ops::Range,
    sync::OnceLock,
};

use cedar_policy::{Entities, Entity, EntityId, EntityTypeName, EntityUid, RestrictedExpression, Schema};
use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

use super::{
    schema::{parse_uid, uid_of},
    sources::{SourceFile, invalid, line_column},
};
use crate::TrustError;

/// The server's own routes and calls.
const BASE: &str = include_str!("../../policies/base.toml");
/// Labels that only credentials give.
const CLAIMS: &str = "claim.";

/// The listed entities.
pub(super) struct Listing {
    places: HashMap<EntityUid, u32>,
    listed: Vec<Listed>,
    /// The same in Cedar's own form, made when somebody asks for it.
    whole: OnceLock<Result<Entities, String>>,
}

/// All that an entity is in: what is listed by its places, for looking up less, and what is not.
#[derive(Default)]
pub(super) struct Within {
    pub(super) listed: Vec<u32>,
    pub(super) others: Vec<EntityUid>,
}

/// A listed entity.
pub(super) struct Listed {
    uid: EntityUid,
    parents: Vec<u32>,
    /// All that it is in, directly or not.
    ancestors: Box<[u32]>,
    tags: Vec<(String, String)>,
    any_version: bool,
    issuers: Option<BTreeSet<String>>,
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
    uid: EntityUid,
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
        let mut placed: Vec<Placed<'_>> = Vec::new();
        let mut places: HashMap<EntityUid, u32> = HashMap::new();
        for file in files {
            for entry in read_file(file, schema)? {
                let next = next_place(&placed)?;
                match places.entry(entry.uid.clone()) {
                    hash_map::Entry::Vacant(vacant) => vacant.insert(next),
                    hash_map::Entry::Occupied(first) => {
                        return Err(entry.twice(placed.get(*first.get() as usize)));
                    }
                };
                placed.push(entry);
            }
        }
        // The operator's entry wins: it may add labels.
        for entry in read_file(&base, schema)? {
            if let hash_map::Entry::Vacant(vacant) = places.entry(entry.uid.clone()) {
                vacant.insert(next_place(&placed)?);
                placed.push(entry);
            }
        }
        let mut parents = Vec::with_capacity(placed.len());
        for entry in &placed {
            parents.push(entry.parents(&places, &placed)?);
        }
        conforms(&placed, &parents, schema)?;
        let ancestors = ancestry::ancestors(&parents).map_err(|wrong| blame(&wrong, &placed))?;
        let listed = placed.into_iter().zip(parents).zip(ancestors);
        let listed = listed.map(|((placed, parents), ancestors)| {
            let Entry { tags, any_version, issuers, .. } = placed.entry;
            Listed { uid: placed.uid, parents, ancestors, tags, any_version, issuers }
        });
        Ok(Self { listed: listed.collect(), places, whole: OnceLock::new() })
    }

    /// All entities as Cedar closes and checks them, with the actions of the schema.
    ///
    /// # Errors
    /// Cedar's, where it finds something wrong that was not found here.
    pub(super) fn all(&self, schema: &Schema) -> Result<&Entities, String> {
        let make = || {
            let parents = |listed: &Listed| self.at(&listed.parents).cloned().collect::<Vec<_>>();
            let entities = self.listed.iter().map(|listed| entity(&listed.uid, parents(listed), &listed.tags));
            let entities = entities.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
            Entities::from_entities(entities, Some(schema)).map_err(|error| error.to_string())
        };
        self.whole.get_or_init(make).as_ref().map_err(Clone::clone)
    }

    fn at<'a>(&'a self, places: &'a [u32]) -> impl Iterator<Item = &'a EntityUid> {
        places.iter().filter_map(|&place| self.listed.get(place as usize)).map(|listed| &listed.uid)
    }

    /// Whether an entity is listed.
    pub(super) fn contains(&self, uid: &EntityUid) -> bool {
        self.places.contains_key(uid)
    }

    /// A listed entity.
    pub(super) fn get(&self, uid: &EntityUid) -> Option<(u32, &Listed)> {
        let place = *self.places.get(uid)?;
        Some((place, self.listed.get(place as usize)?))
    }

    /// Every listed entity, in the order of their places.
    pub(super) fn iter(&self) -> impl Iterator<Item = &EntityUid> {
        self.listed.iter().map(|listed| &listed.uid)
    }
}

impl Listed {
    /// Its labels.
    pub(super) fn tags(&self) -> &[(String, String)] {
        &self.tags
    }

    /// Whether every version of this model counts as listed.
    pub(super) fn any_version(&self) -> bool {
        self.any_version
    }

    /// Whether an issuer's word is enough for membership of this tenant: it does not name other issuers.
    pub(super) fn takes_word_of(&self, issuer: &str) -> bool {
        self.issuers.as_ref().is_none_or(|issuers| issuers.contains(issuer))
    }
}

impl Within {
    /// In a listed entity, and so in all that it is in.
    pub(super) fn add(&mut self, place: u32, listed: &Listed) {
        self.listed.push(place);
        self.add_above(listed);
    }

    /// In all that a listed entity is in.
    pub(super) fn add_above(&mut self, listed: &Listed) {
        self.listed.extend_from_slice(&listed.ancestors);
    }

    /// In an entity that is not listed.
    pub(super) fn add_other(&mut self, uid: EntityUid) {
        self.others.push(uid);
    }

    /// Each once.
    pub(super) fn sorted(mut self) -> Self {
        self.listed.sort_unstable();
        self.listed.dedup();
        self
    }

    /// All of them.
    pub(super) fn uids<'a>(&'a self, listing: &'a Listing) -> impl Iterator<Item = &'a EntityUid> {
        listing.at(&self.listed).chain(&self.others)
    }
}

fn next_place(placed: &[Placed<'_>]) -> Result<u32, TrustError> {
    u32::try_from(placed.len()).map_err(|_| invalid("there are too many entities".to_owned()))
}

impl Placed<'_> {
    fn twice(&self, first: Option<&Self>) -> TrustError {
        let first = first.map_or_else(String::new, |first| {
            let (line, _) = line_column(&first.file.text, first.offset);
            format!(", first at {}:{line}", first.file.name)
        });
        at(self.file, self.offset, &format!("`{}` is listed twice{first}", shown(&self.uid)))
    }

    /// Places of what it is in, each once.
    fn parents(&self, places: &HashMap<EntityUid, u32>, all: &[Placed<'_>]) -> Result<Vec<u32>, TrustError> {
        let mut parents = Vec::with_capacity(self.entry.parents.len() + 1);
        for (text, offset) in &self.entry.parents {
            parents.push(self.parent(text, *offset, places)?);
        }
        if self.kind() == "ModelVersion" {
            let model = self.id().rsplit_once('/').map(|(model, _)| uid_of("Model", model)).transpose()?;
            let model = model.and_then(|model| places.get(&model)).ok_or_else(|| {
                let message =
                    format!("`{}` is no version of a listed model; expected `MODEL/VERSION`", shown(&self.uid));
                at(self.file, self.offset, &message)
            })?;
            parents.push(*model);
        }
        parents.sort_unstable();
        parents.dedup();
        if self.kind() == "Segment" {
            let kinds = |part| {
                let parents = parents.iter().filter_map(|&place| all.get(place as usize));
                parents.filter(|parent| parent.kind() == part).count()
            };
            if let Some(part) = ["Tenant", "ModelGroup", "Site"].into_iter().find(|part| kinds(*part) != 1) {
                let message = format!(
                    "`{}` must be in exactly one `{part}`: a segment is tenant × model group × site",
                    shown(&self.uid)
                );
                return Err(at(self.file, self.offset, &message));
            }
        }
        Ok(parents)
    }

    fn parent(&self, text: &str, offset: usize, places: &HashMap<EntityUid, u32>) -> Result<u32, TrustError> {
        let parent = parse_uid(text).ok_or_else(|| {
            let message = format!("`{text}` is no entity; expected `KIND::NAME`, as `Group::radiologists`");
            at(self.file, offset, &message)
        })?;
        places.get(&parent).copied().ok_or_else(|| {
            let (kind, id) = (parent.type_name(), parent.id().escaped());
            let message = format!(
                "`{}` is in `{text}`, which is listed nowhere; list it as `[{kind}.\"{id}\"]` or mend the name",
                shown(&self.uid)
            );
            at(self.file, offset, &message)
        })
    }

    fn kind(&self) -> &str {
        self.uid.type_name().basename()
    }

    fn id(&self) -> &str {
        self.uid.id().unescaped()
    }
}

/// A listed entity in Cedar's form.
fn entity(uid: &EntityUid, parents: Vec<EntityUid>, tags: &[(String, String)]) -> Result<Entity, TrustError> {
    // What credentials say stands in an entity that is made per caller; these only satisfy the schema.
    let text = |value: &str| RestrictedExpression::new_string(value.to_owned());
    let attributes = if matches!(uid.type_name().basename(), "User" | "Workload") {
        vec![
            ("method".to_owned(), text("")),
            ("issuer".to_owned(), text("")),
            ("strength".to_owned(), RestrictedExpression::new_long(0)),
        ]
    } else {
        Vec::new()
    };
    let tags = tags.iter().map(|(name, value)| (name.clone(), text(value)));
    Entity::new_with_tags(uid.clone(), attributes, parents, tags).map_err(|error| invalid(error.to_string()))
}

/// Has Cedar check entities against the schema, one of each form: to the schema all of one kind, with parents of the same kinds, with
/// labels or without, are alike.
fn conforms(placed: &[Placed<'_>], parents: &[Vec<u32>], schema: &Schema) -> Result<(), TrustError> {
    let mut seen = HashSet::new();
    for (entry, parents) in placed.iter().zip(parents) {
        let parents: Vec<&EntityUid> =
            parents.iter().filter_map(|&place| placed.get(place as usize)).map(|parent| &parent.uid).collect();
        let mut kinds: Vec<&str> = parents.iter().map(|parent| parent.type_name().basename()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        if !seen.insert((entry.kind(), kinds, entry.entry.tags.is_empty())) {
            continue;
        }
        // An entity that is in itself is no matter of the schema.
        let parents = parents.into_iter().filter(|parent| **parent != entry.uid).cloned().collect();
        let wrong = |message: &str| at(entry.file, entry.offset, message);
        let entity = entity(&entry.uid, parents, &entry.entry.tags).map_err(|error| wrong(&error.to_string()))?;
        Entities::from_entities([entity], Some(schema)).map_err(|error| {
            let cause = std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
            wrong(&format!("{error}{cause}"))
        })?;
    }
    Ok(())
}

/// What is wrong with what entities are in, at the first of them.
fn blame(wrong: &ancestry::Wrong, placed: &[Placed<'_>]) -> TrustError {
    let name = |place: &u32| placed.get(*place as usize).map_or_else(String::new, |placed| shown(&placed.uid));
    let (place, message) = match wrong {
        ancestry::Wrong::Circle(circle) => {
            let names: Vec<String> = circle.iter().map(name).collect();
            let first = names.first().cloned().unwrap_or_default();
            let way = format!("`{}`", [names, vec![first.clone()]].concat().join("` in `"));
            (circle.first(), format!("`{first}` is in itself: {way}; take one of these out"))
        }
        ancestry::Wrong::TooMany(place) => {
            let most = ancestry::EACH_MAX;
            (Some(place), format!("`{}` is in more than {most} others, directly or not", name(place)))
        }
        ancestry::Wrong::TooManyInAll => {
            (None, format!("all entities together are in more than {} others", ancestry::ALL_MAX))
        }
    };
    match place.and_then(|&place| placed.get(place as usize)) {
        Some(placed) => at(placed.file, placed.offset, &message),
        None => invalid(message),
    }
}

fn read_file<'a>(file: &'a SourceFile, schema: &Schema) -> Result<Vec<Placed<'a>>, TrustError> {
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
            found.push(Placed { file, uid, offset: id.span().start, entry: read_entry(file, kind.get_ref(), keys)? });
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

fn at(file: &SourceFile, offset: usize, message: &str) -> TrustError {
    let (line, column) = line_column(&file.text, offset);
    invalid(format!("{}:{line}:{column}: {message}", file.name))
}

/// `KIND::NAME`, as entity files write it.
pub(super) fn shown(uid: &EntityUid) -> String {
    let id: &str = uid.id().unescaped();
    format!("{}::{id}", uid.type_name())
}
