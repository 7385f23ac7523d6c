//! Which model a message is about, read off its first bytes: whoever may not have it is told so before the rest has come.

use std::io::Read as _;

use crate::inflate::Form;

/// A message names its model within so many bytes.
pub(super) const WITHIN_BYTES: usize = 64 * 1024;
/// What is undone of a compressed message first: hardly any name is longer.
const FIRST_BYTES: u64 = 4 * 1024;

/// What the beginning of a message says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Beginning {
    /// Its fields 1 and 2, empty where they are left out. Both are texts in all messages that name a model.
    Texts([String; 2]),
    /// They are still to come.
    More,
    /// This was all of it, or all that there will be is as short.
    Short,
    /// It is no message.
    Damaged,
}

/// Reads the beginning of a message, of which `bytes` have come.
pub(super) fn beginning(form: Option<Form>, bytes: &[u8]) -> Beginning {
    match form {
        None => texts(bytes),
        Some(Form::Gzip) => undone(flate2::read::GzDecoder::new(bytes)),
        Some(Form::Deflate) => undone(flate2::read::ZlibDecoder::new(bytes)),
    }
}

fn undone(mut decoder: impl std::io::Read) -> Beginning {
    let mut plain = Vec::new();
    for bytes_max in [FIRST_BYTES, WITHIN_BYTES as u64 + 1] {
        let left = bytes_max - plain.len() as u64;
        let ended = match decoder.by_ref().take(left).read_to_end(&mut plain) {
            Ok(length) => (length as u64) < left,
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return texts(&plain),
            Err(_) => return Beginning::Damaged,
        };
        match texts(&plain) {
            _ if ended => return Beginning::Short,
            Beginning::More => {}
            found => return found,
        }
    }
    Beginning::Damaged
}

/// The fields 1 and 2 of a message. Another field behind one of them ends the search: encoders write fields by their numbers.
fn texts(mut bytes: &[u8]) -> Beginning {
    let mut texts = [String::new(), String::new()];
    loop {
        match field(&mut bytes) {
            Ok(Field::Text(place, text)) => match (texts.get_mut(place), std::str::from_utf8(text)) {
                (Some(slot), Ok(text)) => text.clone_into(slot),
                _ => return Beginning::Damaged,
            },
            Ok(Field::Other) if texts.iter().all(String::is_empty) => {}
            Ok(Field::Other) => return Beginning::Texts(texts),
            Err(Unread::More) if texts.iter().all(String::is_empty) => return Beginning::More,
            // The key of what comes next may be there, and not yet its content.
            Err(Unread::More) => return if other_follows(bytes) { Beginning::Texts(texts) } else { Beginning::More },
            Err(Unread::Damaged) => return Beginning::Damaged,
        }
    }
}

enum Field<'a> {
    /// Field 1 or 2, as 0 or 1.
    Text(usize, &'a [u8]),
    Other,
}

enum Unread {
    More,
    Damaged,
}

/// The next field (protobuf, "Encoding"). Where it is not whole `bytes` stay as they are.
fn field<'a>(bytes: &mut &'a [u8]) -> Result<Field<'a>, Unread> {
    let mut rest = *bytes;
    let key = varint(&mut rest)?;
    let skipped = match key & 7 {
        0 => {
            varint(&mut rest)?;
            0
        }
        1 => 8,
        2 => usize::try_from(varint(&mut rest)?).map_err(|_| Unread::Damaged)?,
        5 => 4,
        _ => return Err(Unread::Damaged),
    };
    let (content, rest) = rest.split_at_checked(skipped).ok_or(Unread::More)?;
    *bytes = rest;
    match (key >> 3, key & 7) {
        (1, 2) => Ok(Field::Text(0, content)),
        (2, 2) => Ok(Field::Text(1, content)),
        (0..=2, _) => Err(Unread::Damaged),
        _ => Ok(Field::Other),
    }
}

/// True where the key of a field above 2 is there.
fn other_follows(mut bytes: &[u8]) -> bool {
    varint(&mut bytes).is_ok_and(|key| key >> 3 > 2)
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Unread> {
    let mut value = 0;
    for place in 0..10 {
        let (&byte, rest) = bytes.split_first().ok_or(Unread::More)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Unread::Damaged)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::proto::{ModelInferRequest, RepositoryModelLoadRequest, model_infer_request::InferInputTensor};

    fn request(name: &str, version: &str, bytes: usize) -> Vec<u8> {
        let request = ModelInferRequest {
            model_name: name.to_owned(),
            model_version: version.to_owned(),
            inputs: vec![InferInputTensor { name: "x".to_owned(), ..InferInputTensor::default() }],
            raw_input_contents: vec![vec![7; bytes].into()],
            ..ModelInferRequest::default()
        };
        request.encode_to_vec()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut whole = Vec::new();
        flate2::read::GzEncoder::new(bytes, flate2::Compression::fast()).read_to_end(&mut whole).unwrap();
        whole
    }

    fn found(name: &str, version: &str) -> Beginning {
        Beginning::Texts([name.to_owned(), version.to_owned()])
    }

    #[test]
    fn a_name_is_known_once_what_follows_it_begins() {
        for (name, version) in [("m", ""), ("chest-xray", "17"), ("", "3")] {
            let message = request(name, version, 100_000);
            let length = usize::from(!name.is_empty()) * (name.len() + 2)
                + usize::from(!version.is_empty()) * (version.len() + 2);
            for seen in 0..=length {
                assert_eq!(beginning(None, &message[..seen]), Beginning::More, "{name} {seen}");
            }
            for seen in length + 1..length + 50 {
                assert_eq!(beginning(None, &message[..seen]), found(name, version), "{name} {seen}");
            }
            let message = gzip(&message);
            assert_eq!(beginning(Some(Form::Gzip), &message), found(name, version));
            assert_eq!(beginning(Some(Form::Gzip), &message[..5]), Beginning::More);
        }
        let load = RepositoryModelLoadRequest { model_name: "m".to_owned(), ..Default::default() };
        assert_eq!(beginning(None, &[load.encode_to_vec(), vec![0x1a]].concat()), found("", "m"));
    }

    #[test]
    fn short_ones_nameless_ones_and_what_is_none_are_told_apart() {
        assert_eq!(beginning(Some(Form::Gzip), &gzip(&request("m", "", 100))), Beginning::Short);
        // Other fields first: they are passed over as far as they have come.
        let late =
            [&[0x22, 3, 1, 2, 3, 0x29, 0, 0, 0, 0, 0, 0, 0, 0, 0x30, 0x80, 1][..], &request("m", "", 9)].concat();
        assert_eq!(beginning(None, &late), found("m", ""));
        assert_eq!(beginning(None, &late[..10]), Beginning::More);
        let nameless = request("", "", 200_000);
        assert_eq!(beginning(None, &nameless[..WITHIN_BYTES]), Beginning::More);
        assert_eq!(beginning(Some(Form::Gzip), &gzip(&nameless)), Beginning::Damaged);
        for damaged in [&[0x0f][..], &[0x08, 1], &[0x0a, 1, 0xff, 0x1a], &[0xff; 11], &[0x00, 0x00]] {
            assert_eq!(beginning(None, damaged), Beginning::Damaged, "{damaged:?}");
        }
        assert_eq!(beginning(Some(Form::Gzip), b"no gzip at all"), Beginning::Damaged);
    }

    proptest! {
        /// Whatever the decoder makes of a message that is whole, its beginning says the same or nothing.
        #[test]
        fn it_agrees_with_the_decoder(bytes in proptest::collection::vec(any::<u8>(), 0..200), name in "[a-z]{0,8}") {
            let whole = [request(&name, "1", 3), bytes].concat();
            prop_assert_eq!(beginning(None, &whole), found(&name, "1"));
            let _ = beginning(None, &whole[7..]);
            let _ = beginning(Some(Form::Gzip), &whole);
        }
    }
}
