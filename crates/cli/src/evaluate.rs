//! `edgeward evaluate`: how good a model is on data.

use std::{path::PathBuf, sync::Arc};

use edgeward_graph::{DataType, Dimension, Model, Port};
use edgeward_train::{
    data::{Dataset, Fit, Loader, Plan, Sampling, Splits, Wanted, tokenise},
    metrics::Metric,
    trainer::{Judged, Task, evaluate},
};

use crate::{
    Context,
    engines::{self, EngineArgs},
    failure::{Failure, OrInput as _, Outcome},
    print,
    train::{
        failed, fitted,
        material::{self, Recipe},
        options::DataOptions,
    },
};

/// Options of `evaluate`.
#[derive(clap::Args)]
pub struct EvaluateArgs {
    /// ONNX file
    model: PathBuf,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    data: DataOptions,
    /// Part of the data [default: what `--val` or `--val-fraction` say, else test, else val, else all there is]
    #[arg(long, value_name = "PART")]
    split: Option<Part>,
    /// Figure to print alone (repeat) [default: all]
    #[arg(long = "metric", value_name = "NAME")]
    metrics: Vec<Metric>,
    /// What the outputs are [default: as the model says, else by the targets]
    #[arg(long, value_name = "WHAT")]
    task: Option<TaskName>,
    /// Examples of one run
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Train,
    Val,
    Test,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum TaskName {
    /// A score for each class
    Classes,
    /// Numbers to be met
    Quantities,
}

/// Runs the command.
pub fn run(args: &EvaluateArgs, context: &Context) -> Outcome {
    engines::check_file(&args.model)?;
    let model = engines::read_model(&args.model)?;
    let recipe = Recipe::read(&model);
    let options = args.data.or(&context.settings.train.data);
    let seed = context.settings.train.seed.unwrap_or(0);
    let dataset = dataset(args, &options, seed, &model, &recipe)?;
    let task = match args.task {
        Some(TaskName::Classes) => Task::Classes,
        Some(TaskName::Quantities) => Task::Quantities,
        None if dataset.labels().is_some() => recipe.task.unwrap_or(Task::Classes),
        None => Task::Quantities,
    };
    let mean_and_deviation = (options.mean.or(recipe.mean), options.std.or(recipe.std));
    let wanted = Wanted {
        inputs: model.inputs(),
        targets: vec![target(&model, task)?],
        normalise: mean_and_deviation.0.zip(mean_and_deviation.1),
        ..Wanted::default()
    };
    let fit = fitted(Fit::new(dataset, wanted))?;
    let loader = Loader::to_judge(fit, Plan { batch: args.batch as usize, sampling: Sampling::Sequential, seed: 0 });
    let how = args.engine.or(&context.settings.engine)?;
    let registry = engines::registry(&context.settings.engine);
    let prepared = engines::load(&registry, &args.model, how.engine.as_deref(), &how.session())?;
    let judged = evaluate(prepared.session.as_ref(), &loader, task).map_err(failed)?;
    show(&judged, args, context)
}

fn dataset(
    args: &EvaluateArgs,
    options: &DataOptions,
    seed: u64,
    model: &Model,
    recipe: &Recipe,
) -> Result<Arc<dyn Dataset>, Failure> {
    let Splits { train, val, test } = material::parts(options, recipe.classes.clone(), seed)?;
    let part = match args.split {
        Some(Part::Train) => train,
        Some(Part::Val) => val,
        Some(Part::Test) => test,
        None => test.or(val).or(train),
    };
    let missing = || Failure::input("the data has no such part");
    let dataset = part.ok_or_else(missing)?;
    let Some(tokenisation) = material::kept_tokenisation(dataset.as_ref(), &args.model, options, model)? else {
        return Ok(dataset);
    };
    Ok(Arc::new(tokenise(dataset.as_ref(), &tokenisation).or_input()?))
}

/// Classes are one number each, quantities as the model's first output has them.
fn target(model: &Model, task: Task) -> Result<Port, Failure> {
    let output = model.outputs().into_iter().next().ok_or_else(|| Failure::input("the model has no output"))?;
    let batch = Dimension::Symbol("batch".to_owned());
    Ok(match task {
        Task::Classes => Port { name: "target".to_owned(), dtype: Some(DataType::Int64), shape: Some(vec![batch]) },
        Task::Quantities => Port { name: "target".to_owned(), dtype: Some(DataType::Float32), shape: output.shape },
    })
}

fn show(judged: &Judged, args: &EvaluateArgs, context: &Context) -> Outcome {
    let chosen: Vec<Metric> = if args.metrics.is_empty() { Metric::ALL.to_vec() } else { args.metrics.clone() };
    if let Some(metric) = args.metrics.iter().find(|metric| judged.get(**metric).is_none()) {
        return Err(Failure::input(format!("metric `{metric}` is not defined for this data")));
    }
    if context.json && args.metrics.is_empty() {
        return print::json(judged);
    }
    let figures: Vec<(Metric, f64)> = judged.all().into_iter().filter(|(metric, _)| chosen.contains(metric)).collect();
    if context.json {
        let object: serde_json::Map<String, serde_json::Value> =
            figures.iter().map(|(metric, value)| (metric.name().to_owned(), (*value).into())).collect();
        return print::json(&object);
    }
    let rows = figures.iter().map(|(metric, value)| vec![metric.name().to_owned(), format!("{value:.4}")]).collect();
    print::line(&format!("{} examples", print::thousands(judged.examples() as u64)))?;
    print::table(&["figure", "value"], rows, 1)?;
    let Judged::Classes(figures) = judged else { return Ok(()) };
    if !args.metrics.is_empty() {
        return Ok(());
    }
    let names = Recipe::read(&engines::read_model(&args.model)?).classes;
    let name = |class: usize| names.as_ref().and_then(|n| n.get(class).cloned()).unwrap_or_else(|| class.to_string());
    let classes = figures.confusion.len();
    if classes > CONFUSION_CLASSES_MAX {
        return print::line(&format!("the confusion matrix of {classes} classes is in `--json`"));
    }
    let header: Vec<String> =
        std::iter::once("class".to_owned()).chain((0..classes).map(|c| format!("as {}", name(c)))).collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let row = |(class, counts): (usize, &Vec<u64>)| {
        std::iter::once(name(class)).chain(counts.iter().map(u64::to_string)).collect()
    };
    print::table(&header, figures.confusion.iter().enumerate().map(row).collect(), 1)
}

/// A wider matrix is no help on a terminal.
const CONFUSION_CLASSES_MAX: usize = 12;
