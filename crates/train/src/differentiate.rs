//! Gradients alone: a graph that computes the outputs of another and what seeds at these outputs hand back.

use std::collections::HashSet;

use edgeward_graph::{Model, annotate, check, fold_constants};

use crate::{
    TrainError,
    emit::Emit,
    expand::expand,
    gradient::{Sweep, is_float},
    known::Known,
    parameters::Parameters,
    prepare::{self, FOLDED, Size, declared},
};

/// A graph that differentiates another.
#[derive(Clone, Debug)]
pub struct Differentiated {
    /// Takes the forward graph's inputs, the values differentiated by where these were constants, and the seeds.
    pub graph: Model,
    /// Inputs `gradient/NAME`: gradients of the outputs, one for each float output NAME, of its type and shape.
    pub seeds: Vec<String>,
    /// Outputs `d/NAME`: gradients of the values differentiated by, in the order asked for.
    pub gradients: Vec<String>,
}

/// Differentiates the outputs `of` a forward graph by its values `by`: inputs or initialisers.
///
/// Normalisations over the batch take the batch's own statistics where their scale or offset is among `by`. Errors: a
/// name that is none, a value that no output depends on, a node that no gradient passes.
pub fn differentiate(forward: &Model, of: &[String], by: &[String]) -> Result<Differentiated, TrainError> {
    let mut model = prepare::readied(forward)?;
    let initialised = |name: &String| model.graph().initializer.iter().any(|t| t.name() == name);
    let weights: Vec<String> = by.iter().filter(|name| initialised(name)).cloned().collect();
    prepare::release(&mut model, &Parameters { weights, statistics: Vec::new() })?;
    let inputs: HashSet<String> = model.inputs().into_iter().map(|port| port.name).collect();
    if let Some(unknown) = by.iter().find(|name| !inputs.contains(*name)) {
        return Err(TrainError::invalid(format!("the model has no input and no initialiser `{unknown}`")));
    }
    let wanted: HashSet<String> = by.iter().cloned().collect();
    let mut emit = Emit::to(model.graph(), model.opset());
    let known = Known::of(&model)?;
    let expanded = expand(&mut emit, &model.graph().node, &known, &wanted)?;
    let mut seeds = Vec::new();
    for name in of {
        let kind = known.of_value(name);
        let (Some(dtype), Some(shape)) = (kind.dtype.filter(|d| is_float(*d)), kind.shape) else {
            return Err(TrainError::invalid(format!("the type of output `{name}` is not known, or no float")));
        };
        let input = emit.name(&format!("gradient/{name}"));
        let shape: Vec<Size> = shape.iter().map(Size::from).collect();
        model.graph_mut().input.push(declared(&input, dtype, &shape));
        seeds.push((name.clone(), input));
    }
    for mask in &expanded.masks {
        let shape: Vec<Size> = mask.shape.iter().map(Size::from).collect();
        model.graph_mut().input.push(declared(&mask.input, mask.dtype, &shape));
    }
    let nodes = emit.nodes.clone();
    model.graph_mut().node.clone_from(&nodes);
    model.graph_mut().initializer.append(&mut emit.initializers.clone());
    let before = emit.initializers.len();
    let known = Known::of(&model)?.with_batch_statistics(expanded.of_batch);
    let sweep = Sweep { nodes: &nodes, known: &known, wanted: &wanted, deferred: &HashSet::new() };
    let swept = sweep.run(&mut emit, seeds.clone())?;
    let mut gradients = Vec::new();
    for name in by {
        let Some(gradient) = swept.gradients.get(name) else {
            return Err(TrainError::invalid(format!("no output depends on `{name}`")));
        };
        let output = emit.name(&format!("d/{name}"));
        let kind = known.of_value(name);
        let shape: Vec<Size> = kind.shape.unwrap_or_default().iter().map(Size::from).collect();
        let dtype = kind.dtype.unwrap_or(edgeward_graph::DataType::Float32);
        model.graph_mut().output.push(declared(&output, dtype, &shape));
        emit.stem = "d".to_owned();
        emit.identity(gradient, &output);
        gradients.push(output);
    }
    let graph = model.graph_mut();
    graph.node = emit.nodes;
    graph.initializer.extend(emit.initializers.into_iter().skip(before));
    fold_constants(&mut model, &FOLDED);
    if let Err(mut errors) = check(&model)
        && !errors.is_empty()
    {
        return Err(errors.swap_remove(0).into());
    }
    annotate(&mut model)?;
    model.set_composites(emit.composites);
    Ok(Differentiated { graph: model, seeds: seeds.into_iter().map(|(_, input)| input).collect(), gradients })
}
