//! LSTM, GRU and RNN written out step by step: the gradient through time is then that of their parts.
//!
//! Equations and the order of gates are those of the ONNX operators. The products with the input are one for all steps.

use edgeward_graph::{DataType, proto::NodeProto};

use crate::{
    emit::{Emit, Range},
    known::Known,
};

/// Steps that are written out, each some ten nodes.
const STEPS_MAX: usize = 4096;

/// What one direction works with.
struct Cell {
    kind: Kind,
    hidden: i64,
    dtype: DataType,
    /// \[hidden, gates · hidden\]
    recurrent: String,
    /// The recurrent bias of a GRU's candidate, which is reset with it; empty where there is none.
    reset_bias: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Lstm,
    /// The reset gate works on the product, not on the state before it.
    GruAfter,
    GruBefore,
    Rnn,
}

impl Kind {
    fn of(node: &NodeProto) -> Result<Self, String> {
        let expected: (&[&str], Self) = match node.op_type() {
            "LSTM" => (&["Sigmoid", "Tanh", "Tanh"], Self::Lstm),
            "GRU" if node.attr_int("linear_before_reset").unwrap_or(0) != 0 => (&["Sigmoid", "Tanh"], Self::GruAfter),
            "GRU" => (&["Sigmoid", "Tanh"], Self::GruBefore),
            _ => (&["Tanh"], Self::Rnn),
        };
        let given = node.attr("activations").map(|a| a.strings.clone()).unwrap_or_default();
        let usual = given.chunks(expected.0.len()).all(|direction| {
            direction.iter().zip(expected.0).all(|(own, usual)| own.eq_ignore_ascii_case(usual.as_bytes()))
        });
        if !usual {
            return Err(format!("has no gradient with other activations than {}", expected.0.join(", ")));
        }
        Ok(expected.1)
    }

    fn gates(self) -> i64 {
        match self {
            Self::Lstm => 4,
            Self::GruAfter | Self::GruBefore => 3,
            Self::Rnn => 1,
        }
    }
}

/// Emits the steps of a node and its outputs under their names.
pub(crate) fn unroll(emit: &mut Emit, node: &NodeProto, known: &Known) -> Result<(), String> {
    let kind = Kind::of(node)?;
    let input = |at: usize| node.input.get(at).map_or("", String::as_str);
    for (at, name) in [(4, "sequence_lens"), (7, "peepholes")] {
        if !input(at).is_empty() {
            return Err(format!("has no gradient with `{name}`"));
        }
    }
    for name in ["clip", "input_forget", "layout"] {
        if node.attr(name).is_some_and(|a| a.i.unwrap_or(0) != 0 || a.f.is_some()) {
            return Err(format!("has no gradient with `{name}`"));
        }
    }
    let (x, dtype) = (input(0), known.dtype(input(0)).unwrap_or(DataType::Float32));
    let steps = known.size(x, 0)?;
    if steps > STEPS_MAX {
        return Err(format!("goes {steps} steps, at most {STEPS_MAX} are written out"));
    }
    let hidden = known.size(input(2), 2)? as i64;
    if hidden > 1 << 30 {
        return Err(format!("has a state of {hidden} elements, which is too large"));
    }
    let directions: &[bool] = match node.attr_text("direction").unwrap_or("forward") {
        "forward" => &[false],
        "reverse" => &[true],
        _ => &[false, true],
    };
    let mut results = Vec::new();
    for (index, &backwards) in directions.iter().enumerate() {
        let at = |emit: &mut Emit, name: &str| if name.is_empty() { String::new() } else { part(emit, name, index) };
        let (w, r, b) = (at(emit, input(1)), at(emit, input(2)), at(emit, input(3)));
        let start = [at(emit, input(5)), if kind == Kind::Lstm { at(emit, input(6)) } else { String::new() }];
        let recurrent = emit.transpose(&r, &[1, 0]);
        let (shared, reset_bias) = biases(emit, kind, &b, hidden);
        let cell = Cell { kind, hidden, dtype, recurrent, reset_bias };
        let turned = emit.transpose(&w, &[1, 0]);
        let mut all = emit.op("MatMul", &[x, &turned]);
        if !shared.is_empty() {
            all = emit.op("Add", &[&all, &shared]);
        }
        results.push(cell.run(emit, &all, steps, backwards, start));
    }
    outputs(emit, node, &results);
    Ok(())
}

/// One direction's part of a weight or state.
fn part(emit: &mut Emit, name: &str, index: usize) -> String {
    let one = Range { axis: 0, start: index as i64, end: index as i64 + 1, step: 1 };
    let sliced = emit.slice(name, &[one]);
    emit.squeeze(&sliced, &[0])
}

/// Biases of input and recurrence as one; a GRU's candidate keeps its recurrent one apart where it is reset.
fn biases(emit: &mut Emit, kind: Kind, b: &str, hidden: i64) -> (String, String) {
    if b.is_empty() {
        return (String::new(), String::new());
    }
    let width = kind.gates() * hidden;
    let halves = emit.split(b, &[width, width], 0);
    let (Some(of_input), Some(of_state)) = (halves.first(), halves.get(1)) else { return Default::default() };
    if kind != Kind::GruAfter {
        return (emit.op("Add", &[of_input, of_state]), String::new());
    }
    let apart = emit.split(of_state, &[2 * hidden, hidden], 0);
    let (Some(gates), Some(candidate)) = (apart.first().cloned(), apart.get(1).cloned()) else {
        return Default::default();
    };
    let of_input = emit.split(of_input, &[2 * hidden, hidden], 0);
    let (Some(first), Some(second)) = (of_input.first(), of_input.get(1)) else { return Default::default() };
    let first = emit.op("Add", &[first, &gates]);
    (emit.concat(&[first, second.clone()], 0), candidate)
}

/// States of one direction.
struct Direction {
    /// In the order of the input.
    hidden: Vec<String>,
    last: String,
    cell: String,
}

impl Cell {
    fn run(&self, emit: &mut Emit, all: &str, steps: usize, backwards: bool, start: [String; 2]) -> Direction {
        let [mut h, mut c] = start;
        let parts = emit.split(all, &vec![1; steps], 0);
        let mut hidden = vec![String::new(); steps];
        for step in 0..steps {
            let at = if backwards { steps - 1 - step } else { step };
            let Some(part) = parts.get(at) else { continue };
            let z = emit.squeeze(part, &[0]);
            (h, c) = match self.kind {
                Kind::Lstm => self.lstm(emit, &z, &h, &c),
                Kind::GruAfter | Kind::GruBefore => (self.gru(emit, &z, &h), String::new()),
                Kind::Rnn => {
                    let sum = self.with_state(emit, &z, &h);
                    (emit.op("Tanh", &[&sum]), String::new())
                }
            };
            if let Some(place) = hidden.get_mut(at) {
                place.clone_from(&h);
            }
        }
        Direction { hidden, last: h, cell: c }
    }

    /// `z + h R`; z alone where there is no state yet.
    fn with_state(&self, emit: &mut Emit, z: &str, h: &str) -> String {
        if h.is_empty() {
            return z.to_owned();
        }
        let product = emit.op("MatMul", &[h, &self.recurrent]);
        emit.op("Add", &[z, &product])
    }

    fn lstm(&self, emit: &mut Emit, z: &str, h: &str, c: &str) -> (String, String) {
        let sum = self.with_state(emit, z, h);
        let gates = emit.split(&sum, &[self.hidden; 4], 1);
        let [i, o, f, g] = [("Sigmoid", 0), ("Sigmoid", 1), ("Sigmoid", 2), ("Tanh", 3)]
            .map(|(kind, at)| emit.op(kind, &[gates.get(at).map_or("", String::as_str)]));
        let new = emit.op("Mul", &[&i, &g]);
        let cell = if c.is_empty() {
            new
        } else {
            let kept = emit.op("Mul", &[&f, c]);
            emit.op("Add", &[&kept, &new])
        };
        let bounded = emit.op("Tanh", &[&cell]);
        (emit.op("Mul", &[&o, &bounded]), cell)
    }

    /// `h' = (1 - z) n + z h`.
    fn gru(&self, emit: &mut Emit, z: &str, h: &str) -> String {
        let own = emit.split(z, &[2 * self.hidden, self.hidden], 1);
        let (Some(own_gates), Some(own_new)) = (own.first().cloned(), own.get(1).cloned()) else {
            return String::new();
        };
        let sizes = [2 * self.hidden, self.hidden];
        let columns = emit.split(&self.recurrent, &sizes, 1);
        let (Some(for_gates), Some(for_new)) = (columns.first().cloned(), columns.get(1).cloned()) else {
            return String::new();
        };
        let mut sum = own_gates;
        if !h.is_empty() {
            let product = emit.op("MatMul", &[h, &for_gates]);
            sum = emit.op("Add", &[&sum, &product]);
        }
        let gates = emit.op("Sigmoid", &[&sum]);
        let gates = emit.split(&gates, &[self.hidden; 2], 1);
        let (Some(update), Some(reset)) = (gates.first().cloned(), gates.get(1).cloned()) else {
            return String::new();
        };
        let candidate = self.candidate(emit, &own_new, h, &reset, &for_new);
        let one = emit.scalar(self.dtype, 1.0);
        let rest = emit.op("Sub", &[&one, &update]);
        let new = emit.op("Mul", &[&rest, &candidate]);
        if h.is_empty() {
            return new;
        }
        let kept = emit.op("Mul", &[&update, h]);
        emit.op("Add", &[&new, &kept])
    }

    fn candidate(&self, emit: &mut Emit, own: &str, h: &str, reset: &str, weight: &str) -> String {
        let from_state = match (self.kind, h.is_empty()) {
            (Kind::GruAfter, false) => {
                let mut product = emit.op("MatMul", &[h, weight]);
                if !self.reset_bias.is_empty() {
                    product = emit.op("Add", &[&product, &self.reset_bias]);
                }
                emit.op("Mul", &[reset, &product])
            }
            (Kind::GruAfter, true) if !self.reset_bias.is_empty() => emit.op("Mul", &[reset, &self.reset_bias]),
            (_, true) => String::new(),
            (_, false) => {
                let kept = emit.op("Mul", &[reset, h]);
                emit.op("MatMul", &[&kept, weight])
            }
        };
        let sum = if from_state.is_empty() { own.to_owned() } else { emit.op("Add", &[own, &from_state]) };
        emit.op("Tanh", &[&sum])
    }
}

/// All states [steps, directions, batch, hidden], and the last ones [directions, batch, hidden].
fn outputs(emit: &mut Emit, node: &NodeProto, results: &[Direction]) {
    let output = |at: usize| node.output.get(at).filter(|name| !name.is_empty());
    if let Some(name) = output(0) {
        let mut directions = Vec::new();
        for result in results {
            let states: Vec<String> = result.hidden.iter().map(|h| emit.unsqueeze(h, &[0, 1])).collect();
            directions.push(emit.concat(&states, 0));
        }
        let all = emit.concat(&directions, 1);
        emit.identity(&all, name);
    }
    for (at, of) in [(1, (|d: &Direction| d.last.clone()) as fn(&Direction) -> String), (2, |d| d.cell.clone())] {
        let Some(name) = output(at) else { continue };
        let states: Vec<String> = results.iter().map(|d| emit.unsqueeze(&of(d), &[0])).collect();
        let all = emit.concat(&states, 0);
        emit.identity(&all, name);
    }
}
