//! Whether engines agree on a model's outputs.
//!
//! Two engines add in different orders, so floats differ in their last digits, and quantised models may round an
//! integer up here and down there. What counts is the largest difference, relative to the largest value of the output.

use edgeward_graph::{DataType, Model, Tensor};

/// Largest difference for models that compute in floats.
const FLOAT_TOLERANCE: f64 = 0.01;
/// Largest difference for models that hold quantised operators.
const QUANTISED_TOLERANCE: f64 = 0.05;

/// The tolerance that suits a model.
pub fn tolerance(model: &Model) -> f64 {
    let quantised = |op: &str| op.contains("QuantizeLinear") || op.starts_with("QLinear") || op.ends_with("Integer");
    if model.graph().node.iter().any(|node| quantised(node.op_type())) { QUANTISED_TOLERANCE } else { FLOAT_TOLERANCE }
}

/// Why `other` is not what `reference` is; none where they agree.
pub fn disagreement(names: &[String], reference: &[Tensor], other: &[Tensor], tolerance: f64) -> Option<String> {
    if reference.len() != other.len() {
        return Some(format!("it has {} outputs, expected {}", other.len(), reference.len()));
    }
    names.iter().zip(reference.iter().zip(other)).find_map(|(name, (a, b))| {
        if a.dtype() != b.dtype() || a.shape() != b.shape() {
            let shown = |t: &Tensor| format!("{} {:?}", t.dtype(), t.shape());
            return Some(format!("output `{name}` is {}, expected {}", shown(b), shown(a)));
        }
        let far = difference(a, b);
        (far > tolerance).then(|| {
            format!(
                "output `{name}` differs by {:.1} % of its largest value, allowed are {:.0} %",
                far * 100.0,
                tolerance * 100.0
            )
        })
    })
}

/// Largest difference over the largest magnitude; 0 where equal, infinite where one is no number and the other is.
fn difference(a: &Tensor, b: &Tensor) -> f64 {
    let (Some(a_values), Some(b_values)) = (floats(a), floats(b)) else {
        return if a == b { 0.0 } else { f64::INFINITY };
    };
    let largest = a_values.iter().filter(|v| v.is_finite()).fold(0.0f64, |max, v| max.max(v.abs()));
    let far = |(x, y): (&f64, &f64)| {
        if x == y || (x.is_nan() && y.is_nan()) {
            0.0
        } else {
            let far = (x - y).abs();
            if far.is_nan() { f64::INFINITY } else { far }
        }
    };
    let most = a_values.iter().zip(&b_values).map(far).fold(0.0f64, f64::max);
    if most == 0.0 { 0.0 } else { most / largest.max(f64::MIN_POSITIVE) }
}

fn floats(tensor: &Tensor) -> Option<Vec<f64>> {
    match tensor.dtype() {
        DataType::Float32 => Some(tensor.values::<f32>().ok()?.iter().map(|&v| f64::from(v)).collect()),
        DataType::Float64 => Some(tensor.values::<f64>().ok()?.to_vec()),
        DataType::Float16 => Some(tensor.values::<half::f16>().ok()?.iter().map(|&v| f64::from(v)).collect()),
        DataType::BFloat16 => Some(tensor.values::<half::bf16>().ok()?.iter().map(|&v| f64::from(v)).collect()),
        DataType::Int8 => Some(tensor.values::<i8>().ok()?.iter().map(|&v| f64::from(v)).collect()),
        DataType::UInt8 => Some(tensor.values::<u8>().ok()?.iter().map(|&v| f64::from(v)).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(a: &[f32], b: &[f32]) -> bool {
        let tensor = |v: &[f32]| Tensor::from_vec([v.len()], v.to_vec()).unwrap();
        disagreement(&["y".to_owned()], &[tensor(a)], &[tensor(b)], FLOAT_TOLERANCE).is_none()
    }

    #[test]
    fn differences_count_relative_to_the_largest_value() {
        assert!(check(&[1.0, 100.0], &[1.5, 100.5]));
        assert!(!check(&[1.0, 100.0], &[1.0, 102.0]));
        assert!(check(&[0.0], &[0.0]));
        assert!(!check(&[0.0], &[0.1]));
        assert!(check(&[f32::NAN, f32::INFINITY], &[f32::NAN, f32::INFINITY]));
        assert!(!check(&[1.0], &[f32::NAN]));
        assert!(!check(&[1.0], &[1.0, 2.0]));
    }

    #[test]
    fn other_types_must_be_equal() {
        let a = [Tensor::from_vec([1], vec![1i64]).unwrap()];
        let b = [Tensor::from_vec([1], vec![2i64]).unwrap()];
        assert!(disagreement(&["y".to_owned()], &a, &b, 1.0).is_some());
        assert!(disagreement(&["y".to_owned()], &a, &a, 0.0).is_none());
        assert!(disagreement(&["y".to_owned()], &a, &[], 0.0).is_some());
    }
}
