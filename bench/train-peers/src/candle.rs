//! The models in candle.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{
    BatchNorm, Conv2d, Conv2dConfig, Embedding, LayerNorm, Linear, Module, ModuleT, Optimizer, ParamsAdamW, SGD, VarBuilder,
    VarMap, batch_norm, conv2d_no_bias, embedding, layer_norm, linear, loss::cross_entropy, ops::softmax_last_dim,
};

use crate::{indices, numbers, sizes::*, timed};

struct Block {
    a: Conv2d,
    na: BatchNorm,
    b: Conv2d,
    nb: BatchNorm,
    short: Option<(Conv2d, BatchNorm)>,
}

fn conv(i: usize, o: usize, kernel: usize, stride: usize, vb: VarBuilder<'_>) -> Result<Conv2d> {
    conv2d_no_bias(i, o, kernel, Conv2dConfig { padding: kernel / 2, stride, ..Default::default() }, vb)
}

impl Block {
    fn new(i: usize, o: usize, stride: usize, vb: VarBuilder<'_>) -> Result<Self> {
        let short = if stride == 1 && i == o {
            None
        } else {
            Some((conv(i, o, 1, stride, vb.pp("c"))?, batch_norm(o, 1e-5, vb.pp("nc"))?))
        };
        Ok(Self {
            a: conv(i, o, 3, stride, vb.pp("a"))?,
            na: batch_norm(o, 1e-5, vb.pp("na"))?,
            b: conv(o, o, 3, 1, vb.pp("b"))?,
            nb: batch_norm(o, 1e-5, vb.pp("nb"))?,
            short,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.na.forward_t(&self.a.forward(x)?, true)?.relu()?;
        let y = self.nb.forward_t(&self.b.forward(&y)?, true)?;
        let short = match &self.short {
            None => x.clone(),
            Some((conv, norm)) => norm.forward_t(&conv.forward(x)?, true)?,
        };
        (y + short)?.relu()
    }
}

/// Steps of ResNet-18 on pictures of 28 x 28, by gradient descent (candle's knows no momentum).
pub fn resnet(steps: usize) -> anyhow::Result<()> {
    let (device, map) = (Device::Cpu, VarMap::new());
    let vb = VarBuilder::from_varmap(&map, DType::F32, &device);
    let stem = (conv(1, 64, 3, 1, vb.pp("stem"))?, batch_norm(64, 1e-5, vb.pp("norm"))?);
    let mut blocks = Vec::new();
    let mut before = 64;
    for (i, (width, stride)) in GROUPS.into_iter().enumerate() {
        blocks.push(Block::new(before, width, stride, vb.pp(format!("{i}.0")))?);
        blocks.push(Block::new(width, width, 1, vb.pp(format!("{i}.1")))?);
        before = width;
    }
    let head = linear(512, CLASSES, vb.pp("head"))?;
    let x = Tensor::from_vec(numbers(PICTURES * SIDE * SIDE), (PICTURES, 1, SIDE, SIDE), &device)?;
    let y = Tensor::from_vec(indices(PICTURES, CLASSES), PICTURES, &device)?;
    let mut optimiser = SGD::new(map.all_vars(), 0.01)?;
    timed(steps, || {
        let mut h = stem.1.forward_t(&stem.0.forward(&x)?, true)?.relu()?;
        for block in &blocks {
            h = block.forward(&h)?;
        }
        let logits = head.forward(&h.mean((2, 3))?)?;
        let loss = cross_entropy(&logits, &y)?;
        optimiser.backward_step(&loss)?;
        Ok(loss.to_scalar()?)
    })
}

struct Layer {
    n1: LayerNorm,
    qkv: Linear,
    out: Linear,
    n2: LayerNorm,
    up: Linear,
    down: Linear,
}

impl Layer {
    fn new(vb: VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            n1: layer_norm(WIDTH, 1e-5, vb.pp("n1"))?,
            qkv: linear(WIDTH, 3 * WIDTH, vb.pp("qkv"))?,
            out: linear(WIDTH, WIDTH, vb.pp("out"))?,
            n2: layer_norm(WIDTH, 1e-5, vb.pp("n2"))?,
            up: linear(WIDTH, 4 * WIDTH, vb.pp("up"))?,
            down: linear(4 * WIDTH, WIDTH, vb.pp("down"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (b, t, w) = x.dims3()?;
        let depth = w / HEADS;
        let qkv = self.qkv.forward(&self.n1.forward(x)?)?;
        let qkv = qkv.reshape((b, t, 3, HEADS, depth))?.permute((2, 0, 3, 1, 4))?.contiguous()?;
        let (q, k, v) = (qkv.get(0)?, qkv.get(1)?, qkv.get(2)?);
        let scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? * (1.0 / (depth as f64).sqrt()))?;
        let mixed = softmax_last_dim(&scores)?.matmul(&v)?.transpose(1, 2)?.contiguous()?.reshape((b, t, w))?;
        let x = (x + self.out.forward(&mixed)?)?;
        let wide = self.up.forward(&self.n2.forward(&x)?)?.gelu_erf()?;
        x + self.down.forward(&wide)?
    }
}

/// Steps of the transformer by AdamW without decay, which is Adam.
pub fn transformer(steps: usize) -> anyhow::Result<()> {
    let (device, map) = (Device::Cpu, VarMap::new());
    let vb = VarBuilder::from_varmap(&map, DType::F32, &device);
    let words: Embedding = embedding(WORDS, WIDTH, vb.pp("words"))?;
    let places: Embedding = embedding(LENGTH, WIDTH, vb.pp("places"))?;
    let layers = (0..LAYERS).map(|i| Layer::new(vb.pp(format!("{i}")))).collect::<Result<Vec<_>>>()?;
    let (norm, head) = (layer_norm(WIDTH, 1e-5, vb.pp("norm"))?, linear(WIDTH, 2, vb.pp("head"))?);
    let x = Tensor::from_vec(indices(TEXTS * LENGTH, WORDS), (TEXTS, LENGTH), &device)?;
    let at = Tensor::arange(0i64, LENGTH as i64, &device)?;
    let y = Tensor::from_vec(indices(TEXTS, 2), TEXTS, &device)?;
    let settings = ParamsAdamW { lr: 1e-3, weight_decay: 0.0, ..Default::default() };
    let mut optimiser = candle_nn::AdamW::new(map.all_vars(), settings)?;
    timed(steps, || {
        let mut h = words.forward(&x)?.broadcast_add(&places.forward(&at)?)?;
        for layer in &layers {
            h = layer.forward(&h)?;
        }
        let logits = head.forward(&norm.forward(&h)?.mean(1)?)?;
        let loss = cross_entropy(&logits, &y)?;
        optimiser.backward_step(&loss)?;
        Ok(loss.to_scalar()?)
    })
}
