//! A data set as one model wants it: which field goes where, in which type and layout, scaled, and varied while it learns.

use std::sync::Arc;

use edgeward_graph::{DataType, Dimension, Port, Tensor, TensorError};

use super::{Augment, DataError, Dataset, Field, Role, augment, convert};

/// What a model wants of a data set.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Its inputs, each with the batch first.
    pub inputs: Vec<Port>,
    /// The targets of its loss, each with the batch first.
    pub targets: Vec<Port>,
    /// Number of classes that it tells apart; a label beyond is an error.
    pub classes: Option<usize>,
    /// Mean and standard deviation of each channel, taken off floats after bytes have become 0 to 1; one for all
    /// channels, or one for each.
    pub normalise: Option<(Vec<f32>, Vec<f32>)>,
    /// How examples are varied while the model learns.
    pub augment: Augment,
}

/// Inputs and targets of one step, by the names of the model.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Inputs.
    pub inputs: Vec<(String, Tensor)>,
    /// Targets.
    pub targets: Vec<(String, Tensor)>,
    /// Which examples these are.
    pub rows: Vec<usize>,
}

/// A data set bound to a model.
pub struct Fit {
    dataset: Arc<dyn Dataset>,
    slots: Vec<Slot>,
    normalise: Option<(Vec<f32>, Vec<f32>)>,
    augment: Augment,
}

struct Slot {
    field: usize,
    port: String,
    dtype: DataType,
    layout: Layout,
    /// Shape of one example as the model has it.
    shape: Vec<usize>,
    role: Role,
    /// Bytes become 0 to 1.
    scaled: bool,
}

/// How the elements of one example move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Same,
    /// `[H, W]` for each of so many channels.
    Repeat(usize),
    /// `[H, W, C]` to `[C, H, W]`.
    ChannelsFirst,
    /// `[H, W, 3]` to `[1, H, W]` by the weights of ITU-R BT.601.
    Luma,
}

impl Fit {
    /// Binds. Errors say which input or target no field fits, with both shapes.
    pub fn new(dataset: Arc<dyn Dataset>, wanted: Wanted) -> Result<Self, DataError> {
        let dataset = resized(dataset, &wanted.inputs);
        if dataset.is_empty() {
            return Err(DataError::fit("the data holds no examples"));
        }
        if let (Some(classes), Some(labels)) = (wanted.classes, dataset.labels()) {
            let beyond = labels.iter().position(|&label| label as usize >= classes);
            if let Some(row) = beyond {
                let label = labels.get(row).copied().unwrap_or_default();
                let text =
                    format!("example {row} is of class `{label}`; the model tells `{classes}` classes apart, from 0");
                return Err(DataError::fit(text));
            }
        }
        let mut slots = bind(dataset.as_ref(), &wanted.inputs, Role::Input)?;
        slots.extend(bind(dataset.as_ref(), &wanted.targets, Role::Target)?);
        check_normalise(wanted.normalise.as_ref(), &slots)?;
        Ok(Self { dataset, slots, normalise: wanted.normalise, augment: wanted.augment })
    }

    /// The data set behind.
    pub fn dataset(&self) -> &Arc<dyn Dataset> {
        &self.dataset
    }

    /// These examples as they are.
    pub fn batch(&self, rows: &[usize]) -> Result<Batch, DataError> {
        self.make(rows, None)
    }

    /// These examples, varied by seed and epoch.
    pub fn varied(&self, rows: &[usize], seed: u64, epoch: u64) -> Result<Batch, DataError> {
        self.make(rows, Some((seed, epoch)))
    }

    fn make(&self, rows: &[usize], draw: Option<(u64, u64)>) -> Result<Batch, DataError> {
        let raw = self.dataset.batch(rows)?;
        let mut batch = Batch { rows: rows.to_vec(), ..Batch::default() };
        for slot in &self.slots {
            let tensor = raw.get(slot.field).ok_or_else(|| DataError::fit("the data set lost a field"))?;
            let made = self.tensor(slot, tensor, rows, draw);
            let made = made.map_err(|error| DataError::fit(format!("`{}`: {error}", slot.port)))?;
            let list = if slot.role == Role::Input { &mut batch.inputs } else { &mut batch.targets };
            list.push((slot.port.clone(), made));
        }
        Ok(batch)
    }

    fn tensor(
        &self,
        slot: &Slot,
        raw: &Tensor,
        rows: &[usize],
        draw: Option<(u64, u64)>,
    ) -> Result<Tensor, TensorError> {
        let shape: Vec<usize> = std::iter::once(rows.len()).chain(slot.shape.iter().copied()).collect();
        let is_float = matches!(slot.dtype, DataType::Float32 | DataType::Float64);
        if slot.role == Role::Target || !is_float {
            let mut made = cast(raw, slot.dtype)?.reshaped(shape)?;
            if let (Some((seed, epoch)), true) = (draw, slot.port == super::INPUT_IDS) {
                made = self.augment.tokens(made, rows, seed, epoch)?;
            }
            return Ok(made);
        }
        let values = convert::to_f32(raw).ok_or_else(|| no_numbers(raw))?;
        let mut values = moved(slot, &values);
        if slot.scaled {
            values.iter_mut().for_each(|value| *value /= 255.0);
        }
        if let (Some((seed, epoch)), &[channels, height, width]) = (draw, slot.shape.as_slice()) {
            let size = augment::Size { channels, height, width };
            self.augment.pictures(&mut values, size, rows, seed, epoch);
        }
        if let Some((mean, deviation)) = &self.normalise {
            normalise(&mut values, &slot.shape, mean, deviation);
        }
        cast(&Tensor::from_vec(shape, values)?, slot.dtype)
    }
}

fn no_numbers(raw: &Tensor) -> TensorError {
    TensorError::Type { expected: DataType::Float32, actual: raw.dtype() }
}

fn cast(tensor: &Tensor, to: DataType) -> Result<Tensor, TensorError> {
    convert::cast(tensor, to).unwrap_or(Err(TensorError::Type { expected: to, actual: tensor.dtype() }))
}

/// Pictures of the size that the first input of rank 4 has.
fn resized(dataset: Arc<dyn Dataset>, inputs: &[Port]) -> Arc<dyn Dataset> {
    let size = inputs.iter().find_map(|port| match port.shape.as_deref() {
        Some([_, _, Dimension::Fixed(height), Dimension::Fixed(width)]) => Some((*height, *width)),
        _ => None,
    });
    match size.and_then(|(height, width)| dataset.resized(height, width)) {
        Some(resized) => resized,
        None => dataset,
    }
}

fn bind(dataset: &dyn Dataset, ports: &[Port], role: Role) -> Result<Vec<Slot>, DataError> {
    let fields: Vec<(usize, &Field)> =
        dataset.fields().iter().enumerate().filter(|(_, field)| field.role == role).collect();
    let word = if role == Role::Input { "input" } else { "target" };
    let names = || fields.iter().map(|(_, field)| format!("`{}`", field.name)).collect::<Vec<_>>().join(", ");
    let slot = |(place, port): (usize, &Port)| {
        let named = fields.iter().find(|(_, field)| field.name == port.name);
        let (index, field) = named.or_else(|| fields.get(place)).ok_or_else(|| {
            DataError::fit(format!("the data has nothing for {word} `{}`; it has {}", port.name, names()))
        })?;
        fitted(field, *index, port, role)
    };
    ports.iter().enumerate().map(slot).collect()
}

/// Sizes of one example as a port declares them; none where it does not say.
fn example(port: &Port) -> Option<Vec<Option<usize>>> {
    let (_, inner) = port.shape.as_ref()?.split_first()?;
    let size = |dim: &Dimension| if let Dimension::Fixed(size) = dim { Some(*size) } else { None };
    Some(inner.iter().map(size).collect())
}

fn fitted(field: &Field, index: usize, port: &Port, role: Role) -> Result<Slot, DataError> {
    let dtype = port.dtype.ok_or_else(|| DataError::fit(format!("`{}` of the model is no tensor", port.name)))?;
    if field.dtype == DataType::String {
        let text = "is text, which goes through a tokenizer first; the model takes numbers";
        return Err(DataError::fit(format!("`{}` {text}", field.name)));
    }
    let is_float = matches!(dtype, DataType::Float32 | DataType::Float64);
    let scaled = role == Role::Input && field.dtype == DataType::UInt8 && is_float;
    let wanted = example(port);
    let (layout, shape) = layout(field, wanted.as_deref()).ok_or_else(|| {
        let wanted = wanted.unwrap_or_default();
        let shown: Vec<String> =
            wanted.iter().map(|size| size.map_or_else(|| "?".to_owned(), |size| size.to_string())).collect();
        DataError::fit(format!(
            "`{}` of the data has the shape {:?}, which does not fit `{}` of the model: [{}]",
            field.name,
            field.shape,
            port.name,
            shown.join(", ")
        ))
    })?;
    Ok(Slot { field: index, port: port.name.clone(), dtype, layout, shape, role, scaled })
}

/// How an example of a field becomes one of shape `wants`; none where it cannot.
fn layout(field: &Field, wants: Option<&[Option<usize>]>) -> Option<(Layout, Vec<usize>)> {
    let has = field.shape.as_slice();
    let Some(wants) = wants else {
        // A target without a shape is one number; an input is as the data has it.
        let shape = if field.role == Role::Target && has == [1] { Vec::new() } else { has.to_vec() };
        return Some((Layout::Same, shape));
    };
    let fits = |shape: &[usize]| {
        shape.len() == wants.len() && shape.iter().zip(wants).all(|(has, wants)| wants.is_none_or(|size| size == *has))
    };
    // Bytes with three or four channels at their end are pictures, whatever else their shape might be.
    let channels_last = matches!(*has, [_, _, channels @ (3 | 4)] if field.dtype == DataType::UInt8
        && wants.first().is_some_and(|wants| wants.is_none_or(|size| size == channels)));
    if fits(has) && !channels_last {
        return Some((Layout::Same, has.to_vec()));
    }
    if let (&[height, width], [channels, _, _]) = (has, wants) {
        let channels = channels.unwrap_or(1);
        let shape = vec![channels, height, width];
        return fits(&shape).then_some((Layout::Repeat(channels), shape));
    }
    if let &[height, width, channels] = has {
        let first = vec![channels, height, width];
        if fits(&first) {
            return Some((Layout::ChannelsFirst, first));
        }
        let grey = vec![1, height, width];
        if channels == 3 && fits(&grey) {
            return Some((Layout::Luma, grey));
        }
    }
    if fits(has) {
        return Some((Layout::Same, has.to_vec()));
    }
    let count: usize = has.iter().product();
    let known: Option<Vec<usize>> = wants.iter().copied().collect();
    known.filter(|shape| shape.iter().product::<usize>() == count).map(|shape| (Layout::Same, shape))
}

fn moved(slot: &Slot, values: &[f32]) -> Vec<f32> {
    let count: usize = slot.shape.iter().product();
    match slot.layout {
        Layout::Same => values.to_vec(),
        Layout::Repeat(channels) => {
            let plane = count / channels.max(1);
            values.chunks_exact(plane.max(1)).flat_map(|picture| picture.repeat(channels)).collect()
        }
        Layout::ChannelsFirst => {
            let channels = slot.shape.first().copied().unwrap_or(1).max(1);
            let pictures = values.chunks_exact(count.max(1));
            pictures
                .flat_map(|picture| (0..channels).flat_map(move |c| picture.iter().skip(c).step_by(channels)))
                .copied()
                .collect()
        }
        Layout::Luma => {
            let luma = |pixel: &[f32; 3]| 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2];
            values.as_chunks::<3>().0.iter().map(luma).collect()
        }
    }
}

fn check_normalise(normalise: Option<&(Vec<f32>, Vec<f32>)>, slots: &[Slot]) -> Result<(), DataError> {
    let Some((mean, deviation)) = normalise else { return Ok(()) };
    if let Some(wrong) = deviation.iter().find(|value| !(**value > 0.0 && value.is_finite())) {
        return Err(DataError::fit(format!("`{wrong}` is no standard deviation; expected a number above 0")));
    }
    let input = slots.iter().find(|slot| slot.role == Role::Input);
    let channels = input.and_then(|slot| slot.shape.first().copied()).unwrap_or(1);
    let fits = |count: usize| count == 1 || count == channels;
    if mean.len() != deviation.len() || !fits(mean.len()) {
        let text = format!("{} means and {} deviations are given", mean.len(), deviation.len());
        return Err(DataError::fit(format!("{text}; expected one of each, or `{channels}`")));
    }
    Ok(())
}

fn normalise(values: &mut [f32], shape: &[usize], mean: &[f32], deviation: &[f32]) {
    let channels = shape.first().copied().unwrap_or(1).max(1);
    let plane = shape.iter().skip(1).product::<usize>().max(1);
    for (index, plane) in values.chunks_mut(plane).enumerate() {
        let channel = if mean.len() == 1 { 0 } else { index % channels };
        let (Some(mean), Some(deviation)) = (mean.get(channel), deviation.get(channel)) else { continue };
        plane.iter_mut().for_each(|value| *value = (*value - mean) / deviation);
    }
}
