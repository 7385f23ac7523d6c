//! Bytes of a stranger as a request over REST: two bytes of header length, then the body. What is read can be written
//! as an answer, and what was written as JSON reads as the same tensors.

#![no_main]

use bytes::Bytes;
use edgeward_serve::decode;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((length, body)) = data.split_first_chunk::<2>() else { return };
    let length = usize::from(u16::from_le_bytes(*length));
    let header = length.checked_sub(1);
    let Ok(inputs) = decode::rest_request(Bytes::copy_from_slice(body), header) else { return };
    let Ok((json, tail)) = decode::rest_answer(&inputs) else { return };
    // An answer's outputs have the form of a request's inputs.
    let head = json.len();
    let mut again =
        String::from_utf8(json).expect("JSON is UTF-8").replacen("\"outputs\":[", "\"inputs\":[", 1).into_bytes();
    assert_eq!(again.len() + 1, head, "the key stands once at its place");
    let header = (!tail.is_empty()).then_some(again.len());
    tail.iter().for_each(|part| again.extend_from_slice(part));
    let read = decode::rest_request(again.into(), header).expect("what was written can be read");
    assert_eq!(read.len(), inputs.len());
    for ((name, tensor), (other_name, other)) in inputs.iter().zip(&read) {
        assert_eq!((name, tensor.shape(), tensor.dtype()), (other_name, other.shape(), other.dtype()));
        if let (Some(a), Some(b)) = (tensor.raw(), other.raw()) {
            assert_eq!(a, b, "a round trip changes `{name}`");
        }
    }
});
