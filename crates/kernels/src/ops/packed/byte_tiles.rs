//! The product of many rows of int8 with packed panels on a matrix unit: the bits of
//! [`super::kernel`], faster.
//!
//! A worker writes two panels with a signed byte per code (the offset taken away) and f32 scales
//! into a scratch; then, block by block, the unit multiplies 12 rows of activations with both
//! panels, exactly, and vector code scales the sums and adds them up in the same order as always.

use super::format::{Format, GROUP_BYTES, GROUPS, Panel, ROWS, Scales};
use super::{Epilogue, finish};
use crate::arch::tiles::{BYTE_ROWS, ByteRows, ByteSums, ByteTiles, Tiles, WidePair};
use crate::buffer::{MatMut, on_line};
use crate::ops::q8_rows::{Q8View, WORDS};
use crate::simd::Simd;

/// Fewer rows are faster without the unit.
const MIN_ROWS: usize = 2 * BYTE_ROWS;

/// Whether the unit fits the vectors and the format: with two scales per block the sums are too
/// short for it.
pub(crate) const fn fits<S: Simd, F: Format>() -> bool {
    S::LANES == ROWS && !F::HALVES
}

/// The unit, where it fits and is worth it for so many rows.
pub(crate) fn unit<S: Simd, F: Format>(tiles: Option<Tiles>, rows: usize) -> Option<Tiles> {
    tiles.filter(|_| fits::<S, F>() && rows >= MIN_ROWS)
}

/// Two panels against all rows of activations.
pub(crate) struct Pair<'a> {
    pub(crate) x: Q8View<'a>,
    pub(crate) panels: [Panel<'a>; 2],
    /// The panels' columns of the output, from the first one on.
    pub(crate) out: MatMut<'a>,
    pub(crate) epilogue: Epilogue,
    /// Grows to two wide panels, in words.
    pub(crate) scratch: &'a mut Vec<u32>,
}

impl Pair<'_> {
    #[inline(always)]
    pub(crate) fn run<S: Simd, F: Format>(self, s: S, unit: Tiles) {
        let Self { x, panels, mut out, epilogue, scratch } = self;
        let blocks = x.blocks;
        let block_bytes = WidePair::block_bytes(F::MIN);
        let words = on_line(scratch, blocks * block_bytes / 4);
        let wide: &mut [u8] = bytemuck::cast_slice_mut(words);
        for (b, to) in wide.chunks_exact_mut(block_bytes).enumerate() {
            widen_block::<S, F>(s, panels, b, to);
        }
        let b = WidePair { bytes: wide, blocks, has_min: F::MIN };
        let mut unit = ByteTiles::new(unit);
        let mut sums = ByteSums([[[0.0; ROWS]; 2]; BYTE_ROWS]);
        let mut done = 0;
        while done < x.rows {
            // The last rows are computed with some that are done already.
            let t = done.min(x.rows - BYTE_ROWS);
            let bytes = bytemuck::cast_slice(&x.words[t * blocks * WORDS..]);
            let factors = &x.factors[t * blocks..];
            unit.multiply(ByteRows { bytes, factors }, b, &mut sums);
            for (m, sums) in sums.0.iter().enumerate().skip(done - t) {
                let row = out.row_mut(t + m).chunks_mut(ROWS);
                for (sums, to) in sums.iter().zip(row) {
                    finish(s, s.load(sums), epilogue, to);
                }
            }
            done = t + BYTE_ROWS;
        }
    }
}

/// Writes block number `b` of two panels as of [`WidePair`].
#[inline(always)]
fn widen_block<S: Simd, F: Format>(s: S, panels: [Panel; 2], b: usize, to: &mut [u8]) {
    let (codes, scales) = to.split_at_mut(2 * WidePair::CODES);
    for p in 0..2 {
        let block = &panels[p].codes[b * F::CODES..(b + 1) * F::CODES];
        for group in 0..GROUPS {
            let codes_of_group = s.sub_bytes(F::codes(s, block, 0, group), F::OFFSET as u8);
            s.store_i(codes_of_group, &mut codes[p * WidePair::CODES + group * GROUP_BYTES..]);
        }
        let Scales { d, min } = F::scales(s, &panels[p], b, 0);
        s.store_i(s.cast_i32(d[0]), &mut scales[p * WidePair::SCALES..]);
        if F::MIN {
            s.store_i(s.cast_i32(min), &mut scales[(2 + p) * WidePair::SCALES..]);
        }
    }
}
