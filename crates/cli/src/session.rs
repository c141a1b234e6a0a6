//! A loaded model with its engine: what every command that generates starts from.
//!
//! Here the crates meet: weights, tokenizer and limits of the command line become an engine.

use crate::cpu::LoadOptions;
use crate::device;
use crate::options::StateArgs;
use crate::source::{self, Source};
use anyhow::Result;
use hybra_chat::ChatModel;
use hybra_engine::{Engine, EngineConfig, TokenTable};
use hybra_kernels::Cpu;
use hybra_model::NemotronH;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// Bytes of each tensor that tell models apart.
const MODEL_ID_BYTES: usize = 256;

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
        let config =
            EngineConfig { num_speculative_tokens: limits.num_speculative_tokens, ..config };
        let kept = device::keeps_states(load.arithmetic, limits.state);
        let kept = kept.and_then(|()| device::keeps_engine(&config));
        let load = LoadOptions { device: load.device.settled(kept)?, ..load };
        let source = source::resolve(name)?;
        let weights = source::load_model(&source, &cpu, load)?;
        let loaded = source::load_tokenizer(&source, weights.config())?;
        let dtypes = device::state_dtypes(weights.gpu(), load.arithmetic, limits.state);
        let config = EngineConfig {
            model_id: model_id(&source, &weights, load, &cpu),
            max_model_len: limits.context.unwrap_or(weights.config().max_position_embeddings),
            kv_dtype: dtypes.kv,
            state_dtype: dtypes.ssm,
            ..config
        };
        let config = device::with_state_memory(&weights, config)?;
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

/// A number for the states that this model, arithmetic and processor make.
fn model_id(source: &Source, model: &NemotronH, load: LoadOptions, cpu: &Cpu) -> u64 {
    let mut hasher = DefaultHasher::new();
    let processor = device::processor(model.gpu(), cpu);
    (env!("CARGO_PKG_VERSION"), load.arithmetic.name(), processor).hash(&mut hasher);
    for info in source.checkpoint.tensors() {
        (&info.name, format!("{:?}", info.dtype), &info.shape).hash(&mut hasher);
        if let Some(view) = source.checkpoint.get(&info.name) {
            view.data[..view.data.len().min(MODEL_ID_BYTES)].hash(&mut hasher);
        }
    }
    hasher.finish()
}
