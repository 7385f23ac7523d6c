//! The short page that a person sees at `/`.

use std::fmt::Write as _;

use crate::core::Server;

const STYLE: &str = "
:root{color-scheme:light dark;--ink:#1b2330;--soft:#5b6675;--line:#d9dfe7;--back:#fff;--code:#f2f5f8;--good:#0a6b3d;--bad:#a3261b}
@media(prefers-color-scheme:dark){:root{--ink:#e7ebf0;--soft:#9aa6b5;--line:#313a46;--back:#12171e;--code:#1c232c;--good:#5fd39a;--bad:#ff9388}}
body{font:16px/1.55 system-ui,sans-serif;color:var(--ink);background:var(--back);max-width:52rem;margin:3rem auto;padding:0 1.25rem}
h1{font-size:1.6rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}p{margin:.4rem 0}.soft{color:var(--soft)}
.good,.bad{font-weight:600;color:var(--good)}.bad{color:var(--bad)}a{color:inherit}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.5rem .75rem .5rem 0;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:500;font-size:.9rem}
code,pre{font:.9rem/1.5 ui-monospace,monospace;background:var(--code);border-radius:4px}code{padding:.1rem .3rem}
pre{padding:.8rem 1rem;overflow-x:auto}";

/// Models with their state, and what to try.
pub(crate) fn home(server: &Server) -> String {
    let index = server.index(false);
    let mut rows = String::new();
    for entry in &index {
        let (class, state) = match entry.state {
            "READY" => ("good", "ready"),
            "" => ("soft", "not loaded"),
            _ => ("bad", "unavailable"),
        };
        let _ = write!(
            rows,
            "<tr><td>{}<td>{}<td><span class=\"{class}\">{state}</span><td>{}",
            escaped(&entry.name),
            entry.version,
            escaped(&entry.reason)
        );
    }
    let table = if index.is_empty() {
        "<p>No model is in the repositories.</p>".to_owned()
    } else {
        let head = "<tr><th scope=\"col\">Name<th scope=\"col\">Version<th scope=\"col\">State<th scope=\"col\">Reason";
        format!("<div class=\"wide\"><table><thead>{head}<tbody>{rows}</table></div>")
    };
    let name = index.iter().find(|entry| entry.state == "READY").map_or("NAME", |entry| entry.name.as_str());
    let (class, ready) = if server.ready() { ("good", "Ready") } else { ("bad", "Not ready") };
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>Edgeward</title>\
         <style>{STYLE}</style><main><h1>Edgeward</h1>\
         <p class=\"soft\">{version} · Open Inference Protocol v2 · <span class=\"{class}\">{ready}</span></p>\
         <h2>Models</h2>{table}\
         <h2>Try</h2><pre tabindex=\"0\">curl -s $ADDRESS/v2/models/{name}\ncurl -s $ADDRESS/v2/models/{name}/infer -d @request.json</pre>\
         <p><a href=\"/v2/openapi.json\">Every route, as OpenAPI</a> · <a href=\"/v2/models/stats\">Statistics</a></p></main></html>",
        version = env!("CARGO_PKG_VERSION"),
        name = escaped(name),
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
