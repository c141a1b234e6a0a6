//! `hybra prune`: a student cut from a teacher, by a plan or by a shape and importance.

use crate::progress::Progress;
use crate::source::{self, Source};
use crate::{lineage, size};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use hybra_checkpoint::SafetensorsOptions;
use hybra_compress::compensate::Compensation;
use hybra_compress::depth::kept_layers;
use hybra_compress::prune::Teacher;
use hybra_compress::scores::{Method, scores};
use hybra_compress::select::{Channels, select};
use hybra_compress::store::Importance;
use hybra_compress::{PrunePlan, Target};
use hybra_model::Config;
use hybra_model::memory::ParameterCount;
use serde_json::json;
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

Widths that are not given stay. Next: `hybra train distil` brings the quality back.")]
pub(crate) struct Args {
    /// The teacher, a Hugging Face directory
    #[arg(value_name = "TEACHER")]
    teacher: String,
    /// The directory to write
    #[arg(value_name = "STUDENT", required_unless_present = "plan_only")]
    student: Option<PathBuf>,
    /// Apply this plan
    #[arg(long, value_name = "PLAN.json", conflicts_with = "ShapeArgs")]
    plan: Option<PathBuf>,
    /// What `hybra importance` measured on the teacher
    #[arg(long, value_name = "IMP")]
    importance: Option<PathBuf>,
    #[command(flatten)]
    shape: ShapeArgs,
    /// What is repaired in closed form [default: all that IMP has the sums for; nothing without IMP]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WHAT")]
    compensate: Option<Vec<Repair>>,
    /// λ of the least squares, relative to the mean diagonal of the Gram matrix
    #[arg(long, default_value_t = 1e-3)]
    ridge: f64,
    /// Print the plan and write nothing
    #[arg(long, conflicts_with = "student")]
    plan_only: bool,
    /// Replace STUDENT if it exists
    #[arg(long)]
    force: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The shape of the student, and how its channels are chosen.
#[derive(clap::Args)]
#[group(multiple = true)]
#[command(next_help_heading = "Shape")]
pub(crate) struct ShapeArgs {
    /// Layers that stay; the others go in the order of IMP
    #[arg(long, value_name = "N", conflicts_with = "layers")]
    num_layers: Option<usize>,
    /// Attention layers that stay [default: as the order says]
    #[arg(long, value_name = "N", requires = "num_layers")]
    attention_layers: Option<usize>,
    /// The layers that stay, from 0: 0,1,3
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    layers: Option<Vec<usize>>,
    /// Embedding channels
    #[arg(long, value_name = "N")]
    hidden_size: Option<usize>,
    /// MLP units
    #[arg(long, value_name = "N")]
    intermediate_size: Option<usize>,
    /// Mamba heads, a multiple of the groups
    #[arg(long, value_name = "N")]
    mamba_num_heads: Option<usize>,
    /// Channels of a Mamba head
    #[arg(long, value_name = "N")]
    mamba_head_dim: Option<usize>,
    /// Query heads, a multiple of the kv heads
    #[arg(long, value_name = "N")]
    num_attention_heads: Option<usize>,
    /// What channels are worth [default: energy; random without IMP]
    #[arg(long, value_enum)]
    scores: Option<ScoresArg>,
    /// Of random scores [default: 0]
    #[arg(long)]
    score_seed: Option<u64>,
    /// Whether every Mamba head keeps its own channels [default: per-head]
    #[arg(long, value_enum)]
    channels: Option<ChannelsArg>,
}

/// What channels are worth.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ScoresArg {
    /// Energy of the outputs that read the channel
    Energy,
    /// The published activation scores
    ActL2,
    /// The control
    Random,
}

/// Which channels of Mamba heads stay.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ChannelsArg {
    /// Every head its own
    PerHead,
    /// All heads the same
    Shared,
}

/// What is repaired.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Repair {
    /// Rescale norms over fewer channels
    Norms,
    /// Least squares on matrices that read fewer channels
    Consumers,
    /// Nothing
    None,
}

/// Files that a student takes over from its teacher as they are.
pub(crate) const KEPT_FILES: [&str; 4] =
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
    let plan = match &args.plan {
        Some(path) => PrunePlan::read(path)?,
        None => make_plan(&args.shape, &teacher, hash, importance.as_ref())?,
    };
    plan.check_teacher(hash)?;
    let Some(out) = &args.student else {
        plan.student(&teacher.config)?;
        print!("{}", plan.to_json());
        return Ok(ExitCode::SUCCESS);
    };
    if !args.force && out.exists() {
        bail!("{}: already exists; --force replaces it", out.display());
    }
    let fix = compensation(&args, importance.as_ref())?;
    let student = write_student(&source, &teacher, &ancestors, &plan, fix.as_ref(), out)?;
    report(&args, &teacher.config, &student, &repaired(fix.as_ref()));
    Ok(ExitCode::SUCCESS)
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
    let lineage = lineage::text(ancestors, "prune", metrics);
    let files = side_files(source, &student, plan, lineage)?;
    let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
    let options = SafetensorsOptions { overwrite: true, ..Default::default() };
    let mut bar: Option<Progress> = None;
    let mut progress = |done, total| {
        bar.get_or_insert_with(|| Progress::bytes("writing", total)).set(done);
    };
    teacher.prune(plan, fix, out, &files, &options, &mut progress)?;
    Ok(student)
}

/// The plan for the shape that the command line asks for.
fn make_plan(
    shape: &ShapeArgs,
    teacher: &Teacher,
    hash: &str,
    importance: Option<&Importance>,
) -> Result<PrunePlan> {
    let method = match (shape.scores, importance) {
        (Some(ScoresArg::Random), _) => Method::Random(shape.score_seed.unwrap_or(0)),
        (Some(ScoresArg::ActL2), _) => Method::ActL2,
        (Some(ScoresArg::Energy), _) | (None, Some(_)) => Method::Energy,
        (None, None) => bail!(
            "a shape needs --importance IMP (see `hybra importance`), or --scores random; \
             a finished plan is read with --plan"
        ),
    };
    let channels = match shape.channels {
        Some(ChannelsArg::Shared) => Channels::Shared,
        _ => Channels::PerHead,
    };
    let target = target(shape, &teacher.config, importance)?;
    let moments = importance.map(|importance| &importance.moments);
    let scores = scores(method, teacher, moments).context("--scores")?;
    let mut plan = select(&teacher.config, &target, &scores, channels)?;
    plan.teacher = Some(hash.to_owned());
    plan.method = format!("{method}, channels {channels}");
    Ok(plan)
}

fn target(shape: &ShapeArgs, teacher: &Config, importance: Option<&Importance>) -> Result<Target> {
    let full = Target::full(teacher);
    let layers = match (&shape.layers, shape.num_layers) {
        (Some(layers), _) => layers.clone(),
        (None, None) => full.layers,
        (None, Some(num_layers)) => {
            let Some(importance) = importance else {
                bail!("--num-layers needs the order of --importance IMP; or name --layers");
            };
            let order: Vec<usize> =
                importance.summary.removals.iter().map(|removal| removal.layer).collect();
            kept_layers(teacher, &order, num_layers, shape.attention_layers)?
        }
    };
    Ok(Target {
        layers,
        hidden_size: shape.hidden_size.unwrap_or(full.hidden_size),
        intermediate_size: shape.intermediate_size.unwrap_or(full.intermediate_size),
        mamba_num_heads: shape.mamba_num_heads.unwrap_or(full.mamba_num_heads),
        mamba_head_dim: shape.mamba_head_dim.unwrap_or(full.mamba_head_dim),
        num_attention_heads: shape.num_attention_heads.unwrap_or(full.num_attention_heads),
    })
}

fn compensation<'a>(
    args: &Args,
    importance: Option<&'a Importance>,
) -> Result<Option<Compensation<'a>>> {
    let Some(importance) = importance else {
        return match args.compensate.as_deref() {
            None | Some([Repair::None]) => Ok(None),
            Some(_) => bail!("--compensate needs the sums of --importance IMP"),
        };
    };
    let (moments, gram) = (&importance.moments, importance.summary.gram);
    let (norms, consumers) = match args.compensate.as_deref() {
        None => (true, gram),
        Some(what) => (what.contains(&Repair::Norms), what.contains(&Repair::Consumers)),
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

fn side_files(
    source: &Source,
    student: &Config,
    plan: &PrunePlan,
    lineage: String,
) -> Result<Vec<(&'static str, String)>> {
    let mut files = vec![
        ("config.json", student.to_json()),
        ("plan.json", plan.to_json()),
        ("lineage.json", lineage),
    ];
    for name in KEPT_FILES {
        files.extend(source.checkpoint.read_text(name)?.map(|text| (name, text)));
    }
    Ok(files)
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
