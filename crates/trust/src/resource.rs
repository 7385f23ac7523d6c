//! What is asked for, and what is to be done with it. The words are those of `policies/schema.cedarschema`.

use std::{fmt, str::FromStr};

use crate::{ErrorKind, TrustError};

/// Longest name of a resource that is looked up, in bytes; longer ones are listed nowhere.
pub const RESOURCE_ID_BYTES_MAX: usize = 1024;

macro_rules! words {
    ($(#[$doc:meta])* $type:ident, $what:literal: $($(#[$variant_doc:meta])* $variant:ident = $name:literal,)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $type {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $type {
            /// All there are, in the order of the schema.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The word of the schema.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl FromStr for $type {
            type Err = TrustError;

            fn from_str(text: &str) -> Result<Self, TrustError> {
                Self::ALL.iter().copied().find(|known| known.name() == text).ok_or_else(|| {
                    let known: Vec<&str> = Self::ALL.iter().map(|known| known.name()).collect();
                    TrustError::new(ErrorKind::Invalid, format!("{} `{text}` is unknown; expected one of `{}`", $what, known.join("`, `")))
                })
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

words! {
    /// The kind of a resource.
    ResourceKind, "kind of resource":
    /// All versions of a model.
    Model = "Model",
    /// One version: `NAME/VERSION`.
    ModelVersion = "ModelVersion",
    /// A signed package of variants.
    Release = "Release",
    /// Data to learn from.
    Dataset = "Dataset",
    /// A federated training job.
    FederatedJob = "FederatedJob",
    /// A key of the key provider.
    Key = "Key",
    /// A route that is no model's.
    Endpoint = "Endpoint",
    /// A call that changes the server.
    AdminCall = "AdminCall",
}

words! {
    /// An operation.
    Action, "action":
    /// Run a model once.
    Infer = "infer",
    /// Run a model over a live stream.
    Stream = "stream",
    /// Read inputs and outputs of a model.
    Metadata = "metadata",
    /// Read a model's configuration.
    Config = "config",
    /// Ask whether a model is ready.
    Ready = "ready",
    /// Read a model's statistics.
    Statistics = "statistics",
    /// Load a model.
    Load = "load",
    /// Unload a model.
    Unload = "unload",
    /// Change a model's settings.
    Configure = "configure",
    /// Call a route that is no model's.
    Get = "get",
    /// Make an administrator's call.
    Call = "call",
    /// Fetch a release.
    Pull = "pull",
    /// Store a release.
    Push = "push",
    /// Sign a release.
    Sign = "sign",
    /// Encrypt a release.
    Seal = "seal",
    /// Wrap a release's data key anew.
    Rekey = "rekey",
    /// Wrap a data key.
    Wrap = "wrap",
    /// Unwrap a data key.
    Unwrap = "unwrap",
    /// Sign with a key.
    SignWith = "sign_with",
    /// Replace a key by a new version.
    Rotate = "rotate",
    /// Take part in a federated job.
    Join = "join",
    /// Hand in an update of a federated job.
    Submit = "submit",
    /// Follow a federated job.
    Watch = "watch",
    /// Start a federated job.
    Start = "start",
    /// Stop a federated job.
    Stop = "stop",
    /// Read a dataset.
    Read = "read",
    /// Learn from a dataset.
    Train = "train",
}

/// One resource, by its kind and its name among its kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    /// Kind.
    pub kind: ResourceKind,
    /// Name.
    pub id: String,
}

impl Resource {
    /// A resource.
    pub fn new(kind: ResourceKind, id: impl Into<String>) -> Self {
        Self { kind, id: id.into() }
    }

    /// A version of a model.
    pub fn version(model: &str, version: impl fmt::Display) -> Self {
        Self::new(ResourceKind::ModelVersion, format!("{model}/{version}"))
    }

    /// The model that this is, or is a version of.
    pub fn model(&self) -> Option<&str> {
        match self.kind {
            ResourceKind::Model => Some(&self.id),
            ResourceKind::ModelVersion => self.id.rsplit_once('/').map(|(model, _)| model),
            _ => None,
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::{}", self.kind, self.id)
    }
}

impl FromStr for Resource {
    type Err = TrustError;

    /// Reads `KIND::NAME`.
    fn from_str(text: &str) -> Result<Self, TrustError> {
        let (kind, id) = text.split_once("::").filter(|(_, id)| !id.is_empty()).ok_or_else(|| {
            let message =
                format!("resource `{text}` has no kind; expected `KIND::NAME`, as `ModelVersion::chest-xray/1`");
            TrustError::new(ErrorKind::Invalid, message)
        })?;
        Ok(Self::new(kind.parse()?, id))
    }
}

impl serde::Serialize for Resource {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Resource {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <String as serde::Deserialize>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for text in ["Model::a", "ModelVersion::a/b/3", "Endpoint::metrics", "Key::a::b"] {
            assert_eq!(text.parse::<Resource>().unwrap().to_string(), text);
        }
        for wrong in ["", "Model", "Model::", "Modell::a", "::a"] {
            assert!(wrong.parse::<Resource>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_version_knows_its_model() {
        assert_eq!(Resource::version("eu/chest", 3).model(), Some("eu/chest"));
        assert_eq!(Resource::new(ResourceKind::ModelVersion, "chest").model(), None);
        assert_eq!(Resource::new(ResourceKind::Key, "chest/1").model(), None);
    }
}
