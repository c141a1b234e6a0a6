//! The result of `bench`, for people and as JSON.

use super::limits::{Arithmetic, Measured};
use super::machine::Machine;
use super::plan::{Point, Spread};
use super::work::Work;
use crate::size;
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// Everything measured.
#[derive(Serialize)]
pub(crate) struct Report {
    /// Hybra's.
    pub(crate) version: &'static str,
    /// Seconds since 1970.
    pub(crate) unix_time: u64,
    pub(crate) machine: Machine,
    pub(crate) isa: String,
    pub(crate) threads: usize,
    pub(crate) model: String,
    pub(crate) pattern: String,
    pub(crate) work: Work,
    pub(crate) kv_dtype: String,
    /// Of the recurrent state.
    pub(crate) state_dtype: String,
    /// Of the matrix products.
    pub(crate) arithmetic: String,
    /// Hidden units of the MLPs that are nonzero after the squared ReLU, on the tokens that warm
    /// up; `None` without MLPs.
    pub(crate) mlp_density: Option<f64>,
    /// Tokens of a prompt in one forward pass.
    pub(crate) chunk: usize,
    /// Tokens that a decode point generates for each sequence.
    pub(crate) decode_tokens: usize,
    pub(crate) limits: Measured,
    pub(crate) results: Vec<Line>,
    pub(crate) skipped: Vec<Skipped>,
    pub(crate) load_seconds: f64,
    pub(crate) peak_resident_bytes: Option<u64>,
    pub(crate) seconds: f64,
}

/// One point.
#[derive(Serialize)]
pub(crate) struct Line {
    #[serde(flatten)]
    pub(crate) point: Point,
    pub(crate) tokens_per_second: Spread,
    pub(crate) share_of: Shares,
}

/// Work done over what the machine can do, from the medians; `None` where it does not apply.
#[derive(Serialize)]
pub(crate) struct Shares {
    memory_read: Option<f64>,
    f32_fma: Option<f64>,
    bf16_dot: Option<f64>,
    int8_dot: Option<f64>,
}

/// A point that was left out.
#[derive(Serialize)]
pub(crate) struct Skipped {
    #[serde(flatten)]
    pub(crate) point: Point,
    pub(crate) reason: String,
}

/// A column of shares: its head, and the share that it shows.
type Column = (&'static str, fn(&Shares) -> Option<f64>);

const CPU_COLUMNS: [Column; 3] =
    [("memory", |s| s.memory_read), ("f32", |s| s.f32_fma), ("int8", |s| s.int8_dot)];
const GPU_COLUMNS: [Column; 2] = [("memory", |s| s.memory_read), ("bf16", |s| s.bf16_dot)];

impl Line {
    /// Joins a point's speed with the limits; decode points generate `steps` tokens.
    pub(crate) fn new(
        point: Point,
        speed: Spread,
        work: &Work,
        limits: &Measured,
        steps: usize,
    ) -> Self {
        let ops = work.ops_per_token(point) * speed.median;
        let bytes = work.bytes_per_token(point, steps).map(|bytes| bytes * speed.median);
        let share = |limit: &Option<Arithmetic>| limit.as_ref().map(|l| ops / l.ops.median);
        let share_of = Shares {
            memory_read: bytes.map(|bytes| bytes / limits.memory_read.median),
            f32_fma: share(&limits.f32_fma),
            bf16_dot: share(&limits.bf16_dot),
            int8_dot: share(&limits.int8_dot),
        };
        Self { point, tokens_per_second: speed, share_of }
    }
}

impl Report {
    fn write_head(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, model, machine, work, .. } = self;
        writeln!(f, "hybra {version}, {model}: {}", self.pattern)?;
        writeln!(
            f,
            "{} parameters, {} of weights, {} arithmetic, {} KV cache, {} state",
            size::short_count(work.parameters),
            size::bytes(work.weight_bytes),
            self.arithmetic,
            self.kv_dtype,
            self.state_dtype
        )?;
        if let Some(density) = self.mlp_density {
            writeln!(f, "{:.1} % of the MLPs' hidden units are nonzero", 100.0 * density)?;
        }
        let cpu = machine.cpu.as_deref().unwrap_or("unknown CPU");
        let (threads, cores) = (plural(self.threads, "thread"), plural(machine.cores, "core"));
        match self.is_on_device() {
            true => writeln!(f, "{}, beside {cpu}\n", self.isa),
            false => writeln!(f, "{cpu}, {threads} on {cores}, {}\n", self.isa),
        }
    }

    fn write_limits(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limits = &self.limits;
        writeln!(f, "{:<34} {:>8}  {:>13}", "limits of this machine", "median", "min–max")?;
        write_limit(f, "memory read, GB/s", limits.memory_read)?;
        let rows = [
            ("f32 multiply-add, GFLOP/s", &limits.f32_fma),
            ("bf16 dot product, GFLOP/s", &limits.bf16_dot),
            ("int8 dot product, GOP/s", &limits.int8_dot),
        ];
        for (name, limit) in rows {
            match limit {
                Some(limit) => write_limit(f, name, limit.ops)?,
                None => writeln!(f, "  {name:<32} {:>8}", "none")?,
            }
        }
        writeln!(f)
    }

    /// Shares that are printed: those of the limits that processors of this kind meet.
    fn columns(&self) -> &'static [Column] {
        if self.is_on_device() { &GPU_COLUMNS } else { &CPU_COLUMNS }
    }

    fn is_on_device(&self) -> bool {
        self.limits.f32_fma.is_none()
    }

    fn write_results(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = self.columns().iter().map(|(name, _)| format!("{name:>6}"));
        let head = head.collect::<Vec<_>>().join(" ");
        writeln!(f, "{:<17} {:>9}  {:>17}  {head}", "", "tokens/s", "min–max")?;
        for line in &self.results {
            let speed = line.tokens_per_second;
            let range = format!("{}–{}", number(speed.min), number(speed.max));
            let shares = self.columns().iter();
            let shares = shares.map(|(_, of)| format!("{:>6}", percent(of(&line.share_of))));
            let shares = shares.collect::<Vec<_>>().join(" ");
            let name = line.point.to_string();
            writeln!(f, "{name:<17} {:>9}  {range:>17}  {shares}", number(speed.median))?;
        }
        for Skipped { point, reason } in &self.skipped {
            let name = point.to_string();
            writeln!(f, "{name:<17} skipped: {reason}")?;
        }
        writeln!(f)
    }

    fn write_foot(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let load = size::duration(Duration::from_secs_f64(self.load_seconds));
        let peak = self.peak_resident_bytes.map_or("n/a".to_owned(), size::bytes);
        let time = size::duration(Duration::from_secs_f64(self.seconds));
        let samples = self.results.iter().map(|line| line.tokens_per_second.samples);
        let (least, most) = (samples.clone().min().unwrap_or(0), samples.max().unwrap_or(0));
        let rounds = plural(most, "round");
        let rounds = if least == most { rounds } else { format!("{least} to {rounds}") };
        writeln!(f, "loaded in {load}, peak memory {peak}, {rounds} in {time}")?;
        let names: Vec<_> = self.columns().iter().map(|(name, _)| *name).collect();
        let names = names.join(", ");
        writeln!(f, "{names}: work done, as a share of the limit above (see --help).")?;
        let cache =
            self.machine.last_cache_bytes.filter(|&bytes| self.work.step_weight_bytes < bytes);
        if let Some(cache) = cache.filter(|_| !self.is_on_device()) {
            let cache = size::bytes(cache);
            writeln!(f, "The weights fit in the cache ({cache}): memory does not limit decoding.")?;
        }
        Ok(())
    }
}

fn write_limit(f: &mut fmt::Formatter<'_>, name: &str, rate: Spread) -> fmt::Result {
    let giga = |value: f64| number(value / 1e9);
    let range = format!("{}–{}", giga(rate.min), giga(rate.max));
    writeln!(f, "  {name:<32} {:>8}  {range:>13}", giga(rate.median))
}

pub(super) fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Three digits that matter, and no more behind the point than that takes.
pub(super) fn number(value: f64) -> String {
    match value {
        v if v >= 99.95 => size::count(v.round() as u64),
        v if v >= 9.995 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn percent(share: Option<f64>) -> String {
    match share {
        None => "–".to_owned(),
        Some(share) if share < 0.0995 => format!("{:.1} %", share * 100.0),
        Some(share) => format!("{:.0} %", share * 100.0),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_head(f)?;
        self.write_limits(f)?;
        self.write_results(f)?;
        self.write_foot(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_that_matter() {
        let texts = [0.123, 5.0, 9.996, 99.96, 12_345.6].map(number);
        assert_eq!(texts, ["0.12", "5.00", "10.0", "100", "12,346"]);
        assert_eq!([Some(0.041), Some(0.667), None].map(percent), ["4.1 %", "67 %", "–"]);
    }

    #[test]
    fn shares_are_work_over_limits() {
        let spread = |median| Spread { median, min: median, max: median, samples: 1 };
        let arithmetic = |ops| Some(Arithmetic { ops: spread(ops), instruction: "x" });
        let limits = Measured {
            memory_read: spread(1000.0),
            f32_fma: arithmetic(4000.0),
            bf16_dot: None,
            int8_dot: arithmetic(8000.0),
        };
        let work = Work::example();
        let decode = Point::Decode { depth: 0, batch: 1 };
        let line = Line::new(decode, spread(2.0), &work, &limits, 2);
        let expected = 2.0 * work.bytes_per_token(decode, 2).unwrap() / 1000.0;
        assert_eq!(line.share_of.memory_read, Some(expected));
        let ops = 2.0 * work.ops_per_token(decode);
        assert_eq!(line.share_of.f32_fma, Some(ops / 4000.0));
        assert_eq!(line.share_of.int8_dot, Some(ops / 8000.0));
        assert_eq!(line.share_of.bf16_dot, None);
        let prefill = Line::new(Point::Prefill { tokens: 8 }, spread(2.0), &work, &limits, 2);
        assert_eq!(prefill.share_of.memory_read, None);
    }
}
