//! The models in burn, on its backend for processors.

use burn::{
    module::Module,
    nn::{
        BatchNorm, BatchNormConfig, Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig, PaddingConfig2d,
        conv::{Conv2d, Conv2dConfig},
        loss::CrossEntropyLossConfig,
    },
    optim::{AdamConfig, GradientsParams, SgdConfig, momentum::MomentumConfig},
    tensor::{
        Device, Int, Tensor, TensorData,
        activation::{gelu, relu, softmax},
    },
};

use crate::{indices, numbers, sizes::*, timed};

#[derive(Module, Debug)]
struct Block {
    a: Conv2d,
    na: BatchNorm,
    b: Conv2d,
    nb: BatchNorm,
    short: Option<Conv2d>,
    nshort: Option<BatchNorm>,
}

fn conv(i: usize, o: usize, kernel: usize, stride: usize, device: &Device) -> Conv2d {
    let pad = kernel / 2;
    Conv2dConfig::new([i, o], [kernel, kernel])
        .with_stride([stride, stride])
        .with_padding(PaddingConfig2d::Explicit(pad, pad, pad, pad))
        .with_bias(false)
        .init(device)
}

impl Block {
    fn new(i: usize, o: usize, stride: usize, device: &Device) -> Self {
        let norm = || BatchNormConfig::new(o).init(device);
        let plain = stride == 1 && i == o;
        Self {
            a: conv(i, o, 3, stride, device),
            na: norm(),
            b: conv(o, o, 3, 1, device),
            nb: norm(),
            short: (!plain).then(|| conv(i, o, 1, stride, device)),
            nshort: (!plain).then(norm),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let y = relu(self.na.forward(self.a.forward(x.clone())));
        let y = self.nb.forward(self.b.forward(y));
        let short = match (&self.short, &self.nshort) {
            (Some(conv), Some(norm)) => norm.forward(conv.forward(x)),
            _ => x,
        };
        relu(y + short)
    }
}

#[derive(Module, Debug)]
struct Resnet {
    stem: Conv2d,
    norm: BatchNorm,
    blocks: Vec<Block>,
    head: Linear,
}

impl Resnet {
    fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let mut h = relu(self.norm.forward(self.stem.forward(x)));
        for block in &self.blocks {
            h = block.forward(h);
        }
        let [batch, channels, height, width] = h.dims();
        self.head.forward(h.reshape([batch, channels, height * width]).mean_dim(2).reshape([batch, channels]))
    }
}

/// Steps of ResNet-18 on pictures of 28 x 28, by gradient descent with momentum.
pub fn resnet(steps: usize) -> anyhow::Result<()> {
    let device = Device::flex().autodiff();
    let mut blocks = Vec::new();
    let mut before = 64;
    for (width, stride) in GROUPS {
        blocks.push(Block::new(before, width, stride, &device));
        blocks.push(Block::new(width, width, 1, &device));
        before = width;
    }
    let mut model = Resnet {
        stem: conv(1, 64, 3, 1, &device),
        norm: BatchNormConfig::new(64).init(&device),
        blocks,
        head: LinearConfig::new(512, CLASSES).init(&device),
    };
    let x: Tensor<4> = Tensor::from_data(TensorData::new(numbers(PICTURES * SIDE * SIDE), [PICTURES, 1, SIDE, SIDE]), &device);
    let y: Tensor<1, Int> = Tensor::from_data(TensorData::new(indices(PICTURES, CLASSES), [PICTURES]), &device);
    let momentum = MomentumConfig::new().with_momentum(0.9).with_dampening(0.0);
    let mut optimiser = SgdConfig::new().with_momentum(Some(momentum)).init();
    let criterion = CrossEntropyLossConfig::new().init(&device);
    timed(steps, || {
        let loss = criterion.forward(model.forward(x.clone()), y.clone());
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimiser.step(0.01, model.clone(), gradients);
        Ok(loss.into_scalar::<f32>())
    })
}

#[derive(Module, Debug)]
struct Layer {
    n1: LayerNorm,
    qkv: Linear,
    out: Linear,
    n2: LayerNorm,
    up: Linear,
    down: Linear,
}

impl Layer {
    fn new(device: &Device) -> Self {
        Self {
            n1: LayerNormConfig::new(WIDTH).init(device),
            qkv: LinearConfig::new(WIDTH, 3 * WIDTH).init(device),
            out: LinearConfig::new(WIDTH, WIDTH).init(device),
            n2: LayerNormConfig::new(WIDTH).init(device),
            up: LinearConfig::new(WIDTH, 4 * WIDTH).init(device),
            down: LinearConfig::new(4 * WIDTH, WIDTH).init(device),
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [b, t, w] = x.dims();
        let depth = w / HEADS;
        let qkv = self.qkv.forward(self.n1.forward(x.clone()));
        let part = |i: usize| -> Tensor<4> {
            qkv.clone().slice([0..b, 0..t, i * w..(i + 1) * w]).reshape([b, t, HEADS, depth]).swap_dims(1, 2)
        };
        let scores = part(0).matmul(part(1).transpose()) / (depth as f64).sqrt();
        let mixed = softmax(scores, 3).matmul(part(2)).swap_dims(1, 2).reshape([b, t, w]);
        let x = x + self.out.forward(mixed);
        x.clone() + self.down.forward(gelu(self.up.forward(self.n2.forward(x))))
    }
}

#[derive(Module, Debug)]
struct Transformer {
    words: Embedding,
    places: Embedding,
    layers: Vec<Layer>,
    norm: LayerNorm,
    head: Linear,
}

/// Steps of the transformer by Adam.
pub fn transformer(steps: usize) -> anyhow::Result<()> {
    let device = Device::flex().autodiff();
    let mut model = Transformer {
        words: EmbeddingConfig::new(WORDS, WIDTH).init(&device),
        places: EmbeddingConfig::new(LENGTH, WIDTH).init(&device),
        layers: (0..LAYERS).map(|_| Layer::new(&device)).collect(),
        norm: LayerNormConfig::new(WIDTH).init(&device),
        head: LinearConfig::new(WIDTH, 2).init(&device),
    };
    let x: Tensor<2, Int> = Tensor::from_data(TensorData::new(indices(TEXTS * LENGTH, WORDS), [TEXTS, LENGTH]), &device);
    let at: Tensor<2, Int> = Tensor::from_data(TensorData::new(indices(LENGTH, LENGTH), [1, LENGTH]), &device);
    let y: Tensor<1, Int> = Tensor::from_data(TensorData::new(indices(TEXTS, 2), [TEXTS]), &device);
    let mut optimiser = AdamConfig::new().init();
    let criterion = CrossEntropyLossConfig::new().init(&device);
    timed(steps, || {
        let mut h = model.words.forward(x.clone()) + model.places.forward(at.clone());
        for layer in &model.layers {
            h = layer.forward(h);
        }
        let pooled = model.norm.forward(h).mean_dim(1).reshape([TEXTS, WIDTH]);
        let loss = criterion.forward(model.head.forward(pooled), y.clone());
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimiser.step(1e-3, model.clone(), gradients);
        Ok(loss.into_scalar::<f32>())
    })
}
