//! Structured output: a schema, regex, grammar or list becomes a [`Constraint`] of the engine.
//!
//! The work is `llguidance`'s. Special tokens, tags and end-of-sequence are no text here: no
//! grammar of a client can name one, and only the tool format has its own tags.
//!
//! **Bounds.** Everything here may come from a hostile client. Sources have limits of size, depth,
//! counts and repetitions (`grammar_source`, `grammar_schema`), chosen so that no compilation goes
//! on for more than some seconds; `llguidance` counts fuel besides. A compilation runs on its own
//! stack, is waited for for [`DEADLINE`] at most, and at most [`MOST_AT_ONCE`] run at once, so what
//! a timeout leaves behind is bounded too. Compiled grammars are kept in memory only, as many as
//! `grammar_cache` says. Each use gets a copy of its own: what it builds up goes with it.

use crate::grammar_cache::Cache;
use crate::grammar_constraint::GrammarConstraint;
use crate::grammar_language::is_empty_language;
use crate::grammar_source::{self as source, Source};
use crate::tool_calls::Tools;
use hybra_engine::{Constraint, ConstraintScope};
use hybra_tokenizer::Tokenizer;
use llguidance::api::TopLevelGrammar;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{
    ApproximateTokEnv, INVALID_TOKEN, InferenceCapabilities, TokRxInfo, TokTrie,
};
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Longest wait for a compilation; real ones take milliseconds.
const DEADLINE: Duration = Duration::from_secs(2);
/// Compilations at the same time.
const MOST_AT_ONCE: usize = 2;
/// Reserved address space, touched only as far as it is used: a chain of the most rules that fit a
/// source takes below a tenth of it.
const STACK_BYTES: usize = 256 << 20;
/// States of a grammar's lexer; about 2 KiB each.
const MOST_LEXER_STATES: usize = 20_000;

/// What an answer must look like.
#[derive(Clone, Debug, PartialEq)]
pub enum GrammarSpec {
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema describes.
    JsonSchema(Value),
    /// All of the answer matches a regular expression.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in Lark's notation; its rule `start`.
    Lark(String),
}

/// Why there is no constraint.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GrammarError {
    /// More than is accepted of something.
    #[error("{field}: expected at most {limit} {unit}, found {found}")]
    TooMuch {
        /// The source: `json_schema`, `regex`, `choice`, `grammar` or `tools`.
        field: String,
        /// What is counted.
        unit: &'static str,
        /// The most that is accepted.
        limit: usize,
        /// As given.
        found: usize,
    },
    /// A part of the language of schemas or grammars that could not be held.
    #[error("{field}: {what} is not supported")]
    Unsupported {
        /// The source.
        field: String,
        /// The part, by name and place.
        what: String,
    },
    /// Not a sound source.
    #[error("{field}: {reason}")]
    Invalid {
        /// The source.
        field: String,
        /// Why.
        reason: String,
    },
    /// Nothing can be written that satisfies it.
    #[error("{field}: nothing that this model can write satisfies it: an empty language")]
    Empty {
        /// The source.
        field: String,
    },
    /// It is too complex to compile.
    #[error("{field}: expected a grammar that compiles within {} s", DEADLINE.as_secs())]
    Timeout {
        /// The source.
        field: String,
    },
    /// The machine compiles other grammars, or has no thread for this one.
    #[error("{field}: other grammars are being compiled; try again")]
    Busy {
        /// The source.
        field: String,
    },
}

/// Compiles grammars for one model. The token tables are made when they are first needed.
pub struct Grammars {
    tokenizer: Arc<Tokenizer>,
    eos_token_ids: Vec<u32>,
    factory: OnceLock<Arc<ParserFactory>>,
    running: Arc<AtomicUsize>,
    cache: Cache,
}

impl Grammars {
    /// For texts that end with one of `eos_token_ids`.
    #[must_use]
    pub fn new(tokenizer: Arc<Tokenizer>, eos_token_ids: Vec<u32>) -> Self {
        let (factory, cache) = (OnceLock::new(), Cache::default());
        Self { tokenizer, eos_token_ids, factory, running: Arc::default(), cache }
    }

    /// The constraint of an answer without tools.
    ///
    /// # Errors
    /// See [`GrammarError`].
    pub fn constraint(&self, spec: &GrammarSpec) -> Result<Box<dyn Constraint>, GrammarError> {
        source::check_depth(spec, None)?;
        let key = source::key(spec);
        let spec = spec.clone();
        self.compiled(source::field(&spec), key, ConstraintScope::Answer, Vec::new(), move || {
            let grammar = Source::new(&spec, None)?.grammar;
            Ok(TopLevelGrammar { grammars: vec![grammar], max_tokens: None })
        })
    }

    /// The constraint of an answer that may call tools; `None` where everything is allowed.
    ///
    /// # Errors
    /// See [`GrammarError`]; a tool's own faults name it.
    pub fn tool_constraint(
        &self,
        tools: &Tools,
        answer: Option<&GrammarSpec>,
    ) -> Result<Option<Box<dyn Constraint>>, GrammarError> {
        let Some(scope) = tools.scope(answer.is_some())? else {
            return answer.map(|spec| self.constraint(spec)).transpose();
        };
        answer.map_or(Ok(()), |spec| source::check_depth(spec, None))?;
        let tags = ToolTags::new(&self.tokenizer);
        let key = tools.key(answer);
        let prefix = self.prefix(&tags);
        let (tools, answer) = (tools.clone(), answer.cloned());
        let compile = move || tools.grammar(&tags, answer.as_ref());
        self.compiled("tools", key, scope, prefix, compile).map(Some)
    }

    /// Compiled grammars that are kept.
    #[must_use]
    pub fn num_cached(&self) -> usize {
        self.cache.len()
    }

    fn compiled(
        &self,
        field: &'static str,
        key: String,
        scope: ConstraintScope,
        prefix: Vec<u32>,
        source: impl FnOnce() -> Result<TopLevelGrammar, GrammarError> + Send + 'static,
    ) -> Result<Box<dyn Constraint>, GrammarError> {
        let vocab_size = self.tokenizer.vocab_size();
        let matcher = match self.cache.get(&key) {
            Some(matcher) => matcher,
            None => {
                let matcher = self.compile(field, source)?;
                self.cache.put(key, matcher.deep_clone());
                matcher
            }
        };
        Ok(Box::new(GrammarConstraint::new(matcher, vocab_size, scope, prefix.into())))
    }

    fn compile(
        &self,
        field: &'static str,
        source: impl FnOnce() -> Result<TopLevelGrammar, GrammarError> + Send + 'static,
    ) -> Result<Matcher, GrammarError> {
        let factory = Arc::clone(self.factory());
        let busy = || GrammarError::Busy { field: field.to_owned() };
        let deadline = Instant::now() + DEADLINE;
        let slot = Slot::wait(&self.running, deadline).ok_or_else(busy)?;
        let (sender, receiver) = sync_channel(1);
        std::thread::Builder::new()
            .name("grammar".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let _slot = slot;
                let matcher = source().and_then(|grammar| build(&factory, field, grammar));
                // After a timeout nobody wants the result.
                let _ = sender.send(matcher);
            })
            .map_err(|_| busy())?;
        let left = deadline.saturating_duration_since(Instant::now());
        receiver.recv_timeout(left).unwrap_or_else(|error| {
            let field = field.to_owned();
            Err(match error {
                RecvTimeoutError::Timeout => GrammarError::Timeout { field },
                RecvTimeoutError::Disconnected => {
                    GrammarError::Invalid { field, reason: "the compiler panicked".to_owned() }
                }
            })
        })
    }

    fn factory(&self) -> &Arc<ParserFactory> {
        self.factory.get_or_init(|| {
            let env =
                Arc::new(ApproximateTokEnv::new(token_trie(&self.tokenizer, &self.eos_token_ids)));
            let env: llguidance::toktrie::TokEnv = env;
            let slices = SlicedBiasComputer::general_slices();
            let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)
                .expect("the general slices are sound");
            factory.quiet();
            let limits = factory.limits_mut();
            limits.max_lexer_states = MOST_LEXER_STATES;
            limits.verbose_errors = false;
            Arc::new(factory)
        })
    }

    /// Tokens of what opens the list of calls.
    fn prefix(&self, tags: &ToolTags) -> Vec<u32> {
        let trie = self.factory().tok_env().tok_trie();
        let mut ids: Vec<u32> = tags.open.into_iter().collect();
        let text = if tags.open.is_some() { "[" } else { "<TOOLCALL>[" };
        ids.extend(trie.greedy_tokenize(text.as_bytes()));
        ids
    }
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammars")
            .field("eos_token_ids", &self.eos_token_ids)
            .finish_non_exhaustive()
    }
}

/// The tool tags, where they are tokens of their own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ToolTags {
    pub(crate) open: Option<u32>,
    pub(crate) close: Option<u32>,
}

impl ToolTags {
    fn new(tokenizer: &Tokenizer) -> Self {
        let id = |tag| tokenizer.token_to_id(tag);
        Self { open: id("<TOOLCALL>"), close: id("</TOOLCALL>") }
    }
}

/// The vocabulary as text; whatever is no text has no bytes.
fn token_trie(tokenizer: &Tokenizer, eos_token_ids: &[u32]) -> TokTrie {
    let words: Vec<Vec<u8>> = (0u32..)
        .zip(tokenizer.all_token_bytes().iter())
        .map(|(id, bytes)| {
            let tags: [&[u8]; 4] = [b"<think>", b"</think>", b"<TOOLCALL>", b"</TOOLCALL>"];
            // 0xff never stands in text, and would mark a special token.
            let text =
                !tokenizer.is_special(id) && !tags.contains(&bytes) && !bytes.contains(&0xff);
            if text && !eos_token_ids.contains(&id) { bytes.to_vec() } else { Vec::new() }
        })
        .collect();
    let eos: Vec<u32> =
        eos_token_ids.iter().copied().filter(|&id| (id as usize) < words.len()).collect();
    let vocab_size = words.len() as u32;
    let trie = TokTrie::from(&TokRxInfo::new(vocab_size, INVALID_TOKEN), &words);
    if eos.is_empty() { trie } else { trie.with_eos_tokens(&eos) }
}

/// Compiles, and looks at what may come first.
fn build(
    factory: &ParserFactory,
    field: &'static str,
    grammar: TopLevelGrammar,
) -> Result<Matcher, GrammarError> {
    let invalid = |error: String| GrammarError::Invalid {
        field: field.to_owned(),
        reason: source::short(&error),
    };
    let parser = factory.create_parser(grammar).map_err(|error| invalid(error.to_string()))?;
    if is_empty_language(parser.parser.grammar()) {
        return Err(GrammarError::Empty { field: field.to_owned() });
    }
    let mut matcher = Matcher::new(Ok(parser));
    matcher.consume_tokens(&[]).map_err(|error| invalid(error.to_string()))?;
    if !matcher.is_stopped() && matcher.compute_mask().is_ok() {
        return Ok(matcher);
    }
    match matcher.is_accepting() {
        Ok(true) => Ok(matcher),
        _ if matcher.stop_reason().to_string().contains("TooComplex") => {
            Err(invalid("too complex".to_owned()))
        }
        _ => Err(GrammarError::Empty { field: field.to_owned() }),
    }
}

/// One of the compilations that may run.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn wait(running: &Arc<AtomicUsize>, deadline: Instant) -> Option<Self> {
        loop {
            let free = |n: usize| (n < MOST_AT_ONCE).then_some(n + 1);
            if running.fetch_update(Ordering::AcqRel, Ordering::Acquire, free).is_ok() {
                return Some(Self(Arc::clone(running)));
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
