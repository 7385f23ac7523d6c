//! Tensors written to one file of external data, one after the other: what a model of any size is written with, while no more than one of its
//! tensors is in memory.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::{
    GraphError, Model, Tensor, codec,
    codec::is_external,
    model::staged,
    proto::{StringStringEntryProto, TensorProto, tensor_proto::DataLocation},
    walk,
};

/// Offsets of external data are multiples of a page, so that a reader can map each tensor.
const EXTERNAL_ALIGN: u64 = 4096;

/// The file `NAME.data` beside a model `NAME` that is being made. It has another name until [`finish`](Self::finish), and is gone where that is
/// not reached.
#[derive(Debug)]
pub struct ExternalWriter {
    file: File,
    /// Where the model goes.
    model: PathBuf,
    staged: PathBuf,
    offset: u64,
    /// Nothing is left under the name of the work in progress.
    moved: bool,
}

impl ExternalWriter {
    /// Begins the data of a model that will be written to `model`. Errors: a folder that cannot be written.
    pub fn create(model: &Path) -> Result<Self, GraphError> {
        let staged = staged(&data_path(model));
        let file = File::create(&staged).map_err(|source| failed(model, source))?;
        Ok(Self { file, model: model.to_owned(), staged, offset: 0, moved: false })
    }

    /// Writes `values` and makes `tensor` refer to them. Strings stay within the message: they have no external form.
    /// Errors: the file cannot be written, as on a full disk.
    pub fn append(&mut self, tensor: &mut TensorProto, values: &Tensor) -> Result<(), GraphError> {
        codec::store(tensor, values);
        let Some(raw) = values.raw() else { return Ok(()) };
        let offset = self.place(raw).map_err(|source| failed(&self.model, source))?;
        codec::clear_values(tensor);
        let location = name(&data_path(&self.model));
        let entry = |key: &str, value: String| StringStringEntryProto { key: Some(key.to_owned()), value: Some(value) };
        tensor.external_data = vec![
            entry("location", location),
            entry("offset", offset.to_string()),
            entry("length", raw.len().to_string()),
        ];
        tensor.data_location = Some(DataLocation::External as i32);
        Ok(())
    }

    /// The bytes on a page of their own; its offset.
    fn place(&mut self, raw: &[u8]) -> io::Result<u64> {
        let offset = self.offset.next_multiple_of(EXTERNAL_ALIGN);
        self.file.write_all(&vec![0; (offset - self.offset) as usize])?;
        self.file.write_all(raw)?;
        self.offset = offset + raw.len() as u64;
        Ok(offset)
    }

    /// Writes what `model` still holds itself, from `threshold` bytes on, then both files under their names: the data first.
    /// Errors: as [`append`](Self::append), and a model whose messages alone are more than a file may hold.
    pub fn finish(mut self, mut model: Model, threshold: usize) -> Result<(), GraphError> {
        let mut result = Ok(());
        walk::tensors_mut(model.proto_mut(), &mut |tensor| {
            if result.is_ok() && !is_external(tensor) {
                result = self.move_out(tensor, threshold);
            }
        });
        result?;
        // Known before anything has its name.
        model.encoded_len()?;
        let data = data_path(&self.model);
        self.file.sync_all().map_err(|source| failed(&self.model, source))?;
        fs::rename(&self.staged, &data).map_err(|source| failed(&self.model, source))?;
        self.moved = true;
        model.write(&self.model).inspect_err(|_| {
            // Without its model the data is of no use.
            let _ = fs::remove_file(&data);
        })
    }

    fn move_out(&mut self, tensor: &mut TensorProto, threshold: usize) -> Result<(), GraphError> {
        let Ok(values) = codec::decode(tensor) else { return Ok(()) };
        if values.raw().is_none_or(|raw| raw.len() < threshold.max(1)) {
            return Ok(());
        }
        self.append(tensor, &values)
    }
}

impl Drop for ExternalWriter {
    fn drop(&mut self) {
        if !self.moved {
            // That it may be gone already is no error.
            let _ = fs::remove_file(&self.staged);
        }
    }
}

/// `NAME.data` beside `NAME`.
fn data_path(model: &Path) -> PathBuf {
    model.with_file_name(format!("{}.data", name(model)))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn failed(model: &Path, source: io::Error) -> GraphError {
    GraphError::Io { action: "write", path: data_path(model), source }
}
