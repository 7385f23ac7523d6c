//! gRPC streams and deadlines, and callers that go away.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use edgeward_serve::proto::{
    ModelInferRequest, grpc_inference_service_client::GrpcInferenceServiceClient, model_infer_request::InferInputTensor,
};
use support::{Server, repository};
use tokio_stream::StreamExt as _;
use tonic::{Code, transport::Channel};

mod support;

type Client = GrpcInferenceServiceClient<Channel>;

async fn client(server: &Server) -> Client {
    Client::connect(format!("http://{}", server.grpc)).await.unwrap()
}

/// Rows of zeros for a model of FP32.
fn request(model: &str, id: &str, shape: [i64; 2]) -> ModelInferRequest {
    let bytes = vec![0u8; usize::try_from(shape[0] * shape[1] * 4).unwrap()];
    let input = InferInputTensor {
        name: "INPUT0".to_owned(),
        datatype: "FP32".to_owned(),
        shape: shape.to_vec(),
        ..InferInputTensor::default()
    };
    ModelInferRequest {
        model_name: model.to_owned(),
        id: id.to_owned(),
        inputs: vec![input],
        raw_input_contents: vec![bytes.into()],
        ..ModelInferRequest::default()
    }
}

fn metric(server: &Server, name: &str) -> u64 {
    let (_, _, text) = support::ask(&server.metrics, "GET", "/metrics", "", b"");
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// The model `m` holds its caller up for a while; one request runs at a time.
fn slow_repository() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("m/1")).unwrap();
    support::slow(900).write(folder.path().join("m/1/model.onnx")).unwrap();
    std::fs::write(folder.path().join("m/config.pbtxt"), "instance_group { count: 1 }").unwrap();
    folder
}

#[tokio::test]
async fn answers_keep_the_order_and_an_error_does_not_end_the_stream() {
    let models = repository();
    let server = Server::start(&[models.path()], &[]);
    let requests = (0..100).map(|i| request(if i % 10 == 3 { "nobody" } else { "ident" }, &i.to_string(), [1, 16]));
    let requests: Vec<_> = requests.collect();
    let answers = client(&server).await.model_stream_infer(tokio_stream::iter(requests)).await.unwrap().into_inner();
    let answers: Vec<_> = answers.map(Result::unwrap).collect().await;
    assert_eq!(answers.len(), 100);
    for (i, answer) in answers.iter().enumerate() {
        assert_eq!(answer.infer_response.as_ref().unwrap().id, i.to_string());
        assert_eq!(answer.error_message.contains("nobody"), i % 10 == 3, "{}", answer.error_message);
    }
}

#[tokio::test]
async fn what_cannot_be_decoded_ends_the_stream_with_a_status() {
    let models = repository();
    let server = Server::start(&[models.path()], &[]);
    // A good message, then one whose bytes are no message: field 1 claims more than there is.
    let good = prost::Message::encode_to_vec(&request("ident", "1", [1, 16]));
    let body = framed(&[good, vec![0x0a, 0x7f, 0x00]]);
    let answered = raw(&server, "/inference.GRPCInferenceService/ModelStreamInfer", "1H", body).await;
    assert!(answered.contains("grpc-status") && !answered.contains("\"grpc-status\": \"0\""), "{answered}");
}

/// Messages as gRPC frames them.
fn framed(messages: &[Vec<u8>]) -> Vec<u8> {
    let mut body = Vec::new();
    for message in messages {
        body.push(0);
        body.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
        body.extend_from_slice(message);
    }
    body
}

/// A gRPC call of these bytes: head and trailers of its answer.
async fn raw(server: &Server, path: &str, timeout: &str, body: Vec<u8>) -> String {
    use http_body_util::{BodyExt as _, Full};
    let stream = tokio::net::TcpStream::connect(&server.grpc).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post(format!("http://{}{path}", server.grpc))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", timeout)
        .body(Full::new(bytes::Bytes::from(body)))
        .unwrap();
    let answer = sender.send_request(request).await.unwrap();
    let head = format!("{:?}", answer.headers());
    let body = answer.into_body().collect().await.unwrap();
    format!("{head} {:?}", body.trailers())
}

#[tokio::test]
async fn a_stream_whose_caller_goes_away_ends_its_requests() {
    let models = slow_repository();
    let server = Server::start(&[models.path()], &["--engine", "rten", "--threads", "1"]);
    // So many that not all have run before the server hears of it.
    const REQUESTS: i64 = 500;
    let requests: Vec<_> = (0..REQUESTS).map(|i| request("m", &i.to_string(), [1, 16])).collect();
    let requests = tokio_stream::iter(requests);
    let mut answers = client(&server).await.model_stream_infer(requests).await.unwrap().into_inner();
    assert!(answers.next().await.unwrap().unwrap().error_message.is_empty());
    drop(answers);
    let began = Instant::now();
    while metric(&server, "nv_inference_pending_request_count") > 0 {
        assert!(began.elapsed() < Duration::from_secs(60), "requests of a caller that has gone still run");
        tokio::task::yield_now().await;
    }
    let answered = metric(&server, "nv_inference_request_success");
    assert!(answered < REQUESTS as u64, "all {answered} requests ran, though nobody waited for them");
}

#[tokio::test]
async fn a_deadline_bounds_the_wait() {
    let models = slow_repository();
    let server = Server::start(&[models.path()], &["--engine", "rten", "--threads", "1"]);
    let mut one = client(&server).await;
    one.model_infer(request("m", "0", [1, 16])).await.unwrap();
    let busy: Vec<_> = (0..20)
        .map(|_| {
            let mut one = one.clone();
            tokio::spawn(async move { one.model_infer(request("m", "1", [1, 16])).await })
        })
        .collect();
    while metric(&server, "nv_inference_pending_request_count") < 20 {
        tokio::task::yield_now().await;
    }
    // Not by the client, which would end the call itself. The server sees that it would come too late.
    let body = framed(&[prost::Message::encode_to_vec(&request("m", "2", [1, 16]))]);
    let refused = raw(&server, "/inference.GRPCInferenceService/ModelInfer", "50m", body).await;
    let code = |code: Code| format!("\"grpc-status\": \"{}\"", code as i32);
    let wanted = [code(Code::DeadlineExceeded), code(Code::ResourceExhausted)];
    assert!(wanted.iter().any(|code| refused.contains(code)), "{refused}");
    for call in busy {
        call.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn compressed_messages_are_taken_and_given() {
    use tonic::codec::CompressionEncoding::Gzip;
    let models = repository();
    let server = Server::start(&[models.path()], &[]);
    let mut client = client(&server).await.send_compressed(Gzip).accept_compressed(Gzip);
    let answer = client.model_infer(request("ident", "1", [64, 16])).await.unwrap();
    assert_eq!(answer.metadata().get("grpc-encoding").unwrap(), "gzip");
    assert_eq!(answer.into_inner().raw_output_contents[0].len(), 64 * 16 * 4);
}

#[tokio::test]
async fn streams_end_with_a_server_that_stops_and_what_runs_is_answered() {
    let (ident, slow) = (repository(), slow_repository());
    let arguments = ["--engine", "rten", "--threads", "1", "--grace-seconds", "600"];
    let mut server = Server::start(&[ident.path(), slow.path()], &arguments);
    // Nothing sent; one answered and silent since; some that run.
    let streams = [("", 0), ("ident", 1), ("m", 4)];
    let mut open = Vec::new();
    for (model, count) in streams {
        let (sender, requests) = tokio::sync::mpsc::channel(8);
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        let answers = client(&server).await.model_stream_infer(requests).await.unwrap().into_inner();
        for id in 0..count {
            sender.send(request(model, &id.to_string(), [1, 16])).await.unwrap();
        }
        open.push((count, sender, answers));
    }
    let (_, _, answered) = &mut open[1];
    assert_eq!(answered.next().await.unwrap().unwrap().infer_response.unwrap().id, "0");
    open[1].0 = 0;
    let channel = Channel::from_shared(format!("http://{}", server.grpc)).unwrap().connect().await.unwrap();
    let watched = tonic_health::pb::HealthCheckRequest::default();
    let mut health =
        tonic_health::pb::health_client::HealthClient::new(channel).watch(watched).await.unwrap().into_inner();
    let mut states = vec![health.next().await.unwrap().unwrap().status()];
    while metric(&server, "nv_inference_pending_request_count{model=\"m\"") < 4 {
        tokio::task::yield_now().await;
    }
    let id = rustix::process::Pid::from_child(&server.child);
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    for (count, _sender, mut answers) in open {
        for id in 0..count {
            assert_eq!(answers.next().await.unwrap().unwrap().infer_response.unwrap().id, id.to_string());
        }
        assert_eq!(answers.next().await.unwrap().unwrap_err().code(), Code::Unavailable);
    }
    while let Some(state) = health.next().await {
        states.push(state.unwrap().status());
    }
    use tonic_health::pb::health_check_response::ServingStatus::{NotServing, Serving};
    assert_eq!(states, [Serving, NotServing]);
    assert!(server.child.wait().unwrap().success(), "long before the grace time of ten minutes");
}
