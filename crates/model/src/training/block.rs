//! One block, forward: `next = x + mixer(rms_norm(x))`, keeping what the way back needs.

use super::read_rows::ReadRows;
use super::saved::{Saved, Scratch};
use super::views::{Block, Mamba2, Mixer};
use super::{Precision, stored};
use crate::config::Config;
use crate::layer::{AttentionConfig, LayerConfig, Mamba2Config};
use crate::nemotron_h::SCAN_CHUNK;
use hybra_kernels::ops::activation::add_of;
use hybra_kernels::ops::attention::{KvCache, KvDtype, Segment, attention};
use hybra_kernels::ops::gemm::gemm;
use hybra_kernels::ops::mamba_split_conv1d_scan::{
    MixerParams, MixerSegment, mamba_split_conv1d_scan,
};
use hybra_kernels::ops::mamba_split_conv1d_scan_backward::mamba_split_conv1d_scan_kept;
use hybra_kernels::ops::product::{Operand, Write, product, product_bf16};
use hybra_kernels::ops::rms_norm::rms_norm;
use hybra_kernels::ops::ssd::SsdParams;
use hybra_kernels::ops::ssm_state::SsmStateMut;
use hybra_kernels::{Cpu, MatMut, MatRef};

/// What every block of a pass needs besides its tensors.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub(super) cpu: &'a Cpu,
    pub(super) config: &'a Config,
    pub(super) documents: &'a [usize],
    /// Lengths of the documents' prompts, if the forward pass is to have an engine's bits.
    pub(super) prompts: Option<&'a [usize]>,
    /// The rows of the block's output that are read, if tokens meet in it for the last time.
    pub(super) read: Option<&'a ReadRows>,
    pub(super) eps: f32,
    pub(super) precision: Precision,
}

/// Constants of a Mamba layer in the form of the ops.
pub(super) struct MixerConstants {
    /// −exp(A_log).
    a: Vec<f32>,
    /// Tap-major taps, `[k, HP + 2GN]`.
    conv_weight: Vec<f32>,
}

impl MixerConstants {
    pub(super) fn new(m: &Mamba2Config, w: &Mamba2<&[f32]>) -> Self {
        let taps = m.conv_kernel;
        let tap = |k: usize| w.conv_weight.iter().skip(k).step_by(taps).copied();
        let conv_weight = (0..taps).flat_map(tap).collect();
        Self { a: w.a_log.iter().map(|v| -v.exp()).collect(), conv_weight }
    }

    pub(super) fn params<'a>(
        &'a self,
        pass: &Pass,
        m: &Mamba2Config,
        w: &Mamba2<&'a [f32]>,
    ) -> MixerParams<'a> {
        MixerParams {
            ssd: SsdParams {
                num_heads: m.num_heads,
                head_dim: m.head_dim,
                n_groups: m.n_groups,
                state_size: m.state_size,
                a: &self.a,
                d: w.d,
                dt_bias: w.dt_bias,
                dt_limit: pass.config.time_step_limit,
            },
            conv_weight: &self.conv_weight,
            conv_bias: w.conv_bias,
            norm_weight: w.gated_norm,
            norm_eps: pass.eps,
        }
    }
}

impl Pass<'_> {
    /// Writes the next block's input, for every row or those that are read, and keeps what the way
    /// back needs.
    pub(super) fn forward(
        &self,
        layer: usize,
        block: &Block<&[f32]>,
        saved: &mut Saved,
        next: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let h = self.config.hidden_size;
        if let (LayerConfig::Mlp(m), Mixer::Mlp { up_proj, down_proj }) =
            (&self.config.layers[layer], &block.mixer)
        {
            return self.mlp(m, [block.norm, up_proj, down_proj], saved, next, scratch);
        }
        scratch.normed.resize(saved.x.len(), 0.0);
        let normed = MatMut::new(&mut scratch.normed, h);
        rms_norm(self.cpu, MatRef::new(&saved.x, h), block.norm, self.eps, normed);
        let last = match (&self.config.layers[layer], &block.mixer) {
            (LayerConfig::Mamba2(m), Mixer::Mamba2(w)) => {
                self.mamba2(m, w, saved, scratch);
                w.out_proj
            }
            (LayerConfig::Attention(a), Mixer::Attention { q_proj, k_proj, v_proj, o_proj }) => {
                self.attention(a, [q_proj, k_proj, v_proj], saved, scratch);
                o_proj
            }
            _ => unreachable!("the views are made from this configuration"),
        };
        let Scratch { out, read, .. } = scratch;
        let x = match self.read {
            Some(rows) => {
                let width = last.len() / h;
                self.project(rows.gather(&saved.mix, width, read), width, last, out);
                &*rows.gather(&saved.x, h, read)
            }
            None => {
                self.project(&saved.mix, last.len() / h, last, out);
                &saved.x
            }
        };
        add_of(self.cpu, MatRef::new(x, h), MatRef::new(out, h), MatMut::new(next, h));
    }

    /// `out (+)= a · b` with the reduction along features.
    pub(super) fn product<'a, 'b>(
        &self,
        a: MatRef<'a>,
        b: impl Into<Operand<'b>>,
        out: MatMut,
        write: Write,
    ) {
        match self.precision {
            Precision::F32 => product(self.cpu, a, b, out, write),
            Precision::Bf16 => product_bf16(self.cpu, a, b, &[a.cols()], out, write),
        }
    }

    /// `dw += dᵀ · x`, the reduction along tokens, document by document.
    pub(super) fn add_weight_gradient(&self, d: MatRef, x: MatRef, dw: MatMut) {
        match self.precision {
            Precision::F32 => product(self.cpu, d.t(), x, dw, Write::Add),
            Precision::Bf16 => product_bf16(self.cpu, d.t(), x, self.documents, dw, Write::Add),
        }
    }

    /// `out = x · wᵀ`, x with `cols` columns.
    fn project(&self, x: &[f32], cols: usize, w: &[f32], out: &mut Vec<f32>) {
        let rows = w.len() / cols;
        out.resize(x.len() / cols * rows, 0.0);
        self.project_to(MatRef::new(x, cols), w, MatMut::new(out, rows));
    }

    pub(super) fn project_to(&self, x: MatRef, w: &[f32], out: MatMut) {
        match self.prompts {
            Some(_) => gemm(self.cpu, x, stored(w, x.cols()), out),
            None => self.product(x, MatRef::new(w, x.cols()).t(), out, Write::Store),
        }
    }

    fn mamba2(
        &self,
        m: &Mamba2Config,
        w: &Mamba2<&[f32]>,
        saved: &mut Saved,
        scratch: &mut Scratch,
    ) {
        let (h, inner) = (self.config.hidden_size, m.d_inner());
        self.project(&scratch.normed, h, w.in_proj, &mut saved.wide);
        let constants = MixerConstants::new(m, w);
        let params = constants.params(self, m, w);
        saved.mix.resize(saved.x.len() / h * inner, 0.0);
        let wide = MatRef::new(&saved.wide, m.in_proj_rows());
        let out = MatMut::new(&mut saved.mix, inner);
        match self.prompts {
            Some(prompts) => {
                saved.scan.clear();
                self.scan_as_served(m, &params, prompts, wide, out, scratch);
            }
            None => {
                let (documents, kept) = (self.documents, &mut saved.scan);
                mamba_split_conv1d_scan_kept(self.cpu, &params, wide, documents, kept, out);
            }
        }
    }

    /// The mixer between its projections with an engine's bits: the prompts in chunks, then token
    /// by token.
    fn scan_as_served(
        &self,
        m: &Mamba2Config,
        params: &MixerParams,
        prompts: &[usize],
        wide: MatRef,
        out: MatMut,
        scratch: &mut Scratch,
    ) {
        let conv_len = (m.conv_kernel - 1) * m.conv_dim();
        let ssm_len = m.d_inner() * m.state_size;
        for (states, len) in [(&mut scratch.conv, conv_len), (&mut scratch.ssm, ssm_len)] {
            states.clear();
            states.resize(prompts.len() * len, 0.0);
        }
        // A kernel of one tap has no window: its chunks are empty.
        let mut conv = scratch.conv.as_mut_slice();
        let documents = self.documents.iter().zip(prompts);
        let segments = documents.zip(scratch.ssm.chunks_exact_mut(ssm_len));
        let segments = segments.map(|((&len, prompt), ssm)| MixerSegment {
            len,
            chunk: SCAN_CHUNK,
            steps: len - prompt,
            conv: conv.split_off_mut(..conv_len).expect("a window for each document"),
            state: SsmStateMut::F32(ssm),
        });
        mamba_split_conv1d_scan(self.cpu, params, wide, segments, out);
    }

    fn attention(
        &self,
        a: &AttentionConfig,
        [q_proj, k_proj, v_proj]: [&[f32]; 3],
        saved: &mut Saved,
        scratch: &mut Scratch,
    ) {
        let h = self.config.hidden_size;
        let tokens = saved.x.len() / h;
        let (q_width, kv_width) = (a.q_width(), a.kv_width());
        saved.wide.resize(tokens * (q_width + 2 * kv_width), 0.0);
        let mut rest = saved.wide.as_mut_slice();
        for (w, width) in [(q_proj, q_width), (k_proj, kv_width), (v_proj, kv_width)] {
            let out = rest.split_off_mut(..tokens * width).expect("q, k and v");
            self.project_to(MatRef::new(&scratch.normed, h), w, MatMut::new(out, width));
        }
        let [q, k, v] = split_qkv(a, tokens, &saved.wide);
        let mut from = 0;
        let caches: Vec<_> = self
            .documents
            .iter()
            .map(|&len| {
                let mut cache = KvCache::new(KvDtype::F32, a.num_kv_heads, a.head_dim);
                cache.append(self.cpu, k.rows_at(from, len), v.rows_at(from, len));
                from += len;
                (from - len..from, cache)
            })
            .collect();
        let segment = |i: usize| {
            let (rows, cache) = &caches[i];
            Segment { rows: rows.clone(), cache, past: 0 }
        };
        saved.mix.resize(tokens * q_width, 0.0);
        let out = MatMut::new(&mut saved.mix, q_width);
        attention(self.cpu, q, caches.len(), segment, a.num_heads, out);
    }
}

/// q, k and v as they lie in [`Saved::wide`].
pub(super) fn split_qkv<'w>(
    a: &AttentionConfig,
    tokens: usize,
    wide: &'w [f32],
) -> [MatRef<'w>; 3] {
    let (q, kv) = wide.split_at(tokens * a.q_width());
    let (k, v) = kv.split_at(tokens * a.kv_width());
    [MatRef::new(q, a.q_width()), MatRef::new(k, a.kv_width()), MatRef::new(v, a.kv_width())]
}
