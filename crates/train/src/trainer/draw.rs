//! What a step is given beside the batch: dropout's masks, privacy's noise, weights of examples.

use std::num::NonZeroUsize;

use edgeward_graph::{DataType, Dimension, Port, Tensor, TensorError};
use rand::{
    RngExt as _, SeedableRng as _,
    rngs::{StdRng, SysRng},
};
use rand_distr::{Distribution as _, StandardNormal};

use crate::{
    Mask, TrainError,
    data::{Batch, Fit, generator},
};

const PURPOSE_DROPOUT: u64 = 4;
/// Numbers of noise that a thread draws at a time.
const PIECE: usize = 1 << 15;

pub(super) fn shape(error: TensorError) -> TrainError {
    TrainError::run(error.to_string())
}

fn of_type(dtype: DataType, shape: Vec<usize>, values: Vec<f32>) -> Result<Tensor, TrainError> {
    let made = match dtype {
        DataType::Float64 => Tensor::from_vec(shape, values.into_iter().map(f64::from).collect()),
        _ => Tensor::from_vec(shape, values),
    };
    made.map_err(self::shape)
}

/// In place of an empty batch, the first example, which is then made to count nothing: no engine runs on no examples.
pub(super) fn filled(batch: &Batch, fit: &Fit) -> Result<Option<Batch>, TrainError> {
    if batch.rows.is_empty() { Ok(Some(fit.batch(&[0])?)) } else { Ok(None) }
}

/// One for each example; 0 where the batch only stands in for an empty one.
pub(super) fn weights(rows: usize, stands_in: bool, dtype: DataType) -> Result<Tensor, TrainError> {
    of_type(dtype, vec![rows], vec![if stands_in { 0.0 } else { 1.0 }; rows])
}

/// Ones and zeros of one dropout in one step; `place` is seed, step and number of the dropout.
pub(super) fn mask(
    mask: &Mask,
    batch: &Batch,
    data: &[Port],
    (seed, step, index): (u64, u64, u64),
) -> Result<Tensor, TrainError> {
    let size = |dim: &Dimension| match dim {
        Dimension::Fixed(size) => Some(*size),
        Dimension::Symbol(symbol) => symbol_size(symbol, batch, data),
        Dimension::Unknown => None,
    };
    let shape: Option<Vec<usize>> = mask.shape.iter().map(size).collect();
    let shape = shape.ok_or_else(|| TrainError::run(format!("the shape of dropout `{}` is not known", mask.input)))?;
    let count = edgeward_graph::element_count(&shape).map_err(self::shape)?;
    let mut rng = generator(seed, PURPOSE_DROPOUT, step, index);
    // One word for each element, drawn all at once: below the threshold it is kept. Exact to 2^-32.
    let threshold = (f64::from(mask.keep).clamp(0.0, 1.0) * f64::from(u32::MAX)).round() as u32;
    let mut words = vec![0u32; count];
    rng.fill(words.as_mut_slice());
    let values = words.into_iter().map(|word| if word < threshold { 1.0 } else { 0.0 }).collect();
    of_type(mask.dtype, shape, values)
}

fn symbol_size(symbol: &str, batch: &Batch, data: &[Port]) -> Option<usize> {
    data.iter().find_map(|port| {
        let place =
            port.shape.as_ref()?.iter().position(|dim| matches!(dim, Dimension::Symbol(name) if name == symbol))?;
        let (_, tensor) = batch.inputs.iter().find(|(name, _)| *name == port.name)?;
        tensor.shape().get(place).copied()
    })
}

/// Noise of the weights' gradients, from cryptographic generators (ChaCha of 12 rounds) that the system seeds anew: who could draw it again could
/// take it off again. Drawn by so many threads: of a step of millions of weights it would be a good part of the time.
pub(super) fn noise(ports: &[Port], deviation: f32, threads: NonZeroUsize) -> Result<Vec<Tensor>, TrainError> {
    let shape = |port: &Port| {
        let fixed = |dim: &Dimension| if let Dimension::Fixed(size) = dim { Some(*size) } else { None };
        let shape: Option<Vec<usize>> = port.shape.iter().flatten().map(fixed).collect();
        shape.ok_or_else(|| TrainError::run(format!("the shape of noise `{}` is not known", port.name)))
    };
    let shapes = ports.iter().map(shape).collect::<Result<Vec<_>, _>>()?;
    let zeros = |shape: &Vec<usize>| edgeward_graph::element_count(shape).map(|count| vec![0f32; count]);
    let mut values = shapes.iter().map(zeros).collect::<Result<Vec<_>, _>>().map_err(self::shape)?;
    if deviation != 0.0 {
        fill(&mut values, deviation, threads)
            .map_err(|error| TrainError::run(format!("the system gives no random numbers: {error}")))?;
    }
    let tensor = |((port, shape), values): ((&Port, Vec<usize>), Vec<f32>)| {
        of_type(port.dtype.unwrap_or(DataType::Float32), shape, values)
    };
    ports.iter().zip(shapes).zip(values).map(tensor).collect()
}

/// Each thread draws every so-manieth piece, from a generator of its own.
fn fill(values: &mut [Vec<f32>], deviation: f32, threads: NonZeroUsize) -> Result<(), rand::rngs::SysError> {
    let mut shares: Vec<Vec<&mut [f32]>> = (0..threads.get()).map(|_| Vec::new()).collect();
    let pieces = values.iter_mut().flat_map(|values| values.chunks_mut(PIECE));
    for (at, piece) in pieces.enumerate() {
        if let Some(share) = shares.get_mut(at % threads.get()) {
            share.push(piece);
        }
    }
    let draw = |share: Vec<&mut [f32]>| -> Result<(), rand::rngs::SysError> {
        let mut rng = StdRng::try_from_rng(&mut SysRng)?;
        for value in share.into_iter().flatten() {
            let normal: f32 = StandardNormal.sample(&mut rng);
            *value = normal * deviation;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let own = shares.pop();
        let others: Vec<_> = shares
            .into_iter()
            .filter(|share| !share.is_empty())
            .map(|share| scope.spawn(move || draw(share)))
            .collect();
        let drawn = own.map_or(Ok(()), draw);
        // A thread that panicked is a defect, not a lack of randomness: it goes on as one.
        let joined = |thread: std::thread::ScopedJoinHandle<'_, _>| match thread.join() {
            Ok(drawn) => drawn,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        others.into_iter().map(joined).fold(drawn, Result::and)
    })
}
