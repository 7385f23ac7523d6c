//! Models to begin with: initialised ONNX graphs for users who bring none.
//!
//! Each has a dynamic batch, names its parameters as PyTorch does, so that patterns of names freeze what they would
//! there, and has its BatchNormalization in inference form, as an export has. Training them is the loop's.

mod builder;
mod convolution;
mod mlp;
mod transformer;

use edgeward_graph::Model;

pub use transformer::heads;

/// What kind of model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Residual convolutional network (He et al. 2016). Pictures up to 64 pixels: the form for CIFAR-10 of their section
    /// 4.2 (20 layers from 16 channels); larger ones: the form for ImageNet (18 layers from 64 channels).
    Resnet,
    /// MobileNetV2 (Sandler et al. 2018); pictures up to 64 pixels keep their size in the first stages.
    Mobilenet,
    /// Dense layers with ReLU between them.
    Mlp,
    /// Transformer encoder with the norm before each block (Vaswani et al. 2017; Xiong et al. 2020), learnt positions
    /// and the mean over a text's tokens.
    Transformer,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Resnet, Self::Mobilenet, Self::Mlp, Self::Transformer];

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Resnet => "resnet",
            Self::Mobilenet => "mobilenet",
            Self::Mlp => "mlp",
            Self::Transformer => "transformer",
        }
    }
}

/// What a starter is to be like.
#[derive(Clone, Debug, PartialEq)]
pub struct Starter {
    /// What kind of model.
    pub kind: Kind,
    /// Shape of one example: `channels, height, width` of pictures, `tokens` of texts, anything for dense layers.
    pub input: Vec<usize>,
    /// Classes, each an output.
    pub classes: usize,
    /// Channels of the first stage, or size of a hidden layer; 100 stands for MobileNet's own widths, in hundredths.
    pub width: Option<usize>,
    /// Layers, counted as the kind counts them.
    pub depth: Option<usize>,
    /// Pieces of the vocabulary, for texts.
    pub vocabulary: usize,
    /// Part of the units, of dense layers and transformers, that learning leaves out at random (Srivastava et al. 2014).
    pub dropout: f32,
    /// The same seed gives the same weights.
    pub seed: u64,
}

/// Why there is no such model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StarterError(String);

/// The most elements of one example.
const ELEMENTS_MAX: usize = 1 << 26;
/// The most channels, units, layers, classes and pieces.
const SIZE_MAX: usize = 1 << 20;

/// Makes the model. Errors: a shape that the kind does not take, or a size of 0 or beyond reason.
pub fn starter(wanted: &Starter) -> Result<Model, StarterError> {
    let error = |text: String| Err(StarterError(text));
    let elements = wanted.input.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    if wanted.input.is_empty() || elements.is_none_or(|count| count == 0 || count > ELEMENTS_MAX) {
        return error(format!("input `{}` is no shape; expected e.g. `1,28,28`", shown(&wanted.input)));
    }
    let sizes = [("classes", Some(wanted.classes)), ("vocabulary", Some(wanted.vocabulary)), ("width", wanted.width)];
    for (name, size) in sizes.into_iter().chain([("depth", wanted.depth)]) {
        if size.is_some_and(|size| size == 0 || size > SIZE_MAX) {
            return error(format!("{name} `{}` is not possible; expected 1 to {SIZE_MAX}", size.unwrap_or_default()));
        }
    }
    let convolutional = matches!(wanted.kind, Kind::Resnet | Kind::Mobilenet);
    if !(0.0..1.0).contains(&wanted.dropout) || (convolutional && wanted.dropout > 0.0) {
        let expected = if convolutional { "none, by batch normalisation" } else { "0 or more and less than 1" };
        return error(format!(
            "dropout `{}` is not possible for `{}`; expected {expected}",
            wanted.dropout,
            wanted.kind.name()
        ));
    }
    match wanted.kind {
        Kind::Resnet => convolution::resnet(wanted),
        Kind::Mobilenet => convolution::mobilenet(wanted),
        Kind::Mlp => mlp::mlp(wanted),
        Kind::Transformer => transformer::transformer(wanted),
    }
}

fn shown(shape: &[usize]) -> String {
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}
