//! What a configuration says of a model's tensors, held against the model: what it leaves open is filled in, what it says
//! otherwise is refused, as Triton does.

use edgeward_engine::{Session, TensorInfo};

use crate::{
    core::model::wire_dims,
    proto::{DataType, ModelConfig, ModelInput, ModelOutput},
    types::config_type,
};

/// One `input` or `output` of the configuration.
trait Declared: Default {
    const WHAT: &'static str;
    fn name(&self) -> &str;
    fn data_type(&self) -> DataType;
    fn dims(&self) -> &[i64];
    fn fill(&mut self, name: Option<&str>, data_type: Option<DataType>, dims: Option<Vec<i64>>);
}

macro_rules! declared {
    ($($message:ident = $what:literal;)*) => {$(
        impl Declared for $message {
            const WHAT: &'static str = $what;

            fn name(&self) -> &str {
                &self.name
            }

            fn data_type(&self) -> DataType {
                self.data_type()
            }

            fn dims(&self) -> &[i64] {
                &self.dims
            }

            fn fill(&mut self, name: Option<&str>, data_type: Option<DataType>, dims: Option<Vec<i64>>) {
                self.name = name.map_or_else(|| std::mem::take(&mut self.name), str::to_owned);
                self.data_type = data_type.map_or(self.data_type, |data_type| data_type as i32);
                self.dims = dims.unwrap_or_else(|| std::mem::take(&mut self.dims));
            }
        }
    )*};
}

declared! {
    ModelInput = "input";
    ModelOutput = "output";
}

/// Fills what the configuration leaves open from the model. An error names the tensor, what is said of it and what the
/// model has.
pub(super) fn completed(name: &str, mut config: ModelConfig, session: &dyn Session) -> Result<ModelConfig, String> {
    config.name = name.to_owned();
    let batched = config.max_batch_size > 0;
    if batched {
        batchable("input", session.inputs(), config.max_batch_size)?;
        batchable("output", session.outputs(), config.max_batch_size)?;
    }
    all_given(&config.input, session.inputs())?;
    complete(&mut config.input, session.inputs(), batched)?;
    complete(&mut config.output, session.outputs(), batched)?;
    Ok(config)
}

/// A first dimension of a fixed size cannot take batches.
fn batchable(what: &str, infos: &[TensorInfo], max_batch: i32) -> Result<(), String> {
    let fixed = |info: &&TensorInfo| info.shape.is_some() && wire_dims(info).first() != Some(&-1);
    infos.iter().find(fixed).map_or(Ok(()), |info| {
        let (name, dims) = (&info.name, wire_dims(info));
        Err(format!(
            "`max_batch_size: {max_batch}` needs a first dimension that is open (-1), the model's {what} `{name}` has the shape {dims:?}; set `max_batch_size` to 0, or export the model with a dynamic batch dimension"
        ))
    })
}

/// A model runs on all of its inputs; a caller who goes by the configuration would give only those that it has.
fn all_given(declared: &[ModelInput], infos: &[TensorInfo]) -> Result<(), String> {
    let missing = infos.iter().find(|info| declared.iter().all(|d| d.name != info.name));
    match missing.filter(|_| !declared.is_empty()) {
        None => Ok(()),
        Some(info) => {
            let (given, all, name) = (declared.len(), infos.len(), &info.name);
            Err(format!(
                "the configuration has {given} of the model's {all} inputs, `{name}` is missing; add it, or leave all `input` out"
            ))
        }
    }
}

fn complete<T: Declared>(declared: &mut Vec<T>, infos: &[TensorInfo], batched: bool) -> Result<(), String> {
    if declared.is_empty() {
        let whole = |info: &TensorInfo| {
            let mut tensor = T::default();
            tensor.fill(Some(&info.name), Some(config_type(info.dtype)), Some(dims(info, batched)));
            tensor
        };
        *declared = infos.iter().map(whole).collect();
        return Ok(());
    }
    let mut seen = std::collections::HashSet::new();
    for tensor in declared {
        let (what, name) = (T::WHAT, tensor.name());
        if !seen.insert(name.to_owned()) {
            return Err(format!("the configuration has the {what} `{name}` twice; remove one"));
        }
        let Some(info) = infos.iter().find(|info| info.name == name) else {
            let names: Vec<&str> = infos.iter().map(|info| info.name.as_str()).collect();
            let names = names.join("`, `");
            return Err(format!(
                "the configuration has the {what} `{name}`, the model does not; its {what}s are `{names}`"
            ));
        };
        same_type(tensor, info)?;
        same_shape(tensor, info, batched)?;
        let open = (tensor.data_type() == DataType::TypeInvalid).then(|| config_type(info.dtype));
        let shape = tensor.dims().is_empty().then(|| dims(info, batched));
        tensor.fill(None, open, shape);
    }
    Ok(())
}

/// The dimensions that a configuration gives: without the batch.
fn dims(info: &TensorInfo, batched: bool) -> Vec<i64> {
    wire_dims(info).into_iter().skip(usize::from(batched)).collect()
}

fn same_type<T: Declared>(tensor: &T, info: &TensorInfo) -> Result<(), String> {
    let (said, own) = (tensor.data_type(), config_type(info.dtype));
    if said == DataType::TypeInvalid || said == own {
        return Ok(());
    }
    let (what, name, said) = (T::WHAT, &info.name, said.as_str_name());
    let mend = match own {
        DataType::TypeInvalid => "remove the line".to_owned(),
        own => format!("write `data_type: {}`", own.as_str_name()),
    };
    Err(format!("{what} `{name}` has `data_type: {said}` in the configuration, the model's is {}; {mend}", info.dtype))
}

/// Sizes are equal, or open on either side; without `max_batch_size` the batch is one of them.
fn same_shape<T: Declared>(tensor: &T, info: &TensorInfo, batched: bool) -> Result<(), String> {
    let (said, own) = (tensor.dims(), dims(info, batched));
    if said.is_empty() || info.shape.is_none() {
        return Ok(());
    }
    let agree = |(said, own): (&i64, &i64)| said == own || *said == -1 || *own == -1;
    // A configuration cannot say that an output is a scalar.
    let scalar = T::WHAT == "output" && own.is_empty() && said == [1];
    if scalar || said.len() == own.len() && said.iter().zip(&own).all(agree) {
        return Ok(());
    }
    let (what, name, whole) = (T::WHAT, &info.name, wire_dims(info));
    let batch = if batched { ", the first of which `max_batch_size` stands for" } else { "" };
    let mend = match whole.as_slice() {
        [-1, rest @ ..] if !batched && rest == said => {
            format!("write `dims: {own:?}`, or set `max_batch_size` to 1 or more, which stands for the first")
        }
        _ if own.is_empty() => "leave `dims` out".to_owned(),
        _ => format!("write `dims: {own:?}`"),
    };
    Err(format!(
        "{what} `{name}` has `dims: {said:?}` in the configuration, the model's shape is {whole:?}{batch}; {mend}"
    ))
}
