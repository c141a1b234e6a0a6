//! Few rows of activations: block by block, the columns of which some row has a nonzero input are
//! read in fours and multiplied; sums of all rows of weights wait in a scratch.
//!
//! What is read next is known: the lines of the columns that a later block needs are fetched while
//! those before are multiplied, exactly these.

use super::{BAND, FEW_ROWS, LINE, PANELS, Part, STRETCH, Stretch};
use super::{band_bytes, halves_of_bytes, nonzero, place};
use crate::buffer::{MatMut, on_line};
use crate::ops::packed::finish;
use crate::ops::packed::format::{Format, Panel, ROWS};
use crate::ops::packed::kernel::{fetch, start};
use crate::ops::q8_rows::{BLOCK, Q8View, WORDS};
use crate::ops::tile::even_share;
use crate::simd::{Simd, WithSimd, array};
use std::marker::PhantomData;
use std::ops::Range;

/// Blocks between fetching and use.
const AHEAD: usize = 2;

/// Some bands against all rows of activations.
pub(super) struct Few<'a, F> {
    pub(super) part: Part<'a>,
    pub(super) format: PhantomData<F>,
}

impl<F: Format> WithSimd for Few<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Part { x, data, of, first, mut out, epilogue, scratch } = self.part;
        let width = out.cols();
        let sums = on_line(&mut scratch.sums, x.rows * width);
        sums.fill(0.0);
        let bands = first..first + width / BAND;
        let segment = Segment { x, data, of, bands, format: PhantomData::<F> };
        segment.add(s, MatMut::new(sums, width));
        for (t, sums) in sums.chunks_exact(width).enumerate() {
            let to = out.row_mut(t).chunks_mut(S::LANES);
            for (sums, to) in sums.chunks_exact(S::LANES).zip(to) {
                finish(s, s.load(sums), epilogue, to);
            }
        }
    }
}

/// Some bands of a matrix.
struct Segment<'a, F> {
    x: Q8View<'a>,
    data: &'a [u8],
    of: usize,
    bands: Range<usize>,
    format: PhantomData<F>,
}

/// A block: where its columns lie that are multiplied, and what with.
struct Block<'a> {
    codes: &'a [u8],
    /// Scales of all panels.
    scales: &'a [u8],
    supers: &'a [u8],
    /// Where the columns begin, in fours; the last four is filled up with inputs of zero.
    columns: [[usize; 4]; WORDS],
    fours: usize,
    /// Inputs of every row of activations in this order.
    words: [[u32; WORDS]; FEW_ROWS],
    /// `d` and `d Σ q` of the inputs, and `−8 Σ q`.
    factors: [[f32; 2]; FEW_ROWS],
    offsets: [i32; FEW_ROWS],
}

impl<F: Format> Segment<'_, F> {
    /// Adds the products of all blocks to `sums`, `[rows of x, rows of the segment]`.
    #[inline(always)]
    fn add<S: Simd>(&self, s: S, mut sums: MatMut) {
        let blocks = self.x.blocks;
        for b in 0..AHEAD.min(blocks) {
            let mut mask = nonzero(self.x, b);
            (0..self.bands.len()).for_each(|share| self.fetch(s, b, &mut mask, share));
        }
        for b in 0..blocks {
            let block = self.block(b);
            let next = b + AHEAD;
            let mut ahead = if next < blocks { nonzero(self.x, next) } else { 0 };
            for band in 0..self.bands.len() {
                if next < blocks {
                    self.fetch(s, next, &mut ahead, band);
                }
                self.band(s, &block, band, &mut sums);
            }
        }
    }

    /// One band of a block with all rows of activations: tiles of few rows take both halves of the band.
    #[inline(always)]
    fn band<S: Simd>(&self, s: S, block: &Block, band: usize, sums: &mut MatMut) {
        // The most rows whose sums stay in registers with those of half a band.
        let most = if S::LANES == ROWS { 5 } else { 3 };
        for vector in 0..ROWS / S::LANES {
            let mut at = At { band, half: 0, vector, t: 0 };
            while at.t < self.x.rows {
                let height = even_share(self.x.rows - at.t, most);
                // Constants, so that nothing is compiled of tiles that are too large.
                match height {
                    5 if const { S::LANES == ROWS } => self.halves::<S, 5>(s, block, at, sums),
                    4 if const { S::LANES == ROWS } => self.halves::<S, 4>(s, block, at, sums),
                    3 => self.tile::<S, 3, 2>(s, block, at, sums),
                    2 => self.tile::<S, 2, 2>(s, block, at, sums),
                    _ => self.tile::<S, 1, 2>(s, block, at, sums),
                }
                at.t += height;
            }
        }
    }

    /// Two tiles of `M` rows, which have too many sums for one.
    #[inline(always)]
    fn halves<S: Simd, const M: usize>(&self, s: S, block: &Block, at: At, sums: &mut MatMut) {
        self.tile::<S, M, 1>(s, block, at, sums);
        self.tile::<S, M, 1>(s, block, At { half: 1, ..at }, sums);
    }

    /// Where a tile's vector lies in a column.
    #[inline(always)]
    fn line<S: Simd>(&self, at: At) -> usize {
        (self.bands.start + at.band) * band_bytes::<F>() + at.vector * 4 * S::LANES
    }

    /// The stretch of block `b`, and which of its blocks that is.
    #[inline(always)]
    fn stretch(&self, b: usize) -> (Stretch<'_>, usize) {
        (Stretch::of::<F>(self.data, self.of, self.x.blocks, b / STRETCH), b % STRETCH)
    }

    /// Block `b`.
    #[inline(always)]
    fn block(&self, b: usize) -> Block<'_> {
        let mut mask = nonzero(self.x, b);
        let count = mask.count_ones() as usize;
        let (stretch, in_stretch) = self.stretch(b);
        let mut block = Block {
            codes: stretch.codes::<F>(in_stretch),
            scales: stretch.scales::<F>(in_stretch),
            supers: stretch.supers,
            columns: [[0; 4]; WORDS],
            fours: count.div_ceil(4),
            words: [[0; WORDS]; FEW_ROWS],
            factors: [[0.0; 2]; FEW_ROWS],
            offsets: [0; FEW_ROWS],
        };
        let stride = stretch.column_bytes::<F>();
        let all = self.x.words.chunks_exact(self.x.blocks * WORDS);
        let own =
            |row: &[u32]| <[u32; WORDS]>::try_from(&row[b * WORDS..][..WORDS]).expect("words");
        let mut x = [[0; WORDS]; FEW_ROWS];
        for (t, row) in all.enumerate() {
            x[t] = own(row);
            let row = self.x.row(t);
            (block.factors[t], block.offsets[t]) = (row.factors[b], row.offsets[b]);
        }
        if count == BLOCK {
            block.columns = array!(WORDS, four => array!(4, c => (4 * four + c) * stride));
            block.words = x;
            return block;
        }
        let mut last = 0;
        for i in 0..4 * block.fours {
            if mask != 0 {
                last = mask.trailing_zeros() as usize;
                for t in 0..self.x.rows {
                    let byte = x[t][last / 4] >> (8 * (last % 4)) & 0xff;
                    block.words[t][i / 4] |= byte << (8 * (i % 4));
                }
                mask &= mask - 1;
            }
            block.columns[i / 4][i % 4] = last * stride;
        }
        block
    }

    /// Asks for what block `b` needs for the columns in `mask`: share number `share` of as many as there
    /// are bands, so that fetching goes along with the arithmetic. A column's lines follow each other.
    #[inline(always)]
    fn fetch<S: Simd>(&self, s: S, b: usize, mask: &mut u32, share: usize) {
        let (bands, (stretch, b)) = (self.bands.len(), self.stretch(b));
        let (stride, codes) = (stretch.column_bytes::<F>(), stretch.codes::<F>(b));
        let columns = (mask.count_ones() as usize).div_ceil(bands - share);
        for _ in 0..columns {
            let from = mask.trailing_zeros() as usize * stride;
            let lines = &codes[from + self.bands.start * band_bytes::<F>()..];
            fetch(s, &lines[..bands * band_bytes::<F>()]);
            *mask &= *mask - 1;
        }
        let bytes = PANELS * F::SCALES;
        let from = (self.bands.start + share) * bytes;
        fetch(s, &stretch.scales::<F>(b)[from..from + bytes]);
    }

    /// `M` rows of activations with `H` halves of a band, one vector of a line of every column.
    #[inline(always)]
    fn tile<S: Simd, const M: usize, const H: usize>(
        &self,
        s: S,
        block: &Block,
        at: At,
        sums: &mut MatMut,
    ) {
        let At { half, vector, t, .. } = at;
        let band = self.bands.start + at.band;
        let words = array!(M, m => &block.words[t + m][..block.fours]);
        // As in `super::super::kernel`: a block's products fit in pairs of 16 bits if its codes do.
        let pairs_fit = S::PAIRS && F::BITS <= 4;
        let mut exact = [[[s.splat_i(0); 4]; H]; M];
        for m in 0..M {
            if !pairs_fit {
                exact[m] = [[start::<S, F>(s, &block.offsets, t + m); 4]; H];
            }
        }
        let from = self.line::<S>(at);
        for (four, columns) in block.columns[..block.fours].iter().enumerate() {
            let codes = codes::<S, F, H>(s, block.codes, columns, from, half);
            for m in 0..M {
                let a = s.splat_i(words[m][four] as i32);
                for h in 0..H {
                    for v in 0..4 {
                        let sum = &mut exact[m][h][v];
                        *sum = if pairs_fit {
                            s.dot_pairs(*sum, codes[h][v], a)
                        } else {
                            s.dot(*sum, codes[h][v], a, F::BITS < 8)
                        };
                    }
                }
            }
        }
        for h in 0..H {
            for v in 0..4 {
                let (panel, row) = place::<S>(vector, v);
                let panel = 4 * (half + h) + panel;
                let to = at.band * BAND + panel * ROWS + row;
                let panel = band * PANELS + panel;
                let scales = &block.scales[panel * F::SCALES..(panel + 1) * F::SCALES];
                let supers = &block.supers[panel * F::SUPER..(panel + 1) * F::SUPER];
                let scales = F::scales(s, &Panel { codes: &[], scales, supers }, 0, row);
                for m in 0..M {
                    let mut exact = exact[m][h][v];
                    if pairs_fit {
                        let first = start::<S, F>(s, &block.offsets, t + m);
                        exact = s.add_pairs(first, exact);
                    }
                    let sum = &mut sums.row_mut(t + m)[to..to + S::LANES];
                    let [d, d_sum] = block.factors[t + m];
                    let scale = s.mul(scales.d[0], s.splat(d));
                    let mut acc = s.fma(s.to_f32(exact), scale, s.load(sum));
                    if F::MIN {
                        acc = s.fma(scales.min, s.splat(d_sum), acc);
                    }
                    s.store(acc, sum);
                }
            }
        }
    }
}

/// Where a tile is.
#[derive(Clone, Copy)]
struct At {
    /// Band of the segment, its half, and the vector of a line.
    band: usize,
    half: usize,
    vector: usize,
    /// First row of activations.
    t: usize,
}

/// Codes of four columns, `H` halves of a band from `half` on: a word per row.
#[inline(always)]
fn codes<S: Simd, F: Format, const H: usize>(
    s: S,
    block: &[u8],
    columns: &[usize; 4],
    from: usize,
    half: usize,
) -> [[S::I; 4]; H] {
    if !halves_of_bytes::<F>() {
        return array!(H, h => {
            let line = from + (half + h) * LINE;
            s.interleave(array!(4, c => s.load_i(&block[columns[c] + line..])))
        });
    }
    let low = s.splat_i(0x0f0f_0f0f);
    let both = s.interleave(array!(4, c => s.load_i(&block[columns[c] + from..])));
    array!(H, h => array!(4, v => {
        let moved = if half + h == 0 { both[v] } else { s.shr_i::<4>(both[v]) };
        F::level(s, s.and_i(moved, low))
    }))
}
