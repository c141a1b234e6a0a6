//! The product of rows of bf16 with a packed bf16 matrix, sums in f32.
//!
//! A panel is `[⌈K / 2⌉, 16 rows, 2]`: one vector holds the next two values of each row. Sums run
//! along K in one order for every T, so bits depend on the two rows and the instruction set alone
//! (`VDPBF16PS` rounds differently from two fused multiply-adds, which stand in elsewhere).

use super::format::{GROUP_BYTES, ROWS};
use super::{Epilogue, finish};
use crate::buffer::MatMut;
use crate::ops::q8_rows::Bf16Rows;
use crate::ops::tile::even_share;
use crate::simd::{Simd, WithSimd, array};

/// Some panels against all rows of activations.
pub(crate) struct Panels<'a> {
    pub(crate) x: &'a Bf16Rows,
    /// The panels' bytes.
    pub(crate) data: &'a [u8],
    /// The panels' columns of the output.
    pub(crate) out: MatMut<'a>,
    pub(crate) epilogue: Epilogue,
}

impl WithSimd for Panels<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let bytes = self.x.cols().div_ceil(2) * GROUP_BYTES;
        let count = self.data.len() / bytes;
        let step = if S::LANES == ROWS { 2 } else { 1 };
        for first in (0..count).step_by(step) {
            let here = step.min(count - first);
            let panel = |i: usize| &self.data[(first + i.min(here - 1)) * bytes..][..bytes];
            let panels = [panel(0), panel(1)];
            self.rows(s, panels, here, first * ROWS);
        }
    }
}

/// Rows of activations of a tile.
const fn most_rows(lanes: usize) -> usize {
    match lanes {
        ROWS => 12,
        4 => 5,
        8 => 4,
        _ => 1,
    }
}

impl Panels<'_> {
    #[inline(always)]
    fn rows<S: Simd>(&mut self, s: S, panels: [&[u8]; 2], count: usize, col: usize) {
        let most = most_rows(S::LANES);
        let mut t = 0;
        while t < self.x.rows() {
            let height = even_share(self.x.rows() - t, most);
            match (height, count) {
                (12, 2) if const { most_rows(S::LANES) >= 12 } => {
                    self.tile::<S, 12, 2>(s, panels, t, col)
                }
                (11, 2) if const { most_rows(S::LANES) >= 12 } => {
                    self.tile::<S, 11, 2>(s, panels, t, col)
                }
                (10, 2) if const { most_rows(S::LANES) >= 12 } => {
                    self.tile::<S, 10, 2>(s, panels, t, col)
                }
                (9, 2) if const { most_rows(S::LANES) >= 12 } => {
                    self.tile::<S, 9, 2>(s, panels, t, col)
                }
                (8, 2) if const { most_rows(S::LANES) >= 12 } => {
                    self.tile::<S, 8, 2>(s, panels, t, col)
                }
                (7, 2) if const { most_rows(S::LANES) >= 12 } => {
                    self.tile::<S, 7, 2>(s, panels, t, col)
                }
                (6, 2) if const { most_rows(S::LANES) >= 12 } => {
                    self.tile::<S, 6, 2>(s, panels, t, col)
                }
                (1..6, 2) => self.few::<S, 2>(s, panels, t, height, col),
                (1..6, _) => self.few::<S, 1>(s, panels, t, height, col),
                _ => {
                    for t in t..t + height {
                        self.few::<S, 1>(s, panels, t, 1, col);
                    }
                }
            }
            t += height;
        }
    }

    /// Up to five rows against `P` panels.
    #[inline(always)]
    fn few<S: Simd, const P: usize>(
        &mut self,
        s: S,
        panels: [&[u8]; 2],
        t: usize,
        height: usize,
        col: usize,
    ) {
        match (S::LANES, height) {
            (ROWS, 5) => self.tile::<S, 5, P>(s, panels, t, col),
            (ROWS, 4) => self.tile::<S, 4, P>(s, panels, t, col),
            (ROWS, 3) => self.tile::<S, 3, P>(s, panels, t, col),
            (ROWS, 2) => self.tile::<S, 2, P>(s, panels, t, col),
            (ROWS, _) => self.tile::<S, 1, P>(s, panels, t, col),
            (8, 4) => self.tile::<S, 4, 2>(s, panels, t, col),
            (8, 3) => self.tile::<S, 3, 2>(s, panels, t, col),
            (8, 2) => self.tile::<S, 2, 2>(s, panels, t, col),
            (8, _) => self.tile::<S, 1, 2>(s, panels, t, col),
            (4, 5) => self.tile::<S, 5, 4>(s, panels, t, col),
            (4, 4) => self.tile::<S, 4, 4>(s, panels, t, col),
            (4, 3) => self.tile::<S, 3, 4>(s, panels, t, col),
            (4, 2) => self.tile::<S, 2, 4>(s, panels, t, col),
            (4, _) => self.tile::<S, 1, 4>(s, panels, t, col),
            _ => self.tile::<S, 1, 16>(s, panels, t, col),
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const M: usize, const V: usize>(
        &mut self,
        s: S,
        panels: [&[u8]; 2],
        t: usize,
        col: usize,
    ) {
        let pairs = self.x.cols().div_ceil(2);
        let x: [&[u32]; M] = array!(M, m => &self.x.row(t + m)[..pairs]);
        let w: [&[u8]; V] = array!(V, v => &panels[v * S::LANES / ROWS][..pairs * GROUP_BYTES]);
        let mut acc = [[s.zero(); V]; M];
        for k in 0..pairs {
            // Plain loops: closures are not compiled for the instruction set.
            let mut values = [s.splat_i(0); V];
            for v in 0..V {
                let group = &w[v][k * GROUP_BYTES..(k + 1) * GROUP_BYTES];
                values[v] = s.load_i(&group[v * S::LANES % ROWS * 4..]);
            }
            for m in 0..M {
                let a = s.splat_i(x[m][k] as i32);
                for v in 0..V {
                    acc[m][v] = s.dot_bf16(acc[m][v], values[v], a);
                }
            }
        }
        let end = self.out.cols();
        for (m, acc) in acc.iter().enumerate() {
            let row = self.out.row_mut(t + m);
            for (v, acc) in acc.iter().enumerate() {
                let from = col + v * S::LANES;
                if from < end {
                    finish(s, *acc, self.epilogue, &mut row[from..end.min(from + S::LANES)]);
                }
            }
        }
    }
}
