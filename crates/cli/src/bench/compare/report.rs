//! The result of a comparison, for people and as JSON.

use super::fit::{Limit, Room};
use super::points::RunPoint;
use super::project::{Bound, Projection};
use super::run::{Outcome, Run, Sampling};
use crate::bench::limits::Measured;
use crate::bench::machine::Machine;
use crate::bench::report::{number, plural};
use crate::bench::work::Work;
use crate::size;
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// Everything measured and projected.
#[derive(Serialize)]
pub(super) struct Comparison {
    /// Hybra's.
    pub(super) version: &'static str,
    /// Seconds since 1970.
    pub(super) unix_time: u64,
    pub(super) machine: Machine,
    /// The CPU's instruction set, or the GPU's name.
    pub(super) isa: String,
    #[serde(skip)]
    pub(super) on_device: bool,
    pub(super) threads: usize,
    pub(super) kv_dtype: String,
    pub(super) room: Room,
    /// How runs were integrated.
    pub(super) sampling: Sampling,
    pub(super) limits: Measured,
    pub(super) points: Vec<RunPoint>,
    /// Each with its runs, in the order of the points.
    pub(super) models: [Compared; 2],
    /// By point: the first model's tokens per second over the second's.
    pub(super) ratios: Vec<Option<f64>>,
    pub(super) projections: Vec<Projection>,
    pub(super) peak_resident_bytes: Option<u64>,
    pub(super) seconds: f64,
}

/// One model.
#[derive(Serialize)]
pub(super) struct Compared {
    pub(super) name: String,
    pub(super) random_weights: bool,
    pub(super) pattern: String,
    /// Type of the matrices.
    pub(super) weights: &'static str,
    pub(super) work: Work,
    pub(super) mlp_density: Option<f64>,
    pub(super) load_seconds: f64,
    /// The most that weights, states and passes took of a GPU's memory, as its driver counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) device_bytes: Option<u64>,
    pub(super) runs: Vec<Outcome>,
}

/// By point: the first model's tokens per second over the second's, where both were measured.
pub(super) fn ratios(models: &[Compared; 2]) -> Vec<Option<f64>> {
    let pairs = models[0].runs.iter().zip(&models[1].runs);
    let ratio = |(a, b): (&Outcome, &Outcome)| match (a, b) {
        (Outcome::Measured(a), Outcome::Measured(b)) => {
            Some(a.tokens_per_second / b.tokens_per_second)
        }
        _ => None,
    };
    pairs.map(ratio).collect()
}

impl Comparison {
    fn write_head(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b] = &self.models;
        writeln!(f, "hybra {}: {} against {}\n", self.version, a.name, b.name)?;
        for model in &self.models {
            writeln!(f, "{}: {}", model.name, layers(&model.pattern))?;
            let work = &model.work;
            let random = if model.random_weights { ", random" } else { "" };
            let (count, bytes) =
                (size::short_count(work.parameters), size::bytes(work.weight_bytes));
            writeln!(f, "  {count} parameters, {bytes} ({}{random})", model.weights)?;
            let (kv, state) = (size::bytes(work.kv_bytes_per_token), size::bytes(work.state_bytes));
            write!(f, "  a sequence: {kv} per token ({}), {state} of state", self.kv_dtype)?;
            match model.mlp_density {
                Some(density) => writeln!(f, "; MLPs {:.1} % nonzero", 100.0 * density)?,
                None => writeln!(f)?,
            }
        }
        let cpu = self.machine.cpu.as_deref().unwrap_or("unknown CPU");
        let (threads, cores) = (plural(self.threads, "thread"), plural(self.machine.cores, "core"));
        match self.on_device {
            true => writeln!(f, "{}, beside {cpu}", self.isa)?,
            false => writeln!(f, "{cpu}, {threads} on {cores}, {}", self.isa)?,
        }
        let memory = self.limits.memory_read;
        let [median, min, max] = [memory.median, memory.min, memory.max].map(|v| number(v / 1e9));
        writeln!(f, "memory read {median} GB/s ({min}–{max}) before, between and after\n")
    }

    fn write_runs(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let budget = match self.room.budget {
            Some(bytes) => format!("a budget of {}", size::bytes(bytes)),
            None if self.on_device => "this GPU".to_owned(),
            None => "this machine".to_owned(),
        };
        writeln!(f, "Tokens/s of all sequences, at the largest batch that fits {budget}:")?;
        let columns = ["batch", "memory", "prompt", "output", "run", "ratio"];
        writeln!(f, "{}", row("", "", columns.map(str::to_owned)))?;
        for (i, point) in self.points.iter().enumerate() {
            for (at, model) in self.models.iter().enumerate() {
                let ratio = self.ratios[i].filter(|_| at == 0);
                let point = if at == 0 { point.to_string() } else { String::new() };
                match &model.runs[i] {
                    Outcome::Measured(run) => {
                        writeln!(f, "{}", row(&point, &model.name, cells(run, ratio)))?;
                    }
                    Outcome::Skipped { skipped } => {
                        writeln!(f, "{point:<8} {:<18} skipped: {skipped}", short(&model.name))?;
                    }
                }
            }
        }
        self.write_method(f)
    }

    fn write_method(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sampling { depths, slice, steps } = self.sampling;
        writeln!(
            f,
            "\nIntegrated from {depths} sampled depths of prompt and of output, not run in full:"
        )?;
        writeln!(
            f,
            "slices of {slice} tokens and {} at each, caches filled without reading.",
            plural(steps, "step")
        )?;
        let is = |limit: Limit| move |run: &&Run| run.fit.limited_by == limit;
        let runs = || self.models.iter().flat_map(|model| &model.runs).filter_map(Outcome::run);
        if self.room.budget.is_some() && runs().any(|run| is(Limit::Machine)(&run)) {
            let machine = size::bytes(self.room.machine.unwrap_or(0));
            let this = if self.on_device { "this GPU" } else { "this machine" };
            writeln!(f, "m: the budget admits more, {this} ({machine}) does not.")?;
        }
        if runs().any(|run| is(Limit::MaxBatch)(&run)) {
            writeln!(f, "c: capped by --max-batch {}.", self.room.max_batch)?;
        }
        for model in &self.models {
            if let Some(bytes) = model.device_bytes {
                writeln!(f, "{}: at most {} of the GPU taken", model.name, size::bytes(bytes))?;
            }
        }
        let time = size::duration(Duration::from_secs_f64(self.seconds));
        let peak = self.peak_resident_bytes.map_or("n/a".to_owned(), size::bytes);
        writeln!(f, "peak memory {peak}, {time} in all\n")
    }

    fn write_projections(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "PROJECTION, not measured: what memory and arithmetic of a card bound")?;
        let mut device = "";
        for projection in &self.projections {
            if projection.device.name != device {
                device = projection.device.name;
                write_device(f, projection)?;
            }
            for (at, model) in self.models.iter().enumerate() {
                let point = if at == 0 { projection.point.to_string() } else { String::new() };
                let ratio = projection.ratio.filter(|_| at == 0);
                match &projection.models[at] {
                    Some(bound) => {
                        let cells = bound_cells(projection.weights, bound, ratio);
                        writeln!(f, "{}", row(&point, &model.name, cells))?;
                    }
                    None => writeln!(f, "{point:<8} {:<18} does not fit", short(&model.name))?,
                }
            }
        }
        writeln!(
            f,
            "Bytes and operations of a step in the middle of the output. The bound leaves out"
        )?;
        writeln!(f, "activations, workspace and framework; no engine reaches it.")
    }
}

fn write_device(f: &mut fmt::Formatter<'_>, projection: &Projection) -> fmt::Result {
    let device = &projection.device;
    let memory = match device.memory_bytes {
        bytes if bytes % (1 << 30) == 0 => format!("{} GiB usable", bytes >> 30),
        bytes => format!("{} GB", bytes / 1_000_000_000),
    };
    writeln!(
        f,
        "\n{}: {} GB/s, {memory}, {} TFLOP/s bf16 (published)",
        device.name,
        size::count((device.bytes_per_second / 1e9) as u64),
        device.bf16_per_second / 1e12
    )?;
    let columns = ["batch", "weights", "GB", "TFLOP", "tok/s ≤", "ratio"];
    writeln!(f, "{}", row("", "", columns.map(str::to_owned)))
}

fn cells(run: &Run, ratio: Option<f64>) -> [String; 6] {
    let mark = match run.fit.limited_by {
        Limit::Budget => "",
        Limit::Machine if run.fit.batch_in_budget.is_none() => "",
        Limit::Machine => "m",
        Limit::MaxBatch => "c",
    };
    let speeds =
        [run.prefill_tokens_per_second, run.decode_tokens_per_second, run.tokens_per_second];
    let [prompt, output, all] = speeds.map(speed);
    let batch = format!("{mark}{}", run.fit.batch);
    [batch, size::bytes(run.memory.total), prompt, output, all, ratio.map_or(String::new(), times)]
}

fn bound_cells(weights: &str, bound: &Bound, ratio: Option<f64>) -> [String; 6] {
    [
        format!("{}{}", if bound.capped { "c" } else { "" }, bound.batch),
        weights.to_owned(),
        number(bound.bytes_per_step / 1e9),
        number(bound.operations_per_step / 1e12),
        speed(bound.tokens_per_second),
        ratio.map_or(String::new(), times),
    ]
}

/// `27 Mamba-2, 25 MLP, 4 attention layers`.
fn layers(pattern: &str) -> String {
    let kinds = [('M', "Mamba-2"), ('-', "MLP"), ('*', "attention")];
    let counts = kinds.map(|(letter, name)| (pattern.matches(letter).count(), name));
    let counts = counts.iter().filter(|(count, _)| *count > 0);
    let counts: Vec<_> = counts.map(|(count, name)| format!("{count} {name}")).collect();
    format!("{} layers", counts.join(", "))
}

fn speed(tokens_per_second: f64) -> String {
    match tokens_per_second {
        v if v >= 1e6 => size::short_count(v as u64),
        v => number(v),
    }
}

fn times(ratio: f64) -> String {
    format!("{} ×", number(ratio))
}

/// A line of at most 80 columns.
fn row(point: &str, model: &str, cells: [String; 6]) -> String {
    let [batch, second, third, fourth, fifth, ratio] = cells;
    let line = format!(
        "{point:<8} {:<18} {batch:>5} {second:>10} {third:>8} {fourth:>8} {fifth:>8} {ratio:>7}",
        short(model)
    );
    line.trim_end().to_owned()
}

/// The beginning of a name.
fn short(name: &str) -> String {
    match name.chars().count() {
        ..=18 => name.to_owned(),
        _ => name.chars().take(17).chain(['…']).collect(),
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_head(f)?;
        self.write_runs(f)?;
        self.write_projections(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_aligned_and_names_cut() {
        let cells = ["12", "1.00 GiB", "10.0", "2.00", "1.50", "6.30 ×"].map(str::to_owned);
        let line = row("8k/16k", "a-model-with-a-long-name", cells);
        assert_eq!(
            line,
            "8k/16k   a-model-with-a-lo…    12   1.00 GiB     10.0     2.00     1.50  6.30 ×"
        );
        assert!(line.chars().count() <= 80);
        assert_eq!(row("", "x", Default::default()), "         x");
        assert_eq!(layers("M-*-"), "1 Mamba-2, 2 MLP, 1 attention layers");
        assert_eq!(layers("*-"), "1 MLP, 1 attention layers");
    }
}
