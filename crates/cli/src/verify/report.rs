//! What `verify` found, for people and as JSON.
//!
//! In JSON a relative error that is no number (NaN or infinite) is `null`; it never passes.

use super::case::{Greedy, Mismatch};
use super::difference::{Difference, worse};
use hybra_model::layer::LayerKind;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// Everything found.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) model: String,
    pub(crate) reference: String,
    pub(crate) isa: String,
    pub(crate) threads: usize,
    pub(crate) kv_dtype: String,
    /// Tokens of a prompt in one pass; all where absent.
    pub(crate) chunk: Option<usize>,
    pub(crate) arithmetic: String,
    /// Of tensors; none is demanded where absent.
    pub(crate) tolerance: Option<f64>,
    pub(crate) greedy_must_agree: bool,
    /// Mean and worst KL(expected ‖ found) of the next-token distributions, in nats.
    pub(crate) max_kl: f64,
    pub(crate) mean_kl: Option<f64>,
    pub(crate) worst_kl: Option<f64>,
    pub(crate) pass: bool,
    pub(crate) worst_relative_error: Option<f64>,
    pub(crate) tensors: Vec<TensorLine>,
    /// Loss and gradients, with a tolerance of their own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) gradients: Vec<TensorLine>,
    pub(crate) greedy: Vec<GreedyLine>,
    pub(crate) dequantized: Vec<WeightLine>,
    pub(crate) first_layer_beyond: Option<FirstLayer>,
    pub(crate) not_compared: Vec<NotCompared>,
    pub(crate) seconds: f64,
}

/// Logits or the output of a layer.
#[derive(Serialize)]
pub(crate) struct TensorLine {
    pub(crate) name: String,
    pub(crate) layer: Option<usize>,
    pub(crate) shape: Vec<usize>,
    #[serde(flatten)]
    pub(crate) error: ErrorLine,
    pub(crate) pass: bool,
}

/// How far apart, and where most.
#[derive(Serialize)]
pub(crate) struct ErrorLine {
    pub(crate) relative_error: f64,
    pub(crate) max_abs_error: f64,
    pub(crate) at: Vec<usize>,
    pub(crate) expected: f32,
    pub(crate) found: f32,
}

impl ErrorLine {
    pub(crate) fn new(difference: &Difference, shape: &[usize]) -> Self {
        let worst = difference.worst().expect("a tensor has values");
        Self {
            relative_error: difference.relative(),
            max_abs_error: worst.error(),
            at: worst.coordinates(shape),
            expected: worst.expected,
            found: worst.found,
        }
    }
}

/// Greedy tokens of one sequence.
#[derive(Serialize)]
pub(crate) struct GreedyLine {
    pub(crate) name: String,
    pub(crate) sequence: usize,
    pub(crate) tokens: usize,
    pub(crate) agreeing: usize,
    pub(crate) first_difference: Option<MismatchLine>,
}

#[derive(Serialize)]
pub(crate) struct MismatchLine {
    position: usize,
    expected: u32,
    found: u32,
    expected_logit: f32,
    found_logit: f32,
}

impl GreedyLine {
    pub(crate) fn new(name: String, sequence: usize, greedy: Greedy) -> Self {
        let (tokens, agreeing) = (greedy.total, greedy.agreeing());
        let line = |m: Mismatch| MismatchLine {
            position: m.position,
            expected: m.expected,
            found: m.found,
            expected_logit: m.expected_logit,
            found_logit: m.found_logit,
        };
        Self { name, sequence, tokens, agreeing, first_difference: greedy.first.map(line) }
    }
}

/// A dequantized weight; passes where every bit agrees.
#[derive(Serialize)]
pub(crate) struct WeightLine {
    pub(crate) name: String,
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) differing_values: usize,
    #[serde(flatten)]
    pub(crate) error: ErrorLine,
}

/// The first layer whose output is beyond tolerance.
#[derive(Serialize)]
pub(crate) struct FirstLayer {
    pub(crate) name: String,
    pub(crate) layer: usize,
    pub(crate) kind: &'static str,
}

impl FirstLayer {
    /// The first of `lines`, which are in the order of the layers within a prompt.
    pub(crate) fn find(lines: &[TensorLine], kind: impl Fn(usize) -> LayerKind) -> Option<Self> {
        let beyond = lines.iter().filter(|line| !line.pass);
        let (line, layer) = beyond.filter_map(|line| Some((line, line.layer?))).next()?;
        Some(Self { name: line.name.clone(), layer, kind: kind(layer).word() })
    }
}

#[derive(Serialize)]
pub(crate) struct NotCompared {
    pub(crate) name: String,
    pub(crate) reason: &'static str,
}

impl Report {
    /// Fills in the verdict: every tensor within tolerance, distributions within the divergence,
    /// every bit of dequantized weights equal, and greedy tokens where they must agree.
    pub(crate) fn conclude(mut self) -> Self {
        let tensors = self.tensors.iter().chain(&self.gradients).all(|line| line.pass);
        let greedy = self.greedy.iter().all(|line| line.first_difference.is_none());
        let weights = self.dequantized.iter().all(|line| line.differing_values == 0);
        let near = self.mean_kl.is_none_or(|kl| kl <= self.max_kl);
        self.pass = tensors && (greedy || !self.greedy_must_agree) && weights && near;
        self.worst_relative_error =
            self.tensors.iter().map(|line| line.error.relative_error).reduce(worse);
        self
    }

    fn greedy_counts(&self) -> (usize, usize) {
        let agreeing = self.greedy.iter().map(|line| line.agreeing).sum();
        (agreeing, self.greedy.iter().map(|line| line.tokens).sum())
    }

    /// One line for all layers of a prompt that pass, one for each that does not.
    fn write_hidden(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layers: Vec<_> = self.tensors.iter().filter(|line| line.layer.is_some()).collect();
        let prefix =
            |line: &TensorLine| line.name[..line.name.find("hidden.").unwrap_or(0)].to_owned();
        for group in layers.chunk_by(|a, b| prefix(a) == prefix(b)) {
            let error = |line: &TensorLine| line.error.relative_error;
            let of = |line: &TensorLine| worse(error(line), 0.0);
            let worst = group
                .iter()
                .copied()
                .reduce(|a, b| if of(b).is_nan() || of(b) > of(a) { b } else { a });
            let Some(worst) = worst else { continue };
            if group.iter().all(|line| line.pass) && group.len() > 1 {
                let name = format!("{}hidden, {} layers", prefix(worst), group.len());
                let note = format!("worst: layer {}", worst.layer.unwrap_or_default());
                write_row(f, &name, &worst.shape, &worst.error, &note)?;
            } else {
                for line in group {
                    write_row(f, &line.name, &line.shape, &line.error, mark(line.pass))?;
                }
            }
        }
        Ok(())
    }

    fn write_greedy(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.greedy {
            let GreedyLine { name, sequence, tokens, agreeing, .. } = line;
            let name = format!("{name} [{sequence}]");
            match &line.first_difference {
                None => writeln!(f, "{name:<21} all {tokens} tokens agree")?,
                Some(m) => {
                    let mark = if self.greedy_must_agree { ": FAIL" } else { "" };
                    writeln!(f, "{name:<21} {agreeing} of {tokens} tokens agree{mark}")?;
                    writeln!(
                        f,
                        "{:<21} token {}: expected id {} (logit {}), found {} (logit {})",
                        "", m.position, m.expected, m.expected_logit, m.found, m.found_logit
                    )?;
                }
            }
        }
        Ok(())
    }

    /// The loss, one line for all gradients that pass, one for each that does not.
    fn write_gradients(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (loss, gradients): (Vec<_>, Vec<_>) =
            self.gradients.iter().partition(|line| line.name == "loss");
        let (good, bad): (Vec<_>, Vec<_>) = gradients.into_iter().partition(|line| line.pass);
        for line in loss.into_iter().chain(bad) {
            write_row(f, &line.name, &line.shape, &line.error, mark(line.pass))?;
        }
        let size = |line: &&TensorLine| line.error.relative_error;
        if let Some(worst) = good.iter().copied().max_by(|a, b| size(a).total_cmp(&size(b))) {
            let name = format!("gradients, {} tensors", good.len());
            let note = format!("worst: {}", worst.name);
            write_row(f, &name, &worst.shape, &worst.error, &note)?;
        }
        Ok(())
    }

    fn write_weights(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.dequantized {
            let name = format!("{} ({})", line.name, line.dtype);
            let total: usize = line.shape.iter().product();
            match line.differing_values {
                0 => writeln!(f, "{name:<38} all {total} values equal to the bit")?,
                n => {
                    let ErrorLine { at, expected, found, .. } = &line.error;
                    writeln!(f, "{name:<38} {n} of {total} values differ: FAIL")?;
                    writeln!(f, "{:<38} most at {at:?}: expected {expected}, found {found}", "")?;
                }
            }
        }
        Ok(())
    }

    /// Not compared tensors, counted by the first part of their name.
    fn write_rest(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut groups: BTreeMap<(String, &str), usize> = BTreeMap::new();
        for NotCompared { name, reason } in &self.not_compared {
            let group = name.split_once('.').map_or(name.clone(), |(head, _)| format!("{head}.*"));
            *groups.entry((group, *reason)).or_default() += 1;
        }
        for ((group, reason), count) in groups {
            let tensors = if count == 1 { "tensor" } else { "tensors" };
            writeln!(f, "not compared: {group} ({count} {tensors}, {reason})")?;
        }
        Ok(())
    }

    fn write_verdict(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if let Some(worst) = self.worst_relative_error {
            let limit = self.tolerance.map_or(String::new(), |t| format!(" (tolerance {t:.0e})"));
            parts.push(format!("relative error {worst:.1e}{limit}"));
        }
        if let (Some(mean), Some(worst)) = (self.mean_kl, self.worst_kl) {
            let limit = self.max_kl;
            parts.push(format!("KL mean {mean:.1e} (limit {limit:.0e}), worst {worst:.1e}"));
        }
        if let (agreeing, total @ 1..) = self.greedy_counts() {
            parts.push(format!("greedy {agreeing}/{total}"));
        }
        if !self.dequantized.is_empty() {
            let equal = self.dequantized.iter().filter(|line| line.differing_values == 0).count();
            parts.push(format!("weights {equal}/{} exact", self.dequantized.len()));
        }
        let verdict = if self.pass { "PASS" } else { "FAIL" };
        writeln!(f, "{verdict} on {}: {}", self.isa, parts.join(", "))
    }
}

fn mark(pass: bool) -> &'static str {
    if pass { "" } else { "FAIL" }
}

fn write_row(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    shape: &[usize],
    error: &ErrorLine,
    note: &str,
) -> fmt::Result {
    let shape = format!("{shape:?}");
    let at = format!("{:?}", error.at);
    let (relative, largest) = (error.relative_error, error.max_abs_error);
    let row = format!("{name:<21} {shape:<15} {relative:>8.1e}  {largest:>8.1e} {at:<14} {note}");
    writeln!(f, "{}", row.trim_end())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.threads == 1 { "" } else { "s" };
        let pass = self.chunk.map_or("one pass".to_owned(), |n| format!("pieces of {n} tokens"));
        writeln!(f, "{} against {}", self.model, self.reference)?;
        writeln!(
            f,
            "{}, {} thread{plural}, {} arithmetic, {} KV cache, prompts in {pass}, {:.1} s\n",
            self.isa, self.threads, self.arithmetic, self.kv_dtype, self.seconds
        )?;
        if !self.tensors.is_empty() || !self.gradients.is_empty() {
            let (shape, relative, largest) = ("shape", "relative", "largest");
            let head = "tensor";
            writeln!(f, "{head:<21} {shape:<15} {relative:>8}  {largest:>8} at")?;
        }
        for line in self.tensors.iter().filter(|line| line.layer.is_none()) {
            write_row(f, &line.name, &line.shape, &line.error, mark(line.pass))?;
        }
        self.write_hidden(f)?;
        self.write_gradients(f)?;
        self.write_greedy(f)?;
        self.write_weights(f)?;
        if let Some(FirstLayer { name, kind, .. }) = &self.first_layer_beyond {
            writeln!(f, "first layer beyond tolerance: {name} ({kind})")?;
        }
        self.write_rest(f)?;
        writeln!(f)?;
        self.write_verdict(f)
    }
}
