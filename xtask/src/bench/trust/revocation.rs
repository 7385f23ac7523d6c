//! From a revocation to the end of every stream that it is about.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use h2::client::ResponseFuture;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::path::{self, Trust};
use crate::bench::{
    Effort, Row, figure, load,
    peers::{Edgeward, Running},
};

const STREAMS: usize = 1000;
const CONNECTIONS: usize = 10;
const PATH: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

/// Opens streams, revokes their caller by one call of the administrator, and takes the time from the beginning of that call.
pub fn run(edgeward: &Edgeward, effort: Effort) -> anyhow::Result<Vec<Row>> {
    let streams = (STREAMS / effort.divisor).max(CONNECTIONS);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut times = Vec::new();
    for _ in 0..effort.rounds {
        times.extend(runtime.block_on(round(edgeward, streams))?);
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN);
    let what = format!("{streams} open streams over TLS: from the revoking call to a stream's end at its client, p99");
    Ok(vec![Row::at_most("revocation", what, at(0.99), "ms", 100.0).against(format!(
        "p50 {} ms, last {} ms",
        figure(at(0.5)),
        figure(at(1.0 - f64::EPSILON))
    ))])
}

async fn round(edgeward: &Edgeward, streams: usize) -> anyhow::Result<Vec<f64>> {
    let trust = Trust::make(edgeward)?;
    let folder = trust.folder.display().to_string();
    let (mut command, http, grpc) =
        edgeward.command_as(&["--trust", &folder], &edgeward.model("identity16"), &["--engine", "rten"])?;
    let server = Running::start_verified(&mut command, http, grpc, &trust.client)?;
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS {
        open.extend(connect(&server, &trust, streams / CONNECTIONS).await?);
    }
    let admin = path::admin(&trust)?;
    let began = Instant::now();
    let revoke = tokio::task::spawn_blocking(move || path::revoke(http, &admin, "spiffe://edgeward.local/ward"));
    let ends = open.into_iter().map(|stream| tokio::spawn(stream.end(began)));
    let mut times = Vec::new();
    for end in ends.collect::<Vec<_>>() {
        times.push(tokio::time::timeout(Duration::from_secs(20), end).await.context("a stream was not cut")???);
    }
    revoke.await??;
    Ok(times)
}

/// A stream whose first answer has come.
struct Open {
    body: h2::RecvStream,
    /// Kept open: the client has more to say.
    _send: h2::SendStream<bytes::Bytes>,
}

impl Open {
    /// Milliseconds from `began` to the end.
    async fn end(mut self, began: Instant) -> anyhow::Result<f64> {
        while let Some(data) = self.body.data().await {
            let Ok(data) = data else { break };
            self.body.flow_control().release_capacity(data.len())?;
        }
        Ok(began.elapsed().as_secs_f64() * 1e3)
    }
}

async fn connect(server: &Running, trust: &Trust, streams: usize) -> anyhow::Result<Vec<Open>> {
    let mut config = rustls::ClientConfig::clone(&trust.client);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let socket = TcpStream::connect(server.grpc).await?;
    let stream = TlsConnector::from(Arc::new(config)).connect(ServerName::from(server.grpc.ip()), socket).await?;
    let (mut client, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(connection);
    let mut open = Vec::new();
    for _ in 0..streams {
        client = client.ready().await?;
        let request = http::Request::post(format!("https://localhost{PATH}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let (answer, mut send) = client.send_request(request, false)?;
        let values: Vec<f32> = vec![0.5; 16];
        let body = load::grpc_body("identity16", "INPUT0", &[1, 16], &values);
        send.send_data(body.into(), false)?;
        open.push(first(answer, send).await?);
    }
    Ok(open)
}

async fn first(answer: ResponseFuture, send: h2::SendStream<bytes::Bytes>) -> anyhow::Result<Open> {
    let mut body = answer.await?.into_body();
    match body.data().await {
        Some(Ok(data)) => {
            body.flow_control().release_capacity(data.len())?;
            Ok(Open { body, _send: send })
        }
        other => bail!("a stream had no answer: {other:?}"),
    }
}
