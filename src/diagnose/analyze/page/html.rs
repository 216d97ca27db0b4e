//! A report as one HTML page that needs nothing else: charts as SVG, pictures inside it.

use std::fmt::Write as _;

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::RgbImage;

use super::super::report::Report;
use super::super::verdict::Status;
use super::charts;
use super::pictures::Pictures;
use super::player::Player;
use crate::media::strip;
use crate::util::html::escaped;

/// Light or dark, as whoever reads it has set; charts are drawn for light paper and turned over for
/// dark. Lines are as wide whatever the size that a chart is shown in.
const STYLE: &str = "\
:root{color-scheme:light dark;--paper:#fff;--ink:#1b1b1b;--faint:#595959;--line:#ddd;--ok:#1a7f37;\
--note:#8a5a00;--alarm:#c62828}\
@media(prefers-color-scheme:dark){:root{--paper:#181818;--ink:#e8e8e8;--faint:#a6a6a6;--line:#3a3a3a;\
--ok:#6fc37f;--note:#e3b341;--alarm:#f2796b}.charts svg{filter:invert(1) hue-rotate(180deg)}}\
*{box-sizing:border-box}body{background:var(--paper);color:var(--ink);\
font:15px/1.45 system-ui,sans-serif;max-width:1280px;margin:2em auto;padding:0 1em;\
overflow-wrap:anywhere}h1{font-size:1.4em}h2{font-size:1.1em;margin-top:2em}\
table{border-collapse:collapse}td,th{padding:.25em .8em .25em 0;text-align:left;vertical-align:top;\
border-bottom:1px solid var(--line)}.verdicts td:nth-child(-n+2){white-space:nowrap}\
td ul{margin:.2em 0;padding-left:1.2em;color:var(--faint)}\
.scroll{overflow-x:auto}.scroll td,.scroll th{text-align:right;font-size:13px;\
font-variant-numeric:tabular-nums;white-space:nowrap}.ok{color:var(--ok)}.note{color:var(--note)}\
.alarm{color:var(--alarm);font-weight:600}.unknown,.faint{color:var(--faint)}\
img,video{max-width:100%;height:auto}img{image-rendering:pixelated}.clip{width:min(100%,640px)}\
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,390px),1fr));gap:.4em}\
.charts svg{width:100%;height:auto}.charts svg *{vector-effect:non-scaling-stroke}\
.spectra{display:flex;gap:1em;flex-wrap:wrap}figure{margin:0}figcaption{color:var(--faint)}\
@media(max-width:640px){.verdicts td{display:inline-block;border:0;padding:.1em .8em .1em 0}\
.verdicts td:last-child{display:block;padding-bottom:.7em;border-bottom:1px solid var(--line)}}";

/// What the page may load: nothing but what is in it, and a clip beside it.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data: 'self' file:; \
                      media-src data: 'self' file:";

/// The page of what is called `name`, with the clip itself where it can be played.
///
/// # Errors
/// When a chart or a picture cannot be drawn.
pub fn page(
    name: &str,
    report: &Report,
    pictures: &Pictures,
    player: Option<&Player>,
) -> Result<String> {
    let mut html = String::from("<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">");
    let name = escaped(name);
    let _ = write!(
        html,
        "<meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{name}: wan-i2v analyze</title>\
         <style>{STYLE}</style>\n<h1>{name}</h1>\n<p>{}</p>\n",
        escaped(&report.headline())
    );
    verdicts(&mut html, report);
    if let Some(player) = player {
        let _ = write!(html, "<h2>Clip</h2>\n{}\n", player.html());
    }
    let _ = write!(
        html,
        "<h2>{}</h2>\n{}",
        pictures.title(report),
        img(&pictures.strip, "film strip")?
    );
    html += "\n<h2>Figures</h2>\n<div class=\"charts\">";
    for chart in charts::of(report, pictures) {
        html += &chart.svg()?;
    }
    html += "</div>\n<p class=\"faint\">Red lines: where something was found; in spectra, a period of \
             8 pixels.</p>\n";
    if !pictures.spectra.is_empty() {
        html += "<h2>Spectra</h2>\n<div class=\"spectra\">";
        for (frame, spectrum) in &pictures.spectra {
            let picture = img(&spectrum.picture(), "spectrum")?;
            let _ = write!(
                html,
                "<figure>{picture}<figcaption>frame {frame}</figcaption></figure>"
            );
        }
        html += "</div>\n<p class=\"faint\">Power in decibels; no frequency in the middle, half a cycle \
                 per pixel at the edges.</p>\n";
    }
    html += "<h2>All figures</h2>\n<p class=\"faint\">Levels are 0 to 255; docs/analyze.md explains each column.</p>\n<div class=\"scroll\"><table>";
    for (row, cell) in report
        .rows()
        .iter()
        .zip(std::iter::once("th").chain(std::iter::repeat("td")))
    {
        html += "<tr>";
        for text in row {
            let _ = write!(html, "<{cell}>{text}</{cell}>");
        }
        html += "</tr>\n";
    }
    html += "</table></div></html>\n";
    Ok(html)
}

fn verdicts(html: &mut String, report: &Report) {
    *html += "<table class=\"verdicts\">";
    for verdict in &report.verdicts {
        let class = match verdict.status {
            Status::Ok => "ok",
            Status::Note => "note",
            Status::Alarm => "alarm",
            Status::Unknown => "unknown",
        };
        let _ = write!(
            html,
            "<tr><td>{}</td><td class=\"{class}\">{}</td><td>{}",
            verdict.symptom.name(),
            escaped(&verdict.found()),
            escaped(&verdict.text)
        );
        if !verdict.causes.is_empty() {
            *html += "<ul>";
            for cause in &verdict.causes {
                let _ = write!(html, "<li>{}</li>", escaped(cause));
            }
            *html += "</ul>";
        }
        *html += "</td></tr>\n";
    }
    *html += "</table>\n";
}

fn img(picture: &RgbImage, what: &str) -> Result<String> {
    let data = STANDARD.encode(strip::png(picture)?);
    Ok(format!(
        "<img alt=\"{what}\" src=\"data:image/png;base64,{data}\">"
    ))
}
