//! One block, backward: `d` is the gradient of the block's output before and of its input after.

use super::block::{MixerConstants, Pass, split_qkv};
use super::saved::{Saved, Scratch};
use super::views::{Block, Mamba2, Mixer};
use crate::activations::sized;
use crate::layer::{AttentionConfig, LayerConfig, Mamba2Config};
use hybra_kernels::ops::attention_backward::{Qkv, attention_backward};
use hybra_kernels::ops::mamba_split_conv1d_scan_backward::{
    MixerGradients, mamba_split_conv1d_scan_backward,
};
use hybra_kernels::ops::product::Write;
use hybra_kernels::ops::rms_norm::{rms_norm, rms_norm_backward};
use hybra_kernels::{MatMut, MatRef};

impl Pass<'_> {
    /// Adds the gradients of the block's tensors to `g` and moves `d` on.
    pub(super) fn backward(
        &self,
        layer: usize,
        block: &Block<&[f32]>,
        saved: &Saved,
        g: &mut Block<&mut [f32]>,
        d: &mut Vec<f32>,
        scratch: &mut Scratch,
    ) {
        let h = self.config.hidden_size;
        if let (
            LayerConfig::Mlp(m),
            Mixer::Mlp { up_proj, down_proj },
            Mixer::Mlp { up_proj: gup, down_proj: gdown },
        ) = (&self.config.layers[layer], &block.mixer, &mut g.mixer)
        {
            let (w, g) = ([block.norm, up_proj, down_proj], [&mut *g.norm, gup, gdown]);
            return self.mlp_backward(m, w, saved, g, d, scratch);
        }
        let x = MatRef::new(&saved.x, h);
        scratch.normed.resize(saved.x.len(), 0.0);
        scratch.dnormed.resize(saved.x.len(), 0.0);
        rms_norm(self.cpu, x, block.norm, self.eps, MatMut::new(&mut scratch.normed, h));
        match (&self.config.layers[layer], &block.mixer, &mut g.mixer) {
            (LayerConfig::Mamba2(m), Mixer::Mamba2(w), Mixer::Mamba2(g)) => {
                self.mamba2_backward(m, w, saved, g, d, scratch);
            }
            (
                LayerConfig::Attention(a),
                Mixer::Attention { q_proj, k_proj, v_proj, o_proj },
                Mixer::Attention { q_proj: gq, k_proj: gk, v_proj: gv, o_proj: go },
            ) => {
                let w = [q_proj, k_proj, v_proj, o_proj];
                self.attention_backward(a, w.map(|w| *w), saved, [gq, gk, gv, go], d, scratch);
            }
            _ => unreachable!("the views are made from this configuration"),
        }
        let (dout, dx) = (MatRef::new(&scratch.dnormed, h), MatMut::new(d, h));
        rms_norm_backward(self.cpu, x, block.norm, self.eps, dout, dx, g.norm);
    }

    /// For `out = x·wᵀ`: `dw += dᵀ·x`, `dx (+)= d·w`.
    pub(super) fn linear(
        &self,
        d: &[f32],
        (w, dw): (&[f32], &mut [f32]),
        (x, cols): (&[f32], usize),
        dx: &mut [f32],
        write: Write,
    ) {
        let (w, x) = (MatRef::new(w, cols), MatRef::new(x, cols));
        let d = MatRef::new(d, w.rows());
        self.add_weight_gradient(d, x, MatMut::new(dw, cols));
        self.product(d, w, MatMut::new(dx, cols), write);
    }

    /// The block's last projection: takes `d` to `scratch.dmix`, `[T, width of mix]`, and makes rows
    /// of `d` that nobody read, so that it is as long as the block's input.
    fn last_projection(
        &self,
        saved: &Saved,
        (w, dw): (&[f32], &mut [f32]),
        d: &mut Vec<f32>,
        scratch: &mut Scratch,
    ) {
        let Scratch { dmix, out, read, .. } = scratch;
        let width = w.len() / self.config.hidden_size;
        let dmix = sized(dmix, saved.mix.len());
        let Some(rows) = self.read else {
            return self.linear(d, (w, dw), (&saved.mix, width), dmix, Write::Store);
        };
        let pass = Pass { documents: &rows.documents, ..*self };
        let mix = rows.gather(&saved.mix, width, read);
        let some = sized(out, mix.len());
        pass.linear(d, (w, dw), (mix, width), some, Write::Store);
        rows.scatter(some, width, dmix);
        let some = sized(read, d.len());
        some.copy_from_slice(d);
        d.resize(saved.x.len(), 0.0);
        rows.scatter(some, self.config.hidden_size, d);
    }

    fn mamba2_backward(
        &self,
        m: &Mamba2Config,
        w: &Mamba2<&[f32]>,
        saved: &Saved,
        g: &mut Mamba2<&mut [f32]>,
        d: &mut Vec<f32>,
        scratch: &mut Scratch,
    ) {
        let (h, inner, width) = (self.config.hidden_size, m.d_inner(), m.in_proj_rows());
        self.last_projection(saved, (w.out_proj, g.out_proj), d, scratch);
        let dmix = &scratch.dmix[..saved.mix.len()];
        let constants = MixerConstants::new(m, w);
        let params = constants.params(self, m, w);
        let dwide = sized(&mut scratch.dwide, saved.wide.len());
        // The convolution's gradient is tap-major here.
        let mut taps = vec![0.0; w.conv_weight.len()];
        let mut gradients = MixerGradients {
            a_log: g.a_log,
            d: g.d,
            dt_bias: g.dt_bias,
            conv_weight: &mut taps,
            conv_bias: g.conv_bias.as_deref_mut().unwrap_or(&mut []),
            norm_weight: g.gated_norm,
        };
        mamba_split_conv1d_scan_backward(
            self.cpu,
            &params,
            MatRef::new(&saved.wide, width),
            self.documents,
            &saved.scan,
            MatRef::new(dmix, inner),
            MatMut::new(dwide, width),
            &mut gradients,
        );
        let (k, channels) = (m.conv_kernel, m.conv_dim());
        for (i, to) in g.conv_weight.iter_mut().enumerate() {
            *to += taps[i % k * channels + i / k];
        }
        let x = (scratch.normed.as_slice(), h);
        self.linear(dwide, (w.in_proj, g.in_proj), x, &mut scratch.dnormed, Write::Store);
    }

    fn attention_backward(
        &self,
        a: &AttentionConfig,
        w: [&[f32]; 4],
        saved: &Saved,
        [gq, gk, gv, go]: [&mut [f32]; 4],
        d: &mut Vec<f32>,
        scratch: &mut Scratch,
    ) {
        let (h, q_width, kv_width) = (self.config.hidden_size, a.q_width(), a.kv_width());
        let tokens = saved.x.len() / h;
        self.last_projection(saved, (w[3], go), d, scratch);
        let dmix = &scratch.dmix[..saved.mix.len()];
        let [q, k, v] = split_qkv(a, tokens, &saved.wide);
        let dwide = sized(&mut scratch.dwide, saved.wide.len());
        let (dq, dkv) = dwide.split_at_mut(tokens * q_width);
        let (dk, dv) = dkv.split_at_mut(tokens * kv_width);
        let gradients = Qkv {
            q: MatMut::new(dq, q_width),
            k: MatMut::new(dk, kv_width),
            v: MatMut::new(dv, kv_width),
        };
        let (x, dout) = (Qkv { q, k, v }, MatRef::new(dmix, q_width));
        attention_backward(self.cpu, &x, self.documents, a.head_dim, dout, gradients);
        let x = (scratch.normed.as_slice(), h);
        let dx = &mut scratch.dnormed;
        self.linear(dq, (w[0], gq), x, dx, Write::Store);
        self.linear(dk, (w[1], gk), x, dx, Write::Add);
        self.linear(dv, (w[2], gv), x, dx, Write::Add);
    }
}
