//! Connections that do nothing: what each costs in memory, and whether others are served meanwhile.

use std::time::Duration;

use anyhow::bail;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::bench::{
    Effort, Row,
    client::{Connection, Until, closed_loop, json_request},
    peers::Edgeward,
};

const CONNECTIONS: usize = 10_000;
/// Files that both ends need besides.
const SPARE: u64 = 500;

/// Opens them, loads the server, and asks each idle one again.
pub fn run(edgeward: &Edgeward, effort: Effort) -> anyhow::Result<Vec<Row>> {
    let count = CONNECTIONS / effort.divisor;
    raise_limit(count as u64 + SPARE)?;
    let server = edgeward.serve(&edgeward.model("identity16"), &["--engine", "rten"])?;
    let request = json_request("identity16", "INPUT0", &[1, 16], &[0.5; 16]);
    let load = Until::Elapsed(Duration::from_secs(effort.seconds));
    // What the load itself needs is there before the idle ones come.
    closed_loop(server.http, &request, 10, load).whole()?;
    let before = server.resident_bytes()?;
    let mut idle = Vec::with_capacity(count);
    for _ in 0..count {
        let mut connection = Connection::open(server.http)?;
        connection.ask(&request)?;
        idle.push(connection);
    }
    let each = (server.resident_bytes()? - before) / count as f64;
    let outcome = closed_loop(server.http, &request, 10, load);
    let mut failed = outcome.failed;
    for connection in &mut idle {
        failed += u64::from(!connection.ask(&request).is_ok_and(|answer| answer.status == 200));
    }
    let what = format!("{count} idle connections, {} requests on 10 others and 1 on each: failed", outcome.answered);
    Ok(vec![
        Row::at_most("idle", what, failed as f64, "", 0.0).against(outcome.errors.join("; ")),
        Row::information("idle", "memory of an idle connection, after a request", each / 1024.0, "KiB"),
        Row::information("idle", "requests on the 10 others", outcome.per_second, "/s"),
    ])
}

/// The server inherits the limit.
fn raise_limit(wanted: u64) -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|maximum| maximum < wanted) {
        bail!("{wanted} open files are needed and {} allowed (`ulimit -Hn`)", limit.maximum.unwrap_or_default());
    }
    let current = limit.current.map(|current| current.max(wanted));
    Ok(setrlimit(Resource::Nofile, Rlimit { current, maximum: limit.maximum })?)
}
