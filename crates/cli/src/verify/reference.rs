//! A reference file: prompts and what another implementation computed from them.
//!
//! Tensors (B sequences of T tokens; h hidden size, V vocabulary):
//!
//! | name | type and shape | meaning |
//! |---|---|---|
//! | `input_ids` | I64 \[B, T\] | the prompt |
//! | `logits` | F32 \[B, k, V\] | of the last k ≤ T tokens |
//! | `hidden.N` | F32 \[B, T, h\] | residual stream after block N |
//! | `greedy` | I64 \[B, n\] | most probable tokens after the prompt, one after another |
//! | `dequantized.NAME` | F32, NAME's shape | the values of the checkpoint's tensor NAME |
//! | `loss` | F32 | mean cross entropy of the tokens 1 … T−1 of every prompt |
//! | `grad.NAME` | F32, NAME's shape | its gradient with respect to the tensor NAME |
//!
//! Several prompts in one file are numbered: `0.input_ids`, `0.logits`, …. Every other tensor is
//! listed with the reason why it is not compared.
//!
//! Invariant: a [`Reference`] that [`Reference::read`] returned fits the model's config, and its
//! token ids are in the vocabulary.

use anyhow::{Context, Result, bail, ensure};
use hybra_checkpoint::{Checkpoint, Dtype, TensorView};
use hybra_model::Config;
use hybra_model::tensors::tensor_specs;
use std::collections::{BTreeMap, BTreeSet};

/// What a file holds.
pub(crate) struct Reference<'c> {
    /// By number; a single prompt has none.
    pub(crate) cases: Vec<Case<'c>>,
    /// Values of weights: the checkpoint's name and the tensor.
    pub(crate) dequantized: Vec<(String, Tensor<'c>)>,
    /// Of all tensors, by name, and the loss, where they were asked for and are there.
    pub(crate) training: Option<Training<'c>>,
    /// Name and reason.
    pub(crate) not_compared: Vec<(String, &'static str)>,
}

/// Loss and gradients of the file's unnumbered prompts.
pub(crate) struct Training<'c> {
    pub(crate) loss: Option<Tensor<'c>>,
    /// By the name of the weight.
    pub(crate) gradients: BTreeMap<String, Tensor<'c>>,
}

/// One batch of prompts and what follows from it.
pub(crate) struct Case<'c> {
    /// What its tensors' names begin with: nothing, or a number and a dot.
    pub(crate) prefix: String,
    /// B rows of T ids.
    pub(crate) input_ids: Vec<Vec<u32>>,
    pub(crate) logits: Option<Tensor<'c>>,
    /// By layer.
    pub(crate) hidden: BTreeMap<usize, Tensor<'c>>,
    /// B rows of n ids.
    pub(crate) greedy: Option<Vec<Vec<u32>>>,
}

/// An f32 tensor in the file; its values lie there unaligned.
#[derive(Clone, Copy)]
pub(crate) struct Tensor<'c> {
    pub(crate) shape: &'c [usize],
    data: &'c [u8],
}

impl<'c> Tensor<'c> {
    /// The values `from .. from + len`.
    pub(crate) fn values(
        self,
        from: usize,
        len: usize,
    ) -> impl ExactSizeIterator<Item = f32> + Clone + 'c {
        let (bytes, _) = self.data[4 * from..4 * (from + len)].as_chunks::<4>();
        bytes.iter().map(|b| f32::from_le_bytes(*b))
    }
}

impl<'c> Reference<'c> {
    /// Sorts the tensors of a file and checks them against the model's config.
    pub(crate) fn read(file: &'c Checkpoint, config: &Config, gradients: bool) -> Result<Self> {
        let reader = Reader { file, config };
        let mut prompts = BTreeSet::new();
        let (mut dequantized, mut not_compared) = (Vec::new(), Vec::new());
        for info in file.tensors() {
            let name = info.name.as_str();
            match role(name) {
                Role::Prompt(prefix) => {
                    prompts.insert(sort_key(prefix));
                }
                Role::Dequantized(weight) => {
                    dequantized.push((weight.to_owned(), reader.floats(name)?));
                }
                Role::Training if gradients => {}
                Role::Training => not_compared.push((name.to_owned(), "see --gradients")),
                Role::Unknown => not_compared.push((name.to_owned(), "unknown name")),
            }
        }
        let cases = prompts.into_iter().map(|(_, prefix)| reader.case(prefix));
        let cases = cases.collect::<Result<Vec<_>>>()?;
        dequantized.sort_by(|a, b| a.0.cmp(&b.0));
        not_compared.sort();
        let training = gradients.then(|| reader.training()).transpose()?;
        ensure!(
            training.is_some() || !dequantized.is_empty() || cases.iter().any(Case::has_outputs),
            "{}: nothing to compare; expected input_ids with logits, hidden.N or greedy, or \
             dequantized.NAME",
            file.path().display()
        );
        Ok(Self { cases, dequantized, training, not_compared })
    }
}

impl Case<'_> {
    fn has_outputs(&self) -> bool {
        self.logits.is_some() || self.greedy.is_some() || !self.hidden.is_empty()
    }

    /// T, the length of each prompt.
    pub(crate) fn prompt_len(&self) -> usize {
        self.input_ids[0].len()
    }
}

enum Role<'n> {
    /// Belongs to the prompt with this prefix.
    Prompt(&'n str),
    Dequantized(&'n str),
    Training,
    Unknown,
}

/// What a tensor is for, by its name.
fn role(name: &str) -> Role<'_> {
    if let Some(weight) = name.strip_prefix("dequantized.") {
        return Role::Dequantized(weight);
    }
    let digits = name.len() - name.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let prefix = if digits > 0 && name[digits..].starts_with('.') { digits + 1 } else { 0 };
    match &name[prefix..] {
        "input_ids" | "logits" | "greedy" => Role::Prompt(&name[..prefix]),
        rest if layer(rest).is_some() => Role::Prompt(&name[..prefix]),
        rest if rest == "loss" || rest.starts_with("grad.") => Role::Training,
        _ => Role::Unknown,
    }
}

/// N of `hidden.N`.
fn layer(name: &str) -> Option<usize> {
    name.strip_prefix("hidden.")?.parse().ok()
}

/// Prompts are in the order of their numbers, of which the longer is the larger.
fn sort_key(prefix: &str) -> (usize, &str) {
    (prefix.len(), prefix)
}

struct Reader<'c, 'm> {
    file: &'c Checkpoint,
    config: &'m Config,
}

impl<'c> Reader<'c, '_> {
    fn case(&self, prefix: &str) -> Result<Case<'c>> {
        let ids_name = format!("{prefix}input_ids");
        let ids = self.file.get(&ids_name).with_context(|| {
            format!("{}: `{ids_name}` is missing beside its outputs", self.file.path().display())
        })?;
        let input_ids = self.ids(ids, None)?;
        let (batch, len) = (input_ids.len(), input_ids[0].len());
        let logits = self.optional(&format!("{prefix}logits"))?;
        if let Some((name, logits)) = &logits {
            let fits = matches!(logits.shape, [b, k, v]
                if *b == batch && *k <= len && *v == self.config.vocab_size);
            let expected = format!("[{batch}, 1 to {len}, {}]", self.config.vocab_size);
            ensure!(fits, self.shape_message(name, &expected, logits.shape));
        }
        let greedy = self.file.get(&format!("{prefix}greedy"));
        let greedy = greedy.map(|greedy| self.ids(greedy, Some(batch))).transpose()?;
        Ok(Case {
            hidden: self.hidden(prefix, &[batch, len, self.config.hidden_size])?,
            prefix: prefix.to_owned(),
            input_ids,
            logits: logits.map(|(_, tensor)| tensor),
            greedy,
        })
    }

    fn hidden(&self, prefix: &str, shape: &[usize]) -> Result<BTreeMap<usize, Tensor<'c>>> {
        let layers = self.config.layers.len();
        let mut hidden = BTreeMap::new();
        for info in self.file.tensors() {
            let Some(layer) = info.name.strip_prefix(prefix).and_then(layer) else { continue };
            if layer >= layers {
                let path = self.file.path().display();
                bail!("{path}: `{}`: the model has only {layers} layers", info.name);
            }
            let tensor = self.floats(&info.name)?;
            let expected = format!("{shape:?}");
            ensure!(tensor.shape == shape, self.shape_message(&info.name, &expected, tensor.shape));
            hidden.insert(layer, tensor);
        }
        Ok(hidden)
    }

    fn training(&self) -> Result<Training<'c>> {
        let mut gradients = BTreeMap::new();
        for spec in tensor_specs(self.config) {
            let name = format!("grad.{}", spec.name);
            let Some((_, tensor)) = self.optional(&name)? else { continue };
            let expected = format!("{:?}", spec.shape);
            ensure!(tensor.shape == spec.shape, self.shape_message(&name, &expected, tensor.shape));
            gradients.insert(spec.name, tensor);
        }
        let path = self.file.path().display();
        ensure!(!gradients.is_empty(), "{path}: no `grad.NAME` of a tensor of the model");
        ensure!(self.file.get("input_ids").is_some(), "{path}: no `input_ids` for the gradients");
        let loss = self.optional("loss")?.map(|(_, tensor)| tensor);
        Ok(Training { loss, gradients })
    }

    fn optional(&self, name: &str) -> Result<Option<(String, Tensor<'c>)>> {
        let present = self.file.get(name).is_some();
        present.then(|| Ok((name.to_owned(), self.floats(name)?))).transpose()
    }

    fn floats(&self, name: &str) -> Result<Tensor<'c>> {
        let view = self.file.require(name)?;
        self.check_dtype(&view, Dtype::F32)?;
        Ok(Tensor { shape: view.shape, data: view.data })
    }

    /// Rows of token ids; there are `rows` of them where that is known.
    fn ids(&self, view: TensorView<'c>, rows: Option<usize>) -> Result<Vec<Vec<u32>>> {
        self.check_dtype(&view, Dtype::I64)?;
        let rows_text = rows.map_or("batch".to_owned(), |rows| rows.to_string());
        let expected = format!("[{rows_text}, tokens]");
        let message = || self.shape_message(view.name, &expected, view.shape);
        let &[found, len] = view.shape else { bail!(message()) };
        ensure!(rows.is_none_or(|rows| rows == found), message());
        let vocab_size = self.config.vocab_size;
        let id = |(at, bytes): (usize, &[u8; 8])| {
            let id = i64::from_le_bytes(*bytes);
            match u32::try_from(id) {
                Ok(id) if (id as usize) < vocab_size => Ok(id),
                _ => bail!(
                    "{}: `{}`: value {at} is {id}, expected a token id below {vocab_size}",
                    self.file.path().display(),
                    view.name
                ),
            }
        };
        let ids = view.data.as_chunks::<8>().0.iter().enumerate().map(id);
        let ids = ids.collect::<Result<Vec<u32>>>()?;
        Ok(ids.chunks(len).map(<[u32]>::to_vec).collect())
    }

    fn check_dtype(&self, view: &TensorView<'_>, expected: Dtype) -> Result<()> {
        let (path, name) = (self.file.path().display(), view.name);
        let (want, found) = (expected.name(), view.dtype.name());
        ensure!(view.dtype == expected, "{path}: `{name}`: expected type {want}, found {found}");
        Ok(())
    }

    fn shape_message(&self, name: &str, expected: &str, found: &[usize]) -> String {
        let path = self.file.path().display();
        format!(
            "{path}: `{name}`: expected shape {expected} by the model's config, found {found:?}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_what_a_tensor_is_for() {
        let text = |name| match role(name) {
            Role::Prompt(prefix) => format!("prompt {prefix:?}"),
            Role::Dequantized(weight) => format!("weight {weight}"),
            Role::Training => "training".into(),
            Role::Unknown => "unknown".into(),
        };
        assert_eq!(text("logits"), "prompt \"\"");
        assert_eq!(text("12.greedy"), "prompt \"12.\"");
        assert_eq!(text("hidden.0"), "prompt \"\"");
        assert_eq!(text("3.hidden.55"), "prompt \"3.\"");
        assert_eq!(text("dequantized.blk.1.ffn_down.weight"), "weight blk.1.ffn_down.weight");
        assert_eq!(text("grad.lm_head.weight"), "training");
        assert_eq!(text("loss"), "training");
        for unknown in ["hidden.x", "hidden.", "1logits", ".logits", "kd.loss", "12."] {
            assert_eq!(text(unknown), "unknown", "{unknown}");
        }
        assert!(sort_key("9.") < sort_key("10.") && sort_key("") < sort_key("0."));
    }
}
