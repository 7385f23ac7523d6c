//! A model in memory: read within limits, with its tensors' data, and written back.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use prost::Message;

use crate::{
    DataType, GraphError, Tensor,
    append::ExternalWriter,
    codec::{self, is_external},
    external::{ExternalFiles, ExternalRef, map},
    limits::Limits,
    proto::{GraphProto, ModelProto, TensorProto, tensor_shape_proto::dimension, type_proto},
    walk, wire,
};

/// Protobuf's own bound on one message.
const PROTOBUF_BYTES_MAX: usize = i32::MAX as usize;

/// An ONNX model. Cloning shares the tensors' bytes.
#[derive(Clone, Debug)]
pub struct Model {
    proto: ModelProto,
    external: Option<Arc<ExternalFiles>>,
}

/// A dimension as the model declares it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Dimension {
    /// Known size.
    Fixed(usize),
    /// Known by name only.
    Symbol(String),
    /// Unknown.
    Unknown,
}

/// Name, type and shape of a graph's input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name in the graph.
    pub name: String,
    /// Element type; none where it is no tensor (sequence, map, optional).
    pub dtype: Option<DataType>,
    /// Dimensions; none where the rank is unknown.
    pub shape: Option<Vec<Dimension>>,
}

impl Model {
    /// Reads an ONNX file without copying its tensors; external data is opened when it is asked for.
    pub fn read(path: impl AsRef<Path>, limits: &Limits) -> Result<Self, GraphError> {
        let path = path.as_ref();
        let io = |action| move |source| GraphError::Io { action, path: path.to_owned(), source };
        let file = File::open(path).map_err(io("open"))?;
        let metadata = file.metadata().map_err(io("read"))?;
        if !metadata.is_file() {
            return Err(GraphError::Malformed(format!("`{}` is not a file", path.display())));
        }
        limits.file(metadata.len())?;
        let bytes = map(file).map_err(|reason| io("read")(std::io::Error::other(reason)))?;
        let mut model = Self::from_bytes(bytes, limits)?;
        let folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
        model.external = Some(Arc::new(ExternalFiles::beneath(folder)));
        Ok(model)
    }

    /// Decodes an ONNX file's bytes; tensors share them. External data is an error when it is asked for.
    pub fn from_bytes(bytes: Bytes, limits: &Limits) -> Result<Self, GraphError> {
        limits.file(bytes.len() as u64)?;
        if bytes.is_empty() {
            return Err(GraphError::Malformed("the file is empty".to_owned()));
        }
        wire::scan(&bytes, limits)?;
        let proto = ModelProto::decode(bytes.clone()).map_err(|e| {
            wire::blame(&bytes, limits).unwrap_or_else(|| GraphError::Malformed(format!("model: {}", wire::reason(&e))))
        })?;
        if proto.graph.is_none() {
            return Err(GraphError::Malformed("it holds no graph".to_owned()));
        }
        let model = Self { proto, external: None };
        limits.model(&model.proto)?;
        Ok(model)
    }

    /// As [`Model::from_bytes`], with the files of its external data by location; no other file is looked at.
    pub fn from_parts(bytes: Bytes, files: HashMap<String, Bytes>, limits: &Limits) -> Result<Self, GraphError> {
        let mut model = Self::from_bytes(bytes, limits)?;
        model.external = Some(Arc::new(ExternalFiles::given(files)));
        Ok(model)
    }

    /// A model made in memory.
    pub fn from_proto(proto: ModelProto) -> Self {
        Self { proto, external: None }
    }

    /// The messages as read.
    pub fn proto(&self) -> &ModelProto {
        &self.proto
    }

    /// The messages, to rewrite.
    pub fn proto_mut(&mut self) -> &mut ModelProto {
        &mut self.proto
    }

    /// The messages, by value.
    pub fn into_proto(self) -> ModelProto {
        self.proto
    }

    /// The main graph; empty where the messages hold none.
    pub fn graph(&self) -> &GraphProto {
        static NONE: std::sync::LazyLock<GraphProto> = std::sync::LazyLock::new(GraphProto::default);
        self.proto.graph.as_ref().unwrap_or_else(|| &NONE)
    }

    /// The main graph, to rewrite.
    pub fn graph_mut(&mut self) -> &mut GraphProto {
        self.proto.graph.get_or_insert_default()
    }

    /// Version of the default operator set; 1 where the model names none.
    pub fn opset(&self) -> i64 {
        self.opset_of("").unwrap_or(1)
    }

    /// Version of a domain's operator set.
    pub fn opset_of(&self, domain: &str) -> Option<i64> {
        let canonical = |d: Option<&str>| match d {
            None | Some("ai.onnx") => String::new(),
            Some(d) => d.to_owned(),
        };
        self.proto
            .opset_import
            .iter()
            .find(|o| canonical(o.domain.as_deref()) == canonical(Some(domain)))
            .map(|o| o.version.unwrap_or(1))
    }

    /// Inputs that a caller must give: those without an initialiser of their name.
    pub fn inputs(&self) -> Vec<Port> {
        let graph = self.graph();
        let initialised: std::collections::HashSet<&str> = graph
            .initializer
            .iter()
            .filter_map(|t| t.name.as_deref())
            .chain(graph.sparse_initializer.iter().filter_map(|s| s.values.as_ref()?.name.as_deref()))
            .collect();
        graph.input.iter().filter(|v| !initialised.contains(v.name.as_deref().unwrap_or(""))).map(port).collect()
    }

    /// Outputs in the model's order.
    pub fn outputs(&self) -> Vec<Port> {
        self.graph().output.iter().map(port).collect()
    }

    /// The values of a tensor of this model: typed or raw fields, or external data.
    pub fn tensor(&self, tensor: &TensorProto) -> Result<Tensor, GraphError> {
        if !is_external(tensor) {
            return codec::decode(tensor);
        }
        let (dtype, shape) = codec::header(tensor)?;
        let name = tensor.name.as_deref().unwrap_or("");
        let count = crate::element_count(&shape).map_err(|e| GraphError::tensor(name, e))?;
        let Some(files) = &self.external else {
            let location = ExternalRef::of(tensor)?.location;
            let reason = "the model was given as bytes, so it has no folder to look in".to_owned();
            return Err(GraphError::External { tensor: name.to_owned(), location, reason });
        };
        let bytes = files.read(tensor, dtype.byte_len(count))?;
        Tensor::from_raw(dtype, shape, bytes).map_err(|e| GraphError::tensor(name, e))
    }

    /// Locations of external data, each once, in the order of first use.
    pub fn external_locations(&self) -> Result<Vec<String>, GraphError> {
        let mut locations = Vec::new();
        let mut failed = None;
        walk::tensors(&self.proto, &mut |tensor| {
            if is_external(tensor) && failed.is_none() {
                match ExternalRef::of(tensor) {
                    Ok(r) if !locations.contains(&r.location) => locations.push(r.location),
                    Ok(_) => {}
                    Err(e) => failed = Some(e),
                }
            }
        });
        failed.map_or(Ok(locations), Err)
    }

    /// Opens every piece of external data and checks it; what a loader that takes a path must call before.
    pub fn check_external(&self) -> Result<(), GraphError> {
        let mut result = Ok(());
        walk::tensors(&self.proto, &mut |tensor| {
            if result.is_ok() && is_external(tensor) {
                result = self.tensor(tensor).map(drop);
            }
        });
        result
    }

    /// Folder that external data is read from.
    pub fn folder(&self) -> Option<&Path> {
        self.external.as_ref()?.folder()
    }

    /// Takes external data into the model itself, sharing the mapped files.
    pub fn inline_external(&mut self) -> Result<(), GraphError> {
        let reader = self.without_messages();
        let mut result = Ok(());
        walk::tensors_mut(&mut self.proto, &mut |tensor| {
            if result.is_ok() && is_external(tensor) {
                match reader.tensor(tensor) {
                    Ok(values) => codec::store(tensor, &values),
                    Err(e) => result = Err(e),
                }
            }
        });
        result
    }

    /// Reads this model's external data while its messages change.
    pub(crate) fn without_messages(&self) -> Self {
        Self { proto: ModelProto::default(), external: self.external.clone() }
    }

    /// The file's bytes, external data left where it is.
    pub fn to_bytes(&self) -> Result<Vec<u8>, GraphError> {
        self.encoded_len()?;
        Ok(self.proto.encode_to_vec())
    }

    /// Writes what [`Model::to_bytes`] gives into the caller's memory, which must have its length.
    pub fn encode_into(&self, mut memory: &mut [u8]) -> Result<(), GraphError> {
        self.proto.encode(&mut memory).map_err(|e| GraphError::Malformed(e.to_string()))
    }

    /// Bytes that [`Model::to_bytes`] gives.
    pub fn encoded_len(&self) -> Result<usize, GraphError> {
        let length = self.proto.encoded_len();
        if length > PROTOBUF_BYTES_MAX {
            return Err(GraphError::Limit {
                what: "the size of one ONNX file in bytes (write the tensors as external data)".to_owned(),
                actual: length as u64,
                limit: PROTOBUF_BYTES_MAX as u64,
            });
        }
        Ok(length)
    }

    /// Writes the file whole: beside its place first, then renamed. External data is left where it is.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<(), GraphError> {
        write_whole(path.as_ref(), &self.to_bytes()?)
    }

    /// Writes the model with every tensor of at least `threshold` bytes in one file `NAME.data` beside it.
    pub fn write_external(&self, path: impl AsRef<Path>, threshold: usize) -> Result<(), GraphError> {
        let mut inline = self.clone();
        inline.inline_external()?;
        ExternalWriter::create(path.as_ref())?.finish(inline, threshold)
    }

    /// Bytes that the file would have with all external data within, whether a file may be that large or not.
    pub fn whole_len(&self) -> u64 {
        let mut length = self.proto.encoded_len() as u64;
        walk::tensors(&self.proto, &mut |tensor| {
            if is_external(tensor) {
                length = length.saturating_add(codec::declared_bytes(tensor));
            }
        });
        length
    }

    /// Lets go of the memory that external data was read into: it comes from its files again where it is used again.
    pub fn release_external(&self) {
        self.external.iter().for_each(|files| files.release());
    }
}

pub(crate) fn staged(path: &Path) -> PathBuf {
    let name = format!(".{}.{}", path.file_name().unwrap_or_default().to_string_lossy(), std::process::id());
    path.with_file_name(name)
}

fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), GraphError> {
    let staged = staged(path);
    let result = File::create(&staged)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&staged, path));
    result.map_err(|source| {
        // The half-written file is of no use; that it may be gone already is no error.
        let _ = fs::remove_file(&staged);
        GraphError::Io { action: "write", path: path.to_owned(), source }
    })
}

/// Reads the declaration of an input or output.
pub(crate) fn port(value: &crate::proto::ValueInfoProto) -> Port {
    let name = value.name.clone().unwrap_or_default();
    let tensor = match value.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        Some(type_proto::Value::TensorType(tensor)) => tensor,
        _ => return Port { name, dtype: None, shape: None },
    };
    let shape = tensor.shape.as_ref().map(|shape| {
        let dims = shape.dim.iter().map(|dim| match &dim.value {
            Some(dimension::Value::DimValue(size)) => {
                usize::try_from(*size).map_or(Dimension::Unknown, Dimension::Fixed)
            }
            Some(dimension::Value::DimParam(symbol)) if !symbol.is_empty() => Dimension::Symbol(symbol.clone()),
            _ => Dimension::Unknown,
        });
        dims.collect()
    });
    Port { name, dtype: DataType::from_onnx(tensor.elem_type.unwrap_or(0)), shape }
}
