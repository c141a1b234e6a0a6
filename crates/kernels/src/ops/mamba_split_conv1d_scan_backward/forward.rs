//! The forward pass of a mixer under training: what [`crate::ops::mamba_split_conv1d_scan`]
//! computes, in the order of the way back, and kept for it.
//!
//! **Invariant:** a region of [`KeptScan`] is one group of one document, and the way back reads from
//! it what it would compute itself, to the bit.

use super::conv::{ConvForward, ROWS_AHEAD, gather_taps};
use super::steps::Steps;
use super::{SCRATCH, Scratch, Sizes, check, fetch};
use crate::buffer::{Chunks, MatMut, MatRef};
use crate::ops::mamba_split_conv1d_scan::MixerParams;
use crate::ops::rms_norm::gate_and_scale;
use crate::ops::ssd_backward::{GroupInputs, GroupParams, ssd_group_forward};
use crate::simd::{Simd, WithSimd, dispatch};
use crate::{Cpu, Isa};
use std::cmp::Reverse;
use std::iter::repeat_n;

/// y and the states between chunks, region by region.
#[derive(Default)]
pub struct KeptScan {
    values: Vec<f32>,
}

impl KeptScan {
    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        4 * self.values.capacity()
    }

    /// Keeps nothing: the way back runs the scan itself.
    pub fn clear(&mut self) {
        self.values.clear();
    }

    /// The region of each group of each document, in order; without any if nothing was kept.
    ///
    /// # Panics
    /// If another batch was kept.
    pub(super) fn regions(
        &self,
        p: &MixerParams,
        documents: &[usize],
    ) -> impl Iterator<Item = &[f32]> {
        let (lens, mut rest) = (lens(p, documents), &self.values[..]);
        assert!(rest.is_empty() || rest.len() == lens.iter().sum(), "what was kept");
        lens.into_iter().map_while(move |len| rest.split_off(..len))
    }
}

/// Lengths of the regions.
fn lens(p: &MixerParams, documents: &[usize]) -> Vec<usize> {
    let sizes = Sizes::new(p);
    documents.iter().flat_map(|&rows| repeat_n(sizes.region(rows), p.ssd.n_groups)).collect()
}

/// `out` \[T, HP\] of `zxbcdt` \[T, 2HP + 2GN + H\]: the mixer over `documents`, given by their
/// lengths, from empty states.
///
/// # Panics
/// If a shape disagrees with `p`, or the documents do not cover the rows.
pub fn mamba_split_conv1d_scan_kept(
    cpu: &Cpu,
    p: &MixerParams,
    zxbcdt: MatRef,
    documents: &[usize],
    kept: &mut KeptScan,
    out: MatMut,
) {
    check(p, zxbcdt, documents);
    assert_eq!((out.rows(), out.cols()), (zxbcdt.rows(), p.ssd.inner()), "output");
    let lens = lens(p, documents);
    kept.values.resize(lens.iter().sum(), 0.0);
    let (mut regions, mut lens) = (kept.values.as_mut_slice(), lens.into_iter());
    let (mut rest, mut from, mut tasks) = (out, 0, Vec::with_capacity(lens.len()));
    for &len in documents {
        let (mut columns, later) = rest.split_rows(len);
        (rest, from) = (later, from + len);
        for index in 0..p.ssd.n_groups {
            let rows = zxbcdt.rows_at(from - len, len);
            let group = Group { p, isa: cpu.isa(), index, rows };
            let (out, others) = columns.split_columns(Sizes::new(p).inner);
            columns = others;
            let region = lens.next().and_then(|len| regions.split_off_mut(..len));
            tasks.push((group, region.expect("a region for each group"), out));
        }
    }
    // Long ones first, or the last one keeps a worker when the others have nothing left.
    tasks.sort_by_key(|(group, ..)| Reverse(group.rows.rows()));
    let operations = zxbcdt.rows() * (12 * p.ssd.state_len() + 40 * p.ssd.conv_dim());
    cpu.pool().for_parts_sized(operations, Chunks::new(&mut tasks, 1), |_, task| {
        let (group, region, out) = &mut task[0];
        SCRATCH.with_borrow_mut(|w| group.forward(region, out.reborrow(), w));
    });
}

/// One group of one document.
#[derive(Clone, Copy)]
pub(super) struct Group<'a> {
    pub(super) p: &'a MixerParams<'a>,
    pub(super) isa: Isa,
    pub(super) index: usize,
    /// The document's rows of zxbcdt.
    pub(super) rows: MatRef<'a>,
}

impl<'a> Group<'a> {
    /// First column of x, y and z.
    pub(super) fn first_column(&self) -> usize {
        self.index * Sizes::new(self.p).inner
    }

    /// x, B and C of all groups.
    pub(super) fn xbc(&self) -> MatRef<'a> {
        self.rows.columns(self.p.ssd.inner(), self.p.ssd.conv_dim())
    }

    pub(super) fn z(&self) -> MatRef<'a> {
        self.rows.columns(self.first_column(), Sizes::new(self.p).inner)
    }

    pub(super) fn norm_weight(&self) -> &'a [f32] {
        &self.p.norm_weight[self.first_column()..][..Sizes::new(self.p).inner]
    }

    /// Steps before softplus.
    pub(super) fn dt(&self) -> MatRef<'a> {
        let (ssd, heads) = (&self.p.ssd, Sizes::new(self.p).heads);
        self.rows.columns(ssd.inner() + ssd.conv_dim() + self.index * heads, heads)
    }

    pub(super) fn params(&self) -> GroupParams<'a> {
        let (ssd, heads) = (&self.p.ssd, Sizes::new(self.p).heads);
        let mine = self.index * heads..(self.index + 1) * heads;
        GroupParams {
            isa: self.isa,
            head_dim: ssd.head_dim,
            state_size: ssd.state_size,
            a: &ssd.a[mine.clone()],
            d: &ssd.d[mine],
        }
    }

    /// Fills in the convolution's outputs and slopes, and Δ.
    pub(super) fn convolve(&self, w: &mut Scratch) {
        let Self { p, isa, index, rows } = *self;
        let (sizes, len) = (Sizes::new(p), rows.rows());
        w.conv.iter_mut().for_each(|v| v.resize(len * sizes.conv(), 0.0));
        w.delta.iter_mut().for_each(|v| v.resize(len * sizes.heads, 0.0));
        let runs = sizes.runs(p.ssd.n_groups, p.ssd.inner(), index);
        gather_taps(p, sizes, runs, &mut w.weight);
        dispatch(isa, ConvForward { sizes, x: self.xbc(), runs, w });
        let (first, delta) = (index * sizes.heads, &mut w.delta[0]);
        dispatch(isa, Steps { p: &p.ssd, first, dt: self.dt(), delta });
    }

    /// Writes y and the states, after [`Self::convolve`].
    pub(super) fn scan(&self, region: &mut [f32], w: &mut Scratch) {
        let sizes = Sizes::new(self.p);
        let (y, states) = region.split_at_mut(self.rows.rows() * sizes.inner);
        let inputs = GroupInputs {
            xbc: MatRef::new(&w.conv[0], sizes.conv()),
            delta: MatRef::new(&w.delta[0], sizes.heads),
        };
        ssd_group_forward(&self.params(), inputs, MatMut::new(y, sizes.inner), states, &mut w.ssd);
    }

    fn forward(&self, region: &mut [f32], out: MatMut, w: &mut Scratch) {
        if self.rows.rows() == 0 {
            return;
        }
        self.convolve(w);
        self.scan(region, w);
        let inner = Sizes::new(self.p).inner;
        let y = MatRef::new(&region[..self.rows.rows() * inner], inner);
        let (weight, eps) = (self.norm_weight(), self.p.norm_eps);
        dispatch(self.isa, GatedNorm { y, z: self.z(), weight, eps, out });
    }
}

/// The gated norm of a group, with rows of wide matrices fetched ahead: a copy of y and the norm in
/// place took 2 to 3 % more of a step of training.
struct GatedNorm<'a> {
    y: MatRef<'a>,
    z: MatRef<'a>,
    weight: &'a [f32],
    eps: f32,
    out: MatMut<'a>,
}

impl WithSimd for GatedNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for t in 0..self.y.rows() {
            let next = t + ROWS_AHEAD;
            if next < self.y.rows() {
                fetch(s, self.z.row(next));
                fetch(s, self.out.row(next));
            }
            let out = self.out.row_mut(t);
            out.copy_from_slice(self.y.row(t));
            gate_and_scale(s, out, self.z.row(t), self.weight, self.eps);
        }
    }
}
