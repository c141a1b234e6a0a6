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
            for (c, to) in to.chunks_exact_mut(column).enumerate() {
                column_of_band::<F>(from, c, &mut to[band * band_bytes::<F>()..]);
            }
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

/// Column `c` of a block, from the block's codes in each panel of a band.
fn column_of_band<F: Format>(panels: [&[u8]; PANELS], c: usize, to: &mut [u8]) {
    for at in 0..LINE {
        let (v, row) = (at / 4 % 4, at / 16 * 4 + at % 4);
        if halves_of_bytes::<F>() {
            // A byte of a panel holds columns j and j + 16.
            let from = c % 16 / 4 * GROUP_BYTES + 4 * row + c % 4;
            let half = |panel: &[u8]| panel[from] >> (c / 16 * 4) & 15;
            to[at] = half(panels[v]) | half(panels[v + 4]) << 4;
        } else {
            let from = c / 4 * GROUP_BYTES + 4 * row + c % 4;
            to[at] = panels[v][from];
            to[LINE + at] = panels[v + 4][from];
        }
    }
}
