//! Files as bytes: packed by gzip or not, and never more than a machine is asked to hold.

use std::{
    fs::File,
    io::{BufReader, Read},
    path::Path,
};

use super::DataError;

/// The most bytes of one file, unpacked.
pub(crate) const BYTES_MAX: u64 = 16 << 30;

/// A reader of the file, unpacked where its name ends in `.gz`.
pub(crate) fn reader(path: &Path) -> Result<Box<dyn Read>, DataError> {
    let file = BufReader::new(File::open(path).map_err(DataError::io("open", path))?);
    Ok(if packed(path) { Box::new(flate2::read::MultiGzDecoder::new(file)) } else { Box::new(file) })
}

/// The whole file, unpacked.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    let mut bytes = Vec::new();
    reader(path)?.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(DataError::io("read", path))?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(DataError::Limit { path: path.to_owned(), limit: BYTES_MAX });
    }
    Ok(bytes)
}

fn packed(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "gz")
}

/// The name without `.gz`, in lower case.
pub(crate) fn plain_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    name.strip_suffix(".gz").map_or(name.clone(), str::to_owned)
}
