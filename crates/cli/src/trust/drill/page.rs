//! The report as one page: nothing is loaded from elsewhere, and it reads on a telephone.

use std::fmt::Write as _;

use super::outcome::{Figure, Finding, Outcome};

/// What the page says of the run.
pub struct Run<'a> {
    /// The server.
    pub server: String,
    /// The trust domain.
    pub domain: &'a str,
    /// The model that was attacked.
    pub model: &'a str,
    /// Who turned against it.
    pub insider: &'a str,
    /// When, as RFC 3339.
    pub at: String,
}

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c2024;--soft:#5b6470;--line:#d5dae0;--paper:#fff;--held:#1a7f4b;--through:#b3261e;--none:#6b7280;--a:#2563a8;--b:#b4690e}\
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ed;--soft:#9aa4b0;--line:#3a414a;--paper:#14171a;--held:#4cc38a;--through:#ff8a80;--none:#9aa4b0;--a:#7ab3ef;--b:#e0a458}}\
*{box-sizing:border-box}body{margin:0 auto;padding:1rem;max-width:52rem;background:var(--paper);color:var(--ink);font:16px/1.45 system-ui,sans-serif;overflow-wrap:anywhere}\
h1{font-size:1.4rem;margin:.2rem 0}h2{font-size:1.05rem;margin:0}p{margin:.3rem 0}.soft{color:var(--soft);font-size:.9rem}\
.sum{display:flex;gap:1rem;flex-wrap:wrap;margin:1rem 0;font-weight:600}\
section{border-top:1px solid var(--line);padding:.8rem 0}.held{color:var(--held)}.got_through{color:var(--through)}.not_applicable{color:var(--none)}\
summary{cursor:pointer}dl{margin:.4rem 0;font-size:.9rem}dt{color:var(--soft);margin-top:.3rem}dd{margin:0}dd.through{color:var(--through);font-weight:600}\
svg{width:100%;height:auto;max-width:34rem;display:block;margin:.6rem 0}svg text{fill:var(--soft);font-size:11px}\
.axis{stroke:var(--line)}.bound{stroke:var(--through);stroke-dasharray:4 4}.l0{stroke:var(--a)}.l1{stroke:var(--b)}polyline{fill:none;stroke-width:2}.k0{fill:var(--a)!important}.k1{fill:var(--b)!important}";

/// The whole page.
pub fn render(findings: &[Finding], run: &Run<'_>) -> String {
    let count = |outcome| findings.iter().filter(|finding| finding.outcome == outcome).count();
    let mut page = String::from("<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">");
    let _ = write!(
        page,
        "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>Breach drills: {}</title><style>{STYLE}</style></head><body>",
        escape(&run.server)
    );
    let _ = write!(
        page,
        "<h1>Breach drills</h1><p class=\"soft\">{} · {} · trust domain {} · model {} · insider {}</p><p class=\"sum\">",
        escape(&run.server),
        escape(&run.at),
        escape(run.domain),
        escape(run.model),
        escape(run.insider)
    );
    for outcome in [Outcome::Held, Outcome::GotThrough, Outcome::NotApplicable] {
        let _ = write!(page, "<span class=\"{}\">{} {}</span>", class(outcome), count(outcome), outcome.name());
    }
    page.push_str("</p>");
    // What got through is read first.
    for outcome in [Outcome::GotThrough, Outcome::Held, Outcome::NotApplicable] {
        findings.iter().filter(|finding| finding.outcome == outcome).for_each(|finding| section(&mut page, finding));
    }
    page.push_str("</body></html>\n");
    page
}

fn class(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Held => "held",
        Outcome::GotThrough => "got_through",
        Outcome::NotApplicable => "not_applicable",
    }
}

fn section(page: &mut String, finding: &Finding) {
    let outcome = finding.outcome;
    let atlas =
        if finding.atlas.is_empty() { String::new() } else { format!(" · ATLAS {}", finding.atlas.join(", ")) };
    let _ = write!(
        page,
        "<section id=\"{id}\"><h2>{title} <span class=\"{class}\">{outcome}</span></h2><p>{reason}</p><p class=\"soft\">{tried}. Held by: {defence}.{atlas}</p>",
        id = escape(finding.id),
        title = escape(finding.title),
        class = class(outcome),
        outcome = outcome.name(),
        reason = escape(&finding.reason),
        tried = escape(finding.tried),
        defence = escape(finding.defence),
    );
    if let Some(figure) = &finding.figure {
        chart(page, figure);
    }
    if !finding.evidence.is_empty() {
        let open = if outcome == Outcome::GotThrough { " open" } else { "" };
        let _ = write!(page, "<details{open}><summary>Evidence ({})</summary><dl>", finding.evidence.len());
        for line in &finding.evidence {
            let through = if line.through { " class=\"through\"" } else { "" };
            let _ = write!(page, "<dt>{}</dt><dd{through}>{}</dd>", escape(&line.what), escape(&line.found));
        }
        page.push_str("</dl></details>");
    }
    page.push_str("</section>");
}

/// Space of the lines within the figure's 480 × 240.
const LEFT: f64 = 52.0;
const RIGHT: f64 = 466.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 196.0;

fn chart(page: &mut String, figure: &Figure) {
    let points = || figure.lines.iter().flat_map(|line| line.points.iter().copied());
    let finite = |value: f64| value.is_finite().then_some(value);
    let x_max = points().filter_map(|point| finite(point.0)).fold(0.0, f64::max);
    let y_max = points().filter_map(|point| finite(point.1)).chain(figure.bound).fold(0.0, f64::max);
    let y_min = points().filter_map(|point| finite(point.1)).fold(0.0, f64::min);
    let x = |value: f64| LEFT + (RIGHT - LEFT) * value / if x_max > 0.0 { x_max } else { 1.0 };
    let y = |value: f64| BOTTOM - (BOTTOM - TOP) * (value - y_min) / if y_max > y_min { y_max - y_min } else { 1.0 };
    let title = escape(&figure.title);
    let _ = write!(
        page,
        "<svg viewBox=\"0 0 480 240\" role=\"img\" aria-label=\"{title}\"><text x=\"{LEFT}\" y=\"14\">{title}</text>"
    );
    for (at, value) in [(y(y_min), y_min), (y(y_max), y_max)] {
        let _ = write!(
            page,
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text x=\"46\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            at + 4.0,
            number(value)
        );
    }
    if let Some(bound) = figure.bound.filter(|bound| *bound > y_min) {
        let at = y(bound);
        let _ = write!(
            page,
            "<line class=\"bound\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text x=\"{RIGHT}\" y=\"{:.1}\" text-anchor=\"end\">bound {}</text>",
            at - 4.0,
            number(bound)
        );
    }
    for (at, line) in figure.lines.iter().enumerate() {
        let drawn = line.points.iter().filter(|point| point.0.is_finite() && point.1.is_finite());
        let drawn: Vec<String> = drawn.map(|&(px, py)| format!("{:.1},{:.1}", x(px), y(py))).collect();
        let style = at % 2;
        let _ = write!(page, "<polyline class=\"l{style}\" points=\"{}\"/>", drawn.join(" "));
        let _ = write!(
            page,
            "<text class=\"k{style}\" x=\"{}\" y=\"232\">— {}</text>",
            LEFT + 210.0 * at as f64,
            escape(&line.name)
        );
    }
    let _ = write!(
        page,
        "<text x=\"{LEFT}\" y=\"212\">0</text><text x=\"{RIGHT}\" y=\"212\" text-anchor=\"end\">{} {}</text></svg>",
        number(x_max),
        escape(&figure.x)
    );
}

fn number(value: f64) -> String {
    if value.abs() >= 100.0 || value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

/// Text as HTML has it; what a server answered must not become part of the page.
fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::drill::outcome::{Evidence, Line};

    fn finding(outcome: Outcome, reason: &str, points: Vec<(f64, f64)>) -> Finding {
        Finding {
            id: "x",
            title: "X",
            atlas: &["AML.T0012"],
            tried: "something",
            outcome,
            reason: reason.to_owned(),
            defence: "a wall",
            evidence: vec![Evidence::attempt("asked", "<script>alert(1)</script>", true)],
            figure: Some(Figure {
                title: "t".to_owned(),
                x: "n".to_owned(),
                y: "m".to_owned(),
                lines: vec![Line { name: "a & b".to_owned(), points }],
                bound: Some(0.7),
            }),
            seconds: 1.0,
        }
    }

    fn run() -> Run<'static> {
        Run {
            server: "https://a".to_owned(),
            domain: "d",
            model: "m",
            insider: "i",
            at: "2026-11-25T00:00:00Z".to_owned(),
        }
    }

    #[test]
    fn what_a_server_said_is_text_and_what_got_through_comes_first() {
        let findings =
            [finding(Outcome::Held, "fine", vec![]), finding(Outcome::GotThrough, "bad", vec![(0.0, 0.0), (9.0, 1.0)])];
        let page = render(&findings, &run());
        assert!(!page.contains("<script") && page.contains("&lt;script&gt;") && page.contains("a &amp; b"));
        assert!(page.find("bad").unwrap() < page.find("fine").unwrap());
        assert!(page.contains("width=device-width") && !page.contains("http://") && !page.contains("src="));
    }

    #[test]
    fn a_figure_without_finite_points_is_drawn_all_the_same() {
        let points = vec![(f64::NAN, 1.0), (1.0, f64::INFINITY), (0.0, 0.0)];
        let page = render(&[finding(Outcome::Held, "", points)], &run());
        assert!(!page.contains("NaN") && !page.contains("inf,") && !page.contains(",inf"), "{page}");
    }
}
