//! The report as one page: no script, no network, drawn as SVG.

use std::fmt::Write as _;

use crate::report::{LayerFigures, Report, Turns, Variant};

/// Layers that a chart shows at most: the heaviest, or the noisiest.
const LAYERS_MAX: usize = 40;

const STYLE: &str = "
:root{color-scheme:light dark;--ink:#1b2530;--soft:#5b6b7b;--line:#d8e0e8;--paper:#fff;--card:#f6f8fb;--one:#2563eb;--two:#94a3b8;--good:#0f9d58;--bad:#c2410c}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9aa9b8;--line:#2b3846;--paper:#0f161d;--card:#17212b;--one:#60a5fa;--two:#64748b;--good:#34d399;--bad:#fb923c}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1080px;margin:0 auto;padding:32px 20px 64px}h1{font-size:26px;margin:0 0 4px}h2{font-size:18px;margin:40px 0 8px}
p{margin:4px 0;color:var(--soft)}.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:12px;margin:20px 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:14px 16px}.card b{display:block;font-size:24px;font-variant-numeric:tabular-nums}
.card span{color:var(--soft);font-size:13px}.verdict{border-left:4px solid var(--good);padding:8px 14px;background:var(--card);border-radius:0 8px 8px 0;margin:16px 0}
.verdict.none{border-color:var(--bad)}.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px}
th,td{padding:6px 10px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}th{color:var(--soft);font-weight:600}
th:first-child,td:first-child,td.text,th.text{text-align:left}td.text{white-space:normal;min-width:220px;color:var(--soft)}tr.chosen td{background:var(--card);font-weight:600}
svg{width:100%;height:auto;background:var(--card);border:1px solid var(--line);border-radius:12px}svg text{fill:var(--soft);font:12px system-ui,sans-serif}
.axis{stroke:var(--line)}.dot{fill:var(--two);fill-opacity:.55;stroke:var(--two)}.dot.front{fill:var(--one);stroke:var(--one)}.dot.best{fill:var(--good);stroke:var(--good)}
.bar{fill:var(--two);fill-opacity:.5}.bar.after{fill:var(--one);fill-opacity:1}.name{fill:var(--ink)!important}
";

/// The page.
pub fn page(report: &Report) -> String {
    let chosen = report.chosen.as_ref().and_then(|name| report.variants.iter().find(|variant| variant.name == *name));
    let mut html = String::new();
    let title = escape(&report.model);
    let _ = write!(
        html,
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>{title}: compressed</title><style>{STYLE}</style><main><h1>{title}</h1>"
    );
    let (machine, data) = (&report.machine, &report.data);
    let ranges = if data.calibrated > 0 { format!("; ranges observed on {}", data.calibrated) } else { String::new() };
    let turns = match report.timing {
        Turns::Taken => "",
        Turns::OneByOne => " Timed one after the other: what the machine did beside it is in the figures.",
    };
    let _ = write!(
        html,
        "<p>{}, {} cores. Judged on {} {}{ranges}. Measured in {:.0} s.{turns}</p>",
        escape(&machine.processor),
        machine.cores,
        data.examples,
        data.kind.text(),
        report.seconds
    );
    verdict(&mut html, report, chosen);
    if let Some(chosen) = chosen {
        cards(&mut html, report, chosen);
    }
    html.push_str("<h2>Accuracy, latency, size</h2><p>To the right is slower, lower is less accurate, larger is a larger file. Blue: nothing else is better in everything. Green: chosen.</p>");
    scatter(&mut html, report);
    table(&mut html, report);
    let shown = chosen.or_else(|| report.variants.iter().find(|variant| !variant.layers.is_empty()));
    if let Some(shown) = shown.filter(|variant| !variant.layers.is_empty()) {
        layers(&mut html, shown);
    }
    html.push_str("</main></html>\n");
    html
}

fn verdict(html: &mut String, report: &Report, chosen: Option<&Variant>) {
    let _ = match chosen {
        Some(variant) => {
            let engine = variant.engine.as_deref().unwrap_or("no engine");
            write!(
                html,
                "<div class=verdict><b>{}</b> on {}: {}</div>",
                escape(&variant.name),
                escape(engine),
                escape(&variant.recipe)
            )
        }
        None => write!(
            html,
            "<div class=\"verdict none\"><b>Nothing was emitted.</b> None of {} variants is better than the original within the limits; the table says why.</div>",
            report.variants.len()
        ),
    };
}

fn cards(html: &mut String, report: &Report, chosen: &Variant) {
    let (Some(before), Some(after)) = (report.original.figures, chosen.figures) else { return };
    let smaller = |before: u64, after: u64| format!("{:.1} %", 100.0 * (1.0 - after as f64 / before.max(1) as f64));
    let metric = match (report.original.metric, chosen.metric) {
        (Some(before), Some(after)) => format!("{before:.4} → {after:.4}"),
        _ => "–".to_owned(),
    };
    let speed = before.p50_ms / after.p50_ms;
    let rows = [
        (format!("{speed:.2}×"), format!("faster: {:.2} → {:.2} ms", before.p50_ms, after.p50_ms)),
        (smaller(before.bytes, after.bytes), format!("smaller: {} → {}", size(before.bytes), size(after.bytes))),
        (smaller(before.bytes, after.transfer_bytes), format!("smaller in transfer: {}", size(after.transfer_bytes))),
        (metric, report.metric.clone()),
    ];
    html.push_str("<div class=cards>");
    for (figure, text) in rows {
        let _ = write!(html, "<div class=card><b>{}</b><span>{}</span></div>", escape(&figure), escape(&text));
    }
    html.push_str("</div>");
}

/// Places in a chart: from figures to pixels.
struct Scale {
    from: f64,
    to: f64,
    start: f64,
    end: f64,
}

impl Scale {
    fn of(values: impl Iterator<Item = f64> + Clone, start: f64, end: f64) -> Self {
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(f64::NEG_INFINITY, f64::max);
        let room = ((high - low) * 0.08).max(high.abs() * 1e-4).max(1e-9);
        Self { from: low - room, to: high + room, start, end }
    }

    fn at(&self, value: f64) -> f64 {
        self.start + (value - self.from) / (self.to - self.from) * (self.end - self.start)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        (0..=4).map(|step| self.from + (self.to - self.from) * f64::from(step) / 4.0)
    }
}

fn scatter(html: &mut String, report: &Report) {
    let all: Vec<&Variant> = std::iter::once(&report.original).chain(&report.variants).collect();
    let points: Vec<(&Variant, f64, f64, u64)> = all
        .into_iter()
        .filter_map(|variant| Some((variant, variant.figures?.p50_ms, variant.metric?, variant.figures?.bytes)))
        .filter(|(_, ms, metric, _)| ms.is_finite() && metric.is_finite())
        .collect();
    let largest = points.iter().map(|(.., bytes)| *bytes).max().unwrap_or(1).max(1) as f64;
    if points.is_empty() {
        return;
    }
    let x = Scale::of(points.iter().map(|(_, ms, ..)| *ms), 80.0, 1040.0);
    let y = Scale::of(points.iter().map(|(_, _, metric, _)| *metric), 360.0, 20.0);
    html.push_str("<svg viewBox=\"0 0 1060 420\" role=img aria-label=\"Accuracy against latency\">");
    for tick in x.ticks() {
        let at = x.at(tick);
        let _ = write!(
            html,
            "<line class=axis x1={at:.1} y1=20 x2={at:.1} y2=365 /><text x={at:.1} y=384 text-anchor=middle>{tick:.2}</text>"
        );
    }
    for tick in y.ticks() {
        let at = y.at(tick);
        let _ = write!(
            html,
            "<line class=axis x1=75 y1={at:.1} x2=1045 y2={at:.1} /><text x=68 y={:.1} text-anchor=end>{tick:.4}</text>",
            at + 4.0
        );
    }
    let _ = write!(
        html,
        "<text x=560 y=408 text-anchor=middle>milliseconds for one request</text><text x=80 y=14>{}</text>",
        escape(&report.metric)
    );
    for (variant, ms, metric, bytes) in points {
        let kind = match () {
            () if report.chosen.as_ref() == Some(&variant.name) => "dot best",
            () if variant.pareto => "dot front",
            () => "dot",
        };
        let radius = 5.0 + 17.0 * (bytes as f64 / largest).sqrt();
        let (cx, cy, name) = (x.at(ms), y.at(metric), escape(&variant.name));
        let _ = write!(
            html,
            "<circle class=\"{kind}\" cx={cx:.1} cy={cy:.1} r={radius:.1}><title>{name}: {ms:.2} ms, {metric:.4}, {}</title></circle>\
             <text class=name x={:.1} y={:.1}>{name}</text>",
            size(bytes),
            cx + radius + 4.0,
            cy + 4.0
        );
    }
    html.push_str("</svg>");
}

fn table(html: &mut String, report: &Report) {
    html.push_str(
        "<h2>Variants</h2><div class=wide><table><tr><th>variant<th class=text>how<th>engine<th>p50<th>items/s<th>cores<th>file<th>transfer\
         <th>metric<th>95 %<th>top-1<th>cosine<th class=text>verdict</tr>",
    );
    for variant in std::iter::once(&report.original).chain(&report.variants) {
        let class = if report.chosen.as_ref() == Some(&variant.name) { " class=chosen" } else { "" };
        let number = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.4}"));
        let interval =
            variant.interval.map_or_else(|| "–".to_owned(), |range| format!("{:.4}–{:.4}", range.low, range.high));
        let figures = variant.figures;
        let of = |text: fn(crate::choose::Figures) -> String| figures.map_or_else(|| "–".to_owned(), text);
        let verdict = match (&variant.refused, class.is_empty()) {
            (Some(reason), _) => reason.as_str(),
            (None, false) => "chosen",
            (None, true) if variant.name == report.original.name => "the original",
            (None, true) => "good, another is better",
        };
        let _ = write!(
            html,
            "<tr{class}><td>{}<td class=text>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{interval}<td>{}<td>{}<td class=text>{}</tr>",
            escape(&variant.name),
            escape(&variant.recipe),
            escape(variant.engine.as_deref().unwrap_or("–")),
            of(|f| format!("{:.2} ms", f.p50_ms)),
            of(|f| format!("{:.1}", f.per_second)),
            of(|f| format!("{:.2} ms", f.core_ms)),
            of(|f| size(f.bytes)),
            of(|f| size(f.transfer_bytes)),
            number(variant.metric),
            number(variant.agreement.and_then(|agreement| agreement.top1)),
            number(variant.agreement.map(|agreement| agreement.cosine)),
            escape(verdict)
        );
    }
    html.push_str("</table></div>");
}

fn layers(html: &mut String, variant: &Variant) {
    let mut heavy: Vec<&LayerFigures> = variant.layers.iter().collect();
    heavy.sort_by_key(|layer| std::cmp::Reverse(layer.bytes_before));
    heavy.truncate(LAYERS_MAX);
    let _ = write!(html, "<h2>Size by layer: {}</h2><p>Grey: original. Blue: this variant.</p>", escape(&variant.name));
    let most = heavy.first().map_or(1, |layer| layer.bytes_before).max(1) as f64;
    let bar = |bytes: u64| bytes as f64 / most * 620.0;
    rows(html, &heavy, |layer| {
        let text = format!("{} → {}", size(layer.bytes_before), size(layer.bytes));
        ([Some(("bar", bar(layer.bytes_before))), Some(("bar after", bar(layer.bytes)))], text)
    });
    let mut noisy: Vec<&LayerFigures> = variant.layers.iter().filter(|layer| layer.snr_db.is_some()).collect();
    if noisy.is_empty() {
        return;
    }
    noisy.sort_by(|a, b| a.snr_db.unwrap_or(0.0).total_cmp(&b.snr_db.unwrap_or(0.0)));
    noisy.truncate(LAYERS_MAX);
    html.push_str("<h2>Signal to noise by layer</h2><p>Decibels, errors of the layers before included; the noisiest first. Longer is better.</p>");
    rows(html, &noisy, |layer| {
        let decibels = layer.snr_db.unwrap_or(0.0);
        ([Some(("bar after", (decibels / 60.0).clamp(0.0, 1.0) * 620.0)), None], format!("{decibels:.1} dB"))
    });
}

type Bars = [Option<(&'static str, f64)>; 2];

fn rows(html: &mut String, layers: &[&LayerFigures], draw: impl Fn(&LayerFigures) -> (Bars, String)) {
    let height = 10 + 22 * layers.len();
    let _ = write!(html, "<svg viewBox=\"0 0 1060 {height}\" role=img>");
    for (row, layer) in layers.iter().enumerate() {
        let top = 8 + 22 * row;
        let (bars, text) = draw(layer);
        let name: String = layer.name.chars().rev().take(34).collect::<Vec<_>>().into_iter().rev().collect();
        let _ = write!(
            html,
            "<text class=name x=250 y={} text-anchor=end>{}<title>{} ({})</title></text>",
            top + 12,
            escape(&name),
            escape(&layer.name),
            escape(&layer.op)
        );
        for (at, (class, width)) in bars.into_iter().flatten().enumerate() {
            let (y, height) = if at == 0 { (top, 16) } else { (top + 4, 8) };
            let _ = write!(html, "<rect class=\"{class}\" x=260 y={y} width={width:.1} height={height} rx=2 />");
        }
        let _ = write!(html, "<text x=890 y={}>{}</text>", top + 12, escape(&text));
    }
    html.push_str("</svg>");
}

fn size(bytes: u64) -> String {
    match bytes as f64 {
        b if b >= 1e6 => format!("{:.2} MB", b / 1e6),
        b if b >= 1e3 => format!("{:.1} kB", b / 1e3),
        b => format!("{b:.0} B"),
    }
}

/// Names come from files.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
