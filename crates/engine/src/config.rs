//! The limits of an engine.

use crate::request::ServerBudget;
use hybra_kernels::ops::attention::KvDtype;
use hybra_kernels::ops::ssm_state::SsmDtype;
use hybra_model::{SCAN_CHUNK, StateDtypes};
use std::path::PathBuf;

/// Limits of an engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Sequences that run at the same time.
    pub max_num_seqs: usize,
    /// Tokens of one step; rounded up to a multiple of the scan chunk.
    pub max_num_batched_tokens: usize,
    /// Tokens of prompts in a step while some sequence decodes, so that its tokens keep coming; as
    /// many times more as prompts of no worse priority are read for each sequence that decodes.
    /// From the scan chunk on rounded up to a multiple of it; below it a chunk goes through the
    /// layers in several steps, each the work of so many tokens, rounded up to whole layers.
    pub max_prefill_while_decoding: usize,
    /// Longest sequence, prompt and output.
    pub max_model_len: usize,
    /// Number type of keys and values.
    pub kv_dtype: KvDtype,
    /// Number type of the recurrent state.
    pub state_dtype: SsmDtype,
    /// The operator's default and ceiling for thinking budgets.
    pub server_budget: ServerBudget,
    /// Most tokens of a sequence that are guessed and read in a step, beside the one that is
    /// known; 0: none. At most [`MAX_SPECULATIVE_TOKENS`](crate::MAX_SPECULATIVE_TOKENS).
    pub num_speculative_tokens: usize,
    /// Bytes for the states of sequences and of the prefix cache, which gives way. Sequences wait
    /// until their prompt fits; where growth does not fit, the worst one is moved to a temporary
    /// file. No sequence becomes longer than fits alone. `None`: no limit.
    pub state_memory: Option<usize>,
    /// Bytes of states of prompts that are kept for later prompts; 0: none are kept in memory.
    pub cache_memory: usize,
    /// Number type of the recurrent state in the cache; `None`: that of running sequences. With
    /// bf16 for f32 a prompt that finds a state has not the bits of one that does not.
    pub cache_state_dtype: Option<SsmDtype>,
    /// Folder in which states of prompts' ends outlive the process; one engine to a folder.
    pub cache_dir: Option<PathBuf>,
    /// Bytes of files in it.
    pub cache_dir_bytes: u64,
    /// What tells the model of files in it: weights, arithmetic and instruction set.
    pub model_id: u64,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            max_num_seqs: 16,
            max_num_batched_tokens: 512,
            max_prefill_while_decoding: SCAN_CHUNK,
            max_model_len: 131_072,
            kv_dtype: KvDtype::Bf16,
            state_dtype: SsmDtype::F32,
            server_budget: ServerBudget::default(),
            num_speculative_tokens: 0,
            state_memory: None,
            cache_memory: 0,
            cache_state_dtype: None,
            cache_dir: None,
            cache_dir_bytes: 16 << 30,
            model_id: 0,
        }
    }
}

impl EngineConfig {
    /// Number types of running states.
    pub(crate) fn dtypes(&self) -> StateDtypes {
        StateDtypes { kv: self.kv_dtype, ssm: self.state_dtype }
    }

    /// Number types of kept states.
    pub(crate) fn cache_dtypes(&self) -> StateDtypes {
        StateDtypes { kv: self.kv_dtype, ssm: self.cache_state_dtype.unwrap_or(self.state_dtype) }
    }
}
