//! `edgeward inspect`: what a model is, and which engines can run it.

use std::{collections::BTreeMap, path::PathBuf};

use edgeward_engine::{Registry, SessionOptions, Source};
use edgeward_graph::{Dimension, ErrorKind, Model, Port};
use serde::Serialize;

use crate::{
    Context, engines,
    failure::{Failure, Outcome},
    print,
};

/// Options of `inspect`.
#[derive(clap::Args)]
pub struct InspectArgs {
    /// ONNX file
    model: PathBuf,
    /// Do not try which engines load it
    #[arg(long)]
    no_engines: bool,
    /// Size of a dimension that the model names, e.g. `batch=1`; 1 for every other
    #[arg(long = "dim", value_name = "NAME=SIZE", value_parser = named_size)]
    dims: Vec<(String, usize)>,
}

fn named_size(text: &str) -> Result<(String, usize), String> {
    let (name, size) = text.split_once('=').ok_or("expected NAME=SIZE, e.g. `batch=1`")?;
    let size = size.parse().map_err(|_| format!("`{size}` is no size"))?;
    Ok((name.to_owned(), size))
}

#[derive(Serialize)]
struct Report {
    model: String,
    producer: String,
    ir_version: i64,
    opset: i64,
    opsets: Vec<Opset>,
    inputs: Vec<Value>,
    outputs: Vec<Value>,
    nodes: usize,
    operators: Vec<Operator>,
    parameters: u64,
    initializer_bytes: u64,
    file_bytes: u64,
    /// Of convolutions, matrix products and recurrent layers; none where the shapes are not known.
    multiply_adds: Option<u64>,
    /// The same by operator type, most first.
    multiply_adds_by_operator: serde_json::Map<String, serde_json::Value>,
    /// What it is counted for, and where shapes stay unknown.
    multiply_adds_note: String,
    /// What the checker finds wrong, and versions that it does not know.
    problems: Vec<String>,
    /// Rules of ONNX are broken: no engine is given the model.
    broken: bool,
    engines: Vec<EngineVerdict>,
}

#[derive(Serialize)]
struct Opset {
    domain: String,
    version: i64,
}

#[derive(Serialize)]
struct Value {
    name: String,
    datatype: Option<&'static str>,
    shape: Option<Vec<Size>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Size {
    Fixed(usize),
    Symbol(String),
    Unknown(()),
}

#[derive(Serialize)]
struct Operator {
    name: String,
    count: usize,
}

#[derive(Serialize)]
struct EngineVerdict {
    name: &'static str,
    version: Option<String>,
    runs: bool,
    load_ms: Option<f64>,
    reason: Option<String>,
}

/// Runs the command.
pub fn run(args: &InspectArgs, context: &Context) -> Outcome {
    engines::check_file(&args.model)?;
    let model = engines::read_model(&args.model)?;
    let mut report = describe(args, &model)?;
    if !args.no_engines {
        let registry = engines::registry(&context.settings.engine);
        report.engines = registry.names().iter().map(|name| verdict(&registry, name, args)).collect();
    }
    if context.json {
        print::json(&report)?
    } else {
        print_report(&report)?
    }
    if !report.broken {
        return Ok(());
    }
    let (count, model) = (report.problems.len(), &report.model);
    Err(Failure::told(format!(
        "model `{model}` breaks the rules of ONNX in {count} places, which are listed as problems"
    )))
}

fn describe(args: &InspectArgs, model: &Model) -> Result<Report, Failure> {
    let stats = edgeward_graph::stats(model);
    let proto = model.proto();
    let opsets = proto.opset_import.iter().map(|opset| Opset {
        domain: if opset.domain().is_empty() { "ai.onnx".to_owned() } else { opset.domain().to_owned() },
        version: opset.version(),
    });
    let (cost, note) = cost(model, args)?;
    let problems = edgeward_graph::check(model).err().unwrap_or_default();
    Ok(Report {
        model: args.model.display().to_string(),
        producer: [proto.producer_name(), proto.producer_version()].join(" ").trim().to_owned(),
        ir_version: proto.ir_version(),
        opset: model.opset(),
        opsets: opsets.collect(),
        inputs: model.inputs().into_iter().map(value).collect(),
        outputs: model.outputs().into_iter().map(value).collect(),
        nodes: stats.nodes,
        operators: stats.operators.into_iter().map(|(name, count)| Operator { name, count }).collect(),
        parameters: stats.parameters,
        initializer_bytes: stats.initializer_bytes,
        file_bytes: std::fs::metadata(&args.model)?.len(),
        multiply_adds: cost.unknown.is_none().then_some(cost.total),
        multiply_adds_by_operator: cost.operators.into_iter().map(|(op, n)| (op, n.into())).collect(),
        multiply_adds_note: note,
        broken: problems.iter().any(|e| e.kind() != ErrorKind::Unsupported),
        problems: problems.iter().map(ToString::to_string).collect(),
        engines: Vec::new(),
    })
}

/// Multiply-adds with every symbol given a size, and what that size is.
fn cost(model: &Model, args: &InspectArgs) -> Result<(edgeward_graph::Cost, String), Failure> {
    let symbols = model.inputs().into_iter().flat_map(|input| input.shape.unwrap_or_default());
    let named = symbols.filter_map(|dim| if let Dimension::Symbol(name) = dim { Some((name, 1)) } else { None });
    let mut sizes: BTreeMap<String, usize> = named.collect();
    for (name, size) in &args.dims {
        if sizes.insert(name.clone(), *size).is_none() {
            let known = sizes.keys().filter(|known| *known != name).cloned().collect::<Vec<_>>().join("`, `");
            return Err(Failure::input(format!("no input has a dimension `{name}`; there are `{known}`")));
        }
    }
    let sized: Vec<String> = sizes.iter().map(|(name, size)| format!("{name}={size}")).collect();
    let of_sizes = if sized.is_empty() { String::new() } else { format!("for {}", sized.join(", ")) };
    let inferred = match edgeward_graph::infer(model, &sizes) {
        Ok(inferred) => inferred,
        Err(e) => {
            let other = if sized.is_empty() { "" } else { "; other sizes: `--dim NAME=SIZE`" };
            let note = format!("not counted {of_sizes}: {e}{other}").replace(" :", ":");
            return Ok((edgeward_graph::Cost { unknown: Some(e.to_string()), ..Default::default() }, note));
        }
    };
    let cost = edgeward_graph::cost(model, &inferred);
    let note = match &cost.unknown {
        Some(node) => {
            let why = undecided(model).map_or(String::new(), |why| format!("; {why}"));
            format!("not counted: the shapes of {node} are not known {of_sizes}").trim_end().to_owned() + &why
        }
        None => of_sizes,
    };
    Ok((cost, note))
}

/// What keeps shapes open whatever sizes are given.
fn undecided(model: &Model) -> Option<String> {
    let mut found = std::collections::BTreeSet::new();
    edgeward_graph::walk::nodes(model.proto(), &mut |node| {
        if matches!(node.op_type(), "If" | "Loop" | "Scan") {
            found.insert(node.op_type());
        }
    });
    let found = found.into_iter().collect::<Vec<_>>().join("`, `");
    (!found.is_empty())
        .then(|| format!("what its `{found}` do depends on what the inputs hold; `edgeward bench` measures a run"))
}

fn value(port: Port) -> Value {
    let size = |dim| match dim {
        Dimension::Fixed(size) => Size::Fixed(size),
        Dimension::Symbol(name) => Size::Symbol(name),
        Dimension::Unknown => Size::Unknown(()),
    };
    let shape = port.shape.map(|dims| dims.into_iter().map(size).collect());
    Value { name: port.name, datatype: port.dtype.map(|dtype| dtype.name()), shape }
}

/// Really loads the model: only that shows whether an engine can run it.
fn verdict(registry: &Registry, name: &'static str, args: &InspectArgs) -> EngineVerdict {
    let mut verdict = EngineVerdict { name, version: None, runs: false, load_ms: None, reason: None };
    let engine = match registry.get(name) {
        Ok(engine) => engine,
        Err(error) => return EngineVerdict { reason: Some(error.message().to_owned()), ..verdict },
    };
    verdict.version = Some(engine.info().version);
    let began = std::time::Instant::now();
    match engine.load(&Source::File(args.model.clone()), &SessionOptions::default()) {
        Ok(_session) => EngineVerdict { runs: true, load_ms: Some(began.elapsed().as_secs_f64() * 1e3), ..verdict },
        Err(error) => EngineVerdict { reason: Some(error.message().to_owned()), ..verdict },
    }
}

fn print_report(report: &Report) -> Outcome {
    let opsets: Vec<_> = report.opsets.iter().map(|opset| format!("{} {}", opset.domain, opset.version)).collect();
    let producer = if report.producer.is_empty() { String::new() } else { format!(", made by {}", report.producer) };
    print::line(&format!("{}  opset {}{producer}", report.model, opsets.join(", ")))?;
    let ports = |kind: &str, values: &[Value]| -> Vec<Vec<String>> {
        let row = |value: &Value| {
            vec![kind.to_owned(), value.name.clone(), value.datatype.unwrap_or("no tensor").to_owned(), shape(value)]
        };
        values.iter().map(row).collect()
    };
    let mut rows = ports("input", &report.inputs);
    rows.extend(ports("output", &report.outputs));
    print::table(&["", "name", "type", "shape"], rows, 4)?;
    print::line(&format!(
        "{} nodes, {} parameters, {} of tensors",
        print::thousands(report.nodes as u64),
        print::count(report.parameters),
        print::bytes(report.initializer_bytes),
    ))?;
    print::line(&match report.multiply_adds {
        Some(count) => {
            format!("{} multiply-adds {}", print::count(count), report.multiply_adds_note).trim_end().to_owned()
        }
        None => format!("multiply-adds {}", report.multiply_adds_note),
    })?;
    let operators: Vec<_> = report.operators.iter().map(|op| format!("{} × {}", op.count, op.name)).collect();
    print::line(&format!("operators: {}", operators.join(", ")))?;
    report.problems.iter().try_for_each(|problem| print::line(&format!("problem: {problem}")))?;
    print_engines(&report.engines)
}

fn shape(value: &Value) -> String {
    let Some(dims) = &value.shape else { return "unknown rank".to_owned() };
    let text = dims.iter().map(|dim| match dim {
        Size::Fixed(size) => size.to_string(),
        Size::Symbol(name) => name.clone(),
        Size::Unknown(()) => "?".to_owned(),
    });
    format!("[{}]", text.collect::<Vec<_>>().join(", "))
}

fn print_engines(engines: &[EngineVerdict]) -> Outcome {
    if engines.is_empty() {
        return Ok(());
    }
    let row = |verdict: &EngineVerdict| {
        let result = match (&verdict.load_ms, &verdict.reason) {
            (Some(ms), _) => format!("runs it, loads in {}", print::ms(*ms)),
            (None, Some(reason)) => reason.clone(),
            (None, None) => String::new(),
        };
        vec![verdict.name.to_owned(), verdict.version.clone().unwrap_or_default(), result]
    };
    print::table(&["engine", "version", "this model"], engines.iter().map(row).collect(), 3)
}
