//! What those who may nothing can cost: gRPC messages of any announced length, from nobody and from callers whom no policy permits.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use edgeward_serve::proto::{ModelInferRequest, RepositoryModelLoadRequest};
use http_body_util::{BodyExt as _, StreamBody, combinators::BoxBody};
use hyper::{body::Frame, client::conn::http2::SendRequest};
use prost::Message as _;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use support::{Server, repository, trust::Trust};
use tokio_stream::StreamExt as _;
use tonic::Code;

mod support;

const SERVICE: &str = "/inference.GRPCInferenceService";
const MIB: usize = 1 << 20;
/// A stream's window at the server, the one message's part that is read, and what the client has ready.
const STRANGER_BYTES_MAX: usize = MIB + 256 * 1024;

/// A policy that lets `NAME` use `ident` on these terms.
fn permit(name: &str, terms: &str) -> String {
    format!(
        "@id(\"{name}\")\n{terms}\npermit (principal == Workload::\"spiffe://edgeward.local/{name}\", \
         action in [Action::\"use\", Action::\"inspect\"], resource in Model::\"ident\");\n"
    )
}

/// A connection as `who`, nobody where empty.
async fn connect(trust: &Trust, server: &Server, who: &str) -> SendRequest<BoxBody<Bytes, Infallible>> {
    let read = |name: String| std::fs::read(trust.folder().join(name)).unwrap();
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(&read("roots.pem".to_owned())) {
        roots.add(root.unwrap()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let config = config.with_protocol_versions(&[&rustls::version::TLS13]).unwrap().with_root_certificates(roots);
    let mut config = match who {
        "" => config.with_no_client_auth(),
        who => {
            let chain = CertificateDer::pem_slice_iter(&read(format!("{who}.pem"))).map(Result::unwrap).collect();
            let key = PrivateKeyDer::from_pem_slice(&read(format!("{who}.key"))).unwrap();
            config.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = tokio::net::TcpStream::connect(&server.grpc).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let executor = hyper_util::rt::TokioExecutor::new();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// A request to `ident` in rows of sixteen zeros.
fn request(rows: usize) -> ModelInferRequest {
    support::zeros("ident", rows)
}

/// Bytes that no compression makes less.
fn noise() -> impl Iterator<Item = u8> {
    let mut state = 1u64;
    std::iter::repeat_with(move || {
        // Xorshift (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    })
}

/// A message as gRPC frames it, compressed or not.
fn framed(flag: u8, message: &[u8]) -> Bytes {
    [&[flag], u32::try_from(message.len()).unwrap().to_be_bytes().as_slice(), message].concat().into()
}

/// A call's body in pieces of 16 KiB, with the number of bytes that were asked for.
fn counted(message: &Bytes) -> (BoxBody<Bytes, Infallible>, Arc<AtomicUsize>) {
    let (message, sent) = (message.clone(), Arc::new(AtomicUsize::new(0)));
    let count = sent.clone();
    let pieces = (0..message.len()).step_by(16 * 1024).map(move |from| {
        let piece = message.slice(from..message.len().min(from + 16 * 1024));
        count.fetch_add(piece.len(), Relaxed);
        Ok(Frame::data(piece))
    });
    (BoxBody::new(StreamBody::new(tokio_stream::iter(pieces))), sent)
}

/// One call: its status.
async fn call(
    sender: &mut SendRequest<BoxBody<Bytes, Infallible>>,
    (path, encoding): (&str, &str),
    body: BoxBody<Bytes, Infallible>,
) -> Code {
    let request = http::Request::post(format!("https://localhost{SERVICE}/{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-encoding", encoding)
        .body(body)
        .unwrap();
    sender.ready().await.unwrap();
    let answer = sender.send_request(request).await.unwrap();
    let head = answer.headers().get("grpc-status").cloned();
    let body = answer.into_body().collect().await.unwrap();
    let status = head.or_else(|| body.trailers()?.get("grpc-status").cloned());
    status.unwrap().to_str().unwrap().parse::<i32>().unwrap().into()
}

/// Status of a call with one message, and how much of it was sent.
async fn sends(trust: &Trust, server: &Server, who: &str, how: (&str, &str), message: &Bytes) -> (Code, usize) {
    let (body, sent) = counted(message);
    let code = call(&mut connect(trust, server, who).await, how, body).await;
    (code, sent.load(Relaxed))
}

fn records<'a>(all: &'a [serde_json::Value], who: &str) -> Vec<&'a serde_json::Value> {
    let id = format!("spiffe://edgeward.local/{who}");
    all.iter().filter(|record| record["principal"] == *id).collect()
}

#[tokio::test]
async fn a_stranger_is_denied_before_its_message_has_come() {
    let (models, trust) = (repository(), Trust::init(&["ident"]));
    ["guest", "ward"].into_iter().for_each(|name| trust.issue(name));
    trust.policy("ward.cedar", &permit("ward", "@query_budget(\"1300000/day\")"));
    let server = trust.serve(&[models.path()]);
    let plain = framed(0, &request(600_000).encode_to_vec());
    let noise: Vec<u8> = noise().take(8 * MIB).collect();
    let noisy = ModelInferRequest { raw_input_contents: vec![noise.clone().into()], ..request(0) };
    let zipped = framed(1, &support::gzip(noisy.encode_to_vec()));
    let load = RepositoryModelLoadRequest { model_name: "ident".to_owned(), ..Default::default() };
    let load = framed(0, &[load.encode_to_vec(), vec![0x1a, 0x80, 0x80, 0x80, 0x10], noise].concat());
    for (how, message) in [
        (("ModelInfer", "identity"), &plain),
        (("ModelStreamInfer", "identity"), &plain),
        (("ModelInfer", "gzip"), &zipped),
        (("RepositoryModelLoad", "identity"), &load),
    ] {
        assert!(message.len() > 4 * STRANGER_BYTES_MAX, "{how:?}: {}", message.len());
        for (who, expected) in [("", Code::Unauthenticated), ("guest", Code::PermissionDenied)] {
            let (code, sent) = sends(&trust, &server, who, how, message).await;
            assert!(code == expected && sent <= STRANGER_BYTES_MAX, "{who} {how:?}: {code:?}, {sent} bytes");
        }
    }
    // Calls with short messages take no long ones, whoever makes them.
    for (who, path) in [("guest", "ModelReady"), ("guest", "ServerLive"), ("ward", "ModelMetadata")] {
        let (code, sent) = sends(&trust, &server, who, (path, "identity"), &plain).await;
        assert!(code == Code::ResourceExhausted && sent <= STRANGER_BYTES_MAX, "{path}: {code:?}, {sent} bytes");
    }
    for path in ["ModelInfer", "ModelStreamInfer"] {
        let answered = sends(&trust, &server, "ward", (path, "identity"), &plain).await;
        assert_eq!(answered, (Code::Ok, plain.len()), "{path}");
    }
    // Both together were 1,200,000 queries, each counted once.
    assert_eq!(
        sends(&trust, &server, "ward", ("ModelInfer", "identity"), &framed(0, &request(100_000).encode_to_vec()))
            .await
            .0,
        Code::Ok
    );
    assert_eq!(
        sends(&trust, &server, "ward", ("ModelInfer", "identity"), &framed(0, &request(1).encode_to_vec())).await.0,
        Code::ResourceExhausted
    );
    server.terminate();
    let all = trust.audit();
    let guest: Vec<_> = records(&all, "guest").iter().map(|r| r["action"].as_str().unwrap().to_owned()).collect();
    assert_eq!(guest[..4], ["infer", "stream", "infer", "load"], "{guest:?}");
    let ward: Vec<_> = records(&all, "ward").iter().map(|r| r["decision"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ward, ["allow", "allow", "allow", "deny"]);
}

#[tokio::test]
async fn a_name_that_comes_late_is_decided_as_it_is_decoded() {
    let (models, trust) = (repository(), Trust::init(&["ident", "ident_f16"]));
    trust.issue("ward");
    trust.policy("ward.cedar", &permit("ward", ""));
    let server = trust.serve(&[models.path()]);
    let fields = |name: &str| ModelInferRequest { model_name: name.to_owned(), ..Default::default() }.encode_to_vec();
    let nameless = ModelInferRequest { model_name: String::new(), ..request(40_000) }.encode_to_vec();
    let ask = |message: Vec<u8>| {
        let (trust, server) = (&trust, &server);
        async move { sends(trust, server, "ward", ("ModelInfer", "identity"), &framed(0, &message)).await.0 }
    };
    // The last of several names counts.
    assert_eq!(ask([request(40_000).encode_to_vec(), fields("ident_f16")].concat()).await, Code::PermissionDenied);
    assert_eq!(ask([request(40_000).encode_to_vec(), fields("ident")].concat()).await, Code::Ok);
    assert_eq!(ask([fields("ident_f16"), request(40_000).encode_to_vec()].concat()).await, Code::Ok);
    // In a long message it may not be the last field; in a short one it may.
    assert_eq!(ask([nameless, fields("ident")].concat()).await, Code::InvalidArgument);
    let nameless = ModelInferRequest { model_name: String::new(), ..request(10) }.encode_to_vec();
    assert_eq!(ask([nameless, fields("ident")].concat()).await, Code::Ok);
}

#[tokio::test]
async fn what_all_strangers_hold_together_is_bounded() {
    let (models, trust) = (repository(), Trust::init(&["ident"]));
    ["guest", "ward"].into_iter().for_each(|name| trust.issue(name));
    trust.policy("ward.cedar", &permit("ward", ""));
    let server = trust.serve(&[models.path()]);
    // Messages that lack their last byte, each just too short to be decided before it has come.
    let whole = framed(0, &request(1000).encode_to_vec());
    let cut = whole.slice(..whole.len() - 1);
    let sender = connect(&trust, &server, "guest").await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let (mut sender, cut) = (sender.clone(), cut.clone());
        calls.spawn(async move {
            let begun = tokio_stream::once(Ok(Frame::data(cut))).chain(tokio_stream::pending());
            call(&mut sender, ("ModelInfer", "identity"), BoxBody::new(StreamBody::new(begun))).await
        });
    }
    // 4 MiB have room: what is beyond is told so at once, the others wait until they are silent for too long.
    let mut refused = 0;
    while let Ok(Some(code)) = tokio::time::timeout(std::time::Duration::from_secs(5), calls.join_next()).await {
        assert_eq!(code.unwrap(), Code::Unavailable);
        refused += 1;
    }
    assert!((200 - (4 * MIB / cut.len()) - 1..200).contains(&refused), "{refused} of 200");
    // Others have their place, and so has this one again once it has given it back.
    assert_eq!(sends(&trust, &server, "ward", ("ModelInfer", "identity"), &whole).await.0, Code::Ok);
    calls.shutdown().await;
    let (body, _) = counted(&whole);
    assert_eq!(call(&mut sender.clone(), ("ModelInfer", "identity"), body).await, Code::PermissionDenied);
}

/// What is decided counts no more, however long its stream stays open.
#[tokio::test]
async fn streams_that_rest_hold_nothing() {
    let (models, trust) = (repository(), Trust::init(&["ident"]));
    trust.issue("ward");
    trust.policy("ward.cedar", &permit("ward", ""));
    let server = trust.serve(&[models.path()]);
    let whole = framed(0, &request(1000).encode_to_vec());
    let (sender, mut open) = (connect(&trust, &server, "ward").await, Vec::new());
    // Together these would be more than a connection may hold.
    for _ in 0..2 * 4 * MIB / whole.len() {
        let (parts, receive) = tokio::sync::mpsc::channel(1);
        let body = tokio_stream::wrappers::ReceiverStream::new(receive).map(|part| Ok(Frame::data(part)));
        let request = http::Request::post(format!("https://localhost{SERVICE}/ModelStreamInfer"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(BoxBody::new(StreamBody::new(body)))
            .unwrap();
        let answer = tokio::spawn(sender.clone().send_request(request));
        parts.send(whole.slice(..whole.len() - 1)).await.unwrap();
        // The server has seen that the rest is not there yet.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        parts.send(whole.slice(whole.len() - 1..)).await.unwrap();
        let mut answer = answer.await.unwrap().unwrap();
        assert_eq!(answer.headers().get("grpc-status"), None);
        let mut taken = 0;
        while taken < 64_000 {
            taken += answer.body_mut().frame().await.unwrap().unwrap().into_data().unwrap().len();
        }
        open.push((parts, answer));
    }
    assert_eq!(sends(&trust, &server, "ward", ("ModelInfer", "identity"), &whole).await.0, Code::Ok);
}
