//! The training loop: step → micro-batches → sum → clip → AdamW → log → checkpoint.
//!
//! ```text
//! loss of a step     = Σ weight·loss / Σ weight        over all micro-batches of all ranks
//! gradient of a step = balanced tree over micro-batches (see [`crate::comm`])
//! ```
//! A rank computes its branch of the tree, gets its shard of the sum, updates that shard and gives
//! it to the others. A loss or gradient that is not finite ends the run before the update: weights
//! and log stay those of the step before, and the step's micro-batches are written down.

mod adapted;
mod error;
mod gradient;
mod nonfinite;

pub use error::TrainError;

use crate::checkpoint_store::{
    CheckpointStore, Lineage, Saved, Snapshot, TrainerState, write_model,
};
use crate::comm::Comm;
use crate::config::RunConfig;
use crate::log::{Lines, StepLog, StepTiming};
use crate::lora::Lora;
use crate::objective::{Batches, Evaluator, LossSums, Objective, Policy};
use crate::optimizer::{AdamW, shards};
use crate::run_dir::RunDir;
use adapted::Adapted;
use gradient::Gradient;
use hybra_kernels::Cpu;
use hybra_kernels::ops::adamw::squares_of_blocks;
use hybra_model::config::Config;
use hybra_model::lora::CONFIG_FILE;
use hybra_model::parameters::Layout;
use hybra_model::training::PackedBatch;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What goes into every checkpoint beside the trained values.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    /// The shape.
    pub config: Config,
    /// `config.json`, tokenizer and what else belongs to a Hugging Face directory.
    pub files: Vec<(String, Vec<u8>)>,
    /// BLAKE3 over the weights that training began from, and over those that they descend from;
    /// none for random ones.
    pub ancestors: Vec<String>,
    /// Such as `sft`.
    pub stage: &'static str,
    /// Of the program.
    pub code_version: String,
}

/// What happens in a run, for whoever shows it; rank 0 reports.
#[derive(Debug)]
pub enum Event<'a> {
    /// The loop begins behind `step`, from a checkpoint or from the start.
    Started {
        /// Steps done.
        step: u64,
        /// Steps in all.
        steps: u64,
        /// The checkpoint.
        from: Option<&'a Path>,
    },
    /// Something that a person should know.
    Warning(String),
    /// Something that a person may want to know.
    Note(&'a str),
    /// A step is done; sent for every step, logged or not.
    Step(&'a StepLog, &'a StepTiming),
    /// A checkpoint is on disk.
    Saved(&'a Path),
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// All steps are done; the model is at the path.
    Done(PathBuf),
    /// It was asked to stop; the checkpoint is at the path.
    Stopped(PathBuf),
}

/// A run of one rank.
pub struct Trainer<'a> {
    /// Instruction set and threads.
    pub cpu: &'a Cpu,
    /// The ranks.
    pub comm: &'a dyn Comm,
    /// The run.
    pub config: &'a RunConfig,
    /// The model, but for its weights.
    pub model: &'a ModelFiles,
    /// Where it is kept; prepared ([`RunDir::prepare`]) and seen by all ranks.
    pub dir: &'a RunDir,
    /// What is trained in place of the weights, if it is an adapter to them.
    pub lora: Option<&'a Lora>,
    /// What is minimized.
    pub objective: &'a mut dyn Objective,
    /// On what.
    pub batches: &'a mut dyn Batches,
    /// What `[eval]` asks for; used by rank 0.
    pub evaluator: Option<&'a mut dyn Evaluator>,
    /// Whoever shows the run.
    pub events: &'a mut dyn FnMut(Event),
    /// Set from outside: save a checkpoint after the running step, and stop.
    pub stop: &'a AtomicBool,
}

/// What changes from step to step.
struct State<'a> {
    /// Of what is trained.
    layout: Layout,
    shards: Vec<Range<usize>>,
    /// What is trained.
    parameters: Vec<f32>,
    /// The model, where an adapter to it is trained.
    adapted: Option<Adapted<'a>>,
    optimizer: AdamW,
    gradient: Gradient,
    step: u64,
    tokens: u64,
    learned_tokens: u64,
    /// Of rank 0.
    logs: Option<[Lines; 2]>,
    last: StepLog,
}

impl State<'_> {
    /// The model's weights.
    fn weights(&self) -> &[f32] {
        self.adapted.as_ref().map_or(&self.parameters, Adapted::weights)
    }
}

impl<'a> Trainer<'a> {
    /// Runs from the newest whole checkpoint, or from the `initial` weights, to the end.
    ///
    /// # Errors
    /// [`TrainError`]. What was saved before stays.
    ///
    /// # Panics
    /// If `initial` has not the length of the model's layout.
    pub fn run(mut self, initial: impl FnOnce() -> Vec<f32>) -> Result<Outcome, TrainError> {
        if self.config.eval.is_some() && self.evaluator.is_none() {
            return Err(TrainError::NoEvaluator);
        }
        let mut state = self.start(initial)?;
        let mut saved = state.step;
        while state.step < self.config.steps {
            self.step(&mut state)?;
            let stop = self.stop_asked()?;
            let is_last = state.step == self.config.steps;
            if stop || is_last || state.step.is_multiple_of(self.config.checkpoint.every) {
                self.save(&mut state)?;
                saved = state.step;
            }
            if stop && !is_last {
                return Ok(Outcome::Stopped(self.store().path(saved)));
            }
        }
        let model = self.dir.model();
        if self.comm.rank() == 0 {
            let mut files = self.model.files.clone();
            files.push(("lineage.json".to_owned(), self.store().lineage(state.step)?));
            let whole = Layout::new(&self.model.config);
            write_model(&model, &whole, state.weights(), &files, true)?;
            self.write_adapter(&state, self.store().lineage(state.step)?)?;
        }
        self.comm.barrier()?;
        Ok(Outcome::Done(model))
    }

    fn store(&self) -> CheckpointStore {
        let store = CheckpointStore::new(&self.dir.checkpoints(), self.config.checkpoint.keep);
        store.with_adapter(self.lora.map(|lora| lora.layout().clone()))
    }

    /// The state before the first step to do.
    fn start(&mut self, initial: impl FnOnce() -> Vec<f32>) -> Result<State<'a>, TrainError> {
        let layout =
            self.lora.map_or_else(|| Layout::new(&self.model.config), |lora| lora.layout().clone());
        let shards = shards(layout.len(), self.comm.size());
        let own = shards[self.comm.rank()].clone();
        let mut optimizer = AdamW::new(&layout, &self.config.optimizer, own);
        let saved = self.saved()?;
        let (mut step, mut tokens, mut learned_tokens, mut lens) = (0, 0, 0, [0, 0]);
        let mut from = None;
        let parameters = match saved {
            Some(Saved { path, parameters, exp_avg, exp_avg_sq, state }) => {
                optimizer.restore(&exp_avg, &exp_avg_sq);
                self.batches.restore(&state.data).map_err(TrainError::Data)?;
                (step, tokens, learned_tokens) = (state.step, state.tokens, state.learned_tokens);
                lens = [state.log_bytes, state.timing_bytes];
                from = Some(path);
                parameters
            }
            None => self.lora.map_or_else(initial, |lora| lora.initial(self.config.seed)),
        };
        assert_eq!(parameters.len(), layout.len(), "initial weights");
        let logs = if self.comm.rank() == 0 { Some(self.open_logs(lens)?) } else { None };
        let steps = self.config.steps;
        self.tell(Event::Started { step, steps, from: from.as_deref() });
        if let Some(lora) = self.lora {
            self.tell(Event::Note(lora.coverage()));
        }
        let adapted = self.lora.map(|lora| Adapted::new(lora, &parameters));
        let gradient = Gradient::new(layout.len());
        let last = StepLog::default();
        Ok(State {
            layout,
            shards,
            parameters,
            adapted,
            optimizer,
            gradient,
            step,
            tokens,
            learned_tokens,
            logs,
            last,
        })
    }

    /// The checkpoint to go on from: rank 0 chooses, the others read the same.
    fn saved(&mut self) -> Result<Option<Saved>, TrainError> {
        let store = self.store();
        if self.comm.rank() > 0 {
            let step = self.comm.broadcast(0, &[])?;
            let step = step.try_into().ok().map(u64::from_le_bytes);
            return Ok(step.map(|step| store.load(step, &self.model.config)).transpose()?);
        }
        let events = &mut *self.events;
        let saved = store.latest(&self.model.config, &mut |path, error| {
            let path = path.display();
            events(Event::Warning(format!("{path}: refused, the one before it is taken: {error}")));
        })?;
        let step = saved.as_ref().map(|saved| saved.state.step.to_le_bytes());
        self.comm.broadcast(0, step.as_ref().map_or(&[], |step| step))?;
        if let Some(saved) = &saved
            && saved.state.config_hash != self.config.hash()
        {
            let path = saved.path.display();
            let text = format!("{path}: was made with another configuration; going on from it");
            self.tell(Event::Warning(text));
        }
        Ok(saved)
    }

    fn open_logs(&self, lens: [u64; 2]) -> Result<[Lines; 2], TrainError> {
        let open = |path: PathBuf, len| match Lines::open(&path, len) {
            Ok(Some(lines)) => Ok(lines),
            Ok(None) => Err(TrainError::ShortLog { path, expected: len }),
            Err(cause) => Err(TrainError::Log { path, cause }),
        };
        Ok([open(self.dir.log(), lens[0])?, open(self.dir.timing(), lens[1])?])
    }

    fn tell(&mut self, event: Event) {
        if self.comm.rank() == 0 {
            (self.events)(event);
        }
    }

    /// One step, up to the log.
    fn step(&mut self, state: &mut State<'a>) -> Result<(), TrainError> {
        let started = Instant::now();
        let step = state.step + 1;
        let policy = Policy { parameters: state.weights(), comm: self.comm };
        let batches = self.batches.step(&policy).map_err(TrainError::Data)?;
        let weight = self.weight(step, &batches)?;
        let sums = self.gradient(state, &batches, weight)?;
        let gradient = self.comm.reduce_scatter_sum(state.gradient.values(), &state.shards)?;
        let (loss, grad_norm) = (sums.loss / weight, self.norm(&gradient)?);
        if !(loss.is_finite() && grad_norm.is_finite()) {
            let seen = nonfinite::Step { step, seed: self.config.seed, loss, norm: grad_norm };
            let (dir, layout) = (self.dir.failed(), &state.layout);
            let bad = nonfinite::first_bad(self.comm, &gradient, state.optimizer.shard())?;
            return Err(nonfinite::stop(&dir, self.comm, &seen, &batches, layout, bad)?);
        }
        if step == 1 && !self.objective.may_rest() {
            let without = gradient::without(self.comm, &state.layout, &gradient, &state.shards)?;
            self.cover(&without, state.layout.slots().len())?;
        }
        let peak = self.config.optimizer.lr;
        let lr = self.config.schedule.lr(peak, state.step, self.config.steps);
        let scale = self.config.optimizer.clip_factor(grad_norm);
        let shard = &mut state.parameters[state.optimizer.shard()];
        state.optimizer.step(self.cpu, shard, &gradient, step, lr, scale);
        drop(gradient);
        self.comm.all_gather_shards(&mut state.parameters, &state.shards)?;
        if let Some(adapted) = &mut state.adapted {
            adapted.set(&state.parameters);
        }
        let num_tokens = batches.iter().map(|batch| batch.tokens.len() as u64).sum::<u64>();
        state.step = step;
        state.tokens += num_tokens;
        state.learned_tokens += batches.iter().map(|b| b.num_learned() as u64).sum::<u64>();
        let (mut metrics, eval) = (means(&sums), self.evaluate(state)?);
        metrics.extend(self.batches.metrics().iter().cloned());
        let (tokens, learned_tokens) = (state.tokens, state.learned_tokens);
        let log = StepLog { step, loss, lr, grad_norm, tokens, learned_tokens, metrics, eval };
        let seconds = started.elapsed().as_secs_f64();
        let tokens_per_second = num_tokens as f64 / seconds;
        self.write_down(state, log, &StepTiming { step, seconds, tokens_per_second })
    }

    /// What the loss of a step is divided by: the same on all ranks, which see all micro-batches.
    fn weight(&self, step: u64, batches: &[PackedBatch]) -> Result<f64, TrainError> {
        let (found, ranks) = (batches.len(), self.comm.size());
        if found < ranks {
            return Err(TrainError::TooFewBatches { step, found, ranks });
        }
        let weight: f64 = batches.iter().map(|batch| self.objective.weight(batch)).sum();
        if weight > 0.0 && weight.is_finite() {
            Ok(weight)
        } else {
            Err(TrainError::NothingToLearn { step, weight })
        }
    }

    /// Names the tensors of `all` that the first step did not reach.
    fn cover(&mut self, without: &[String], all: usize) -> Result<(), TrainError> {
        if without.len() == all {
            return Err(TrainError::NoGradient);
        }
        // B is zero before the first step of an adapter, and so is the gradient of A.
        let is_expected = |name: &str| self.lora.is_some() && name.ends_with(".lora_A.weight");
        let missed = without.iter().map(String::as_str).filter(|name| !is_expected(name));
        let missed: Vec<&str> = missed.collect();
        if !missed.is_empty() {
            let names = missed.join(", ");
            let text = format!("{} of {all} tensors got no gradient: {names}", missed.len());
            self.tell(Event::Warning(text));
        }
        Ok(())
    }

    /// The gradient of this rank's micro-batches, in `state.gradient`, and the sums of all ranks'.
    fn gradient(
        &mut self,
        state: &mut State<'a>,
        batches: &[PackedBatch],
        weight: f64,
    ) -> Result<LossSums, TrainError> {
        let own = crate::comm::share(0..batches.len(), self.comm.rank(), self.comm.size());
        let (objective, cpu) = (&mut *self.objective, self.cpu);
        let State { parameters, adapted, gradient, .. } = state;
        let scale = (1.0 / weight) as f32;
        let sums = gradient.compute(cpu, own, &mut |index, gradient| {
            let batch = &batches[index];
            let expected = objective.weight(batch);
            let sums = match adapted {
                None => objective.micro_batch(cpu, parameters, batch, scale, gradient),
                Some(adapted) => {
                    adapted.micro_batch((objective, cpu), parameters, batch, scale, gradient)
                }
            };
            assert_eq!(sums.weight, expected, "the objective's weight of micro-batch {index}");
            sums
        });
        let mut all = self.comm.all_gather_f64(&sums.numbers())?;
        crate::comm::tree_sum(&mut all, &mut |sum, part| {
            sum.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
        });
        Ok(sums.with_numbers(&all[0]))
    }

    /// The norm of the whole gradient, from this rank's shard of it.
    fn norm(&self, gradient: &[f32]) -> Result<f64, TrainError> {
        let blocks = self.comm.all_gather_f64(&squares_of_blocks(self.cpu, gradient))?;
        Ok(blocks.iter().flatten().sum::<f64>().sqrt())
    }

    fn evaluate(&mut self, state: &State) -> Result<BTreeMap<String, f64>, TrainError> {
        let is_due =
            |every: u64| state.step.is_multiple_of(every) || state.step == self.config.steps;
        let due = self.config.eval.as_ref().is_some_and(|eval| is_due(eval.every));
        match &mut self.evaluator {
            Some(evaluator) if due && self.comm.rank() == 0 => {
                let measured = evaluator.evaluate(self.cpu, state.weights());
                Ok(measured.map_err(TrainError::Eval)?.into_iter().collect())
            }
            _ => Ok(BTreeMap::new()),
        }
    }

    fn write_down(
        &mut self,
        state: &mut State<'a>,
        log: StepLog,
        timing: &StepTiming,
    ) -> Result<(), TrainError> {
        let is_due = log.step.is_multiple_of(self.config.log.every)
            || log.step == self.config.steps
            || !log.eval.is_empty();
        if let (Some([lines, timings]), true) = (&mut state.logs, is_due) {
            let failed = |path| move |cause| TrainError::Log { path, cause };
            lines.push(&log).map_err(failed(self.dir.log()))?;
            timings.push(timing).map_err(failed(self.dir.timing()))?;
        }
        self.tell(Event::Step(&log, timing));
        state.last = log;
        Ok(())
    }

    /// Whether any rank was asked to stop.
    fn stop_asked(&self) -> Result<bool, TrainError> {
        let own = u8::from(self.stop.load(Ordering::Relaxed));
        Ok(self.comm.all_gather(&[own])?.concat().contains(&1))
    }

    /// Writes a checkpoint: all ranks give their moments, rank 0 writes.
    fn save(&mut self, state: &mut State<'a>) -> Result<(), TrainError> {
        let gather = |own: &[f32]| {
            let mut all = vec![0.0; state.layout.len()];
            all[state.optimizer.shard()].copy_from_slice(own);
            self.comm.all_gather_shards(&mut all, &state.shards).map(|()| all)
        };
        let (m, v) = state.optimizer.moments();
        let (m, v) = (gather(m)?, gather(v)?);
        if let Some([lines, timings]) = &mut state.logs {
            let failed = |path| move |cause| TrainError::Log { path, cause };
            let log_bytes = lines.sync().map_err(failed(self.dir.log()))?;
            let timing_bytes = timings.sync().map_err(failed(self.dir.timing()))?;
            let trainer = TrainerState {
                step: state.step,
                tokens: state.tokens,
                learned_tokens: state.learned_tokens,
                log_bytes,
                timing_bytes,
                seed: self.config.seed,
                config_hash: self.config.hash(),
                data: self.batches.state(),
            };
            let path = self.store().save(&Snapshot {
                layout: &Layout::new(&self.model.config),
                files: &self.model.files,
                parameters: state.weights(),
                trained: (&state.layout, &state.parameters),
                moments: (&m, &v),
                state: &trainer,
                lineage: &self.lineage(state),
            })?;
            self.tell(Event::Saved(&path));
        }
        Ok(self.comm.barrier()?)
    }

    /// `RUN/adapter`, where one is trained.
    fn write_adapter(&self, state: &State, lineage: Vec<u8>) -> Result<(), TrainError> {
        let Some(lora) = self.lora else { return Ok(()) };
        let base = self.config.model.from.as_ref().map(|path| path.display().to_string());
        let config = serde_json::to_vec_pretty(&lora.config(base)).expect("numbers and text");
        let files = [(CONFIG_FILE.to_owned(), config), ("lineage.json".to_owned(), lineage)];
        let (to, values) = (self.dir.adapter(), &state.parameters);
        Ok(self.store().write_adapter(&to, &state.layout, values, &files)?)
    }

    fn lineage(&self, state: &State) -> Lineage {
        Lineage {
            parent: self.model.ancestors.first().cloned(),
            ancestors: self.model.ancestors.clone(),
            stage: self.model.stage.to_owned(),
            run_file: self.config.to_toml(),
            seed: self.config.seed,
            code_version: self.model.code_version.clone(),
            step: state.step,
            metrics: serde_json::json!(state.last),
        }
    }
}

/// The objective's metrics, each over its own count.
fn means(sums: &LossSums) -> BTreeMap<String, f64> {
    let counted = sums.metrics.iter().filter(|(_, _, count)| *count != 0.0);
    counted.map(|(name, sum, count)| ((*name).to_owned(), sum / count)).collect()
}
