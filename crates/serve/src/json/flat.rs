//! Long flat lists, read by several threads.
//!
//! An image as JSON takes longer to read than many a model takes to run, and while it is read the engine's cores wait for it.

use std::{
    num::NonZeroUsize,
    sync::LazyLock,
    thread::{self, Builder},
};

/// What a thread must have to read to be worth its start.
const PART_BYTES_MIN: usize = 128 * 1024;
/// More threads than this wait for memory, and for each other.
const PARTS_MAX: usize = 4;

static CORES: LazyLock<usize> = LazyLock::new(|| thread::available_parallelism().map_or(1, NonZeroUsize::get));

/// The elements of a long list without lists in it; none where the list is short or anything else stands there, for who
/// reads it from its beginning to say what.
pub(super) fn elements<T: Send>(text: &[u8], parse: impl Fn(&[u8]) -> Option<(T, usize)> + Sync) -> Option<Vec<T>> {
    let wanted = (text.len() / PART_BYTES_MIN).min(PARTS_MAX).min(*CORES);
    if wanted < 2 {
        return None;
    }
    let list = text.strip_prefix(b"[")?.strip_suffix(b"]")?;
    let (first, others) = parts(list, wanted).split_first().map(|(first, others)| (*first, others.to_vec()))?;
    let parse = &parse;
    thread::scope(|scope| {
        let readers = others.into_iter().map(|part| Builder::new().spawn_scoped(scope, move || read(part, parse)).ok());
        // Started before the first part is read here.
        let readers: Option<Vec<_>> = readers.collect();
        let mut all = read(first, parse)?;
        for reader in readers? {
            all.append(&mut reader.join().ok()??);
        }
        Some(all)
    })
}

/// About equal parts of a text, which were joined by commas.
fn parts(mut text: &[u8], wanted: usize) -> Vec<&[u8]> {
    let mut parts = Vec::with_capacity(wanted);
    for left in (2..=wanted).rev() {
        let near = text.len() / left;
        let comma = text.get(near..).and_then(|rest| memchr::memchr(b',', rest)).map(|n| near + n);
        let Some((part, rest)) = comma.and_then(|at| text.split_at_checked(at)) else { break };
        parts.push(part);
        text = rest.get(1..).unwrap_or_default();
    }
    parts.push(text);
    parts
}

/// The elements of a part.
fn read<T>(mut text: &[u8], parse: impl Fn(&[u8]) -> Option<(T, usize)>) -> Option<Vec<T>> {
    // Few numbers of a tensor are shorter than seven characters with their comma; what is missing is set aside later.
    let mut values = Vec::with_capacity(text.len() / 8);
    loop {
        let (value, length) = parse(text.trim_ascii_start())?;
        values.push(value);
        text = text.trim_ascii_start().get(length..)?.trim_ascii_start();
        match text.split_first() {
            None => return Some(values),
            Some((b',', rest)) => text = rest,
            Some(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digit(text: &[u8]) -> Option<(u8, usize)> {
        text.first().filter(|b| b.is_ascii_digit()).map(|b| (b - b'0', 1))
    }

    #[test]
    fn parts_join_to_the_text() {
        for text in ["", "1", "1,2", ",", ",,", "1,2,3,4,5,6,7", "1111111111,2", "1,2222222222", "1111111111"] {
            for wanted in 1..6 {
                let parts = parts(text.as_bytes(), wanted);
                assert!(parts.len() <= wanted && parts.join(&b","[..]) == text.as_bytes(), "{text} {wanted} {parts:?}");
            }
        }
    }

    #[test]
    fn a_part_is_read_whole_or_not_at_all() {
        let table: [(&str, Option<&[u8]>); 10] = [
            ("1", Some(&[1])),
            (" 1 ,\n2\t", Some(&[1, 2])),
            ("", None),
            ("1,", None),
            (",1", None),
            ("1,,2", None),
            ("1 2", None),
            ("12", None),
            ("1,[2]", None),
            ("x", None),
        ];
        for (text, expected) in table {
            assert_eq!(read(text.as_bytes(), digit).as_deref(), expected, "`{text}`");
        }
    }

    #[test]
    fn a_long_list_is_what_it_is_element_by_element() {
        let digits: Vec<u8> = (0..600_000usize).map(|i| (i * 7 % 10) as u8).collect();
        let text = digits.iter().map(u8::to_string).collect::<Vec<_>>().join(" , ");
        let list = format!("[{text}]");
        // A machine of one core reads no list here.
        if *CORES > 1 {
            assert_eq!(elements(list.as_bytes(), digit), Some(digits));
            assert_eq!(elements(format!("[{text},]").as_bytes(), digit), None);
            assert_eq!(elements(format!("[[{text}]]").as_bytes(), digit), None);
        }
        assert_eq!(elements(b"[1,2]", digit), None);
    }
}
