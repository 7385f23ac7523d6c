//! `edgeward train new`: a model to begin with.

use std::path::PathBuf;

use edgeward_graph::stats;
use edgeward_train::starter::{Kind, Starter, starter};

use crate::{
    Context,
    failure::{Failure, OrInput as _, Outcome},
    print,
};

/// Options of `train new`.
#[derive(clap::Args)]
pub struct NewArgs {
    /// What kind
    kind: KindName,
    /// Shape of one example: `channels,height,width` of pictures, tokens of texts, numbers of a row
    #[arg(long, value_name = "SHAPE", value_delimiter = ',', required = true)]
    input: Vec<usize>,
    /// Classes, or quantities, that it says
    #[arg(long, value_name = "N")]
    classes: usize,
    /// Channels of the first stage, units of a hidden layer; of mobilenet hundredths of its own widths
    #[arg(long)]
    width: Option<usize>,
    /// Layers: resnet 18, 34 or 6n+2, else as many as wanted
    #[arg(long)]
    depth: Option<usize>,
    /// Pieces of the vocabulary of a transformer
    #[arg(long, default_value_t = 8000)]
    vocabulary: usize,
    /// Part of the units that learning leaves out at random, of mlp and transformer
    #[arg(long, default_value_t = 0.0, value_name = "PART")]
    dropout: f32,
    /// The same seed gives the same weights
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where it goes [default: KIND.onnx]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum KindName {
    /// Residual convolutional network
    Resnet,
    /// MobileNetV2
    Mobilenet,
    /// Dense layers
    Mlp,
    /// Transformer encoder for texts
    Transformer,
}

/// Runs the command.
pub fn run(args: &NewArgs, context: &Context) -> Outcome {
    let kind = match args.kind {
        KindName::Resnet => Kind::Resnet,
        KindName::Mobilenet => Kind::Mobilenet,
        KindName::Mlp => Kind::Mlp,
        KindName::Transformer => Kind::Transformer,
    };
    let wanted = Starter {
        kind,
        input: args.input.clone(),
        classes: args.classes,
        width: args.width,
        depth: args.depth,
        vocabulary: args.vocabulary,
        dropout: args.dropout,
        seed: args.seed,
    };
    let model = starter(&wanted).or_input()?;
    let output = args.output.clone().unwrap_or_else(|| PathBuf::from(format!("{}.onnx", kind.name())));
    if output.is_dir() {
        return Err(Failure::input(format!("output `{}` is a folder; name a file with `-o FILE`", output.display())));
    }
    model.write(&output)?;
    let stats = stats(&model);
    if context.json {
        let report = serde_json::json!({
            "output": output.display().to_string(),
            "parameters": stats.parameters,
            "nodes": stats.nodes,
        });
        return print::json(&report);
    }
    let count = print::count(stats.parameters);
    print::line(&format!("{}: {} nodes, {count} parameters", output.display(), print::thousands(stats.nodes as u64)))
}
