//! Operators on single elements, with broadcasting.
//!
//! Derivatives are written by the output where that saves a pass: `exp' = y`, `tanh' = 1 - y²`, `sigmoid' = y - y²`.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use edgeward_graph::DataType;

use crate::gradient::{Context, Done, is_float};

/// Nodes on the values of one context: what derivatives are written with.
struct Algebra<'c, 'a> {
    cx: &'c mut Context<'a>,
    dtype: DataType,
}

impl Algebra<'_, '_> {
    fn n(&mut self, value: f64) -> String {
        self.cx.emit.scalar(self.dtype, value)
    }
    fn f(&mut self, kind: &str, x: &str) -> String {
        self.cx.emit.op(kind, &[x])
    }
    fn two(&mut self, kind: &str, a: &str, b: &str) -> String {
        self.cx.emit.op(kind, &[a, b])
    }
    fn mul(&mut self, a: &str, b: &str) -> String {
        self.two("Mul", a, b)
    }
    fn add(&mut self, a: &str, b: &str) -> String {
        self.two("Add", a, b)
    }
    fn sub(&mut self, a: &str, b: &str) -> String {
        self.two("Sub", a, b)
    }
    fn times(&mut self, x: &str, by: f64) -> String {
        self.cx.emit.scale(x, self.dtype, by)
    }
    fn plus(&mut self, x: &str, by: f64) -> String {
        let by = self.n(by);
        self.add(&by, x)
    }
    /// 1 - x
    fn complement(&mut self, x: &str) -> String {
        let one = self.n(1.0);
        self.sub(&one, x)
    }
    fn square(&mut self, x: &str) -> String {
        self.mul(x, x)
    }
    /// 1 where the comparison holds, else 0.
    fn where_(&mut self, kind: &str, a: &str, b: f64) -> String {
        let b = self.n(b);
        self.mask(kind, a, &b)
    }
    fn mask(&mut self, kind: &str, a: &str, b: &str) -> String {
        let truth = self.two(kind, a, b);
        self.cx.emit.cast(&truth, self.dtype)
    }
    /// 1 / sqrt(x)
    fn inverse_root(&mut self, x: &str) -> String {
        let root = self.f("Sqrt", x);
        self.f("Reciprocal", &root)
    }
    /// The gradient through an input that is `slope` where `x > 0` is false.
    fn leaky(&mut self, x: &str, slope: f64) -> String {
        let positive = self.where_("Greater", x, 0.0);
        let scaled = self.times(&positive, 1.0 - slope);
        self.plus(&scaled, slope)
    }
}

/// Functions of one value: the gradient times the derivative.
pub(super) fn unary(cx: &mut Context<'_>) -> Done {
    let (g, x, y) = (cx.g()?, cx.x(0).to_owned(), cx.y(0).to_owned());
    let dtype = cx.dtype(&x);
    let kind = cx.node.op_type();
    let direct = match kind {
        "Neg" => Some(cx.emit.op("Neg", &[&g])),
        "Sqrt" => {
            let twice = cx.emit.scale(&y, dtype, 2.0);
            Some(cx.emit.op("Div", &[&g, &twice]))
        }
        "Log" => Some(cx.emit.op("Div", &[&g, &x])),
        _ => None,
    };
    let gradient = match direct {
        Some(gradient) => gradient,
        None => {
            let derivative = derivative(&mut Algebra { cx, dtype }, &x, &y)?;
            cx.emit.op("Mul", &[&g, &derivative])
        }
    };
    cx.give(0, gradient);
    Ok(())
}

fn derivative(a: &mut Algebra<'_, '_>, x: &str, y: &str) -> Result<String, String> {
    let alpha = |a: &Algebra<'_, '_>, default| a.cx.float("alpha", default);
    Ok(match a.cx.node.op_type() {
        "Abs" => a.f("Sign", x),
        "Exp" => y.to_owned(),
        "Relu" => a.where_("Greater", y, 0.0),
        "LeakyRelu" => {
            let slope = alpha(a, 0.01);
            a.leaky(x, slope)
        }
        "ThresholdedRelu" => {
            let threshold = alpha(a, 1.0);
            a.where_("Greater", x, threshold)
        }
        "Sigmoid" => {
            let rest = a.complement(y);
            a.mul(y, &rest)
        }
        "Tanh" => {
            let square = a.square(y);
            a.complement(&square)
        }
        "Reciprocal" => {
            let square = a.square(y);
            a.f("Neg", &square)
        }
        "Erf" => {
            let bell = gauss(a, x, 1.0);
            a.times(&bell, 2.0 / PI.sqrt())
        }
        "Softplus" => a.f("Sigmoid", x),
        "Softsign" => {
            let size = a.f("Abs", x);
            let below = a.plus(&size, 1.0);
            let square = a.square(&below);
            a.f("Reciprocal", &square)
        }
        "Elu" | "Celu" | "Selu" => return Ok(exponential_unit(a, x, y)),
        "HardSigmoid" | "HardSwish" | "Gelu" | "Mish" | "Swish" => return gate(a, x),
        _ => return trigonometric(a, x, y),
    })
}

/// exp(-x² scale)
fn gauss(a: &mut Algebra<'_, '_>, x: &str, scale: f64) -> String {
    let square = a.square(x);
    let exponent = a.times(&square, -scale);
    a.f("Exp", &exponent)
}

fn trigonometric(a: &mut Algebra<'_, '_>, x: &str, y: &str) -> Result<String, String> {
    let square = a.square(x);
    Ok(match a.cx.node.op_type() {
        "Sin" => a.f("Cos", x),
        "Cos" => {
            let sine = a.f("Sin", x);
            a.f("Neg", &sine)
        }
        "Tan" => {
            let square = a.square(y);
            a.plus(&square, 1.0)
        }
        "Sinh" => a.f("Cosh", x),
        "Cosh" => a.f("Sinh", x),
        kind @ ("Asin" | "Acos") => {
            let below = a.complement(&square);
            let slope = a.inverse_root(&below);
            if kind == "Acos" { a.f("Neg", &slope) } else { slope }
        }
        "Atan" => {
            let below = a.plus(&square, 1.0);
            a.f("Reciprocal", &below)
        }
        "Asinh" => {
            let below = a.plus(&square, 1.0);
            a.inverse_root(&below)
        }
        "Acosh" => {
            let below = a.plus(&square, -1.0);
            a.inverse_root(&below)
        }
        "Atanh" => {
            let below = a.complement(&square);
            a.f("Reciprocal", &below)
        }
        other => return Err(format!("no derivative is written for `{other}`")),
    })
}

/// Elu: `α(exp(x) - 1)` below 0, whose derivative is `y + α`. Celu divides x by α, Selu scales all.
fn exponential_unit(a: &mut Algebra<'_, '_>, x: &str, y: &str) -> String {
    let kind = a.cx.node.op_type();
    let alpha = a.cx.float("alpha", if kind == "Selu" { 1.673_263_2 } else { 1.0 });
    let (above, below) = match kind {
        "Selu" => {
            let gamma = a.cx.float("gamma", 1.050_701);
            (gamma, a.plus(y, alpha * gamma))
        }
        "Celu" => {
            let scaled = a.times(y, 1.0 / alpha);
            (1.0, a.plus(&scaled, 1.0))
        }
        _ => (1.0, a.plus(y, alpha)),
    };
    // At and below 0 the one, above the other; what is not chosen is finite, so a product chooses.
    let positive = a.where_("Greater", x, 0.0);
    let negative = a.complement(&positive);
    let (one, other) = (a.times(&positive, above), a.mul(&negative, &below));
    a.add(&one, &other)
}

/// Functions that multiply their input by a gate, and the gate of HardSwish itself.
fn gate(a: &mut Algebra<'_, '_>, x: &str) -> Result<String, String> {
    Ok(match a.cx.node.op_type() {
        "HardSigmoid" => {
            let (slope, offset) = (a.cx.float("alpha", 0.2), a.cx.float("beta", 0.5));
            inside(a, x, -offset / slope, (1.0 - offset) / slope, slope)
        }
        // 0 below -3, 1 above 3, (2x + 3) / 6 between: a clipped line, but for its ends.
        "HardSwish" => {
            let line = a.times(x, 1.0 / 3.0);
            let line = a.plus(&line, 0.5);
            let between = inside(a, x, -3.0, 3.0, 1.0);
            let part = a.mul(&line, &between);
            let above = a.where_("GreaterOrEqual", x, 3.0);
            a.add(&part, &above)
        }
        "Gelu" if a.cx.node.attr_text("approximate") == Some("tanh") => gelu_tanh(a, x),
        // Φ(x) + x φ(x)
        "Gelu" => {
            let scaled = a.times(x, FRAC_1_SQRT_2);
            let erf = a.f("Erf", &scaled);
            let half = a.times(&erf, 0.5);
            let phi = a.plus(&half, 0.5);
            let bell = gauss(a, x, 0.5);
            let bell = a.times(&bell, 1.0 / (2.0 * PI).sqrt());
            let part = a.mul(x, &bell);
            a.add(&phi, &part)
        }
        // t + x (1 - t²) σ(x), t = tanh(softplus(x))
        "Mish" => {
            let soft = a.f("Softplus", x);
            let t = a.f("Tanh", &soft);
            let sigma = a.f("Sigmoid", x);
            let square = a.square(&t);
            let rest = a.complement(&square);
            let slope = a.mul(&rest, &sigma);
            let part = a.mul(x, &slope);
            a.add(&t, &part)
        }
        // σ + α x σ (1 - σ)
        "Swish" => {
            let alpha = a.cx.float("alpha", 1.0);
            let scaled = a.times(x, alpha);
            let sigma = a.f("Sigmoid", &scaled);
            let rest = a.complement(&sigma);
            let slope = a.mul(&sigma, &rest);
            let part = a.mul(&scaled, &slope);
            a.add(&sigma, &part)
        }
        other => return Err(format!("no derivative is written for `{other}`")),
    })
}

/// `value` where `low < x < high`, else 0.
fn inside(a: &mut Algebra<'_, '_>, x: &str, low: f64, high: f64, value: f64) -> String {
    let (low, high) = (a.n(low), a.n(high));
    let (above, below) = (a.two("Greater", x, &low), a.two("Less", x, &high));
    let both = a.two("And", &above, &below);
    let mask = a.cx.emit.cast(&both, a.dtype);
    a.times(&mask, value)
}

/// y = x/2 (1 + t), t = tanh(k (x + c x³)): (1 + t)/2 + x/2 (1 - t²) k (1 + 3 c x²)
fn gelu_tanh(a: &mut Algebra<'_, '_>, x: &str) -> String {
    let (k, c) = ((2.0 / PI).sqrt(), 0.044_715);
    let square = a.square(x);
    let cubic = a.times(&square, c);
    let cubic = a.plus(&cubic, 1.0);
    let inner = a.mul(x, &cubic);
    let inner = a.times(&inner, k);
    let t = a.f("Tanh", &inner);
    let half = a.times(&t, 0.5);
    let first = a.plus(&half, 0.5);
    let t_square = a.square(&t);
    let rest = a.complement(&t_square);
    let slope = a.times(&square, 3.0 * c);
    let slope = a.plus(&slope, 1.0);
    let slope = a.times(&slope, 0.5 * k);
    let part = a.mul(&rest, &slope);
    let part = a.mul(x, &part);
    a.add(&first, &part)
}

/// Add, Sum, and Mean, which divides by the number of its inputs.
pub(super) fn sum(cx: &mut Context<'_>) -> Done {
    let mut g = cx.g()?;
    if cx.node.op_type() == "Mean" {
        let dtype = cx.dtype(cx.x(0));
        g = cx.emit.scale(&g, dtype, 1.0 / cx.inputs().max(1) as f64);
    }
    for input in (0..cx.inputs()).filter(|&i| cx.wants(i)).collect::<Vec<_>>() {
        let gradient = cx.unbroadcast(&g, input);
        cx.give(input, gradient);
    }
    Ok(())
}

pub(super) fn sub(cx: &mut Context<'_>) -> Done {
    let g = cx.g()?;
    if cx.wants(0) {
        let gradient = cx.unbroadcast(&g, 0);
        cx.give(0, gradient);
    }
    if cx.wants(1) {
        let sum = cx.unbroadcast(&g, 1);
        let gradient = cx.emit.op("Neg", &[&sum]);
        cx.give(1, gradient);
    }
    Ok(())
}

pub(super) fn mul(cx: &mut Context<'_>) -> Done {
    let g = cx.g()?;
    for (input, other) in [(0, 1), (1, 0)] {
        if cx.wants(input) {
            let other = cx.x(other).to_owned();
            let product = cx.emit.op("Mul", &[&g, &other]);
            let gradient = cx.unbroadcast(&product, input);
            cx.give(input, gradient);
        }
    }
    Ok(())
}

/// y = a / b: g / b, and -g y / b
pub(super) fn div(cx: &mut Context<'_>) -> Done {
    let (g, b, y) = (cx.g()?, cx.x(1).to_owned(), cx.y(0).to_owned());
    let quotient = cx.emit.op("Div", &[&g, &b]);
    if cx.wants(0) {
        let gradient = cx.unbroadcast(&quotient, 0);
        cx.give(0, gradient);
    }
    if cx.wants(1) {
        let product = cx.emit.op("Mul", &[&quotient, &y]);
        let sum = cx.unbroadcast(&product, 1);
        let gradient = cx.emit.op("Neg", &[&sum]);
        cx.give(1, gradient);
    }
    Ok(())
}

/// y = aᵇ: g b aᵇ⁻¹, and g y ln a
pub(super) fn pow(cx: &mut Context<'_>) -> Done {
    let (g, a, b, y) = (cx.g()?, cx.x(0).to_owned(), cx.x(1).to_owned(), cx.y(0).to_owned());
    let dtype = cx.dtype(&a);
    if cx.wants(0) {
        let exponent = cx.known.floats(&b).filter(|values| values.len() == 1).and_then(|v| v.first().copied());
        let slope = match exponent {
            Some(2.0) => cx.emit.scale(&a, dtype, 2.0),
            Some(0.5) => {
                let inverse = cx.emit.op("Reciprocal", &[&y]);
                cx.emit.scale(&inverse, dtype, 0.5)
            }
            Some(e) => {
                let less = cx.emit.scalar(dtype, e - 1.0);
                let power = cx.emit.op("Pow", &[&a, &less]);
                cx.emit.scale(&power, dtype, e)
            }
            None => {
                let exponent = cast_to(cx, &b, dtype);
                let one = cx.emit.scalar(dtype, 1.0);
                let less = cx.emit.op("Sub", &[&exponent, &one]);
                let power = cx.emit.op("Pow", &[&a, &less]);
                cx.emit.op("Mul", &[&power, &exponent])
            }
        };
        let product = cx.emit.op("Mul", &[&g, &slope]);
        let gradient = cx.unbroadcast(&product, 0);
        cx.give(0, gradient);
    }
    if cx.wants(1) {
        // ln of 0 is of no account where the power is 0 as well: its product would be no number.
        let tiny = cx.emit.scalar(dtype, f64::from(f32::MIN_POSITIVE));
        let positive = cx.emit.op("Max", &[&a, &tiny]);
        let log = cx.emit.op("Log", &[&positive]);
        let slope = cx.emit.op("Mul", &[&y, &log]);
        let product = cx.emit.op("Mul", &[&g, &slope]);
        let gradient = cx.unbroadcast(&product, 1);
        cx.give(1, gradient);
    }
    Ok(())
}

fn cast_to(cx: &mut Context<'_>, x: &str, dtype: DataType) -> String {
    if cx.dtype(x) == dtype { x.to_owned() } else { cx.emit.cast(x, dtype) }
}

/// y = a - b trunc(a / b): g, and -g trunc(a / b)
pub(super) fn modulo(cx: &mut Context<'_>) -> Done {
    let g = cx.g()?;
    if cx.wants(1) {
        return Err("has no gradient for its divisor; freeze it".to_owned());
    }
    let gradient = cx.unbroadcast(&g, 0);
    cx.give(0, gradient);
    Ok(())
}

/// Max and Min: to the inputs that equal the output, shared among them where several do, as PyTorch does.
pub(super) fn extreme(cx: &mut Context<'_>) -> Done {
    let (g, y) = (cx.g()?, cx.y(0).to_owned());
    let dtype = cx.dtype(&y);
    let names: Vec<String> = cx.node.input.clone();
    let masks: Vec<String> = names
        .iter()
        .map(|x| {
            let equal = cx.emit.op("Equal", &[x, &y]);
            cx.emit.cast(&equal, dtype)
        })
        .collect();
    let Some(count) = cx.emit.total(&masks) else { return Ok(()) };
    let share = cx.emit.op("Div", &[&g, &count]);
    for (input, mask) in masks.iter().enumerate() {
        if cx.wants(input) {
            let product = cx.emit.op("Mul", &[&share, mask]);
            let gradient = cx.unbroadcast(&product, input);
            cx.give(input, gradient);
        }
    }
    Ok(())
}

/// Where: a product with the condition, which costs less than another choice.
pub(super) fn choose(cx: &mut Context<'_>) -> Done {
    let (g, condition) = (cx.g()?, cx.x(0).to_owned());
    let dtype = cx.dtype(cx.y(0));
    let opposite = if cx.wants(2) { cx.emit.op("Not", &[&condition]) } else { String::new() };
    for (input, truth) in [(1, condition), (2, opposite)] {
        if cx.wants(input) {
            let mask = cx.emit.cast(&truth, dtype);
            let product = cx.emit.op("Mul", &[&g, &mask]);
            let gradient = cx.unbroadcast(&product, input);
            cx.give(input, gradient);
        }
    }
    Ok(())
}

/// Clip: where the output lies within the bounds.
pub(super) fn clip(cx: &mut Context<'_>) -> Done {
    let (g, y) = (cx.g()?, cx.y(0).to_owned());
    if cx.wants(1) || cx.wants(2) {
        return Err("has no gradient for its bounds; freeze them".to_owned());
    }
    let dtype = cx.dtype(&y);
    let mut truths = Vec::new();
    for (input, attribute, kind) in [(1, "min", "Greater"), (2, "max", "Less")] {
        let bound = match (cx.x(input), cx.node.attr_float(attribute)) {
            ("", None) => continue,
            ("", Some(bound)) => cx.emit.scalar(dtype, bound.into()),
            (name, _) => name.to_owned(),
        };
        truths.push(cx.emit.op(kind, &[&y, &bound]));
    }
    let gradient = match truths.as_slice() {
        [] => g,
        [first, rest @ ..] => {
            let both = rest.iter().fold(first.clone(), |a, b| cx.emit.op("And", &[&a, b]));
            let mask = cx.emit.cast(&both, dtype);
            cx.emit.op("Mul", &[&g, &mask])
        }
    };
    cx.give(0, gradient);
    Ok(())
}

/// PRelu: `slope x` below 0.
pub(super) fn prelu(cx: &mut Context<'_>) -> Done {
    let (g, x, slope) = (cx.g()?, cx.x(0).to_owned(), cx.x(1).to_owned());
    let dtype = cx.dtype(&x);
    let positive = Algebra { cx, dtype }.where_("Greater", &x, 0.0);
    let negative = Algebra { cx, dtype }.complement(&positive);
    if cx.wants(0) {
        let below = cx.emit.op("Mul", &[&negative, &slope]);
        let derivative = cx.emit.op("Add", &[&positive, &below]);
        let gradient = cx.emit.op("Mul", &[&g, &derivative]);
        cx.give(0, gradient);
    }
    if cx.wants(1) {
        let below = cx.emit.op("Mul", &[&negative, &x]);
        let product = cx.emit.op("Mul", &[&g, &below]);
        let gradient = cx.unbroadcast(&product, 1);
        cx.give(1, gradient);
    }
    Ok(())
}

pub(super) fn cast(cx: &mut Context<'_>) -> Done {
    let (g, to) = (cx.g()?, cx.dtype(cx.x(0)));
    if !is_float(to) {
        return Ok(());
    }
    let same = cx.dtype(cx.y(0)) == to;
    let gradient = if same { g } else { cx.emit.cast(&g, to) };
    cx.give(0, gradient);
    Ok(())
}
