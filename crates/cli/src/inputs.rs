//! Inputs to run a model on: made up from its shapes, or read from a file (`inputs/file.rs`).

pub mod file;
mod values;

use std::{collections::BTreeMap, path::Path};

use edgeward_engine::{Dim, TensorInfo};
use edgeward_graph::{Model, Tensor, element_count};

use crate::failure::{Failure, OrInput as _};

/// Inputs larger than this are refused: nobody means them.
const MAX_BYTES: usize = 4 << 30;

/// `--shape NAME=1,3,224,224`.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedShape {
    /// Input.
    pub name: String,
    /// Its whole shape.
    pub shape: Vec<usize>,
}

impl std::str::FromStr for NamedShape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no shape; expected a form like `image=1,3,224,224`");
        let (name, dims) = text.rsplit_once('=').ok_or_else(wrong)?;
        let shape: Result<Vec<usize>, _> =
            dims.split(',').filter(|d| !d.is_empty()).map(|d| d.trim().parse()).collect();
        if name.is_empty() {
            return Err(wrong());
        }
        Ok(Self { name: name.to_owned(), shape: shape.map_err(|_| wrong())? })
    }
}

/// Which shapes the inputs shall have.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Whole shapes by input.
    pub shapes: Vec<NamedShape>,
    /// First dimension of every input, where it is open.
    pub batch: Option<usize>,
}

/// Named tensors for one run.
pub type Inputs = Vec<(String, Tensor)>;

/// As [`edgeward_engine::Session::run`] takes them.
pub fn borrowed(inputs: &Inputs) -> Vec<(&str, &Tensor)> {
    inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect()
}

/// What a failed run was given, and how to give something else.
pub fn described(inputs: &Inputs) -> String {
    let shapes: Vec<_> = inputs.iter().map(|(name, tensor)| format!("{name} {:?}", tensor.shape())).collect();
    format!("the run failed on {} (other shapes: `--shape NAME=1,2,3`; real inputs: `--input FILE`)", shapes.join(", "))
}

/// Inputs of the wanted shapes with the same plausible values every time.
pub fn synthesise(infos: &[TensorInfo], model: &Model, wanted: &Wanted) -> Result<Inputs, Failure> {
    synthesise_other(infos, model, wanted, 0)
}

/// As [`synthesise`], with other values for each `number`; those of 0 are the same.
pub fn synthesise_other(
    infos: &[TensorInfo],
    model: &Model,
    wanted: &Wanted,
    number: usize,
) -> Result<Inputs, Failure> {
    let shapes = shapes(infos, wanted).map_err(Failure::input)?;
    let bounds = values::index_bounds(model);
    infos
        .iter()
        .zip(shapes)
        .map(|(info, shape)| {
            let count = element_count(&shape).or_input()?;
            if info.dtype.byte_len(count) > MAX_BYTES {
                return Err(Failure::input(format!("input `{}` of shape {shape:?} is too large", info.name)));
            }
            let seed = if number == 0 { info.name.clone() } else { format!("{}#{number}", info.name) };
            let numbered = TensorInfo { name: seed, ..info.clone() };
            let tensor = values::make(&numbered, &shape, bounds.get(&info.name).copied()).or_input()?;
            Ok((info.name.clone(), tensor))
        })
        .collect()
}

/// The shape of each input: as wanted, else as declared, with the batch first and 1 where the model leaves it open.
pub fn shapes(infos: &[TensorInfo], wanted: &Wanted) -> Result<Vec<Vec<usize>>, String> {
    if let Some(unknown) = wanted.shapes.iter().find(|w| infos.iter().all(|info| info.name != w.name)) {
        let names: Vec<_> = infos.iter().map(|info| format!("`{}`", info.name)).collect();
        return Err(format!("the model has no input `{}`; it has {}", unknown.name, names.join(", ")));
    }
    let symbols = symbols(infos, wanted)?;
    infos.iter().map(|info| shape(info, wanted, &symbols)).collect()
}

fn given<'a>(info: &TensorInfo, wanted: &'a Wanted) -> Option<&'a [usize]> {
    wanted.shapes.iter().find(|w| w.name == info.name).map(|w| w.shape.as_slice())
}

/// Sizes of the symbols that the wanted shapes fix, so that inputs which share one agree.
fn symbols(infos: &[TensorInfo], wanted: &Wanted) -> Result<BTreeMap<String, usize>, String> {
    let mut symbols = BTreeMap::new();
    for info in infos {
        let (Some(declared), Some(given)) = (&info.shape, given(info, wanted)) else { continue };
        if declared.len() != given.len() {
            return Err(format!(
                "input `{}` has {} dimensions, `--shape` gives {}",
                info.name,
                declared.len(),
                given.len()
            ));
        }
        for (dim, &size) in declared.iter().zip(given) {
            match dim {
                Dim::Fixed(fixed) if *fixed != size => {
                    let declared = edgeward_engine::shape_text(declared);
                    return Err(format!(
                        "input `{}` has the shape {declared}, {fixed} is fixed; `--shape` gives {given:?}",
                        info.name
                    ));
                }
                Dim::Symbol(symbol) => drop(symbols.insert(symbol.clone(), size)),
                _ => {}
            }
        }
    }
    Ok(symbols)
}

fn shape(info: &TensorInfo, wanted: &Wanted, symbols: &BTreeMap<String, usize>) -> Result<Vec<usize>, String> {
    if let Some(given) = given(info, wanted) {
        return Ok(given.to_vec());
    }
    let Some(declared) = &info.shape else {
        return Err(format!("input `{}` has no declared rank; give it with `--shape {}=…`", info.name, info.name));
    };
    let size = |(position, dim): (usize, &Dim)| match (dim, wanted.batch) {
        (Dim::Fixed(size), Some(batch)) if position == 0 && *size != batch && batch != 1 => {
            Err(format!("input `{}` has the fixed batch {size}, `--batch {batch}` cannot be had", info.name))
        }
        (Dim::Fixed(size), _) => Ok(*size),
        (Dim::Symbol(symbol), _) if symbols.contains_key(symbol) => Ok(symbols.get(symbol).copied().unwrap_or(1)),
        (_, Some(batch)) if position == 0 => Ok(batch),
        _ => Ok(1),
    };
    declared.iter().enumerate().map(size).collect()
}

/// True where every input leaves its first dimension open: then the model takes batches of any size.
pub fn takes_batches(infos: &[TensorInfo]) -> bool {
    let open = |info: &TensorInfo| {
        info.shape.as_ref().and_then(|shape| shape.first()).is_some_and(|dim| !matches!(dim, Dim::Fixed(_)))
    };
    !infos.is_empty() && infos.iter().all(open)
}

/// Inputs from `--input`, else made up.
pub fn of(infos: &[TensorInfo], model: &Model, path: Option<&Path>, wanted: &Wanted) -> Result<Inputs, Failure> {
    match path {
        Some(path) => file::read(path, infos),
        None => synthesise(infos, model, wanted),
    }
}

#[cfg(test)]
mod tests {
    use edgeward_graph::DataType;

    use super::*;

    fn info(name: &str, dims: &[Dim]) -> TensorInfo {
        TensorInfo { name: name.to_owned(), dtype: DataType::Float32, shape: Some(dims.to_vec()) }
    }

    fn n() -> Dim {
        Dim::Symbol("n".to_owned())
    }

    #[test]
    fn shapes_follow_the_model_then_the_caller() {
        let infos = [info("a", &[n(), Dim::Fixed(3), Dim::Dynamic(())]), info("b", &[n()])];
        let check = |text: &[&str], batch| {
            let wanted = Wanted { shapes: text.iter().map(|t| t.parse().unwrap()).collect(), batch };
            shapes(&infos, &wanted)
        };
        assert_eq!(check(&[], None).unwrap(), [vec![1, 3, 1], vec![1]]);
        assert_eq!(check(&[], Some(4)).unwrap(), [vec![4, 3, 1], vec![4]]);
        assert_eq!(check(&["a=2,3,5"], None).unwrap(), [vec![2, 3, 5], vec![2]]);
        assert!(check(&["a=2,4,5"], None).unwrap_err().contains("fixed"));
        assert!(check(&["a=2,3"], None).unwrap_err().contains("3 dimensions"));
        assert!(check(&["c=1"], None).unwrap_err().contains("`a`, `b`"));
    }

    #[test]
    fn a_fixed_batch_stays() {
        let infos = [info("a", &[Dim::Fixed(1), Dim::Fixed(3)])];
        let shapes_at = |batch| shapes(&infos, &Wanted { shapes: Vec::new(), batch: Some(batch) });
        assert_eq!(shapes_at(1).unwrap(), [vec![1, 3]]);
        assert!(shapes_at(4).unwrap_err().contains("fixed batch 1"));
        assert!(!takes_batches(&infos));
        assert!(takes_batches(&[info("a", &[n()])]));
        assert!(!takes_batches(&[]));
    }

    #[test]
    fn shapes_are_parsed() {
        let shape: NamedShape = "x:0=1, 3".parse().unwrap();
        assert_eq!(shape, NamedShape { name: "x:0".to_owned(), shape: vec![1, 3] });
        for wrong in ["", "x", "=1", "x=1,a", "x=-1"] {
            assert!(wrong.parse::<NamedShape>().is_err(), "{wrong}");
        }
    }
}
