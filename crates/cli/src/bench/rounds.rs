//! Rounds over the points: the first learns how long each takes and what must be left out, those
//! behind it repeat it until there are enough or the time is used up.

use super::Args;
use super::limits::Limits;
use super::measure::{Bencher, SAMPLE_SECONDS};
use super::plan::{self, Pace, Point};
use super::report::Skipped;
use super::work::Work;
use crate::progress::Progress;
use anyhow::Result;
use hybra_kernels::Cpu;
use hybra_model::density::DensityCounter;
use hybra_model::{NemotronH, StateDtypes};
use std::time::Instant;

/// Tokens of the prompt that is read to warm up, to learn the pace and to count nonzero units.
const WARM_UP_TOKENS: usize = 64;

/// What the rounds gave.
pub(super) struct Rounds {
    pub(super) samples: Vec<(Point, Vec<f64>)>,
    pub(super) skipped: Vec<Skipped>,
    /// Nonzero hidden units over all units, while warming up; `None` without MLPs.
    pub(super) mlp_density: Option<f64>,
}

/// What the measured model needs and what there is.
#[derive(Clone, Copy)]
pub(super) struct Memory<'a> {
    pub(super) work: &'a Work,
    /// Bytes that were available before the model was loaded, where the system tells.
    pub(super) available: Option<u64>,
}

/// Measures rounds until there are enough or the time is used up.
pub(super) fn measure(
    args: &Args,
    cpu: &Cpu,
    model: &NemotronH,
    (memory, dtypes): (Memory, StateDtypes),
    limits: &mut Limits,
) -> Result<Rounds> {
    let started = Instant::now();
    let points = args.points();
    let rounds = args.rounds();
    let mut bar = Progress::pieces("measuring", (points.len() * rounds) as u64);
    bar.message("limits, warming up");
    bar.set(0);
    limits.sample(cpu)?;
    let mut bencher = Bencher::new(cpu, model, dtypes, args.chunk);
    let mut first = FirstRound::new(args, &mut bencher, memory, started)?;
    for point in points {
        bar.message(&point.to_string());
        first.point(&mut bencher, point)?;
        bar.advance(1);
    }
    let FirstRound { mut rounds_so_far, seconds: once, .. } = first;
    for _ in 1..rounds {
        if started.elapsed().as_secs_f64() + once > args.seconds() {
            break;
        }
        limits.sample(cpu)?;
        for (point, samples) in &mut rounds_so_far.samples {
            bar.message(&point.to_string());
            samples.push(bencher.sample(*point, args.tokens())?);
            bar.advance(1);
        }
    }
    Ok(rounds_so_far)
}

/// The round that learns how long things take, and decides what is left out.
struct FirstRound<'a> {
    args: &'a Args,
    memory: Memory<'a>,
    started: Instant,
    pace: Pace,
    rounds_so_far: Rounds,
    /// Seconds that the round took, filling of depths left out.
    seconds: f64,
}

impl<'a> FirstRound<'a> {
    fn new(
        args: &'a Args,
        bencher: &mut Bencher<'_>,
        memory: Memory<'a>,
        started: Instant,
    ) -> Result<Self> {
        bencher.prefill(1)?;
        let mut density = DensityCounter::new(bencher.config());
        let prefill = bencher.observe(WARM_UP_TOKENS, &mut density)? / WARM_UP_TOKENS as f64;
        let pace = Pace { prefill, step: bencher.decode(0, 1, 1)? };
        let mlp_density = density.mean();
        let rounds_so_far = Rounds { samples: Vec::new(), skipped: Vec::new(), mlp_density };
        // The limits of a round take about as long as those before it.
        let seconds = started.elapsed().as_secs_f64();
        Ok(Self { args, memory, started, pace, rounds_so_far, seconds })
    }

    fn point(&mut self, bencher: &mut Bencher<'_>, point: Point) -> Result<()> {
        let needed = self.memory.work.resident_bytes(point, self.args.tokens());
        if let Some(reason) = plan::memory_reason(needed, self.memory.available) {
            self.rounds_so_far.skipped.push(Skipped { point, reason });
            return Ok(());
        }
        let filled = match point {
            Point::Prefill { .. } => 0,
            Point::Decode { depth, .. } => bencher.filled(depth),
        };
        let estimate = self.pace.estimate(point, filled, self.args.tokens());
        let (total, spent) = (self.args.seconds(), self.started.elapsed().as_secs_f64());
        let always = match point {
            Point::Prefill { .. } => self.rounds_so_far.samples.is_empty(),
            Point::Decode { depth, batch } => (depth, batch) == (0, 1),
        };
        if let Some(reason) = plan::skip_reason(estimate, total - spent, total, always) {
            self.rounds_so_far.skipped.push(Skipped { point, reason });
            return Ok(());
        }
        let speed = bencher.sample(point, self.args.tokens())?;
        match point {
            Point::Prefill { tokens } => {
                self.pace.prefill = 1.0 / speed;
                self.seconds += (tokens as f64 / speed).max(SAMPLE_SECONDS);
            }
            Point::Decode { batch, .. } => {
                if batch == 1 {
                    self.pace.step = 1.0 / speed;
                }
                let seconds = (batch * self.args.tokens()) as f64 / speed;
                self.seconds += seconds.max(SAMPLE_SECONDS);
            }
        }
        self.rounds_so_far.samples.push((point, vec![speed]));
        Ok(())
    }
}
