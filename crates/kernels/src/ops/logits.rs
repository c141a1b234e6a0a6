//! Logits of the output head, a block of rows and a tile of the vocabulary at a time: what the
//! losses that are fused with the head share.
//!
//! Memory: `ROWS × COLUMNS` logits, whatever the number of tokens and the vocabulary. Where one
//! tile holds the vocabulary it is computed once; else a pass over the tiles finds the normalizer
//! and later passes compute the tiles again.

use crate::Cpu;
use crate::buffer::{Chunks, MatMut, MatRef};
use crate::ops::product::{Write, product};
use crate::simd::{Simd, WithSimd, dispatch};
use std::ops::Range;

/// Rows of a block.
pub(crate) const ROWS: usize = 256;
/// Most columns of a tile.
const COLUMNS: usize = 8192;

/// Gradients of the head's operands.
pub struct HeadGradients<'a> {
    /// Of x, \[T, h\]: written.
    pub x: MatMut<'a>,
    /// Of w, \[V, h\]: added to.
    pub w: MatMut<'a>,
}

/// The rows that count: those of non-zero weight.
pub(crate) fn learned_rows(weights: &[f32]) -> Vec<usize> {
    (0..weights.len()).filter(|&t| weights[t] != 0.0).collect()
}

/// Logits of a block of rows, tile by tile.
pub(crate) struct Head<'a> {
    w: MatRef<'a>,
    /// 1/τ, applied to the logits.
    sharpness: f32,
    /// The gathered rows, \[n, h\].
    x: Vec<f32>,
    logits: Vec<f32>,
    /// Their gradient with respect to x.
    dx: Vec<f32>,
    /// Log-sum-exp of every row.
    pub(crate) lse: Vec<f32>,
    /// The tile that `logits` holds.
    held: Option<usize>,
}

impl<'a> Head<'a> {
    pub(crate) fn new(w: MatRef<'a>, temperature: f32) -> Self {
        let (x, logits, dx, lse) = (vec![], vec![], vec![], vec![]);
        Self { w, sharpness: 1.0 / temperature, x, logits, dx, lse, held: None }
    }

    /// Starts the block of these rows of x and finds their normalizers; `see` gets every tile.
    pub(crate) fn start(
        &mut self,
        cpu: &Cpu,
        x: MatRef,
        rows: &[usize],
        mut see: impl FnMut(Range<usize>, &[f32]),
    ) {
        self.x.clear();
        rows.iter().for_each(|&t| self.x.extend_from_slice(x.row(t)));
        self.held = None;
        let mut sums = vec![(f32::NEG_INFINITY, 0.0f32); rows.len()];
        for tile in self.tiles() {
            let logits = self.tile(cpu, tile.clone());
            let parts = (Chunks::new(&mut sums, 8), Chunks::new(&mut logits[..], 8 * tile.len()));
            cpu.pool().for_parts_sized(20 * rows.len() * tile.len(), parts, |_, (sums, rows)| {
                dispatch(cpu.isa(), OnlineSum { sums, rows, cols: tile.len() });
            });
            see(tile, logits);
        }
        self.lse = sums.into_iter().map(|(top, sum)| top + sum.ln()).collect();
    }

    pub(crate) fn tiles(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let vocab = self.w.rows();
        (0..vocab).step_by(COLUMNS).map(move |from| from..vocab.min(from + COLUMNS))
    }

    /// The logits of a tile, \[n, columns\], times 1/τ; the caller may write over them once no
    /// other tile or pass needs them.
    pub(crate) fn tile(&mut self, cpu: &Cpu, tile: Range<usize>) -> &mut [f32] {
        let (h, n) = (self.w.cols(), self.x.len() / self.w.cols());
        self.logits.resize(n * tile.len(), 0.0);
        if self.held != Some(tile.start) {
            let w = self.w.rows_at(tile.start, tile.len());
            let out = MatMut::new(&mut self.logits, tile.len());
            product(cpu, MatRef::new(&self.x, h), w.t(), out, Write::Store);
            if self.sharpness != 1.0 {
                self.logits.iter_mut().for_each(|v| *v *= self.sharpness);
            }
            self.held = Some(tile.start);
        }
        &mut self.logits
    }

    /// Takes the gradients that [`Self::tile`]'s values were replaced with; the tile is gone.
    pub(crate) fn back(&mut self, cpu: &Cpu, tile: Range<usize>, dw: &mut MatMut) {
        let h = self.w.cols();
        self.held = None;
        let first = tile.start == 0;
        self.dx.resize(self.x.len(), 0.0);
        let d = MatRef::new(&self.logits, tile.len());
        let write = if first { Write::Store } else { Write::Add };
        let w = self.w.rows_at(tile.start, tile.len());
        product(cpu, d, w, MatMut::new(&mut self.dx, h), write);
        let dw = dw.reborrow().rows_at(tile.start, tile.len());
        product(cpu, d.t(), MatRef::new(&self.x, h), dw, Write::Add);
    }

    /// Writes the gradient of the block's rows of x.
    pub(crate) fn scatter(&self, rows: &[usize], dx: &mut MatMut) {
        for (&t, d) in rows.iter().zip(self.dx.chunks_exact(self.w.cols())) {
            dx.row_mut(t).copy_from_slice(d);
        }
    }
}

/// Greatest value and sum of exponentials below it, over one tile more.
struct OnlineSum<'a> {
    sums: &'a mut [(f32, f32)],
    rows: &'a [f32],
    cols: usize,
}

impl WithSimd for OnlineSum<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (sum, row) in self.sums.iter_mut().zip(self.rows.chunks_exact(self.cols)) {
            let top = row.iter().fold(sum.0, |top, v| top.max(*v));
            let (whole, mut total) = (row.len() - row.len() % S::LANES, s.zero());
            for v in row[..whole].chunks_exact(S::LANES) {
                total = s.add(total, s.exp(s.sub(s.load(v), s.splat(top))));
            }
            let mut total = s.sum(total);
            for v in &row[whole..] {
                total += (v - top).exp();
            }
            *sum = (top, sum.1 * (sum.0 - top).exp() + total);
        }
    }
}
