//! Bytes of a stranger as a model: read, check, infer, fold, sort, rewrite and write must end in a model or an error.

#![no_main]

use bytes::Bytes;
use edgeward_graph::{FoldLimits, Limits, Model, check, cost, fold_constants, infer, stats};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let limits = Limits { structure_bytes: 64 << 20, tensor_bytes: 16 << 20, ..Limits::default() };
    let Ok(mut model) = Model::from_bytes(Bytes::copy_from_slice(data), &limits) else { return };
    let sound = check(&model).is_ok();
    let _ = stats(&model);
    if let Ok(inferred) = infer(&model, &Default::default()) {
        let _ = cost(&model, &inferred);
    }
    let ports = (model.inputs(), model.outputs());
    let mut folded = model.clone();
    fold_constants(&mut folded, &FoldLimits { value_bytes: 1 << 20, total_bytes: 4 << 20 });
    assert_eq!((folded.inputs(), folded.outputs()), ports, "folding changes what callers see");
    assert!(!sound || check(&folded).is_ok(), "folding breaks a sound model");
    if let Some(graph) = &mut model.proto_mut().graph {
        let _ = graph.sort_nodes();
        if !graph.node.is_empty() {
            let _ = graph.remove_node(graph.node.len() / 2);
        }
        graph.drop_dead_nodes();
        let name = graph.fresh_name("x");
        graph.rename_value("x", &name);
    }
    let written = model.to_bytes().expect("what was read can be written");
    let again = Model::from_bytes(written.clone().into(), &Limits::default()).expect("what was written can be read");
    assert!(!sound || again.to_bytes().is_ok_and(|bytes| bytes == written), "a round trip changes a sound model");
});
