//! `edgeward compress --metric map` on a real detector, through the binary; pycocotools says what its boxes are worth.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use binary::{edgeward, json, python, text};
use serde_json::{Value, json as value};

#[path = "support/binary.rs"]
mod binary;

const SCRIPT: &str = "
import subprocess, sys, numpy
script, photos, out = sys.argv[1:]
subprocess.check_call([sys.executable, script, photos, 'images', '416', out])
(all,) = numpy.load(out).values()
# The first photo as it is, the second one mirrored.
numpy.savez(out, images=all[[0, 9]])
";

/// What is seen on `dog.jpg` and `person.jpg`, 416 pixels wide, drawn by hand: class, left, top, width, height.
const SEEN: [&[(u64, [f64; 4])]; 2] = [
    &[(16, [71.6, 120.0, 95.7, 171.7]), (1, [68.2, 72.9, 238.6, 154.2]), (7, [252.7, 40.7, 119.6, 51.0])],
    &[(0, [124.7, 64.5, 54.4, 179.5]), (16, [42.7, 172.0, 90.7, 51.1]), (17, [264.5, 90.7, 126.6, 134.1])],
];

/// A folder with `model.onnx` and `photos.npz`, two examples; none, said aloud, where something is missing.
fn folder() -> Option<tempfile::TempDir> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let data = std::env::var_os("EDGEWARD_DATA").map(PathBuf::from).unwrap_or_else(|| root.join("../shared/data"));
    let Some(python) = python() else {
        println!("skipped: EDGEWARD_TEST_PYTHON is not set");
        return None;
    };
    if !data.join("photos").is_dir() {
        println!("skipped: no photos in `{}`", data.display());
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let photos = folder.path().join("photos");
    fs::create_dir(&photos).unwrap();
    for name in ["dog.jpg", "person.jpg"] {
        fs::copy(data.join("photos").join(name), photos.join(name)).unwrap();
    }
    fs::copy(data.join("onnx/yolox_nano_416.onnx"), folder.path().join("model.onnx")).unwrap();
    let mut command = Command::new(python);
    command.args(["-c", SCRIPT]).arg(root.join("bench/photo_inputs.py")).arg(photos);
    let output = command.arg(folder.path().join("photos.npz")).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    Some(folder)
}

/// COCO's JSON of what is seen, ids out of order and with gaps.
fn annotated() -> Value {
    let ids = [40, 7];
    let mut annotations = Vec::new();
    for (at, id) in ids.iter().enumerate() {
        for (class, [x, y, width, height]) in SEEN[at] {
            let x = if at == 0 { *x } else { 416.0 - x - width };
            annotations.push(value!({ "id": annotations.len() + 1, "image_id": id, "category_id": 2 * class + 5,
                "bbox": [x, y, width, height], "area": width * height, "iscrowd": 0 }));
        }
    }
    // The bicycle stands in a crowd of them, for the sake of the format.
    annotations.push(value!({ "id": annotations.len() + 1, "image_id": 40, "category_id": 7,
        "bbox": [200, 60, 216, 170], "area": 36720, "iscrowd": 1 }));
    let images: Vec<Value> = ids.map(|id| value!({ "id": id, "file_name": format!("{id}.jpg") })).into();
    let categories: Vec<Value> = (0..80).rev().map(|class| value!({ "id": 2 * class + 5, "name": class })).collect();
    value!({ "images": images, "annotations": annotations, "categories": categories })
}

/// A report; whether something was better is for the machine to say.
fn report(folder: &Path, words: &str) -> Value {
    let output = edgeward(folder, &format!("compress model.onnx --data photos.npz --quick {words} -o out --json"));
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output)))
}

/// The metric of each variant that runs is within its interval, and its drop is what it lacks.
fn holds(report: &Value) {
    let before = report["original"]["metric"].as_f64().unwrap();
    let mut judged = 0;
    for variant in report["variants"].as_array().unwrap().iter().filter(|variant| !variant["metric"].is_null()) {
        let (metric, interval) = (variant["metric"].as_f64().unwrap(), &variant["interval"]);
        assert!((0.0..=1.0).contains(&metric), "{variant}");
        assert!(
            interval["low"].as_f64().unwrap() <= metric && metric <= interval["high"].as_f64().unwrap(),
            "{variant}"
        );
        assert!((variant["figures"]["drop"].as_f64().unwrap() - (before - metric)).abs() < 1e-12);
        judged += 1;
    }
    assert!(judged > 1, "{report}");
    // Half-size floats change next to nothing.
    let half = report["variants"].as_array().unwrap().iter().find(|variant| variant["name"] == "fp16").unwrap();
    assert!((half["metric"].as_f64().unwrap() - before).abs() < 0.05, "{half}");
}

#[test]
fn without_annotations_variants_are_held_against_what_the_original_finds() {
    let Some(folder) = folder() else { return };
    let report = report(folder.path(), "--engine rten --metric map");
    let data = &report["data"];
    assert_eq!((&report["metric"], &data["kind"], &data["examples"]), (&"map".into(), &"given".into(), &2.into()));
    // By definition, but for the rounding of a mean.
    assert!((report["original"]["metric"].as_f64().unwrap() - 1.0).abs() < 1e-12, "{report}");
    holds(&report);
    // Its depthwise convolutions read channels that are up to 700 times apart.
    let metric = |name: &str| {
        let variant = report["variants"].as_array().unwrap().iter().find(|variant| variant["name"] == name);
        variant.unwrap_or_else(|| panic!("no {name}"))["metric"].as_f64().unwrap()
    };
    let (levelled, plain) = (metric("int8-smooth-inputs"), metric("int8-inputs"));
    assert!(levelled > plain, "{levelled}, {plain} as it came");
}

#[test]
fn annotated_boxes_are_worth_what_pycocotools_says() {
    let Some(folder) = folder() else { return };
    let path = folder.path();
    fs::write(path.join("boxes.json"), annotated().to_string()).unwrap();
    let report = report(path, "--engine rten --annotations boxes.json");
    assert_eq!((&report["metric"], &report["data"]["kind"]), (&"map".into(), &"annotated".into()));
    holds(&report);
    let metric = report["original"]["metric"].as_f64().unwrap();
    assert!((0.4..1.0).contains(&metric), "{metric}");
    let python = python().unwrap();
    let there = Command::new(&python).args(["-c", "import pycocotools"]).output().unwrap();
    if !there.status.success() {
        return println!("skipped: the Python of EDGEWARD_TEST_PYTHON lacks pycocotools");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compress_boxes/reference.py");
    let mut command = Command::new(python);
    command.arg(script).args(["model.onnx", "photos.npz", "boxes.json"]).current_dir(path);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let expected: f64 = serde_json::from_slice(&output.stdout).unwrap();
    println!("{metric}, by pycocotools {expected}");
    // Another engine rounds otherwise.
    assert!((metric - expected).abs() < 1e-3, "{metric} instead of {expected}");
}

#[test]
fn what_boxes_cannot_be_held_against_is_told() {
    let Some(folder) = folder() else { return };
    let path = folder.path();
    let good = annotated();
    let write = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut changed = good.clone();
        change(&mut changed);
        fs::write(path.join(name), changed.to_string()).unwrap();
    };
    write("good.json", &|_| ());
    write("fewer.json", &|all| {
        all["images"].as_array_mut().unwrap().pop();
        all["annotations"].as_array_mut().unwrap().retain(|one| one["image_id"] != 7);
    });
    write("few.json", &|all| drop(all["categories"].as_array_mut().unwrap().drain(..10)));
    write("negative.json", &|all| all["annotations"][1]["bbox"][2] = (-1).into());
    write("elsewhere.json", &|all| {
        for one in all["annotations"].as_array_mut().unwrap() {
            one["bbox"] = value!([5000, 5000, 10, 10]);
        }
    });
    fs::write(path.join("text.json"), "[]").unwrap();
    json(path, "train new mlp --input 8 --classes 2 -o net.onnx");
    for (words, expected) in [
        ("--data photos.npz --annotations gone.json", "annotations `gone.json`"),
        ("--data photos.npz --annotations text.json", "expected JSON of COCO's instances"),
        ("--data photos.npz --annotations fewer.json", "`fewer.json` list 1 images, the data holds 2 examples"),
        ("--data photos.npz --annotations few.json", "the model tells 80 classes apart"),
        ("--data photos.npz --annotations negative.json", "annotation 1 (from 0): `bbox`"),
        ("--data photos.npz --annotations elsewhere.json", "in pixels of the model's input"),
        ("--data photos.npz --annotations good.json --metric cosine", "goes with `--metric map`"),
        ("--data photos.npz --boxes found", "`--boxes found` does not fit the outputs `output` [1, 3549, 85]"),
        ("--data photos.npz --boxes yolo", "expected 0 to 1"),
        ("--annotations good.json", "not made-up inputs; name the model's inputs with `--data FILE.npz`"),
        ("--metric map", "give real photos with `--data FILE.npz`"),
    ] {
        let output = edgeward(path, &format!("compress model.onnx --quick --engine rten {words}"));
        assert_eq!(output.status.code(), Some(2), "{words}: {}", text(&output));
        assert!(text(&output).contains(expected), "{words}: {}", text(&output));
    }
    let output = edgeward(path, "compress net.onnx --quick --engine rten --metric map");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("no input is one; expected [n, channels, height, width]"), "{}", text(&output));
}

/// A folder with small detectors and inputs, 4 pictures of 64 pixels, by `compress_boxes/models.py`.
fn made() -> Option<tempfile::TempDir> {
    let Some(python) = python() else {
        println!("skipped: EDGEWARD_TEST_PYTHON is not set");
        return None;
    };
    let folder = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compress_boxes/models.py");
    let output = Command::new(python).arg(script).current_dir(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    for (name, images, categories) in [("one.json", 4, 1), ("fewer.json", 3, 3), ("black.json", 1, 3)] {
        let annotation =
            |id: u64| value!({ "image_id": id, "category_id": 1, "bbox": [0, 0, 24, 24], "iscrowd": false });
        let all = value!({ "images": (0..images).map(|id| value!({ "id": id })).collect::<Vec<_>>(),
            "annotations": (0..images).map(annotation).collect::<Vec<_>>(),
            "categories": (1..=categories).map(|id| value!({ "id": id })).collect::<Vec<_>>() });
        fs::write(folder.path().join(name), all.to_string()).unwrap();
    }
    Some(folder)
}

#[test]
fn outputs_of_other_detectors_are_not_misread() {
    let Some(folder) = made() else { return };
    let mut failed = Vec::new();
    for (words, expected) in [
        ("decoded.onnx --data images.npz --metric map", "boxes are decoded within the graph"),
        ("detr.onnx --data images.npz --metric map", "25 boxes of which 0 are corners in order"),
        ("logits.onnx --data images.npz --metric map", "hold a score of -2.000; expected 0 to 1"),
        ("softmax.onnx --data images.npz --annotations one.json", "the model tells 3 classes apart"),
        ("unnamed.onnx --data images.npz --metric map", "rename one of them, and only one"),
        ("unnamed.onnx --data images.npz --boxes ssd", "rename one of them, and only one"),
        (
            "six.onnx --data six.npz --metric map",
            "1 to 4 channels, first or last; the model takes `image` [1, 6, 64, 64]",
        ),
        ("lines.onnx --data text.npz --annotations one.json", "the model tells 2 classes apart"),
        ("lines.onnx --data uneven.npz --metric map", "holds `text` [3, 77, 16], `image` [4, 3, 64, 64]"),
        ("two.onnx --data images.npz --metric map", "of one image in a run, and the model takes 2"),
        // Of the first picture there are no cells.
        ("late.onnx --data images.npz --annotations one.json", "the model tells 3 classes apart"),
        ("late.onnx --data black.npz --annotations black.json", "finds none of the boxes of `black.json`"),
        ("late.onnx --data black.npz --metric map", "finds no box of a score of 0.3"),
        ("single.onnx --data images.npz --annotations fewer.json", "list 3 images, the data holds 4 examples"),
        ("single.onnx --data alone.npz --annotations fewer.json", "list 3 images, the data holds 1 examples"),
        ("single.onnx --data images.npz --metric map --qat 1", "have no batch, along which training joins examples"),
        ("six.onnx --data misspelt.npz --metric map", "the model has no input `images`; it has `image`"),
    ] {
        let output = edgeward(folder.path(), &format!("compress {words} --quick --engine rten"));
        if output.status.code() != Some(2) || !text(&output).contains(expected) {
            failed.push(format!("{words}: {}", text(&output)));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn boxes_that_would_be_held_against_by_their_angle_are_told() {
    let Some(folder) = made() else { return };
    for (words, told) in [("--quick", true), ("--quick --metric cosine", false)] {
        let output = edgeward(folder.path(), &format!("compress single.onnx --data images.npz --engine rten {words}"));
        assert!(matches!(output.status.code(), Some(0 | 1)), "{}", text(&output));
        assert_eq!(text(&output).contains("look like boxes (`found`)"), told, "{}", text(&output));
    }
}

#[test]
fn boxes_of_one_image_are_judged_image_by_image() {
    let Some(folder) = made() else { return };
    let path = folder.path();
    let examples = |words: &str| {
        let output = edgeward(path, &format!("compress {words} --metric map --quick --engine rten -o out --json"));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)));
        assert!((report["original"]["metric"].as_f64().unwrap() - 1.0).abs() < 1e-12, "{report}");
        fs::remove_dir_all(path.join("out")).ok();
        report["data"]["examples"].clone()
    };
    // Pictures without a batch are stacked in the file, and a free batch is one image.
    assert_eq!(examples("single.onnx --data images.npz"), 4);
    assert_eq!(examples("single.onnx --data alone.npz"), 1);
    assert_eq!(examples("found.onnx --data images.npz"), 4);
    assert_eq!(examples("found.onnx --data labelled"), 4);
}
