//! Made-up values that a model can digest: the same ones in every run.

use std::collections::HashMap;

use edgeward_engine::TensorInfo;
use edgeward_graph::{DataType, Element, Model, Tensor, TensorError};

/// Values for one input; integers stay below `bound` (token identifiers index a table of that many rows).
pub fn make(info: &TensorInfo, shape: &[usize], bound: Option<u64>) -> Result<Tensor, TensorError> {
    let count = shape.iter().product();
    let mut random = Random::new(&info.name);
    let limit = bound.unwrap_or_else(|| default_bound(&info.name)).max(1);
    macro_rules! integers {
        ($($dtype:ident => $rust:ty),*) => {
            match info.dtype {
                $(DataType::$dtype => {
                    let values: Vec<$rust> = (0..count).map(|_| integer(&mut random, &info.name, limit) as $rust).collect();
                    Tensor::from_vec(shape, values)
                })*
                DataType::Float32 => floats::<f32>(shape, count, &mut random, |v| v),
                DataType::Float64 => floats::<f64>(shape, count, &mut random, f64::from),
                DataType::Bool => Tensor::from_bools(shape, vec![true; count]),
                DataType::String => Tensor::from_strings(shape, vec![bytes::Bytes::from_static(b"edgeward"); count]),
                other => Tensor::from_raw(other, shape, vec![0; other.byte_len(count)].into()),
            }
        };
    }
    integers!(Int8 => i8, Int16 => i16, Int32 => i32, Int64 => i64, UInt8 => u8, UInt16 => u16, UInt32 => u32, UInt64 => u64)
}

fn floats<T: Element + Send + Sync>(
    shape: &[usize],
    count: usize,
    random: &mut Random,
    convert: impl Fn(f32) -> T,
) -> Result<Tensor, TensorError> {
    Tensor::from_vec(shape, (0..count).map(|_| convert(random.unit())).collect())
}

/// Masks are all ones, everything else is drawn.
fn integer(random: &mut Random, name: &str, limit: u64) -> u64 {
    if name.contains("mask") { 1 } else { random.next() % limit }
}

fn default_bound(name: &str) -> u64 {
    if name.contains("ids") && !name.contains("type") { 100 } else { 2 }
}

/// Inputs that select rows of a table (`Gather` on a constant) and how many rows it has.
pub fn index_bounds(model: &Model) -> HashMap<String, u64> {
    let graph = model.graph();
    let rows: HashMap<&str, &[i64]> = graph.initializer.iter().map(|t| (t.name(), t.dims.as_slice())).collect();
    let mut source: HashMap<&str, &str> = HashMap::new();
    let mut bounds = HashMap::new();
    for node in &graph.node {
        let (Some(first), Some(output)) = (node.input.first(), node.output.first()) else { continue };
        if matches!(node.op_type(), "Cast" | "Identity") {
            let origin = source.get(first.as_str()).copied().unwrap_or(first);
            source.insert(output, origin);
        }
        if let ("Gather", Some(indices), Some(dims)) = (node.op_type(), node.input.get(1), rows.get(first.as_str())) {
            let origin = source.get(indices.as_str()).copied().unwrap_or(indices);
            let axis = node.attribute.iter().find(|a| a.name() == "axis").map_or(0, |a| a.i());
            let size = usize::try_from(axis).ok().and_then(|axis| dims.get(axis)).copied().unwrap_or(1);
            let bound = bounds.entry(origin.to_owned()).or_insert(u64::MAX);
            *bound = (*bound).min(u64::try_from(size).unwrap_or(1));
        }
    }
    bounds
}

/// SplitMix64, seeded by the input's name: every run of every engine sees the same values.
struct Random(u64);

impl Random {
    fn new(seed: &str) -> Self {
        Self(
            seed.bytes()
                .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)),
        )
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &str, dtype: DataType) -> TensorInfo {
        TensorInfo { name: name.to_owned(), dtype, shape: None }
    }

    #[test]
    fn every_type_has_values() {
        for &dtype in DataType::ALL {
            let tensor = make(&info("x", dtype), &[2, 3], None).unwrap();
            assert_eq!((tensor.dtype(), tensor.shape()), (dtype, [2, 3].as_slice()));
        }
    }

    #[test]
    fn values_repeat_and_stay_in_bounds() {
        let ids = info("input_ids", DataType::Int64);
        let once = make(&ids, &[1000], Some(7)).unwrap();
        assert_eq!(once, make(&ids, &[1000], Some(7)).unwrap());
        assert!(once.values::<i64>().unwrap().iter().all(|v| (0..7).contains(v)));
        let mask = make(&info("attention_mask", DataType::Int64), &[4], None).unwrap();
        assert_eq!(*mask.values::<i64>().unwrap(), [1; 4]);
        let floats = make(&info("image", DataType::Float32), &[1000], None).unwrap();
        assert!(floats.values::<f32>().unwrap().iter().all(|v| (0.0..1.0).contains(v)));
    }
}
