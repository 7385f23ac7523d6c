//! Integers in operators of their own (QLinearConv, QLinearMatMul, …) instead of floats between pairs: the form that tools
//! without a fusion of pairs run on integers. Convolutions and products are the standard's; the others are ONNX Runtime's
//! (`com.microsoft`, ContribOperators.md).

use std::collections::{HashMap, HashSet};

use edgeward_graph::{
    Model,
    proto::{NodeProto, OperatorSetIdProto},
};

use crate::{CompressError, Quantised, fuse::bias_name, nbits::DOMAIN, plan::moves};

/// Bytes, scale and zero point of a value.
type Bytes = [String; 3];

/// Puts one operator in the place of each that stands between pairs of integers. What has floats on a side stays, and so do
/// Gemm and convolutions whose bias is none of 32 bits. Errors: a graph that is none afterwards.
pub fn to_operators(quantised: &Quantised) -> Result<Quantised, CompressError> {
    let mut model = quantised.model.clone();
    let pairs = Pairs::of(&model);
    let (mut gone, mut microsoft) = (HashSet::new(), false);
    let graph = model.graph_mut();
    for index in 0..graph.node.len() {
        let Some((made, quantise)) = graph.node.get(index).and_then(|node| pairs.operator(node)) else { continue };
        microsoft |= !made.is_standard();
        if let Some(slot) = graph.node.get_mut(index) {
            *slot = made;
        }
        gone.insert(quantise);
    }
    let mut index = 0;
    graph.node.retain(|_| {
        index += 1;
        !gone.contains(&(index - 1))
    });
    graph.sort_nodes()?;
    graph.drop_dead_nodes();
    if microsoft && model.opset_of(DOMAIN).is_none() {
        let set = OperatorSetIdProto { domain: Some(DOMAIN.to_owned()), version: Some(1) };
        model.proto_mut().opset_import.push(set);
    }
    // What was only read as integers is not made as floats any more.
    let made: HashSet<&str> = model.graph().node.iter().flat_map(|node| &node.output).map(String::as_str).collect();
    let mut results = quantised.results.clone();
    results.retain(|_, (_, after)| made.contains(after.as_str()));
    Ok(Quantised { model, layers: quantised.layers, results })
}

/// Which values come from integers, and which become integers and nothing else.
struct Pairs {
    from: HashMap<String, Bytes>,
    into: HashMap<String, (usize, Bytes)>,
}

impl Pairs {
    fn of(model: &Model) -> Self {
        let graph = model.graph();
        let links = edgeward_graph::Links::of(graph);
        let results: HashSet<&str> = graph.output.iter().map(|output| output.name()).collect();
        let mut pairs = Self { from: HashMap::new(), into: HashMap::new() };
        for (index, node) in graph.node.iter().enumerate().filter(|(_, node)| node.is_standard()) {
            let ([value, scale, zero], [output]) = (node.input.as_slice(), node.output.as_slice()) else { continue };
            match node.op_type() {
                "DequantizeLinear" => {
                    pairs.from.insert(output.clone(), [value.clone(), scale.clone(), zero.clone()]);
                }
                "QuantizeLinear" if links.consumers(value) == [index] && !results.contains(value.as_str()) => {
                    pairs.into.insert(value.clone(), (index, [output.clone(), scale.clone(), zero.clone()]));
                }
                _ => {}
            }
        }
        pairs
    }

    /// What a node becomes, and the QuantizeLinear that goes with it.
    fn operator(&self, node: &NodeProto) -> Option<(NodeProto, usize)> {
        let [output] = node.output.as_slice() else { return None };
        let (quantise, [bytes, scale, zero]) = self.into.get(output).filter(|_| node.is_standard())?;
        let from = |slot: usize| self.from.get(node.input.get(slot)?);
        let both = || Some([from(0)?.clone(), from(1)?.clone()].concat());
        let made = [scale.clone(), zero.clone()];
        let op = node.op_type();
        let (name, input, own) = match op {
            "Conv" => {
                let bias = match bias_name(node) {
                    Some(name) => vec![self.from.get(name)?.first()?.clone()],
                    None => Vec::new(),
                };
                ("QLinearConv", [both()?, made.to_vec(), bias].concat(), true)
            }
            "MatMul" => ("QLinearMatMul", [both()?, made.to_vec()].concat(), true),
            "Add" => ("QLinearAdd", [both()?, made.to_vec()].concat(), false),
            "Mul" => ("QLinearMul", [both()?, made.to_vec()].concat(), false),
            "Concat" => {
                let parts: Option<Vec<Bytes>> = node.input.iter().map(|name| self.from.get(name).cloned()).collect();
                ("QLinearConcat", [made.to_vec(), parts?.concat()].concat(), false)
            }
            "Sigmoid" => ("QLinearSigmoid", [from(0)?.to_vec(), made.to_vec()].concat(), false),
            "LeakyRelu" => ("QLinearLeakyRelu", [from(0)?.to_vec(), made.to_vec()].concat(), false),
            "AveragePool" => ("QLinearAveragePool", [from(0)?.to_vec(), made.to_vec()].concat(), false),
            "GlobalAveragePool" => ("QLinearGlobalAveragePool", [from(0)?.to_vec(), made.to_vec()].concat(), false),
            _ if moves(op) => {
                let first = from(0)?.first()?.clone();
                let rest = node.input.iter().skip(1).cloned();
                return Some((
                    NodeProto {
                        input: std::iter::once(first).chain(rest).collect(),
                        output: vec![bytes.clone()],
                        ..node.clone()
                    },
                    *quantise,
                ));
            }
            _ => return None,
        };
        let made = NodeProto {
            op_type: Some(name.to_owned()),
            domain: (!own).then(|| DOMAIN.to_owned()),
            input,
            output: vec![bytes.clone()],
            ..node.clone()
        };
        Some((made, *quantise))
    }
}
