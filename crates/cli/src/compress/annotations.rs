//! Annotated boxes from a file: the JSON of COCO's instances (Lin et al. 2014), one list of boxes for each example.

use std::{
    collections::HashMap,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, bail};
use edgeward_compress::{BoxForm, Detector, Rect, Truth};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value;

use crate::failure::{Failure, OrInput as _};

/// COCO's own largest file has half of this.
const BYTES_MAX: u64 = 1 << 30;

const EXPECTED: &str = "expected JSON of COCO's instances, {\"images\": [{\"id\"}], \"annotations\": [{\"image_id\", \"category_id\", \"bbox\": \
                        [x, y, width, height]}], \"categories\": [{\"id\"}]}, all numbers finite";

/// What there is to be found in each example.
pub struct Annotations {
    path: PathBuf,
    /// Boxes of each image with their categories, in the file's order.
    images: Vec<Vec<(u64, Rect, bool)>>,
    /// Images by ascending ids.
    order: Vec<usize>,
    /// Ids of categories, ascending.
    categories: Vec<u64>,
}

#[derive(Deserialize)]
#[serde(expecting = "an object with `images`, `annotations` and `categories`")]
struct Instances {
    images: Vec<Image>,
    annotations: Vec<Annotation>,
    categories: Vec<Category>,
}

#[derive(Deserialize)]
#[serde(expecting = "an image, {\"id\"}")]
struct Image {
    #[serde(deserialize_with = "id")]
    id: u64,
}

#[derive(Deserialize)]
#[serde(expecting = "a category, {\"id\"}")]
struct Category {
    #[serde(deserialize_with = "id")]
    id: u64,
}

#[derive(Deserialize)]
#[serde(expecting = "an annotation, {\"image_id\", \"category_id\", \"bbox\"}")]
struct Annotation {
    #[serde(deserialize_with = "id")]
    image_id: u64,
    #[serde(deserialize_with = "id")]
    category_id: u64,
    #[serde(deserialize_with = "sides")]
    bbox: Vec<f64>,
    #[serde(default, deserialize_with = "crowd")]
    iscrowd: bool,
}

/// A value as `read` takes it; what it does not take is named beside what was expected, in words.
fn told<'de, D: Deserializer<'de>, T>(
    from: D,
    expected: &str,
    read: impl FnOnce(&Value) -> Option<T>,
) -> Result<T, D::Error> {
    let value = Value::deserialize(from)?;
    read(&value).ok_or_else(|| D::Error::custom(format!("`{value}` is no {expected}")))
}

fn id<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    told(from, "id, a whole number from 0 on", Value::as_u64)
}

fn sides<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<f64>, D::Error> {
    let numbers = |value: &Value| value.as_array()?.iter().map(Value::as_f64).collect();
    told(from, "`bbox`, a list of numbers", numbers)
}

/// COCO has 0 and 1, others write truth values.
fn crowd<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    let truth = |value: &Value| match value.as_u64() {
        Some(number) => (number < 2).then_some(number == 1),
        None => value.as_bool(),
    };
    told(from, "`iscrowd`, 0 or 1", truth)
}

impl Annotations {
    /// Reads a file. Errors name it, and the annotation that is wrong.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let read = || {
            let mut text = String::new();
            File::open(path)?.take(BYTES_MAX + 1).read_to_string(&mut text)?;
            if text.len() as u64 > BYTES_MAX {
                bail!("is larger than {BYTES_MAX} bytes; leave segmentations out");
            }
            Self::parse(path, &text)
        };
        read().with_context(|| format!("annotations `{}`", path.display())).or_input()
    }

    fn parse(path: &Path, text: &str) -> anyhow::Result<Self> {
        let instances: Instances = serde_json::from_str(text).map_err(|error| anyhow!("{error}; {EXPECTED}"))?;
        let mut places = HashMap::new();
        for (at, image) in instances.images.iter().enumerate() {
            if places.insert(image.id, at).is_some() {
                bail!("two images have the id `{}`; number them apart", image.id);
            }
        }
        let mut categories: Vec<u64> = instances.categories.iter().map(|category| category.id).collect();
        categories.sort_unstable();
        categories.dedup();
        let mut images = vec![Vec::new(); instances.images.len()];
        for (number, annotation) in instances.annotations.iter().enumerate() {
            let (place, boxed) =
                annotation.boxed(&places, &categories).with_context(|| format!("annotation {number} (from 0)"))?;
            images.get_mut(place).into_iter().for_each(|image| image.push(boxed));
        }
        if images.iter().flatten().all(|(_, _, crowd)| *crowd) {
            bail!("there is no box to be found; annotate what the model shall find");
        }
        let mut order: Vec<usize> = (0..images.len()).collect();
        order.sort_by_key(|at| instances.images.get(*at).map(|image| image.id));
        Ok(Self { path: path.to_owned(), images, order, categories })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Images.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// The first `examples` images by ascending ids.
    pub fn order(&self, examples: usize) -> Vec<usize> {
        self.order.iter().copied().filter(|at| *at < examples).collect()
    }

    /// What a detector shall find in the first `examples` images. Categories are its classes by ascending ids; in the form `found` its labels
    /// are the ids themselves, as torchvision has it. Errors: another number of categories than of classes.
    pub fn truths(&self, detector: &Detector, examples: usize) -> Result<Vec<Vec<Truth>>, Failure> {
        let (classes, categories) = (detector.classes(), self.categories.len());
        if let Some(classes) = classes.filter(|classes| *classes != categories) {
            return Err(Failure::input(format!(
                "annotations `{}` have {categories} categories, the model tells {classes} classes apart; list all of its classes in \
                 `categories`, ids ascending in its order",
                self.path.display()
            )));
        }
        let by_id = detector.form() == BoxForm::Found;
        let class = |id: u64| if by_id { usize::try_from(id).ok() } else { self.categories.binary_search(&id).ok() };
        let truth =
            |(id, rect, crowd): &(u64, Rect, bool)| Some(Truth { rect: *rect, class: class(*id)?, crowd: *crowd });
        let image = |image: &Vec<(u64, Rect, bool)>| image.iter().filter_map(truth).collect();
        Ok(self.images.iter().take(examples).map(image).collect())
    }

    /// Whether `label` is a category's id.
    pub fn has(&self, label: usize) -> bool {
        self.categories.binary_search(&(label as u64)).is_ok()
    }
}

impl Annotation {
    /// The image's place, and the box with its category.
    fn boxed(&self, places: &HashMap<u64, usize>, categories: &[u64]) -> anyhow::Result<(usize, (u64, Rect, bool))> {
        let place = places.get(&self.image_id);
        let place = place.with_context(|| format!("no image has the id `{}`", self.image_id))?;
        if categories.binary_search(&self.category_id).is_err() {
            bail!("no category has the id `{}`", self.category_id);
        }
        let &[x, y, width, height] = self.bbox.as_slice() else {
            bail!("`bbox` has {} numbers, expected x, y, width and height", self.bbox.len());
        };
        if width < 0.0 || height < 0.0 || !self.bbox.iter().all(|side| side.is_finite()) {
            bail!("`bbox` {:?} is no box; expected x, y, width and height in pixels of the model's input", self.bbox);
        }
        Ok((*place, (self.category_id, Rect { x, y, width, height }, self.iscrowd)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Annotations, String> {
        Annotations::parse(Path::new("a.json"), text).map_err(|error| format!("{error:#}"))
    }

    const GOOD: &str = r#"{"images": [{"id": 9, "file_name": "b.jpg"}, {"id": 4}], "categories": [{"id": 7}, {"id": 2, "name": "cat"}],
        "annotations": [{"image_id": 4, "category_id": 7, "bbox": [1, 2, 3, 4], "iscrowd": 0, "area": 12},
                        {"image_id": 9, "category_id": 2, "bbox": [0, 0, 5, 5], "iscrowd": 1}]}"#;

    #[test]
    fn boxes_go_to_their_images() {
        let read = parse(GOOD).unwrap();
        assert_eq!((read.len(), read.order(2), read.order(1)), (2, vec![1, 0], vec![0]));
        assert_eq!(read.images[0], [(2, Rect { x: 0.0, y: 0.0, width: 5.0, height: 5.0 }, true)]);
        assert_eq!(read.images[1], [(7, Rect { x: 1.0, y: 2.0, width: 3.0, height: 4.0 }, false)]);
        assert!(read.has(7) && !read.has(0));
    }

    #[test]
    fn a_crowd_is_a_number_or_a_truth_value() {
        let text = GOOD.replace("\"iscrowd\": 0", "\"iscrowd\": false").replace("\"iscrowd\": 1", "\"iscrowd\": true");
        let (as_truth, as_number) = (parse(&text).unwrap(), parse(GOOD).unwrap());
        assert_eq!(as_truth.images, as_number.images);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (from, to, expected) in [
            ("\"annotations\"", "\"boxes\"", "missing field `annotations`"),
            ("\"bbox\": [1, 2, 3, 4]", "\"bbox\": [1, 2, 3]", "`bbox` has 3 numbers"),
            ("[1, 2, 3, 4]", "[1, 2, NaN, 4]", "all numbers finite"),
            ("[1, 2, 3, 4]", "[1, 2, -3, 4]", "annotation 0 (from 0): `bbox` [1.0, 2.0, -3.0, 4.0] is no box"),
            ("[1, 2, 3, 4]", "[1, 2, 1e999, 4]", "out of range"),
            ("\"id\": 9", "\"id\": 4", "two images have the id `4`"),
            ("\"image_id\": 9", "\"image_id\": 8", "annotation 1 (from 0): no image has the id `8`"),
            ("\"category_id\": 7", "\"category_id\": 1", "no category has the id `1`"),
            ("\"iscrowd\": 0", "\"iscrowd\": true", "there is no box to be found"),
            ("\"iscrowd\": 0", "\"iscrowd\": 2", "`2` is no `iscrowd`, 0 or 1"),
            ("\"id\": 9", "\"id\": \"9\"", "`\"9\"` is no id, a whole number from 0 on at line 1"),
            ("\"image_id\": 9", "\"image_id\": -9", "`-9` is no id, a whole number"),
            ("[1, 2, 3, 4]", "[1, 2, null, 4]", "`[1,2,null,4]` is no `bbox`, a list of numbers"),
            ("{\"id\": 4}", "4", "expected an image, {\"id\"}"),
            ("{", "", "expected JSON of COCO's instances"),
        ] {
            let text = GOOD.replacen(from, to, 1);
            let said = parse(&text).err().unwrap_or_else(|| panic!("{text}"));
            assert!(said.contains(expected), "{said}");
        }
    }
}
