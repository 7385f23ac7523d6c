//! Nodes whose attributes and sizes make no sense: an error or a graph, and neither a panic nor endless memory.

mod support;

use edgeward_graph::{
    DataType, Tensor,
    proto::{AttributeProto, ValueInfoProto},
};
use edgeward_train::differentiate;
use proptest::prelude::*;
use support::{model, node, port};

const KINDS: [(&str, &[&str]); 22] = [
    ("Conv", &["kernel_shape", "strides", "dilations", "pads", "group"]),
    ("ConvTranspose", &["kernel_shape", "strides", "dilations", "pads", "group", "output_padding"]),
    ("MaxPool", &["kernel_shape", "strides", "pads", "ceil_mode"]),
    ("AveragePool", &["kernel_shape", "strides", "pads", "ceil_mode", "count_include_pad"]),
    ("GlobalAveragePool", &[]),
    ("BatchNormalization", &[]),
    ("GroupNormalization", &["num_groups"]),
    ("InstanceNormalization", &[]),
    ("LayerNormalization", &["axis"]),
    ("Softmax", &["axis"]),
    ("ReduceMean", &["axes", "keepdims"]),
    ("Transpose", &["perm"]),
    ("Concat", &["axis"]),
    ("Split", &["axis"]),
    ("Slice", &[]),
    ("Pad", &[]),
    ("Tile", &[]),
    ("Gather", &["axis"]),
    ("GatherND", &["batch_dims"]),
    ("DepthToSpace", &["blocksize"]),
    ("Resize", &["axes"]),
    ("LSTM", &["hidden_size", "layout"]),
];

fn number() -> impl Strategy<Value = i64> {
    prop_oneof![6 => -3i64..9, 1 => Just(i64::MAX), 1 => Just(i64::MIN), 1 => 1000i64..1_000_000_000_000]
}

fn size() -> impl Strategy<Value = i64> {
    prop_oneof![8 => 0i64..9, 1 => Just(i64::MAX), 1 => 1000i64..1_000_000_000_000]
}

fn declared(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dims: Vec<String> = dims.iter().map(ToString::to_string).collect();
    port(name, DataType::Float32, &dims.iter().map(String::as_str).collect::<Vec<_>>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_panics(
        kind in 0..KINDS.len(),
        lists in prop::collection::vec(prop::collection::vec(number(), 0..5), 6),
        shapes in prop::collection::vec(prop::collection::vec(size(), 0..5), 5),
        constants in prop::collection::vec(prop::collection::vec(number(), 0..5), 5),
        as_inputs in 0u8..32,
        count in 1usize..6,
    ) {
        let (op, names) = KINDS[kind];
        let single = ["group", "ceil_mode", "axis", "keepdims", "blocksize", "hidden_size", "layout", "num_groups",
            "count_include_pad", "batch_dims"];
        let attributes = names.iter().zip(&lists).filter(|(_, list)| !list.is_empty()).map(|(name, list)| {
            if single.contains(name) { AttributeProto::of_int(name, list[0]) } else { AttributeProto::of_ints(name, list.clone()) }
        });
        let inputs = ["x", "b", "c", "d", "e"];
        let mut ports = vec![declared("x", &shapes[0])];
        let mut weights = Vec::new();
        for (i, name) in inputs.iter().enumerate().skip(1) {
            if as_inputs >> i & 1 == 1 {
                ports.push(declared(name, &shapes[i]));
            } else {
                weights.push((*name, Tensor::from_vec([constants[i].len()], constants[i].clone()).unwrap()));
            }
        }
        let by: Vec<String> = ports.iter().map(|p| p.name().to_owned()).collect();
        let nodes = vec![node(op, &inputs[..count], &["y"], attributes.collect())];
        let forward = model(nodes, ports, vec![declared("y", &shapes[4])], weights);
        for of in &by {
            // Whether it is refused or not is for other tests.
            let _ = differentiate(&forward, &["y".to_owned()], std::slice::from_ref(of));
        }
    }
}

#[test]
fn nothing_is_not_resampled_to_a_size_without_end() {
    let sizes = Tensor::from_vec([2], vec![1, 1_000_000_000_000i64]).unwrap();
    let nodes = vec![node("Resize", &["x", "", "", "sizes"], &["y"], Vec::new())];
    let y = declared("y", &[1, 1_000_000_000_000]);
    let forward = model(nodes, vec![declared("x", &[1, 0])], vec![y], vec![("sizes", sizes)]);
    let refused = differentiate(&forward, &["y".to_owned()], &["x".to_owned()]).unwrap_err();
    assert!(refused.to_string().contains("size 0"), "{refused}");
}
