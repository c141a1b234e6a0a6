//! Everything that can be wrong with a model configuration, one variant per defect.
//!
//! Each message names the origin (the file, or what the caller called it), the key, what was
//! expected and what was found.

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The checkpoint has no configuration.
    #[error("{origin}: no `config.json` beside the weights; a model needs one, or be a GGUF file")]
    NoConfig {
        /// The checkpoint.
        origin: String,
    },
    /// A file that cannot be read, or a GGUF key that is missing or of the wrong type.
    #[error(transparent)]
    Checkpoint(#[from] hybra_checkpoint::Error),
    /// The text is not JSON, even with Python's `Infinity` and `NaN` allowed.
    #[error("{origin}: not valid JSON: {message}")]
    Json {
        /// The file.
        origin: String,
        /// The parser's message, with line and column.
        message: String,
    },
    /// The file is of another model family.
    #[error("{origin}: `{key}` is {found}, but only `nemotron_h` is supported")]
    ModelType {
        /// The file.
        origin: String,
        /// `model_type`, `architectures` or `general.architecture`.
        key: String,
        /// The family that the file names.
        found: String,
    },
    /// A key that has no default is absent.
    #[error("{origin}: required key `{key}` is missing ({needed_by})")]
    Missing {
        /// The file.
        origin: String,
        /// All spellings of the key, joined by ` or `.
        key: String,
        /// What needs it.
        needed_by: &'static str,
    },
    /// A value of the wrong JSON or GGUF type.
    #[error("{origin}: `{key}` must be {expected}, found {found}")]
    WrongType {
        /// The file.
        origin: String,
        /// The key.
        key: String,
        /// The type in words.
        expected: &'static str,
        /// The value as written, shortened.
        found: String,
    },
    /// Two spellings of one key are present and differ.
    #[error(
        "{origin}: `{first}` ({first_value}) and `{second}` ({second_value}) mean the same and \
         differ; remove one"
    )]
    Conflict {
        /// The file.
        origin: String,
        /// One spelling.
        first: String,
        /// Its value, shortened.
        first_value: String,
        /// The other spelling.
        second: String,
        /// Its value, shortened.
        second_value: String,
    },
    /// A layer is a mixture of experts.
    #[error(
        "{origin}: `{key}`: layer {index} is `{found}`, a mixture of experts: not supported yet"
    )]
    MixtureOfExperts {
        /// The file.
        origin: String,
        /// The key that lists the layer kinds.
        key: String,
        /// Layer, counted from 0.
        index: usize,
        /// The letter or word.
        found: String,
    },
    /// A layer kind that does not exist.
    #[error(
        "{origin}: `{key}`: layer {index} has unknown kind `{found}`; \
         known are M (mamba), * (attention) and - (mlp)"
    )]
    UnknownLayerKind {
        /// The file.
        origin: String,
        /// The key that lists the layer kinds.
        key: String,
        /// Layer, counted from 0.
        index: usize,
        /// The letter or word.
        found: String,
    },
    /// The list of layer kinds is not as long as the model is deep.
    #[error("{origin}: `{key}` lists {found} layers, but `num_hidden_layers` is {expected}")]
    LayerCount {
        /// The file.
        origin: String,
        /// The key that lists the layer kinds.
        key: String,
        /// `num_hidden_layers`.
        expected: usize,
        /// Length of the list.
        found: usize,
    },
    /// A per-layer list of the wrong length.
    #[error("{origin}: `{key}` has {found} entries, but the model has {expected} layers")]
    ListLength {
        /// The file.
        origin: String,
        /// The key.
        key: String,
        /// Number of layers.
        expected: usize,
        /// Number of entries.
        found: usize,
    },
    /// A per-layer list has a width for a layer of another kind.
    #[error("{origin}: `{key}`: entry {index} is {found}, expected 0: that layer is {kind}")]
    ForeignEntry {
        /// The file.
        origin: String,
        /// The key.
        key: String,
        /// Layer, counted from 0.
        index: usize,
        /// Kind of that layer, in words.
        kind: &'static str,
        /// The entry.
        found: usize,
    },
    /// A size is zero.
    #[error("{origin}: `{key}` must be positive, found {found}")]
    NotPositive {
        /// The file.
        origin: String,
        /// The key, with the layer where it may differ by layer.
        key: String,
        /// The value.
        found: String,
    },
    /// A size beyond every real model: a damaged or hostile file.
    #[error("{origin}: `{key}` is {found}, more than the limit of {limit}")]
    TooLarge {
        /// The file.
        origin: String,
        /// The key, with the layer where it may differ by layer.
        key: String,
        /// Largest value accepted.
        limit: usize,
        /// The value.
        found: String,
    },
    /// A real number outside its range, or NaN.
    #[error("{origin}: `{key}` must be {expected}, found {found}")]
    OutOfRange {
        /// The file.
        origin: String,
        /// The key.
        key: String,
        /// The range in words.
        expected: &'static str,
        /// The value.
        found: String,
    },
    /// Groups do not divide heads.
    #[error("{origin}: layer {layer}: `{part_key}` ({part}) must divide `{whole_key}` ({whole})")]
    NotDivisible {
        /// The file.
        origin: String,
        /// Layer, counted from 0.
        layer: usize,
        /// What is divided.
        whole_key: &'static str,
        /// Its value.
        whole: usize,
        /// What must divide it.
        part_key: &'static str,
        /// Its value.
        part: usize,
    },
    /// Layers differ in a size that no file format can store per layer.
    #[error(
        "{origin}: `{key}` is {first} in one layer and {found} in layer {layer}; it must agree"
    )]
    NotUniform {
        /// The file.
        origin: String,
        /// The key.
        key: &'static str,
        /// Value in the first layer of the kind.
        first: String,
        /// The layer that differs.
        layer: usize,
        /// Its value.
        found: String,
    },
    /// A bias in a linear layer.
    #[error("{origin}: `{key}` is true: biases in linear layers are not supported")]
    Bias {
        /// The file.
        origin: String,
        /// The key.
        key: String,
    },
    /// An activation other than the family's.
    #[error("{origin}: `{key}` must be `{expected}`, found `{found}`: not supported")]
    Activation {
        /// The file.
        origin: String,
        /// The key.
        key: String,
        /// The family's activation.
        expected: &'static str,
        /// The one asked for.
        found: String,
    },
    /// A feature that changes results and is not built: sliding windows, quantized safetensors.
    #[error("{origin}: `{key}` is {found}; only null (or absent) is supported")]
    NotNull {
        /// The file.
        origin: String,
        /// The key.
        key: String,
        /// The value, shortened.
        found: String,
    },
    /// A number type that checkpoints of this family do not use.
    #[error("{origin}: `{key}` must be float32, float16 or bfloat16, found `{found}`")]
    UnknownDtype {
        /// The file.
        origin: String,
        /// The key.
        key: String,
        /// The name.
        found: String,
    },
    /// A special token outside the vocabulary.
    #[error("{origin}: `{key}` is {found}, outside the vocabulary of {vocab_size}")]
    TokenId {
        /// The file.
        origin: String,
        /// The key.
        key: &'static str,
        /// The id.
        found: u32,
        /// Number of rows of the embedding.
        vocab_size: usize,
    },
    /// No preset of this name.
    #[error("no preset is called `{name}`; presets are {known}")]
    UnknownPreset {
        /// The name asked for.
        name: String,
        /// All names, joined by commas.
        known: String,
    },
}

impl ConfigError {
    /// Names another family; that of the mixture-of-experts members in words.
    pub(crate) fn model_type(origin: &str, key: &str, found: &str) -> Self {
        let about = match found {
            "nemotron_h_moe" => " (mixture of experts, not supported yet)",
            _ => "",
        };
        Self::ModelType {
            origin: origin.to_owned(),
            key: key.to_owned(),
            found: format!("`{found}`{about}"),
        }
    }
}
