//! The gradient of [`crate::ops::mamba_split_conv1d_scan`] over documents that start from zero.
//!
//! A part is one group of one document: it runs the convolution of its columns once more, the scan
//! too unless the forward pass kept it ([`mamba_split_conv1d_scan_kept`]), and then all backwards.
//! Gradients of the constants are summed for each document by itself and added document by
//! document, in order: packed documents and documents one by one give the same bits.
//!
//! Convolution (width K, inside the document): `dw_k = Σ_t g_t x_{t−(K−1)+k}`,
//! `dx_t = Σ_k w_k g_{t+(K−1)−k}`.

mod conv;
mod forward;
mod steps;

pub use forward::{KeptScan, mamba_split_conv1d_scan_kept};

use crate::Cpu;
use crate::buffer::{Chunks, MatMut, MatRef};
use crate::ops::mamba_split_conv1d_scan::MixerParams;
use crate::ops::rms_norm::{Gated, gated_group_backward};
use crate::ops::ssd_backward::{
    GroupGradients, GroupInputs, SsdScratch, ssd_group_backward, states_len,
};
use crate::simd::{Simd, WithSimd, dispatch};
use conv::{ConvBackward, ROWS_AHEAD, Run};
use forward::Group;
use std::cell::RefCell;
use std::cmp::Reverse;
use steps::StepsBackward;

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
/// adds those of the constants. The rows are those of `documents`, by their lengths; `kept` is what
/// the forward pass left, or nothing.
///
/// # Panics
/// If a shape disagrees with `p`, the documents do not cover the rows, or `kept` is another batch's.
pub fn mamba_split_conv1d_scan_backward(
    cpu: &Cpu,
    p: &MixerParams,
    zxbcdt: MatRef,
    documents: &[usize],
    kept: &KeptScan,
    dout: MatRef,
    dzxbcdt: MatMut,
    g: &mut MixerGradients,
) {
    let (ssd, sizes) = (&p.ssd, Sizes::new(p));
    check(p, zxbcdt, documents);
    assert_eq!([dzxbcdt.rows(), dout.rows()], [zxbcdt.rows(); 2], "rows of the gradients");
    let mut regions = kept.regions(p, documents);
    let mut partial = vec![0.0; documents.len() * ssd.n_groups * sizes.partial()];
    let mut tasks = Vec::with_capacity(documents.len() * ssd.n_groups);
    let (mut rest, mut from) = (dzxbcdt, 0);
    let mut partials = partial.chunks_exact_mut(sizes.partial());
    for &len in documents {
        let (document, later) = rest.split_rows(len);
        rest = later;
        let (rows, dout) = (zxbcdt.rows_at(from, len), dout.rows_at(from, len));
        from += len;
        let (dz, tail) = document.split_columns(ssd.inner());
        let (dx, tail) = tail.split_columns(ssd.inner());
        let (db, tail) = tail.split_columns(ssd.bc_width());
        let (dc, ddt) = tail.split_columns(ssd.bc_width());
        let mut columns = [dz, dx, db, dc, ddt];
        for index in 0..ssd.n_groups {
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
            let (group, kept) = (Group { p, isa: cpu.isa(), index, rows }, regions.next());
            let dout = dout.columns(group.first_column(), sizes.inner);
            tasks.push(Task { group, kept, dout, gradients, partial });
        }
    }
    // Long ones first, or the last one keeps a worker when the others have nothing left.
    tasks.sort_by_key(|task| Reverse(task.dout.rows()));
    let operations = zxbcdt.rows() * (40 * ssd.state_len() + 100 * ssd.conv_dim());
    cpu.pool().for_parts_sized(operations, Chunks::new(&mut tasks, 1), |_, task| {
        SCRATCH.with_borrow_mut(|scratch| task[0].run(scratch));
    });
    drop(tasks);
    for (i, partial) in partial.chunks_exact(sizes.partial()).enumerate() {
        sizes.fold(ssd.n_groups, ssd.inner(), i % ssd.n_groups, partial, g);
    }
}

fn check(p: &MixerParams, zxbcdt: MatRef, documents: &[usize]) {
    let ssd = &p.ssd;
    ssd.check();
    assert_eq!(zxbcdt.cols(), ssd.inner() + ssd.conv_dim() + ssd.num_heads, "z, x, B, C and dt");
    assert_eq!(documents.iter().sum::<usize>(), zxbcdt.rows(), "rows of the documents");
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

    /// Values of y and the states of so many rows.
    fn region(self, rows: usize) -> usize {
        rows * self.inner + states_len(rows, self.n, self.inner)
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

    /// The group's columns of x, B and C.
    fn runs(self, n_groups: usize, inner: usize, group: usize) -> [Run; 3] {
        let (b, n) = (inner + group * self.n, self.n);
        [
            Run { there: group * self.inner, here: 0, len: self.inner },
            Run { there: b, here: self.inner, len: n },
            Run { there: b + n_groups * n, here: self.inner + n, len: n },
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
            for Run { there, here, len } in self.runs(n_groups, inner, group) {
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
    group: Group<'a>,
    /// Its y and states.
    kept: Option<&'a [f32]>,
    /// The group's columns of the output's gradient.
    dout: MatRef<'a>,
    /// Of z, x, B, C and dt.
    gradients: [MatMut<'a>; 5],
    partial: &'a mut [f32],
}

/// What a worker keeps.
#[derive(Default)]
struct Scratch {
    /// \[L, heads·P + 2N\] each: the convolution's outputs, their slopes, their gradients.
    conv: [Vec<f32>; 3],
    /// y and the states, if the forward pass did not keep them.
    region: Vec<f32>,
    /// The gradient of y, \[L, heads·P\].
    dy: Vec<f32>,
    /// \[L, heads\] each: Δ and its gradient.
    delta: [Vec<f32>; 2],
    /// Taps and bias of the group's columns.
    weight: Vec<f32>,
    ssd: SsdScratch,
}

impl Task<'_> {
    fn run(&mut self, w: &mut Scratch) {
        let (group, sizes) = (self.group, Sizes::new(self.group.p));
        let (p, isa, len) = (group.p, group.isa, group.rows.rows());
        if len == 0 {
            return;
        }
        group.convolve(w);
        let mut own = std::mem::take(&mut w.region);
        let region = self.kept.unwrap_or_else(|| {
            own.resize(sizes.region(len), 0.0);
            group.scan(&mut own, w);
            &own
        });
        let (y, states) = region.split_at(len * sizes.inner);
        let y = MatRef::new(y, sizes.inner);
        let [a_log, d, dt_bias, norm, conv] = sizes.split(self.partial);
        w.dy.resize(len * sizes.inner, 0.0);
        let [dz, dx, db, dc, ddt] = &mut self.gradients;
        let op = Norm {
            y,
            z: group.z(),
            weight: group.norm_weight(),
            eps: p.norm_eps,
            dout: self.dout,
            dy: MatMut::new(&mut w.dy, sizes.inner),
            dz: dz.reborrow(),
            dweight: norm,
        };
        dispatch(isa, op);
        let ([out, _, dact], [delta, ddelta]) = (&mut w.conv, &mut w.delta);
        let inputs = GroupInputs {
            xbc: MatRef::new(out, sizes.conv()),
            delta: MatRef::new(delta, sizes.heads),
        };
        let gradients = GroupGradients {
            xbc: MatMut::new(dact, sizes.conv()),
            delta: MatMut::new(ddelta, sizes.heads),
            a_log,
            d,
        };
        let dy = MatRef::new(&w.dy, sizes.inner);
        ssd_group_backward(&group.params(), inputs, states, dy, gradients, &mut w.ssd);
        let runs = sizes.runs(p.ssd.n_groups, p.ssd.inner(), group.index);
        let dx = [dx, db, dc];
        dispatch(isa, ConvBackward { sizes, x: group.xbc(), runs, w, dx, dweight: conv });
        let bias = &p.ssd.dt_bias[group.index * sizes.heads..][..sizes.heads];
        let (limit, dt, ddt) = (p.ssd.dt_limit, group.dt(), ddt.reborrow());
        dispatch(isa, StepsBackward { limit, dt, bias, dbias: dt_bias, delta: &w.delta, ddt });
        w.region = own;
    }
}

/// Asks for the lines of a row's columns.
#[inline(always)]
fn fetch<S: Simd>(s: S, columns: &[f32]) {
    columns.chunks(16).for_each(|line| s.prefetch(line));
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
            let next = t + ROWS_AHEAD;
            if next < self.y.rows() {
                fetch(s, self.z.row(next));
                fetch(s, self.dout.row(next));
                fetch(s, self.dz.row(next));
            }
            let row = Gated { y, z, weight: self.weight, eps: self.eps, dout };
            gated_group_backward(s, row, self.dy.row_mut(t), self.dz.row_mut(t), self.dweight);
        }
    }
}

#[cfg(test)]
mod tests;
