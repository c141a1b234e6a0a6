//! Block formats in compute layout: how codes and scales of 16 rows lie, and how they are read.
//!
//! A **panel** is [`ROWS`] rows of a matrix. It holds the codes of all its blocks of 32 values,
//! then their scales, then the scales of its blocks of 256 (K-quants only). A block's codes are
//! read as eight *groups* of four consecutive values per row: group j of row r is the four bytes
//! of lane r, so one vector feeds one byte dot product. Where codes have 4 bits, a byte holds a
//! value of group j (low half) and one of group j + 4 (high half); fifth and sixth bits lie in
//! words of their own, one bit plane per group.
//!
//! Value of a code q: `d·(q − OFFSET)`, or `d·q + min` where [`Format::MIN`]. Codes and scales
//! are those of the file, bit for bit: packing rounds nothing.

use crate::simd::Simd;
use std::marker::PhantomData;

/// Rows of a panel.
pub(crate) const ROWS: usize = 16;
/// Groups of four values in a block.
pub(crate) const GROUPS: usize = 8;
/// Bytes of a group of a panel: four of each row.
pub(crate) const GROUP_BYTES: usize = 4 * ROWS;

/// Scales of one block for a vector of rows.
pub(crate) struct Scales<V> {
    /// d of the two halves of the block; the same where the format has one.
    pub(crate) d: [V; 2],
    /// What every value adds; unused unless [`Format::MIN`].
    pub(crate) min: V,
}

/// A format in compute layout.
pub(crate) trait Format: 'static {
    /// Bytes of a block's codes, all rows of a panel.
    const CODES: usize;
    /// Bytes of a block's scales.
    const SCALES: usize;
    /// Bytes of the scales of 256 values.
    const SUPER: usize = 0;
    /// What is taken from every code; a multiple of 8.
    const OFFSET: i32;
    /// Bits of a code.
    const BITS: u32;
    /// Whether each half of a block has a scale of its own.
    const HALVES: bool = false;
    /// Whether values have a minimum that is added.
    const MIN: bool = false;
    /// Rows of activations that pay for writing a panel as [`Wide`] once. Measured: whole bytes and
    /// halves of bytes are faster read as they are, whatever the number of rows.
    const WIDEN_ROWS: usize = usize::MAX;

    /// Group `group` of the rows from `row` on, one row per lane.
    fn codes<S: Simd>(s: S, block: &[u8], row: usize, group: usize) -> S::I;

    /// What a code stands for as [`Self::codes`] gives it, from its 4 or 8 bits.
    #[inline(always)]
    fn level<S: Simd>(_s: S, code: S::I) -> S::I {
        code
    }

    /// Scales of block number `index` for the rows from `row` on.
    fn scales<S: Simd>(s: S, panel: &Panel, index: usize, row: usize) -> Scales<S::V>;
}

/// The parts of a panel.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a> {
    pub(crate) codes: &'a [u8],
    pub(crate) scales: &'a [u8],
    pub(crate) supers: &'a [u8],
}

/// Bytes of a panel of `blocks` blocks.
pub(crate) fn panel_bytes<F: Format>(blocks: usize) -> usize {
    blocks * (F::CODES + F::SCALES) + blocks.div_ceil(8) * F::SUPER
}

impl<'a> Panel<'a> {
    /// The parts of a panel's bytes.
    #[inline(always)]
    pub(crate) fn new<F: Format>(bytes: &'a [u8], blocks: usize) -> Self {
        let (codes, rest) = bytes.split_at(blocks * F::CODES);
        let (scales, supers) = rest.split_at(blocks * F::SCALES);
        Self { codes, scales, supers }
    }
}

/// Low halves of the bytes for groups 0 … 3, high halves for 4 … 7.
#[inline(always)]
fn nibbles<S: Simd>(s: S, block: &[u8], row: usize, group: usize) -> S::I {
    let bytes = s.load_i(&block[group % 4 * GROUP_BYTES + 4 * row..]);
    let low = s.splat_i(0x0f0f_0f0f);
    s.and_i(if group < 4 { bytes } else { s.shr_i::<4>(bytes) }, low)
}

/// Bit `group` of every byte of the words at `at`, moved to bit 4.
#[inline(always)]
fn fifth_bits<S: Simd>(s: S, words: &[u8], row: usize, group: usize) -> S::I {
    let word = s.load_i(&words[4 * row..]);
    let moved = match group {
        0 => s.shl_i::<4>(word),
        1 => s.shl_i::<3>(word),
        2 => s.shl_i::<2>(word),
        3 => s.shl_i::<1>(word),
        4 => word,
        5 => s.shr_i::<1>(word),
        6 => s.shr_i::<2>(word),
        _ => s.shr_i::<3>(word),
    };
    s.and_i(moved, s.splat_i(0x1010_1010))
}

/// Bits `2 · (group % 4)` and the next of every byte of the group's words, moved to bit 4.
#[inline(always)]
fn two_bits<S: Simd>(s: S, words: &[u8], row: usize, group: usize) -> S::I {
    let word = s.load_i(&words[group / 4 * GROUP_BYTES + 4 * row..]);
    let moved = match group % 4 {
        0 => s.shl_i::<4>(word),
        1 => s.shl_i::<2>(word),
        2 => word,
        _ => s.shr_i::<2>(word),
    };
    s.and_i(moved, s.splat_i(0x3030_3030))
}

/// One f16 scale per row and block.
#[inline(always)]
fn one_scale<S: Simd>(s: S, panel: &Panel, bytes: usize, index: usize, row: usize) -> Scales<S::V> {
    let d = s.load_f16(&panel.scales[index * bytes + 2 * row..]);
    Scales { d: [d; 2], min: s.zero() }
}

/// An f16 scale and an f16 minimum per row and block.
#[inline(always)]
fn scale_and_min<S: Simd>(s: S, panel: &Panel, index: usize, row: usize) -> Scales<S::V> {
    let at = index * 4 * ROWS + 2 * row;
    let d = s.load_f16(&panel.scales[at..]);
    Scales { d: [d; 2], min: s.load_f16(&panel.scales[at + 2 * ROWS..]) }
}

/// K-quants: `d·sc` and `−dmin·m`, sc and m one byte per row and block, d and dmin f16 per 256.
#[inline(always)]
fn k_scales<S: Simd>(s: S, panel: &Panel, index: usize, row: usize) -> Scales<S::V> {
    let (at, sup) = (index * 2 * ROWS + row, index / 8 * 4 * ROWS + 2 * row);
    let (sc, m) = (s.load_u8(&panel.scales[at..]), s.load_u8(&panel.scales[at + ROWS..]));
    let (d, dmin) = (s.load_f16(&panel.supers[sup..]), s.load_f16(&panel.supers[sup + 2 * ROWS..]));
    Scales { d: [s.mul(d, sc); 2], min: s.sub(s.zero(), s.mul(dmin, m)) }
}

/// Codes of 4 bits, one scale.
pub(crate) struct Q4_0;

impl Format for Q4_0 {
    const CODES: usize = 4 * GROUP_BYTES;
    const SCALES: usize = 2 * ROWS;
    const BITS: u32 = 4;
    const OFFSET: i32 = 8;
    #[inline(always)]
    fn codes<S: Simd>(s: S, block: &[u8], row: usize, group: usize) -> S::I {
        nibbles(s, block, row, group)
    }
    #[inline(always)]
    fn scales<S: Simd>(s: S, panel: &Panel, index: usize, row: usize) -> Scales<S::V> {
        one_scale(s, panel, Self::SCALES, index, row)
    }
}

/// Codes of 4 bits, scale and minimum.
pub(crate) struct Q4_1;

impl Format for Q4_1 {
    const CODES: usize = 4 * GROUP_BYTES;
    const SCALES: usize = 4 * ROWS;
    const BITS: u32 = 4;
    const OFFSET: i32 = 0;
    const MIN: bool = true;
    #[inline(always)]
    fn codes<S: Simd>(s: S, block: &[u8], row: usize, group: usize) -> S::I {
        nibbles(s, block, row, group)
    }
    #[inline(always)]
    fn scales<S: Simd>(s: S, panel: &Panel, index: usize, row: usize) -> Scales<S::V> {
        scale_and_min(s, panel, index, row)
    }
}

/// Codes of 5 bits, one scale.
pub(crate) struct Q5_0;

impl Format for Q5_0 {
    const CODES: usize = 5 * GROUP_BYTES;
    const SCALES: usize = 2 * ROWS;
    const WIDEN_ROWS: usize = 128;
    const BITS: u32 = 5;
    const OFFSET: i32 = 16;
    #[inline(always)]
    fn codes<S: Simd>(s: S, block: &[u8], row: usize, group: usize) -> S::I {
        let high = fifth_bits(s, &block[4 * GROUP_BYTES..], row, group);
        s.or_i(nibbles(s, block, row, group), high)
    }
    #[inline(always)]
    fn scales<S: Simd>(s: S, panel: &Panel, index: usize, row: usize) -> Scales<S::V> {
        one_scale(s, panel, Self::SCALES, index, row)
    }
}

/// Codes of 5 bits, scale and minimum.
pub(crate) struct Q5_1;

impl Format for Q5_1 {
    const CODES: usize = Q5_0::CODES;
    const SCALES: usize = 4 * ROWS;
    const WIDEN_ROWS: usize = 128;
    const BITS: u32 = 5;
    const OFFSET: i32 = 0;
    const MIN: bool = true;
    #[inline(always)]
    fn codes<S: Simd>(s: S, block: &[u8], row: usize, group: usize) -> S::I {
        Q5_0::codes(s, block, row, group)
    }
    #[inline(always)]
    fn scales<S: Simd>(s: S, panel: &Panel, index: usize, row: usize) -> Scales<S::V> {
        scale_and_min(s, panel, index, row)
    }
}

/// Codes of 8 bits (stored plus 128), one scale.
pub(crate) struct Q8_0;

impl Format for Q8_0 {
    const CODES: usize = GROUPS * GROUP_BYTES;
    const SCALES: usize = 2 * ROWS;
    const BITS: u32 = 8;
    const OFFSET: i32 = 128;
    #[inline(always)]
    fn codes<S: Simd>(s: S, block: &[u8], row: usize, group: usize) -> S::I {
        s.load_i(&block[group * GROUP_BYTES + 4 * row..])
    }
    #[inline(always)]
    fn scales<S: Simd>(s: S, panel: &Panel, index: usize, row: usize) -> Scales<S::V> {
        one_scale(s, panel, Self::SCALES, index, row)
    }
}

/// Indices of 4 bits into the levels of IQ4_NL plus 128, one scale.
pub(crate) struct Iq4Nl;

impl Iq4Nl {
    const LEVELS: [u8; 16] = {
        let (mut levels, mut i) = ([0; 16], 0);
        while i < 16 {
            levels[i] = (crate::ops::quantize::IQ4_NL_LEVELS[i] as i16 + 128) as u8;
            i += 1;
        }
        levels
    };
}

impl Format for Iq4Nl {
    const CODES: usize = Q4_0::CODES;
    const SCALES: usize = 2 * ROWS;
    const BITS: u32 = 8;
    const OFFSET: i32 = 128;
    #[inline(always)]
    fn codes<S: Simd>(s: S, block: &[u8], row: usize, group: usize) -> S::I {
        Self::level(s, nibbles(s, block, row, group))
    }
    #[inline(always)]
    fn level<S: Simd>(s: S, code: S::I) -> S::I {
        s.lookup(&Self::LEVELS, code)
    }
    #[inline(always)]
    fn scales<S: Simd>(s: S, panel: &Panel, index: usize, row: usize) -> Scales<S::V> {
        one_scale(s, panel, Self::SCALES, index, row)
    }
}

/// Codes of 4 bits, K-quant scales.
pub(crate) struct Q4K;

impl Format for Q4K {
    const CODES: usize = 4 * GROUP_BYTES;
    const SCALES: usize = 2 * ROWS;
    const SUPER: usize = 4 * ROWS;
    const BITS: u32 = 4;
    const OFFSET: i32 = 0;
    const MIN: bool = true;
    #[inline(always)]
    fn codes<S: Simd>(s: S, block: &[u8], row: usize, group: usize) -> S::I {
        nibbles(s, block, row, group)
    }
    #[inline(always)]
    fn scales<S: Simd>(s: S, panel: &Panel, index: usize, row: usize) -> Scales<S::V> {
        k_scales(s, panel, index, row)
    }
}

/// Codes of 5 bits, K-quant scales.
pub(crate) struct Q5K;

impl Format for Q5K {
    const CODES: usize = Q5_0::CODES;
    const SCALES: usize = 2 * ROWS;
    const SUPER: usize = 4 * ROWS;
    const WIDEN_ROWS: usize = 128;
    const BITS: u32 = 5;
    const OFFSET: i32 = 0;
    const MIN: bool = true;
    #[inline(always)]
    fn codes<S: Simd>(s: S, block: &[u8], row: usize, group: usize) -> S::I {
        Q5_0::codes(s, block, row, group)
    }
    #[inline(always)]
    fn scales<S: Simd>(s: S, panel: &Panel, index: usize, row: usize) -> Scales<S::V> {
        k_scales(s, panel, index, row)
    }
}

/// Codes of 6 bits, one signed byte of scale per 16 values, f16 per 256.
pub(crate) struct Q6K;

impl Format for Q6K {
    const CODES: usize = 6 * GROUP_BYTES;
    const SCALES: usize = 2 * ROWS;
    const SUPER: usize = 2 * ROWS;
    const WIDEN_ROWS: usize = 32;
    const BITS: u32 = 6;
    const OFFSET: i32 = 32;
    const HALVES: bool = true;
    #[inline(always)]
    fn codes<S: Simd>(s: S, block: &[u8], row: usize, group: usize) -> S::I {
        let high = two_bits(s, &block[4 * GROUP_BYTES..], row, group);
        s.or_i(nibbles(s, block, row, group), high)
    }
    #[inline(always)]
    fn scales<S: Simd>(s: S, panel: &Panel, index: usize, row: usize) -> Scales<S::V> {
        let d = s.load_f16(&panel.supers[index / 8 * Self::SUPER + 2 * row..]);
        let bytes: &[i8] = bytemuck::cast_slice(panel.scales);
        let at = index * Self::SCALES + row;
        let first = s.mul(d, s.load_i8(&bytes[at..]));
        let second = s.mul(d, s.load_i8(&bytes[at + ROWS..]));
        Scales { d: [first, second], min: s.zero() }
    }
}

/// `F` with a byte for every code and f32 for every scale: what a panel becomes before many rows
/// of activations are multiplied with it.
pub(crate) struct Wide<F>(PhantomData<F>);

/// Bytes of one f32 per row.
const F32_ROWS: usize = 4 * ROWS;

impl<F: Format> Format for Wide<F> {
    const CODES: usize = GROUPS * GROUP_BYTES;
    const SCALES: usize = (1 + F::HALVES as usize + F::MIN as usize) * F32_ROWS;
    const OFFSET: i32 = F::OFFSET;
    const BITS: u32 = F::BITS;
    const HALVES: bool = F::HALVES;
    const MIN: bool = F::MIN;
    #[inline(always)]
    fn codes<S: Simd>(s: S, block: &[u8], row: usize, group: usize) -> S::I {
        s.load_i(&block[group * GROUP_BYTES + 4 * row..])
    }
    #[inline(always)]
    fn scales<S: Simd>(s: S, panel: &Panel, index: usize, row: usize) -> Scales<S::V> {
        let at = index * Self::SCALES + 4 * row;
        let d = s.cast_f32(s.load_i(&panel.scales[at..]));
        let (mut second, mut min) = (d, s.zero());
        if F::HALVES {
            second = s.cast_f32(s.load_i(&panel.scales[at + F32_ROWS..]));
        }
        if F::MIN {
            min = s.cast_f32(s.load_i(&panel.scales[at + F32_ROWS..]));
        }
        Scales { d: [d, second], min }
    }
}

/// Writes the panel `from` as [`Wide`].
#[inline(always)]
pub(crate) fn widen<S: Simd, F: Format>(s: S, from: &Panel, blocks: usize, to: &mut [u8]) {
    let (codes, scales) = to.split_at_mut(blocks * Wide::<F>::CODES);
    let pairs = from.codes.chunks_exact(F::CODES).zip(codes.chunks_exact_mut(Wide::<F>::CODES));
    for (block, to) in pairs {
        for group in 0..GROUPS {
            for row in (0..ROWS).step_by(S::LANES) {
                let codes = F::codes(s, block, row, group);
                s.store_i(codes, &mut to[group * GROUP_BYTES + 4 * row..]);
            }
        }
    }
    for (index, to) in scales.chunks_exact_mut(Wide::<F>::SCALES).take(blocks).enumerate() {
        for row in (0..ROWS).step_by(S::LANES) {
            let Scales { d, min } = F::scales(s, from, index, row);
            s.store_i(s.cast_i32(d[0]), &mut to[4 * row..]);
            if F::HALVES {
                s.store_i(s.cast_i32(d[1]), &mut to[F32_ROWS + 4 * row..]);
            }
            if F::MIN {
                s.store_i(s.cast_i32(min), &mut to[F32_ROWS + 4 * row..]);
            }
        }
    }
}
