//! The contract between an engine and its callers.

use std::{collections::BTreeMap, num::NonZeroUsize, path::PathBuf, time::Duration};

use bytes::Bytes;
use edgeward_graph::{DataType, Tensor};

use crate::{Cancel, EngineError};

/// A way to run graphs: one library, of one version.
pub trait Engine: Send + Sync {
    /// Name on the command line and in metrics: `rten`, `onnxruntime`, `openvino`.
    fn name(&self) -> &'static str;

    /// Version and what the library offers.
    fn info(&self) -> EngineInfo;

    /// Prepares a model to run. Errors: [`Unsupported`](crate::ErrorKind::Unsupported) names each operator that the
    /// engine lacks, [`InvalidModel`](crate::ErrorKind::InvalidModel) the place in the file.
    fn load(&self, source: &Source, options: &SessionOptions) -> Result<Box<dyn Session>, EngineError>;
}

/// What an engine says of itself.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct EngineInfo {
    /// Version of the library.
    pub version: String,
    /// Where the library was opened; none where it is built in.
    pub library: Option<PathBuf>,
    /// Execution providers or devices that the library offers, e.g. `CPUExecutionProvider`, `GPU`.
    pub providers: Vec<String>,
}

/// Where a model comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// An ONNX file; external data is looked up beneath its folder only.
    File(PathBuf),
    /// The bytes of an ONNX file without external data.
    Bytes(Bytes),
}

/// How a session is to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionOptions {
    /// Threads within one run; the engine's own choice where none.
    pub threads: Option<NonZeroUsize>,
    /// Record per-operator times for [`Session::profile`].
    pub profile: bool,
    /// Execution providers or devices in order of preference; CPU where empty. An unknown one is an error.
    pub providers: Vec<Provider>,
    /// Take faster ways to what the model's [composites](edgeward_graph::Model::composites) name, where the engine knows some.
    /// For graphs of one's own: a stranger's model is run as it is written.
    pub lower: bool,
}

/// An execution provider of ONNX Runtime, or a device of OpenVINO.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provider {
    /// Name as [`EngineInfo::providers`] has it.
    pub name: String,
    /// What it is told, by the library's own keys; an unknown key is an error.
    pub options: BTreeMap<String, String>,
}

/// One dimension of an input or output.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(untagged)]
pub enum Dim {
    /// Known size.
    Fixed(usize),
    /// Known by name only; equal names have equal sizes in one run.
    Symbol(String),
    /// Unknown.
    Dynamic(()),
}

/// Name, type and shape of an input or output.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TensorInfo {
    /// Name in the graph.
    pub name: String,
    /// Element type.
    #[serde(serialize_with = "dtype_name")]
    pub dtype: DataType,
    /// Dimensions; none where the rank is unknown.
    pub shape: Option<Vec<Dim>>,
}

fn dtype_name<S: serde::Serializer>(dtype: &DataType, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(dtype.name())
}

/// What one run is asked for beyond its inputs.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunOptions<'a> {
    /// Outputs wanted, by name and in this order; all in the model's order where none.
    pub outputs: Option<&'a [&'a str]>,
    /// Cancelled before or during the run, it ends the run with [`Cancelled`](crate::ErrorKind::Cancelled) as early as
    /// the engine can: ONNX Runtime between two operators, OpenVINO as well where every shape is known before the run,
    /// rten when it is done.
    pub cancel: Option<&'a Cancel>,
}

/// Outputs of a run, in the order asked for.
pub type Outputs = Vec<Tensor>;

/// A model prepared by an engine. Runs may overlap: `run` may be called from several threads at once.
pub trait Session: Send + Sync {
    /// Inputs that must be given, without initialisers.
    fn inputs(&self) -> &[TensorInfo];

    /// Outputs in the model's order.
    fn outputs(&self) -> &[TensorInfo];

    /// Runs on named inputs. Errors name the input that is missing, unknown, or of another type or shape.
    fn run(&self, inputs: &[(&str, &Tensor)], options: RunOptions<'_>) -> Result<Outputs, EngineError>;

    /// Runs and writes each wanted output into the caller's buffer of raw bytes, which must have its exact length;
    /// returns the shapes. Not for strings.
    fn run_into(
        &self,
        inputs: &[(&str, &Tensor)],
        options: RunOptions<'_>,
        buffers: &mut [&mut [u8]],
    ) -> Result<Vec<Vec<usize>>, EngineError>;

    /// Per-operator times since the session was made; none unless [`SessionOptions::profile`] was set.
    fn profile(&self) -> Option<Profile>;
}

/// Per-operator times.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Profile {
    /// Runs that were recorded.
    pub runs: u64,
    /// One entry per node or operator type, slowest first.
    pub nodes: Vec<NodeTime>,
}

/// Time spent in one node (or one operator type, where an engine tells no more).
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct NodeTime {
    /// Node name; empty where the entry sums an operator type.
    pub name: String,
    /// Operator type.
    pub op_type: String,
    /// Sum over all runs.
    pub total: Duration,
    /// Executions.
    pub count: u64,
}
