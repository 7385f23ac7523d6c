//! Drills inside the door: another segment's model, a policy engine that fails, and a caller who is revoked.

use std::time::{Duration, Instant};

use bytes::Bytes;
use edgeward_serve::proto::{
    ModelInferRequest, grpc_inference_service_client::GrpcInferenceServiceClient, model_infer_request::InferInputTensor,
};
use edgeward_trust::policy::Sources;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio_stream::StreamExt as _;
use tonic::transport::{Channel, Endpoint};

use super::{
    Stage,
    cast::Person,
    network::LIVE,
    outcome::{Evidence, Verdict},
};
use crate::{
    failure::{Failure, OrInput as _},
    trust::failure,
    wire::{Call, Listener, Reply, Shown},
};

const POLICIES: &str = "/v2/trust/policies";
/// A revocation that has not cut a stream after so long does not cut it.
const CUT_TIME_MAX: Duration = Duration::from_secs(10);

/// Everything that there is to do with a model, by one who may nothing with it.
pub async fn cross_segment(stage: &Stage<'_>) -> Result<Verdict, Failure> {
    let model = stage.model_name();
    let stranger = Some(&stage.cast.stranger.shown);
    let ordinary = Bytes::from(stage.ordinary_body());
    let mut evidence = Vec::new();
    for (method, path) in operations(model) {
        let body = if path.ends_with("/infer") { ordinary.clone() } else { Bytes::from_static(b"{}") };
        let call = Call { method: method.clone(), path: &path, headers: Vec::new(), body };
        let reply = stage.cast.dialer.ask(&stage.http, stranger, call).await;
        let what = format!("{method} {path}");
        evidence.push(Evidence::attempt(what, reply.to_string(), reply.succeeded()));
        if path.ends_with("/unload") && reply.succeeded() {
            stage.admin(Call::post(&format!("/v2/repository/models/{model}/load"), "{}")).await;
        }
    }
    evidence.push(oracle(stage).await);
    if let Some(grpc) = &stage.grpc {
        let answer = infer_over_grpc(stage, grpc, &stage.cast.stranger.shown).await;
        let found = answer.as_ref().map_or_else(|status| format!("{:?}", status.code()), |()| "answered".to_owned());
        evidence.push(Evidence::attempt("ModelInfer over gRPC", found, answer.is_ok()));
    }
    let rightful = stage.cast.dialer.ask(&stage.http, Some(&stage.cast.admin.shown), Call::get(LIVE)).await;
    let broken = (!rightful.recognised()).then(|| format!("the administrator is refused as well: {rightful}"));
    let through = format!("`{}` reached what it has no business with", stage.cast.stranger.name);
    Ok(Verdict::of(evidence, format!("`{}` is denied all of it", stage.cast.stranger.name), through)
        .unless_broken(broken))
}

fn operations(model: &str) -> Vec<(http::Method, String)> {
    use http::Method as M;
    let (get, post) = (M::GET, M::POST);
    [
        (&post, format!("/v2/models/{model}/infer")),
        (&post, format!("/v2/models/{model}/versions/1/infer")),
        (&get, format!("/v2/models/{model}")),
        (&get, format!("/v2/models/{model}/config")),
        (&get, format!("/v2/models/{model}/stats")),
        (&get, format!("/v2/models/{model}/ready")),
        (&post, format!("/v2/models/{model}/trace/setting")),
        (&post, format!("/v2/repository/models/{model}/unload")),
        (&post, "/v2/repository/index".to_owned()),
        (&get, "/v2/models/stats".to_owned()),
        (&get, POLICIES.to_owned()),
        (&get, "/v2/trust/audit".to_owned()),
        (&get, "/metrics".to_owned()),
        (&post, "/v2/logging".to_owned()),
    ]
    .map(|(method, path)| (method.clone(), path))
    .into()
}

/// Whether answers tell what exists: a model that is there and one that is not must be refused alike.
async fn oracle(stage: &Stage<'_>) -> Evidence {
    let ask = async |model: &str| {
        let path = format!("/v2/models/{model}");
        stage.cast.dialer.ask(&stage.http, Some(&stage.cast.stranger.shown), Call::get(&path)).await
    };
    let (there, nowhere) = (ask(stage.model_name()).await, ask("there-is-no-such-model").await);
    let alike = there.status() == nowhere.status() && there.body() == nowhere.body();
    let found = format!("{there}; {nowhere}");
    Evidence::attempt("a model that exists against one that does not", found, !alike)
}

/// Bad policies: what cannot be read must not replace what is in force, what fails while it is evaluated must deny.
pub async fn engine_down(stage: &Stage<'_>) -> Result<Verdict, Failure> {
    let before = stage.admin(Call::get(POLICIES)).await;
    let Some(digest) = before.json().get("digest").cloned() else {
        let nobody =
            stage.cast.dialer.ask(&stage.http, Some(&stage.cast.stranger.shown), Call::get(&stage.model_path())).await;
        let evidence = vec![Evidence::attempt("a call that no policy permits", nobody.to_string(), nobody.succeeded())];
        let why = format!("the administrator cannot read the policies: {before}");
        return Ok(Verdict::of(evidence, "", "there is no policy to ask, and it was answered").unless_broken(Some(why)));
    };
    let mut evidence = Vec::new();
    for (what, text) in [
        ("a policy that cannot be read", "permit (principal, action, resource"),
        ("a policy against the schema", "permit (principal, action, resource) when { principal.shoe_size > 40 };"),
        ("a misspelt protection", "@queery_budget(\"1/day\") permit (principal, action, resource);"),
        ("no policy at all", ""),
    ] {
        let reply = stage.admin(Call::post(POLICIES, set_with(&Sources::default(), text))).await;
        let after = stage.admin(Call::get(POLICIES)).await.json().get("digest").cloned();
        let changed = after.as_ref() != Some(&digest);
        let found =
            format!("{reply}; {}", if changed { "another set is in force" } else { "the old set stays in force" });
        evidence.push(Evidence::attempt(what, found, changed));
    }
    evidence.extend(fails_at_evaluation(stage).await?);
    let restored = restore(stage, &digest).await;
    if let Err(why) = restored {
        evidence.push(Evidence::attempt("the operator's own policies are put back", why, true));
    }
    Ok(Verdict::of(evidence, "in doubt it denies, and what was in force stays", "failed open"))
}

/// Puts a set in force that permits a caller of the drill, and forbids it by a policy that fails. Nobody else is concerned.
async fn fails_at_evaluation(stage: &Stage<'_>) -> Result<Vec<Evidence>, Failure> {
    let probe = stage.folder.issue("drill/probe", Duration::from_secs(300))?;
    let id = format!("Workload::\"spiffe://{}/drill/probe\"", stage.folder.domain);
    let sources = Sources::read(&stage.folder.policies).or_input()?;
    let permit = format!(
        "@id(\"drill-permit\") permit (principal == {id}, action == Action::\"get\", resource == Endpoint::\"openapi\");\n"
    );
    // The size of a request, or one more, is beyond what a number can be: the evaluation overflows.
    let fails = format!(
        "@id(\"drill-fails\") forbid (principal == {id}, action, resource) when {{ context.score + 9223372036854775807 > 0 && context.score + 9223372036854775807 < 0 }};\n"
    );
    let ask = async |text: &str| {
        let set = stage.admin(Call::post(POLICIES, set_with(&sources, text))).await;
        let reply = stage.cast.dialer.ask(&stage.http, Some(&probe.shown), Call::get("/v2/openapi.json")).await;
        (set, reply)
    };
    let (set, permitted) = ask(&permit).await;
    if !set.succeeded() || !permitted.succeeded() {
        let found = format!("{set}; the probe then has {permitted}");
        return Ok(vec![Evidence::new("a set with a probe, which could not be put in force", found)]);
    }
    let (set, failing) = ask(&format!("{permit}{fails}")).await;
    Ok(vec![
        Evidence::new("a probe that a policy permits", permitted.to_string()),
        Evidence::attempt(
            "the same, with a policy that fails while it is evaluated",
            format!("{set}; {failing}"),
            failing.succeeded(),
        ),
    ])
}

/// Has the server read its own folder again.
async fn restore(stage: &Stage<'_>, digest: &serde_json::Value) -> Result<(), String> {
    let reply = stage.admin(Call::post(POLICIES, "")).await;
    let now = stage.admin(Call::get(POLICIES)).await;
    if now.json().get("digest") == Some(digest) {
        return Ok(());
    }
    Err(format!(
        "{reply}; in force is {}, before it was {digest}, by a call: send the set of that call again",
        now.json()
    ))
}

/// The operator's set and one more policy, as the API takes it.
fn set_with(sources: &Sources, text: &str) -> String {
    let files = |files: &[edgeward_trust::policy::SourceFile]| {
        files.iter().map(|file| (file.name.clone(), json!(file.text))).collect::<serde_json::Map<_, _>>()
    };
    let mut policies = files(&sources.policies);
    if !text.is_empty() {
        policies.insert("zz-drill.cedar".to_owned(), json!(text));
    }
    json!({ "policies": policies, "entities": files(&sources.entities) }).to_string()
}

/// A caller whose certificate is revoked while it has a connection and a stream open.
pub async fn revoked(stage: &Stage<'_>) -> Result<Verdict, Failure> {
    let victim = stage.folder.issue(&stage.cast.insider.name, Duration::from_secs(300))?;
    let mut open = match stage.cast.dialer.connect(&stage.http, Some(&victim.shown)).await {
        Ok(open) => open,
        Err(error) => return Ok(Verdict::not_applicable(format!("no connection: {error}"))),
    };
    let before = open.ask(Call::get(LIVE)).await;
    if !before.succeeded() {
        return Ok(Verdict::not_applicable(format!("the caller is refused before it is revoked: {before}")));
    }
    let stream = match &stage.grpc {
        Some(grpc) => open_stream(stage, grpc, &victim).await,
        None => Err("no stream was tried: `--grpc` names no listener".to_owned()),
    };
    stage.folder.with_authority(|authority| {
        authority.revoke(&victim.serial, "a drill", std::time::SystemTime::now()).map(drop).map_err(failure)
    })?;
    let at = Instant::now();
    let mut evidence = vec![Evidence::new("before", before.to_string())];
    evidence.push(match stream {
        Ok(stream) => until_cut(stream, at).await,
        Err(why) => Evidence::new("an open stream", why),
    });
    let mut last = open.ask(Call::get(LIVE)).await;
    while last.succeeded() && at.elapsed() < CUT_TIME_MAX {
        tokio::time::sleep(Duration::from_millis(10)).await;
        last = open.ask(Call::get(LIVE)).await;
    }
    let found = format!("{last} after {} ms", at.elapsed().as_millis());
    evidence.push(Evidence::attempt("the open connection, asked until it is refused", found, last.succeeded()));
    let anew = stage.cast.dialer.ask(&stage.http, Some(&victim.shown), Call::get(LIVE)).await;
    evidence.push(Evidence::attempt("a new connection", anew.to_string(), anew.succeeded()));
    Ok(Verdict::of(evidence, "cut off while it was connected", "went on after it was revoked"))
}

/// A live stream: requests go in by the sender.
struct Live {
    answers: tonic::Streaming<edgeward_serve::proto::ModelStreamInferResponse>,
    requests: tokio::sync::mpsc::Sender<ModelInferRequest>,
}

async fn open_stream(stage: &Stage<'_>, grpc: &Listener, victim: &Person) -> Result<Live, String> {
    let Some(request) = stage.grpc_request() else {
        return Err("no stream was tried: the model takes no numbers".to_owned());
    };
    if !stage.cast.insider_may {
        return Err("no stream was tried: nobody but the administrator may use the model".to_owned());
    }
    let (requests, receiver) = tokio::sync::mpsc::channel(4);
    requests.try_send(request).map_err(|_| "no stream".to_owned())?;
    let mut client = client(stage, grpc, &victim.shown);
    let stream = client.model_stream_infer(tokio_stream::wrappers::ReceiverStream::new(receiver)).await;
    let mut answers = stream.map_err(|status| format!("no stream: {:?}", status.code()))?.into_inner();
    match tokio::time::timeout(CUT_TIME_MAX, answers.next()).await {
        Ok(Some(Ok(_))) => Ok(Live { answers, requests }),
        Ok(Some(Err(status))) => Err(format!("no stream: {:?}", status.code())),
        _ => Err("no stream: no answer".to_owned()),
    }
}

/// Waits until the server ends a stream on which nothing more is asked.
async fn until_cut(mut live: Live, at: Instant) -> Evidence {
    let ended = tokio::time::timeout(CUT_TIME_MAX, live.answers.next()).await;
    let (found, through) = match ended {
        Ok(Some(Err(status))) => (format!("cut with {:?} after {} ms", status.code(), at.elapsed().as_millis()), false),
        Ok(Some(Ok(_))) => ("answered once more".to_owned(), true),
        Ok(None) => (format!("ended after {} ms", at.elapsed().as_millis()), false),
        Err(_) => (format!("still open after {} s", CUT_TIME_MAX.as_secs()), true),
    };
    drop(live.requests);
    Evidence::attempt("an open stream", found, through)
}

async fn infer_over_grpc(stage: &Stage<'_>, grpc: &Listener, shown: &Shown) -> Result<(), tonic::Status> {
    let request = stage.grpc_request().unwrap_or_else(|| ModelInferRequest {
        model_name: stage.model_name().to_owned(),
        ..ModelInferRequest::default()
    });
    client(stage, grpc, shown).model_infer(request).await.map(drop)
}

/// A client that connects as the drill does, with its first call.
fn client(stage: &Stage<'_>, grpc: &Listener, shown: &Shown) -> GrpcInferenceServiceClient<Channel> {
    let (dialer, to, shown) = (stage.cast.dialer.clone(), grpc.clone(), shown.clone());
    let connector = tower::service_fn(move |_: http::Uri| {
        let (dialer, to, shown) = (dialer.clone(), to.clone(), shown.clone());
        async move { dialer.stream(&to, Some(&shown), b"h2").await.map(TokioIo::new) }
    });
    // The connector speaks TLS; the address is for the head of requests alone.
    let endpoint =
        Endpoint::from_static("http://drill.invalid").timeout(crate::wire::ANSWER_TIME_MAX.saturating_mul(20));
    GrpcInferenceServiceClient::new(endpoint.connect_with_connector_lazy(connector))
}

impl Stage<'_> {
    /// A call by the administrator.
    pub async fn admin(&self, call: Call<'_>) -> Reply {
        self.cast.dialer.ask(&self.http, Some(&self.cast.admin.shown), call).await
    }

    /// Reads the model.
    pub fn model_path(&self) -> String {
        format!("/v2/models/{}", self.model_name())
    }

    /// One row of zeros, as gRPC has it.
    fn grpc_request(&self) -> Option<ModelInferRequest> {
        let model = self.model.as_ref()?;
        let inputs = model.inputs.iter().map(|input| InferInputTensor {
            name: input.name.clone(),
            datatype: input.datatype.clone(),
            shape: input.shape(1).iter().map(|&dim| dim as i64).collect(),
            ..InferInputTensor::default()
        });
        let raw = model.inputs.iter().map(|input| input.zeros(1).map(Bytes::from)).collect::<Option<Vec<_>>>()?;
        Some(ModelInferRequest {
            model_name: model.name.clone(),
            inputs: inputs.collect(),
            raw_input_contents: raw,
            ..ModelInferRequest::default()
        })
    }
}
