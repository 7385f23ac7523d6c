//! What a layer's inputs are like together: `Σ x xᵀ` over all that it multiplies by one row of weights, which says what
//! a change of weights does to its results: `Σ |Δw · x|² = Δw (Σ x xᵀ) Δwᵀ`.
//!
//! The sums of a batch are products of matrices within the graph, so that the engine makes them. Memory is that of one
//! batch and of one matrix for each value, in passes of as many values as fit.

use std::collections::{BTreeMap, HashMap};

use edgeward_graph::{
    Tensor,
    proto::{AttributeProto, NodeProto},
};

use crate::{
    CompressError, Layer, Prepared,
    edit::{Edit, node},
    observe::{self, Inputs, Load},
};

/// Batches, as often as they are asked for.
pub type Repeat<'a> = &'a dyn Fn() -> Box<dyn Iterator<Item = Result<Inputs, CompressError>> + 'a>;

/// Bytes of matrices of one pass over the data.
const PASS_BYTES: usize = 512 << 20;
/// A matrix of more rows takes too much memory and time; such layers are left out.
pub(crate) const ROWS_MAX: usize = 8192;

/// `Σ x xᵀ` of a layer's inputs.
#[derive(Clone, Debug)]
pub(crate) struct Moment {
    /// Numbers that one weight row multiplies: rows and columns of each matrix.
    pub size: usize,
    /// A matrix for each group of a convolution, row by row, one after the other.
    pub sums: Vec<f64>,
}

impl Moment {
    /// The matrix of group `group`.
    pub fn of_group(&self, group: usize) -> Option<&[f64]> {
        let area = self.size * self.size;
        self.sums.get(group * area..(group + 1) * area)
    }
}

/// Inputs of one layer, as matrices are made of them.
struct Watched<'a> {
    layer: &'a Layer,
    node: &'a NodeProto,
    groups: usize,
    size: usize,
}

impl<'a> Watched<'a> {
    fn of(prepared: &'a Prepared, layer: &'a Layer) -> Option<Self> {
        let node = prepared.model.graph().node.get(layer.node)?;
        let (groups, size) = match layer.op.as_str() {
            "Conv" => {
                let groups = usize::try_from(node.attr_int("group").unwrap_or(1)).ok().filter(|groups| *groups > 0)?;
                (groups, layer.weight.iter().skip(1).product())
            }
            _ => (1, *layer.weight.get(if crate::fuse::channel_axis(node) == 0 { 1 } else { 0 })?),
        };
        (1..=ROWS_MAX).contains(&size).then_some(Self { layer, node, groups, size })
    }

    /// What the matrices, their sums, and what makes them take.
    fn bytes(&self) -> usize {
        self.groups.saturating_mul(self.size * self.size).saturating_mul(3 * size_of::<f32>() + size_of::<f64>())
    }
}

/// Matrices by the layer's name, handed to `each` pass by pass and dropped after it: layers that are too wide have none.
/// Layers that read the same in the same way share the engine's work. Errors: data or an engine that fails, and those of `each`.
pub(crate) fn moments(
    prepared: &Prepared,
    layers: &[&Layer],
    load: Load<'_>,
    batches: Repeat<'_>,
    each: &mut dyn FnMut(&Layer, &Moment) -> Result<(), CompressError>,
) -> Result<(), CompressError> {
    let mut shared: BTreeMap<(String, String), Vec<Watched<'_>>> = BTreeMap::new();
    for watched in layers.iter().filter_map(|layer| Watched::of(prepared, layer)) {
        let Some(input) = watched.node.input.first() else { continue };
        shared.entry((input.clone(), way(&watched))).or_default().push(watched);
    }
    let mut pass: Vec<Vec<Watched<'_>>> = Vec::new();
    let mut bytes = 0usize;
    let mut all = shared.into_values().peekable();
    while let Some(watched) = all.next() {
        bytes = bytes.saturating_add(watched.first().map_or(0, Watched::bytes));
        pass.push(watched);
        let next = all.peek().and_then(|next| next.first()).map(Watched::bytes);
        if next.is_none_or(|next| bytes.saturating_add(next) > PASS_BYTES) {
            one_pass(prepared, &std::mem::take(&mut pass), load, batches, each)?;
            bytes = 0;
        }
    }
    Ok(())
}

/// Tells apart convolutions that see one value through different windows.
fn way(watched: &Watched<'_>) -> String {
    if watched.layer.op != "Conv" {
        return format!("rows of {}", watched.size);
    }
    let mut attributes: Vec<String> = watched.node.attribute.iter().map(|attribute| format!("{attribute:?}")).collect();
    attributes.sort();
    format!("{:?} {}", watched.layer.weight.get(1..), attributes.join(" "))
}

fn one_pass(
    prepared: &Prepared,
    pass: &[Vec<Watched<'_>>],
    load: Load<'_>,
    batches: Repeat<'_>,
    each: &mut dyn FnMut(&Layer, &Moment) -> Result<(), CompressError>,
) -> Result<(), CompressError> {
    let mut edit = Edit::new(prepared.model.clone());
    let mut wanted = Vec::new();
    for watched in pass.iter().filter_map(|shared| shared.first()) {
        wanted.push(matrix(&mut edit, watched)?);
    }
    edit.model.graph_mut().output.clear();
    let mut model = observe::with_outputs(&edit.model, &wanted);
    model.graph_mut().drop_dead_nodes();
    let session = load(&model)?;
    let names: Vec<&str> = wanted.iter().map(String::as_str).collect();
    let mut sums: HashMap<usize, Vec<f64>> = HashMap::new();
    for batch in batches() {
        // What the last layers read may not need every input.
        let mut batch = batch?;
        batch.retain(|(name, _)| session.inputs().iter().any(|input| input.name == *name));
        for (at, tensor) in observe::run(session.as_ref(), &batch, &names)?.iter().enumerate() {
            let values = tensor.values::<f32>()?;
            let sums = sums.entry(at).or_insert_with(|| vec![0.0; values.len()]);
            sums.iter_mut().zip(values.iter()).for_each(|(sum, value)| *sum += f64::from(*value));
        }
    }
    for (at, shared) in pass.iter().enumerate() {
        let Some((first, sums)) = shared.first().zip(sums.remove(&at)) else { continue };
        let whole = sums.len() == first.groups * first.size * first.size && sums.iter().all(|sum| sum.is_finite());
        let moment = Moment { size: first.size, sums };
        // A model may have no numbers at all for some data.
        for watched in shared.iter().filter(|_| whole) {
            each(watched.layer, &moment)?;
        }
    }
    Ok(())
}

/// Adds the nodes that make a value's matrices; the name of what they make.
fn matrix(edit: &mut Edit, watched: &Watched<'_>) -> Result<String, CompressError> {
    let input = watched.node.input.first().cloned().unwrap_or_default();
    let convolution = watched.layer.op == "Conv";
    let (seen, shape) = if convolution {
        let size = i64::try_from(watched.size).unwrap_or(i64::MAX);
        (windows(edit, watched, &input)?, vec![0, i64::try_from(watched.groups).unwrap_or(1), size, -1])
    } else {
        (input.clone(), vec![-1, i64::try_from(watched.size).unwrap_or(i64::MAX)])
    };
    let shape = edit.constant(&format!("{input}.moment.shape"), &Tensor::from_vec([shape.len()], shape)?);
    let [rows, turned, product] = ["rows", "turned", "product"].map(|what| edit.fresh(&format!("{input}.{what}")));
    let perm = if convolution { vec![0, 1, 3, 2] } else { vec![1, 0] };
    let mut made = vec![
        node("Reshape", format!("{rows}.node"), &[&seen, &shape], &[&rows], Vec::new()),
        node("Transpose", format!("{turned}.node"), &[&rows], &[&turned], vec![AttributeProto::of_ints("perm", perm)]),
    ];
    let (left, right) = if convolution { (&rows, &turned) } else { (&turned, &rows) };
    made.push(node("MatMul", format!("{product}.node"), &[left, right], &[&product], Vec::new()));
    let mut result = product;
    if convolution {
        let axes = edit.constant(&format!("{input}.moment.axes"), &Tensor::from_vec([1], vec![0i64])?);
        let sum = edit.fresh(&format!("{input}.moment"));
        let keep = vec![AttributeProto::of_int("keepdims", 0)];
        made.push(node("ReduceSum", format!("{sum}.node"), &[&result, &axes], &[&sum], keep));
        result = sum;
    }
    edit.model.graph_mut().node.extend(made);
    Ok(result)
}

/// All that a convolution's window holds, as channels: a convolution whose weights pick one number each.
fn windows(edit: &mut Edit, watched: &Watched<'_>, input: &str) -> Result<String, CompressError> {
    let (groups, size) = (watched.groups, watched.size);
    let mut weights = vec![0f32; groups * size * size];
    for row in 0..groups * size {
        if let Some(weight) = weights.get_mut(row * size + row % size) {
            *weight = 1.0;
        }
    }
    let shape = std::iter::once(groups * size).chain(watched.layer.weight.iter().skip(1).copied());
    let weights = edit.constant(&format!("{input}.picks"), &Tensor::from_vec(shape.collect::<Vec<_>>(), weights)?);
    let output = edit.fresh(&format!("{input}.windows"));
    let attributes = watched.node.attribute.clone();
    let convolution = node("Conv", format!("{output}.node"), &[input, &weights], &[&output], attributes);
    edit.model.graph_mut().node.push(convolution);
    Ok(output)
}
