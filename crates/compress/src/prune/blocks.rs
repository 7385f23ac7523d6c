//! Whole blocks: what a network adds to a value that goes past it, taken out as one.
//!
//! Which block matters least is told by data: the one that turns its stream the least (Men et al. 2024, "ShortGPT: Layers
//! in Large Language Models are More Redundant Than You Expect", section 3.1, *block influence*). It need not be repeated
//! elsewhere in the graph, as [`shorten`](crate::distil::shorten) asks of layers.

use std::collections::{BTreeMap, HashSet};

use edgeward_graph::{
    DataType, Inferred, Links, Model, infer,
    proto::{GraphProto, NodeProto},
};

use super::title;
use crate::{
    CompressError,
    edit::{Edit, finished, node},
    observe::{self, Batches, Load},
};

/// A residual branch with layers in it: without it, the value that it is added to goes on as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its layers with constant weights, by their nodes' names, in the graph's order.
    pub layers: Vec<String>,
    /// Index of the Add.
    sum: usize,
    /// Which of its inputs goes on.
    stays: String,
}

/// All blocks of `model`, which is [`ready`](super::ready), in the graph's order. A sum of two values of one shape is the end of
/// one where a branch that holds layers reads what goes past it, or what that is made of, and nothing else needs the branch. Of
/// two such branches the one with fewer weights goes past. A branch that holds such a block is none itself, and what a Softmax
/// reads is no stream: there a mask is added. Errors: a graph that contradicts itself.
pub fn blocks(model: &Model) -> Result<Vec<Block>, CompressError> {
    let graph = model.graph();
    let mut search = Search {
        graph,
        links: Links::of(graph),
        inferred: infer(model, &BTreeMap::new())?,
        edit: Edit::new(model.clone()),
        needed: HashSet::new(),
    };
    search.needed = search.live(&search.results(), None);
    let found: Vec<Branch> = (0..graph.node.len()).filter_map(|index| search.branch(index)).collect();
    let inner = |branch: &&Branch| !found.iter().any(|other| branch.nodes.contains(&other.block.sum));
    Ok(found.iter().filter(inner).map(|branch| branch.block.clone()).collect())
}

/// What of each block's stream the block turns: 1 less the cosine of the angle between the stream before and behind it, over all
/// batches. 0 is a block that changes the size at most; infinity one of which that cannot be told, since its stream has another
/// size behind it or no finite numbers. Errors: no data, or what the engine says.
pub fn influence(
    model: &Model,
    blocks: &[Block],
    load: Load<'_>,
    batches: Batches<'_>,
) -> Result<Vec<f64>, CompressError> {
    let sum = |block: &Block| model.graph().node.get(block.sum).and_then(|node| node.output.first()).cloned();
    let pairs: Vec<(String, String)> =
        blocks.iter().map(|block| (block.stays.clone(), sum(block).unwrap_or_default())).collect();
    let mut names: Vec<String> = pairs.iter().flat_map(|(stays, sum)| [stays.clone(), sum.clone()]).collect();
    names.sort();
    names.dedup();
    let wanted: Vec<&str> = pairs.iter().flat_map(|(stays, sum)| [stays.as_str(), sum.as_str()]).collect();
    let session = load(&observe::with_outputs(model, &names))?;
    let (mut products, mut seen) = (vec![[0f64; 3]; blocks.len()], false);
    for batch in batches {
        let values = observe::run(session.as_ref(), &batch?, &wanted)?;
        for (sums, pair) in products.iter_mut().zip(values.chunks(2)) {
            let [before, after] = pair else { continue };
            if before.shape() != after.shape() {
                *sums = [f64::NAN; 3];
            }
            for (&a, &b) in before.values::<f32>()?.iter().zip(after.values::<f32>()?.iter()) {
                let (a, b) = (f64::from(a), f64::from(b));
                sums.iter_mut().zip([a * b, a * a, b * b]).for_each(|(sum, product)| *sum += product);
            }
        }
        seen = true;
    }
    if !seen {
        return Err(CompressError::Data("the data to observe blocks on holds no examples".to_owned()));
    }
    let turned = |[dot, a, b]: &[f64; 3]| match 1.0 - dot / (a * b).sqrt() {
        _ if *a == 0.0 || *b == 0.0 => 1.0,
        turned if turned.is_finite() => turned,
        _ => f64::INFINITY,
    };
    Ok(products.iter().map(turned).collect())
}

/// `model` without the block, which is one of its own. Errors: a graph that does not come out as it should.
pub fn without(model: &Model, block: &Block) -> Result<Model, CompressError> {
    let mut model = model.clone();
    if let Some(sum) = model.graph_mut().node.get_mut(block.sum) {
        let (name, output) = (sum.name().to_owned(), sum.output.first().cloned().unwrap_or_default());
        *sum = node("Identity", name, &[&block.stays], &[&output], Vec::new());
    }
    finished(model)
}

/// A block as it is found.
struct Branch {
    block: Block,
    /// Indices of the nodes that nothing needs without it.
    nodes: Vec<usize>,
    weights: usize,
}

struct Search<'m> {
    graph: &'m GraphProto,
    links: Links<'m>,
    inferred: Inferred,
    edit: Edit,
    /// Values that the outputs need.
    needed: HashSet<&'m str>,
}

impl<'m> Search<'m> {
    /// The block that ends with this node.
    fn branch(&self, sum: usize) -> Option<Branch> {
        let adds = |node: &&NodeProto| node.is_standard() && matches!(node.op_type(), "Add" | "Sum");
        let node = self.graph.node.get(sum).filter(adds)?;
        let ([a, b], [output]) = (node.input.as_slice(), node.output.as_slice()) else { return None };
        let shape = |name: &str| Some(self.inferred.of(name)).filter(|of| of.dtype == Some(DataType::Float32))?.shape;
        if a == b || shape(a)? != shape(b)? || self.edit.is_constant(a) || self.edit.is_constant(b) {
            return None;
        }
        if self.meets_softmax(output) {
            return None;
        }
        let (first, second) = (self.without(sum, a), self.without(sum, b));
        [first, second].into_iter().flatten().max_by_key(|branch| branch.weights)
    }

    /// Whether a Softmax reads this value, as it is or number by number.
    fn meets_softmax(&self, value: &str) -> bool {
        let mut readers = self.graph.node.iter().filter(|node| node.input.iter().any(|name| name == value));
        readers.any(|node| match node.op_type() {
            "Softmax" => true,
            "Mul" | "Div" | "Where" | "Cast" | "Clip" | "Identity" => {
                node.output.first().is_some_and(|output| self.meets_softmax(output))
            }
            _ => false,
        })
    }

    /// What goes where `stays` goes on alone; none where that leaves no layer out, or an input of the graph.
    fn without(&self, sum: usize, stays: &'m str) -> Option<Branch> {
        let left = self.live(&self.results(), Some((sum, stays)));
        let given = |live: &HashSet<&str>| self.graph.input.iter().filter(|input| live.contains(input.name())).count();
        if given(&self.needed) != given(&left) {
            return None;
        }
        let goes = |name: &String| self.needed.contains(name.as_str()) && !left.contains(name.as_str());
        let nodes = self.graph.node.iter().enumerate();
        let gone: Vec<(usize, &NodeProto)> = nodes.filter(|(_, node)| node.output.iter().any(goes)).collect();
        let past = self.live(&[stays], None);
        let read = gone.iter().flat_map(|(_, node)| &node.input);
        if !read.into_iter().any(|name| past.contains(name.as_str()) && !self.edit.is_constant(name)) {
            return None;
        }
        let nodes = gone.iter().map(|(index, _)| *index).collect();
        let (mut weights, mut layers) = (0, Vec::new());
        for (index, node) in gone {
            if matches!(node.op_type(), "Conv" | "Gemm" | "MatMul")
                && let Some(tensor) = node.input.get(1).and_then(|name| self.edit.float_tensor(name))
            {
                weights += tensor.shape().iter().product::<usize>();
                layers.push(title(self.graph, index));
            }
        }
        let found = !layers.is_empty();
        found.then(|| Branch { block: Block { layers, sum, stays: stays.to_owned() }, nodes, weights })
    }

    /// Names of the outputs.
    fn results(&self) -> Vec<&'m str> {
        self.graph.output.iter().map(|output| output.name()).collect()
    }

    /// Values that these ones need. `instead`: a node's output needs this one value alone.
    fn live(&self, wanted: &[&'m str], instead: Option<(usize, &'m str)>) -> HashSet<&'m str> {
        let (mut live, mut open) = (HashSet::new(), wanted.to_vec());
        while let Some(name) = open.pop() {
            if !live.insert(name) {
                continue;
            }
            let Some(index) = self.links.producer(name) else { continue };
            match instead.filter(|(node, _)| *node == index) {
                Some((_, stays)) => open.push(stays),
                None => open.extend(self.graph.node.get(index).into_iter().flat_map(edgeward_graph::uses)),
            }
        }
        live
    }
}
