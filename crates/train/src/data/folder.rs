//! A folder of pictures: one folder for each class, in the order of their names.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use edgeward_graph::{DataType, Tensor};
use image::{ImageReader, Limits, imageops::FilterType};

use super::{DataError, Dataset, Field, Role};

/// Endings of the files that are taken for pictures.
const ENDINGS: [&str; 5] = ["png", "jpg", "jpeg", "bmp", "webp"];
/// The most pixels along a side of a picture.
const SIDE_MAX: u32 = 1 << 14;
/// Decoded pictures are kept up to so many bytes; the rest is decoded again in each epoch.
const KEPT_BYTES: usize = 1 << 30;

/// Pictures by class, as red, green and blue bytes `[height, width, 3]`.
pub struct ImageFolder {
    files: Arc<Vec<PathBuf>>,
    labels: Vec<u32>,
    classes: Vec<String>,
    fields: Vec<Field>,
    size: (usize, usize),
    kept: Vec<OnceLock<Box<[u8]>>>,
}

impl ImageFolder {
    /// Looks at the folder; pictures are read when they are asked for. With `classes`, a folder of another name is an
    /// error. All have the first one's size unless [`Dataset::resized`] says another.
    pub fn open(folder: &Path, classes: Option<&[String]>) -> Result<Self, DataError> {
        let found = subfolders(folder)?;
        let classes = classes.map_or_else(|| found.clone(), <[String]>::to_vec);
        let (mut files, mut labels) = (Vec::new(), Vec::new());
        for name in found {
            let place = folder.join(&name);
            let Some(class) = classes.iter().position(|class| *class == name) else {
                let reason = format!("is none of the classes `{}`", classes.join("`, `"));
                return Err(DataError::malformed(&place, reason));
            };
            let pictures = pictures(&place)?;
            labels.extend(std::iter::repeat_n(class as u32, pictures.len()));
            files.extend(pictures);
        }
        let Some(first) = files.first() else {
            let reason = format!(
                "holds no pictures; expected a folder for each class with files `*.{}`",
                ENDINGS.join("`, `*.")
            );
            return Err(DataError::malformed(folder, reason));
        };
        let broken = |error: image::ImageError| DataError::malformed(first, format!("is no picture: {error}"));
        let reader = ImageReader::open(first).map_err(DataError::io("open", first))?;
        let reader = reader.with_guessed_format().map_err(DataError::io("read", first))?;
        let (width, height) = reader.into_dimensions().map_err(broken)?;
        Ok(Self::of(Arc::new(files), labels, classes, (height as usize, width as usize)))
    }

    fn of(files: Arc<Vec<PathBuf>>, labels: Vec<u32>, classes: Vec<String>, size: (usize, usize)) -> Self {
        let field = |name: &str, dtype, shape, role| Field { name: name.to_owned(), dtype, shape, role };
        let fields = vec![
            field("image", DataType::UInt8, vec![size.0, size.1, 3], Role::Input),
            field("label", DataType::Int64, Vec::new(), Role::Target),
        ];
        let kept = files.iter().map(|_| OnceLock::new()).collect();
        Self { files, labels, classes, fields, size, kept }
    }

    fn decode(&self, path: &Path) -> Result<Box<[u8]>, DataError> {
        let mut reader = ImageReader::open(path).map_err(DataError::io("open", path))?;
        let mut limits = Limits::default();
        (limits.max_image_width, limits.max_image_height) = (Some(SIDE_MAX), Some(SIDE_MAX));
        reader.limits(limits);
        let reader = reader.with_guessed_format().map_err(DataError::io("read", path))?;
        let broken = |error: image::ImageError| DataError::malformed(path, format!("is no picture: {error}"));
        let picture = reader.decode().map_err(broken)?;
        let (height, width) = (self.size.0 as u32, self.size.1 as u32);
        let fits = (picture.height(), picture.width()) == (height, width);
        let picture = if fits { picture } else { picture.resize_exact(width, height, FilterType::Triangle) };
        Ok(picture.into_rgb8().into_raw().into_boxed_slice())
    }
}

fn subfolders(folder: &Path) -> Result<Vec<String>, DataError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(DataError::io("read", folder))? {
        let entry = entry.map_err(DataError::io("read", folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() && !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn pictures(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(DataError::io("read", folder))? {
        let path = entry.map_err(DataError::io("read", folder))?.path();
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
        if ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str())) && path.is_file() {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

impl Dataset for ImageFolder {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn fields(&self) -> &[Field] {
        &self.fields
    }

    fn batch(&self, rows: &[usize]) -> Result<Vec<Tensor>, DataError> {
        let bytes = self.size.0 * self.size.1 * 3;
        let keep = bytes.saturating_mul(self.files.len()) <= KEPT_BYTES;
        let mut pixels = Vec::with_capacity(rows.len() * bytes);
        let mut labels = Vec::with_capacity(rows.len());
        for &row in rows {
            let (Some(path), Some(&label), Some(kept)) =
                (self.files.get(row), self.labels.get(row), self.kept.get(row))
            else {
                return Err(DataError::fit(format!("there is no picture {row}")));
            };
            labels.push(i64::from(label));
            match kept.get() {
                Some(picture) => pixels.extend_from_slice(picture),
                None => {
                    let picture = self.decode(path)?;
                    pixels.extend_from_slice(&picture);
                    if keep {
                        // Another thread may have kept the same picture meanwhile.
                        let _ = kept.set(picture);
                    }
                }
            }
        }
        let fit = |error: edgeward_graph::TensorError| DataError::fit(error.to_string());
        let pixels = Tensor::from_raw(DataType::UInt8, [rows.len(), self.size.0, self.size.1, 3], pixels.into());
        Ok(vec![pixels.map_err(fit)?, Tensor::from_vec([rows.len()], labels).map_err(fit)?])
    }

    fn labels(&self) -> Option<&[u32]> {
        Some(&self.labels)
    }

    fn classes(&self) -> Option<&[String]> {
        Some(&self.classes)
    }

    fn resized(&self, height: usize, width: usize) -> Option<Arc<dyn Dataset>> {
        Some(Arc::new(Self::of(self.files.clone(), self.labels.clone(), self.classes.clone(), (height, width))))
    }
}
