//! Matrices whose inputs are mostly zero: a second compute layout, of which few rows of activations
//! read the columns of nonzero inputs alone.
//!
//! 256 columns make a **stretch** (the last may have fewer), one contiguous run of bytes:
//!
//! ```text
//! stretch: codes of block 0 … 7 | scales of block 0, all panels | … | scales of 256s (K-quants)
//! block:   column 0, all rows | column 1 | … | column 31
//! column:  per band of 128 rows, 64 bytes of codes of 4 bits or 128 bytes of 8
//! line:    byte 16·L + 4·v + i: row 4·L + i of panel v; high halves: of panel v + 4
//! ```
//!
//! The order within a line is what four columns need to become vectors of four codes per row by
//! interleaving bytes ([`Simd::interleave`]). Every byte of the panels is there, and no other.
//!
//! Invariant: products have the bits of the panels' ([`super::kernel`]): a skipped column adds an
//! exact zero to an integer sum, and the sums are scaled and added up in the same order.

mod few;
mod many;
mod pack;

pub(super) use pack::pack;

use super::format::{Format, GROUP_BYTES, ROWS, panel_bytes};
use super::{Epilogue, PackedRef, SCRATCH, Scratch, WithFormat, format};
use crate::arch::tiles::Tiles;
use crate::buffer::MatMut;
use crate::dtype::DType;
use crate::ops::q8_rows::{BLOCK, Q8View, WORDS};
use crate::simd::{Simd, dispatch};
use crate::{Cpu, Isa};
use std::marker::PhantomData;

/// Rows of which a column of 4-bit codes is one cache line.
const BAND: usize = 128;
/// Panels of a band.
const PANELS: usize = BAND / ROWS;
/// Bytes of a line.
const LINE: usize = 64;
/// Blocks of a stretch.
const STRETCH: usize = 8;
/// Up to so many rows of activations skip columns; for more, putting panels together again is faster.
const FEW_ROWS: usize = 16;
/// The same where vectors are shorter than a line.
const FEW_ROWS_OF_SHORT_VECTORS: usize = 6;
/// Parts of a product with many rows for each thread, at least, and the fewest rows of one.
const PARTS_OF_THREAD: usize = 4;
const LEAST_ROWS: usize = 64;
/// Most bands of sums that a part of several rows keeps at hand.
const MOST_SUMS: usize = 96;

/// Whether a matrix can be laid out by columns: in whole bands, in a format whose codes are halves
/// of bytes or bytes.
pub(super) fn suits(dtype: DType, rows: usize) -> bool {
    let format = matches!(dtype, DType::Q4_0 | DType::Iq4Nl | DType::Q8_0 | DType::Q4K);
    format && rows > 0 && rows.is_multiple_of(BAND)
}

/// Runs `op` for the format of `dtype`, which [`suits`].
fn with_format<O: WithFormat>(dtype: DType, op: O) -> O::Output {
    match dtype {
        DType::Q4_0 => op.run::<format::Q4_0>(),
        DType::Iq4Nl => op.run::<format::Iq4Nl>(),
        DType::Q8_0 => op.run::<format::Q8_0>(),
        DType::Q4K => op.run::<format::Q4K>(),
        _ => panic!("{dtype} has no layout by columns"),
    }
}

/// Whether codes have 4 bits.
const fn halves_of_bytes<F: Format>() -> bool {
    F::CODES == 4 * GROUP_BYTES
}

/// Bytes of a column's codes of one band.
const fn band_bytes<F: Format>() -> usize {
    if halves_of_bytes::<F>() { LINE } else { 2 * LINE }
}

/// A stretch's parts.
#[derive(Clone, Copy)]
struct Stretch<'a> {
    /// Bands of the matrix.
    bands: usize,
    blocks: usize,
    codes: &'a [u8],
    scales: &'a [u8],
    supers: &'a [u8],
}

impl<'a> Stretch<'a> {
    /// Number `index` of a matrix of so many bands and blocks.
    #[inline(always)]
    fn of<F: Format>(data: &'a [u8], bands: usize, blocks: usize, index: usize) -> Self {
        let panels = bands * PANELS;
        let from = index * panels * panel_bytes::<F>(STRETCH);
        let blocks = STRETCH.min(blocks - index * STRETCH);
        let (codes, rest) = data[from..].split_at(blocks * panels * F::CODES);
        let (scales, rest) = rest.split_at(blocks * panels * F::SCALES);
        Self { bands, blocks, codes, scales, supers: &rest[..panels * F::SUPER] }
    }

    /// Bytes of a column of a block.
    #[inline(always)]
    fn column_bytes<F: Format>(&self) -> usize {
        self.bands * band_bytes::<F>()
    }

    /// The columns of block `b` of the stretch.
    #[inline(always)]
    fn codes<F: Format>(&self, b: usize) -> &'a [u8] {
        let bytes = BLOCK * self.column_bytes::<F>();
        &self.codes[b * bytes..(b + 1) * bytes]
    }

    /// The scales of block `b` of the stretch, all panels.
    #[inline(always)]
    fn scales<F: Format>(&self, b: usize) -> &'a [u8] {
        let bytes = self.bands * PANELS * F::SCALES;
        &self.scales[b * bytes..(b + 1) * bytes]
    }
}

/// Panel and first row of result `v` of interleaving vector `vector` of lines.
#[inline(always)]
fn place<S: Simd>(vector: usize, v: usize) -> (usize, usize) {
    match S::LANES {
        1 => (vector % 4, vector / 4 * 4 + v),
        lanes => (v, vector * lanes),
    }
}

/// As [`super::matmul`].
pub(super) fn matmul(cpu: &Cpu, x: Q8View, w: PackedRef, out: MatMut, epilogue: Epilogue) {
    let (isa, threads, of) = (cpu.isa(), cpu.pool().threads(), w.rows / BAND);
    let few_rows = if isa >= Isa::Avx512 { FEW_ROWS } else { FEW_ROWS_OF_SHORT_VECTORS };
    let few = x.rows <= few_rows;
    let (bands, height) = match few {
        true => (bands_of_part(of, threads).min(MOST_SUMS / x.rows), x.rows),
        // Many threads have few bands each, and share the rows of activations.
        false => (1, x.rows.div_ceil((PARTS_OF_THREAD * threads).div_ceil(of)).max(LEAST_ROWS)),
    };
    let across = of.div_ceil(bands);
    let operations = x.rows * w.rows * w.cols / 4;
    cpu.pool().for_parts_sized(operations, out.tiles(height, bands * BAND), |i, out| {
        let x = x.rows_at(i / across * height, out.rows());
        SCRATCH.with_borrow_mut(|scratch| {
            let (data, first) = (w.data, i % across * bands);
            let part = Part { x, data, of, first, out, epilogue, scratch };
            with_format(w.dtype, Op { isa, few, part });
        });
    });
}

/// A bit for every column of block `b` of which some row has a nonzero input.
#[inline(always)]
fn nonzero(x: Q8View, b: usize) -> u32 {
    let mut any = [0; WORDS];
    for row in x.words.chunks_exact(x.blocks * WORDS) {
        for (any, word) in any.iter_mut().zip(&row[b * WORDS..(b + 1) * WORDS]) {
            *any |= word;
        }
    }
    let mut mask = 0;
    for (i, word) in any.into_iter().enumerate() {
        // The high bit of every byte that is not zero; then these four bits side by side.
        let high = (((word & 0x7f7f_7f7f) + 0x7f7f_7f7f) | word) & 0x8080_8080;
        mask |= ((high >> 7).wrapping_mul(0x0102_0408) >> 24 & 15) << (4 * i);
    }
    mask
}

/// Some bands of a matrix against all rows of activations.
struct Part<'a> {
    x: Q8View<'a>,
    /// The whole matrix, and its bands.
    data: &'a [u8],
    of: usize,
    /// First band of the part; it has as many rows as `out` has columns.
    first: usize,
    out: MatMut<'a>,
    epilogue: Epilogue,
    scratch: &'a mut Scratch,
}

struct Op<'a> {
    isa: Isa,
    few: bool,
    part: Part<'a>,
}

impl WithFormat for Op<'_> {
    type Output = ();
    fn run<F: Format>(self) {
        let Self { isa, few, part } = self;
        let format = PhantomData::<F>;
        match few {
            true => dispatch(isa, few::Few { part, format }),
            false => dispatch(isa, many::Many { part, tiles: Tiles::of(isa), format }),
        }
    }
}

/// Bands of a part: as many as let the threads end together, and of these the fewest, down to half
/// a thread's: one that is late leaves the rest to others.
fn bands_of_part(bands: usize, threads: usize) -> usize {
    let rounds = |of: usize| bands.div_ceil(of).div_ceil(threads) * of;
    let most = bands.div_ceil(threads);
    (most.div_ceil(2)..=most).min_by_key(|&of| rounds(of)).unwrap_or(1)
}
