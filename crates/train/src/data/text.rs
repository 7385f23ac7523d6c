//! Texts as numbers: a tokenizer that is trained on the data or read from a file, and what it makes of a data set.

use std::path::Path;

use edgeward_graph::{DataType, Tensor};
use tokenizers::{
    AddedToken, PaddingParams, PaddingStrategy, Tokenizer, TruncationParams,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainer},
    },
    normalizers::BertNormalizer,
    pre_tokenizers::byte_level::ByteLevel,
    processors::bert::BertProcessing,
};

use super::{Columns, DataError, Dataset, Role};

/// Field of the tokens' numbers.
pub const INPUT_IDS: &str = "input_ids";
/// Field that is 1 where a token stands and 0 where the text has ended.
pub const ATTENTION_MASK: &str = "attention_mask";

const PAD: &str = "[PAD]";
const UNKNOWN: &str = "[UNK]";
const START: &str = "[CLS]";
const END: &str = "[SEP]";

/// A tokenizer that cuts and pads every text to one length.
#[derive(Clone)]
pub struct Tokenisation {
    tokenizer: Tokenizer,
    length: usize,
}

impl Tokenisation {
    /// Trains a byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) of at most `vocabulary` pieces on the texts of a
    /// data set, in lower case. The same texts give the same pieces, which the library's WordPiece trainer does not.
    pub fn train(dataset: &dyn Dataset, vocabulary: usize, length: usize) -> Result<Self, DataError> {
        let texts = texts(dataset)?.concat();
        let special = [PAD, UNKNOWN, START, END].map(|token| AddedToken::from(token, true)).to_vec();
        let trainer = BpeTrainer::builder().vocab_size(vocabulary).special_tokens(special).show_progress(false);
        let model = BPE::builder().unk_token(UNKNOWN.to_owned()).build().map_err(refused)?;
        let mut tokenizer = Tokenizer::new(model);
        tokenizer.with_normalizer(Some(BertNormalizer::default())).map_err(refused)?;
        let bytes = ByteLevel::default().add_prefix_space(true).trim_offsets(true);
        tokenizer.with_pre_tokenizer(Some(bytes)).with_decoder(Some(bytes));
        let mut trainer = TrainerWrapper::BpeTrainer(trainer.build());
        tokenizer.train(&mut trainer, texts.iter()).map_err(refused)?;
        let number = |token: &str| (token.to_owned(), tokenizer.token_to_id(token).unwrap_or_default());
        let around = BertProcessing::new(number(END), number(START));
        tokenizer.with_post_processor(Some(around));
        Self::of(tokenizer, length)
    }

    /// Reads a `tokenizer.json`.
    pub fn read(path: &Path, length: usize) -> Result<Self, DataError> {
        let bytes = std::fs::read(path).map_err(DataError::io("read", path))?;
        let broken = |error: tokenizers::Error| DataError::malformed(path, format!("is no tokenizer: {error}"));
        Self::of(Tokenizer::from_bytes(bytes).map_err(broken)?, length)
    }

    fn of(mut tokenizer: Tokenizer, length: usize) -> Result<Self, DataError> {
        let pad = ["[PAD]", "<pad>", "<|endoftext|>"].into_iter().find(|token| tokenizer.token_to_id(token).is_some());
        let pad_token = pad.unwrap_or(PAD).to_owned();
        let pad_id = tokenizer.token_to_id(&pad_token).unwrap_or(0);
        let strategy = PaddingStrategy::Fixed(length);
        tokenizer.with_padding(Some(PaddingParams { strategy, pad_id, pad_token, ..PaddingParams::default() }));
        let truncation = TruncationParams { max_length: length, ..TruncationParams::default() };
        let short = |_| DataError::fit(format!("`{length}` tokens are too few for a text; expected 4 or more"));
        tokenizer.with_truncation(Some(truncation)).map_err(short)?;
        Ok(Self { tokenizer, length })
    }

    /// Pieces of the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// Tokens of every text.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The number that stands for what the vocabulary lacks, where it has one.
    pub fn unknown(&self) -> Option<i64> {
        self.tokenizer.token_to_id(UNKNOWN).map(i64::from)
    }

    /// The smallest number that stands for a piece of text and not for its frame.
    pub fn first_of_text(&self) -> i64 {
        let frame = [PAD, UNKNOWN, START, END, "<s>", "</s>", "<pad>"];
        let most = frame.iter().filter_map(|token| self.tokenizer.token_to_id(token)).max();
        most.map_or(0, |id| i64::from(id) + 1)
    }

    /// The tokenizer as a `tokenizer.json`, cutting and padding included.
    pub fn to_json(&self) -> Result<String, DataError> {
        self.tokenizer.to_string(true).map_err(refused)
    }
}

fn refused(error: tokenizers::Error) -> DataError {
    DataError::fit(format!("the tokenizer fails: {error}"))
}

/// The columns of text, whole.
fn texts(dataset: &dyn Dataset) -> Result<Vec<Vec<String>>, DataError> {
    let rows: Vec<usize> = (0..dataset.len()).collect();
    let tensors = dataset.batch(&rows)?;
    let inputs = dataset.fields().iter().zip(&tensors);
    let inputs = inputs.filter(|(field, _)| field.role == Role::Input && field.dtype == DataType::String);
    let columns: Vec<Vec<String>> = inputs
        .map(|(_, tensor)| {
            let strings = tensor.strings().unwrap_or_default();
            strings.iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect()
        })
        .collect();
    match columns.len() {
        1 | 2 => Ok(columns),
        count => Err(DataError::fit(format!("the data has {count} columns of text; expected one, or two for pairs"))),
    }
}

/// The data set with its texts, or pairs of texts, as [`INPUT_IDS`] and [`ATTENTION_MASK`], int64 `[length]`.
pub fn tokenise(dataset: &dyn Dataset, tokenisation: &Tokenisation) -> Result<Columns, DataError> {
    let mut columns = texts(dataset)?.into_iter();
    let (first, second) = (columns.next().unwrap_or_default(), columns.next());
    let tokenizer = &tokenisation.tokenizer;
    let encoded = match second {
        None => tokenizer.encode_batch_fast(first, true),
        Some(second) => tokenizer.encode_batch_fast(first.into_iter().zip(second).collect::<Vec<_>>(), true),
    };
    let encoded = encoded.map_err(refused)?;
    let shape = [encoded.len(), tokenisation.length];
    let ids = encoded.iter().flat_map(|text| text.get_ids().iter().map(|&id| i64::from(id))).collect();
    let mask = encoded.iter().flat_map(|text| text.get_attention_mask().iter().map(|&id| i64::from(id))).collect();
    let fit = |error: edgeward_graph::TensorError| DataError::fit(error.to_string());
    let mut out = vec![
        (INPUT_IDS.to_owned(), Role::Input, Tensor::from_vec(shape, ids).map_err(fit)?),
        (ATTENTION_MASK.to_owned(), Role::Input, Tensor::from_vec(shape, mask).map_err(fit)?),
    ];
    let rows: Vec<usize> = (0..dataset.len()).collect();
    for (field, tensor) in dataset.fields().iter().zip(dataset.batch(&rows)?) {
        if field.dtype != DataType::String {
            out.push((field.name.clone(), field.role, tensor));
        }
    }
    let columns = Columns::new(out)?;
    Ok(match dataset.classes() {
        Some(classes) => columns.with_classes(classes.to_vec()),
        None => columns,
    })
}
