//! The accuracy that a model loses when it thinks 60 % fewer tokens.
//!
//! Let T be the mean thinking tokens of a task without a budget. Between the two measured budgets
//! whose thinking tokens enclose 0.4 T, accuracy is taken to be linear in thinking tokens; the loss is
//! the accuracy without a budget less that at 0.4 T. `off` is left out: the model then answers in
//! another mode, without a section of thoughts.

use super::budgets::{Evaluated, Measured};
use crate::picture::escape;
use std::fmt::Write;

/// Share of the thinking tokens that is kept.
const KEPT: f64 = 0.4;
/// Of less thinking there is nothing to save.
const LEAST_TOKENS: f64 = 1.0;

/// A row for each model and task that thinks, and the mean of each model.
pub(super) fn table(evaluated: &[(String, Evaluated)]) -> String {
    let mut rows = String::new();
    for (name, evaluated) in evaluated {
        let wholes = evaluated.unlimited().filter(|row| row.thinking_tokens >= LEAST_TOKENS);
        let mut losses = Vec::new();
        for whole in wholes {
            let measured: Vec<&Measured> =
                evaluated.of(&whole.task).filter(|row| row.budget() != "off").collect();
            let fewer = fewer(whole, &measured);
            losses.extend(fewer.as_ref().map(|fewer| fewer.loss));
            rows.push_str(&row(name, whole, fewer));
        }
        if losses.len() > 1 {
            let mean = losses.iter().sum::<f64>() / losses.len() as f64;
            let _ = writeln!(
                rows,
                "<tr><th>{}, mean of these tasks</th><td></td><td></td><td></td><td></td><td></td>\
                 <th>{}</th></tr>",
                escape(name),
                tenths(mean)
            );
        }
    }
    if rows.is_empty() {
        return rows;
    }
    format!(
        "<h3>Accuracy lost at 60 % fewer thinking tokens</h3>\n<p class=\"soft\">T is the mean of the \
         tokens that the model thinks for an example of a task without a budget. Accuracy at \
         0.4 T is interpolated, not measured: linearly in thinking tokens, between the two measured \
         budgets (without <code>off</code>, which is another mode of answering) that enclose 0.4 T. \
         The loss is the accuracy without a budget less this one, in percentage points; below zero \
         nothing is lost.</p>\n<div class=\"scroll\"><table><tr><th>model, task</th>\
         <th>% right, no budget</th><th>T</th><th>0.4 T</th><th>between budgets</th>\
         <th>% right at 0.4 T</th><th>points lost</th></tr>\n{rows}</table></div>\n"
    )
}

/// A task at fewer thinking tokens.
struct Fewer {
    /// Of the measured rows around it.
    budgets: [String; 2],
    percent: f64,
    /// Points of percent.
    loss: f64,
}

fn fewer(whole: &Measured, measured: &[&Measured]) -> Option<Fewer> {
    let points: Vec<(f64, f64)> =
        measured.iter().map(|row| (row.thinking_tokens, 100.0 * row.accuracy.share)).collect();
    let ([low, high], percent) = interpolate(&points, KEPT * whole.thinking_tokens)?;
    let budgets = [low, high].map(|at| measured[at].budget());
    Some(Fewer { budgets, percent, loss: 100.0 * whole.accuracy.share - percent })
}

/// To a tenth; what rounds to nothing has no sign.
fn tenths(loss: f64) -> String {
    format!("{:.1}", (10.0 * loss).round() / 10.0 + 0.0)
}

/// The nearest points on both sides of `x`, and y on the line between them; `None` beyond all points.
fn interpolate(points: &[(f64, f64)], x: f64) -> Option<([usize; 2], f64)> {
    let of = |at: usize| points[at];
    let below = (0..points.len()).filter(|&at| of(at).0 <= x);
    let above = (0..points.len()).filter(|&at| of(at).0 >= x);
    let low = below.max_by(|&a, &b| of(a).0.total_cmp(&of(b).0))?;
    let high = above.min_by(|&a, &b| of(a).0.total_cmp(&of(b).0))?;
    let ((x0, y0), (x1, y1)) = (of(low), of(high));
    let part = if x1 > x0 { (x - x0) / (x1 - x0) } else { 0.0 };
    Some(([low, high], y0 + part * (y1 - y0)))
}

fn row(name: &str, whole: &Measured, fewer: Option<Fewer>) -> String {
    let tokens = whole.thinking_tokens;
    let mut out = format!(
        "<tr><td>{}, {}</td><td>{:.1}</td><td>{tokens:.1}</td><td>{:.1}</td>",
        escape(name),
        escape(&whole.task),
        100.0 * whole.accuracy.share,
        KEPT * tokens
    );
    let _ = match fewer {
        Some(Fewer { budgets: [low, high], percent, loss }) => {
            let loss = tenths(loss);
            writeln!(out, "<td>{low} and {high}</td><td>{percent:.1}</td><td>{loss}</td></tr>")
        }
        None => writeln!(out, "<td>none as small</td><td>–</td><td>–</td></tr>"),
    };
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_points_y_is_linear_and_beyond_them_unknown() {
        let points = [(0.0, 10.0), (40.0, 90.0), (10.0, 30.0)];
        assert_eq!(interpolate(&points, 25.0), Some(([2, 1], 60.0)));
        assert_eq!(interpolate(&points, 5.0), Some(([0, 2], 20.0)));
        assert_eq!(interpolate(&points, 10.0), Some(([2, 2], 30.0)));
        assert_eq!(interpolate(&points, 41.0), None);
        assert_eq!(interpolate(&points[1..], 5.0), None);
    }

    fn evaluated(rows: &[(&str, f64, f64)]) -> Evaluated {
        let row = |&(budget, share, tokens): &(&str, f64, f64)| {
            serde_json::json!({"task": "t", "budget": budget, "thinking_tokens": tokens,
                "accuracy": {"correct": 0, "total": 0, "share": share},
                "answer_tokens": 1.0, "well_formed": 1.0})
        };
        let rows: Vec<_> = rows.iter().map(row).collect();
        serde_json::from_value(serde_json::json!({"data": "d", "results": rows})).unwrap()
    }

    #[test]
    fn the_loss_is_that_at_two_fifths_of_the_tokens() {
        let rows = [("off", 0.1, 0.0), ("0", 0.2, 0.0), ("20", 0.4, 20.0), ("inf", 0.8, 100.0)];
        let of = |rows: &[(&str, f64, f64)]| table(&[("m".to_owned(), evaluated(rows))]);
        // A quarter of the way from 20 to 100 tokens.
        let page = of(&rows);
        assert!(page.contains("<td>20 and inf</td><td>50.0</td><td>30.0</td>"), "{page}");
        // `off` is no point of the line.
        let page = of(&[rows[0], rows[3]]);
        assert!(page.contains("<td>none as small</td><td>–</td><td>–</td>"), "{page}");
        assert_eq!([-0.04, -0.16, 1.25].map(tenths), ["0.0", "-0.2", "1.3"]);
        // Who does not think loses nothing.
        assert_eq!(of(&[("inf", 0.8, 0.0)]), "");
    }
}
