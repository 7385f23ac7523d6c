//! Changes under load: a model that is replaced again and again, and a server that is told to end.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use crate::bench::{
    Effort, Row,
    client::{Connection, Outcome, Until, binary_request, closed_loop, post},
    peers::Edgeward,
};

const MODEL: &str = "perceptron_4mb";
const WIDTH: usize = 1020;
const CONNECTIONS: usize = 8;

/// Both.
pub fn run(edgeward: &Edgeward, effort: Effort) -> anyhow::Result<Vec<Row>> {
    let reload = reload(edgeward, 10_000 / effort.divisor, 50 / effort.divisor.min(10))?;
    Ok(reload.into_iter().chain(terminate(edgeward, effort.rounds * 3)?).collect())
}

fn request() -> Vec<u8> {
    binary_request(MODEL, "INPUT0", &[1, WIDTH], &vec![0.5; WIDTH])
}

/// Reloads are spread over the whole of the load: the load goes on until both counts are reached.
fn reload(edgeward: &Edgeward, requests: usize, reloads: usize) -> anyhow::Result<Vec<Row>> {
    let folder = edgeward.repository(MODEL, None)?;
    let server = edgeward.serve(&folder, &[])?;
    let mut outcome = Outcome::default();
    let mut done = 0;
    while done < reloads {
        let request = request();
        let (address, share) = (server.http, (requests / reloads).max(1) as u64);
        let (part, reloaded) = std::thread::scope(|scope| {
            let load = scope.spawn(|| closed_loop(address, &request, CONNECTIONS, Until::Requests(share)));
            let reloaded = replace(&folder, address);
            (load.join(), reloaded)
        });
        reloaded.with_context(|| format!("reload {}", done + 1))?;
        let part = part.ok().context("the load ended early")?;
        outcome.answered += part.answered;
        outcome.failed += part.failed;
        outcome.errors.extend(part.errors);
        done += 1;
    }
    outcome.errors.truncate(3);
    let what = format!("{} requests during {reloads} reloads: failed", outcome.answered + outcome.failed);
    Ok(vec![Row::at_most("reload", what, outcome.failed as f64, "", 0.0).against(outcome.errors.join("; "))])
}

/// Puts a new file in the old one's place and asks the server to take it.
fn replace(folder: &Path, address: SocketAddr) -> anyhow::Result<()> {
    let version = folder.join(MODEL).join("1");
    fs::copy(version.join("model.onnx"), version.join(".next"))?;
    fs::rename(version.join(".next"), version.join("model.onnx"))?;
    let mut connection = Connection::open(address)?;
    let answer = connection.ask(&post(&format!("/v2/repository/models/{MODEL}/load"), "", b"{}"))?;
    match answer.status {
        200 => Ok(()),
        status => bail!("status {status}: {}", String::from_utf8_lossy(answer.body)),
    }
}

/// What became of the requests of one server that was told to end.
#[derive(Default)]
struct Ended {
    answered: u64,
    /// Sent before the signal and not answered.
    lost: Vec<String>,
}

fn terminate(edgeward: &Edgeward, times: usize) -> anyhow::Result<Vec<Row>> {
    let (mut answered, mut lost, mut unclean) = (0, Vec::new(), 0);
    for _ in 0..times {
        let mut server = edgeward.serve(&edgeward.model(MODEL), &[])?;
        let (signalled, ended) = (Mutex::new(None), Mutex::new(Ended::default()));
        let (stop, address) = (AtomicBool::new(false), server.http);
        std::thread::scope(|scope| {
            for _ in 0..CONNECTIONS {
                scope.spawn(|| {
                    let mine = ask_until_closed(address, &signalled, &stop);
                    let mut all = ended.lock().unwrap_or_else(PoisonError::into_inner);
                    all.answered += mine.answered;
                    all.lost.extend(mine.lost);
                });
            }
            std::thread::sleep(Duration::from_millis(300));
            *signalled.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            let status = server.terminate().and_then(|()| server.wait());
            stop.store(true, Ordering::Relaxed);
            unclean += usize::from(!status.is_ok_and(|status| status.success()));
        });
        let ended = ended.into_inner().unwrap_or_else(PoisonError::into_inner);
        answered += ended.answered;
        lost.extend(ended.lost);
    }
    let count = lost.len() as f64;
    lost.truncate(3);
    let what = format!("{times} × SIGTERM under load, {answered} requests: sent before it and not answered");
    Ok(vec![
        Row::at_most("reload", what, count, "", 0.0).against(lost.join("; ")),
        Row::at_most("reload", format!("{times} × SIGTERM under load: exits other than 0"), unclean as f64, "", 0.0),
    ])
}

/// A request counts as accepted when the whole of it was sent before the signal was.
fn ask_until_closed(address: SocketAddr, signalled: &Mutex<Option<Instant>>, stop: &AtomicBool) -> Ended {
    let (mut ended, request) = (Ended::default(), request());
    let Ok(mut connection) = Connection::open(address) else { return ended };
    while !stop.load(Ordering::Relaxed) {
        if connection.send(&request).is_err() {
            return ended;
        }
        let sent = Instant::now();
        match connection.receive() {
            Ok(answer) if answer.status == 200 => ended.answered += 1,
            // A refusal is an answer too: the caller knows.
            Ok(_) => return ended,
            Err(error) => {
                let signal = *signalled.lock().unwrap_or_else(PoisonError::into_inner);
                if signal.is_none_or(|at| sent < at) {
                    ended.lost.push(format!("{error:#}"));
                }
                return ended;
            }
        }
    }
    ended
}
