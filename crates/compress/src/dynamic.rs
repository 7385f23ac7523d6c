//! Dynamic quantisation: weights are bytes in the file, activations become bytes in each run by their own range. No
//! data is needed. The patterns are those that ONNX Runtime fuses (DynamicQuantizeMatMul, MatMulIntegerToFloat).

use std::collections::{BTreeSet, HashMap};

use edgeward_graph::{
    DataType, Tensor,
    proto::{AttributeProto, NodeProto},
};

use crate::{
    CompressError, Prepared, Quantised,
    edit::{Edit, node},
    fuse::{bias_name, channel_axis},
    tables,
    weights::{Integers, WeightBits},
};

/// Which layers, and how.
#[derive(Clone, Debug)]
pub struct DynamicSpec {
    /// Bits of weights.
    pub weights: WeightBits,
    /// Whether convolutions are taken as well.
    pub convolutions: Convolutions,
    /// Layers, by the name of their value, that stay floats.
    pub keep: BTreeSet<String>,
}

/// What becomes of convolutions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Convolutions {
    /// They become integers.
    Quantised,
    /// They stay floats.
    Floats,
}

/// Quantises the layers' weights, and activations at run time. Errors: a layer whose constants cannot be read.
pub fn quantise_dynamic(prepared: &Prepared, spec: &DynamicSpec) -> Result<Quantised, CompressError> {
    let mut edit = Edit::new(prepared.model.clone());
    let layers = rewrite(&mut edit, prepared, spec, &mut |_| Ok(()))?;
    Quantised::of_same_names(prepared, edit.model, layers)
}

/// Rewrites the layers and the tables of `edit`, which is of the prepared model; says how many layers. `each` is told after
/// each layer how many were looked at.
pub(crate) fn rewrite(
    edit: &mut Edit,
    prepared: &Prepared,
    spec: &DynamicSpec,
    each: &mut dyn FnMut(usize) -> Result<(), CompressError>,
) -> Result<usize, CompressError> {
    let mut rewrite = Rewrite::of(edit);
    let mut layers = 0;
    for (at, layer) in prepared.layers.iter().enumerate() {
        let convolution = layer.op == "Conv";
        if spec.keep.contains(&layer.name) || (convolution && spec.convolutions == Convolutions::Floats) {
            continue;
        }
        let Some(proto) = rewrite.edit.node(layer.node).cloned() else { continue };
        if convolution {
            rewrite.convolution(&proto, spec.weights)?
        } else {
            rewrite.product(&proto, spec.weights)?
        }
        rewrite.gone.insert(layer.node);
        layers += 1;
        each(at + 1)?;
    }
    rewrite.finish();
    tables::quantise(edit)?;
    Ok(layers)
}

/// Products of two activations, as attention has them, by the range of both in each run; `layers` counts them. `quantised` is of
/// `prepared`, after other rewrites. Errors: a graph that is none afterwards.
pub fn quantise_pairs(prepared: &Prepared, quantised: &Quantised) -> Result<Quantised, CompressError> {
    let mut edit = Edit::new(quantised.model.clone());
    let of_two = |node: &&NodeProto| {
        let activation = |name: &String| prepared.is_float(name) && !edit.is_constant(name);
        node.is_standard() && node.op_type() == "MatMul" && node.input.iter().all(activation)
    };
    let nodes = edit.model.graph().node.iter().enumerate();
    let found: Vec<(usize, NodeProto)> =
        nodes.filter(|(_, node)| of_two(node)).map(|(at, node)| (at, node.clone())).collect();
    let layers = found.len();
    let mut rewrite = Rewrite::of(&mut edit);
    for (index, proto) in found {
        rewrite.pair(&proto)?;
        rewrite.gone.insert(index);
    }
    rewrite.finish();
    Quantised::of_same_names(prepared, edit.model, layers)
}

struct Rewrite<'a> {
    edit: &'a mut Edit,
    /// What a value becomes, by its name: bytes, scale, zero point.
    bytes: HashMap<String, [String; 3]>,
    made: Vec<NodeProto>,
    /// Nodes that those made stand for.
    gone: BTreeSet<usize>,
}

impl<'a> Rewrite<'a> {
    fn of(edit: &'a mut Edit) -> Self {
        Self { edit, bytes: HashMap::new(), made: Vec::new(), gone: BTreeSet::new() }
    }

    fn finish(self) {
        let graph = self.edit.model.graph_mut();
        let mut index = 0;
        graph.node.retain(|_| {
            index += 1;
            !self.gone.contains(&(index - 1))
        });
        graph.node.extend(self.made);
    }

    fn input(&mut self, name: &str) -> [String; 3] {
        if let Some(known) = self.bytes.get(name) {
            return known.clone();
        }
        let outputs = ["bytes", "scale", "zero"].map(|what| self.edit.fresh(&format!("{name}.{what}")));
        let title = self.edit.fresh(&format!("{name}.quantise"));
        let [bytes, scale, zero] = &outputs;
        self.made.push(node("DynamicQuantizeLinear", title, &[name], &[bytes, scale, zero], Vec::new()));
        self.bytes.insert(name.to_owned(), outputs.clone());
        outputs
    }

    /// MatMul and Gemm.
    fn product(&mut self, proto: &NodeProto, bits: WeightBits) -> Result<(), CompressError> {
        let (input, weight, output) = ends(proto)?;
        let floats = self.edit.float_tensor(&weight).ok_or_else(|| unread(proto))?;
        let values = floats.values::<f32>()?;
        let integers = if channel_axis(proto) == 0 {
            let (shape, values) = transposed(floats.shape(), &values);
            Integers::of(&shape, &values, 1, bits, &[])
        } else {
            Integers::of(floats.shape(), &values, 1, bits, &[])
        };
        let columns = integers.scales.len();
        let stored = self.edit.store(&format!("{weight}.int8"), &integers.tensor()?)?;
        let scales = self.edit.store(&format!("{weight}.scale"), &integers.scale_tensor()?)?;
        let zeros = Tensor::from_vec([columns], vec![0i8; columns])?;
        let zeros = self.edit.store(&format!("{weight}.zero"), &zeros)?;
        let [bytes, scale, zero] = self.input(&input);
        let product = self.edit.fresh(&format!("{output}.product"));
        let inputs = [bytes.as_str(), &stored, &zero, &zeros];
        self.made.push(node("MatMulInteger", proto.name().to_owned(), &inputs, &[&product], Vec::new()));
        let bias = bias_name(proto).cloned();
        self.scaled(&product, [&scale, &scales], bias, &output);
        Ok(())
    }

    fn convolution(&mut self, proto: &NodeProto, bits: WeightBits) -> Result<(), CompressError> {
        let (input, weight, output) = ends(proto)?;
        let (shape, values) = self.edit.floats(&weight).ok_or_else(|| unread(proto))?;
        let integers = Integers::of(&shape, &values, 0, bits, &[]);
        let channels = integers.scales.len();
        // Engines multiply bytes from 0 here, with one zero point; scales come after, so each channel keeps its own.
        let shifted: Vec<u8> = integers.values.iter().map(|value| (i16::from(*value) + 128) as u8).collect();
        let stored = self.edit.constant(&format!("{weight}.uint8"), &Tensor::from_vec(shape.clone(), shifted)?);
        let middle = self.edit.constant(&format!("{weight}.zero"), &Tensor::from_vec([], vec![128u8])?);
        let mut along = vec![1; shape.len()];
        if let Some(size) = along.get_mut(1) {
            *size = channels;
        }
        let scales = Tensor::from_vec(along.clone(), integers.scales)?;
        let scales = self.edit.constant(&format!("{weight}.scale"), &scales);
        let [bytes, scale, zero] = self.input(&input);
        let product = self.edit.fresh(&format!("{output}.product"));
        let attributes = proto.attribute.clone();
        let inputs = [bytes.as_str(), &stored, &zero, &middle];
        self.made.push(node("ConvInteger", proto.name().to_owned(), &inputs, &[&product], attributes));
        let bias = match bias_name(proto) {
            None => None,
            Some(name) => {
                let (_, bias) = self.edit.floats(name).ok_or_else(|| unread(proto))?;
                Some(self.edit.constant(&format!("{name}.along"), &Tensor::from_vec(along, bias)?))
            }
        };
        self.scaled(&product, [&scale, &scales], bias, &output);
        Ok(())
    }

    /// MatMul of two activations.
    fn pair(&mut self, proto: &NodeProto) -> Result<(), CompressError> {
        let (left, right, output) = ends(proto)?;
        let ([left, left_scale, left_zero], [right, right_scale, right_zero]) = (self.input(&left), self.input(&right));
        let product = self.edit.fresh(&format!("{output}.product"));
        let inputs = [left.as_str(), &right, &left_zero, &right_zero];
        self.made.push(node("MatMulInteger", proto.name().to_owned(), &inputs, &[&product], Vec::new()));
        self.scaled(&product, [&left_scale, &right_scale], None, &output);
        Ok(())
    }

    /// `output = float(product) · (scale of the input · scales of the weights) + bias`.
    fn scaled(&mut self, product: &str, [scale, scales]: [&str; 2], bias: Option<String>, output: &str) {
        let [float, both] = ["float", "scales"].map(|what| self.edit.fresh(&format!("{output}.{what}")));
        let to = AttributeProto::of_int("to", DataType::Float32.to_onnx().into());
        self.made.push(node("Cast", format!("{float}.node"), &[product], &[&float], vec![to]));
        self.made.push(node("Mul", format!("{both}.node"), &[scale, scales], &[&both], Vec::new()));
        let Some(bias) = bias else {
            self.made.push(node("Mul", format!("{output}.scaled"), &[&float, &both], &[output], Vec::new()));
            return;
        };
        let sum = self.edit.fresh(&format!("{output}.unbiased"));
        self.made.push(node("Mul", format!("{output}.scaled"), &[&float, &both], &[&sum], Vec::new()));
        self.made.push(node("Add", format!("{output}.biased"), &[&sum, &bias], &[output], Vec::new()));
    }
}

fn ends(proto: &NodeProto) -> Result<(String, String, String), CompressError> {
    let ends = (proto.input.first(), proto.input.get(1), proto.output.first());
    let (Some(input), Some(weight), Some(output)) = ends else { return Err(unread(proto)) };
    Ok((input.clone(), weight.clone(), output.clone()))
}

fn unread(proto: &NodeProto) -> CompressError {
    CompressError::unsupported(format!("node `{}`", proto.name()), "its constants cannot be read")
}

fn transposed(shape: &[usize], values: &[f32]) -> (Vec<usize>, Vec<f32>) {
    let &[rows, columns] = shape else { return (shape.to_vec(), values.to_vec()) };
    let at = |column: usize, row: usize| values.get(row * columns + column).copied().unwrap_or(0.0);
    let turned = (0..columns).flat_map(|column| (0..rows).map(move |row| at(column, row))).collect();
    (vec![columns, rows], turned)
}
