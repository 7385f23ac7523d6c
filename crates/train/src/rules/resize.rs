//! Resampling: along each axis the output is a matrix times the input, so the gradient goes back by its transpose.
//!
//! The matrices follow the text of the operators Resize and Pad in the ONNX specification; they hold the sizes, so these
//! must be known before a run.

use edgeward_graph::{DataType, proto::NodeProto};

use crate::{
    emit::{Axes, Emit},
    gradient::{Context, Done},
    shape,
};

/// Elements of one map: 4096 to 4096 and less.
const WEIGHTS_MAX: usize = 1 << 24;

/// A linear map along one axis: `weights[out · input + in]`.
struct Map {
    input: usize,
    output: usize,
    weights: Vec<f64>,
}

impl Map {
    fn new(input: usize, output: usize) -> Result<Self, String> {
        // Whatever the output's size: of none there are no weights that would bound it.
        if input == 0 {
            return Err("resamples an axis of size 0".to_owned());
        }
        let count = input.checked_mul(output).filter(|&count| count <= WEIGHTS_MAX);
        let count = count.ok_or_else(|| format!("a map from {input} to {output} elements is too large"))?;
        Ok(Self { input, output, weights: vec![0.0; count] })
    }

    fn add(&mut self, to: usize, from: usize, weight: f64) {
        if let Some(place) = self.weights.get_mut(to * self.input + from) {
            *place += weight;
        }
    }

    /// How often each element is repeated, where that is all.
    fn repeats(&self) -> Option<usize> {
        let times = self.output.checked_div(self.input).filter(|times| times * self.input == self.output)?;
        let one = |to: usize, from: usize| if to / times == from { 1.0 } else { 0.0 };
        let same = (0..self.output)
            .all(|to| (0..self.input).all(|from| self.weights.get(to * self.input + from) == Some(&one(to, from))));
        same.then_some(times)
    }

    /// The gradient of the input along `axis` of a value of these sizes.
    fn back(&self, emit: &mut Emit, dtype: DataType, g: &str, axis: usize, sizes: &[i64]) -> String {
        // Sizes whose product no number holds belong to a value that no memory holds.
        let count = |sizes: &[i64]| sizes.iter().fold(1i64, |n, &s| n.saturating_mul(s));
        let before = count(sizes.get(..axis).unwrap_or_default());
        let after = count(sizes.get(axis + 1..).unwrap_or_default());
        let mut target: Vec<i64> = sizes.to_vec();
        if let Some(size) = target.get_mut(axis) {
            *size = self.input as i64;
        }
        let sum = if let Some(times) = self.repeats() {
            let apart = emit.reshape(g, &[before, self.input as i64, times as i64, after]);
            emit.sum(&apart, &[2], Axes::Drop)
        } else if after == 1 {
            let matrix = emit.floats(dtype, &[self.output, self.input], &self.weights);
            let rows = emit.reshape(g, &[before, self.output as i64]);
            emit.op("MatMul", &[&rows, &matrix])
        } else {
            let mut turned = vec![0.0; self.weights.len()];
            for (i, weight) in self.weights.iter().enumerate() {
                if let Some(place) = turned.get_mut((i % self.input) * self.output + i / self.input) {
                    *place = *weight;
                }
            }
            let matrix = emit.floats(dtype, &[self.input, self.output], &turned);
            let columns = emit.reshape(g, &[before, self.output as i64, after]);
            emit.op("MatMul", &[&matrix, &columns])
        };
        emit.reshape(&sum, &target)
    }
}

/// Goes back through the maps of all axes; the first axis may be open, where it has no map.
fn back(cx: &mut Context<'_>, g: &str, y: &str, maps: Vec<(usize, Map)>) -> Result<String, String> {
    let dtype = cx.dtype(y);
    let rank = cx.known.rank(y)?;
    let mut sizes = Vec::new();
    for i in 0..rank {
        let mapped = maps.iter().any(|(axis, _)| *axis == i);
        sizes.push(match cx.known.size(y, i) {
            Ok(size) => size as i64,
            Err(_) if i == 0 && !mapped => -1,
            Err(reason) => return Err(reason),
        });
    }
    let mut gradient = g.to_owned();
    for (axis, map) in maps {
        gradient = map.back(cx.emit, dtype, &gradient, axis, &sizes);
        if let Some(size) = sizes.get_mut(axis) {
            *size = map.input as i64;
        }
    }
    Ok(gradient)
}

pub(super) fn resize(cx: &mut Context<'_>) -> Done {
    let (g, x, y) = (cx.g()?, cx.x(0).to_owned(), cx.y(0).to_owned());
    let rank = cx.known.rank(&x)?;
    let rule = Rule::of(cx.node)?;
    let axes: Vec<usize> = match cx.node.attr_ints("axes") {
        Some(axes) => axes.iter().map(|&a| shape::axis(a, rank)).collect::<Result<_, _>>()?,
        None => (0..rank).collect(),
    };
    let scales_at = if cx.node.op_type() == "Upsample" { 1 } else { 2 };
    let scales = cx.known.floats(cx.x(scales_at)).filter(|scales| !scales.is_empty());
    if scales.is_none() && cx.x(3).is_empty() {
        return Err("its scales are computed in the run, expected a constant".to_owned());
    }
    let mut maps = Vec::new();
    for (i, &axis) in axes.iter().enumerate() {
        let scale = scales.as_ref().and_then(|scales| scales.get(i).copied());
        let (Ok(input), Ok(output)) = (cx.known.size(&x, axis), cx.known.size(&y, axis)) else {
            // An open axis is one that is left as it is: the batch.
            if scale.is_none_or(|scale| scale == 1.0) && axis == 0 {
                continue;
            }
            return Err(format!("the size along axis {axis} is not known before a run"));
        };
        if input != output || scale.is_some_and(|scale| scale != 1.0) {
            let scale = scale.unwrap_or(output as f64 / input.max(1) as f64);
            maps.push((axis, rule.map(input, output, scale)?));
        }
    }
    let gradient = back(cx, &g, &y, maps)?;
    cx.give(0, gradient);
    Ok(())
}

/// How a place of the output looks at the input.
struct Rule {
    coordinates: String,
    mode: String,
    nearest: String,
    cubic: f64,
    exclude_outside: bool,
}

impl Rule {
    fn of(node: &NodeProto) -> Result<Self, String> {
        let text = |name: &str, default: &str| node.attr_text(name).unwrap_or(default).to_owned();
        let upsample = node.op_type() == "Upsample";
        let rule = Self {
            coordinates: text("coordinate_transformation_mode", if upsample { "asymmetric" } else { "half_pixel" }),
            mode: text("mode", "nearest"),
            nearest: text("nearest_mode", if upsample { "floor" } else { "round_prefer_floor" }),
            cubic: f64::from(node.attr_float("cubic_coeff_a").unwrap_or(-0.75)),
            exclude_outside: node.attr_int("exclude_outside").unwrap_or(0) != 0,
        };
        if node.attr_int("antialias").unwrap_or(0) != 0 {
            return Err("has no gradient with `antialias`".to_owned());
        }
        if rule.coordinates == "tf_crop_and_resize" {
            return Err("has no gradient with `tf_crop_and_resize`".to_owned());
        }
        Ok(rule)
    }

    fn map(&self, input: usize, output: usize, scale: f64) -> Result<Map, String> {
        let mut map = Map::new(input, output)?;
        for to in 0..output {
            let at = self.coordinate(to as f64, input as f64, output as f64, scale);
            for (from, weight) in self.neighbours(at, input) {
                map.add(to, from, weight);
            }
        }
        Ok(map)
    }

    fn coordinate(&self, to: f64, input: f64, output: f64, scale: f64) -> f64 {
        match self.coordinates.as_str() {
            "asymmetric" => to / scale,
            "align_corners" if output > 1.0 => to * (input - 1.0) / (output - 1.0),
            "align_corners" => 0.0,
            "pytorch_half_pixel" if output <= 1.0 => 0.0,
            "half_pixel_symmetric" => {
                let adjustment = output / (scale * input);
                input / 2.0 * (1.0 - adjustment) + (to + 0.5) / scale - 0.5
            }
            _ => (to + 0.5) / scale - 0.5,
        }
    }

    /// Elements of the input with their weights.
    fn neighbours(&self, at: f64, input: usize) -> Vec<(usize, f64)> {
        let inside = |place: f64| place.clamp(0.0, input.saturating_sub(1) as f64) as usize;
        let (base, part) = (at.floor(), at - at.floor());
        match self.mode.as_str() {
            "linear" => vec![(inside(base), 1.0 - part), (inside(base + 1.0), part)],
            "cubic" => {
                let a = self.cubic;
                let near = |d: f64| ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0;
                let far = |d: f64| ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a;
                let weights = [far(part + 1.0), near(part), near(1.0 - part), far(2.0 - part)];
                let mut all: Vec<(f64, f64)> =
                    weights.iter().enumerate().map(|(i, &w)| (base + i as f64 - 1.0, w)).collect();
                if self.exclude_outside {
                    all.retain(|(place, _)| *place >= 0.0 && *place < input as f64);
                    let sum: f64 = all.iter().map(|(_, w)| w).sum();
                    all.iter_mut().for_each(|(_, w)| *w /= sum);
                }
                all.into_iter().map(|(place, weight)| (inside(place), weight)).collect()
            }
            _ => {
                let place = match self.nearest.as_str() {
                    "floor" => at.floor(),
                    "ceil" => at.ceil(),
                    "round_prefer_ceil" => (at + 0.5).floor(),
                    _ => (at - 0.5).ceil(),
                };
                vec![(inside(place), 1.0)]
            }
        }
    }
}

/// The gradient of a Pad that copies: reflecting, repeating the edge, or going round.
pub(super) fn copying_pad(cx: &mut Context<'_>, g: &str, x: &str, pads: &[i64], mode: &str) -> Result<String, String> {
    let rank = cx.known.rank(x)?;
    let mut maps = Vec::new();
    for axis in 0..rank {
        let (begin, end) = (pads.get(axis).copied().unwrap_or(0), pads.get(rank + axis).copied().unwrap_or(0));
        if begin == 0 && end == 0 {
            continue;
        }
        let size = cx.known.size(x, axis)? as i64;
        let output = usize::try_from(size + begin + end).map_err(|_| "cuts off more than there is")?;
        let mut map = Map::new(size as usize, output)?;
        for to in 0..output {
            let at = to as i64 - begin;
            let from = match mode {
                "edge" => at.clamp(0, size - 1),
                "wrap" => at.rem_euclid(size),
                "reflect" if size > 1 => {
                    let around = at.rem_euclid(2 * (size - 1));
                    if around < size { around } else { 2 * (size - 1) - around }
                }
                "reflect" => 0,
                other => return Err(format!("has no gradient in the mode `{other}`")),
            };
            map.add(to, from as usize, 1.0);
        }
        maps.push((axis, map));
    }
    let y = cx.y(0).to_owned();
    back(cx, g, &y, maps)
}
