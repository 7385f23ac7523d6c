//! Einsum: the gradient of an operand is the einsum of the output's gradient with the other operands.

use crate::{
    emit::Emit,
    gradient::{Context, Done},
    known::Known,
};
use edgeward_graph::proto::AttributeProto;

/// An equation without `...`: one letter for each axis.
struct Equation {
    inputs: Vec<Vec<char>>,
    output: Vec<char>,
}

/// Letters that stand for the axes of `...`, which are no letters of ONNX's equations otherwise in use.
const SPARE: &str = "ZYXWVUTSRQPONMLKJIHGFEDCBA";

impl Equation {
    fn of(known: &Known, text: &str, names: &[String]) -> Result<Self, String> {
        let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let (left, right) = match text.split_once("->") {
            Some((left, right)) => (left, Some(right)),
            None => (text.as_str(), None),
        };
        let terms: Vec<&str> = left.split(',').collect();
        if terms.len() != names.len() {
            return Err(format!("its equation `{text}` has {} operands, the node {}", terms.len(), names.len()));
        }
        let spare: Vec<char> = SPARE.chars().filter(|c| !text.contains(*c)).collect();
        let mut dots = 0;
        let mut inputs = Vec::new();
        for (term, name) in terms.iter().zip(names) {
            let letters = term.replace("...", "").chars().count();
            let rank = known.rank(name)?;
            let open = rank.checked_sub(letters).filter(|&n| n == 0 || term.contains("..."));
            let open = open.ok_or_else(|| format!("its equation `{text}` does not fit an operand of rank {rank}"))?;
            dots = dots.max(open);
            inputs.push(filled(term, &spare, open));
        }
        let output = match right {
            Some(right) => filled(right, &spare, if right.contains("...") { dots } else { 0 }),
            None => implied(&inputs, &spare, dots),
        };
        for letters in inputs.iter().chain([&output]) {
            if letters.iter().enumerate().any(|(i, c)| letters.iter().skip(i + 1).any(|other| other == c)) {
                return Err(format!("has no gradient for a diagonal, as in `{text}`"));
            }
        }
        Ok(Self { inputs, output })
    }
}

/// A term's letters, the last `open` of the spare ones (counted from the right, as broadcasting does) for its dots.
fn filled(term: &str, spare: &[char], open: usize) -> Vec<char> {
    let dots: String = spare.iter().take(open).rev().collect();
    term.replace("...", &dots).chars().collect()
}

/// Without an arrow: the dots, then each letter that stands once, in order.
fn implied(inputs: &[Vec<char>], spare: &[char], dots: usize) -> Vec<char> {
    let all: Vec<char> = inputs.iter().flatten().copied().collect();
    let open: Vec<char> = spare.iter().take(dots).rev().copied().collect();
    let mut once: Vec<char> =
        all.iter().copied().filter(|c| all.iter().filter(|d| *d == c).count() == 1 && !open.contains(c)).collect();
    once.sort_unstable();
    open.into_iter().chain(once).collect()
}

pub(super) fn einsum(cx: &mut Context<'_>) -> Done {
    let g = cx.g()?;
    let names = cx.node.input.clone();
    let text = cx.node.attr_text("equation").ok_or("has no `equation`")?.to_owned();
    let equation = Equation::of(cx.known, &text, &names)?;
    for (index, name) in names.iter().enumerate() {
        if cx.wants(index) {
            let gradient = operand(cx, &equation, &g, index, name)?;
            cx.give(index, gradient);
        }
    }
    Ok(())
}

fn operand(cx: &mut Context<'_>, equation: &Equation, g: &str, index: usize, name: &str) -> Result<String, String> {
    let own = equation.inputs.get(index).cloned().unwrap_or_default();
    let others = || equation.inputs.iter().enumerate().filter(|(i, _)| *i != index);
    let met = |c: &char| equation.output.contains(c) || others().any(|(_, letters)| letters.contains(c));
    // Axes that were summed away for themselves: their gradient is the same all along.
    let lone: Vec<i64> = own.iter().enumerate().filter(|(_, c)| !met(c)).map(|(i, _)| i as i64).collect();
    let kept: Vec<char> = own.iter().copied().filter(|c| met(c)).collect();
    let mut terms = vec![equation.output.iter().collect::<String>()];
    let mut values = vec![g.to_owned()];
    for (i, letters) in others() {
        terms.push(letters.iter().collect());
        values.push(cx.x(i).to_owned());
    }
    let text = format!("{}->{}", terms.join(","), kept.iter().collect::<String>());
    let mut gradient = summed(cx.emit, &values, &text);
    if !lone.is_empty() {
        gradient = cx.emit.unsqueeze(&gradient, &lone);
        gradient = cx.expand_like(&gradient, name);
    }
    broadcast_axes(cx, equation, index, &own, &gradient)
}

fn summed(emit: &mut Emit, values: &[String], text: &str) -> String {
    let names: Vec<&str> = values.iter().map(String::as_str).collect();
    emit.with("Einsum", &names, vec![AttributeProto::of_text("equation", text)])
}

/// Sums over axes of size 1 that other operands made wider.
fn broadcast_axes(
    cx: &mut Context<'_>,
    equation: &Equation,
    index: usize,
    own: &[char],
    gradient: &str,
) -> Result<String, String> {
    let mut axes = Vec::new();
    for (i, letter) in own.iter().enumerate() {
        if cx.known.size(cx.x(index), i) != Ok(1) {
            continue;
        }
        for (other, letters) in equation.inputs.iter().enumerate().filter(|(other, _)| *other != index) {
            if let Some(at) = letters.iter().position(|c| c == letter)
                && cx.known.size(cx.x(other), at)? != 1
                && !axes.contains(&(i as i64))
            {
                axes.push(i as i64);
            }
        }
    }
    if axes.is_empty() {
        return Ok(gradient.to_owned());
    }
    Ok(cx.emit.sum(gradient, &axes, crate::emit::Axes::Keep))
}
