//! The decoders of both protocols under damaged requests: the fuzz targets' own seeds with random changes.
//!
//! A failure names its seed; `EDGEWARD_SEED` runs that one again, `EDGEWARD_CASES` runs more.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path};

use bytes::Bytes;
use edgeward_serve::decode;

const CASES: u64 = 20_000;

/// SplitMix64 (Steele et al. 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap()
    }
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths.into_iter().map(|path| fs::read(path).unwrap()).collect()
}

/// What decoders trip over.
const PIECES: &[&[u8]] = &[
    b"-1",
    b"1e400",
    b"NaN",
    b"9223372036854775808",
    b"null",
    b"[",
    b"]",
    b"{",
    b"}",
    b"\"",
    b"\\u0000",
    b"\\ud800",
    b",",
    b":",
    b"[[",
    b"]]",
    b"0",
    b"true",
    b"1e-400",
    b"-0",
    b"18446744073709551615",
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"\xff",
    b"BYTES",
    b"FP16",
    b"BOOL",
    b"INT8",
    b"UINT64",
    b"binary_data_size",
    b"shape",
    b"data",
];

/// Some changes: bytes flipped, cut, repeated, moved between seeds, or replaced by what decoders trip over.
fn mutated(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len() + 1);
        let most = 1 + random.below(40);
        let length = random.below(1 + (bytes.len() - at).min(most));
        match random.below(6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 => drop(bytes.drain(at..at + length)),
            2 => {
                let part = bytes[at..at + length].to_vec();
                bytes.splice(at..at, part.repeat(1 + random.below(3)));
            }
            3 => drop(bytes.splice(at..at + length, PIECES[random.below(PIECES.len())].iter().copied())),
            4 => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len() + 1);
                bytes.splice(at..at + length, other[from..(from + length).min(other.len())].iter().copied());
            }
            _ => drop(bytes.splice(at..at, PIECES[random.below(PIECES.len())].iter().copied())),
        }
    }
    bytes
}

/// Runs `one` on many damaged requests; what it returns tells how many were taken.
fn each(target: &str, one: impl Fn(&[u8]) -> bool + std::panic::RefUnwindSafe) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (seeds, from) = (seeds(target), number("EDGEWARD_SEED"));
    for seed in &seeds {
        assert!(one(seed), "a seed is taken: {:?}", String::from_utf8_lossy(seed));
    }
    let cases = from.map_or(0..number("EDGEWARD_CASES").unwrap_or(CASES), |seed| seed..seed + 1);
    let mut taken = 0;
    for seed in cases.clone() {
        let bytes = mutated(&seeds, &mut Random(seed));
        let ended = std::panic::catch_unwind(|| one(&bytes));
        taken +=
            u64::from(ended.unwrap_or_else(|_| panic!("EDGEWARD_SEED={seed}: {:?}", String::from_utf8_lossy(&bytes))));
    }
    println!("{target}: {taken} of {} damaged requests are taken", cases.count());
    assert!(from.is_some() || taken > 0, "changes that leave nothing to decode test nothing");
}

#[test]
fn what_is_read_as_json_is_written_and_read_again() {
    each("json", |data| {
        let Some((length, body)) = data.split_first_chunk::<2>() else { return false };
        let header = usize::from(u16::from_le_bytes(*length)).checked_sub(1);
        let Ok(inputs) = decode::rest_request(Bytes::copy_from_slice(body), header) else { return false };
        let Ok((json, tail)) = decode::rest_answer(&inputs) else { return true };
        let mut again = String::from_utf8(json).unwrap().replacen("\"outputs\":[", "\"inputs\":[", 1).into_bytes();
        let header = (!tail.is_empty()).then_some(again.len());
        tail.iter().for_each(|part| again.extend_from_slice(part));
        let read = decode::rest_request(again.into(), header).unwrap();
        let shown = |tensors: &decode::Named| {
            let one = |(name, tensor): &(String, edgeward_graph::Tensor)| {
                (name.clone(), tensor.shape().to_vec(), tensor.dtype(), tensor.raw().cloned())
            };
            tensors.iter().map(one).collect::<Vec<_>>()
        };
        assert_eq!(shown(&read), shown(&inputs));
        true
    });
}

#[test]
fn messages_are_read_and_written() {
    each("grpc", |data| {
        let Ok(inputs) = decode::grpc_request(data) else { return false };
        assert!(decode::grpc_answer(&inputs, true).is_ok());
        let _ = decode::grpc_answer(&inputs, false);
        true
    });
}
