//! Documents laid end to end for one pass.
//!
//! Every document starts from an empty state: attention, convolution and recurrence see nothing of
//! the documents before it. Labels are aligned with the tokens that predict them: `labels[t]` is
//! the token after `tokens[t]` in its document, `weights[t]` its share of the loss (0: masked), so
//! the last token of a document has weight 0.

/// Documents of one forward and backward pass.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PackedBatch {
    /// All documents' tokens.
    pub tokens: Vec<u32>,
    /// Length of each document, none empty; they sum to the number of tokens.
    pub documents: Vec<usize>,
    /// What each token is followed by; any id where the weight is 0.
    pub labels: Vec<u32>,
    /// Share of the loss, 0 or 1 for plain masks.
    pub weights: Vec<f32>,
    /// What the label is, in numbers of the caller's; 0 where nobody says. For logs alone.
    pub classes: Vec<u8>,
    /// What a teacher says of every token, where that is known.
    pub soft_labels: Option<SoftLabels>,
    /// What an answer was worth, where the model made it itself.
    pub signals: Option<Signals>,
    /// Log-probabilities of the labels where they are learned, \[T\], under a model that was asked
    /// before.
    pub reference: Option<Vec<f32>>,
}

/// What is known of sampled tokens; the lists over T are aligned with the tokens that predict them. A
/// forward pass over a batch with signals has the bits of the engine that sampled the tokens: it reads
/// each document's prompt in chunks and what follows step by step, in the engine's arithmetic of f32
/// weights, whatever the [`Precision`](super::Precision).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Signals {
    /// How much better than expected the answer was, \[T\].
    pub advantages: Vec<f32>,
    /// Log-probabilities when the tokens were sampled, \[T\].
    pub sampled: Vec<f32>,
    /// So many of the first tokens of each document are its prompt.
    pub prompts: Vec<usize>,
}

/// The k most probable next tokens behind every token of a batch; the rest is one bucket.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SoftLabels {
    /// k.
    pub k: usize,
    /// `[T, k]`.
    pub ids: Vec<u32>,
    /// Their probabilities, `[T, k]`.
    pub probs: Vec<f32>,
}

impl PackedBatch {
    /// Adds a document. `mask[t]` says whether token t is to be learned (predicted from those
    /// before it).
    ///
    /// # Panics
    /// If the document is empty or the mask has another length.
    pub fn push(&mut self, tokens: &[u32], mask: &[bool]) {
        assert!(!tokens.is_empty() && tokens.len() == mask.len(), "a document with its mask");
        self.tokens.extend_from_slice(tokens);
        self.documents.push(tokens.len());
        self.labels.extend_from_slice(&tokens[1..]);
        self.labels.push(0);
        self.weights.extend(mask[1..].iter().map(|&learn| f32::from(u8::from(learn))));
        self.weights.push(0.0);
        self.classes.resize(self.tokens.len(), 0);
    }

    /// Says what the tokens of the last document are.
    ///
    /// # Panics
    /// If there is none, or it has another length.
    pub fn classify(&mut self, classes: &[u8]) {
        let len = *self.documents.last().expect("a document");
        assert_eq!(classes.len(), len, "a class for each token");
        let from = self.tokens.len() - len;
        self.classes[from..from + len - 1].copy_from_slice(&classes[1..]);
    }

    /// 1 for every token that another one of its document follows, whatever the mask.
    #[must_use]
    pub fn followed(&self) -> Vec<f32> {
        let document = |&len: &usize| std::iter::repeat_n(1.0, len - 1).chain([0.0]);
        self.documents.iter().flat_map(document).collect()
    }

    /// Number of tokens that are learned.
    #[must_use]
    pub fn num_learned(&self) -> usize {
        self.weights.iter().filter(|&&weight| weight != 0.0).count()
    }
}
