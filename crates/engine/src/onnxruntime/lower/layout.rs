//! Chooses the layout of each value, blocked or plain, and changes it where the two meet.
//!
//! In topological order: an operator of ours makes blocked values; element-wise operators of the standard keep their inputs'
//! layout; all others are given plain values.

use std::collections::{HashMap, HashSet};

use edgeward_graph::{
    DataType, Dimension, Inferred, Model, Tensor,
    proto::{AttributeProto, NodeProto, TensorProto},
    tensor_proto,
};

use super::{
    super::operators,
    image,
    select::{convolution_attributes, node, pool_attributes},
};

/// Fewer input channels than these are read plain: blocked, most of each block would be empty.
const PLAIN_CHANNELS_MAX: usize = 4;

/// Operators that do to each element the same, and make no infinity of a zero.
const ELEMENTWISE: [&str; 14] = [
    "Abs",
    "Add",
    "Clip",
    "Elu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "Mul",
    "Neg",
    "Relu",
    "Sigmoid",
    "Sub",
    "Tanh",
];

/// Gives every node of a sorted graph the layouts that it takes.
pub(super) fn assign(model: &mut Model, types: &Inferred) {
    let nodes = std::mem::take(&mut model.graph_mut().node);
    let mut layout = Layout {
        types,
        nodes: Vec::new(),
        blocked: HashMap::new(),
        absent: HashSet::new(),
        counted: HashSet::new(),
        besides: HashSet::new(),
        constants: Vec::new(),
    };
    for node in nodes {
        layout.place(node);
    }
    for output in &model.graph().output {
        layout.plain(output.name());
    }
    let (nodes, constants) = (layout.nodes, layout.constants);
    model.graph_mut().node = nodes;
    model.graph_mut().initializer.extend(constants);
}

/// What an element-wise operator reads beside images.
enum Operand {
    /// An image of the result's shape.
    Image,
    /// One number for each image.
    OfImage,
    /// One number, or none.
    Number,
}

struct Layout<'t> {
    types: &'t Inferred,
    nodes: Vec<NodeProto>,
    /// The blocked form of values.
    blocked: HashMap<String, String>,
    /// Values that have no plain form yet.
    absent: HashSet<String>,
    /// Values whose number of images is told.
    counted: HashSet<String>,
    /// Numbers of each image that have a form with a fifth axis.
    besides: HashSet<String>,
    constants: Vec<TensorProto>,
}

impl Layout<'_> {
    fn place(&mut self, node: NodeProto) {
        let done = match (node.domain() == operators::domain(), node.op_type()) {
            (true, kind) => self.own(kind, &node),
            (false, kind) if node.is_standard() => self.standard(kind, &node),
            _ => None,
        };
        if done.is_none() {
            self.all_plain(&node);
            self.nodes.push(node);
        }
    }

    fn standard(&mut self, kind: &str, node: &NodeProto) -> Option<()> {
        match kind {
            "Conv" => self.convolution(node),
            "MaxPool" => self.max_pool(node),
            "GlobalAveragePool" => self.average(node),
            "Shape" if node.attribute.is_empty() => self.shape(node),
            "Size" => self.size(node),
            kind if ELEMENTWISE.contains(&kind) => self.elementwise(node),
            _ => None,
        }
    }

    fn all_plain(&mut self, node: &NodeProto) {
        let mut names = node.input.clone();
        edgeward_graph::walk::nodes_of(std::slice::from_ref(node), &mut |inner| {
            names.extend(inner.input.iter().cloned())
        });
        for name in names {
            self.plain(&name);
        }
    }

    /// Makes the plain form of a value where there is none.
    fn plain(&mut self, name: &str) {
        if !self.absent.remove(name) {
            return;
        }
        let (Some(blocked), Some([channels, ..])) = (self.blocked.get(name).cloned(), image(self.types, name)) else {
            return;
        };
        let channels = AttributeProto::of_int("channels", channels as i64);
        self.nodes.push(node("FromBlocked", &[&blocked], &[name], vec![channels]));
    }

    /// The blocked form of an image.
    fn block(&mut self, name: &str) -> String {
        if let Some(blocked) = self.blocked.get(name) {
            return blocked.clone();
        }
        let blocked = blocked(name);
        self.nodes.push(node("ToBlocked", &[name], &[&blocked], Vec::new()));
        self.blocked.insert(name.to_owned(), blocked.clone());
        blocked
    }

    /// Names the blocked form of a value that a node is about to make in that form only.
    fn made(&mut self, name: &str) -> String {
        let blocked = blocked(name);
        self.blocked.insert(name.to_owned(), blocked.clone());
        self.absent.insert(name.to_owned());
        blocked
    }

    fn is_blocked(&self, name: &str) -> bool {
        self.blocked.contains_key(name)
    }

    /// The first inputs blocked, the others plain; the first output blocked.
    fn emit(&mut self, from: &NodeProto, blocked_inputs: &[usize], attributes: Vec<AttributeProto>) {
        let mut inputs = Vec::new();
        for (index, name) in from.input.iter().enumerate() {
            if blocked_inputs.contains(&index) {
                inputs.push(self.block(name));
            } else {
                self.plain(name);
                inputs.push(name.clone());
            }
        }
        let mut outputs = from.output.clone();
        if let Some(first) = outputs.first_mut() {
            *first = self.made(first);
        }
        self.push(from, inputs, outputs, attributes);
    }

    fn push(&mut self, from: &NodeProto, input: Vec<String>, output: Vec<String>, attribute: Vec<AttributeProto>) {
        self.nodes.push(NodeProto {
            input,
            output,
            attribute,
            domain: Some(operators::domain().to_owned()),
            ..from.clone()
        });
    }

    fn own(&mut self, kind: &str, from: &NodeProto) -> Option<()> {
        let attributes = from.attribute.clone();
        match kind {
            "BatchNorm" => self.emit(from, &[0, 3], attributes),
            "BatchNormGradient" => self.normalisation_gradient(from),
            "ConvInputGradient" => self.emit(from, &[0], attributes),
            "MaxPoolGradient" => self.emit(from, &[0, 1, 2], attributes),
            "GlobalAveragePoolGradient" => self.emit(from, &[], attributes),
            "ConvWeightGradient" => self.weight_gradient(from),
            "ReluGradient" if from.input.iter().any(|name| self.is_blocked(name)) => {
                self.emit(from, &[0, 1], attributes)
            }
            _ => return None,
        }
        Some(())
    }

    /// Images are the output's gradient, the value, what an activation made of it; then the value's gradient and that before the activation.
    fn normalisation_gradient(&mut self, from: &NodeProto) {
        self.emit(from, &[0, 1, 5], from.attribute.clone());
        let masked = from.output.get(3).map(|name| self.made(name));
        if let (Some(masked), Some(place)) = (masked, self.nodes.last_mut().and_then(|node| node.output.get_mut(3))) {
            *place = masked;
        }
    }

    /// True for an image that its convolution is to read plain.
    fn reads_plain(&self, x: &str) -> bool {
        !self.is_blocked(x) && image(self.types, x).is_some_and(|[channels, ..]| channels <= PLAIN_CHANNELS_MAX)
    }

    fn weight_gradient(&mut self, from: &NodeProto) {
        let [x, g] = from.input.as_slice() else { return };
        let mut attributes = from.attribute.clone();
        attributes.push(AttributeProto::of_int("plain", i64::from(self.reads_plain(x))));
        let x = if self.reads_plain(x) { x.clone() } else { self.block(x) };
        let g = self.block(g);
        self.push(from, vec![x, g], from.output.clone(), attributes);
    }

    fn convolution(&mut self, from: &NodeProto) -> Option<()> {
        let (x, w) = (from.input.first()?, from.input.get(1)?);
        image(self.types, from.output.first()?)?;
        let mut attributes = convolution_attributes(self.types, from, x, w)?;
        let plain = self.reads_plain(x);
        attributes.push(AttributeProto::of_int("plain", i64::from(plain)));
        self.emit(from, if plain { &[] } else { &[0] }, attributes);
        Some(())
    }

    fn max_pool(&mut self, from: &NodeProto) -> Option<()> {
        image(self.types, from.output.first()?)?;
        let x = from.input.first()?;
        let attributes = pool_attributes(from).filter(|_| self.is_blocked(x))?;
        self.emit(from, &[0], attributes);
        Some(())
    }

    fn average(&mut self, from: &NodeProto) -> Option<()> {
        let x = from.input.first().filter(|x| self.is_blocked(x))?.clone();
        let [channels, ..] = image(self.types, &x)?;
        let x = self.block(&x);
        let channels = AttributeProto::of_int("channels", channels as i64);
        self.push(from, vec![x], from.output.clone(), vec![channels]);
        Some(())
    }

    /// The number of images, a list of one, and what each has, where the value has no plain form.
    fn count(&mut self, name: &str) -> Option<(String, [usize; 3])> {
        let image = image(self.types, name).filter(|_| self.absent.contains(name))?;
        let (all, first) = (format!("{name}/blocked/shape"), format!("{name}/blocked/count"));
        if self.counted.insert(name.to_owned()) {
            let blocked = self.block(name);
            let zero = self.ints(&[0]);
            self.nodes.push(standard("Shape", &[&blocked], &all));
            self.nodes.push(standard("Gather", &[&all, &zero], &first));
        }
        Some((first, image))
    }

    fn shape(&mut self, from: &NodeProto) -> Option<()> {
        let (count, [channels, height, width]) = self.count(from.input.first()?)?;
        let rest = self.ints(&[channels as i64, height as i64, width as i64]);
        let mut node = standard("Concat", &[&count, &rest], from.output.first()?);
        node.attribute.push(AttributeProto::of_int("axis", 0));
        self.nodes.push(node);
        Some(())
    }

    fn size(&mut self, from: &NodeProto) -> Option<()> {
        let y = from.output.first()?;
        let (count, [channels, height, width]) = self.count(from.input.first()?)?;
        let (each, axis, list) =
            (self.ints(&[(channels * height * width) as i64]), self.ints(&[0]), format!("{y}/list"));
        self.nodes.push(standard("Mul", &[&count, &each], &list));
        self.nodes.push(standard("Squeeze", &[&list, &axis], y));
        Some(())
    }

    /// A constant list.
    fn ints(&mut self, values: &[i64]) -> String {
        let name = format!("blocked/{}", values.iter().map(i64::to_string).collect::<Vec<_>>().join("-"));
        if let Ok(list) = Tensor::from_vec([values.len()], values.to_vec())
            && !self.constants.iter().any(|constant| constant.name() == name)
        {
            self.constants.push(tensor_proto(&name, &list));
        }
        name
    }

    /// An operator of the standard on blocked values, where one is blocked and all others are images of its shape, numbers, or one number
    /// for each image.
    fn elementwise(&mut self, from: &NodeProto) -> Option<()> {
        let y = from.output.first()?;
        image(self.types, y)?;
        let shape = self.types.of(y).shape?;
        let operands = from.input.iter().map(|name| self.operand(name, &shape)).collect::<Option<Vec<_>>>()?;
        if !from.input.iter().any(|name| self.is_blocked(name)) {
            return None;
        }
        let mut inputs = Vec::new();
        for (name, operand) in from.input.iter().zip(operands) {
            inputs.push(match operand {
                Operand::Image => self.block(name),
                Operand::OfImage => self.beside(name),
                Operand::Number => name.clone(),
            });
        }
        let output = self.made(y);
        self.nodes.push(NodeProto { input: inputs, output: vec![output], ..from.clone() });
        Some(())
    }

    /// What an operand is to an image of this shape; none where it is something else.
    fn operand(&self, name: &str, shape: &[Dimension]) -> Option<Operand> {
        if name.is_empty() {
            return Some(Operand::Number);
        }
        let value = self.types.of(name);
        let own = value.shape?;
        if own == shape {
            return Some(Operand::Image);
        }
        let ones = || own.iter().skip(1).all(|size| *size == Dimension::Fixed(1));
        match own.len() {
            _ if value.dtype != Some(DataType::Float32) => None,
            0 => Some(Operand::Number),
            4 if own.first() == shape.first() && ones() => Some(Operand::OfImage),
            _ => None,
        }
    }

    /// One number for each image, [n, 1, 1, 1], as blocked images meet it.
    fn beside(&mut self, name: &str) -> String {
        self.plain(name);
        let beside = format!("{name}/beside");
        if self.besides.insert(name.to_owned()) {
            let shape = self.ints(&[0, 1, 1, 1, 1]);
            self.nodes.push(standard("Reshape", &[name, &shape], &beside));
        }
        beside
    }
}

fn standard(kind: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto { domain: None, ..node(kind, inputs, &[output], Vec::new()) }
}

fn blocked(name: &str) -> String {
    format!("{name}/blocked")
}
