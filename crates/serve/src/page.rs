//! The short page that a person sees at `/`.

use std::fmt::Write as _;

use crate::core::Server;

/// Models with their state, and a line to try.
pub(crate) fn home(server: &Server) -> String {
    let mut rows = String::new();
    for entry in server.index(false) {
        let _ = write!(
            rows,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escaped(&entry.name),
            entry.version,
            if entry.state.is_empty() { "not loaded" } else { entry.state },
            escaped(&entry.reason)
        );
    }
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Edgeward</title>\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:3rem auto;padding:0 1rem;color:#1c2430}}\
         table{{border-collapse:collapse;width:100%}}td,th{{text-align:left;padding:.4rem .6rem;border-bottom:1px solid #d8dee6}}\
         code{{background:#f2f4f7;padding:.1rem .3rem}}</style>\
         <h1>Edgeward {}</h1><p>Serves the Open Inference Protocol v2. {}</p>\
         <table><tr><th>model<th>version<th>state<th>reason</tr>{rows}</table>\
         <p>Try <code>GET /v2/models/NAME</code>, then <code>POST /v2/models/NAME/infer</code>.</p></html>",
        env!("CARGO_PKG_VERSION"),
        if server.ready() { "It is ready." } else { "It is <b>not</b> ready." },
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
