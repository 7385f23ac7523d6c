//! gRPC messages that peers announce, compress, or never finish, and access lines and spans of calls.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::convert::Infallible;

use bytes::Bytes;
use edgeward_graph::DataType;
use edgeward_serve::proto::{
    ModelInferRequest, grpc_inference_service_client::GrpcInferenceServiceClient, model_infer_request::InferInputTensor,
};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use support::Server;
use tokio_stream::{Stream, StreamExt as _};
use tonic::Code;

mod support;

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
const KB: u64 = 1024;

/// A server with the model `m`.
fn start(arguments: &[&str]) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("m.onnx");
    support::identity(DataType::Float32).write(&model).unwrap();
    Server::start(&[&model], &[&["--engine", "rten"], arguments].concat())
}

/// Rows of sixteen zeros.
fn request(rows: usize) -> ModelInferRequest {
    support::zeros("m", rows)
}

/// A message as gRPC frames it; `length` is what it announces.
fn framed(flag: u8, length: u32, message: &[u8]) -> Vec<u8> {
    [&[flag], length.to_be_bytes().as_slice(), message].concat()
}

fn whole(flag: u8, message: &[u8]) -> Vec<u8> {
    framed(flag, u32::try_from(message.len()).unwrap(), message)
}

type Sender<S> = hyper::client::conn::http2::SendRequest<StreamBody<S>>;

/// A connection whose calls have bodies of the test's own making.
async fn connect<S>(server: &Server) -> Sender<S>
where
    S: Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + Unpin + 'static,
{
    let stream = tokio::net::TcpStream::connect(&server.grpc).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// The parts as a body.
fn parts(parts: Vec<Bytes>) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + Unpin + 'static {
    tokio_stream::iter(parts.into_iter().map(|part| Ok(Frame::data(part))))
}

/// One call: its status, with the text that goes with it.
async fn call<S>(sender: &mut Sender<S>, encoding: &str, body: S) -> (Code, String)
where
    S: Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + Unpin + 'static,
{
    let request = http::Request::post(format!("http://localhost{INFER}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-encoding", encoding)
        .body(StreamBody::new(body))
        .unwrap();
    sender.ready().await.unwrap();
    let answer = sender.send_request(request).await.unwrap();
    let head = answer.headers().clone();
    let body = answer.into_body().collect().await.unwrap();
    let trailers = body.trailers().cloned().unwrap_or_default();
    let of = |name: &str| head.get(name).or(trailers.get(name)).map(|v| v.to_str().unwrap().to_owned());
    let code = of("grpc-status").unwrap_or_else(|| panic!("{head:?} {trailers:?}"));
    (code.parse::<i32>().unwrap().into(), of("grpc-message").unwrap_or_default().replace("%20", " "))
}

async fn serves(server: &Server) {
    let mut client = GrpcInferenceServiceClient::connect(format!("http://{}", server.grpc)).await.unwrap();
    client.model_infer(request(1)).await.unwrap();
}

#[tokio::test]
async fn a_call_that_goes_silent_is_ended_and_a_stream_may_rest() {
    let server = start(&[]);
    let mut client = GrpcInferenceServiceClient::connect(format!("http://{}", server.grpc)).await.unwrap();
    let (send, receive) = tokio::sync::mpsc::channel(1);
    let requests = tokio_stream::wrappers::ReceiverStream::new(receive);
    let stream = tokio::spawn(async move { client.model_stream_infer(requests).await });
    let message = prost::Message::encode_to_vec(&request(1));
    let silent: [&[u8]; 3] = [b"", &whole(0, &message)[..20], &whole(0, &message)];
    // Each is told so, also the one that lacks no more than its end.
    let calls = silent.map(async |begun| {
        let begun = parts(vec![Bytes::copy_from_slice(begun)]).chain(tokio_stream::pending());
        call(&mut connect(&server).await, "identity", begun).await
    });
    let [nothing, part, endless] = calls;
    for (code, text) in <[_; 3]>::from(tokio::join!(nothing, part, endless)) {
        assert!(code == Code::DeadlineExceeded && text.contains("no byte of the body came"), "{code}: {text}");
    }
    send.send(request(1)).await.unwrap();
    let mut answers = stream.await.unwrap().unwrap().into_inner();
    assert_eq!(answers.next().await.unwrap().unwrap().error_message, "");
}

#[tokio::test]
async fn large_messages_arrive_in_any_parts() {
    let server = start(&[]);
    let message = prost::Message::encode_to_vec(&request(40_000));
    let compressed = support::gzip(message.clone());
    for (encoding, bytes) in
        [("identity", whole(0, &message)), ("gzip", whole(1, &compressed)), ("gzip", whole(0, &message))]
    {
        for size in [1_000_003, 16_384, 4_099] {
            let mut sender = connect(&server).await;
            let chunks = bytes.chunks(size).map(Bytes::copy_from_slice).collect();
            let (code, text) = call(&mut sender, encoding, parts(chunks)).await;
            assert_eq!(code, Code::Ok, "{encoding} in parts of {size}: {text}");
        }
        // A byte at a time through the head.
        let (head, rest) = bytes.split_at(8);
        let mut chunks: Vec<Bytes> = head.chunks(1).map(Bytes::copy_from_slice).collect();
        chunks.push(Bytes::copy_from_slice(rest));
        let mut sender = connect(&server).await;
        assert_eq!(call(&mut sender, encoding, parts(chunks)).await.0, Code::Ok);
    }
    for (encoding, bytes, code) in [
        ("gzip", whole(1, b"no gzip"), Code::Internal),
        ("gzip", whole(1, &compressed[..compressed.len() / 2]), Code::Internal),
        ("gzip", whole(1, b""), Code::Internal),
        ("identity", whole(1, &compressed), Code::Internal),
        ("identity", whole(7, &message), Code::Internal),
        ("br", whole(1, &compressed), Code::Unimplemented),
        ("identity", whole(0, &message)[..100_000].to_vec(), Code::Internal),
        ("gzip", whole(1, &compressed)[..3].to_vec(), Code::Internal),
    ] {
        let mut sender = connect(&server).await;
        let (found, text) = call(&mut sender, encoding, parts(vec![bytes.into()])).await;
        assert_eq!(found, code, "{encoding}: {text}");
    }
    serves(&server).await;
}

#[tokio::test]
async fn only_grpc_is_taken_for_grpc() {
    let server = start(&[]);
    let message = whole(0, &prost::Message::encode_to_vec(&request(1)));
    for (kind, taken) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("Application/gRPC; charset=x", true),
        ("application/grpc+json", false),
        ("application/grpc-web", false),
        ("application/json", false),
        ("", false),
    ] {
        let mut sender = connect(&server).await;
        let asked = http::Request::post(format!("http://localhost{INFER}"))
            .header("content-type", kind)
            .header("te", "trailers");
        let body = StreamBody::new(parts(vec![message.clone().into()]));
        let answer = sender.send_request(asked.body(body).unwrap()).await.unwrap();
        assert_eq!(answer.status().as_u16(), if taken { 200 } else { 415 }, "{kind}");
        let (head, body) = (format!("{:?}", answer.headers()), answer.into_body().collect().await.unwrap());
        let status = body.trailers().and_then(|t| t.get("grpc-status")).map(|v| v.to_str().unwrap().to_owned());
        assert_eq!(status.as_deref(), taken.then_some("0"), "{kind}: {head}");
        let text = body.to_bytes();
        assert!(taken || String::from_utf8_lossy(&text).contains("application/grpc"), "{text:?}");
    }
    let (status, _, text) = support::ask(&server.grpc, "GET", "/", "", b"");
    assert!(status == 415 && text.contains("gRPC"), "a browser: {text}");
    // REST looks at what there is, not at what it is said to be: clients that send no or another type are many.
    let body = br#"{"inputs":[{"name":"INPUT0","shape":[1,16],"datatype":"FP32","data":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15]}]}"#;
    for kind in ["", "text/plain", "multipart/form-data", "application/x-www-form-urlencoded", "application/grpc", "x"]
    {
        let (status, text) = server.ask("POST", "/v2/models/m/infer", &format!("content-type: {kind}\r\n"), body);
        assert_eq!(status, 200, "{kind}: {text}");
    }
}

/// The names that begin with `triton_` are the protocol's.
#[tokio::test]
async fn reserved_parameters_are_refused_by_name() {
    use edgeward_serve::proto::{InferParameter, infer_parameter::ParameterChoice};
    let server = start(&[]);
    let mut client = GrpcInferenceServiceClient::connect(format!("http://{}", server.grpc)).await.unwrap();
    for (name, taken) in [("mine", true), ("triton_enable_empty_final_response", true), ("triton_mine", false)] {
        let mut asked = request(1);
        let yes = InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(true)) };
        asked.parameters.insert(name.to_owned(), yes);
        let answer = client.model_infer(asked).await;
        match answer {
            Ok(_) => assert!(taken, "{name}"),
            Err(e) => assert!(!taken && e.code() == Code::InvalidArgument && e.message().contains(name), "{e}"),
        }
        let row: Vec<_> = (0..16).map(|i| i.to_string()).collect();
        let body = format!(
            r#"{{"parameters":{{"{name}":true,"sequence_id":"a\"b"}},"inputs":[{{"name":"INPUT0","shape":[1,16],"datatype":"FP32","data":[{}]}}]}}"#,
            row.join(",")
        );
        let (status, text) = server.ask("POST", "/v2/models/m/infer", "", body.as_bytes());
        assert_eq!(status, if taken { 200 } else { 400 }, "{text}");
        assert!(text.contains(if taken { r#""parameters":{"sequence_id":"a\"b"}"# } else { name }), "{text}");
    }
}

#[tokio::test]
async fn bombs_are_refused_before_they_grow() {
    let server = start(&[]);
    serves(&server).await;
    let bomb = support::gzip(vec![b' '; 400 << 20]);
    let before = server.memory_kb("VmHWM");
    for _ in 0..5 {
        let mut sender = connect(&server).await;
        let (code, text) = call(&mut sender, "gzip", parts(vec![whole(1, &bomb).into()])).await;
        assert!(code == Code::ResourceExhausted && text.contains("grows beyond"), "{code}: {text}");
        let (status, text) = server.ask("POST", "/v2/models/m/infer", "content-encoding: gzip\r\n", &bomb);
        assert!(status == 400 && text.contains("grows beyond"), "{text}");
    }
    // Each may grow to 200 times its size, which is a fifth of what it would grow to; memory of several is kept for a second. All of
    // them together stay below what one would take.
    let grown = server.memory_kb("VmHWM") - before;
    assert!(grown < 390 * KB, "{grown} kB");
    serves(&server).await;
}

#[tokio::test]
async fn an_announced_length_costs_nothing() {
    let server = start(&[]);
    serves(&server).await;
    let before = server.memory_kb("VmPeak");
    let mut open = Vec::new();
    for _ in 0..100 {
        let begun = framed(0, i32::MAX as u32, &[0; 100]);
        let body = parts(vec![begun.into()]).chain(tokio_stream::pending());
        let mut sender = connect(&server).await;
        open.push(tokio::spawn(async move { call(&mut sender, "identity", body).await }));
    }
    for length in [i32::MAX as u32 + 1, u32::MAX] {
        let body = parts(vec![framed(0, length, &[0; 100]).into()]);
        let (code, text) = call(&mut connect(&server).await, "identity", body).await;
        assert!(code == Code::OutOfRange && text.contains("too large"), "{text}");
    }
    for call in open {
        assert_eq!(call.await.unwrap().0, Code::DeadlineExceeded);
    }
    let asked = server.memory_kb("VmPeak") - before;
    assert!(asked < 1024 * KB, "{asked} kB asked for");
    serves(&server).await;
}

#[tokio::test]
async fn contents_of_another_type_are_named() {
    use edgeward_serve::proto::InferTensorContents;
    let models = support::repository();
    let server = Server::start(&[models.path()], &["--engine", "rten"]);
    let mut client = GrpcInferenceServiceClient::connect(format!("http://{}", server.grpc)).await.unwrap();
    let table = [
        (
            InferTensorContents { int_contents: vec![1; 16], ..InferTensorContents::default() },
            "`int_contents` is filled (16 values)",
        ),
        (
            InferTensorContents {
                fp32_contents: vec![1.0; 16],
                bytes_contents: vec!["a".into()],
                ..InferTensorContents::default()
            },
            "`bytes_contents` is filled (1 values)",
        ),
        (InferTensorContents::default(), "16"),
    ];
    for (contents, part) in table {
        let input = InferInputTensor {
            name: "INPUT0".to_owned(),
            datatype: "FP32".to_owned(),
            shape: vec![1, 16],
            contents: Some(contents),
            ..InferInputTensor::default()
        };
        let request =
            ModelInferRequest { model_name: "ident".to_owned(), inputs: vec![input], ..ModelInferRequest::default() };
        let refused = client.model_infer(request).await.unwrap_err();
        let text = refused.message();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{text}");
        let names = part == "16" || text.contains("expected `fp32_contents` alone for FP32");
        assert!(names && text.contains("input `INPUT0`") && text.contains(part), "{text}");
    }
}
