//! A loaded model with its engine: what every command that generates starts from.
//!
//! Here the crates meet: weights, tokenizer and limits of the command line become an engine.

use crate::cpu::LoadOptions;
use crate::options::StateArgs;
use crate::source;
use anyhow::Result;
use hybra_chat::ChatModel;
use hybra_engine::{Engine, EngineConfig, TokenTable};
use hybra_kernels::Cpu;
use std::sync::Arc;

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
    pub(crate) engine: Engine,
    pub(crate) model: ChatModel,
}

impl Session {
    /// Loads the model behind `name` (see [`source::resolve`]). `limits` become the engine's, and
    /// `config` says what else it is set to.
    pub(crate) fn open(
        name: Option<&str>,
        cpu: Cpu,
        load: LoadOptions,
        limits: Limits,
        config: EngineConfig,
    ) -> Result<Self> {
        let source = source::resolve(name)?;
        let weights = source::load_model(&source, &cpu, load)?;
        let loaded = source::load_tokenizer(&source, weights.config())?;
        let config = EngineConfig {
            max_model_len: limits.context.unwrap_or(weights.config().max_position_embeddings),
            kv_dtype: limits.state.kv_dtype.into(),
            state_dtype: limits.state.state_dtype.into(),
            num_speculative_tokens: limits.num_speculative_tokens,
            ..config
        };
        let source::LoadedTokenizer { tokenizer, eos_token_ids, defaults } = loaded;
        let model = ChatModel::new(source.name, tokenizer, eos_token_ids, defaults)?;
        let engine = Engine::new(
            Arc::new(weights),
            Arc::new(cpu),
            Arc::clone(&model.vocab),
            Arc::clone(&model.table) as Arc<dyn TokenTable>,
            config,
        );
        Ok(Self { engine, model })
    }
}
