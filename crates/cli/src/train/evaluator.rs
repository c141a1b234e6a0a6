//! `[eval]` of a run file: accuracy on held-out examples in the middle of a run.
//!
//! The weights of the moment are written to a folder of their own and loaded by the engine that
//! serves, with exact arithmetic: a point of the curve is what `hybra eval --arithmetic exact` says
//! of that checkpoint.

use crate::cpu::{Arithmetic, CpuArgs, LoadOptions};
use crate::options::{StateArgs, StateDtypeArg};
use crate::session::{Limits, Session};
use anyhow::{Context, Result};
use hybra_engine::EngineConfig;
use hybra_eval::{Budget, EvalOptions, Example, Phrasing, Row, Split, Task, TaskOptions, evaluate};
use hybra_kernels::Cpu;
use hybra_model::parameters::Layout;
use hybra_train::config::EvalConfig;
use hybra_train::{BoxError, Evaluator, ModelFiles, checkpoint_store};
use serde::Deserialize;
use std::path::Path;
use toml::{Table, Value};

/// Sequences generated at once.
const BATCH: usize = 32;

/// The keys of `[eval]` beside `every`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    tasks: Vec<String>,
    /// Numbers of tokens, "off" and "inf".
    budgets: Vec<Value>,
    /// Examples of each task.
    count: u64,
    seed: u64,
    split: String,
    phrasing: String,
    max_difficulty: Option<u32>,
    max_tokens: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tasks: vec!["chainbox".to_owned()],
            budgets: ["off", "inf"].map(Value::from).to_vec(),
            count: 100,
            seed: 0,
            split: "test".to_owned(),
            phrasing: "mixed".to_owned(),
            max_difficulty: None,
            max_tokens: 512,
        }
    }
}

/// Examples, and how they are answered.
pub(crate) struct Measure {
    tasks: Vec<(String, Vec<Example>)>,
    options: EvalOptions,
}

/// Measures the model of a run.
pub(super) struct TaskEvaluator<'a> {
    measure: Measure,
    files: &'a ModelFiles,
    cpu: &'a CpuArgs,
}

impl Measure {
    /// Draws the examples that `[eval]` asks for.
    pub(crate) fn new(settings: &Table) -> Result<Self> {
        let settings: Settings = settings.clone().try_into()?;
        let options = TaskOptions {
            split: settings.split.parse::<Split>().map_err(anyhow::Error::msg).context("split")?,
            phrasing: settings
                .phrasing
                .parse::<Phrasing>()
                .map_err(anyhow::Error::msg)
                .context("phrasing")?,
            max_difficulty: settings.max_difficulty,
        };
        let draw = |name: &String| {
            let task: Task = name.parse().context("tasks")?;
            let examples = (0..settings.count).map(|i| task.example(options, settings.seed, i));
            Ok((name.clone(), examples.collect::<Result<_, _>>()?))
        };
        let tasks = settings.tasks.iter().map(draw).collect::<Result<_>>()?;
        let budgets = settings.budgets.iter().map(budget).collect::<Result<_>>();
        let options = EvalOptions {
            budgets: budgets.context("budgets")?,
            seed: settings.seed,
            max_tokens: settings.max_tokens,
            ..EvalOptions::default()
        };
        Ok(Self { tasks, options })
    }

    /// What the model in the directory answers: a row for each task and budget.
    pub(crate) fn rows(&self, model: &Path, cpu: &CpuArgs, load: LoadOptions) -> Result<Vec<Row>> {
        let mut session = open(&model.to_string_lossy(), cpu, load)?;
        let mut rows = Vec::new();
        for (task, examples) in &self.tasks {
            let Session { engine, model } = &mut session;
            let found = evaluate(engine, model, task, examples, &self.options, &mut || {});
            rows.extend(found.with_context(|| task.clone())?);
        }
        Ok(rows)
    }
}

impl<'a> TaskEvaluator<'a> {
    /// For the models of a run.
    pub(super) fn new(
        config: &EvalConfig,
        files: &'a ModelFiles,
        cpu: &'a CpuArgs,
    ) -> Result<Self> {
        Ok(Self { measure: Measure::new(&config.settings)?, files, cpu })
    }

    fn measure(&self, parameters: &[f32]) -> Result<Vec<(String, f64)>> {
        let folder = tempfile::tempdir().context("a folder for the model that is measured")?;
        let model = folder.path().join("model");
        let layout = Layout::new(&self.files.config);
        checkpoint_store::write_model(&model, &layout, parameters, &self.files.files, false)?;
        let mut values = Vec::new();
        let load = LoadOptions::on_cpu(Arithmetic::Exact);
        for row in self.measure.rows(&model, self.cpu, load)? {
            let name = format!("{} {}", row.task, row.budget);
            if row.budget != Budget::Off {
                values.push((format!("{name} tokens"), row.thinking_tokens));
            }
            values.push((name, row.accuracy.share));
        }
        Ok(values)
    }
}

fn open(model: &str, cpu: &CpuArgs, load: LoadOptions) -> Result<Session> {
    let state = StateArgs { kv_dtype: None, state_dtype: StateDtypeArg::F32 };
    let limits = Limits { state, context: None, num_speculative_tokens: 0 };
    let config = EngineConfig { max_num_seqs: BATCH, ..EngineConfig::default() };
    Session::open(Some(model), cpu.cpu()?, load, limits, config)
}

impl Evaluator for TaskEvaluator<'_> {
    fn evaluate(&mut self, _: &Cpu, parameters: &[f32]) -> Result<Vec<(String, f64)>, BoxError> {
        Ok(self.measure(parameters)?)
    }
}

fn budget(value: &Value) -> Result<Budget> {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Ok(text.parse()?)
}
