//! What an engine is doing, in numbers that cost nothing to copy.

/// What the engine is doing, and what it has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sequences in the batch.
    pub running: usize,
    /// Sequences that wait for a place, those that lost theirs included.
    pub waiting: usize,
    /// Prompts to be read in idle time.
    pub warm_pending: usize,
    /// Bytes of all sequences' states in memory; what they share counts in each.
    pub state_bytes: usize,
    /// Bytes of the prefix cache in memory.
    pub cache_bytes: usize,
    /// States in it.
    pub cache_entries: usize,
    /// Files that could not be written or read.
    pub cache_file_errors: u64,
    /// What has been done so far.
    pub counters: Counters,
}

/// Totals since the engine was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Prompt tokens of requests that began; those of choices of one request once.
    pub prompt_tokens: u64,
    /// Those of them that a kept state had read.
    pub cache_hit_tokens: u64,
    /// Prompt tokens that were read, warm-ups included.
    pub prefilled_tokens: u64,
    /// Tokens that were generated.
    pub generated_tokens: u64,
    /// Steps with a batch.
    pub steps: u64,
    /// How often a sequence lost its place.
    pub preemptions: u64,
    /// Rows of logits that came from a GPU whole, because their largest did not tell.
    pub logit_rows_fetched: u64,
    /// Steps that a GPU ran as a CUDA graph.
    pub cuda_graph_steps: u64,
}
