//! The stages of a run as a graph, inline SVG: boxes in layers, arrows to what was made with a result.
//!
//! How a stage stands is told by its words and by its border: solid when it is done, thick when it was
//! interrupted, dashed otherwise. A wide graph scrolls in its own container; colours suit light and
//! dark.

mod layers;

use super::recipe::Resolved;
use super::{Done, State, state};
use crate::picture::escape;
use crate::size;
use anyhow::Result;
use layers::{Box, Layout, Place};
use std::fmt::Write;
use std::time::Duration;

/// What the graph adds to the style of the page. Green and vermilion are of Okabe and Ito.
pub(super) const STYLE: &str = "\
.lineage{display:block;margin:0 auto;max-width:none}.lineage text{text-anchor:middle}\
.lineage .name{font-weight:600}.lineage .time{fill:var(--soft);font-size:11px}\
.lineage .small{font-size:10px}.lineage a text{text-decoration:underline}\
.lineage .edge{fill:none;stroke:var(--soft)}.lineage .tip{fill:var(--soft)}\
.lineage rect{fill:var(--paper)}.done{stroke:#009e73;stroke-width:1.5}\
.begun{stroke:#d55e00;stroke-width:3}.todo{stroke:var(--soft);stroke-dasharray:5 4}";

/// Longer names are cut; the whole one shows under the pointer.
const MOST_CHARS: usize = 28;

/// The graph with its legend.
pub(super) fn html(stages: &[Resolved]) -> Result<String> {
    let needs: Vec<Vec<usize>> = stages
        .iter()
        .map(|stage| {
            let at = |name: &String| stages.iter().position(|other| other.name == *name);
            stage.needs.iter().filter_map(at).collect()
        })
        .collect();
    let standings = stages.iter().map(standing).collect::<Result<Vec<_>>>()?;
    let boxes: Vec<Box> = stages.iter().zip(&standings).map(|(s, it)| size_of(s, &it.1)).collect();
    let layout = Layout::new(&needs, &boxes);
    let (width, height) = (layout.width, layout.height);
    let mut out = format!(
        "<div class=\"scroll\"><svg class=\"lineage\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         style=\"width:{width:.0}px;height:{height:.0}px\" role=\"group\" aria-label=\"Stages, and \
         which was made from which\">\n<defs><marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"7\" \
         refY=\"4\" markerWidth=\"8\" markerHeight=\"8\" orient=\"auto\"><path class=\"tip\" \
         d=\"M0 0L8 4L0 8z\"/></marker></defs>\n"
    );
    layout.edges.iter().for_each(|&edge| draw_edge(&mut out, &layout, edge));
    for (at, (stage, standing)) in stages.iter().zip(&standings).enumerate() {
        draw_box(&mut out, stage, standing, layout.places[at]);
    }
    out.push_str("</svg></div>\n");
    Ok(out + LEGEND)
}

const LEGEND: &str = "<p class=\"soft\">A solid border: done, in the time given. Thick: interrupted. Dashed: \
    to do. Small boxes make data. Underlined names lead to the stage's own page; the \
    <a href=\"#stages\">table of stages</a> tells what each does.</p>\n";

/// The class of a stage's border, and its time or what keeps it from having one.
pub(super) fn standing(stage: &Resolved) -> Result<(&'static str, String)> {
    let done: Option<Done> = crate::search::read_json(&stage.done())?;
    Ok(match (state(stage)?, done) {
        (State::Done, Some(done)) => {
            ("done", size::duration(Duration::from_secs_f64(done.seconds)))
        }
        (State::Interrupted, _) => ("begun", "interrupted".to_owned()),
        (State::Changed, _) => ("todo", "to do anew".to_owned()),
        _ => ("todo", "to do".to_owned()),
    })
}

fn is_small(stage: &Resolved) -> bool {
    stage.command[0] == "data"
}

fn label(name: &str) -> String {
    if name.chars().count() <= MOST_CHARS {
        return name.to_owned();
    }
    name.chars().take(MOST_CHARS - 1).chain(['…']).collect()
}

/// Room for both lines in any sans serif: fonts differ, and no text is measured here.
fn size_of(stage: &Resolved, time: &str) -> Box {
    let (name, time) = (label(&stage.name).chars().count() as f64, time.chars().count() as f64);
    match is_small(stage) {
        true => Box { width: (6.6 * name.max(time) + 12.0).max(64.0), height: 32.0 },
        false => Box { width: (8.0 * name).max(7.0 * time).max(76.0) + 18.0, height: 42.0 },
    }
}

fn draw_box(out: &mut String, stage: &Resolved, (class, time): &(&str, String), place: Place) {
    let Place { x, y, width, height } = place;
    let (small, up, down) = if is_small(stage) { (" small", -3.0, 10.0) } else { ("", -3.0, 13.0) };
    let text = format!(
        "<title>hybra {}</title><rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{width:.1}\" \
         height=\"{height:.1}\" rx=\"5\"/><text class=\"name{small}\" x=\"{x:.1}\" y=\"{:.1}\">{}\
         </text>",
        escape(&stage.command.join(" ")),
        x - width / 2.0,
        y - height / 2.0,
        y + up,
        escape(&label(&stage.name))
    );
    let text = match stage.page() {
        Some(page) => format!("<a href=\"{}\">{text}</a>", escape(&page)),
        None => format!("<g>{text}</g>"),
    };
    let _ = writeln!(
        out,
        "{text}<text class=\"time{small}\" x=\"{x:.1}\" y=\"{:.1}\">{time}</text>",
        y + down
    );
}

/// From the lower border of a place to the upper one of another; through a bend to its lower one.
fn draw_edge(out: &mut String, layout: &Layout, (from, to): (usize, usize)) {
    let (above, below) = (layout.places[from], layout.places[to]);
    let (x0, y0) = (above.x, above.y + above.height / 2.0);
    let (x1, y1) = (below.x, below.y - below.height / 2.0);
    let middle = f64::midpoint(y0, y1);
    let path = format!("M{x0:.1} {y0:.1}C{x0:.1} {middle:.1} {x1:.1} {middle:.1} {x1:.1} {y1:.1}");
    let _ = match layout.is_bend(to) {
        true => writeln!(out, "<path class=\"edge\" d=\"{path}V{:.1}\"/>", y1 + below.height),
        false => writeln!(out, "<path class=\"edge\" marker-end=\"url(#tip)\" d=\"{path}\"/>"),
    };
}
