//! A record as documents: token ids and what of them is learned.
//!
//! Each assistant turn is learned as inference meets it: after the prompt that the conversation
//! before it gives, which holds no earlier reasoning where the template drops it. A turn whose
//! prompt continues the document before it is added to that; otherwise it is a document of its own.

use super::config::SourceConfig;
use super::draw::{Draws, Purpose};
use super::error::{DataError, Place};
use super::literal::Literal;
use super::record::{Conversation, Record};
use super::trace::{Chance, forced};
use hybra_chat::{ChatError, ChatInput, ChatModel};
use hybra_engine::ThinkingParams;
use hybra_model::training::PackedBatch;
use hybra_tokenizer::{ForcedClose, ThinkTags, Tokenizer};
use serde::{Deserialize, Serialize};

/// Tokens of one document.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Document {
    /// The ids.
    pub tokens: Vec<u32>,
    /// For each token, whether it is learned. The first never is: nothing predicts it.
    pub mask: Vec<bool>,
    /// What each token is.
    pub classes: Vec<TokenClass>,
    /// How each assistant turn in it thinks; empty for plain text.
    pub thinking: Vec<Thinking>,
}

impl Document {
    /// Adds it to a pack.
    pub fn push_to(&self, pack: &mut PackedBatch) {
        pack.push(&self.tokens, &self.mask);
        let classes: Vec<u8> = self.classes.iter().map(|&class| class as u8).collect();
        pack.classify(&classes);
    }
}

/// What a token of a document is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum TokenClass {
    /// Not the assistant's: headers, other roles, tools.
    Prompt,
    /// A trace with its close tag.
    Thinking,
    /// An answer with the end of its turn, or plain text.
    Answer,
    /// A turn that calls tools, behind its trace.
    Tool,
}

impl TokenClass {
    /// All, by number.
    pub const ALL: [Self; 4] = [Self::Prompt, Self::Thinking, Self::Answer, Self::Tool];

    /// Of the class, as metrics are called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Prompt => "prompt",
            Self::Thinking => "thinking",
            Self::Answer => "answer",
            Self::Tool => "tool",
        }
    }
}

/// A token that the assistant writes.
struct Written {
    id: u32,
    learned: bool,
    class: TokenClass,
}

/// The form of an assistant turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Thinking {
    /// The record holds no trace.
    None,
    /// The trace was dropped, and the prompt turns thinking off.
    Off,
    /// The whole trace with its own close tag.
    Full,
    /// The trace was cut, and the inserted close tag is not learned.
    Truncated {
        /// Tokens allowed.
        budget: usize,
        /// Tokens of the trace that are kept.
        kept: usize,
    },
}

/// Makes documents for one model. Cheap to clone.
#[derive(Clone)]
pub struct SampleEncoder {
    pub(super) chat: ChatModel,
    tags: Option<Tags>,
    plain: Literal,
}

#[derive(Clone)]
struct Tags {
    tags: ThinkTags,
    forced: ForcedClose,
    /// A trace and its natural close tag.
    trace: Literal,
}

/// What the turns of one record share.
struct Turns<'a> {
    conversation: &'a Conversation,
    options: &'a SourceConfig,
    place: &'a Place,
}

impl SampleEncoder {
    /// For the tokenizer, template and tags of a model.
    ///
    /// # Errors
    /// A vocabulary that cannot express the close tag.
    pub fn new(chat: ChatModel) -> Result<Self, ChatError> {
        let tags = chat.tags.clone().map(|tags| {
            let end = format!("\n{}{}", tags.close, tags.after_close);
            let trace = Literal::new(&chat.tokenizer, &end)?;
            let forced = ForcedClose::new(&chat.tokenizer, &tags, None)?;
            Ok::<_, ChatError>(Tags { trace, forced, tags })
        });
        Ok(Self { tags: tags.transpose()?, plain: Literal::new(&chat.tokenizer, "")?, chat })
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.chat.tokenizer
    }

    /// The documents of a record. `draws` decide about its traces.
    ///
    /// # Errors
    /// What the template refuses, or prints in a form that cannot be learned.
    pub(super) fn documents(
        &self,
        record: &Record,
        options: &SourceConfig,
        place: &Place,
        draws: &mut Draws,
    ) -> Result<Vec<Document>, DataError> {
        let conversation = match record {
            Record::Text(text) => return Ok(vec![self.text(text, place)?]),
            Record::Chat(conversation) => conversation,
        };
        let turns = Turns { conversation, options, place };
        let mut documents: Vec<Document> = Vec::new();
        for (index, &learned) in conversation.learned.iter().enumerate() {
            if !learned {
                continue;
            }
            let (prompt, completion, thinking) = self.turn(&turns, index, draws)?;
            let continues = documents.last_mut().filter(|last| prompt.starts_with(&last.tokens));
            let document = match continues {
                Some(last) => last,
                None => {
                    documents.push(Document::default());
                    documents.last_mut().expect("it was just pushed")
                }
            };
            document.tokens.extend_from_slice(&prompt[document.tokens.len()..]);
            document.mask.resize(prompt.len(), false);
            document.classes.resize(prompt.len(), TokenClass::Prompt);
            for Written { id, learned, class } in completion {
                document.tokens.push(id);
                document.mask.push(learned);
                document.classes.push(class);
            }
            document.thinking.push(thinking);
        }
        Ok(documents)
    }

    /// The last turn of a conversation alone, an assistant's, with its prompt; `None` of other
    /// records.
    pub(crate) fn last_turn(
        &self,
        record: Record,
        place: &Place,
    ) -> Result<Option<Document>, DataError> {
        let Record::Chat(mut conversation) = record else { return Ok(None) };
        let Some(last) = conversation.learned.pop() else { return Ok(None) };
        conversation.learned.fill(false);
        conversation.learned.push(last);
        let mut draws = Draws::new(0, Purpose::Trace, 0, 0);
        let (record, options) = (Record::Chat(conversation), SourceConfig::default());
        Ok(self.documents(&record, &options, place, &mut draws)?.pop())
    }

    /// Plain text with BOS (if the tokenizer adds one) and the end of sequence.
    fn text(&self, text: &str, place: &Place) -> Result<Document, DataError> {
        let mut tokens: Vec<u32> = Vec::new();
        tokens.extend(self.tokenizer().bos().filter(|_| self.tokenizer().adds_bos()));
        tokens.extend(self.plain.encode(self.tokenizer(), text).map_err(chat_error(place, 0))?);
        tokens.extend(self.tokenizer().eos_ids().first());
        let mut mask = vec![true; tokens.len()];
        mask[0] = false;
        let classes = vec![TokenClass::Answer; tokens.len()];
        Ok(Document { tokens, mask, classes, thinking: Vec::new() })
    }

    /// Prompt and completion of assistant turn `index`.
    fn turn(
        &self,
        turns: &Turns,
        index: usize,
        draws: &mut Draws,
    ) -> Result<(Vec<u32>, Vec<Written>, Thinking), DataError> {
        let chance = Chance::draw(draws);
        let message = &turns.conversation.messages[index];
        let options = turns.options;
        let fail = |source| chat_error(turns.place, index)(source);
        let trace = match &message.reasoning_content {
            Some(_) if chance.mode < options.p_off => None,
            trace => trace.as_deref(),
        };
        let input = ChatInput {
            messages: turns.conversation.messages[..index].to_vec(),
            tools: turns.conversation.tools.clone(),
            ..ChatInput::default()
        };
        let enabled = self.tags.as_ref().map(|_| trace.is_some());
        let thinking = ThinkingParams { enabled, ..ThinkingParams::default() };
        let prompt = self.chat.chat_prompt(&input, &thinking).map_err(fail)?;
        let (mut completion, form) = match (trace, &self.tags) {
            (Some(_), None) => {
                return Err(fail(ChatError::NoThinkTags { field: "reasoning_content" }));
            }
            (Some(trace), Some(tags)) => {
                let cut = chance.mode < options.p_off + options.p_truncate;
                let p_mid_step = cut.then_some(options.p_mid_step);
                self.trace(tags, trace, &chance, p_mid_step).map_err(fail)?
            }
            (None, _) if message.reasoning_content.is_some() => (Vec::new(), Thinking::Off),
            (None, _) => (Vec::new(), Thinking::None),
        };
        let answer = self.answer(input, message, &prompt, enabled);
        let answer = answer.map_err(|error| error.at(turns.place, index))?;
        let class =
            if message.tool_calls.is_empty() { TokenClass::Answer } else { TokenClass::Tool };
        completion.extend(answer.into_iter().map(|id| Written { id, learned: true, class }));
        Ok((prompt.ids, completion, form))
    }

    /// Ids of a trace up to the answer, with what is learned of them. `p_mid_step`: it is cut.
    fn trace(
        &self,
        tags: &Tags,
        trace: &str,
        chance: &Chance,
        p_mid_step: Option<f64>,
    ) -> Result<(Vec<Written>, Thinking), ChatError> {
        let ids = tags.trace.encode(self.tokenizer(), trace)?;
        let cut = p_mid_step.and_then(|p| chance.cut(self.tokenizer(), &ids, trace.len(), p));
        let Some(cut) = cut else {
            return Ok((thinking(&ids, true).collect(), Thinking::Full));
        };
        let kept = &ids[..cut.kept];
        let text: Vec<u8> =
            kept.iter().flat_map(|&id| self.tokenizer().token_bytes(id)).copied().collect();
        let inserted = forced(&tags.forced, &tags.tags.close, &text);
        let completion = thinking(kept, true).chain(thinking(inserted, false)).collect();
        Ok((completion, Thinking::Truncated { budget: cut.budget, kept: cut.kept }))
    }
}

fn thinking(ids: &[u32], learned: bool) -> impl Iterator<Item = Written> {
    ids.iter().map(move |&id| Written { id, learned, class: TokenClass::Thinking })
}

pub(super) fn chat_error(place: &Place, message: usize) -> impl FnOnce(ChatError) -> DataError {
    let place = place.clone();
    move |cause| DataError::Chat { place, message, cause }
}
