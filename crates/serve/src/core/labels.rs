//! Names of classes: `label_filename` of an output, for the classification extension.

use std::{collections::HashMap, path::Path, sync::Arc};

use bytes::Bytes;
use edgeward_graph::Tensor;

use crate::{
    core::{
        RequestedOutput,
        repository::{is_name, read_named},
    },
    proto::ModelConfig,
};

/// Largest file of labels.
const BYTES_MAX: u64 = 16 << 20;

/// Labels by output, in the order of the classes.
#[derive(Debug, Default)]
pub(super) struct Labels(HashMap<String, Vec<String>>);

impl Labels {
    /// Reads the files that the configuration names, which lie in the model's folder.
    pub(super) fn read(config: &ModelConfig, folder: &Path) -> Result<Self, String> {
        let mut all = HashMap::new();
        for output in config.output.iter().filter(|output| !output.label_filename.is_empty()) {
            let labels = lines(&folder.join(&output.label_filename), &output.label_filename);
            all.insert(output.name.clone(), labels.map_err(|text| format!("output `{}`: {text}", output.name))?);
        }
        Ok(Self(all))
    }

    /// Which of the outputs asked for get labels.
    pub(super) fn wanted(&self, outputs: &[RequestedOutput]) -> Vec<String> {
        let wanted = outputs.iter().filter(|o| o.classification > 0 && self.0.contains_key(&o.name));
        wanted.map(|output| output.name.clone()).collect()
    }

    /// Makes `value:index` of these outputs `value:index:label`; a class beyond the last label stays as it is.
    pub(super) fn add(&self, wanted: &[String], outputs: &mut [(Arc<str>, Tensor)]) {
        for (name, tensor) in outputs.iter_mut().filter(|(name, _)| wanted.iter().any(|w| **w == **name)) {
            let (Some(labels), Some(texts)) = (self.0.get(&**name), tensor.strings()) else { continue };
            let labelled = texts.iter().map(|text| labelled(text, labels)).collect();
            if let Ok(labelled) = Tensor::from_strings(tensor.shape().to_vec(), labelled) {
                *tensor = labelled;
            }
        }
    }
}

fn labelled(text: &Bytes, labels: &[String]) -> Bytes {
    let shown = String::from_utf8_lossy(text);
    let index = shown.rsplit(':').next().and_then(|index| index.parse::<usize>().ok());
    match index.and_then(|index| labels.get(index)) {
        Some(label) => format!("{shown}:{label}").into(),
        None => text.clone(),
    }
}

fn lines(path: &Path, name: &str) -> Result<Vec<String>, String> {
    if !is_name(name) {
        return Err(format!("`label_filename` is `{name}`, expected the name of a file in the model's folder"));
    }
    let shown = format!("label file `{name}`");
    let text = String::from_utf8(read_named(path, &shown, BYTES_MAX)?).map_err(|_| format!("{shown}: not UTF-8"))?;
    Ok(text.lines().map(str::to_owned).collect())
}
