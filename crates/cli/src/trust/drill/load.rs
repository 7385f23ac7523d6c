//! Too much of everything: requests that cost far more than others, and far more requests than others send.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::JoinSet};

use super::{
    Stage,
    maths::percentile,
    model::{HEADER_LENGTH, Interface},
    outcome::{Evidence, Figure, Line, Verdict},
};
use crate::{
    failure::Failure,
    wire::{Call, Connection, Reply, Shown},
};

/// The largest body that is sent.
const SPONGE_BYTES_MAX: usize = 32 << 20;
/// A request that takes so long is expensive enough: no larger one is sent.
const SPONGE_TIME_MAX: Duration = Duration::from_secs(2);
/// So much longer than an ordinary request one may take, and so long at all.
const RATIO_MAX: f64 = 50.0;
const TIME_MAX_S: f64 = 1.0;
/// So much may others' requests grow (their 90th percentile: one hiccup of the machine is nobody's attack), and by so much at all.
const OTHERS_RATIO_MAX: f64 = 10.0;
const OTHERS_MORE_MAX_S: f64 = 0.25;
const ORDINARY: usize = 40;
/// Connections of a flood that send requests, and such that send nothing.
const SENDERS: usize = 8;
const IDLERS: usize = 200;

/// A request that is ready to be sent.
#[derive(Clone)]
struct Load {
    what: String,
    path: String,
    header_length: String,
    body: Bytes,
}

impl Load {
    fn of(model: &Interface, what: String, dims: &dyn Fn(usize) -> usize, value: [u8; 4]) -> Option<Self> {
        let (header, mut bytes) = model.request(dims, SPONGE_BYTES_MAX)?;
        if model.inputs.iter().all(|input| input.datatype == "FP32") {
            bytes.chunks_exact_mut(4).for_each(|element| element.copy_from_slice(&value));
        }
        let header_length = header.len().to_string();
        let body = Bytes::from([header.into_bytes(), bytes].concat());
        Some(Self { what, path: format!("/v2/models/{}/infer", model.name), header_length, body })
    }

    fn call(&self) -> Call<'_> {
        Call::post(&self.path, self.body.clone()).with(HEADER_LENGTH, self.header_length.clone())
    }
}

/// A caller that measures.
struct Caller<'a> {
    stage: &'a Stage<'a>,
    shown: &'a Shown,
    connection: Option<Connection>,
}

impl<'a> Caller<'a> {
    fn new(stage: &'a Stage<'a>, shown: &'a Shown) -> Self {
        Self { stage, shown, connection: None }
    }

    async fn send(&mut self, load: &Load) -> (Reply, f64) {
        let started = Instant::now();
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => match self.stage.cast.dialer.connect(&self.stage.http, Some(self.shown)).await {
                Ok(connection) => connection,
                Err(error) => return (Reply::Closed(error.to_string()), started.elapsed().as_secs_f64()),
            },
        };
        let reply = connection.ask(load.call()).await;
        if reply.status() != 0 {
            self.connection = Some(connection);
        }
        (reply, started.elapsed().as_secs_f64())
    }

    /// Times of requests that were answered, while `goes_on` or at least so many.
    async fn times(&mut self, load: &Load, least: usize, mut goes_on: impl FnMut() -> bool) -> (Vec<f64>, usize) {
        let (mut times, mut failed) = (Vec::new(), 0);
        while times.len() + failed < least || (goes_on() && times.len() + failed < 10_000) {
            let (reply, time) = self.send(load).await;
            match reply.succeeded() {
                true => times.push(time),
                false => failed += 1,
            }
        }
        (times, failed)
    }
}

fn ms(seconds: f64) -> String {
    format!("{:.1} ms", seconds * 1000.0)
}

fn slow(times: &[f64]) -> f64 {
    percentile(times, 0.9).unwrap_or_default()
}

/// Sponge examples (Shumailov et al. 2021): the request that costs most is sought, by size and by values.
pub async fn sponge(stage: &Stage<'_>) -> Result<Verdict, Failure> {
    let model = match stage.may_use() {
        Ok(model) => model,
        Err(why) => return Ok(Verdict::not_applicable(why)),
    };
    let Some(ordinary) = Load::of(model, "ordinary".to_owned(), &|_| 1, [0; 4]) else {
        return Ok(Verdict::not_applicable(format!("`{}` takes texts; sponges are made for numbers", model.name)));
    };
    let (mut insider, mut other) =
        (Caller::new(stage, &stage.cast.insider.shown), Caller::new(stage, &stage.cast.admin.shown));
    let (alone, failed) = other.times(&ordinary, ORDINARY, || false).await;
    if alone.is_empty() {
        return Ok(Verdict::not_applicable(format!("{failed} ordinary requests of the administrator were refused")));
    }
    let usual = percentile(&alone, 0.5).unwrap_or_default();
    let mut found = Worst::new(usual);
    for shape in shapes(model) {
        found.grow(&mut insider, model, shape).await;
    }
    found.values(&mut insider, model).await;
    let mut verdict = found.verdict(usual);
    if let Some((worst, _)) = found.worst {
        let evidence = beside_others(stage, &mut other, (&worst, &ordinary), &alone).await;
        let through = evidence.through;
        verdict.evidence.push(evidence);
        if through && verdict.outcome == super::Ended::Held {
            verdict = Verdict {
                outcome: super::Ended::GotThrough,
                reason: "others wait while sponges run".to_owned(),
                ..verdict
            };
        }
    }
    Ok(verdict)
}

/// Which of the open dimensions grow together: each alone, and all.
fn shapes(model: &Interface) -> Vec<Option<usize>> {
    let rank = model.inputs.iter().map(|input| input.dims.len()).max().unwrap_or(0);
    let open = |at: usize| model.inputs.iter().any(|input| input.dims.get(at).is_some_and(|&dim| dim < 1));
    let open: Vec<usize> = (0..rank).filter(|&at| open(at)).collect();
    let all = (open.len() > 1).then_some(None);
    open.iter().map(|&at| Some(at)).chain(all).collect()
}

/// The search for the request that costs most.
struct Worst {
    usual: f64,
    worst: Option<(Load, f64)>,
    points: Vec<(f64, f64)>,
    refused: Vec<String>,
    tried: usize,
}

impl Worst {
    fn new(usual: f64) -> Self {
        Self { usual, worst: None, points: Vec::new(), refused: Vec::new(), tried: 0 }
    }

    async fn try_out(&mut self, insider: &mut Caller<'_>, load: Load) -> bool {
        let (reply, time) = insider.send(&load).await;
        self.tried += 1;
        if !reply.succeeded() {
            self.refused.push(format!("{}: {reply}", load.what));
            // A request that is never answered costs as well.
            if reply.status() == 0 && time > TIME_MAX_S {
                self.worst = Some((load, time));
            }
            return false;
        }
        self.points.push((load.body.len() as f64 / 1024.0, time * 1000.0));
        if self.worst.as_ref().is_none_or(|(_, most)| time > *most) {
            self.worst = Some((load, time));
        }
        time < SPONGE_TIME_MAX.as_secs_f64()
    }

    /// Four times as large each time, until it is refused or takes long enough.
    async fn grow(&mut self, insider: &mut Caller<'_>, model: &Interface, along: Option<usize>) {
        let mut size = 4;
        loop {
            let what =
                along.map_or_else(|| format!("all open dimensions {size}"), |at| format!("dimension {at} of {size}"));
            let dims = |at: usize| if along.is_none_or(|along| along == at) { size } else { 1 };
            let Some(load) = Load::of(model, what, &dims, 0.5f32.to_le_bytes()) else { return };
            if !self.try_out(insider, load).await {
                return;
            }
            size *= 4;
        }
    }

    /// Values on which arithmetic or loops may be slow.
    async fn values(&mut self, insider: &mut Caller<'_>, model: &Interface) {
        for (name, value) in
            [("ones", 1.0f32), ("denormal numbers", 1e-40), ("the largest numbers", f32::MAX), ("no numbers", f32::NAN)]
        {
            if let Some(load) = Load::of(model, name.to_owned(), &|_| 1, value.to_le_bytes()) {
                self.try_out(insider, load).await;
            }
        }
    }

    fn verdict(&self, usual: f64) -> Verdict {
        let mut evidence = vec![Evidence::new("an ordinary request, median", ms(self.usual))];
        let (mut held, mut through) = ("no request was accepted that is larger than usual".to_owned(), String::new());
        if let Some((load, time)) = &self.worst {
            let ratio = time / usual.max(1e-6);
            let expensive = ratio > RATIO_MAX && *time > TIME_MAX_S;
            let found =
                format!("{}, {ratio:.0} times as long as usual ({}, {} bytes)", ms(*time), load.what, load.body.len());
            evidence.push(Evidence::attempt(format!("the slowest of {} requests", self.tried), found, expensive));
            held = format!("the slowest request took {}, {ratio:.0} times as long as usual", ms(*time));
            through = format!("took {}, {ratio:.0} times as long as usual", ms(*time));
        }
        evidence.extend(self.refused.iter().map(|refused| Evidence::new("refused", refused.clone())));
        let mut points = self.points.clone();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let figure = Figure {
            title: "Time by size".to_owned(),
            x: "KiB".to_owned(),
            y: "ms".to_owned(),
            lines: vec![Line { name: "accepted requests".to_owned(), points }],
            bound: None,
        };
        let verdict = Verdict::of(evidence, held, through);
        Verdict {
            figure: Some(figure).filter(|figure| figure.lines.iter().any(|line| line.points.len() > 1)),
            ..verdict
        }
    }
}

/// What others notice while the insider sends its worst.
async fn beside_others(
    stage: &Stage<'_>,
    other: &mut Caller<'_>,
    (worst, ordinary): (&Load, &Load),
    alone: &[f64],
) -> Evidence {
    let mut attack = JoinSet::new();
    for _ in 0..2 {
        let (dialer, to, shown, load) =
            (stage.cast.dialer.clone(), stage.http.clone(), stage.cast.insider.shown.clone(), worst.clone());
        attack.spawn(async move {
            dialer.ask(&to, Some(&shown), load.call()).await;
        });
    }
    let (during, failed) =
        other.times(ordinary, ORDINARY / 4, || attack.try_join_next().is_some() || !attack.is_empty()).await;
    attack.abort_all();
    judged("others' slow requests beside it", alone, &during, failed)
}

/// Whether others noticed.
fn judged(what: &str, alone: &[f64], during: &[f64], failed: usize) -> Evidence {
    let (before, now) = (slow(alone), slow(during));
    let noticed = now > before * OTHERS_RATIO_MAX && now > before + OTHERS_MORE_MAX_S;
    let found = format!("{} (90 %, alone {}), {failed} of {} refused", ms(now), ms(before), during.len() + failed);
    Evidence::attempt(what, found, noticed || (during.is_empty() && failed > 0))
}

/// Connections that send nothing, connections that send half a request, and one caller's requests as fast as they go.
pub async fn flood(stage: &Stage<'_>) -> Result<Verdict, Failure> {
    let model = match stage.may_use() {
        Ok(model) => model,
        Err(why) => return Ok(Verdict::not_applicable(why)),
    };
    let Some(ordinary) = Load::of(model, "ordinary".to_owned(), &|_| 1, [0; 4]) else {
        return Ok(Verdict::not_applicable(format!("`{}` takes texts; floods are made of numbers", model.name)));
    };
    let mut other = Caller::new(stage, &stage.cast.admin.shown);
    let (alone, failed) = other.times(&ordinary, ORDINARY, || false).await;
    if alone.is_empty() {
        return Ok(Verdict::not_applicable(format!("{failed} ordinary requests of the administrator were refused")));
    }
    let idle = idlers(stage).await;
    let mut senders = JoinSet::new();
    for _ in 0..SENDERS {
        let (dialer, to, shown, load) =
            (stage.cast.dialer.clone(), stage.http.clone(), stage.cast.insider.shown.clone(), ordinary.clone());
        let count = stage.flood.div_ceil(SENDERS);
        senders.spawn(async move {
            let mut replies = Vec::with_capacity(count);
            let mut connection = None;
            for _ in 0..count {
                if connection.is_none() {
                    connection = dialer.connect(&to, Some(&shown)).await.ok();
                }
                let reply = match &mut connection {
                    Some(connection) => connection.ask(load.call()).await,
                    None => Reply::Closed("no connection".to_owned()),
                };
                if reply.status() == 0 {
                    connection = None;
                }
                replies.push(reply.status());
            }
            replies
        });
    }
    let started = Instant::now();
    let mut statuses: Vec<u16> = Vec::new();
    let (during, failed) = other
        .times(&ordinary, ORDINARY / 4, || {
            while let Some(done) = senders.try_join_next() {
                statuses.extend(done.unwrap_or_default());
            }
            !senders.is_empty()
        })
        .await;
    while let Some(done) = senders.join_next().await {
        statuses.extend(done.unwrap_or_default());
    }
    let seconds = started.elapsed().as_secs_f64();
    let held_open = idle.len();
    drop(idle);
    let (after, _) = other.times(&ordinary, 1, || false).await;
    Ok(flooded(&statuses, (&alone, &during, failed), (held_open, seconds), !after.is_empty()))
}

fn flooded(
    statuses: &[u16],
    (alone, during, failed): (&[f64], &[f64], usize),
    (idle, seconds): (usize, f64),
    alive: bool,
) -> Verdict {
    let count = |of: fn(u16) -> bool| statuses.iter().filter(|status| of(**status)).count();
    let (answered, shed) = (count(|status| status < 300 && status > 0), count(|status| matches!(status, 429 | 503)));
    let broken = count(|status| status == 0);
    let rate = statuses.len() as f64 / seconds.max(1e-3);
    let found = format!("{answered} answered, {shed} shed, {broken} without an answer, {rate:.0} in a second");
    let evidence = vec![
        Evidence::attempt(format!("{} requests of one caller", statuses.len()), found, shed == 0 && answered > 0),
        Evidence::new("connections that send nothing, or half a request", format!("{idle} were open beside it")),
        judged("others' slow requests meanwhile", alone, during, failed),
        Evidence::attempt("an ordinary request afterwards", if alive { "answered" } else { "not answered" }, !alive),
    ];
    Verdict::of(
        evidence,
        format!("{shed} of {} requests were shed, others were answered", statuses.len()),
        format!(
            "{answered} of {} requests were answered: nothing bounds what one caller sends, or others noticed",
            statuses.len()
        ),
    )
}

/// Connections that take a place each and ask nothing.
async fn idlers(stage: &Stage<'_>) -> Vec<TcpStream> {
    let mut open = Vec::with_capacity(IDLERS);
    for at in 0..IDLERS {
        let Ok(mut stream) = TcpStream::connect((stage.http.host.as_str(), stage.http.port)).await else { break };
        if at % 2 == 0 {
            // The begin of a handshake, or of a request; its rest never comes.
            let begin: &[u8] = if stage.http.tls { &[22, 3, 1, 2, 0, 1] } else { b"GET /v2 HTTP/1.1\r\nhost: a\r\n" };
            if stream.write_all(begin).await.is_err() {
                continue;
            }
        }
        open.push(stream);
    }
    open
}

impl Stage<'_> {
    /// The model, where the insider may use it; why not.
    pub fn may_use(&self) -> Result<&Interface, String> {
        let model = self.model.as_ref().ok_or("the server has no model that is ready")?;
        if self.cast.insider_may {
            return Ok(model);
        }
        Err(format!(
            "policies permit `{}` nothing with `{}`; permit a workload to use it, or name one with --as",
            self.cast.insider.name, model.name
        ))
    }
}
