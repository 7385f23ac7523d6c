//! What a caller is told of what an engine says: the reason, without the places of the engine's own source.

/// How ONNX Runtime ends the account of a check of its own, whose reason follows.
const CHECK_FAILED: &str = " was false. ";
/// Where ONNX Runtime finds that an output of the shape that an operator asks for cannot be; the reason follows.
const NO_SUCH_SHAPE: &str = " CalculateTensorStorageSize ";
/// Before the reason of an operator that gave up.
const STATUS: &str = "Status Message: ";
/// Where a line names a place in a source file.
const SOURCES: [&str; 5] = [".cc:", ".cpp:", ".h:", ".hpp:", ".rs:"];

/// True where an operator refused the values that came to it, by a check of its own; false where it failed.
pub(super) fn of_values(message: &str) -> bool {
    let refuses = message.contains(CHECK_FAILED.trim_end()) || message.contains(NO_SUCH_SHAPE);
    let onnxruntime = message.contains(STATUS) && refuses;
    let openvino = message.contains("Check '") && message.contains("' failed at ");
    onnxruntime || openvino
}

/// The node and the reason. What names no place in a source file stays as it is.
pub(super) fn told(message: &str) -> String {
    if !names_source(message) {
        return message.to_owned();
    }
    let (before, status) = message.split_once(STATUS).map_or(("", message), |(before, status)| (before.trim(), status));
    let after = |mark| status.split_once(mark).map(|(_, reason)| reason);
    let reason = after(CHECK_FAILED).or_else(|| after(NO_SUCH_SHAPE)).unwrap_or(status);
    let reason = reason.lines().map(str::trim).filter(|line| !line.is_empty() && !names_source(line));
    let reason = reason.collect::<Vec<_>>().join(" ");
    let reason = if reason.is_empty() { "an operator does not take these values" } else { &reason };
    let node = node(before).map(|node| format!("{node}: ")).unwrap_or_default();
    format!("{node}{reason}")
}

fn names_source(text: &str) -> bool {
    let digit = |at: usize| text.as_bytes().get(at).is_some_and(u8::is_ascii_digit);
    SOURCES.iter().any(|ending| text.match_indices(ending).any(|(at, ending)| digit(at + ending.len())))
}

/// Operator and name out of `… while running OP node. Name:'NAME'`.
fn node(text: &str) -> Option<String> {
    let (op, rest) = text.split_once("while running ")?.1.split_once(" node.")?;
    let name = rest.split_once("Name:'").and_then(|(_, name)| name.split_once('\'')).map(|(name, _)| name);
    Some(match name.filter(|name| !name.is_empty()) {
        Some(name) => format!("node `{name}` ({op})"),
        None => format!("a node {op}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_stays_and_the_places_go() {
        let run = "Non-zero status code returned while running Reshape node. Name:'r' Status Message: ";
        let check = "/onnxruntime_src/a/reshape_helper.h:47 onnxruntime::R::R(const TensorShape&) a == b was false. ";
        let table = [
            (format!("{run}{check}The input cannot be reshaped\n"), "node `r` (Reshape): The input cannot be reshaped", true),
            (format!("{run}{check}"), "node `r` (Reshape): an operator does not take these values", true),
            (
                format!("{run}/a/op_kernel.cc:87 virtual V* K(int) [ONNXRuntimeError] : 1 : FAIL : tensor.cc:57 CalculateTensorStorageSize Too few\n"),
                "node `r` (Reshape): Too few",
                true,
            ),
            (format!("{run}CUDA error 700"), &*format!("{run}CUDA error 700"), false),
            (
                "Exception from src/inference/src/cpp/infer_request.cpp:223:\nCheck 'x' failed at src/core/a.cpp:9:\nToo long\n".into(),
                "Too long",
                true,
            ),
            ("input `a` is missing".into(), "input `a` is missing", false),
        ];
        for (message, expected, values) in &table {
            assert_eq!((&*told(message), of_values(message)), (*expected, *values), "{message}");
        }
    }
}
