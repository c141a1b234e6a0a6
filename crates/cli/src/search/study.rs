//! The folder of a search, and the work of one trial.
//!
//! ```text
//! RUN/search.toml          the search with every default; another one is refused
//! RUN/importance/          as of `hybra importance`
//! RUN/probes/*.json        divergence of the shapes that differ on one axis
//! RUN/trials/<id>/         student/, run/ (as of `hybra train`), trial.json at the end
//! RUN/final/<arm>-<seed>/  the same, of the winner and its controls
//! ```
//! Whatever has its JSON file is done: a search that was interrupted takes it from there, times
//! included, and training goes on from its last checkpoint.

use super::config::{Arm, SearchConfig, SelectConfig};
use crate::calibration;
use crate::cpu::{Arithmetic, CpuArgs, LoadOptions};
use crate::lineage;
use crate::picture::Point;
use crate::prune::{kept_files, write_student};
use crate::source::{self, Source};
use crate::train::{Launch, Measure, View, weighted};
use anyhow::{Context, Result, bail};
use hybra_compress::compensate::Compensation;
use hybra_compress::prune::Teacher;
use hybra_compress::scores::{Method, scores};
use hybra_compress::select::{Channels, select};
use hybra_compress::store::Importance;
use hybra_compress::{PrunePlan, Target};
use hybra_model::config::{Config, TorchDtype};
use hybra_model::parameters::Layout;
use hybra_model::training::PackedBatch;
use hybra_train::distil::{Weighted, divergence};
use hybra_train::{LocalComm, Outcome, RunConfig, Start, checkpoint_store};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use toml::{Table, Value};

/// What is known of a trained student.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) kl: f64,
    /// Before training; none for random weights and the teacher.
    pub(crate) kl_pruned: Option<f64>,
    pub(crate) kl_by_class: BTreeMap<String, f64>,
    pub(crate) points: Vec<Point>,
    pub(crate) tokens_per_second: f64,
    pub(crate) plan: Option<String>,
}

impl Measured {
    /// Mean over tasks and budgets.
    pub(crate) fn accuracy(&self) -> f64 {
        self.points.iter().map(Point::share).sum::<f64>() / self.points.len().max(1) as f64
    }
}

/// How a student is made and trained.
pub(crate) struct Job<'a> {
    pub(crate) dir: PathBuf,
    pub(crate) arm: Arm,
    pub(crate) target: &'a Target,
    pub(crate) steps: u64,
    pub(crate) seed: u64,
    pub(crate) examples: Option<u64>,
}

/// Everything that trials share.
pub(crate) struct Study<'a> {
    pub(crate) config: &'a SearchConfig,
    pub(crate) dir: &'a Path,
    pub(crate) source: &'a Source,
    pub(crate) teacher: Teacher<'a>,
    /// Hashes of the teacher's weights and of those it descends from.
    pub(crate) ancestors: Vec<String>,
    pub(crate) importance: Importance,
    pub(crate) cpu: &'a CpuArgs,
    pub(crate) stop: &'a AtomicBool,
    /// The teacher's weights, and held-out documents to compare on.
    weighted: Weighted,
    packs: Vec<PackedBatch>,
}

/// The search was told to stop.
#[derive(Debug)]
pub(crate) struct Stopped;

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stopped; the same command goes on")
    }
}

impl std::error::Error for Stopped {}

impl<'a> Study<'a> {
    pub(crate) fn new(
        config: &'a SearchConfig,
        dir: &'a Path,
        source: &'a Source,
        importance: Importance,
        cpu: &'a CpuArgs,
        stop: &'a AtomicBool,
    ) -> Result<Self> {
        let teacher = Teacher::new(&source.checkpoint)?;
        // Other samples than those that importance was measured on.
        let held_out =
            calibration::of_table(&data(config)?, config.importance.held_out, config.seed + 1)?;
        let packs = held_out.packs(source, &teacher.config)?;
        let (ancestors, weighted) = (lineage::ancestry(&source.checkpoint)?, weighted(source)?);
        Ok(Self { config, dir, source, teacher, ancestors, importance, cpu, stop, weighted, packs })
    }

    /// The plan of a shape by these scores.
    pub(crate) fn plan(
        &self,
        target: &Target,
        method: Method,
        channels: Channels,
    ) -> Result<PrunePlan> {
        let scores = scores(method, &self.teacher, Some(&self.importance.moments))?;
        let mut plan = select(&self.teacher.config, target, &scores, channels)?;
        plan.teacher = Some(self.ancestors[0].clone());
        plan.method = format!("{method}, channels {channels}");
        Ok(plan)
    }

    /// Cuts a student and gives its divergence before any training.
    pub(crate) fn cut(&self, plan: &PrunePlan, select: SelectConfig, out: &Path) -> Result<f64> {
        let fix = Compensation {
            moments: &self.importance.moments,
            norms: select.norms,
            ridge: (select.ridge > 0.0).then_some(select.ridge),
        };
        let fix = (select.norms || select.ridge > 0.0).then_some(&fix);
        write_student(self.source, &self.teacher, &self.ancestors, plan, fix, out)?;
        self.divergence(out).map(|found| found.0)
    }

    /// Divergence of the model in a directory, and by class.
    fn divergence(&self, model: &Path) -> Result<(f64, BTreeMap<String, f64>)> {
        let student = weighted(&source::resolve(Some(&model.to_string_lossy()))?)?;
        let found = divergence(&self.cpu.cpu()?, &self.weighted, &student, &self.packs);
        let by_class = found.by_class.iter().map(|&(name, kl)| (name.to_owned(), kl)).collect();
        Ok((found.kl, by_class))
    }

    /// Makes, trains and measures a student, or takes what was measured before.
    pub(crate) fn run(&self, job: &Job) -> Result<Measured> {
        let file = job.dir.join("trial.json");
        if let Some(measured) = read_json(&file)? {
            return Ok(measured);
        }
        let student = job.dir.join("student");
        let cut: Option<Cut> = read_json(&job.dir.join("cut.json"))?;
        let cut = match cut {
            Some(cut) => cut,
            None => {
                std::fs::create_dir_all(&job.dir)?;
                let cut = self.make(job, &student)?;
                write_json(&job.dir.join("cut.json"), &cut)?;
                cut
            }
        };
        let run = job.dir.join("run");
        let model = self.train(job, &student, &run)?;
        let measured = self.measure(&model, job.examples, cut)?;
        write_json(&file, &measured)?;
        // As an interrupted search would read it.
        let measured = read_json(&file)?.context("trial.json is gone")?;
        // Checkpoints of a finished trial have served.
        std::fs::remove_dir_all(run.join("checkpoints")).ok();
        Ok(measured)
    }

    fn make(&self, job: &Job, student: &Path) -> Result<Cut> {
        let select = self.config.select;
        let method = match job.arm {
            Arm::Found => select.scores,
            Arm::Random => Method::Random(job.seed),
            Arm::Scratch => {
                let config = job.target.config(&self.teacher.config)?;
                let layout = Layout::new(&config);
                let mut files = vec![("config.json".to_owned(), config.to_json().into_bytes())];
                for (name, text) in kept_files(self.source)? {
                    files.push((name.to_owned(), text.into_bytes()));
                }
                let values = layout.random(&config, job.seed);
                checkpoint_store::write_model(student, &layout, &values, &files, true)?;
                return Ok(Cut { kl: None, plan: None });
            }
        };
        let select = match job.arm {
            Arm::Random => SelectConfig { norms: false, ridge: 0.0, ..select },
            _ => select,
        };
        let plan = self.plan(job.target, method, select.channels)?;
        let kl = self.cut(&plan, select, student)?;
        Ok(Cut { kl: Some(kl), plan: Some(plan.hash()) })
    }

    fn train(&self, job: &Job, student: &Path, run: &Path) -> Result<PathBuf> {
        let mut table = self.config.train.clone();
        let mut model = Table::new();
        model.insert("from".to_owned(), path_value(student));
        let mut distil = match table.remove("distil") {
            Some(Value::Table(distil)) => distil,
            _ => Table::new(),
        };
        distil.insert("teacher".to_owned(), path_value(self.source.checkpoint.path()));
        let steps = i64::try_from(job.steps).context("steps")?;
        table.insert("steps".to_owned(), Value::Integer(steps));
        table.insert("seed".to_owned(), Value::Integer(job.seed as i64));
        table.insert("model".to_owned(), Value::Table(model));
        table.insert("distil".to_owned(), Value::Table(distil));
        if let Some(Value::Table(data)) = table.get_mut("data") {
            data.insert("seed".to_owned(), Value::Integer(job.seed as i64));
        }
        let config = RunConfig::parse(&toml::to_string(&table)?, Path::new("[train]"), &[])?;
        let comm = LocalComm::single();
        let launch = Launch {
            config: &config,
            stage: "distil",
            dir: run,
            start: Start::Auto,
            cpu: self.cpu,
            comm: &comm,
        };
        match launch.launch(&mut View::new(false), self.stop)? {
            Outcome::Done(model) => Ok(model),
            Outcome::Stopped(_) => bail!(Stopped),
        }
    }

    fn measure(&self, model: &Path, examples: Option<u64>, cut: Cut) -> Result<Measured> {
        let (kl, kl_by_class) = self.divergence(model)?;
        let (points, tokens_per_second) = self.answers(model, examples)?;
        let Cut { kl: kl_pruned, plan } = cut;
        Ok(Measured { kl, kl_pruned, kl_by_class, points, tokens_per_second, plan })
    }

    /// Accuracy at every budget, and tokens per second of all answers: of bf16 weights in the
    /// arithmetic that serves, since that is what the budget of memory buys.
    fn answers(&self, model: &Path, examples: Option<u64>) -> Result<(Vec<Point>, f64)> {
        let source = source::resolve(Some(&model.to_string_lossy()))?;
        let Weighted { model, parameters } = weighted(&source)?;
        let config = Config { dtype: TorchDtype::Bfloat16, ..model.config().clone() };
        let mut files = vec![("config.json".to_owned(), config.to_json().into_bytes())];
        for (name, text) in kept_files(&source)? {
            files.push((name.to_owned(), text.into_bytes()));
        }
        let folder = tempfile::tempdir_in(self.dir)?;
        let served = folder.path().join("model");
        checkpoint_store::write_served(&served, model.layout(), &parameters, &files)?;
        let load = LoadOptions::on_cpu(Arithmetic::Fast);
        let mut settings = self.config.eval.clone();
        if let Some(count) = examples {
            settings.insert("count".to_owned(), Value::Integer(count as i64));
        }
        let rows = Measure::new(&settings).context("[eval]")?.rows(&served, self.cpu, load)?;
        let tokens: f64 = rows.iter().map(|row| row.tokens_per_second * row.seconds).sum();
        let seconds: f64 = rows.iter().map(|row| row.seconds).sum();
        Ok((rows.iter().map(Point::of).collect(), tokens / seconds.max(1e-9)))
    }

    /// What the teacher itself answers.
    pub(crate) fn of_teacher(&self, examples: Option<u64>) -> Result<Measured> {
        let file = self.dir.join("teacher.json");
        if let Some(measured) = read_json(&file)? {
            return Ok(measured);
        }
        let (points, tokens_per_second) = self.answers(self.source.checkpoint.path(), examples)?;
        let (kl, kl_pruned, kl_by_class, plan) = (0.0, None, BTreeMap::new(), None);
        let measured = Measured { kl, kl_pruned, kl_by_class, points, tokens_per_second, plan };
        write_json(&file, &measured)?;
        read_json(&file)?.context("teacher.json is gone")
    }
}

/// What pruning alone gave.
#[derive(Serialize, Deserialize)]
struct Cut {
    kl: Option<f64>,
    plan: Option<String>,
}

/// `[train.data]`.
pub(crate) fn data(config: &SearchConfig) -> Result<Table> {
    match config.train.get("data") {
        Some(Value::Table(data)) => Ok(data.clone()),
        _ => bail!("[train.data]: expected the sources of the training data, found none"),
    }
}

fn path_value(path: &Path) -> Value {
    Value::String(path.to_string_lossy().into_owned())
}

/// The value in a file; `None` where there is no file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let value = serde_json::from_str(&text);
            Ok(Some(value.with_context(|| path.display().to_string())?))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Writes a value whole or not at all.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    hybra_train::report::write(path, &text).with_context(|| path.display().to_string())
}
