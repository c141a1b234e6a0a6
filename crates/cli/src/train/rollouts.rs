//! Stages that learn from the model's own answers: their data, and pairs and traces mined from them.

use super::objective::chat_model;
use crate::cpu::{Arithmetic, CpuArgs, LoadOptions};
use crate::progress::Progress;
use crate::source::{self, load_model, load_tokenizer};
use anyhow::{Context, Result, bail};
use hybra_chat::ChatModel;
use hybra_eval::Example;
use hybra_kernels::{Cpu, Isa};
use hybra_train::grpo::{GrpoBatches, Judge, JudgeConfig};
use hybra_train::on_policy::OnPolicyBatches;
use hybra_train::rollout::{Prompt, PromptConfig, Prompts, Roller, Rollout};
use hybra_train::{Batches, LocalComm, ModelFiles, Policy, RunConfig};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::sync::Arc;

/// Prompts of the run, and the engine that answers them.
fn parts(run: &RunConfig, model: &ModelFiles, cpu: &CpuArgs) -> Result<(Prompts, Roller)> {
    let rollout = run.rollout.clone().unwrap_or_default();
    let data: PromptConfig = run.data.clone().try_into().context("[data]")?;
    let prompts = Prompts::open(&data, &rollout).context("[data]")?;
    let machine = (Isa::from_env()?, cpu.threads());
    let sampling = (rollout.temperature, rollout.max_tokens);
    let roller = Roller::new(chat_model(model)?, model.config.clone(), machine, sampling);
    Ok((prompts, roller))
}

/// The data of `grpo`.
pub(super) fn grpo(run: &RunConfig, model: &ModelFiles, cpu: &CpuArgs) -> Result<Box<dyn Batches>> {
    let (prompts, roller) = parts(run, model, cpu)?;
    if prompts.rollout().group < 2 {
        bail!("rollout.group: expected at least 2 answers to compare, found 1");
    }
    let config = run.grpo.clone().unwrap_or_default();
    if config.reward.right > 0.0 {
        answers_known(
            &prompts,
            "grpo.reward.right must be 0, and a judge ([grpo.judge]) say what is better",
        )?;
    }
    let judge = config.judge.clone().map(|judge| open_judge(judge, cpu)).transpose();
    let judge = judge.context("[grpo.judge]: model")?;
    let batches = GrpoBatches::new(prompts, roller, config);
    Ok(Box::new(match judge {
        Some(judge) => batches.with_judge(judge),
        None => batches,
    }))
}

/// An error where nothing can be told right, with what to do then.
fn answers_known(prompts: &Prompts, advice: &str) -> Result<()> {
    match prompts.without_answer() {
        Some(path) => bail!(
            "{}: conversations end before the answer, so none can be told right: {advice}",
            path.display()
        ),
        None => Ok(()),
    }
}

/// The generative reward model of a run, with a text side and an engine of its own.
fn open_judge(config: JudgeConfig, cpu: &CpuArgs) -> Result<Judge> {
    let source = source::resolve(Some(&config.model.to_string_lossy()))?;
    let machine = (Isa::from_env()?, cpu.threads());
    let options = LoadOptions::on_cpu(Arithmetic::Fast);
    let model = load_model(&source, &Cpu::new(machine.0, machine.1), options)?;
    let text = load_tokenizer(&source, model.config())?;
    let chat =
        ChatModel::new(source.name.clone(), text.tokenizer, text.eos_token_ids, text.defaults)?;
    let greedy = (0.0, config.max_tokens);
    let roller = Roller::new(chat, model.config().clone(), machine, greedy);
    Ok(Judge::new(Arc::new(model), roller, config, source.checkpoint.hash()))
}

/// The data of `distil` on the student's own samples.
pub(super) fn on_policy(
    run: &RunConfig,
    model: &ModelFiles,
    cpu: &CpuArgs,
) -> Result<Box<dyn Batches>> {
    let (prompts, roller) = parts(run, model, cpu)?;
    Ok(Box::new(OnPolicyBatches::new(prompts, roller)))
}

/// The rejected answer of a pair.
#[derive(Clone, Copy, Default, clap::ValueEnum)]
pub(crate) enum Rejected {
    /// The first that is wrong
    #[default]
    Wrong,
    /// The first that holds a number which stands in no turn before it
    Invented,
}

/// What is kept of a prompt's answers.
#[derive(Clone, Copy)]
pub(super) enum Keep {
    /// A right one and one that is not, for `dpo`.
    Pair(Rejected),
    /// The shortest right one, for `sft`.
    Best,
}

impl Keep {
    /// What the lines are, for people.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Pair(_) => "pairs",
            Self::Best => "traces",
        }
    }

    /// What a prompt lacked that gave no line.
    pub(super) fn wants(self) -> &'static str {
        match self {
            Self::Pair(Rejected::Wrong) => "no group had a right and a wrong answer",
            Self::Pair(Rejected::Invented) => "no group had a right and an invented answer",
            Self::Best => "no answer was right",
        }
    }
}

/// Lines mined from the model's own answers: `count` of them, or as many as `most` prompts give.
pub(super) fn mine(
    run: &RunConfig,
    (model, parameters): (&ModelFiles, &[f32]),
    cpu: &CpuArgs,
    keep: Keep,
    (count, most): (usize, u64),
) -> Result<Vec<Value>> {
    let (prompts, roller) = parts(run, model, cpu)?;
    answers_known(&prompts, "add them, each the last message")?;
    let comm = LocalComm::single();
    let policy = Policy { parameters, comm: &comm };
    let (mut lines, mut next) = (Vec::new(), 0);
    let mut bar = Progress::pieces("lines", count as u64);
    while lines.len() < count && next < most {
        let round = (prompts.rollout().prompts as u64).min(most - next);
        let asked: Vec<_> = (next..next + round).map(|index| prompts.prompt(index)).collect();
        next += round;
        let asks: Vec<_> = asked.iter().flat_map(|prompt| prompt.asks.clone()).collect();
        let rollouts = roller.roll(&policy, &asks).map_err(anyhow::Error::from_boxed)?;
        let mut rollouts = rollouts.into_iter();
        for prompt in &asked {
            let own: Vec<Rollout> = rollouts.by_ref().take(prompt.asks.len()).collect();
            lines.extend(kept(prompt, &own, keep));
        }
        bar.set(lines.len().min(count) as u64);
    }
    lines.truncate(count);
    Ok(lines)
}

fn kept(prompt: &Prompt, own: &[Rollout], keep: Keep) -> Option<Value> {
    // An answer behind an inserted tag, or cut off, is not the model's own.
    let whole = |r: &&Rollout| r.finished && r.tokens.iter().all(|token| token.sampled);
    let whole = own.iter().filter(whole).filter(|r| is_message(r));
    let is_right = |r: &&Rollout| prompt.example.verify_turn(prompt.turn, &r.answer, &r.calls());
    let (right, wrong): (Vec<&Rollout>, Vec<&Rollout>) = whole.partition(is_right);
    match keep {
        Keep::Pair(kind) => {
            let mut wrong = wrong.into_iter();
            let rejected = match kind {
                Rejected::Wrong => wrong.next(),
                Rejected::Invented => {
                    wrong.find(|r| prompt.example.invents(prompt.turn, &r.answer, &r.calls()))
                }
            };
            let mut line = line(&prompt.example, prompt.turn);
            line["chosen"] = json!([message(right.first()?)]);
            line["rejected"] = json!([message(rejected?)]);
            Some(line)
        }
        Keep::Best => {
            let best = right.into_iter().min_by_key(|r| r.tokens.len())?;
            let mut line = line(&prompt.example, prompt.turn);
            let mut messages = line["prompt"].take().as_array().cloned().unwrap_or_default();
            // What stood before is not the model's own.
            let given = messages.iter_mut().filter(|message| message["role"] == "assistant");
            given.for_each(|message| message["weight"] = 0.into());
            messages.push(message(best));
            line["messages"] = messages.into();
            if let Some(fields) = line.as_object_mut() {
                fields.remove("prompt");
            }
            Some(line)
        }
    }
}

/// Whether an answer can be read back as a message: it says or calls something, its thinking ends
/// once and where thinking ends, its calls are calls.
fn is_message(rollout: &Rollout) -> bool {
    let Rollout { answer, calls, .. } = rollout;
    let is_object = |text: &str| serde_json::from_str::<Map<String, Value>>(text).is_ok();
    let is_tagged = ["<think>", "</think>"].iter().any(|tag| answer.contains(tag));
    let says = !answer.trim().is_empty() || !calls.is_empty();
    says && !is_tagged && rollout.well_formed && calls.iter().all(|(_, text)| is_object(text))
}

/// The prompt of a turn.
fn line(example: &Example, turn: usize) -> Value {
    let messages = example.to_json()["messages"].as_array().map(|all| all[..turn].to_vec());
    let mut line = json!({ "prompt": messages.unwrap_or_default() });
    if !example.tools.is_empty() {
        line["tools"] = json!(example.tools);
    }
    line
}

fn message(rollout: &Rollout) -> Value {
    let call = |(name, arguments): &(String, String)| json!({ "type": "function", "function": { "name": name, "arguments": arguments } });
    let mut message = json!({ "role": "assistant", "content": rollout.answer.trim() });
    if !rollout.reasoning.trim().is_empty() {
        message["reasoning_content"] = json!(rollout.reasoning.trim());
    }
    if !rollout.calls.is_empty() {
        message["tool_calls"] = rollout.calls.iter().map(call).collect();
    }
    message
}

/// Writes lines whole or not at all.
pub(super) fn write(path: &Path, lines: &[Value]) -> Result<()> {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    hybra_train::report::write(path, &text).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_dpo_would_refuse_are_not_mined() {
        let rollout = |answer: &str, arguments: Option<&str>, well_formed| Rollout {
            prompt: Vec::new(),
            tokens: Vec::new(),
            reasoning: String::new(),
            answer: answer.to_owned(),
            calls: arguments.map(|text| ("get".to_owned(), text.to_owned())).into_iter().collect(),
            thinking_tokens: 0,
            finished: true,
            well_formed,
        };
        for (answer, arguments, well_formed, fits) in [
            ("It is 7.", None, true, true),
            ("", Some("{\"id\": 7}"), true, true),
            ("", None, true, false),
            (" \n", None, true, false),
            ("It is 7.", None, false, false),
            ("", Some("{\"id\": 7"), true, false),
            ("", Some("[7]"), true, false),
            ("<TOOLCALL>[\n</think>\n7", None, true, false),
        ] {
            assert_eq!(is_message(&rollout(answer, arguments, well_formed)), fits, "{answer}");
        }
    }
}
