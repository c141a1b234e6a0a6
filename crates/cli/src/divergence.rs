//! `hybra divergence`: how far a student's next-token distributions are from its teacher's.

use crate::calibration::CalibrationArgs;
use crate::cpu::CpuArgs;
use crate::source;
use crate::train::weighted;
use anyhow::{Result, bail};
use hybra_train::distil::divergence;
use serde_json::json;
use std::process::ExitCode;

/// Measure how far a student is from its teacher: KL per token, by what the token is
///
/// Forward KL in nats over documents that both read, in f32: what pruning costs before anything is
/// trained, and what distillation leaves. Both must have the same vocabulary.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hybra divergence teacher student --task chainbox
  hybra divergence teacher student --config run.toml --seed 1 --json")]
pub(crate) struct Args {
    /// The teacher
    #[arg(value_name = "TEACHER")]
    teacher: String,
    /// The student
    #[arg(value_name = "STUDENT")]
    student: String,
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cpu: CpuArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let cpu = args.cpu.cpu()?;
    let source = source::resolve(Some(&args.teacher))?;
    let teacher = weighted(&source)?;
    let student = weighted(&source::resolve(Some(&args.student))?)?;
    let [of, own] = [&teacher, &student].map(|side| side.model.config().vocab_size);
    if of != own {
        bail!("the teacher's vocabulary has {of} entries, the student's {own}");
    }
    let calibration = args.calibration.calibration()?;
    let packs = calibration.packs(&source, teacher.model.config())?;
    let data = calibration.describe();
    let found = divergence(&cpu, &teacher, &student, &packs);
    if args.json {
        let classes: serde_json::Map<_, _> =
            found.by_class.iter().map(|&(name, kl)| (name.to_owned(), json!(kl))).collect();
        let object =
            json!({ "kl": found.kl, "by_class": classes, "tokens": found.tokens, "data": data });
        println!("{object:#}");
        return Ok(ExitCode::SUCCESS);
    }
    println!("KL {:.5} nats per token over {} tokens ({data})", found.kl, found.tokens);
    for (name, kl) in &found.by_class {
        println!("  {name:<9} {kl:.5}");
    }
    Ok(ExitCode::SUCCESS)
}
