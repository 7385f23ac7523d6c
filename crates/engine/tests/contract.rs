//! One contract, passed by every engine: what a session promises its callers.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    num::NonZeroUsize,
    sync::{Barrier, Mutex},
};

use bytes::Bytes;
use edgeward_engine::{
    Cancel, Engine, EngineError, ErrorKind, Provider, Registry, RegistryConfig, RunOptions, Session, SessionOptions,
    Source,
};
use edgeward_graph::{
    DataType, Model, Tensor,
    proto::{
        AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorShapeProto, TypeProto,
        ValueInfoProto,
        tensor_shape_proto::{Dimension, dimension},
        type_proto,
    },
};

/// A dimension of a declared shape: a size or a name.
enum D {
    N(i64),
    S(&'static str),
}

fn port(name: &str, dtype: DataType, dims: &[D]) -> ValueInfoProto {
    let dim = |d: &D| Dimension {
        value: Some(match d {
            D::N(n) => dimension::Value::DimValue(*n),
            D::S(s) => dimension::Value::DimParam((*s).to_owned()),
        }),
        ..Dimension::default()
    };
    let shape = Some(TensorShapeProto { dim: dims.iter().map(dim).collect() });
    let tensor = type_proto::Tensor { elem_type: Some(dtype.to_onnx()), shape };
    let r#type = Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() });
    ValueInfoProto { name: Some(name.to_owned()), r#type, ..ValueInfoProto::default() }
}

fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let own = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
    NodeProto {
        op_type: Some(op.to_owned()),
        name: Some(format!("the_{op}")),
        input: own(inputs),
        output: own(outputs),
        ..NodeProto::default()
    }
}

fn model(nodes: Vec<NodeProto>, input: Vec<ValueInfoProto>, output: Vec<ValueInfoProto>) -> Source {
    let graph = GraphProto { name: Some("g".to_owned()), node: nodes, input, output, ..GraphProto::default() };
    let opset = OperatorSetIdProto { version: Some(17), ..OperatorSetIdProto::default() };
    let proto =
        ModelProto { ir_version: Some(8), opset_import: vec![opset], graph: Some(graph), ..ModelProto::default() };
    Source::Bytes(Bytes::from(Model::from_proto(proto).to_bytes().unwrap()))
}

fn add() -> Source {
    let shape = || [D::S("n"), D::N(2)];
    model(
        vec![node("Add", &["a", "b"], &["sum"]), node("Mul", &["a", "b"], &["product"])],
        vec![port("a", DataType::Float32, &shape()), port("b", DataType::Float32, &shape())],
        vec![port("sum", DataType::Float32, &shape()), port("product", DataType::Float32, &shape())],
    )
}

fn floats(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::from_vec(shape, values.to_vec()).unwrap()
}

fn load(engine: &dyn Engine, source: &Source) -> Box<dyn Session> {
    engine.load(source, &SessionOptions { threads: NonZeroUsize::new(1), ..SessionOptions::default() }).unwrap()
}

fn contract(name: &str) {
    let registry = Registry::new(RegistryConfig::default());
    let engine = match registry.get(name) {
        Ok(engine) => engine,
        Err(e) if std::env::var_os("EDGEWARD_ALL_ENGINES").is_some() => panic!("{e}"),
        Err(e) => return println!("skipped: {e}"),
    };
    runs_by_name(&*engine);
    convolves_without_a_kernels_size(&*engine);
    refuses_wrong_inputs(&*engine);
    keeps_every_type(&*engine);
    writes_into_buffers(&*engine);
    buffers_hold_what_runs_return(&*engine);
    refuses_unknown_providers(&*engine);
    profiles_where_asked(&*engine);
    overlaps(&*engine);
    ends_when_cancelled(&*engine);
    names_what_it_lacks(&*engine);
    refuses_broken_files(&*engine);
}

fn runs_by_name(engine: &dyn Engine) {
    let session = load(engine, &add());
    let (a, b) = (floats(&[2, 2], &[1., 2., 3., 4.]), floats(&[2, 2], &[10., 20., 30., 40.]));
    let all = session.run(&[("b", &b), ("a", &a)], RunOptions::default()).unwrap();
    assert_eq!(all[0].values::<f32>().unwrap().as_ref(), [11., 22., 33., 44.]);
    assert_eq!(all[1].values::<f32>().unwrap().as_ref(), [10., 40., 90., 160.]);
    let wanted = RunOptions { outputs: Some(&["product", "sum", "product"]), cancel: None };
    let some = session.run(&[("a", &a), ("b", &b)], wanted).unwrap();
    assert_eq!(some.len(), 3);
    assert_eq!((&some[0], &some[1], &some[2]), (&all[1], &all[0], &all[1]));
    let empty = floats(&[0, 2], &[]);
    let none = session.run(&[("a", &empty), ("b", &empty)], RunOptions::default()).unwrap();
    assert_eq!(none[0].shape(), [0, 2]);
}

/// The size of the kernel is that of the weights, and what goes with it has defaults.
fn convolves_without_a_kernels_size(engine: &dyn Engine) {
    let ones = floats(&[1, 1, 2, 2], &[1.; 4]);
    for (attribute, expected) in [("strides", vec![10., 18., 42., 50.]), ("dilations", vec![20., 24., 36., 40.])] {
        let mut conv = node("Conv", &["x", "w"], &["y"]);
        conv.attribute.push(AttributeProto::of_ints(attribute, [2, 2]));
        let (x, size) = (port("x", DataType::Float32, &[D::S("n"), D::N(1), D::N(4), D::N(4)]), || D::N(2));
        let w = port("w", DataType::Float32, &[D::N(1), D::N(1), size(), size()]);
        let y = port("y", DataType::Float32, &[D::S("n"), D::N(1), size(), size()]);
        let session = load(engine, &model(vec![conv], vec![x, w], vec![y]));
        let counted: Vec<f32> = (0u8..16).map(f32::from).collect();
        let pictures = floats(&[1, 1, 4, 4], &counted);
        let all = session.run(&[("x", &pictures), ("w", &ones)], RunOptions::default()).unwrap();
        assert_eq!(all[0].values::<f32>().unwrap().as_ref(), expected, "{attribute}");
    }
}

fn refuses_wrong_inputs(engine: &dyn Engine) {
    let session = load(engine, &add());
    let a = floats(&[1, 2], &[1., 2.]);
    let wide = floats(&[1, 3], &[1., 2., 3.]);
    let tall = floats(&[2, 2], &[1., 2., 3., 4.]);
    let flat = floats(&[2], &[1., 2.]);
    let ints = Tensor::from_vec([1, 2], vec![1i32, 2]).unwrap();
    let table: [(&str, Vec<(&str, &Tensor)>, &str); 7] = [
        ("missing", vec![("a", &a)], "`b`"),
        ("unknown", vec![("a", &a), ("b", &a), ("c", &a)], "`c`"),
        ("twice", vec![("a", &a), ("b", &a), ("a", &a)], "twice"),
        ("type", vec![("a", &a), ("b", &ints)], "int32"),
        ("size", vec![("a", &a), ("b", &wide)], "[1, 3]"),
        ("symbol", vec![("a", &a), ("b", &tall)], "`n`"),
        ("rank", vec![("a", &a), ("b", &flat)], "[2]"),
    ];
    for (case, inputs, text) in table {
        let error = session.run(&inputs, RunOptions::default()).expect_err(case);
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{case}: {error}");
        assert!(error.to_string().contains(text), "{case}: {error}");
    }
    let wanted = RunOptions { outputs: Some(&["x"]), cancel: None };
    let error = session.run(&[("a", &a), ("b", &a)], wanted).unwrap_err();
    assert!(error.to_string().contains("`x`"), "{error}");
}

fn keeps_every_type(engine: &dyn Engine) {
    let raw = |dtype: DataType| Tensor::from_raw(dtype, [2], Bytes::from(vec![1u8; dtype.byte_len(2)])).unwrap();
    let strings =
        Tensor::from_strings([2], vec![Bytes::from_static(b"a"), Bytes::from_static("ü".as_bytes())]).unwrap();
    let mut refused = Vec::new();
    use DataType::*;
    for dtype in
        [Float32, Float64, Float16, BFloat16, Int8, Int16, Int32, Int64, UInt8, UInt16, UInt32, UInt64, Bool, String]
    {
        // The high bytes of int64 do not survive engines that compute in 32 bits.
        let value = match dtype {
            String => strings.clone(),
            Int64 => Tensor::from_vec([2], vec![-5i64, 7]).unwrap(),
            _ => raw(dtype),
        };
        let dims = || [D::S("n")];
        let nodes = vec![node("Identity", &["x"], &["y"])];
        let source = model(nodes, vec![port("x", dtype, &dims())], vec![port("y", dtype, &dims())]);
        match engine.load(&source, &SessionOptions::default()) {
            Ok(session) => {
                let outputs = session.run(&[("x", &value)], RunOptions::default()).unwrap();
                assert_eq!(outputs, [value], "{} {dtype}", engine.name());
                assert_eq!(session.outputs()[0].dtype, dtype);
            }
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::Unsupported, "{dtype}: {e}");
                assert!(e.to_string().contains(dtype.name()), "{e}");
                refused.push(dtype);
            }
        }
    }
    let expected: &[DataType] = match engine.name() {
        "rten" => &[Float64, Float16, BFloat16, Int16, UInt16, UInt32, UInt64, String],
        "openvino" => &[String],
        _ => &[],
    };
    assert_eq!(refused, expected, "{}", engine.name());
}

fn writes_into_buffers(engine: &dyn Engine) {
    let session = load(engine, &add());
    let a = floats(&[1, 2], &[1., 2.]);
    let wanted = RunOptions { outputs: Some(&["sum"]), cancel: None };
    let mut buffer = [0u8; 8];
    let shapes = session.run_into(&[("a", &a), ("b", &a)], wanted, &mut [&mut buffer]).unwrap();
    assert_eq!(shapes, [[1, 2]]);
    assert_eq!(buffer, bytemuck::cast::<[f32; 2], [u8; 8]>([2., 4.]));
    let error = session.run_into(&[("a", &a), ("b", &a)], wanted, &mut [&mut buffer[..7]]).unwrap_err();
    assert!(error.to_string().contains('7'), "{error}");
}

/// A caller's buffer gets what a run returns: where the shape is known ahead, where it is not, where the file declares
/// another than the output has, where an output is an input or asked for twice, and at an odd address.
fn buffers_hold_what_runs_return(engine: &dyn Engine) {
    let x = || vec![port("x", DataType::Float32, &[D::S("n"), D::N(2)])];
    let out = |dims: &[D]| vec![port("y", DataType::Float32, dims)];
    let relu = || vec![node("Relu", &["x"], &["y"])];
    let chain = || vec![node("Neg", &["x"], &["y"]), node("Relu", &["y"], &["z"])];
    let two =
        vec![port("y", DataType::Float32, &[D::S("n"), D::N(2)]), port("z", DataType::Float32, &[D::S("m"), D::N(2)])];
    let table = [
        ("symbol", model(relu(), x(), out(&[D::S("n"), D::N(2)])), vec!["y"]),
        ("unknown", model(relu(), x(), out(&[D::S("m"), D::N(2)])), vec!["y"]),
        ("both", model(chain(), x(), two), vec!["z", "y"]),
        ("twice", model(relu(), x(), out(&[D::S("n"), D::N(2)])), vec!["y", "y"]),
        ("copied", model(vec![node("Identity", &["x"], &["y"])], x(), out(&[D::S("n"), D::N(2)])), vec!["y"]),
        ("misdeclared", model(vec![node("Transpose", &["x"], &["y"])], x(), out(&[D::S("n"), D::N(2)])), vec!["y"]),
    ];
    // Few bytes and many: an engine may treat them differently.
    let inputs = [3, 50_000].map(|rows| floats(&[rows, 2], &[1., -2.].repeat(rows)));
    for (case, source, wanted) in table {
        // Another shape than the operators give is for an engine to refuse, if it likes.
        let options = SessionOptions::default();
        let session = match engine.load(&source, &options) {
            Err(_) if case == "misdeclared" => continue,
            loaded => loaded.unwrap(),
        };
        let options = RunOptions { outputs: Some(&wanted), cancel: None };
        for input in &inputs {
            let expected = match session.run(&[("x", input)], options) {
                Err(_) if case == "misdeclared" => continue,
                ran => ran.unwrap(),
            };
            // Odd addresses as well.
            for skew in [0, 8, 1] {
                let length = input.raw().unwrap().len();
                let mut memory = vec![vec![0xAAu8; length + 16]; wanted.len()];
                let start = |m: &[u8]| m.as_ptr().align_offset(8) + skew;
                let mut buffers: Vec<&mut [u8]> = memory
                    .iter_mut()
                    .map(|m| {
                        let start = start(m);
                        &mut m[start..start + length]
                    })
                    .collect();
                let shapes = session.run_into(&[("x", input)], options, &mut buffers).unwrap();
                for ((tensor, shape), buffer) in expected.iter().zip(shapes).zip(&buffers) {
                    let at = format!("{} {case} {} bytes at {skew}", engine.name(), length);
                    assert_eq!(tensor.shape(), shape, "{at}");
                    assert!(tensor.raw().unwrap().as_ref() == &**buffer, "{at}");
                }
            }
            // The buffers are gone; a run that still knew them would write there.
            assert_eq!(session.run(&[("x", input)], options).unwrap(), expected, "{} {case}", engine.name());
        }
    }
}

fn refuses_unknown_providers(engine: &dyn Engine) {
    let load = |name: &str, options: &[(&str, &str)]| {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let providers = vec![Provider { name: name.to_owned(), options }];
        engine.load(&add(), &SessionOptions { providers, ..SessionOptions::default() })
    };
    assert!(load("CPU", &[]).is_ok(), "{}", engine.name());
    let offered = engine.info().providers;
    for (name, options, texts) in [
        ("NoSuchProvider", vec![], vec!["`NoSuchProvider`", &offered[0]]),
        (
            "CPU",
            vec![("NO_SUCH_KEY", "1")],
            vec![if engine.name() == "onnxruntime" { "no options" } else { "NO_SUCH_KEY" }],
        ),
        ("CPU", vec![("a\0b", "1")], vec![]),
    ] {
        let error = load(name, &options).err().expect("no engine has this provider");
        assert!(matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::InvalidInput), "{error}");
        texts.iter().for_each(|text| assert!(error.to_string().contains(text), "{error}"));
    }
    if engine.name() == "openvino" {
        // A setting that is taken up changes what can be set beside it.
        assert!(load("CPU", &[("PERFORMANCE_HINT", "LATENCY")]).is_ok());
        assert!(load("CPU", &[("PERFORMANCE_HINT", "SOONER")]).is_err());
    }
}

fn profiles_where_asked(engine: &dyn Engine) {
    let x = floats(&[1, 2], &[1., 2.]);
    for profile in [false, true] {
        let session = engine.load(&add(), &SessionOptions { profile, ..SessionOptions::default() }).unwrap();
        session.run(&[("a", &x), ("b", &x)], RunOptions::default()).unwrap();
        match session.profile() {
            Some(found) => assert!(profile && found.runs == 1 && !found.nodes.is_empty(), "{found:?}"),
            // The built-in engine has no times to read.
            None => assert!(!profile || engine.name() == "rten", "{}", engine.name()),
        }
    }
}

fn overlaps(engine: &dyn Engine) {
    let session = load(engine, &add());
    std::thread::scope(|scope| {
        for i in 0..8u8 {
            let session = &session;
            scope.spawn(move || {
                let x = floats(&[1, 2], &[f32::from(i), 1.]);
                for _ in 0..200 {
                    let out = session.run(&[("a", &x), ("b", &x)], RunOptions::default()).unwrap();
                    assert_eq!(out[0].values::<f32>().unwrap().as_ref(), [2. * f32::from(i), 2.]);
                }
            });
        }
    });
}

/// A chain of products of `x0`, square matrices of that size, or of any where none.
fn chain(steps: usize, size: Option<usize>) -> Source {
    let names: Vec<String> = (0..=steps).map(|i| format!("x{i}")).collect();
    let step = |i: usize| NodeProto {
        name: Some(format!("step{i}")),
        ..node("MatMul", &[&names[i], "x0"], &[if i + 1 == steps { "y" } else { &names[i + 1] }])
    };
    let square = || [(); 2].map(|()| size.map_or(D::S("n"), |n| D::N(n as i64)));
    let end = |name: &str| vec![port(name, DataType::Float32, &square())];
    model((0..steps).map(step).collect(), end("x0"), end("y"))
}

/// A square whose powers are itself.
fn idempotent(size: usize) -> Tensor {
    floats(&[size, size], &vec![1.0 / size as f32; size * size])
}

/// A cancelled run ends with that, one of minutes at once where the engine can be told, and the session runs on as if
/// nothing had been, with other shapes as well.
fn ends_when_cancelled(engine: &dyn Engine) {
    let mut table = vec![(16, Some(512), 512), (16, None, 64)];
    if engine.name() != "rten" {
        table.push((500, Some(2048), 0));
    }
    for (steps, declared, after) in table {
        let session = load(engine, &chain(steps, declared));
        let size = declared.unwrap_or(512);
        let told = engine.name() == "onnxruntime" || engine.name() == "openvino" && declared.is_some();
        let x = idempotent(size);
        let check = |size: usize| {
            let x = idempotent(size);
            let (never, mut buffer) = (Cancel::default(), vec![0u8; size * size * 4]);
            let options = RunOptions { outputs: None, cancel: Some(&never) };
            let made = session.run(&[("x0", &x)], options).unwrap();
            session.run_into(&[("x0", &x)], options, &mut [&mut buffer]).unwrap();
            assert!(made[0].raw().unwrap().as_ref() == buffer, "{}", engine.name());
            let near = |v: &f32| (v * size as f32 - 1.0).abs() < 1e-3;
            assert!(made[0].values::<f32>().unwrap().iter().all(near), "{} {steps} {size}", engine.name());
            assert_eq!(never.under_way(), 0);
        };
        let buffer = Mutex::new(vec![0u8; size * size * 4]);
        let run = |options: RunOptions<'_>| session.run(&[("x0", &x)], options).map(drop);
        let into = |options: RunOptions<'_>| {
            session.run_into(&[("x0", &x)], options, &mut [&mut buffer.lock().unwrap()]).map(drop)
        };
        let calls: [&(dyn Fn(RunOptions<'_>) -> Result<(), EngineError> + Sync); 2] = [&run, &into];
        for call in calls {
            let before = Cancel::default();
            before.cancel();
            let refused = call(RunOptions { outputs: None, cancel: Some(&before) });
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::Cancelled, "{}", engine.name());
            assert_eq!(ended(call, told), Err(ErrorKind::Cancelled), "{} {steps} {declared:?}", engine.name());
            if after > 0 {
                check(after);
                check(size);
            }
        }
    }
}

/// What a run comes to that is cancelled: while it is under way, where its engine is `told` then.
fn ended(run: &(dyn Fn(RunOptions<'_>) -> Result<(), EngineError> + Sync), told: bool) -> Result<(), ErrorKind> {
    let (cancel, started) = (Cancel::default(), Barrier::new(2));
    std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            started.wait();
            run(RunOptions { outputs: None, cancel: Some(&cancel) })
        });
        started.wait();
        while told && cancel.under_way() == 0 {
            assert!(!running.is_finished(), "it ended before it was noticed");
            std::thread::yield_now();
        }
        // More than once: the library may not have taken note of the run yet.
        while !running.is_finished() {
            cancel.cancel();
            std::thread::yield_now();
        }
        running.join().unwrap().map_err(|e| e.kind())
    })
}

fn names_what_it_lacks(engine: &dyn Engine) {
    let nodes = vec![node("Frobnicate", &["x"], &["y"])];
    let dims = || [D::N(1)];
    let source = model(nodes, vec![port("x", DataType::Float32, &dims())], vec![port("y", DataType::Float32, &dims())]);
    let error = engine.load(&source, &SessionOptions::default()).err().expect("no engine has this operator");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("Frobnicate"), "{error}");
}

fn refuses_broken_files(engine: &dyn Engine) {
    let Source::Bytes(whole) = add() else { unreachable!() };
    for length in 0..whole.len() {
        // A cut may fall between two fields, so some prefixes are models; none may do more than fail.
        let _ = engine.load(&Source::Bytes(whole.slice(..length)), &SessionOptions::default());
    }
    let error =
        engine.load(&Source::Bytes(Bytes::from_static(b"\x08\xffhello")), &SessionOptions::default()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidModel, "{error}");
    let error = engine.load(&Source::File("no/such.onnx".into()), &SessionOptions::default()).err().unwrap();
    assert!(error.to_string().contains("no/such.onnx"), "{error}");
}

#[test]
fn rten() {
    contract("rten");
}

#[test]
fn onnxruntime() {
    contract("onnxruntime");
}

#[test]
fn openvino() {
    contract("openvino");
}
