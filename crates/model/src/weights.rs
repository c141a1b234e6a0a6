//! The weights of a model, ready to run.
//!
//! Invariants: rank-1 tensors and convolution kernels are f32 copies; `a` is −exp(A_log); the
//! convolution kernel is tap-major, `[k, HP + 2GN]`. Large matrices are held in one of two forms:
//! as stored, in the file's mapping (after [`Weights::load`]), or packed in compute layout (after
//! [`Weights::pack`]), with the same bits of every weight. The embedding stays as stored.

use crate::config::Config;
use crate::layer::{LayerConfig, Mamba2Config};
use crate::load::{Found, LoadError, find_tensors};
pub use crate::matrix::Matrix;
use crate::tensors::Role;
use hybra_checkpoint::{Checkpoint, Region};
use hybra_kernels::Cpu;
use std::io;

/// Weights of a Mamba-2 block.
pub struct Mamba2Weights {
    /// Block norm, `[h]`.
    pub norm: Vec<f32>,
    /// `[2HP + 2GN + H, h]`.
    pub in_proj: Matrix,
    /// `[k, HP + 2GN]`, tap-major.
    pub conv_weight: Vec<f32>,
    /// `[HP + 2GN]`.
    pub conv_bias: Option<Vec<f32>>,
    /// −exp(A_log), `[H]`.
    pub a: Vec<f32>,
    /// `[H]`.
    pub d: Vec<f32>,
    /// `[H]`.
    pub dt_bias: Vec<f32>,
    /// `[HP]`.
    pub gated_norm: Vec<f32>,
    /// `[h, HP]`.
    pub out_proj: Matrix,
}

/// Weights of an attention block.
pub struct AttentionWeights {
    /// Block norm, `[h]`.
    pub norm: Vec<f32>,
    /// `[q·hd, h]`.
    pub q_proj: Matrix,
    /// `[kv·hd, h]`.
    pub k_proj: Matrix,
    /// `[kv·hd, h]`.
    pub v_proj: Matrix,
    /// `[h, q·hd]`.
    pub o_proj: Matrix,
}

/// Weights of an MLP block.
pub struct MlpWeights {
    /// Block norm, `[h]`.
    pub norm: Vec<f32>,
    /// `[f, h]`.
    pub up_proj: Matrix,
    /// `[h, f]`.
    pub down_proj: Matrix,
}

/// Weights of one block.
pub enum LayerWeights {
    /// A Mamba-2 block.
    Mamba2(Mamba2Weights),
    /// An attention block.
    Attention(AttentionWeights),
    /// An MLP block.
    Mlp(MlpWeights),
}

impl LayerWeights {
    /// The norm before the mixer, `[h]`.
    #[must_use]
    pub fn norm(&self) -> &[f32] {
        match self {
            Self::Mamba2(w) => &w.norm,
            Self::Attention(w) => &w.norm,
            Self::Mlp(w) => &w.norm,
        }
    }
}

/// All weights of a model.
pub struct Weights {
    /// `[V, h]`.
    pub embedding: Matrix,
    /// The blocks.
    pub layers: Vec<LayerWeights>,
    /// Norm before the head, `[h]`.
    pub final_norm: Vec<f32>,
    /// `[V, h]`; `None` where the embedding is the head.
    pub lm_head: Option<Matrix>,
}

impl Weights {
    /// Takes the weights of `config` from a checkpoint; `progress(done, total)` counts tensors.
    ///
    /// # Errors
    /// As [`find_tensors`] and [`Found::f32_values`].
    pub fn load(
        checkpoint: &Checkpoint,
        config: &Config,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Self, LoadError> {
        let found = find_tensors(checkpoint, config)?;
        let total = found.len();
        let mut source = Source { found: found.into_iter().enumerate() };
        let mut advance = |layer: &mut Source| {
            let left = layer.found.len();
            progress(total - left, total);
        };
        let embedding = source.matrix(Role::Embedding);
        let mut layers = Vec::with_capacity(config.layers.len());
        for layer in &config.layers {
            layers.push(source.layer(layer)?);
            advance(&mut source);
        }
        let final_norm = source.vector(Role::FinalNorm)?;
        let lm_head = (!config.tie_word_embeddings).then(|| source.matrix(Role::LmHead));
        advance(&mut source);
        Ok(Self { embedding, layers, final_norm, lm_head })
    }

    /// Packs every matrix that has a compute layout and lets go of its pages in the file's
    /// mapping; `progress(done, total)` counts bytes as stored.
    ///
    /// # Errors
    /// No memory.
    pub fn pack(&mut self, cpu: &Cpu, mut progress: impl FnMut(u64, u64)) -> io::Result<()> {
        self.untie_head();
        let total = self.matrices_mut().iter().map(|m| m.bytes() as u64).sum();
        let mut done = 0;
        for matrix in self.matrices_mut() {
            done += matrix.bytes() as u64;
            matrix.pack(cpu)?;
            progress(done, total);
        }
        Ok(())
    }

    /// Matrices in compute layout, with names that [`Self::adopt_packed`] asks for.
    pub fn packed(&self) -> impl Iterator<Item = (String, &[u8])> {
        let all = self.matrices().into_iter().enumerate();
        all.filter_map(|(i, m)| Some((format!("matrix.{i}"), m.packed()?)))
    }

    /// Takes bytes that [`Self::pack`] made earlier from the same checkpoint, mapped from a file;
    /// false, and nothing taken, where one is missing or has another length.
    pub fn adopt_packed(&mut self, bytes: impl Fn(&str) -> Option<Region>) -> bool {
        self.untie_head();
        let mut all = self.matrices_mut();
        let mut found = Vec::new();
        for (i, matrix) in all.iter().enumerate().filter(|(_, m)| m.is_packable()) {
            match bytes(&format!("matrix.{i}")) {
                Some(bytes) if matrix.could_adopt(&bytes) => found.push((i, bytes)),
                _ => return false,
            }
        }
        for (i, bytes) in found {
            all[i].adopt(bytes);
        }
        true
    }

    /// Packed, a tied head lies beside the embedding, whose rows are looked up as stored.
    fn untie_head(&mut self) {
        if self.lm_head.is_none() && self.embedding.is_packable() {
            self.lm_head = Some(self.embedding.clone());
        }
    }

    fn matrices<'a>(&'a self) -> Vec<&'a Matrix> {
        let layer = |layer: &'a LayerWeights| match layer {
            LayerWeights::Mamba2(w) => vec![&w.in_proj, &w.out_proj],
            LayerWeights::Attention(w) => vec![&w.q_proj, &w.k_proj, &w.v_proj, &w.o_proj],
            LayerWeights::Mlp(w) => vec![&w.up_proj, &w.down_proj],
        };
        self.lm_head.iter().chain(self.layers.iter().flat_map(layer)).collect()
    }

    /// The matrices that activations are multiplied with: the head, usually the largest, then
    /// those of the layers. [`Self::matrices`] has the same order.
    fn matrices_mut<'a>(&'a mut self) -> Vec<&'a mut Matrix> {
        let layer = |layer: &'a mut LayerWeights| match layer {
            LayerWeights::Mamba2(w) => vec![&mut w.in_proj, &mut w.out_proj],
            LayerWeights::Attention(w) => {
                vec![&mut w.q_proj, &mut w.k_proj, &mut w.v_proj, &mut w.o_proj]
            }
            LayerWeights::Mlp(w) => vec![&mut w.up_proj, &mut w.down_proj],
        };
        self.lm_head.iter_mut().chain(self.layers.iter_mut().flat_map(layer)).collect()
    }

    /// Bytes of all weights as held: matrices as stored or packed, the rest f32.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let layer = |layer: &LayerWeights| match layer {
            LayerWeights::Mamba2(w) => {
                let small = [&w.norm, &w.conv_weight, &w.a, &w.d, &w.dt_bias, &w.gated_norm];
                let small: usize = small.iter().map(|v| 4 * v.len()).sum();
                let bias = w.conv_bias.as_ref().map_or(0, |b| 4 * b.len());
                small + bias + w.in_proj.bytes() + w.out_proj.bytes()
            }
            LayerWeights::Attention(w) => {
                let matrices = [&w.q_proj, &w.k_proj, &w.v_proj, &w.o_proj];
                4 * w.norm.len() + matrices.iter().map(|m| m.bytes()).sum::<usize>()
            }
            LayerWeights::Mlp(w) => 4 * w.norm.len() + w.up_proj.bytes() + w.down_proj.bytes(),
        };
        let ends = self.embedding.bytes() + 4 * self.final_norm.len();
        let head = self.lm_head.as_ref().map_or(0, Matrix::bytes);
        ends + head + self.layers.iter().map(layer).sum::<usize>()
    }
}

/// The tensors in registry order: each is asked for by the role it must have.
struct Source<'c> {
    found: std::iter::Enumerate<std::vec::IntoIter<Found<'c>>>,
}

impl<'c> Source<'c> {
    fn next(&mut self, role: Role) -> Found<'c> {
        let (index, found) = self.found.next().expect("the registry lists every tensor");
        assert_eq!(found.spec.role, role, "registry entry {index}");
        found
    }

    fn matrix(&mut self, role: Role) -> Matrix {
        let found = self.next(role);
        let [rows, cols] = found.spec.shape[..] else {
            unreachable!("{} is a matrix", found.spec.name)
        };
        Matrix::stored(found.dtype, rows, cols, found.view.region())
    }

    fn vector(&mut self, role: Role) -> Result<Vec<f32>, LoadError> {
        self.next(role).f32_values()
    }

    fn layer(&mut self, layer: &LayerConfig) -> Result<LayerWeights, LoadError> {
        let norm = self.vector(Role::BlockNorm)?;
        Ok(match layer {
            LayerConfig::Mamba2(m) => LayerWeights::Mamba2(self.mamba2(norm, m)?),
            LayerConfig::Attention(_) => LayerWeights::Attention(AttentionWeights {
                norm,
                q_proj: self.matrix(Role::QProj),
                k_proj: self.matrix(Role::KProj),
                v_proj: self.matrix(Role::VProj),
                o_proj: self.matrix(Role::OProj),
            }),
            LayerConfig::Mlp(_) => LayerWeights::Mlp(MlpWeights {
                norm,
                up_proj: self.matrix(Role::UpProj),
                // Behind the squared ReLU.
                down_proj: self.matrix(Role::DownProj).of_sparse_inputs(),
            }),
        })
    }

    fn mamba2(&mut self, norm: Vec<f32>, m: &Mamba2Config) -> Result<Mamba2Weights, LoadError> {
        Ok(Mamba2Weights {
            norm,
            in_proj: self.matrix(Role::InProj),
            conv_weight: tap_major(&self.vector(Role::ConvWeight)?, m.conv_kernel),
            conv_bias: m.use_conv_bias.then(|| self.vector(Role::ConvBias)).transpose()?,
            a: self.vector(Role::ALog)?.into_iter().map(|v| -v.exp()).collect(),
            d: self.vector(Role::D)?,
            dt_bias: self.vector(Role::DtBias)?,
            gated_norm: self.vector(Role::GatedNorm)?,
            out_proj: self.matrix(Role::OutProj),
        })
    }
}

/// `[C, k]` to `[k, C]`.
fn tap_major(weight: &[f32], taps: usize) -> Vec<f32> {
    (0..taps).flat_map(|k| weight.iter().skip(k).step_by(taps).copied()).collect()
}
