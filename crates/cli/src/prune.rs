//! `hybra prune`: a student cut from a teacher, by a plan or by a shape and importance; or several
//! students in one checkpoint.

mod nested;
mod shape;

use crate::progress::Progress;
use crate::source::{self, Source};
use crate::{lineage, size};
use anyhow::{Result, bail};
use clap::ValueEnum;
use hybra_checkpoint::SafetensorsOptions;
use hybra_compress::PrunePlan;
use hybra_compress::compensate::{Compensation, Repair};
use hybra_compress::prune::Teacher;
use hybra_compress::store::Importance;
use hybra_model::Config;
use hybra_model::memory::ParameterCount;
use serde_json::json;
use shape::ShapeArgs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Cut a student from a teacher
///
/// STUDENT is a Hugging Face directory with the kept rows and columns, tensor by tensor, and with
/// plan.json: which layers, heads, channels and units stay. A plan is made from importance for the
/// shape that is asked for, or read from a file, which may be edited by hand.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hybra prune teacher student --importance imp --num-layers 14 --hidden-size 112
  hybra prune teacher student --importance imp --mamba-head-dim 24 --channels shared --scores act-l2
  hybra prune teacher --importance imp --intermediate-size 384 --plan-only > plan.json
  hybra prune teacher student --plan plan.json
  hybra prune teacher nested --importance imp --nested sizes.toml    [small] hidden_size = 112 …
  hybra chat nested --size small

Widths that are not given stay. Next: `hybra train distil` brings the quality back.")]
pub(crate) struct Args {
    /// The teacher, a Hugging Face directory
    #[arg(value_name = "TEACHER")]
    teacher: String,
    /// The directory to write
    #[arg(value_name = "STUDENT", required_unless_present = "plan_only")]
    student: Option<PathBuf>,
    /// Apply this plan
    #[arg(long, value_name = "PLAN.json")]
    #[arg(conflicts_with_all = ["Widths", "scores", "score_seed", "channels"])]
    plan: Option<PathBuf>,
    /// What `hybra importance` measured on the teacher
    #[arg(long, value_name = "IMP")]
    importance: Option<PathBuf>,
    #[command(flatten)]
    shape: ShapeArgs,
    /// What is repaired in closed form [default: all that IMP has the sums for; nothing without IMP]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WHAT")]
    compensate: Option<Vec<RepairArg>>,
    /// λ of the least squares, relative to the mean diagonal of the Gram matrix
    #[arg(long, default_value_t = 1e-3)]
    ridge: f64,
    /// Print the plan and write nothing
    #[arg(long, conflicts_with = "student")]
    plan_only: bool,
    /// Write one checkpoint that holds a student for each table of this file: what is worth most lies
    /// first, and --size NAME takes the student out when the model is loaded
    #[arg(long, value_name = "SIZES.toml", requires = "student")]
    #[arg(conflicts_with_all = ["plan", "plan_only", "Widths", "channels"])]
    nested: Option<PathBuf>,
    /// Replace STUDENT if it exists
    #[arg(long)]
    force: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What is repaired.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RepairArg {
    /// Rescale norms over fewer channels
    Norms,
    /// Least squares on matrices that read fewer channels
    Consumers,
    /// Nothing
    None,
}

const KEPT_FILES: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"];

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let source = source::resolve(Some(&args.teacher))?;
    let teacher = Teacher::new(&source.checkpoint)?;
    let ancestors = lineage::ancestry(&source.checkpoint)?;
    let hash = &ancestors[0];
    let importance = match &args.importance {
        Some(path) => Some(Importance::read(path, &teacher.config, hash)?),
        None => None,
    };
    if let (Some(sizes), Some(out)) = (&args.nested, &args.student) {
        refuse_existing(out, args.force)?;
        let parts = nested::Parts {
            source: &source,
            teacher: &teacher,
            ancestors: &ancestors,
            importance: importance.as_ref(),
            scores: args.shape.scores(&teacher, importance.as_ref())?,
            fix: nested::repair(&args, importance.as_ref())?,
        };
        nested::write(&parts, sizes, out, args.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let plan = match &args.plan {
        Some(path) => PrunePlan::read(path)?,
        None => args.shape.plan(&teacher, hash, importance.as_ref())?,
    };
    plan.check_teacher(hash)?;
    let Some(out) = &args.student else {
        plan.student(&teacher.config)?;
        print!("{}", plan.to_json());
        return Ok(ExitCode::SUCCESS);
    };
    refuse_existing(out, args.force)?;
    let fix = compensation(&args, importance.as_ref())?;
    let student = write_student(&source, &teacher, &ancestors, &plan, fix.as_ref(), out)?;
    report(&args, &teacher.config, &student, &repaired(fix.as_ref()));
    Ok(ExitCode::SUCCESS)
}

fn refuse_existing(out: &Path, force: bool) -> Result<()> {
    if !force && out.exists() {
        bail!("{}: already exists; --force replaces it", out.display());
    }
    Ok(())
}

/// Writes the student of a plan for the teacher with this ancestry, in place of what is at `out`; gives
/// its configuration.
pub(crate) fn write_student(
    source: &Source,
    teacher: &Teacher,
    ancestors: &[String],
    plan: &PrunePlan,
    fix: Option<&Compensation>,
    out: &Path,
) -> Result<Config> {
    let student = plan.student(&teacher.config)?;
    let repaired = repaired(fix);
    let metrics = json!({ "plan": plan.hash(), "method": plan.method, "repaired": repaired });
    let mut files = kept_files(source)?;
    files.push(("plan.json", plan.to_json()));
    files.push(("lineage.json", lineage::text(ancestors, "prune", metrics)));
    write_cut(teacher, plan, fix.map(|fix| fix as &dyn Repair), files, out)?;
    Ok(student)
}

/// Files that a student takes over from its teacher as they are.
pub(crate) fn kept_files(source: &Source) -> Result<Vec<(&'static str, String)>> {
    let mut files = Vec::new();
    for name in KEPT_FILES {
        files.extend(source.checkpoint.read_text(name)?.map(|text| (name, text)));
    }
    Ok(files)
}

/// Writes the student of a plan with these files beside it and its configuration.
pub(crate) fn write_cut(
    teacher: &Teacher,
    plan: &PrunePlan,
    repair: Option<&dyn Repair>,
    mut files: Vec<(&'static str, String)>,
    out: &Path,
) -> Result<()> {
    files.push(("config.json", plan.student(&teacher.config)?.to_json()));
    let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
    let options = SafetensorsOptions { overwrite: true, ..Default::default() };
    let mut bar: Option<Progress> = None;
    let mut progress = |done, total| {
        bar.get_or_insert_with(|| Progress::bytes("writing", total)).set(done);
    };
    Ok(teacher.prune(plan, repair, out, &files, &options, &mut progress)?)
}

fn compensation<'a>(
    args: &Args,
    importance: Option<&'a Importance>,
) -> Result<Option<Compensation<'a>>> {
    let Some(importance) = importance else {
        return match args.compensate.as_deref() {
            None | Some([RepairArg::None]) => Ok(None),
            Some(_) => bail!("--compensate needs the sums of --importance IMP"),
        };
    };
    let (moments, gram) = (&importance.moments, importance.summary.gram);
    let (norms, consumers) = match args.compensate.as_deref() {
        None => (true, gram),
        Some(what) => (what.contains(&RepairArg::Norms), what.contains(&RepairArg::Consumers)),
    };
    if consumers && !gram {
        bail!(
            "--compensate consumers: IMP has no Gram matrices; `hybra importance --gram` keeps them"
        );
    }
    if !(args.ridge > 0.0 && args.ridge.is_finite()) {
        bail!("--ridge: expected a positive number, found {}", args.ridge);
    }
    let ridge = consumers.then_some(args.ridge);
    Ok((norms || consumers).then_some(Compensation { moments, norms, ridge }))
}

fn repaired(compensation: Option<&Compensation>) -> Vec<&'static str> {
    let norms = compensation.is_some_and(|fix| fix.norms).then_some("norms");
    let consumers = compensation.is_some_and(|fix| fix.ridge.is_some()).then_some("consumers");
    norms.into_iter().chain(consumers).collect()
}

fn report(args: &Args, teacher: &Config, student: &Config, repaired: &[&str]) {
    let count = |config: &Config| ParameterCount::of(config).total;
    let (before, after) = (count(teacher), count(student));
    let path = args.student.as_ref().map(|path| path.display().to_string());
    if args.json {
        let object = json!({
            "student": path,
            "parameters": after,
            "teacher_parameters": before,
            "layers": student.layers.len(),
            "pattern": student.pattern(),
            "hidden_size": student.hidden_size,
            "repaired": repaired,
        });
        println!("{object:#}");
        return;
    }
    let share = 100.0 * after as f64 / before as f64;
    println!("{}", path.unwrap_or_default());
    println!("  parameters  {} of {} ({share:.1} %)", size::count(after), size::count(before));
    println!(
        "  layers      {} of {}: {}",
        student.layers.len(),
        teacher.layers.len(),
        student.pattern()
    );
    println!("  hidden      {} of {}", student.hidden_size, teacher.hidden_size);
    let repaired = if repaired.is_empty() { "nothing".to_owned() } else { repaired.join(", ") };
    println!("  repaired    {repaired}");
}
