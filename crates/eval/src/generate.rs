//! Has a model answer examples at each budget, and counts.
//!
//! Every assistant's turn of an example is generated, behind the turns before it as they should
//! have been; the first wrong one ends the example. Examples run in batches, and the batch changes
//! no token (the engine's promise), so a row is a function of model, examples and options; only its
//! times are not.

use crate::budget::Budget;
use crate::error::EvalError;
use crate::example::Example;
use crate::report::{Accuracy, Rate, Row};
use crate::verify::Call;
use hybra_chat::{ChatInput, ChatModel, Reply};
use hybra_engine::{
    EndedBy, Engine, Event, FinishEvent, FinishReason, GenerationRequest, Grace, SamplingParams,
    SequenceId, TokenEvent, TokenTable,
};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Instant;

/// Sequences that are with the engine at the same time.
const IN_FLIGHT: usize = 64;

/// How to measure.
#[derive(Clone, Debug)]
pub struct EvalOptions {
    /// One row each.
    pub budgets: Vec<Budget>,
    /// The window after a budget.
    pub grace: Grace,
    /// 0 is greedy.
    pub temperature: f32,
    /// Key of sampling; each example has its own stream.
    pub seed: u64,
    /// Most tokens of a turn, thinking included.
    pub max_tokens: u32,
}

impl Default for EvalOptions {
    fn default() -> Self {
        let budgets = vec![Budget::Off, Budget::Unlimited];
        Self { budgets, grace: Grace::Default, temperature: 0.0, seed: 0, max_tokens: 512 }
    }
}

/// Measures `model` in `engine` on `examples`, which rows call `task`. `progress` is told whenever
/// an example is done. The engine must be idle.
///
/// # Errors
/// No example or budget; a conversation that the template refuses; a request that the engine
/// refuses or that fails. The engine is idle again.
pub fn evaluate(
    engine: &mut Engine,
    model: &ChatModel,
    task: &str,
    examples: &[Example],
    options: &EvalOptions,
    progress: &mut dyn FnMut(),
) -> Result<Vec<Row>, EvalError> {
    for (field, empty) in
        [("examples", examples.is_empty()), ("budgets", options.budgets.is_empty())]
    {
        if empty {
            return Err(EvalError::Nothing { field });
        }
    }
    let mut rows = Vec::new();
    let mut tokens = Vec::new();
    for &budget in &options.budgets {
        let started = Instant::now();
        let mut batch = Batch::new(model, examples, options, budget);
        if let Err(error) = batch.run(engine, progress) {
            batch.cancel(engine);
            return Err(error);
        }
        let seconds = started.elapsed().as_secs_f64();
        rows.push(row(task, budget, examples, &batch.outcomes, seconds));
        tokens.push(batch.outcomes.iter().map(Outcome::tokens).sum::<usize>());
    }
    let all = options.budgets.iter().position(|&budget| budget == Budget::Unlimited);
    for (row, &own) in rows.iter_mut().zip(&tokens) {
        row.saved_percent = all.map(|all| 100.0 * (1.0 - own as f64 / tokens[all].max(1) as f64));
    }
    Ok(rows)
}

fn row(
    task: &str,
    budget: Budget,
    examples: &[Example],
    outcomes: &[Outcome],
    seconds: f64,
) -> Row {
    let n = outcomes.len() as f64;
    let count = |holds: fn(&Outcome) -> bool| outcomes.iter().filter(|o| holds(o)).count();
    let sum = |part: fn(&Outcome) -> usize| outcomes.iter().map(part).sum::<usize>() as f64;
    let mut levels = BTreeMap::<u32, (usize, usize)>::new();
    for (example, outcome) in examples.iter().zip(outcomes) {
        let (correct, total) = levels.entry(example.difficulty).or_default();
        *correct += usize::from(outcome.correct);
        *total += 1;
    }
    let level = |(level, (correct, total))| (level, Accuracy::new(correct, total));
    Row {
        task: task.to_owned(),
        budget,
        accuracy: Accuracy::new(count(|o| o.correct), outcomes.len()),
        thinking_tokens: sum(|o| o.thinking) / n,
        answer_tokens: sum(|o| o.answer) / n,
        cut: count(|o| o.cut) as f64 / n,
        well_formed: count(|o| o.well_formed) as f64 / n,
        unfinished: count(|o| o.unfinished) as f64 / n,
        invented: invented(examples, outcomes),
        saved_percent: None,
        seconds,
        tokens_per_second: sum(Outcome::tokens) / seconds.max(1e-9),
        by_difficulty: levels.into_iter().map(level).collect(),
    }
}

/// Examples with an invented result among those with functions.
fn invented(examples: &[Example], outcomes: &[Outcome]) -> Option<Rate> {
    let pairs = examples.iter().zip(outcomes).filter(|(example, _)| !example.tools.is_empty());
    let found: Vec<bool> = pairs.map(|(_, outcome)| outcome.invented).collect();
    let count = found.iter().filter(|&&invented| invented).count();
    (!found.is_empty()).then(|| Rate::new(count, found.len()))
}

/// What came of an example; tokens are those of all its turns.
#[derive(Clone)]
struct Outcome {
    correct: bool,
    thinking: usize,
    answer: usize,
    /// Forced tokens and tags.
    other: usize,
    cut: bool,
    well_formed: bool,
    unfinished: bool,
    invented: bool,
}

impl Outcome {
    fn tokens(&self) -> usize {
        self.thinking + self.answer + self.other
    }
}

/// A turn that is being generated.
struct Turn {
    example: usize,
    /// Which of the example's assistant turns.
    number: usize,
    reply: Reply,
    /// All generated bytes, tags included.
    bytes: Vec<u8>,
}

/// All examples at one budget.
struct Batch<'a> {
    model: &'a ChatModel,
    examples: &'a [Example],
    options: &'a EvalOptions,
    budget: Budget,
    waiting: VecDeque<(usize, usize)>,
    running: HashMap<SequenceId, Turn>,
    outcomes: Vec<Outcome>,
}

impl<'a> Batch<'a> {
    fn new(
        model: &'a ChatModel,
        examples: &'a [Example],
        options: &'a EvalOptions,
        budget: Budget,
    ) -> Self {
        let blank = Outcome {
            correct: false,
            thinking: 0,
            answer: 0,
            other: 0,
            cut: false,
            well_formed: true,
            unfinished: false,
            invented: false,
        };
        Self {
            model,
            examples,
            options,
            budget,
            waiting: (0..examples.len()).map(|example| (example, 0)).collect(),
            running: HashMap::new(),
            outcomes: vec![blank; examples.len()],
        }
    }

    fn run(&mut self, engine: &mut Engine, progress: &mut dyn FnMut()) -> Result<(), EvalError> {
        let mut events = Vec::new();
        loop {
            while self.running.len() < IN_FLIGHT
                && let Some((example, number)) = self.waiting.pop_front()
            {
                let request = self.request(example, number)?;
                let id = engine.add(request);
                let id = id.map_err(|cause| EvalError::Request { index: example, cause })?;
                let (reply, bytes) = (Reply::new(&[], false), Vec::new());
                self.running.insert(id, Turn { example, number, reply, bytes });
            }
            if self.running.is_empty() {
                return Ok(());
            }
            engine.step(&mut events);
            for event in events.drain(..) {
                match event {
                    Event::Token(token) => self.token(&token),
                    Event::Finish(end) if self.finish(&end)? => progress(),
                    _ => {}
                }
            }
        }
    }

    /// The request for an assistant's turn, behind the turns before it.
    fn request(&self, index: usize, number: usize) -> Result<GenerationRequest, EvalError> {
        let example = &self.examples[index];
        let input = ChatInput {
            messages: example.messages[..example.assistant_turns()[number]].to_vec(),
            tools: example.tools.clone(),
            ..ChatInput::default()
        };
        let sampling = SamplingParams {
            temperature: self.options.temperature,
            // Streams of examples are apart by a multiple that no position reaches.
            seed: Some(self.options.seed.wrapping_add((index as u64) << 32)),
            max_tokens: Some(self.options.max_tokens),
            ..SamplingParams::default()
        };
        let thinking = self.budget.params(self.options.grace);
        let prompt = self.model.chat_prompt(&input, &self.budget.switch());
        let request = prompt.and_then(|prompt| match self.model.tags {
            // A model that cannot think is asked for nothing about thinking.
            None => self.model.request(prompt, sampling, Default::default(), None),
            Some(_) => self.model.request(prompt, sampling, thinking, None),
        });
        request.map_err(|cause| EvalError::Chat { index, cause })
    }

    fn token(&mut self, token: &TokenEvent) {
        let Some(turn) = self.running.get_mut(&token.sequence) else { return };
        let bytes = self.model.table.bytes(token.token);
        turn.bytes.extend_from_slice(bytes);
        turn.reply.token(token, bytes, &mut |_, _| {});
    }

    /// Counts a turn; whether its example is done.
    fn finish(&mut self, end: &FinishEvent) -> Result<bool, EvalError> {
        let Some(mut turn) = self.running.remove(&end.sequence) else { return Ok(false) };
        if matches!(end.reason, FinishReason::Failed | FinishReason::Cancelled) {
            let reason = end.error.clone().unwrap_or_else(|| format!("{:?}", end.reason));
            return Err(EvalError::Failed { index: turn.example, reason });
        }
        turn.reply.finish(end, &mut |_, _| {});
        let (calls, rest) = Call::parse(&turn.reply.tool);
        let answer = format!("{}{rest}", turn.reply.answer);
        let example = &self.examples[turn.example];
        let turns = example.assistant_turns();
        let at = turns[turn.number];
        let right = example.verify_turn(at, &answer, &calls);
        let last = turn.number + 1 == turns.len();
        self.count(&turn, end);
        self.outcomes[turn.example].invented |= example.invents(at, &answer, &calls);
        self.outcomes[turn.example].correct = right && last;
        if right && !last {
            self.waiting.push_front((turn.example, turn.number + 1));
        }
        Ok(last || !right)
    }

    fn count(&mut self, turn: &Turn, end: &FinishEvent) {
        let outcome = &mut self.outcomes[turn.example];
        let (used, reasoning) = (end.budget.used as usize, end.reasoning_tokens as usize);
        outcome.thinking += used;
        outcome.answer += end.completion_tokens - reasoning;
        outcome.other += reasoning - used;
        outcome.cut |= match end.budget.ended_by {
            Some(EndedBy::BudgetNewline | EndedBy::BudgetSentence | EndedBy::BudgetHard) => true,
            Some(EndedBy::Off) => self.budget.opens(),
            _ => false,
        };
        outcome.unfinished |= end.reason == FinishReason::Length;
        if let Some(tags) = &self.model.tags {
            let close = tags.close.as_bytes();
            let found = turn.bytes.windows(close.len()).filter(|bytes| *bytes == close).count();
            outcome.well_formed &= found == usize::from(self.budget.opens());
        }
    }

    /// Leaves the engine idle after an error.
    fn cancel(&mut self, engine: &mut Engine) {
        for (id, _) in self.running.drain() {
            engine.cancel(id);
        }
        let mut events = Vec::new();
        while !engine.is_idle() {
            engine.step(&mut events);
        }
    }
}
