//! Bytes of a stranger as a request over gRPC: the message, then its tensors, then as an answer.

#![no_main]

use edgeward_serve::decode;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(inputs) = decode::grpc_request(data) else { return };
    for raw in [true, false] {
        let _ = decode::grpc_answer(&inputs, raw);
    }
});
