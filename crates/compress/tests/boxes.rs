//! Detectors' outputs read as boxes, and average precision beside pycocotools, which defines it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use edgeward_compress::{
    BoxForm, CompressError, Detection, Detector, Matched, Rect, Run, Truth, observe::Inputs, pictures,
};
use edgeward_graph::{DataType, Tensor};
use serde_json::{Value, json};
use stepping::python_with;
use support::load;

#[path = "support/stepping.rs"]
mod stepping;
mod support;

/// Numbers that repeat, evenly in 0 to 1.
struct Drawn(u64);

impl Drawn {
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() * end as f64) as usize
    }

    fn rect(&mut self) -> Rect {
        let mut side = |most: f64| (self.next() * most * 4.0).round() / 4.0;
        Rect { x: side(300.0), y: side(200.0), width: side(90.0) + 1.0, height: side(90.0) + 1.0 }
    }

    /// Boxes of three classes, some of them crowds; detections near them and elsewhere, some of the same score. Some images are empty.
    fn image(&mut self, scores: usize) -> (Vec<Truth>, Vec<Detection>) {
        let count = self.below(7);
        let truths: Vec<Truth> =
            (0..count).map(|_| Truth { rect: self.rect(), class: self.below(3), crowd: self.below(5) == 0 }).collect();
        let mut found = Vec::new();
        for _ in 0..self.below(12) {
            let near = truths.get(self.below(truths.len().max(1))).filter(|_| self.below(4) > 0);
            let (rect, class) = near.map_or_else(|| (self.rect(), self.below(4)), |near| (near.rect, near.class));
            let off = (self.next() - 0.5) * 0.4 * rect.width * f64::from(u8::from(self.below(4) > 0));
            let score = (1 + self.below(scores)) as f64 / scores as f64;
            found.push(Detection { rect: Rect { x: rect.x + off, ..rect }, class, score });
        }
        // More than COCO counts.
        if self.below(10) == 0 {
            let many = (0..150).map(|_| Detection { rect: self.rect(), class: 0, score: self.next() });
            found.extend(many.collect::<Vec<_>>());
        }
        (truths, found)
    }
}

fn told(images: &[(Vec<Truth>, Vec<Detection>)]) -> Value {
    let sides = |rect: &Rect| json!([rect.x, rect.y, rect.width, rect.height]);
    let image = |(truths, found): &(Vec<Truth>, Vec<Detection>)| {
        let truths = truths.iter().map(|t| json!({ "bbox": sides(&t.rect), "class": t.class, "crowd": t.crowd }));
        let found = found.iter().map(|f| json!({ "bbox": sides(&f.rect), "class": f.class, "score": f.score }));
        json!({ "truths": truths.collect::<Vec<_>>(), "found": found.collect::<Vec<_>>() })
    };
    images.iter().map(image).collect()
}

#[test]
fn average_precision_is_that_of_pycocotools() {
    let mut drawn = Drawn(0x9e37_79b9_7f4a_7c15);
    // Few scores: many are equal, within an image and between images.
    let sets: Vec<Vec<_>> = [(1, 5), (8, 1_000_000), (40, 20), (200, 1_000_000)]
        .map(|(images, scores)| (0..images).map(|_| drawn.image(scores)).collect())
        .into();
    let cases: Value = sets.iter().map(|images| told(images)).collect();
    let Some(expected) = python_with("pycocotools", "boxes/reference.py", &cases) else { return };
    for (images, expected) in sets.iter().zip(expected.as_array().unwrap()) {
        let pairs = images.iter().map(|(truths, found)| (truths.as_slice(), found.as_slice()));
        let (found, expected) = (Matched::new(pairs).precision(), expected.as_f64());
        assert_eq!(found.is_some(), expected.is_some());
        let gap = found.zip(expected).map_or(0.0, |(a, b)| (a - b).abs());
        assert!(gap < 1e-6, "{} images: {found:?} instead of {expected:?}", images.len());
        println!("{} images: {found:?} and {expected:?}", images.len());
    }
}

#[test]
fn ten_thousand_images_are_judged_by_their_intervals_as_well() {
    let mut drawn = Drawn(7);
    let mut image = |_| {
        let truths: Vec<Truth> =
            (0..100).map(|_| Truth { rect: drawn.rect(), class: drawn.below(80), crowd: false }).collect();
        let found = truths.iter().map(|t| Detection { rect: t.rect, class: t.class, score: drawn.next() }).collect();
        (truths, found)
    };
    let images: Vec<(Vec<Truth>, Vec<Detection>)> = (0..10_000).map(&mut image).collect();
    let matched = Matched::new(images.iter().map(|(truths, found)| (truths.as_slice(), found.as_slice())));
    let half: Vec<usize> = (0..10_000).map(|at| at / 2).collect();
    assert_eq!((matched.precision(), matched.images()), (Some(1.0), 10_000));
    let figures: Vec<Option<f64>> = (0..50).map(|_| matched.precision_of(&half)).collect();
    assert!(figures.iter().all(|figure| figure.is_some_and(|figure| (figure - 1.0).abs() < 1e-12)), "{figures:?}");
}

fn floats(shape: &[usize], values: Vec<f32>) -> Tensor {
    Tensor::from_vec(shape.to_vec(), values).unwrap()
}

fn picture(height: usize, width: usize) -> Inputs {
    vec![("image".to_owned(), floats(&[1, 3, height, width], vec![0.0; 3 * height * width]))]
}

fn names(all: &[&str]) -> Vec<String> {
    all.iter().map(|name| (*name).to_owned()).collect()
}

fn find(
    form: Option<BoxForm>,
    named: &[&str],
    outputs: &[Tensor],
    inputs: &Inputs,
) -> Result<(Detector, Vec<Vec<Detection>>), CompressError> {
    let detector = Detector::find(form, &Run { names: &names(named), outputs, inputs })?;
    let rows = outputs[0].shape()[0];
    let found = detector.detections(outputs, detector.images(rows))?;
    Ok((detector, found))
}

/// Sides of the only box of an image.
fn only(found: &[Detection]) -> ([f64; 4], usize) {
    assert_eq!(found.len(), 1, "{found:?}");
    let Rect { x, y, width, height } = found[0].rect;
    ([x, y, width, height], found[0].class)
}

#[test]
fn raw_offsets_are_read_by_their_cell() {
    // 64 × 32 pixels: 8 × 4 cells of 8, 4 × 2 of 16, 2 × 1 of 32.
    let mut values = vec![0f32; 42 * 7];
    // The third cell of the second row of strides of 16: column 2, row 1.
    let at = (32 + 4 + 2) * 7;
    values[at..at + 7].copy_from_slice(&[0.5, 0.25, 0.0, 2f32.ln(), 0.8, 0.1, 0.5]);
    let (detector, found) = find(None, &["output"], &[floats(&[1, 42, 7], values)], &picture(32, 64)).unwrap();
    assert_eq!((detector.form(), detector.classes()), (BoxForm::Yolox, Some(2)));
    // Centre at (2.5, 1.25) · 16, sizes 16 and 32.
    let (sides, class) = only(&found[0]);
    assert!(sides.iter().zip([32.0, 4.0, 16.0, 32.0]).all(|(a, b)| (a - b).abs() < 1e-4), "{sides:?}");
    assert_eq!(class, 1);
    assert!((found[0][0].score - 0.4).abs() < 1e-6);
}

#[test]
fn lines_of_centres_are_read_across() {
    let mut values = vec![0f32; 6 * 42];
    for (line, value) in [20.0, 10.0, 8.0, 4.0, 0.0, 0.9].into_iter().enumerate() {
        values[line * 42 + 11] = value;
        // Almost the same box again, and one that is no number.
        values[line * 42 + 12] = value * 0.99;
        values[line * 42 + 13] = if line == 2 { f32::NAN } else { value };
    }
    let (detector, found) = find(None, &["output0"], &[floats(&[1, 6, 42], values)], &picture(32, 64)).unwrap();
    assert_eq!((detector.form(), detector.classes()), (BoxForm::Yolo, Some(2)));
    assert_eq!(only(&found[0]), ([16.0, 8.0, 8.0, 4.0], 1));
}

#[test]
fn corners_are_parts_or_pixels_and_a_softmax_has_a_background() {
    let boxes = |scale: f32| floats(&[2, 2, 4], [0.25, 0.5, 0.75, 1.0].map(|part| part * scale).repeat(4));
    let softmax = floats(&[2, 2, 3], vec![0.2, 0.1, 0.7, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0]);
    let (detector, found) = find(None, &["s", "b"], &[softmax.clone(), boxes(1.0)], &picture(100, 200)).unwrap();
    assert_eq!((detector.form(), detector.classes()), (BoxForm::Ssd, Some(2)));
    assert_eq!(found[0].len(), 2);
    assert_eq!((found[0][0].class, only(&found[1])), (1, ([50.0, 50.0, 100.0, 50.0], 0)));
    // Scores that do not add up to 1 are all of classes; corners in pixels stay.
    let sigmoid = floats(&[2, 2, 3], vec![0.9, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.6, 0.0, 0.0, 0.0]);
    let (detector, found) = find(None, &["b", "s"], &[boxes(40.0), sigmoid], &picture(100, 200)).unwrap();
    assert_eq!(detector.classes(), Some(3));
    assert_eq!((only(&found[0]), only(&found[1]).1), (([10.0, 20.0, 20.0, 20.0], 0), 2));
    // Three classes and a background: both outputs could be boxes, and names tell.
    let four = floats(&[2, 2, 4], vec![0.25; 16]);
    let both = [four.clone(), boxes(40.0)];
    let (detector, _) = find(None, &["scores", "boxes"], &both, &picture(100, 200)).unwrap();
    assert_eq!(detector.classes(), Some(3));
    for named in [["a", "b"], ["block", "alloc"], ["boxes", "loc"]] {
        let said = find(None, &named, &both, &picture(100, 200)).unwrap_err().to_string();
        assert!(said.contains("rename one of them, and only one, to `boxes` or `loc`"), "{said}");
    }
    for named in [["scores", "bboxes_12"], ["block", "Locations"], ["x", "head.box3"], ["block", "pred/loc"]] {
        assert!(find(None, &named, &both, &picture(100, 200)).is_ok(), "{named:?}");
    }
}

#[test]
fn boxes_suppressed_in_the_graph_are_taken_as_they_are() {
    let inputs = vec![("image".to_owned(), floats(&[3, 8, 8], vec![0.0; 192]))];
    let boxes = floats(&[3, 4], vec![0.0, 0.0, 4.0, 4.0, 0.0, 0.0, 4.0, 4.0, 5.0, 5.0, 1.0, 6.0]);
    let outputs = |labels: Tensor| [boxes.clone(), labels, floats(&[3], vec![0.4, 0.9, 0.9])];
    let whole = Tensor::from_vec([3], vec![7i64, 7, 1]).unwrap();
    let (detector, found) = find(None, &["a", "b", "c"], &outputs(whole), &inputs).unwrap();
    assert_eq!((detector.form(), detector.classes(), detector.images(3)), (BoxForm::Found, None, 1));
    // Nothing is suppressed again; what has no area goes.
    assert_eq!(found[0].iter().map(|one| (one.class, one.score as f32)).collect::<Vec<_>>(), [(7, 0.9), (7, 0.4)]);
    let none = [floats(&[0, 4], vec![]), Tensor::from_vec([0], Vec::<i32>::new()).unwrap(), floats(&[0], vec![])];
    assert_eq!(find(None, &["boxes", "labels", "scores"], &none, &inputs).unwrap().1, [vec![]]);
    // A variant that puts out something else is told, and does not panic.
    let fewer =
        [floats(&[2, 4], vec![0.0; 8]), Tensor::from_vec([3], vec![1i64; 3]).unwrap(), floats(&[3], vec![0.5; 3])];
    assert!(detector.detections(&fewer, 1).unwrap_err().to_string().contains("expected [3, 4]"));
    assert!(detector.detections(&fewer[..1], 1).is_err());
}

#[test]
fn outputs_that_are_no_boxes_are_told() {
    let scores = || floats(&[1, 10], vec![0.1; 10]);
    let lines = || floats(&[1, 42, 7], vec![0.1; 294]);
    let loud = || floats(&[1, 6, 42], vec![7.0; 252]);
    let vector = vec![("x".to_owned(), floats(&[1, 16], vec![0.0; 16]))];
    for (form, output, inputs, expected) in [
        (None, scores(), picture(32, 64), "`o` [1, 10] are no boxes of a known form; there are `found` (boxes [k, 4]"),
        (None, lines(), picture(64, 64), "name one with `--boxes FORM`"),
        (Some(BoxForm::Yolox), lines(), picture(64, 64), "`--boxes yolox` does not fit the outputs `o` [1, 42, 7]"),
        (Some(BoxForm::Yolox), lines(), picture(64, 64), "84 in all"),
        (Some(BoxForm::Ssd), lines(), picture(32, 64), "expected boxes [n, cells, 4] and scores"),
        (None, loud(), picture(32, 64), "hold a score of 7.000; expected 0 to 1"),
        (None, lines(), vector, "1 to 4 channels, first or last; the model takes `x` [1, 16]"),
    ] {
        let said = find(form, &["o"], &[output], &inputs).map(|(detector, _)| detector.form());
        let said = said.unwrap_err().to_string();
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn numbers_that_are_not_of_the_form_are_told() {
    let raw = [0.5, 0.5, 2.0, 11.9, 0.8, 0.1, 0.5];
    let yolox = |at: usize, value: f32| {
        let mut values = raw.repeat(42);
        values[at] = value;
        floats(&[1, 42, 7], values)
    };
    assert!(find(None, &["o"], &[yolox(0, 0.5)], &picture(32, 64)).is_ok());
    assert!(find(None, &["o"], &[yolox(9, f32::NAN)], &picture(32, 64)).is_ok());
    let corners = || floats(&[1, 2, 4], [8.0, 8.0, 40.0, 24.0].repeat(2));
    let centres = || floats(&[1, 2, 4], [0.5, 0.5, 0.2, 0.3].repeat(2));
    let scores = |wrong: f32| floats(&[1, 2, 3], vec![0.9, 0.1, 0.2, 0.3, wrong, 0.2]);
    assert!(find(None, &["s", "b"], &[scores(-0.0009), corners()], &picture(32, 64)).is_ok());
    let half = Tensor::from_raw(DataType::BFloat16, [1, 42, 7], vec![0u8; 2 * 294].into()).unwrap();
    let yolo = floats(&[1, 6, 42], [[10.0f32; 4 * 42].as_slice(), &[-0.5; 2 * 42]].concat());
    for (outputs, expected) in [
        (
            vec![yolox(9, 24.0)],
            "a width or height of 24.0, which is no raw one, a logarithm: boxes are decoded within the graph",
        ),
        (vec![yolox(5, -0.2)], "hold a score of -0.200"),
        (vec![yolox(4, 1.2)], "hold a score of 1.200"),
        (vec![yolo], "hold a score of -0.500"),
        (vec![scores(-1.5), corners()], "hold a score of -1.500"),
        // Suppression would leave this cell out.
        (vec![scores(f32::INFINITY), corners()], "hold a score of inf"),
        (vec![scores(0.0), centres()], "2 boxes of which 0 are corners in order; expected left, top, right, bottom"),
        (vec![half], "`a` [1, 42, 7] of bfloat16, which is not read"),
    ] {
        let said = find(None, &["a", "b"], &outputs, &picture(32, 64)).map(|(detector, _)| detector.form());
        let said = said.unwrap_err().to_string();
        assert!(said.contains(expected), "{said}");
    }
    // A later run of the original is looked at as well.
    let named = names(&["s", "b"]);
    let outputs = [scores(0.0), corners()];
    let inputs = picture(32, 64);
    let mut detector = Detector::find(None, &Run { names: &named, outputs: &outputs, inputs: &inputs }).unwrap();
    let outputs = [scores(-1.0), corners()];
    let said = detector.check(&Run { names: &named, outputs: &outputs, inputs: &inputs }).unwrap_err().to_string();
    assert!(said.contains("hold a score of -1.000"), "{said}");
}

#[test]
fn a_background_is_told_by_the_first_cells_that_are_numbers() {
    let four =
        |scores: [f32; 8]| [floats(&[1, 2, 4], scores.to_vec()), floats(&[1, 2, 4], [0.1, 0.2, 0.6, 0.9].repeat(2))];
    let named = names(&["block_cls", "loc_2"]);
    let inputs = picture(32, 64);
    let find = |outputs: &[Tensor]| Detector::find(None, &Run { names: &named, outputs, inputs: &inputs });
    for (scores, classes) in [
        // A softmax of bytes, one of whose cells is no number.
        ([0.9, 0.05, 0.05, 0.024, 0.1, 0.1, 0.7, 0.1], 3),
        ([0.9, 0.05, 0.05, 0.024, 0.1, f32::NAN, 0.7, 0.1], 3),
        ([0.9, 0.05, 0.05, 0.024, 0.1, 0.1, 0.7, 0.3], 4),
        ([0.1, f32::NAN, 0.1, 0.1, 0.1, f32::NAN, 0.7, 0.1], 4),
    ] {
        assert_eq!(find(&four(scores)).unwrap().classes(), Some(classes), "{scores:?}");
    }
    // A run without cells says nothing, the next one does: sigmoids, and corners in pixels.
    let none = [floats(&[1, 0, 4], vec![]), floats(&[1, 0, 4], vec![])];
    let mut detector = find(&none).unwrap();
    assert_eq!(detector.detections(&none, 1).unwrap(), [vec![]]);
    let some = [floats(&[1, 1, 4], vec![0.0, 0.9, 0.0, 0.7]), floats(&[1, 1, 4], vec![8.0, 8.0, 40.0, 24.0])];
    detector.check(&Run { names: &named, outputs: &some, inputs: &inputs }).unwrap();
    assert_eq!(detector.classes(), Some(4));
    assert_eq!(detector.detections(&some, 1).unwrap()[0][0].rect, Rect { x: 8.0, y: 8.0, width: 32.0, height: 16.0 });
}

#[test]
fn the_picture_is_the_input_with_four_dimensions() {
    let text = ("text".to_owned(), floats(&[2, 7, 16], vec![0.0; 224]));
    let image = ("image".to_owned(), floats(&[2, 3, 32, 64], vec![0.0; 2 * 3 * 32 * 64]));
    assert_eq!(pictures(&vec![text.clone(), image.clone()]), Some(2));
    let outputs = [floats(&[2, 42, 7], vec![0.1; 2 * 294])];
    assert_eq!(find(None, &["o"], &outputs, &vec![text, image.clone()]).unwrap().0.form(), BoxForm::Yolox);
    // What is suppressed in the graph is of one image.
    let found =
        [floats(&[2, 4], vec![0.0; 8]), Tensor::from_vec([2], vec![1i64; 2]).unwrap(), floats(&[2], vec![0.5; 2])];
    let said = find(None, &["boxes", "labels", "scores"], &found, &vec![image]).unwrap_err().to_string();
    assert!(said.contains("of one image in a run, and the model takes 2"), "{said}");
}

#[test]
fn faces_of_a_real_detector_have_a_background() {
    let data = std::env::var_os("EDGEWARD_DATA").map(std::path::PathBuf::from);
    let data = data.unwrap_or_else(|| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"));
    let path = data.join("onnx/ultraface_rfb_320.onnx");
    let Ok(model) = edgeward_graph::Model::read(&path, &edgeward_graph::Limits::default()) else {
        return println!("skipped: no model `{}`", path.display());
    };
    let inputs = vec![("input".to_owned(), floats(&[1, 3, 240, 320], support::numbers(3, 3 * 240 * 320)))];
    for engine in support::engines() {
        let session = load(engine.as_ref(), &model).unwrap();
        let named: Vec<String> = session.outputs().iter().map(|output| output.name.clone()).collect();
        let wanted: Vec<&str> = named.iter().map(String::as_str).collect();
        let outputs = edgeward_compress::observe::run(session.as_ref(), &inputs, &wanted).unwrap();
        let (detector, found) = find(None, &wanted, &outputs, &inputs).unwrap();
        assert_eq!((detector.form(), detector.classes(), found.len()), (BoxForm::Ssd, Some(1), 1));
        // Parts of the side have become pixels.
        let widest = found[0].iter().map(|one| one.rect.width).fold(0.0, f64::max);
        assert!(found[0].iter().all(|one| one.class == 0) && widest > 3.0, "{}: {widest}", engine.name());
    }
}
