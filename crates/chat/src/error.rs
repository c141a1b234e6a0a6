//! Why a conversation cannot become a request.

use hybra_engine::ThinkingVocabError;
use hybra_tokenizer::TemplateError;

/// A fault of a conversation, of its thinking switch, or of the model's tokenizer data.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The template refused the conversation.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The tokenizer cannot encode a text.
    #[error(transparent)]
    Tokenizer(#[from] hybra_tokenizer::Error),
    /// Tags or messages that the thinking budget cannot work with.
    #[error(transparent)]
    Vocab(#[from] ThinkingVocabError),
    /// The template prints no think tags although thinking was switched.
    #[error("the chat template prints neither an open nor a closed think tag")]
    NoThinkForm,
    /// Thinking or a budget on a model that cannot think.
    #[error("{field}: this model has no think tags")]
    NoThinkTags {
        /// The request field that asks for thinking.
        field: &'static str,
    },
    /// A message that the template would leave out.
    #[error(
        "messages[{index}]: the chat template drops a {role} message at this place; expected it \
         first"
    )]
    Dropped {
        /// Index of the message.
        index: usize,
        /// Its role.
        role: String,
    },
    /// A token id without a token.
    #[error("prompt: expected token ids below {vocab_size}, found {found}")]
    TokenId {
        /// Ids of the tokenizer.
        vocab_size: usize,
        /// The id as given.
        found: u32,
    },
}
