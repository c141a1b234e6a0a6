//! A loaded model with everything that turns messages into requests and tokens into text.
//!
//! Here the crates meet: the tokenizer's tables become the engine's, and a switch for thinking
//! becomes a prompt in the template's own form.

use crate::cpu::LoadOptions;
use crate::options::StateArgs;
use crate::source::{self, GenerationDefaults, Source};
use anyhow::{Context, Result, bail};
use hybra_engine::{
    Effort, Engine, EngineConfig, GenerationRequest, Insertion, SamplingParams, Start, TagTexts,
    ThinkingParams, ThinkingVocab, TokenTable,
};
use hybra_kernels::Cpu;
use hybra_tokenizer::{
    ChatRequest, ForcedClose, Message, PromptThinking, Rendered, ThinkTags, Tokenizer,
};
use serde_json::Value;
use std::sync::Arc;

/// What opens a tool call in the family's format.
const TOOL_OPEN: &str = "<TOOLCALL>[";

/// What an engine is set to from the command line.
pub(crate) struct Limits {
    pub(crate) state: StateArgs,
    /// Most tokens of prompt and output; `None`: the model's.
    pub(crate) context: Option<usize>,
    /// Most tokens guessed in a step.
    pub(crate) num_speculative_tokens: usize,
}

/// A model ready to generate.
pub(crate) struct Session {
    pub(crate) name: String,
    pub(crate) engine: Engine,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) table: Arc<Table>,
    pub(crate) defaults: GenerationDefaults,
    eos: Vec<u32>,
    /// `None` for a model without think tags.
    tags: Option<ThinkTags>,
    vocab: Arc<ThinkingVocab>,
    no_message: Arc<Insertion>,
}

/// A prompt in ids.
pub(crate) struct Prompt {
    pub(crate) ids: Vec<u32>,
    start: Start,
    tools: bool,
    /// Chat, rather than raw text.
    chat: bool,
}

impl Prompt {
    /// Whether generated text begins inside a thinking section.
    pub(crate) fn is_thinking(&self) -> bool {
        matches!(self.start, Start::Open { .. })
    }
}

/// Bytes that the reader sees: none for control tokens, except think and tool tags.
pub(crate) struct Table(Arc<Tokenizer>);

impl TokenTable for Table {
    fn bytes(&self, id: u32) -> &[u8] {
        let bytes = self.0.token_bytes(id);
        let tag = matches!(bytes, b"<think>" | b"</think>" | b"<TOOLCALL>" | b"</TOOLCALL>");
        if self.0.is_special(id) && !tag { &[] } else { bytes }
    }
}

impl Session {
    /// Loads the model behind `name` (see [`source::resolve`]).
    pub(crate) fn open(
        model: Option<&str>,
        cpu: Cpu,
        load: LoadOptions,
        limits: Limits,
    ) -> Result<Self> {
        let source = source::resolve(model)?;
        let model = source::load_model(&source, &cpu, load)?;
        let loaded = source::load_tokenizer(&source, model.config())?;
        let config = EngineConfig {
            max_model_len: limits.context.unwrap_or(model.config().max_position_embeddings),
            kv_dtype: limits.state.kv_dtype.into(),
            state_dtype: limits.state.state_dtype.into(),
            num_speculative_tokens: limits.num_speculative_tokens,
            ..EngineConfig::default()
        };
        let tokenizer = Arc::new(loaded.tokenizer);
        let table = Arc::new(Table(Arc::clone(&tokenizer)));
        let tags = ThinkTags::detect(&tokenizer);
        let (vocab, no_message) = thinking_tables(&tokenizer, &table, tags.as_ref())?;
        let engine = Engine::new(
            Arc::new(model),
            Arc::new(cpu),
            Arc::clone(&vocab),
            Arc::clone(&table) as Arc<dyn TokenTable>,
            config,
        );
        let Source { name, .. } = source;
        let (eos, defaults) = (loaded.eos_token_ids, loaded.defaults);
        Ok(Self { name, engine, tokenizer, table, defaults, eos, tags, vocab, no_message })
    }

    /// Renders a conversation, with thinking on or off as the request says (or as the template
    /// decides, if it says nothing).
    pub(crate) fn chat_prompt(
        &self,
        messages: &[Message],
        tools: &[Value],
        thinking: &ThinkingParams,
    ) -> Result<Prompt> {
        let template = self.tokenizer.chat_template()?;
        let wanted = switch(thinking);
        let mut request = ChatRequest {
            messages: messages.to_vec(),
            tools: tools.to_vec(),
            add_generation_prompt: true,
            ..ChatRequest::default()
        };
        match wanted {
            Some(on) if template.reads_enable_thinking() => request.enable_thinking = Some(on),
            Some(on) => add_flag_word(&mut request.messages, on),
            None => {}
        }
        let mut rendered = template.render(&request)?;
        match (&self.tags, wanted) {
            (Some(tags), Some(on)) if !tags.set_prompt(&mut rendered, on) => {
                bail!("the chat template prints neither an open nor a closed think tag")
            }
            (None, Some(true)) => bail!("{}: this model has no think tags", self.name),
            _ => {}
        }
        let ids = self.tokenizer.encode_rendered(&rendered)?;
        Ok(Prompt { ids, start: self.start(&rendered), tools: !tools.is_empty(), chat: true })
    }

    /// Encodes plain text, with a BOS if the tokenizer adds one.
    pub(crate) fn raw_prompt(&self, text: &str) -> Result<Prompt> {
        let ids = self.tokenizer.encode(text, true)?;
        let start = self.start(&Rendered::from(text));
        Ok(Prompt { ids, start, tools: false, chat: false })
    }

    /// Where a prompt leaves off.
    fn start(&self, rendered: &Rendered) -> Start {
        let state = self.tags.as_ref().map(|tags| tags.prompt_state(&self.tokenizer, rendered));
        match state {
            None | Some(PromptThinking::None) => Start::Absent,
            Some(_) => self.vocab.start_of(rendered.text().as_bytes()),
        }
    }

    /// The engine's request. `message` is inserted at the cut.
    pub(crate) fn request(
        &self,
        prompt: Prompt,
        sampling: SamplingParams,
        thinking: ThinkingParams,
        message: Option<&str>,
    ) -> Result<GenerationRequest> {
        let asked = thinking.budget.is_some() || thinking.effort.is_some();
        if asked && self.tags.is_none() {
            bail!("{}: a thinking budget needs a model with think tags", self.name);
        }
        let insertion = match (message.filter(|m| !m.is_empty()), &self.tags) {
            (Some(message), Some(tags)) => {
                let forced = ForcedClose::new(&self.tokenizer, tags, Some(message))?;
                let table = &*self.table;
                Arc::new(Insertion::new(
                    &self.vocab,
                    message.as_bytes(),
                    forced.after_newline,
                    forced.mid_line,
                    |id| table.bytes(id),
                )?)
            }
            _ => Arc::clone(&self.no_message),
        };
        Ok(GenerationRequest {
            prompt: prompt.ids,
            sampling,
            thinking,
            start: prompt.start,
            insertion,
            reserve_answer: prompt.chat || asked,
            tools: prompt.tools,
            eos_token_ids: self.eos.clone(),
            constraint: None,
            priority: 0,
            cache_salt: 0,
            cache_points: Vec::new(),
        })
    }
}

/// What a request says about thinking on or off; `None` leaves it to the template.
fn switch(thinking: &ThinkingParams) -> Option<bool> {
    let off = thinking.budget == Some(0)
        || thinking.enabled == Some(false)
        || thinking.budget.is_none() && thinking.effort == Some(Effort::None);
    let on = thinking.enabled.is_some() || thinking.budget.is_some() || thinking.effort.is_some();
    if off { Some(false) } else { on.then_some(true) }
}

/// For templates that read flag words: the word goes into the system message.
fn add_flag_word(messages: &mut Vec<Message>, on: bool) {
    let word = if on { "/think" } else { "/no_think" };
    if messages.first().is_none_or(|m| m.role != "system") {
        messages.insert(0, Message::new("system", word));
        return;
    }
    let text = match &messages[0].content {
        Some(hybra_tokenizer::Content::Text(text)) => format!("{text}\n{word}"),
        _ => word.to_owned(),
    };
    messages[0].content = Some(hybra_tokenizer::Content::Text(text));
}

/// The engine's tables for the model's tags, or for the family's where it has none.
fn thinking_tables(
    tokenizer: &Tokenizer,
    table: &Table,
    tags: Option<&ThinkTags>,
) -> Result<(Arc<ThinkingVocab>, Arc<Insertion>)> {
    let family =
        ThinkTags { open: "<think>".into(), close: "</think>".into(), after_close: "\n\n".into() };
    let tags = tags.unwrap_or(&family);
    let forced = ForcedClose::new(tokenizer, tags, None)
        .context("the tokenizer cannot express the closing think tag")?;
    let texts = TagTexts {
        open: tags.open.as_bytes(),
        close: tags.close.as_bytes(),
        separator: tags.after_close.as_bytes(),
        tool_open: TOOL_OPEN.as_bytes(),
    };
    let vocab_size = u32::try_from(tokenizer.vocab_size())?;
    let vocab = ThinkingVocab::new(texts, forced.partial, vocab_size, |id| table.bytes(id))?;
    let insertion =
        Insertion::new(&vocab, b"", forced.after_newline, forced.mid_line, |id| table.bytes(id))?;
    Ok((Arc::new(vocab), Arc::new(insertion)))
}
