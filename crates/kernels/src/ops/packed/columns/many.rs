//! More rows of activations: bands of a matrix by columns become panels again, in a scratch of their
//! thread, and these are multiplied as ever. The more rows, the less that costs.

use super::{LINE, PANELS, Part, STRETCH, Stretch, band_bytes, halves_of_bytes, place};
use crate::arch::tiles::Tiles;
use crate::buffer::on_line;
use crate::ops::packed::format::{Format, GROUP_BYTES, GROUPS, ROWS, panel_bytes};
use crate::ops::packed::kernel::{Panels, fetch};
use crate::simd::{Simd, WithSimd, array};
use std::marker::PhantomData;

/// One band against all rows of activations: as panels from end to end.
pub(super) struct Many<'a, F> {
    pub(super) part: Part<'a>,
    pub(super) tiles: Option<Tiles>,
    pub(super) format: PhantomData<F>,
}

impl<F: Format> WithSimd for Many<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { part, tiles, format } = self;
        let Part { x, data, of, first, out, epilogue, scratch } = part;
        let blocks = x.blocks;
        let mut band = std::mem::take(&mut scratch.band);
        // On a line: every vector that crossed one would take twice as long.
        let words = on_line(&mut band, PANELS * panel_bytes::<F>(blocks) / 4);
        let panels: &mut [u8] = bytemuck::cast_slice_mut(words);
        for index in 0..blocks.div_ceil(STRETCH) {
            if (index + 1) * STRETCH < blocks {
                fetch_band::<S, F>(s, &Stretch::of::<F>(data, of, blocks, index + 1), first);
            }
            let stretch = Stretch::of::<F>(data, of, blocks, index);
            to_panels::<S, F>(s, &stretch, first, index * STRETCH, blocks, panels);
        }
        Panels { x, data: panels, out, epilogue, scratch, tiles, format }.run(s);
        scratch.band = band;
    }
}

/// Asks for a band of a stretch.
#[inline(always)]
fn fetch_band<S: Simd, F: Format>(s: S, stretch: &Stretch, band: usize) {
    for b in 0..stretch.blocks {
        for column in stretch.codes::<F>(b).chunks_exact(stretch.column_bytes::<F>()) {
            fetch(s, &column[band * band_bytes::<F>()..(band + 1) * band_bytes::<F>()]);
        }
        let bytes = PANELS * F::SCALES;
        fetch(s, &stretch.scales::<F>(b)[band * bytes..(band + 1) * bytes]);
    }
}

/// Band `band` of a stretch to panels of `blocks` blocks, one after the other, from block `first` on.
#[inline(always)]
fn to_panels<S: Simd, F: Format>(
    s: S,
    stretch: &Stretch,
    band: usize,
    first: usize,
    blocks: usize,
    panels: &mut [u8],
) {
    let bytes = panel_bytes::<F>(blocks);
    for b in 0..stretch.blocks {
        let columns = Columns {
            codes: stretch.codes::<F>(b),
            stride: stretch.column_bytes::<F>(),
            at: band * band_bytes::<F>(),
        };
        // Where the block after the next one goes: stores wait for lines that are far away.
        for panel in panels.chunks_exact(bytes) {
            let next = panel.get((first + b + 2) * F::CODES..).unwrap_or_default();
            for line in next.chunks(LINE).take(F::CODES / LINE) {
                s.prefetch(line);
            }
        }
        let codes = &mut panels[(first + b) * F::CODES..];
        for vector in 0..ROWS / S::LANES {
            columns.to_panels::<S, F>(s, vector, codes, bytes);
        }
        let at = blocks * F::CODES + (first + b) * F::SCALES;
        let scales = stretch.scales::<F>(b)[band * PANELS * F::SCALES..].chunks_exact(F::SCALES);
        for (panel, scales) in panels.chunks_exact_mut(bytes).zip(scales) {
            panel[at..at + F::SCALES].copy_from_slice(scales);
        }
    }
    let at = blocks * (F::CODES + F::SCALES) + first / STRETCH * F::SUPER;
    let supers = &stretch.supers[band * PANELS * F::SUPER..];
    for (panel, supers) in panels.chunks_exact_mut(bytes).zip(supers.chunks_exact(F::SUPER.max(1)))
    {
        panel[at..at + F::SUPER].copy_from_slice(supers);
    }
}

/// One band's lines of a block's columns.
struct Columns<'a> {
    codes: &'a [u8],
    stride: usize,
    at: usize,
}

impl Columns<'_> {
    /// Vector `vector` of the lines of all columns, to the same block of every panel.
    #[inline(always)]
    fn to_panels<S: Simd, F: Format>(&self, s: S, vector: usize, to: &mut [u8], bytes: usize) {
        let (low, high) = (s.splat_i(0x0f0f_0f0f), s.splat_i(0xf0f0_f0f0_u32 as i32));
        if halves_of_bytes::<F>() {
            for group in 0..GROUPS / 2 {
                let (j, k) = (self.four(s, vector, group, 0), self.four(s, vector, group + 4, 0));
                for v in 0..4 {
                    let (panel, row) = place::<S>(vector, v);
                    let at = panel * bytes + group * GROUP_BYTES + 4 * row;
                    let first = s.or_i(s.and_i(j[v], low), s.shl_i::<4>(s.and_i(k[v], low)));
                    let second = s.or_i(s.shr_i::<4>(s.and_i(j[v], high)), s.and_i(k[v], high));
                    s.store_i(first, &mut to[at..]);
                    s.store_i(second, &mut to[at + 4 * bytes..]);
                }
            }
        } else {
            for group in 0..GROUPS {
                for half in 0..2 {
                    let codes = self.four(s, vector, group, half);
                    for v in 0..4 {
                        let (panel, row) = place::<S>(vector, v);
                        let at = (panel + 4 * half) * bytes + group * GROUP_BYTES + 4 * row;
                        s.store_i(codes[v], &mut to[at..]);
                    }
                }
            }
        }
    }

    /// Columns `4 · group ..` side by side.
    #[inline(always)]
    fn four<S: Simd>(&self, s: S, vector: usize, group: usize, line: usize) -> [S::I; 4] {
        let at = self.at + line * LINE + vector * 4 * S::LANES;
        let columns = &self.codes[4 * group * self.stride..(4 * group + 4) * self.stride];
        s.interleave(array!(4, c => s.load_i(&columns[c * self.stride + at..])))
    }
}
