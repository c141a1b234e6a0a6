//! The gradient of [`crate::ops::mamba_split_conv1d_scan`] over documents that start from zero.
//!
//! A part is one group of one document: it runs the convolution, the scan and the gated norm of
//! its columns once more and then backwards, so that the forward pass keeps nothing but its input.
//! Gradients of the constants are summed for each document by itself and added document by
//! document, in order: packed documents and documents one by one give the same bits.
//!
//! Convolution (width K, inside the document): `dw_k = Σ_t g_t x_{t−(K−1)+k}`,
//! `dx_t = Σ_k w_k g_{t+(K−1)−k}`.

use crate::Cpu;
use crate::buffer::{Chunks, MatMut, MatRef};
use crate::ops::mamba_split_conv1d_scan::MixerParams;
use crate::ops::rms_norm::{Gated, gated_group_backward};
use crate::ops::ssd::StepSizes;
use crate::ops::ssd_backward::{
    GroupGradients, GroupInputs, GroupParams, SsdScratch, ssd_group_backward, ssd_group_forward,
};
use crate::simd::{Simd, WithSimd, dispatch};
use std::cell::RefCell;

/// Gradients of a mixer's constants; all are added to.
pub struct MixerGradients<'a> {
    /// \[H\].
    pub a_log: &'a mut [f32],
    /// \[H\].
    pub d: &'a mut [f32],
    /// \[H\].
    pub dt_bias: &'a mut [f32],
    /// \[K, HP + 2GN\].
    pub conv_weight: &'a mut [f32],
    /// \[HP + 2GN\]; not used where there is no bias.
    pub conv_bias: &'a mut [f32],
    /// \[HP\].
    pub norm_weight: &'a mut [f32],
}

/// Writes the gradient of `zxbcdt` \[T, 2HP + 2GN + H\], given that of the output \[T, HP\], and
/// adds those of the constants. The rows are those of `documents`, by their lengths.
///
/// # Panics
/// If a shape disagrees with `p`, or the documents do not cover the rows.
pub fn mamba_split_conv1d_scan_backward(
    cpu: &Cpu,
    p: &MixerParams,
    zxbcdt: MatRef,
    documents: &[usize],
    dout: MatRef,
    dzxbcdt: MatMut,
    g: &mut MixerGradients,
) {
    let (ssd, sizes) = (&p.ssd, Sizes::new(p));
    ssd.check();
    assert_eq!(zxbcdt.cols(), ssd.inner() + ssd.conv_dim() + ssd.num_heads, "z, x, B, C and dt");
    assert_eq!([dzxbcdt.rows(), dout.rows()], [zxbcdt.rows(); 2], "rows of the gradients");
    assert_eq!(documents.iter().sum::<usize>(), zxbcdt.rows(), "rows of the documents");
    let mut partial = vec![0.0; documents.len() * ssd.n_groups * sizes.partial()];
    let mut tasks = Vec::with_capacity(documents.len() * ssd.n_groups);
    let (mut rest, mut from) = (dzxbcdt, 0);
    let mut partials = partial.chunks_exact_mut(sizes.partial());
    for &len in documents {
        let (document, later) = rest.split_rows(len);
        rest = later;
        let rows = (zxbcdt.rows_at(from, len), dout.rows_at(from, len));
        from += len;
        let (dz, tail) = document.split_columns(ssd.inner());
        let (dx, tail) = tail.split_columns(ssd.inner());
        let (db, tail) = tail.split_columns(ssd.bc_width());
        let (dc, ddt) = tail.split_columns(ssd.bc_width());
        let mut columns = [dz, dx, db, dc, ddt];
        for group in 0..ssd.n_groups {
            let widths = [sizes.inner, sizes.inner, sizes.n, sizes.n, sizes.heads];
            let mut width = widths.into_iter();
            let gradients = columns.each_mut().map(|all| {
                let empty = MatMut::new(&mut [], 1);
                let whole = std::mem::replace(all, empty);
                let (mine, others) = whole.split_columns(width.next().expect("five"));
                *all = others;
                mine
            });
            let partial = partials.next().expect("one for each group of each document");
            tasks.push(Task { group, rows, gradients, partial });
        }
    }
    let operations = zxbcdt.rows() * (40 * ssd.state_len() + 100 * ssd.conv_dim());
    cpu.pool().for_parts_sized(operations, Chunks::new(&mut tasks, 1), |_, task| {
        SCRATCH.with_borrow_mut(|scratch| task[0].run(cpu, p, scratch));
    });
    drop(tasks);
    for (i, partial) in partial.chunks_exact(sizes.partial()).enumerate() {
        sizes.fold(ssd.n_groups, ssd.inner(), i % ssd.n_groups, partial, g);
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Widths of a group.
#[derive(Clone, Copy)]
struct Sizes {
    heads: usize,
    /// Its heads · P.
    inner: usize,
    n: usize,
    taps: usize,
}

impl Sizes {
    fn new(p: &MixerParams) -> Self {
        let heads = p.ssd.heads_per_group();
        let taps = p.conv_weight.len() / p.ssd.conv_dim();
        Self { heads, inner: heads * p.ssd.head_dim, n: p.ssd.state_size, taps }
    }

    /// Columns of the convolution.
    fn conv(self) -> usize {
        self.inner + 2 * self.n
    }

    /// Gradients of the constants: a_log, d, dt_bias, norm, taps and bias.
    fn partial(self) -> usize {
        3 * self.heads + self.inner + (self.taps + 1) * self.conv()
    }

    fn split(self, partial: &mut [f32]) -> [&mut [f32]; 5] {
        let (a_log, rest) = partial.split_at_mut(self.heads);
        let (d, rest) = rest.split_at_mut(self.heads);
        let (dt_bias, rest) = rest.split_at_mut(self.heads);
        let (norm, conv) = rest.split_at_mut(self.inner);
        [a_log, d, dt_bias, norm, conv]
    }

    /// The three runs of the group's columns in `x | B | C` of all groups: (there, here, length).
    fn runs(self, n_groups: usize, inner: usize, group: usize) -> [(usize, usize, usize); 3] {
        let b = inner + group * self.n;
        [
            (group * self.inner, 0, self.inner),
            (b, self.inner, self.n),
            (b + n_groups * self.n, self.inner + self.n, self.n),
        ]
    }

    fn fold(
        self,
        n_groups: usize,
        inner: usize,
        group: usize,
        partial: &[f32],
        g: &mut MixerGradients,
    ) {
        let (heads, rest) = partial.split_at(3 * self.heads);
        let (norm, conv) = rest.split_at(self.inner);
        for (i, to) in [&mut *g.a_log, &mut *g.d, &mut *g.dt_bias].into_iter().enumerate() {
            add(&mut to[group * self.heads..][..self.heads], &heads[i * self.heads..]);
        }
        add(&mut g.norm_weight[group * self.inner..][..self.inner], norm);
        let conv_dim = inner + 2 * n_groups * self.n;
        for (k, row) in conv.chunks_exact(self.conv()).enumerate() {
            let to = match k < self.taps {
                true => &mut g.conv_weight[k * conv_dim..][..conv_dim],
                false => &mut *g.conv_bias,
            };
            for (there, here, len) in self.runs(n_groups, inner, group) {
                if !to.is_empty() {
                    add(&mut to[there..there + len], &row[here..]);
                }
            }
        }
    }
}

#[inline(always)]
fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, v)| *to += v);
}

/// One group of one document.
struct Task<'a> {
    group: usize,
    /// Its rows of the input and of the output's gradient.
    rows: (MatRef<'a>, MatRef<'a>),
    /// Of z, x, B, C and dt.
    gradients: [MatMut<'a>; 5],
    partial: &'a mut [f32],
}

/// What a worker keeps.
#[derive(Default)]
struct Scratch {
    /// \[L, heads·P + 2N\] each: inputs of the convolution, its sums, its outputs, their gradients.
    conv: [Vec<f32>; 4],
    /// \[L, heads·P\] each: y and its gradient.
    y: [Vec<f32>; 2],
    /// \[L, heads\] each: Δ and its gradient.
    delta: [Vec<f32>; 2],
    /// Taps and bias of the group's columns.
    weight: Vec<f32>,
    ssd: SsdScratch,
}

impl Task<'_> {
    fn run(&mut self, cpu: &Cpu, p: &MixerParams, w: &mut Scratch) {
        let (sizes, len, isa) = (Sizes::new(p), self.rows.0.rows(), cpu.isa());
        if len == 0 {
            return;
        }
        w.conv.iter_mut().for_each(|v| v.resize(len * sizes.conv(), 0.0));
        w.y.iter_mut().for_each(|v| v.resize(len * sizes.inner, 0.0));
        w.delta.iter_mut().for_each(|v| v.resize(len * sizes.heads, 0.0));
        self.gather(p, sizes, w);
        dispatch(isa, ConvForward { sizes, len, w });
        let first = self.group * sizes.heads;
        let dt = p.ssd.inner() + p.ssd.conv_dim() + first;
        let dt = self.rows.0.columns(dt, sizes.heads);
        for t in 0..len {
            let delta = &mut w.delta[0][t * sizes.heads..][..sizes.heads];
            dispatch(isa, StepSizes { p: &p.ssd, first, dt: dt.row(t), delta });
        }
        let params = GroupParams {
            isa,
            head_dim: p.ssd.head_dim,
            state_size: sizes.n,
            a: &p.ssd.a[first..first + sizes.heads],
            d: &p.ssd.d[first..first + sizes.heads],
        };
        let [a_log, d, dt_bias, norm, conv] = sizes.split(self.partial);
        let (z, dout) = self.rows;
        let columns = self.group * sizes.inner;
        let (z, dout) = (z.columns(columns, sizes.inner), dout.columns(columns, sizes.inner));
        let [_, _, out, dact] = &mut w.conv;
        let ([delta, ddelta], [y, dy]) = (&mut w.delta, &mut w.y);
        let inputs = GroupInputs {
            xbc: MatRef::new(out, sizes.conv()),
            delta: MatRef::new(delta, sizes.heads),
        };
        ssd_group_forward(&params, inputs, MatMut::new(y, sizes.inner), &mut w.ssd);
        let weight = &p.norm_weight[columns..columns + sizes.inner];
        let dz = self.gradients[0].reborrow();
        let (y, dy_) = (MatRef::new(y, sizes.inner), MatMut::new(dy, sizes.inner));
        dispatch(isa, Norm { y, z, weight, eps: p.norm_eps, dout, dy: dy_, dz, dweight: norm });
        let gradients = GroupGradients {
            xbc: MatMut::new(dact, sizes.conv()),
            delta: MatMut::new(ddelta, sizes.heads),
            a_log,
            d,
        };
        ssd_group_backward(&params, inputs, MatRef::new(dy, sizes.inner), gradients, &mut w.ssd);
        dispatch(isa, ConvBackward { sizes, len, w, dweight: conv });
        scatter(sizes, w, &mut self.gradients);
        let dt_bias = (dt_bias, &p.ssd.dt_bias[first..first + sizes.heads]);
        step_sizes_backward(p.ssd.dt_limit, dt, dt_bias, w, &mut self.gradients[4]);
    }

    /// Copies the group's columns of the convolution's input, taps and bias.
    fn gather(&self, p: &MixerParams, sizes: Sizes, w: &mut Scratch) {
        let (inner, width) = (p.ssd.inner(), sizes.conv());
        let runs = sizes.runs(p.ssd.n_groups, inner, self.group);
        for (t, to) in w.conv[0].chunks_exact_mut(width).enumerate() {
            let row = &self.rows.0.row(t)[inner..];
            for (there, here, len) in runs {
                to[here..here + len].copy_from_slice(&row[there..there + len]);
            }
        }
        w.weight.clear();
        w.weight.resize((sizes.taps + 1) * width, 0.0);
        let rows = p.conv_weight.chunks_exact(p.ssd.conv_dim()).chain(p.conv_bias);
        for (row, to) in rows.zip(w.weight.chunks_exact_mut(width)) {
            for (there, here, len) in runs {
                to[here..here + len].copy_from_slice(&row[there..there + len]);
            }
        }
    }
}

/// Writes the gradients of x, B and C.
fn scatter(sizes: Sizes, w: &Scratch, gradients: &mut [MatMut; 5]) {
    let [_, dx, db, dc, _] = gradients;
    for (t, row) in w.conv[0].chunks_exact(sizes.conv()).enumerate() {
        let (x, bc) = row.split_at(sizes.inner);
        dx.row_mut(t).copy_from_slice(x);
        db.row_mut(t).copy_from_slice(&bc[..sizes.n]);
        dc.row_mut(t).copy_from_slice(&bc[sizes.n..]);
    }
}

/// `d raw = dΔ · σ(raw + bias)` where no limit is active, else 0.
fn step_sizes_backward(
    (least, most): (f32, f32),
    dt: MatRef,
    (dbias, bias): (&mut [f32], &[f32]),
    w: &Scratch,
    ddt: &mut MatMut,
) {
    let heads = bias.len();
    for t in 0..dt.rows() {
        let (delta, ddelta) = (&w.delta[0][t * heads..], &w.delta[1][t * heads..]);
        for h in 0..heads {
            let free = delta[h] > least && delta[h] < most || delta[h] == 0.0;
            let slope = 1.0 / (1.0 + (-(dt.row(t)[h] + bias[h])).exp());
            let d = if free { ddelta[h] * slope } else { 0.0 };
            ddt.row_mut(t)[h] = d;
            dbias[h] += d;
        }
    }
}

/// Sums and outputs of the convolution.
struct ConvForward<'a> {
    sizes: Sizes,
    len: usize,
    w: &'a mut Scratch,
}

impl WithSimd for ConvForward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { sizes: Sizes { taps, .. }, len, w } = self;
        let width = self.sizes.conv();
        let [x, sums, out, _] = &mut w.conv;
        for t in 0..len {
            let sum = &mut sums[t * width..][..width];
            sum.copy_from_slice(&w.weight[taps * width..][..width]);
            for k in (taps - 1).saturating_sub(t)..taps {
                let input = &x[(t + k + 1 - taps) * width..][..width];
                let tap = &w.weight[k * width..][..width];
                sum.iter_mut().zip(input.iter().zip(tap)).for_each(|(s, (x, w))| *s += x * w);
            }
            let out = out[t * width..][..width].chunks_mut(S::LANES);
            for (sum, out) in sum.chunks(S::LANES).zip(out) {
                s.store_partial(s.silu(s.load_partial(sum)), out);
            }
        }
    }
}

/// From the gradients of the outputs to those of the inputs, which replace the inputs, and of the
/// taps and bias.
struct ConvBackward<'a> {
    sizes: Sizes,
    len: usize,
    w: &'a mut Scratch,
    dweight: &'a mut [f32],
}

impl WithSimd for ConvBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { sizes: Sizes { taps, .. }, len, w, dweight } = self;
        let width = self.sizes.conv();
        let [x, sums, _, g] = &mut w.conv;
        let one = s.splat(1.0);
        for (sum, g) in sums.chunks(S::LANES).zip(g.chunks_mut(S::LANES)) {
            let v = s.load_partial(sum);
            let gate = s.div(one, s.add(one, s.exp(s.sub(s.zero(), v))));
            let slope = s.mul(gate, s.fma(v, s.sub(one, gate), one));
            s.store_partial(s.mul(s.load_partial(g), slope), g);
        }
        let (dtaps, dbias) = dweight.split_at_mut(taps * width);
        for t in 0..len {
            let g = &g[t * width..][..width];
            add(dbias, g);
            for k in (taps - 1).saturating_sub(t)..taps {
                let input = &x[(t + k + 1 - taps) * width..][..width];
                let to = &mut dtaps[k * width..][..width];
                to.iter_mut().zip(g.iter().zip(input)).for_each(|(to, (g, x))| *to += g * x);
            }
        }
        for t in 0..len {
            let dx = &mut x[t * width..][..width];
            dx.fill(0.0);
            for k in 0..taps {
                let later = t + taps - 1 - k;
                if later < len {
                    let (g, tap) = (&g[later * width..][..width], &w.weight[k * width..][..width]);
                    dx.iter_mut().zip(g.iter().zip(tap)).for_each(|(dx, (g, w))| *dx += g * w);
                }
            }
        }
    }
}

/// The gated norm of a group.
struct Norm<'a> {
    y: MatRef<'a>,
    z: MatRef<'a>,
    weight: &'a [f32],
    eps: f32,
    dout: MatRef<'a>,
    dy: MatMut<'a>,
    dz: MatMut<'a>,
    dweight: &'a mut [f32],
}

impl WithSimd for Norm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for t in 0..self.y.rows() {
            let (y, z, dout) = (self.y.row(t), self.z.row(t), self.dout.row(t));
            let row = Gated { y, z, weight: self.weight, eps: self.eps, dout };
            gated_group_backward(s, row, self.dy.row_mut(t), self.dz.row_mut(t), self.dweight);
        }
    }
}

#[cfg(test)]
mod tests;
