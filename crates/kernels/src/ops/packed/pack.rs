//! From the file's layout to panels (see [`super::format`]): bytes move, nothing is rounded.

use super::format::{GROUP_BYTES, GROUPS, ROWS};
use super::{Layout, columns, panel_len};
use crate::Cpu;
use crate::buffer::Chunks;
use crate::dtype::{DType, WeightRef};
use crate::ops::q8_rows::BLOCK;
use crate::ops::quantize::scale_min_k4;
use std::ops::Range;

/// Bytes of a matrix in compute layout; `None` for formats that have none (F32 and F16).
#[must_use]
pub fn packed_bytes(dtype: DType, rows: usize, cols: usize) -> Option<usize> {
    panel_len(dtype, cols)?.checked_mul(rows.div_ceil(ROWS))
}

/// Packs `w` into `out`, which is zeros.
///
/// # Panics
/// If the format has no such layout or the length is not [`packed_bytes`].
pub fn pack(cpu: &Cpu, w: WeightRef, layout: Layout, out: &mut [u8]) {
    let (dtype, rows, cols) = (w.dtype(), w.rows(), w.cols());
    assert_eq!(Some(out.len()), packed_bytes(dtype, rows, cols), "{dtype} {rows}×{cols}");
    layout.check(dtype, rows);
    if rows == 0 || cols == 0 {
        return;
    }
    if layout == Layout::Columns {
        return columns::pack(cpu, w, out);
    }
    let bytes = panel_len(dtype, cols).expect("checked by the length");
    let panels = Chunks::new(out, bytes);
    cpu.pool().for_parts(panels, |i, panel| pack_panel(w, i * ROWS, 0..cols, panel));
}

/// The panel of `w` that begins at row `first`, of the columns `cols`: whole blocks of the format.
pub(super) fn pack_panel(w: WeightRef, first: usize, cols: Range<usize>, panel: &mut [u8]) {
    for lane in 0..ROWS.min(w.rows() - first) {
        let row = w.row_part(first + lane, cols.start, cols.len());
        match w.dtype() {
            DType::Bf16 => bf16_row(row, lane, panel),
            dtype => row_of_blocks(dtype, row, cols.len(), lane, panel),
        }
    }
}

/// Pairs of values, `[K / 2, 16 rows, 2]`.
fn bf16_row(row: &[u8], lane: usize, panel: &mut [u8]) {
    for (pair, to) in row.chunks(4).zip(panel.chunks_exact_mut(GROUP_BYTES)) {
        to[4 * lane..4 * lane + pair.len()].copy_from_slice(pair);
    }
}

/// Where the parts of a panel begin and how long a block's are.
struct Parts {
    codes: usize,
    scales: usize,
    sup: usize,
    blocks: usize,
}

impl Parts {
    fn of(dtype: DType, blocks: usize) -> Self {
        let (planes, scales, sup) = match dtype {
            DType::Q4_0 | DType::Iq4Nl => (4, 2, 0),
            DType::Q4_1 => (4, 4, 0),
            DType::Q5_0 => (5, 2, 0),
            DType::Q5_1 => (5, 4, 0),
            DType::Q8_0 => (8, 2, 0),
            DType::Q4K => (4, 2, 4),
            DType::Q5K => (5, 2, 4),
            DType::Q6K => (6, 2, 2),
            DType::F32 | DType::F16 | DType::Bf16 => panic!("{dtype} is no block format"),
        };
        Self { codes: planes * GROUP_BYTES, scales: scales * ROWS, sup: sup * ROWS, blocks }
    }
}

/// The places of one row's part of one block.
struct Place<'a> {
    codes: &'a mut [u8],
    scales: &'a mut [u8],
    lane: usize,
}

impl Place<'_> {
    /// Four bytes of the row in plane `plane`.
    fn word(&mut self, plane: usize, bytes: [u8; 4]) {
        self.codes[plane * GROUP_BYTES + 4 * self.lane..][..4].copy_from_slice(&bytes);
    }

    /// Four planes from 32 codes of which each has its low four bits here.
    fn nibbles(&mut self, q: impl Fn(usize) -> u8) {
        for group in 0..4 {
            let byte = |c: usize| q(4 * group + c) & 15 | (q(16 + 4 * group + c) & 15) << 4;
            self.word(group, std::array::from_fn(byte));
        }
    }

    /// Bit `group` of byte c of plane `plane` is bit 4 of code 4·group + c.
    fn fifth_bits(&mut self, plane: usize, q: impl Fn(usize) -> u8) {
        let byte = |c: usize| {
            (0..GROUPS).fold(0, |byte, group| byte | (q(4 * group + c) >> 4 & 1) << group)
        };
        self.word(plane, std::array::from_fn(byte));
    }

    /// Bits 4 and 5 of the codes, two planes.
    fn two_bits(&mut self, plane: usize, q: impl Fn(usize) -> u8) {
        for half in 0..2 {
            let byte = |c: usize| {
                let bits = |g: usize| q(16 * half + 4 * g + c) >> 4 & 3;
                (0..4).fold(0, |byte, g| byte | bits(g) << (2 * g))
            };
            self.word(plane + half, std::array::from_fn(byte));
        }
    }

    /// An f16 (or two single bytes) as number `index` of the row's scales.
    fn f16(&mut self, index: usize, bytes: &[u8]) {
        self.scales[index * 2 * ROWS + 2 * self.lane..][..2].copy_from_slice(bytes);
    }

    fn byte(&mut self, index: usize, value: u8) {
        self.scales[index * ROWS + self.lane] = value;
    }
}

fn row_of_blocks(dtype: DType, row: &[u8], cols: usize, lane: usize, panel: &mut [u8]) {
    let parts = Parts::of(dtype, cols.div_ceil(BLOCK));
    let (codes, rest) = panel.split_at_mut(parts.blocks * parts.codes);
    let (scales, supers) = rest.split_at_mut(parts.blocks * parts.scales);
    let per_file_block = dtype.block_len() / BLOCK;
    let places = codes.chunks_exact_mut(parts.codes).zip(scales.chunks_exact_mut(parts.scales));
    for (i, (codes, scales)) in places.enumerate() {
        let block = &row[i / per_file_block * dtype.block_bytes()..][..dtype.block_bytes()];
        pack_block(dtype, block, i % per_file_block, Place { codes, scales, lane });
    }
    if parts.sup > 0 {
        let blocks = row.chunks_exact(dtype.block_bytes());
        for (block, sup) in blocks.zip(supers.chunks_exact_mut(parts.sup)) {
            let mut place = Place { codes: &mut [], scales: sup, lane };
            match dtype {
                DType::Q6K => place.f16(0, &block[208..210]),
                _ => {
                    place.f16(0, &block[..2]);
                    place.f16(1, &block[2..4]);
                }
            }
        }
    }
}

/// Part `part` of 32 values of a block of the file.
fn pack_block(dtype: DType, b: &[u8], part: usize, mut to: Place) {
    // Formats of 32 values: codes j and j + 16 share a byte, as in the panel.
    let four_planes = |to: &mut Place, qs: &[u8]| {
        for group in 0..4 {
            to.word(group, qs[4 * group..][..4].try_into().expect("four bytes"));
        }
    };
    let high = |b: &[u8]| u32::from_le_bytes(b[..4].try_into().expect("four bytes"));
    match dtype {
        DType::Q4_0 | DType::Iq4Nl => {
            to.f16(0, &b[..2]);
            four_planes(&mut to, &b[2..]);
        }
        DType::Q4_1 => {
            to.f16(0, &b[..2]);
            to.f16(1, &b[2..4]);
            four_planes(&mut to, &b[4..]);
        }
        DType::Q5_0 => {
            to.f16(0, &b[..2]);
            let bits = high(&b[2..]);
            to.fifth_bits(4, |j| (bits >> j & 1) as u8 * 16);
            four_planes(&mut to, &b[6..]);
        }
        DType::Q5_1 => {
            to.f16(0, &b[..2]);
            to.f16(1, &b[2..4]);
            let bits = high(&b[4..]);
            to.fifth_bits(4, |j| (bits >> j & 1) as u8 * 16);
            four_planes(&mut to, &b[8..]);
        }
        DType::Q8_0 => {
            to.f16(0, &b[..2]);
            for group in 0..GROUPS {
                to.word(group, std::array::from_fn(|c| b[2 + 4 * group + c] ^ 0x80));
            }
        }
        DType::Q4K | DType::Q5K => {
            let (scale, min) = scale_min_k4(part, &b[4..16]);
            to.byte(0, scale);
            to.byte(1, min);
            let (qh, qs) = (&b[16..48], &b[if dtype == DType::Q4K { 16 } else { 48 }..]);
            let low = &qs[32 * (part / 2)..][..32];
            to.nibbles(|l| low[l] >> (4 * (part % 2)));
            if dtype == DType::Q5K {
                to.fifth_bits(4, |l| (qh[l] >> part & 1) * 16);
            }
        }
        DType::Q6K => {
            let (half, quarter) = (part / 4, part % 4);
            let low = &b[64 * half + 32 * (quarter % 2)..][..32];
            let high = &b[128 + 32 * half..][..32];
            to.nibbles(|l| low[l] >> (4 * (quarter / 2)));
            to.two_bits(4, |l| (high[l] >> (2 * quarter) & 3) << 4);
            to.byte(0, b[192 + 2 * part]);
            to.byte(1, b[192 + 2 * part + 1]);
        }
        DType::F32 | DType::F16 | DType::Bf16 => panic!("{dtype} is no block format"),
    }
}
