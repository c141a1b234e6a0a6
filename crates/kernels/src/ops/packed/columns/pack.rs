//! From the file's layout to columns: bytes move, nothing is rounded.

use super::{BAND, LINE, PANELS, STRETCH, band_bytes, halves_of_bytes, with_format};
use crate::Cpu;
use crate::buffer::Chunks;
use crate::dtype::WeightRef;
use crate::ops::packed::format::{Format, GROUP_BYTES, Panel, ROWS, panel_bytes};
use crate::ops::packed::{WithFormat, pack::pack_panel};
use crate::ops::q8_rows::BLOCK;

/// Lays out `w`, which [`super::suits`], in `out`, which has the length of its panels.
pub(in super::super) fn pack(cpu: &Cpu, w: WeightRef, out: &mut [u8]) {
    struct Pack<'a, 'b>(&'a Cpu, WeightRef<'b>, &'a mut [u8]);
    impl WithFormat for Pack<'_, '_> {
        type Output = ();
        fn run<F: Format>(self) {
            let Self(cpu, w, out) = self;
            let bytes = w.rows() / ROWS * panel_bytes::<F>(STRETCH);
            cpu.pool().for_parts(Chunks::new(out, bytes), |i, stretch| {
                let from = i * STRETCH * BLOCK;
                let cols = from..w.cols().min(from + STRETCH * BLOCK);
                pack_stretch::<F>(w, cols, stretch);
            });
        }
    }
    with_format(w.dtype(), Pack(cpu, w, out));
}

/// The stretch of `w` of the columns `cols`.
fn pack_stretch<F: Format>(w: WeightRef, cols: std::ops::Range<usize>, out: &mut [u8]) {
    let (blocks, bands) = (cols.len() / BLOCK, w.rows() / BAND);
    let (codes, rest) = out.split_at_mut(blocks * bands * PANELS * F::CODES);
    let (scales, supers) = rest.split_at_mut(blocks * bands * PANELS * F::SCALES);
    let bytes = panel_bytes::<F>(blocks);
    let mut panels = vec![0; PANELS * bytes];
    for band in 0..bands {
        panels.fill(0);
        for (p, panel) in panels.chunks_exact_mut(bytes).enumerate() {
            pack_panel(w, (band * PANELS + p) * ROWS, cols.clone(), panel);
        }
        let all: [Panel; PANELS] =
            std::array::from_fn(|p| Panel::new::<F>(&panels[p * bytes..(p + 1) * bytes], blocks));
        let column = bands * band_bytes::<F>();
        for (b, to) in codes.chunks_exact_mut(BLOCK * column).enumerate() {
            let from = all.map(|panel| &panel.codes[b * F::CODES..(b + 1) * F::CODES]);
            block_of_band::<F>(from, &mut to[band * band_bytes::<F>()..], column);
        }
        for (p, panel) in all.iter().enumerate() {
            let at = band * PANELS + p;
            let of_block = scales.chunks_exact_mut(bands * PANELS * F::SCALES);
            for (from, to) in panel.scales.chunks_exact(F::SCALES).zip(of_block) {
                to[at * F::SCALES..(at + 1) * F::SCALES].copy_from_slice(from);
            }
            supers[at * F::SUPER..(at + 1) * F::SUPER].copy_from_slice(panel.supers);
        }
    }
}

/// The columns of a block, `stride` bytes from one to the next, from its codes in each panel of a band.
fn block_of_band<F: Format>(panels: [&[u8]; PANELS], to: &mut [u8], stride: usize) {
    const LOW: u32 = 0x0f0f_0f0f;
    for v in 0..4 {
        for group in 0..F::CODES / GROUP_BYTES {
            for fourth in 0..4 {
                // Of four rows: words of four columns each.
                let from = group * GROUP_BYTES + 16 * fourth;
                let words = |panel: &[u8]| -> [u32; 4] {
                    let word = |i| panel[from + 4 * i..][..4].try_into().expect("four bytes");
                    std::array::from_fn(|i| u32::from_le_bytes(word(i)))
                };
                let (a, b) = (words(panels[v]), words(panels[v + 4]));
                let at = 4 * group * stride + 16 * fourth + 4 * v;
                if halves_of_bytes::<F>() {
                    // A byte of a panel holds columns j and j + 16.
                    let low = |i: usize| a[i] & LOW | (b[i] & LOW) << 4;
                    let high = |i: usize| a[i] >> 4 & LOW | b[i] & !LOW;
                    put(std::array::from_fn(low), &mut to[at..], stride);
                    put(std::array::from_fn(high), &mut to[16 * stride + at..], stride);
                } else {
                    put(a, &mut to[at..], stride);
                    put(b, &mut to[at + LINE..], stride);
                }
            }
        }
    }
}

/// Byte c of four words to column c.
fn put(words: [u32; 4], to: &mut [u8], stride: usize) {
    for c in 0..4 {
        let bytes = words.map(|word| (word >> (8 * c)) as u8);
        to[c * stride..][..4].copy_from_slice(&bytes);
    }
}
