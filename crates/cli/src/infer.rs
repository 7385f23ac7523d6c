//! `edgeward infer`: one run of a model, outputs printed.

use std::path::PathBuf;

use anyhow::Context as _;
use edgeward_engine::RunOptions;
use edgeward_graph::{DataType, Tensor};
use serde::Serialize;
use serde_json::Value;

use crate::{
    Context,
    engines::{self, EngineArgs},
    failure::Outcome,
    inputs::{self, NamedShape, Wanted},
    print,
};

const SHOWN_VALUES: usize = 8;

/// Options of `infer`.
#[derive(clap::Args)]
pub struct InferArgs {
    /// ONNX file
    model: PathBuf,
    #[command(flatten)]
    engine: EngineArgs,
    /// Inputs from a `.npz` or `.json` file; made up where none
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Shape of a made-up input, e.g. `image=1,3,224,224` (repeat)
    #[arg(long = "shape", value_name = "NAME=DIMS")]
    shapes: Vec<NamedShape>,
}

#[derive(Serialize)]
struct Report {
    engine: &'static str,
    outputs: Vec<Output>,
}

#[derive(Serialize)]
struct Output {
    name: String,
    datatype: &'static str,
    shape: Vec<usize>,
    data: Vec<Value>,
}

/// Runs the command.
pub fn run(args: &InferArgs, context: &Context) -> Outcome {
    engines::check_file(&args.model)?;
    let model = engines::read_model(&args.model)?;
    let registry = engines::registry(&context.settings.engine);
    let engine = args.engine.or(&context.settings.engine)?;
    let prepared = engines::load(&registry, &args.model, engine.engine.as_deref(), &engine.session())?;
    let wanted = Wanted { shapes: args.shapes.clone(), batch: None };
    let inputs = inputs::of(prepared.session.inputs(), &model, args.input.as_deref(), &wanted)?;
    let run = prepared.session.run(&inputs::borrowed(&inputs), RunOptions::default());
    let tensors = run.with_context(|| inputs::described(&inputs))?;
    let outputs = prepared.session.outputs().iter().zip(&tensors).map(|(info, tensor)| Output {
        name: info.name.clone(),
        datatype: tensor.dtype().name(),
        shape: tensor.shape().to_vec(),
        data: values(tensor),
    });
    let report = Report { engine: prepared.engine.name(), outputs: outputs.collect() };
    if context.json { print::json(&report) } else { report.outputs.iter().try_for_each(print_output) }
}

fn print_output(output: &Output) -> Outcome {
    let shown: Vec<_> = output.data.iter().take(SHOWN_VALUES).map(Value::to_string).collect();
    let more = if output.data.len() > SHOWN_VALUES { ", …" } else { "" };
    print::line(&format!("{} {} {:?}: {}{more}", output.name, output.datatype, output.shape, shown.join(", ")))
}

/// Elements as JSON; what is no number there (NaN, infinities) is null, and sub-byte types are their raw bytes.
fn values(tensor: &Tensor) -> Vec<Value> {
    macro_rules! numbers {
        ($rust:ty, $convert:expr) => {
            tensor.values::<$rust>().map(|v| v.iter().map(|&v| Value::from($convert(v))).collect()).unwrap_or_default()
        };
    }
    match tensor.dtype() {
        DataType::Float32 => numbers!(f32, f32_as_written),
        DataType::Float64 => numbers!(f64, |v| v),
        DataType::Float16 => numbers!(half::f16, f64::from),
        DataType::BFloat16 => numbers!(half::bf16, f64::from),
        DataType::Int8 => numbers!(i8, |v| v),
        DataType::Int16 => numbers!(i16, |v| v),
        DataType::Int32 => numbers!(i32, |v| v),
        DataType::Int64 => numbers!(i64, |v| v),
        DataType::UInt16 => numbers!(u16, |v| v),
        DataType::UInt32 => numbers!(u32, |v| v),
        DataType::UInt64 => numbers!(u64, |v| v),
        DataType::Bool => {
            tensor.raw().map(|raw| raw.iter().map(|&b| Value::from(b != 0)).collect()).unwrap_or_default()
        }
        DataType::String => {
            let text = |bytes: &bytes::Bytes| Value::from(String::from_utf8_lossy(bytes).into_owned());
            tensor.strings().map(|strings| strings.iter().map(text).collect()).unwrap_or_default()
        }
        _ => tensor.raw().map(|raw| raw.iter().map(|&b| Value::from(b)).collect()).unwrap_or_default(),
    }
}

/// 0.1f32 prints as 0.1, not as the nearest binary64's 0.10000000149011612.
fn f32_as_written(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_become_json() {
        let check = |tensor: Tensor, expected: &str| {
            assert_eq!(serde_json::to_string(&values(&tensor)).unwrap(), expected);
        };
        check(Tensor::from_vec([3], vec![0.1f32, -2.0, f32::NAN]).unwrap(), "[0.1,-2.0,null]");
        check(Tensor::from_vec([2], vec![i64::MIN, 3]).unwrap(), "[-9223372036854775808,3]");
        check(Tensor::from_bools([2], vec![true, false]).unwrap(), "[true,false]");
        check(Tensor::from_vec([1], vec![half::f16::from_f32(1.5)]).unwrap(), "[1.5]");
        check(Tensor::from_strings([1], vec!["a".into()]).unwrap(), "[\"a\"]");
    }
}
