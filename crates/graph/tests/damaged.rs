//! A real model, cut off and with bits turned: how many of the errors say where.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, fs, path::PathBuf};

use bytes::Bytes;
use edgeward_graph::{Limits, Model, check, infer};

/// The public models, beside the repository or where the environment says.
fn real() -> Option<Bytes> {
    let beside = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data"));
    let folder = std::env::var_os("EDGEWARD_DATA").map_or(beside, PathBuf::from);
    fs::read(folder.join("onnx/yunet_face_120x160.onnx")).ok().map(Bytes::from)
}

/// Everything that is wrong with a file.
fn errors(bytes: Bytes) -> Vec<String> {
    let model = match Model::from_bytes(bytes, &Limits::default()) {
        Ok(model) => model,
        Err(error) => return vec![error.to_string()],
    };
    let checked = check(&model).err().unwrap_or_default();
    let inferred = infer(&model, &BTreeMap::new()).err();
    let values = model.graph().initializer.iter().filter_map(|tensor| model.tensor(tensor).err());
    checked.into_iter().chain(inferred).chain(values).map(|error| error.to_string()).collect()
}

/// True where an error says a node, a tensor, or another part of the graph by its name or its place.
fn says_where(error: &str) -> bool {
    let parts = [
        "node",
        "initializer",
        "initialiser",
        "tensor",
        "input",
        "output",
        "value_info",
        "value",
        "attribute",
        "operator set",
    ];
    parts.iter().any(|part| error.contains(&format!("{part} ")) || error.contains(&format!("{part}s ")))
}

/// The places of all bytes but those of the weights.
fn structure(whole: &Bytes) -> Vec<usize> {
    let model = Model::from_bytes(whole.clone(), &Limits::default()).unwrap();
    let mut weights = vec![false; whole.len()];
    for raw in model.graph().initializer.iter().filter_map(|tensor| tensor.raw_data.as_ref()) {
        // A model shares the bytes that it was read from.
        let start = raw.as_ptr() as usize - whole.as_ptr() as usize;
        weights[start..start + raw.len()].fill(true);
    }
    (0..whole.len()).filter(|&at| !weights[at]).collect()
}

fn random(state: &mut u64) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 20) as usize
}

/// Of 1,000 damaged files: those with an error, and of these the errors that say no place.
fn count(mut damaged: impl FnMut() -> Bytes) -> (usize, Vec<String>) {
    let (mut found, mut silent) = (0, Vec::new());
    for _ in 0..1000 {
        let errors = errors(damaged());
        found += usize::from(!errors.is_empty());
        if !errors.is_empty() && !errors.iter().any(|error| says_where(error)) {
            silent.push(errors[0].clone());
        }
    }
    (found, silent)
}

#[test]
fn errors_of_a_real_model_say_where() {
    let Some(whole) = real() else { return println!("skipped: no data folder (EDGEWARD_DATA)") };
    assert!(errors(whole.clone()).is_empty());
    let places = structure(&whole);
    let mut state = 7u64;
    let cut = count(|| whole.slice(..random(&mut state) % whole.len()));
    let flip = |at: usize, bit: usize| {
        let mut bytes = whole.to_vec();
        bytes[at] ^= 1 << (bit % 8);
        Bytes::from(bytes)
    };
    let turned = count(|| flip(random(&mut state) % whole.len(), random(&mut state)));
    let structure = count(|| flip(places[random(&mut state) % places.len()], random(&mut state)));
    for (what, (found, silent)) in
        [("cut off", &cut), ("one bit turned", &turned), ("one bit of all but the weights turned", &structure)]
    {
        println!("{what}: {found} of 1000 are errors, {} of which say where", found - silent.len());
        silent.iter().take(40).for_each(|error| println!("    {error}"));
    }
    assert_eq!(cut.0, 1000, "a file that is cut off is an error");
    assert!(cut.1.len() <= 2 && turned.1.is_empty() && structure.1.len() <= 5, "errors say where");
}

#[test]
fn a_cut_says_how_much_is_left_and_where() {
    let Some(whole) = real() else { return println!("skipped: no data folder (EDGEWARD_DATA)") };
    for length in [40, 10_000, whole.len() / 2, whole.len() - 100] {
        let error = Model::from_bytes(whole.slice(..length), &Limits::default()).unwrap_err().to_string();
        assert!(error.contains("the file is cut off") && error.contains(&length.to_string()), "{error}");
        assert!(length < 100 || says_where(&error), "{error}");
    }
}
