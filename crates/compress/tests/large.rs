//! Quantised layer by layer into a file: the same graph as in memory, and nothing else left.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{fs, path::Path};

use edgeward_compress::{
    BlockBits, CompressError, Convolutions, DynamicSpec, LargeForm, Prepared, WeightBits, large_bytes_max, prepare,
    prepare_in_place, quantise_blocks, quantise_dynamic, quantise_large,
};
use edgeward_graph::{Limits, Model, check, proto::AttributeProto, tensor_proto};
use support::{Builder, batches, engines, load, run};

/// A table, products by both layouts of weights, one of them of inputs that are no whole blocks, a factor, and a normalisation.
fn graph() -> Model {
    let mut b = Builder::new(&[4, 64]);
    b.drawn("w0", &[64, 96], 1).drawn("w1", &[70, 96], 2).drawn("b1", &[70], 3).drawn("w2", &[70, 32], 4);
    b.node("MatMul", &["x", "w0"], "m", vec![]).node("Relu", &["m"], "r", vec![]);
    b.node("Gemm", &["r", "w1", "b1"], "g", vec![AttributeProto::of_int("transB", 1)]);
    b.node("MatMul", &["g", "w2"], "p", vec![]);
    b.drawn("table", &[512, 32], 5);
    let ids = edgeward_graph::Tensor::from_vec([4], vec![1i64, 500, 7, 0]).unwrap();
    b.graph.initializer.push(tensor_proto("ids", &ids));
    b.node("Identity", &["ids"], "which", vec![]).node("Gather", &["table", "which"], "rows", vec![]);
    b.node("Add", &["p", "rows"], "y", vec![]);
    b.model(&[("y", &[4, 32])])
}

/// The graph with its weights in a file beside it, mapped.
fn opened(folder: &Path) -> Model {
    let path = folder.join("model.onnx");
    graph().write_external(&path, 256).unwrap();
    Model::read(&path, &Limits::default()).unwrap()
}

const FORMS: [LargeForm; 3] = [
    LargeForm::Dynamic(WeightBits::Eight),
    LargeForm::Blocks(BlockBits::Four, 32),
    LargeForm::Blocks(BlockBits::Eight, 32),
];

fn in_memory(prepared: &Prepared, form: LargeForm) -> Model {
    let quantised = match form {
        LargeForm::Dynamic(weights) => {
            let (convolutions, keep) = (Convolutions::Floats, Default::default());
            quantise_dynamic(prepared, &DynamicSpec { weights, convolutions, keep })
        }
        LargeForm::Blocks(bits, block) => quantise_blocks(prepared, bits, block),
    };
    quantised.unwrap().model
}

#[test]
fn what_is_written_is_what_is_made_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let model = opened(folder.path());
    let prepared = prepare_in_place(&model).unwrap();
    for form in FORMS {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("small.onnx");
        let layers = quantise_large(&prepared, form, &path, &mut |_, _| Ok(())).unwrap();
        assert_eq!(layers, if form == FORMS[0] { 3 } else { 2 }, "{form:?}");
        let mut written = Model::read(&path, &Limits::default()).unwrap();
        assert_eq!(written.external_locations().unwrap(), ["small.onnx.data"]);
        check(&written).unwrap();
        let size = |name: &str| fs::metadata(home.path().join(name)).unwrap().len();
        assert!(size("small.onnx") + size("small.onnx.data") <= large_bytes_max(&prepared, form), "{form:?}");
        written.inline_external().unwrap();
        assert_eq!(written.proto(), in_memory(&prepare(&graph()).unwrap(), form).proto(), "{form:?}");
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 2);
    }
}

#[test]
fn the_files_run() {
    let folder = tempfile::tempdir().unwrap();
    let model = opened(folder.path());
    let prepared = prepare_in_place(&model).unwrap();
    for engine in engines() {
        for form in FORMS {
            let path = folder.path().join("small.onnx");
            quantise_large(&prepared, form, &path, &mut |_, _| Ok(())).unwrap();
            let mut written = Model::read(&path, &Limits::default()).unwrap();
            written.inline_external().unwrap();
            if load(engine.as_ref(), &written).is_err() {
                println!("skipped: {} does not run {form:?}", engine.name());
                continue;
            }
            for inputs in &batches(&[4, 64], 3) {
                let (before, after) = (run(engine.as_ref(), &graph(), inputs), run(engine.as_ref(), &written, inputs));
                let least = if form == FORMS[1] { 15.0 } else { 30.0 };
                let ratio = support::decibels(&before, &after);
                assert!(ratio > least, "{} {form:?}: {ratio:.1} dB", engine.name());
            }
        }
    }
}

#[test]
fn layers_are_written_one_by_one_and_half_a_file_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let model = opened(folder.path());
    let prepared = prepare_in_place(&model).unwrap();
    let home = tempfile::tempdir().unwrap();
    let bytes = || -> u64 { fs::read_dir(home.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum() };
    let mut seen = vec![0];
    let stopped = quantise_large(&prepared, FORMS[0], &home.path().join("small.onnx"), &mut |done, all| {
        seen.push(bytes());
        if done == 2 { Err(CompressError::Data(format!("stopped at {done} of {all}"))) } else { Ok(()) }
    });
    assert_eq!(stopped.unwrap_err().to_string(), "stopped at 2 of 3");
    assert!(seen.len() == 3 && seen.is_sorted_by(|a, b| a < b), "{seen:?}");
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
    let gone = home.path().join("gone/small.onnx");
    let error = quantise_large(&prepared, FORMS[0], &gone, &mut |_, _| Ok(())).unwrap_err();
    assert!(error.to_string().contains("cannot write") && error.to_string().contains("small.onnx.data"), "{error}");
}

#[test]
fn a_graph_without_layers_leaves_no_file() {
    let mut b = Builder::new(&[2, 6]);
    b.node("Relu", &["x"], "y", vec![]);
    let prepared = prepare_in_place(&b.model(&[("y", &[2, 6])])).unwrap();
    let home = tempfile::tempdir().unwrap();
    assert_eq!(quantise_large(&prepared, FORMS[1], &home.path().join("m.onnx"), &mut |_, _| Ok(())).unwrap(), 0);
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
}

#[test]
fn what_would_copy_weights_stays() {
    let mut b = Builder::new(&[1, 2, 8, 8]);
    b.drawn("w", &[4, 2, 3, 3], 1);
    for name in ["scale", "shift", "mean", "variance"] {
        b.floats(name, &[4], vec![0.5; 4]);
    }
    b.node("Conv", &["x", "w"], "c", vec![]);
    b.node("BatchNormalization", &["c", "scale", "shift", "mean", "variance"], "y", vec![]);
    let model = b.model(&[("y", &[1, 4, 6, 6])]);
    assert_eq!(prepare(&model).unwrap().folded, 1);
    let prepared = prepare_in_place(&model).unwrap();
    assert_eq!(prepared.folded, 0);
    assert!(prepared.model.graph().node.iter().any(|node| node.op_type() == "BatchNormalization"));
}
