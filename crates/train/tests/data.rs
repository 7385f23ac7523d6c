//! Data sets, written by the tools that users write them with, and by hand where they are wrong.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, fs, io::Write as _, path::Path, sync::Arc};

use edgeward_graph::{DataType, Dimension, Port, Tensor};
use edgeward_train::data::{
    Augment, Columns, DataErrorKind, Dataset, Fit, Loader, OpenOptions, Plan, Role, Sampling, Splits, Tokenisation,
    Wanted, class_weights, open, split_fraction, tokenise,
};
use proptest::prelude::*;
use serde_json::{Value, json};

mod reference;

fn port(name: &str, dtype: DataType, shape: &[usize]) -> Port {
    let dims = shape.iter().map(|&size| Dimension::Fixed(size));
    let shape = std::iter::once(Dimension::Symbol("batch".to_owned())).chain(dims).collect();
    Port { name: name.to_owned(), dtype: Some(dtype), shape: Some(shape) }
}

fn wanted(input: &[usize]) -> Wanted {
    let inputs = vec![port("input", DataType::Float32, input)];
    Wanted { inputs, targets: vec![port("target", DataType::Int64, &[])], ..Wanted::default() }
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.values::<f32>().unwrap().into_owned()
}

/// Examples `[0, 1, …]` of 4 numbers each, of classes 0, 1, 2 in turn.
fn counted(rows: usize) -> Arc<dyn Dataset> {
    let values = Tensor::from_vec([rows, 4], (0..rows * 4).map(|i| i as f32).collect()).unwrap();
    let labels = Tensor::from_vec([rows], (0..rows as i64).map(|i| i % 3).collect()).unwrap();
    let columns =
        Columns::new(vec![("x".to_owned(), Role::Input, values), ("y".to_owned(), Role::Target, labels)]).unwrap();
    Arc::new(columns)
}

fn first(splits: &Splits) -> Arc<dyn Dataset> {
    splits.train.clone().unwrap()
}

/// Folder and what the script says of it.
fn made() -> Option<(tempfile::TempDir, Value)> {
    let folder = tempfile::tempdir().unwrap();
    let said = reference::python("data/make.py", &["numpy", "pyarrow", "PIL"], &[folder.path()], &Value::Null)?;
    Some((folder, said))
}

#[test]
fn arrays_of_others_are_read() {
    let Some((folder, said)) = made() else { return };
    let path = |name: &str| folder.path().join(name);
    let images: Vec<f32> =
        serde_json::from_value::<Vec<Vec<Vec<f32>>>>(said["images"].clone()).unwrap().concat().concat();
    let options = OpenOptions::default();
    for (name, train, val) in [("medical.npz", 8, 4), ("keras.npz", 9, 3)] {
        let splits = open(&path(name), &options).unwrap();
        let rest = splits.val.clone().or(splits.test.clone()).unwrap();
        assert_eq!((first(&splits).len(), rest.len()), (train, val), "{name}");
        let fit = Fit::new(rest, wanted(&[1, 5, 4])).unwrap();
        let batch = fit.batch(&[val - 1, 0]).unwrap();
        assert_eq!(batch.inputs[0].1.shape(), [2, 1, 5, 4]);
        let expected: Vec<f32> =
            images[11 * 20..].iter().chain(&images[train * 20..][..20]).map(|value| value / 255.0).collect();
        assert_eq!(floats(&batch.inputs[0].1), expected, "{name}");
        assert_eq!(*batch.targets[0].1.values::<i64>().unwrap(), [2, (train % 3) as i64], "{name}");
    }
    let with_labels = OpenOptions { labels: Some(path("labels.npy")), ..OpenOptions::default() };
    for (name, options) in [("inputs.npy", with_labels), ("train-images-idx3-ubyte.gz", options.clone())] {
        let dataset = first(&open(&path(name), &options).unwrap());
        assert_eq!(dataset.labels().unwrap(), [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2], "{name}");
        let batch = Fit::new(dataset, wanted(&[20])).unwrap().batch(&[3]).unwrap();
        let scale = if name.ends_with("npy") { 1.0 } else { 255.0 };
        let expected: Vec<f32> = images[60..80].iter().map(|value| value / scale).collect();
        assert_eq!(floats(&batch.inputs[0].1), expected, "{name}");
    }
    for name in ["fortran.npy", "big.npy"] {
        let labels = Some(path("labels.npy"));
        let Err(error) = open(&path(name), &OpenOptions { labels, ..OpenOptions::default() }) else {
            panic!("{name} was read")
        };
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn tables_of_others_are_read() {
    let Some((folder, said)) = made() else { return };
    let path = |name: &str| folder.path().join(name);
    let csv = OpenOptions { target: Some("kind".to_owned()), ..OpenOptions::default() };
    let dataset = first(&open(&path("rows.csv"), &csv).unwrap());
    assert_eq!(dataset.classes().unwrap(), ["cat", "dog", "eel"]);
    let raw = dataset.batch(&[2]).unwrap();
    assert_eq!(floats(&raw[0]), [2.0 / 3.0, 14.0]);
    assert_eq!(raw[1].strings().unwrap(), ["a \"2\", or\nmore"]);

    let doubles: Vec<f64> = serde_json::from_value(said["double"].clone()).unwrap();
    for name in ["none.parquet", "snappy.parquet", "gzip.parquet", "zstd.parquet", "table.feather", "stream.arrow"] {
        let dataset = first(&open(&path(name), &OpenOptions::default()).unwrap());
        assert_eq!(dataset.len(), 12, "{name}");
        let names: Vec<&str> = dataset.fields().iter().map(|field| field.name.as_str()).collect();
        assert_eq!(names, ["features", "list", "words", "target"], "{name}");
        let raw = dataset.batch(&[7, 0]).unwrap();
        assert_eq!(floats(&raw[0]), [7.0, doubles[7] as f32, 0.0, 0.0], "{name}");
        assert_eq!(floats(&raw[1]), [7.0, 8.0, 9.0, 0.0, 1.0, 2.0], "{name}");
        assert_eq!(raw[2].strings().unwrap(), ["dog", "cat"], "{name}");
        assert_eq!(*raw[3].values::<i64>().unwrap(), [1, 0], "{name}");
    }
    let error = open(&path("holes.parquet"), &OpenOptions::default()).err().unwrap().to_string();
    assert!(error.contains("line 7") && error.contains("`double`"), "{error}");
}

#[test]
fn pictures_are_read_resized_and_laid_out() {
    let Some((folder, _)) = made() else { return };
    let splits = open(&folder.path().join("pictures"), &OpenOptions::default()).unwrap();
    let (train, val) = (first(&splits), splits.val.clone().unwrap());
    assert_eq!((train.len(), val.len()), (12, 6));
    assert_eq!(val.classes().unwrap(), ["cat", "dog", "eel"]);
    for size in [[6, 8], [3, 3]] {
        let fit = Fit::new(train.clone(), wanted(&[3, size[0], size[1]])).unwrap();
        let batch = fit.batch(&[5, 11]).unwrap();
        let pixels = floats(&batch.inputs[0].1);
        let plane = size[0] * size[1];
        // Class 1, picture 1; class 2, picture 3: one colour each, channel after channel.
        let expected = [40.0, 10.0, 200.0, 80.0, 30.0, 200.0].map(|value: f32| vec![value / 255.0; plane]).concat();
        assert_eq!(pixels, expected);
        assert_eq!(*batch.targets[0].1.values::<i64>().unwrap(), [1, 2]);
    }
    let grey = Fit::new(train, wanted(&[1, 6, 8])).unwrap().batch(&[5]).unwrap();
    let luma = (0.299 * 40.0 + 0.587 * 10.0 + 0.114 * 200.0) / 255.0;
    assert!(floats(&grey.inputs[0].1).iter().all(|value| (value - luma).abs() < 1e-5));
    // A picture that is none is named.
    let broken = folder.path().join("pictures/train/dog/9.png");
    fs::write(&broken, "no picture").unwrap();
    let dataset = first(&open(&folder.path().join("pictures"), &OpenOptions::default()).unwrap());
    let error = dataset.batch(&(0..13).collect::<Vec<_>>()).unwrap_err().to_string();
    assert!(error.contains("9.png"), "{error}");
}

#[test]
fn the_data_of_the_project_is_read_as_it_is() {
    if let Some(path) = reference::data("pneumoniamnist/pneumoniamnist_train_val.npz") {
        let splits = open(&path, &OpenOptions::default()).unwrap();
        assert_eq!((first(&splits).len(), splits.val.clone().unwrap().len()), (4708, 524));
        let ones = first(&splits).labels().unwrap().iter().filter(|&&label| label == 1).count();
        assert_eq!(ones, 3494);
        let weights = class_weights(first(&splits).labels().unwrap(), 2);
        assert!((weights[0] - 4708.0 / (2.0 * 1214.0)).abs() < 1e-6, "{weights:?}");
        let batch = Fit::new(first(&splits), wanted(&[1, 28, 28])).unwrap().batch(&[0, 4707]).unwrap();
        assert_eq!(batch.inputs[0].1.shape(), [2, 1, 28, 28]);
    }
    if let Some(path) = reference::data("mnist/t10k-images-idx3-ubyte.gz") {
        let dataset = first(&open(&path, &OpenOptions::default()).unwrap());
        assert_eq!(dataset.labels().unwrap()[..10], [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]);
    }
    for (file, rows) in [("sentence_train.tsv", 6920), ("sentence_dev.tsv", 872), ("glue_train.tsv.gz", 0)] {
        let Some(path) = reference::data(&format!("sst2/{file}")) else { continue };
        let dataset = first(&open(&path, &OpenOptions::default()).unwrap());
        assert!(dataset.len() == rows || (rows == 0 && dataset.len() > 10_000), "{file}: {}", dataset.len());
        assert_eq!(dataset.labels().unwrap().iter().copied().collect::<BTreeSet<_>>(), BTreeSet::from([0, 1]));
    }
}

#[test]
fn texts_become_tokens_and_a_tokenizer_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("texts.tsv");
    let texts = ["the film is good", "the film is \"bad", "good fun", "a bad film, a very long and bad film indeed"];
    let lines: Vec<String> =
        (0..40).map(|i| format!("{}\t{}\n", texts[i % 4], if i % 2 == 0 { "good" } else { "bad" })).collect();
    fs::write(&path, lines.concat()).unwrap();
    let options = OpenOptions { header: Some(false), ..OpenOptions::default() };
    let dataset = first(&open(&path, &options).unwrap());
    assert_eq!(dataset.classes().unwrap(), ["bad", "good"]);
    let tokenisation = Tokenisation::train(dataset.as_ref(), 100, 8).unwrap();
    let again = Tokenisation::train(dataset.as_ref(), 100, 8).unwrap();
    assert_eq!(tokenisation.to_json().unwrap(), again.to_json().unwrap());
    let kept = folder.path().join("tokenizer.json");
    fs::write(&kept, tokenisation.to_json().unwrap()).unwrap();
    let read = Tokenisation::read(&kept, 8).unwrap();
    for tokenisation in [&tokenisation, &read] {
        let columns = tokenise(dataset.as_ref(), tokenisation).unwrap();
        let raw = columns.batch(&[0, 2, 3]).unwrap();
        let (ids, mask) = (raw[0].values::<i64>().unwrap(), raw[1].values::<i64>().unwrap());
        assert_eq!(raw[0].shape(), [3, 8]);
        assert_eq!(mask[..16], [1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]);
        // Start, end and padding; "good" is one token, the same in both.
        assert_eq!((ids[0], ids[5], ids[6], ids[8], ids[11]), (2, 3, 0, 2, 3));
        assert_eq!(ids[4], ids[9]);
        // A long text is cut before its end mark.
        assert_eq!((mask[23], ids[23]), (1, 3));
        assert_eq!(columns.labels().unwrap()[..4], [1, 0, 1, 0]);
    }
    let reference = reference::python(
        "data/tokens.py",
        &["tokenizers"],
        &[&kept],
        &json!(texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()),
    );
    if let Some(reference) = reference {
        let raw = tokenise(dataset.as_ref(), &read).unwrap().batch(&[0, 1, 2, 3]).unwrap();
        let expected: Vec<Vec<i64>> = serde_json::from_value(reference).unwrap();
        assert_eq!(*raw[0].values::<i64>().unwrap(), expected.concat());
    }
}

/// What is wrong with a file is said with the file and, where it has lines, the line.
#[test]
fn bad_rows_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&str, &[u8], &[&str]); 12] = [
        ("a.csv", b"x,label\n1,0\n2,1\nabc,0\n3,1\n", &["a.csv` line 4", "`x`", "`abc`"]),
        ("b.csv", b"x,label\n1,0\n2\n", &["b.csv` line 3", "1 cells", "2"]),
        ("c.csv", b"x,label\n", &["c.csv", "no rows"]),
        ("d.csv", b"", &["d.csv", "no rows"]),
        ("e.csv", b"x,label\n1,0\n\xff,1\n", &["e.csv` line 3", "UTF-8"]),
        ("f.csv", b"label\n1\n0\n", &["f.csv", "no column beside"]),
        ("g.npz", b"nothing", &["g.npz", "no `.npz`"]),
        ("h-ubyte", b"\0\0\x08\x01\0\0\0\x09abc", &["h-ubyte", "--labels"]),
        ("i.parquet", b"PAR1 and nothing more", &["i.parquet", "no Parquet"]),
        ("j.arrow", b"ARROW1", &["j.arrow", "no Arrow"]),
        ("k.txt", b"1", &["k.txt", "no known kind"]),
        ("l.csv", b"x,label\n1,0\ninf,1\n2,1\n", &["l.csv` line 3", "`inf`"]),
    ];
    for (name, bytes, words) in cases {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = open(&path, &OpenOptions::default()).err().unwrap_or_else(|| panic!("{name} was read")).to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{name}: {error}");
    }
    let classes = OpenOptions { classes: Some(vec!["cat".to_owned()]), ..OpenOptions::default() };
    fs::write(folder.path().join("m.csv"), "x,label\n1,cat\n2,dog\n").unwrap();
    let error = open(&folder.path().join("m.csv"), &classes).err().unwrap();
    assert_eq!(error.kind(), DataErrorKind::Row);
    assert!(error.to_string().contains("line 3") && error.to_string().contains("`dog`"), "{error}");
    let missing = open(&folder.path().join("none.csv"), &OpenOptions::default()).err().unwrap().to_string();
    assert!(missing.contains("does not exist"), "{missing}");
}

#[test]
fn what_does_not_fit_the_model_is_said_before_a_step() {
    let cases: [(Wanted, &[&str]); 4] = [
        (wanted(&[3, 8, 8]), &["`x`", "[4]", "[3, 8, 8]"]),
        (Wanted { classes: Some(2), ..wanted(&[4]) }, &["example 2", "`2`"]),
        (Wanted { normalise: Some((vec![0.0], vec![0.0])), ..wanted(&[4]) }, &["`0`", "deviation"]),
        (Wanted { normalise: Some((vec![0.0; 3], vec![1.0; 3])), ..wanted(&[4]) }, &["3 means"]),
    ];
    for (wanted, words) in cases {
        let error = Fit::new(counted(9), wanted).err().unwrap().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    assert!(Fit::new(counted(0), wanted(&[4])).is_err());
    assert!(Fit::new(counted(3), wanted(&[4])).unwrap().batch(&[3]).is_err());
}

#[test]
fn every_example_is_drawn_once_and_the_same_again() {
    let dataset = counted(103);
    for (sampling, batches, rows) in [(Sampling::Sequential, 11, 103), (Sampling::Shuffled, 10, 100)] {
        let plan = Plan { batch: 10, sampling, seed: 5 };
        let drawn = plan.batches(dataset.as_ref(), 3).unwrap();
        assert_eq!(drawn.len(), batches);
        assert_eq!(plan.batch_count(103), batches);
        assert_eq!(drawn.concat().iter().collect::<BTreeSet<_>>().len(), rows);
        assert_eq!(drawn, plan.batches(dataset.as_ref(), 3).unwrap());
        let other = Plan { seed: 6, ..plan.clone() }.batches(dataset.as_ref(), 3).unwrap();
        assert_eq!(drawn == other, sampling == Sampling::Sequential);
        assert_eq!(drawn == plan.batches(dataset.as_ref(), 4).unwrap(), sampling == Sampling::Sequential);
    }
    assert!(Plan { batch: 0, sampling: Sampling::Shuffled, seed: 0 }.batches(dataset.as_ref(), 0).is_err());
}

/// Frequencies within five standard deviations of what each way of drawing states.
#[test]
fn drawing_has_the_stated_frequencies() {
    let rows = 400;
    let labels = Tensor::from_vec([rows], (0..rows as i64).map(|i| i64::from(i >= 360)).collect()).unwrap();
    let values = Tensor::from_vec([rows], vec![0f32; rows]).unwrap();
    let columns = vec![("x".to_owned(), Role::Input, values), ("y".to_owned(), Role::Target, labels)];
    let dataset = Columns::new(columns).unwrap();
    let epochs = 50;
    let plan = |sampling| Plan { batch: 40, sampling, seed: 11 };
    let count = |sampling, wanted: &dyn Fn(usize) -> bool| {
        let drawn = (0..epochs).map(|epoch| plan(sampling).batches(&dataset, epoch).unwrap().concat());
        drawn.map(|rows| rows.into_iter().filter(|&row| wanted(row)).count()).sum::<usize>() as f64
    };
    let total = (rows as u64 * epochs) as f64;
    let rare = count(Sampling::Balanced, &|row| row >= 360);
    assert!((rare - total / 2.0).abs() < 5.0 * (total / 4.0).sqrt(), "{rare} of {total}");
    let all = count(Sampling::Poisson, &|_| true);
    // Ten batches an epoch, each example in each with probability a tenth.
    assert!((all - total).abs() < 5.0 * (total * 0.9).sqrt(), "{all} of {total}");
    let sizes: BTreeSet<usize> = plan(Sampling::Poisson).batches(&dataset, 0).unwrap().iter().map(Vec::len).collect();
    assert!(sizes.len() > 3, "batches of one size: {sizes:?}");
    let quantities = Tensor::from_vec([rows], vec![0.5f32; rows]).unwrap();
    let none = Columns::new(vec![("y".to_owned(), Role::Target, quantities)]).unwrap();
    assert!(plan(Sampling::Balanced).batches(&none, 0).is_err());
}

#[test]
fn a_fraction_keeps_the_shares_of_classes() {
    let (train, val) = split_fraction(counted(90), 0.2, 4).unwrap();
    assert_eq!((train.len(), val.len()), (72, 18));
    for part in [&train, &val] {
        let labels = part.labels().unwrap();
        let counts = [0, 1, 2].map(|class| labels.iter().filter(|&&label| label == class).count());
        assert_eq!(counts, [part.len() / 3; 3]);
    }
    let numbers = |part: &Arc<dyn Dataset>| floats(&part.batch(&(0..part.len()).collect::<Vec<_>>()).unwrap()[0]);
    let all: BTreeSet<u32> = numbers(&train).iter().chain(&numbers(&val)).map(|value| *value as u32).collect();
    assert_eq!(all.len(), 360);
    let (again, _) = split_fraction(counted(90), 0.2, 4).unwrap();
    assert_eq!(numbers(&train), numbers(&again));
    for fraction in [0.0, 1.0, -0.5, f64::NAN, 0.001] {
        assert!(split_fraction(counted(9), fraction, 0).is_err(), "{fraction}");
    }
}

/// Batches from the middle of an epoch are those that the whole epoch has there, varied alike.
#[test]
fn an_epoch_goes_on_from_its_middle() {
    let pixels = Tensor::from_vec([50, 6, 5], (0..1500).map(|i| (i % 251) as u8).collect::<Vec<u8>>()).unwrap();
    let labels = Tensor::from_vec([50], (0..50i64).map(|i| i % 2).collect()).unwrap();
    let columns = vec![("x".to_owned(), Role::Input, pixels), ("y".to_owned(), Role::Target, labels)];
    let dataset: Arc<dyn Dataset> = Arc::new(Columns::new(columns).unwrap());
    let augment = Augment { flip: true, crop_padding: 1, colour: 0.3, ..Augment::default() };
    let fit = || Fit::new(dataset.clone(), Wanted { augment: augment.clone(), ..wanted(&[1, 6, 5]) }).unwrap();
    let plan = Plan { batch: 8, sampling: Sampling::Shuffled, seed: 21 };
    let loader = Loader::to_learn(fit(), plan.clone());
    let contents = |epoch, first| -> Vec<(Vec<usize>, Vec<f32>)> {
        let batches = loader.epoch(epoch, first).unwrap().map(Result::unwrap);
        batches.map(|batch| (batch.rows.clone(), floats(&batch.inputs[0].1))).collect()
    };
    let whole = contents(2, 0);
    assert_eq!(whole.len(), 6);
    assert_eq!(contents(2, 4), whole[4..]);
    assert_ne!(contents(3, 0), whole);
    // Dropped early, the thread behind ends.
    drop(loader.epoch(0, 0).unwrap().next());
    // To judge by, nothing is varied.
    let judge = Loader::to_judge(fit(), Plan { sampling: Sampling::Sequential, ..plan });
    let batch = judge.epoch(0, 0).unwrap().next().unwrap().unwrap();
    assert_eq!(floats(&batch.inputs[0].1)[..30], (0..30).map(|i| i as f32 / 255.0).collect::<Vec<_>>());
}

#[test]
fn an_error_in_the_middle_ends_an_epoch_as_an_error() {
    struct Broken(Arc<dyn Dataset>, bool);
    impl Dataset for Broken {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn fields(&self) -> &[edgeward_train::data::Field] {
            self.0.fields()
        }
        fn batch(&self, rows: &[usize]) -> Result<Vec<Tensor>, edgeward_train::data::DataError> {
            assert!(!self.1 || !rows.contains(&5), "a decoder panics");
            if rows.contains(&5) { self.0.batch(&[1000]) } else { self.0.batch(rows) }
        }
    }
    for panics in [false, true] {
        let fit = Fit::new(Arc::new(Broken(counted(9), panics)), wanted(&[4])).unwrap();
        let loader = Loader::to_judge(fit, Plan { batch: 2, sampling: Sampling::Sequential, seed: 0 });
        let batches: Vec<_> = loader.epoch(0, 0).unwrap().collect();
        assert_eq!(batches.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, true, false]);
    }
}

#[test]
fn varied_pictures_are_what_they_should_be() {
    let values: Vec<f32> = (0..2 * 3 * 4 * 5).map(|i| i as f32 / 120.0).collect();
    let columns = vec![
        ("x".to_owned(), Role::Input, Tensor::from_vec([2, 3, 4, 5], values.clone()).unwrap()),
        ("y".to_owned(), Role::Target, Tensor::from_vec([2], vec![0i64, 1]).unwrap()),
    ];
    let dataset: Arc<dyn Dataset> = Arc::new(Columns::new(columns).unwrap());
    let varied = |augment: &Augment, epoch| {
        let fit = Fit::new(dataset.clone(), Wanted { augment: augment.clone(), ..wanted(&[3, 4, 5]) }).unwrap();
        floats(&fit.varied(&[0, 1], 9, epoch).unwrap().inputs[0].1)
    };
    assert_eq!(varied(&Augment::default(), 0), values);
    let mirrored: Vec<f32> = values.chunks(5).flat_map(|row| row.iter().rev().copied()).collect();
    let flip = Augment { flip: true, ..Augment::default() };
    let seen: BTreeSet<bool> = (0..20)
        .map(|epoch| {
            let picture = varied(&flip, epoch)[..60].to_vec();
            assert!(picture == values[..60] || picture == mirrored[..60]);
            picture == values[..60]
        })
        .collect();
    assert_eq!(seen.len(), 2, "twenty epochs show both");
    // Cut at most one pixel aside: the middle of the old picture is in the new one, the rest is 0 or old.
    let crop = Augment { crop_padding: 1, ..Augment::default() };
    for epoch in 0..20 {
        let picture = varied(&crop, epoch);
        let shifts = (-1..=1).flat_map(|down| (-1..=1).map(move |right| (down, right)));
        let shifted = |(down, right): (i32, i32)| -> Vec<f32> {
            let old = |y: i32, x: i32| {
                let inside = (0..4).contains(&y) && (0..5).contains(&x);
                if inside { values[(y * 5 + x) as usize] } else { 0.0 }
            };
            (0..20).map(|i| old(i / 5 + down, i % 5 + right)).collect()
        };
        assert!(shifts.map(shifted).any(|expected| expected == picture[..20]), "epoch {epoch}");
    }
    let colour = Augment { colour: 0.5, ..Augment::default() };
    assert!(varied(&colour, 1).iter().all(|value| (0.0..=1.0).contains(value)));
    assert_ne!(varied(&colour, 1), varied(&colour, 2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Whatever bytes a file has, reading it ends with data or an error.
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400), which in 0usize..7) {
        let name = ["a.npz", "a.npy", "a.csv", "a.tsv", "a.parquet", "a.arrow", "a.idx"][which];
        refuse_or_read(name, &bytes);
    }

    /// Nor does a good array with some of its bytes changed.
    #[test]
    fn changed_arrays_are_read_or_refused(place in 0usize..200, byte in any::<u8>(), end in 0usize..300) {
        let mut bytes = b"\x93NUMPY\x01\x00\x46\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }         \n".to_vec();
        bytes.extend([0u8; 24]);
        let place = place % bytes.len();
        bytes[place] = byte;
        bytes.truncate(end.max(1));
        refuse_or_read("a.npy", &bytes);
    }
}

fn refuse_or_read(name: &str, bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::File::create(&path).unwrap().write_all(bytes).unwrap();
    let options = OpenOptions { labels: Some(path.clone()), ..OpenOptions::default() };
    if let Err(error) = open(Path::new(&path), &options) {
        assert!(error.to_string().contains(name), "{error}");
    }
}
