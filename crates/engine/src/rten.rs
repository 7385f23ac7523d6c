//! The built-in engine: `rten`, pure Rust, nothing beside the binary.
//!
//! It computes in f32, i32, i8 and u8. At the boundary this room keeps the model's declared types: int64 and bool
//! travel as i32 inside and are converted back; other types are refused at load by name.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use edgeward_graph::{
    DataType, Dimension, Limits, Model as Graph, Tensor,
    proto::{AttributeProto, ModelProto, NodeProto},
};
use rten::{
    DataType as RtenType, Model, ModelOptions, NodeId, RunOptions as RtenRun, ThreadPool, Value, ValueOrView,
    ValueType, ValueView,
};

use crate::{
    Engine, EngineError, EngineInfo, ErrorKind, Outputs, Profile, Provider, RunOptions, Session, SessionOptions,
    Source, TensorInfo, cancel, check, estimate::Estimate,
};
use rten_tensor::Layout as _;

pub(crate) const NAME: &str = "rten";
const KERNEL: &str = "kernel_shape";

/// The built-in engine.
#[derive(Debug, Default)]
pub struct Rten;

impl Engine for Rten {
    fn name(&self) -> &'static str {
        NAME
    }

    fn info(&self) -> EngineInfo {
        EngineInfo { version: "0.27.0".to_owned(), library: None, providers: vec!["CPU".to_owned()] }
    }

    fn load(&self, source: &Source, options: &SessionOptions) -> Result<Box<dyn Session>, EngineError> {
        provided(&options.providers)?;
        let graph = read(source)?;
        let (inputs, outputs) = check::interface(NAME, &graph)?;
        for info in inputs.iter().chain(&outputs) {
            supported(info)?;
        }
        let model = load(source, &graph)?;
        let estimate = Some(Estimate::new(NAME, &graph, element_bytes));
        let session = RtenSession::new(model, (inputs, outputs), options, estimate)?;
        Ok(Box::new(session))
    }
}

/// A session whose runs are not held against the memory that there is: for what is small.
pub(crate) fn unguarded(source: &Source) -> Result<Box<dyn Session>, EngineError> {
    let graph = read(source)?;
    let interface = check::interface(NAME, &graph)?;
    let one = SessionOptions { threads: Some(std::num::NonZeroUsize::MIN), ..SessionOptions::default() };
    let session = RtenSession::new(load(source, &graph)?, interface, &one, None)?;
    Ok(Box::new(session))
}

/// As rten holds them: all that is no byte in four.
fn element_bytes(dtype: DataType) -> u64 {
    if matches!(dtype, DataType::Int8 | DataType::UInt8) { 1 } else { 4 }
}

fn provided(wanted: &[Provider]) -> Result<(), EngineError> {
    let refuse = |text: String| Err(error(ErrorKind::Unsupported, text));
    if let Some(Provider { name, .. }) = wanted.iter().find(|p| p.name != "CPU") {
        return refuse(format!("unknown provider `{name}`, there is `CPU` only"));
    }
    match wanted.iter().find_map(|p| p.options.keys().next()) {
        Some(key) => refuse(format!("provider `CPU` takes no options, `{key}` is given")),
        None => Ok(()),
    }
}

fn error(kind: ErrorKind, message: impl Into<String>) -> EngineError {
    EngineError::new(NAME, kind, message)
}

fn read(source: &Source) -> Result<Graph, EngineError> {
    crate::source::read(NAME, source, &Limits::default())
}

fn supported(info: &TensorInfo) -> Result<(), EngineError> {
    use DataType::{Bool, Float32, Int8, Int32, Int64, UInt8};
    if matches!(info.dtype, Float32 | Int32 | Int64 | Bool | Int8 | UInt8) {
        return Ok(());
    }
    Err(error(ErrorKind::Unsupported, format!("`{}` is {}, which rten does not compute in", info.name, info.dtype)))
}

/// Loads the model; external data goes in from the files that the graph reader has opened and checked.
fn load(source: &Source, graph: &Graph) -> Result<Model, EngineError> {
    let mut options = ModelOptions::with_all_ops();
    options.prepack_weights(true);
    let external = graph.external_locations().map_err(|e| error(ErrorKind::InvalidModel, e.to_string()))?;
    let kernels = kernels_left_open(graph);
    let loaded = if external.is_empty() && kernels.is_empty() {
        match source {
            Source::File(path) => options.load(file_bytes(path)?),
            Source::Bytes(bytes) => options.load(bytes.to_vec()),
        }
    } else {
        graph.check_external().map_err(|e| error(ErrorKind::InvalidModel, e.to_string()))?;
        let mut inline = graph.clone();
        inline.inline_external().map_err(|e| error(ErrorKind::InvalidModel, e.to_string()))?;
        for (index, sizes) in kernels {
            let node = inline.graph_mut().node.get_mut(index);
            node.into_iter().for_each(|node| node.attribute.push(AttributeProto::of_ints(KERNEL, sizes.clone())));
        }
        options.load(inline.to_bytes().map_err(|e| error(ErrorKind::Unsupported, e.to_string()))?)
    };
    loaded.map_err(|e| refusal(&e.to_string(), graph.proto()))
}

/// Convolutions that leave the size of their kernel to their weights, as ONNX lets them, and that size: without it rten has no defaults
/// for the attributes that go with it.
fn kernels_left_open(graph: &Graph) -> Vec<(usize, Vec<i64>)> {
    let (proto, inputs) = (graph.graph(), graph.inputs());
    let size = |dim: &Dimension| if let Dimension::Fixed(size) = dim { i64::try_from(*size).ok() } else { None };
    let shape = |name: &str| -> Option<Vec<i64>> {
        let kept = proto.initializer.iter().find(|tensor| tensor.name() == name).map(|tensor| tensor.dims.clone());
        kept.or_else(|| inputs.iter().find(|port| port.name == name)?.shape.as_ref()?.iter().map(size).collect())
    };
    let open = |node: &NodeProto| {
        let is_open = node.is_standard()
            && matches!(node.op_type(), "Conv" | "ConvTranspose")
            && node.attribute.iter().all(|attribute| attribute.name() != KERNEL);
        is_open.then(|| shape(node.input.get(1)?)?.get(2..).map(<[i64]>::to_vec))?
    };
    proto.node.iter().enumerate().filter_map(|(index, node)| Some((index, open(node)?))).collect()
}

fn file_bytes(path: &Path) -> Result<Vec<u8>, EngineError> {
    std::fs::read(path).map_err(|e| error(ErrorKind::InvalidModel, format!("cannot read `{}`: {e}", path.display())))
}

/// Rten stops at the first operator that it lacks; name the node and its type, since the caller sees no other.
fn refusal(text: &str, model: &ModelProto) -> EngineError {
    let unsupported = text.contains("not available") || text.contains("not supported") || text.contains("unsupported");
    let kind = if unsupported { ErrorKind::Unsupported } else { ErrorKind::InvalidModel };
    let mut named = String::new();
    if let Some(name) = text.split('"').nth(1) {
        edgeward_graph::walk::nodes(model, &mut |node| {
            if node.name.as_deref() == Some(name) && named.is_empty() {
                named = format!(" (operator `{}`)", node.op_type.as_deref().unwrap_or(""));
            }
        });
    }
    error(kind, format!("{text}{named}"))
}

struct RtenSession {
    model: Model,
    inputs: Vec<TensorInfo>,
    outputs: Vec<TensorInfo>,
    input_ids: Vec<NodeId>,
    output_ids: Vec<NodeId>,
    pool: Option<Arc<ThreadPool>>,
    estimate: Option<Estimate>,
}

impl RtenSession {
    fn new(
        model: Model,
        (inputs, outputs): (Vec<TensorInfo>, Vec<TensorInfo>),
        options: &SessionOptions,
        estimate: Option<Estimate>,
    ) -> Result<Self, EngineError> {
        let ids = |infos: &[TensorInfo]| {
            let find =
                |i: &TensorInfo| model.node_id(&i.name).map_err(|e| error(ErrorKind::InvalidModel, e.to_string()));
            infos.iter().map(find).collect::<Result<Vec<_>, _>>()
        };
        let (input_ids, output_ids) = (ids(&inputs)?, ids(&outputs)?);
        let pool = options.threads.map(|n| Arc::new(ThreadPool::with_num_threads(n.get())));
        Ok(Self { model, inputs, outputs, input_ids, output_ids, pool, estimate })
    }
}

impl Session for RtenSession {
    fn inputs(&self) -> &[TensorInfo] {
        &self.inputs
    }

    fn outputs(&self) -> &[TensorInfo] {
        &self.outputs
    }

    fn run(&self, inputs: &[(&str, &Tensor)], options: RunOptions<'_>) -> Result<Outputs, EngineError> {
        let (given, wanted) = check::request(NAME, (&self.inputs, &self.outputs), inputs, &options)?;
        self.estimate.iter().try_for_each(|estimate| estimate.check(&self.inputs, &given))?;
        let owned = given.iter().map(|t| Operand::new(t)).collect::<Result<Vec<_>, _>>()?;
        let views = self.input_ids.iter().copied().zip(owned.iter().map(Operand::view)).collect();
        let mut ids: Vec<NodeId> = Vec::with_capacity(wanted.len());
        for id in wanted.iter().filter_map(|&i| self.output_ids.get(i)) {
            if !ids.contains(id) {
                ids.push(*id);
            }
        }
        let mut run = RtenRun::default();
        run.thread_pool = self.pool.clone();
        let values = self.model.run(views, &ids, Some(run)).map_err(|e| error(ErrorKind::Failed, e.to_string()))?;
        // Rten offers no way into a run; at least nobody converts what nobody waits for.
        cancel::check(NAME, options.cancel)?;
        let results = ids.iter().zip(values).map(|(id, value)| {
            let index = self.output_ids.iter().position(|o| o == id).unwrap_or(0);
            self.outputs
                .get(index)
                .map_or_else(|| Err(error(ErrorKind::Failed, "lost output")), |o| to_tensor(value, o.dtype))
        });
        let results = results.collect::<Result<Vec<_>, _>>()?;
        // The same output asked for twice was computed once.
        let pick = |&i: &usize| {
            let at = self.output_ids.get(i).and_then(|id| ids.iter().position(|x| x == id));
            at.and_then(|at| results.get(at)).cloned().ok_or_else(|| error(ErrorKind::Failed, "lost output"))
        };
        wanted.iter().map(pick).collect()
    }

    fn run_into(
        &self,
        inputs: &[(&str, &Tensor)],
        options: RunOptions<'_>,
        buffers: &mut [&mut [u8]],
    ) -> Result<Vec<Vec<usize>>, EngineError> {
        check::copy_out(NAME, &self.run(inputs, options)?, buffers)
    }

    fn profile(&self) -> Option<Profile> {
        // Rten prints its operator times and offers no way to read them.
        None
    }
}

/// An input in a form that rten can view: the caller's own bytes where type and alignment allow.
enum Operand<'a> {
    Float(&'a [usize], std::borrow::Cow<'a, [f32]>),
    Int(&'a [usize], std::borrow::Cow<'a, [i32]>),
    Int8(&'a [usize], std::borrow::Cow<'a, [i8]>),
    UInt8(&'a [usize], std::borrow::Cow<'a, [u8]>),
}

impl<'a> Operand<'a> {
    fn new(tensor: &'a Tensor) -> Result<Self, EngineError> {
        let fail = |e: edgeward_graph::TensorError| error(ErrorKind::InvalidInput, e.to_string());
        let shape = tensor.shape();
        Ok(match tensor.dtype() {
            DataType::Float32 => Self::Float(shape, tensor.values::<f32>().map_err(fail)?),
            DataType::Int32 => Self::Int(shape, tensor.values::<i32>().map_err(fail)?),
            DataType::Int8 => Self::Int8(shape, tensor.values::<i8>().map_err(fail)?),
            DataType::UInt8 => Self::UInt8(shape, tensor.values::<u8>().map_err(fail)?),
            DataType::Bool => {
                let raw = tensor.raw().cloned().unwrap_or_default();
                Self::Int(shape, raw.iter().map(|&b| i32::from(b != 0)).collect::<Vec<_>>().into())
            }
            // As the loader does with constants: values outside i32 are limits ("to the end"), so they saturate.
            DataType::Int64 => {
                let values = tensor.values::<i64>().map_err(fail)?;
                let clamp = |&v: &i64| v.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
                Self::Int(shape, values.iter().map(clamp).collect::<Vec<_>>().into())
            }
            other => return Err(error(ErrorKind::Unsupported, format!("rten does not compute in {other}"))),
        })
    }

    fn view(&self) -> ValueOrView<'_> {
        // Lengths were checked when the tensor was made, so a view always fits.
        fn of<'v, T>(shape: &[usize], data: &'v [T]) -> Option<ValueView<'v>>
        where
            ValueView<'v>: From<rten_tensor::TensorView<'v, T>>,
        {
            ValueView::from_shape(shape, data).ok()
        }
        let view = match self {
            Self::Float(shape, data) => of(shape, data),
            Self::Int(shape, data) => of(shape, data),
            Self::Int8(shape, data) => of(shape, data),
            Self::UInt8(shape, data) => of(shape, data),
        };
        view.map_or_else(|| ValueOrView::Value(Value::from(rten_tensor::Tensor::<f32>::zeros(&[0]))), ValueOrView::View)
    }
}

/// An output as the model declares it.
fn to_tensor(value: Value, declared: DataType) -> Result<Tensor, EngineError> {
    let fail = |e: edgeward_graph::TensorError| error(ErrorKind::Failed, e.to_string());
    let shape = value.as_view().shape().to_vec();
    let held = value.dtype();
    match (value, declared) {
        (Value::FloatTensor(t), DataType::Float32) => Tensor::from_vec(shape, t.into_data()).map_err(fail),
        (Value::Int32Tensor(t), DataType::Int32) => Tensor::from_vec(shape, t.into_data()).map_err(fail),
        (Value::Int8Tensor(t), DataType::Int8) => Tensor::from_vec(shape, t.into_data()).map_err(fail),
        (Value::UInt8Tensor(t), DataType::UInt8) => Tensor::from_vec(shape, t.into_data()).map_err(fail),
        (Value::Int32Tensor(t), DataType::Int64) => {
            Tensor::from_vec(shape, t.into_data().into_iter().map(i64::from).collect()).map_err(fail)
        }
        (Value::Int32Tensor(t), DataType::Bool) => {
            let bytes: Vec<u8> = t.into_data().into_iter().map(|v| u8::from(v != 0)).collect();
            Tensor::from_raw(DataType::Bool, shape, Bytes::from(bytes)).map_err(fail)
        }
        _ => Err(error(ErrorKind::Failed, format!("an output is {}, the model declares {declared}", text(held)))),
    }
}

fn text(held: ValueType) -> &'static str {
    match held {
        ValueType::Tensor(RtenType::Float) => "float32",
        ValueType::Tensor(RtenType::Int32) => "int32",
        ValueType::Tensor(RtenType::Int8) => "int8",
        ValueType::Tensor(RtenType::UInt8) => "uint8",
        _ => "a sequence",
    }
}
