//! In-toto statements: the model signature's, and SLSA provenance.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    digest::Digest,
    error::{StoreError, invalid, tampered},
    files::Release,
    manifest::{KEY, MANIFEST, PROVENANCE, SIGNATURE},
};

const STATEMENT: &str = "https://in-toto.io/Statement/v1";
const MODEL_SIGNATURE: &str = "https://model_signing/signature/v1.0";
const SLSA: &str = "https://slsa.dev/provenance/v1";
/// What `pack` does, as SLSA's build type.
const BUILD_TYPE: &str = "urn:edgeward:release:pack:v1";
const RESOURCES_MAX: usize = 100_000;

/// What the model signature says (OpenSSF Model Signing v1): the files that a folder has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelStatement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: Predicate,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Subject {
    name: String,
    digest: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Predicate {
    serialization: Serialization,
    resources: Vec<Resource>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Serialization {
    method: String,
    hash_type: String,
    #[serde(default)]
    allow_symlinks: bool,
    #[serde(default)]
    ignore_paths: Vec<String>,
}

/// A file that is signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    /// Path within the folder.
    pub name: String,
    /// `sha256`.
    pub algorithm: String,
    /// In hexadecimal.
    pub digest: String,
}

impl ModelStatement {
    /// What is to be signed of a release: the manifest, the provenance and every listed file as it is stored.
    pub(super) fn of(release: &Release, provenance: &[u8], name: &str) -> Self {
        let mut resources = expected(release);
        resources.insert(PROVENANCE.to_owned(), Digest::of(provenance));
        let mut root = Sha256::new();
        resources.values().for_each(|digest| root.update(digest.0));
        let root = Digest(root.finalize().into()).to_string();
        let resource = |(name, digest): (String, Digest)| Resource {
            name,
            algorithm: "sha256".to_owned(),
            digest: digest.to_string(),
        };
        Self {
            kind: STATEMENT.to_owned(),
            subject: vec![Subject { name: name.to_owned(), digest: BTreeMap::from([("sha256".to_owned(), root)]) }],
            predicate_type: MODEL_SIGNATURE.to_owned(),
            predicate: Predicate {
                serialization: Serialization {
                    method: "files".to_owned(),
                    hash_type: "sha256".to_owned(),
                    allow_symlinks: false,
                    ignore_paths: vec![KEY.to_owned(), SIGNATURE.to_owned()],
                },
                resources: resources.into_iter().map(resource).collect(),
            },
        }
    }

    /// The statement's JSON, which is what is signed.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, StoreError> {
        serde_json::to_vec(self).map_err(|error| invalid(format!("the statement: {error}")))
    }

    /// Reads a statement.
    ///
    /// # Errors
    /// `Invalid` where it is of another kind, method or hash; `Tampered` where its digests contradict each other.
    pub fn parse(bytes: &[u8]) -> Result<Self, StoreError> {
        let statement: Self =
            serde_json::from_slice(bytes).map_err(|error| invalid(format!("no statement of a model: {error}")))?;
        let kinds = [
            ("_type", &statement.kind, STATEMENT),
            ("predicateType", &statement.predicate_type, MODEL_SIGNATURE),
            ("serialization method", &statement.predicate.serialization.method, "files"),
            ("hash type", &statement.predicate.serialization.hash_type, "sha256"),
        ];
        for (what, found, expected) in kinds {
            if found != expected {
                return Err(invalid(format!("{what} `{}`; expected `{expected}`", found.escape_debug())));
            }
        }
        if statement.predicate.resources.len() > RESOURCES_MAX {
            return Err(invalid(format!("more than {RESOURCES_MAX} files are signed")));
        }
        statement.check_root()?;
        Ok(statement)
    }

    fn check_root(&self) -> Result<(), StoreError> {
        let [subject] = self.subject.as_slice() else {
            return Err(invalid(format!("{} subjects; expected one", self.subject.len())));
        };
        let mut root = Sha256::new();
        let digests = self.digests()?;
        // In the order of the list, whichever that is.
        for digest in self.predicate.resources.iter().filter_map(|resource| digests.get(resource.name.as_str())) {
            root.update(digest.0);
        }
        if subject.digest.get("sha256") != Some(&Digest(root.finalize().into()).to_string()) {
            return Err(tampered("the subject's digest is not that of the files that it lists"));
        }
        Ok(())
    }

    fn digests(&self) -> Result<BTreeMap<&str, Digest>, StoreError> {
        let mut digests = BTreeMap::new();
        for resource in &self.predicate.resources {
            let shown = resource.name.escape_debug();
            if resource.algorithm != "sha256" {
                return Err(invalid(format!(
                    "`{shown}` is signed by `{}`; expected `sha256`",
                    resource.algorithm.escape_debug()
                )));
            }
            let digest = resource.digest.parse().map_err(|error| invalid(format!("`{shown}`: {error}")))?;
            if digests.insert(resource.name.as_str(), digest).is_some() {
                return Err(invalid(format!("`{shown}` is signed twice")));
            }
        }
        Ok(digests)
    }

    /// Whether exactly the files of a release are signed, with the digests that it lists.
    pub(super) fn covers(&self, release: &Release) -> Result<(), StoreError> {
        let signed = self.digests()?;
        let mut expected = expected(release);
        for beside in [PROVENANCE, KEY] {
            if let Some(bytes) = release.beside(beside)? {
                // The key is signed by tools that know nothing of it.
                if beside == PROVENANCE || signed.contains_key(beside) {
                    expected.insert(beside.to_owned(), Digest::of(&bytes));
                }
            }
        }
        for (path, digest) in &expected {
            match signed.get(path.as_str()) {
                Some(signed) if signed == digest => {}
                Some(signed) => {
                    return Err(tampered(format!(
                        "`{path}` is not what was signed: its SHA-256 is {digest}, {signed} is signed"
                    )));
                }
                None => return Err(tampered(format!("`{path}` is of the release and not signed"))),
            }
        }
        match signed.keys().find(|path| !expected.contains_key(**path)) {
            Some(path) => Err(tampered(format!("`{}` is signed and not there", path.escape_debug()))),
            None => Ok(()),
        }
    }
}

/// The manifest and the listed files as they are stored.
fn expected(release: &Release) -> BTreeMap<String, Digest> {
    let files = release.manifest().files.iter().map(|(path, file)| (path.clone(), file.stored().sha256));
    files.chain([(MANIFEST.to_owned(), release.id())]).collect()
}

/// How a release was made (SLSA provenance v1): the manifest is what was built, the variants' files what it was built from.
pub(super) fn provenance(release: &Release) -> Result<Vec<u8>, StoreError> {
    let manifest = release.manifest();
    let sources =
        manifest.files.iter().map(|(path, file)| json!({ "name": path, "digest": { "sha256": file.sha256 } }));
    let statement = json!({
        "_type": STATEMENT,
        "subject": [{ "name": MANIFEST, "digest": { "sha256": release.id() } }],
        "predicateType": SLSA,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "name": manifest.name,
                    "version": manifest.version,
                    "sequence": manifest.sequence,
                    "variants": manifest.variants.iter().map(|variant| &variant.name).collect::<Vec<_>>(),
                    "sealed": manifest.is_sealed(),
                },
                "resolvedDependencies": sources.collect::<Vec<_>>(),
            },
            "runDetails": {
                "builder": { "id": "urn:edgeward:cli", "version": { "edgeward": env!("CARGO_PKG_VERSION") } },
                "metadata": { "invocationId": release.id() },
            },
        },
    });
    serde_json::to_vec(&statement).map_err(|error| invalid(format!("the provenance: {error}")))
}

/// Whether a provenance statement is this release's.
pub(super) fn check_provenance(payload: &[u8], release: &Release) -> Result<(), StoreError> {
    let statement: Value =
        serde_json::from_slice(payload).map_err(|error| invalid(format!("no statement: {error}")))?;
    let is = |pointer: &str, expected: &str| statement.pointer(pointer).and_then(Value::as_str) == Some(expected);
    if !is("/_type", STATEMENT) || !is("/predicateType", SLSA) {
        return Err(invalid(format!("expected a statement of `{SLSA}`")));
    }
    let subjects = statement.get("subject").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let digests: BTreeSet<&str> =
        subjects.iter().filter_map(|subject| subject.pointer("/digest/sha256")?.as_str()).collect();
    if digests.contains(release.id().to_string().as_str()) {
        return Ok(());
    }
    Err(tampered("it is the provenance of another release"))
}
