//! An MLP block, forward and backward, some hundred tokens at a time.
//!
//! Tokens do not meet in it, so a tile of them goes through the whole block while its rows of
//! `intermediate_size` values are in the second cache. **Invariant:** every sum over tokens is a
//! fold in their order that goes on from tile to tile, and a tile ends with a document or a multiple
//! of [`WHOLE`] tokens behind the document's start, so the height of tiles changes no bit.

use super::block::Pass;
use super::saved::{Saved, Scratch};
use crate::activations::sized;
use crate::layer::MlpConfig;
use hybra_kernels::ops::activation::{add_of, relu2_backward, relu2_of};
use hybra_kernels::ops::product::Write;
use hybra_kernels::ops::rms_norm::{rms_norm, rms_norm_backward};
use hybra_kernels::{MatMut, MatRef};
use std::ops::Range;

/// Tokens that products of bf16 may add up together; on a matrix unit as many as its tiles hold.
const WHOLE: usize = 32;
/// Values of the wide rows of a tile, 1 MiB: the second caches of two cores hold several of such.
const WIDE_VALUES: usize = 1 << 18;
/// Fewest tokens of a tile for each thread: a product copies a matrix of weights once for a tile.
const ROWS_PER_THREAD: usize = 128;

/// Tokens that go through the block together.
struct TokenTile {
    rows: Range<usize>,
    /// Lengths of the documents' parts in it.
    pieces: Vec<usize>,
}

/// Tiles of at most `most` tokens, at least [`WHOLE`].
fn tiles(documents: &[usize], most: usize) -> Vec<TokenTile> {
    let (mut tiles, mut from, mut pieces) = (Vec::new(), 0, Vec::new());
    let mut close = |pieces: &mut Vec<usize>| {
        let rows = from..from + pieces.iter().sum::<usize>();
        from = rows.end;
        tiles.push(TokenTile { rows, pieces: std::mem::take(pieces) });
    };
    for mut left in documents.iter().copied() {
        while left > 0 {
            let room = most - pieces.iter().sum::<usize>();
            let take = if left <= room { left } else { room / WHOLE * WHOLE };
            if take > 0 {
                pieces.push(take);
                left -= take;
            }
            if left > 0 {
                close(&mut pieces);
            }
        }
    }
    if !pieces.is_empty() {
        close(&mut pieces);
    }
    tiles
}

impl Pass<'_> {
    fn token_tiles(&self, m: &MlpConfig) -> Vec<TokenTile> {
        let fewest = ROWS_PER_THREAD * self.cpu.pool().threads();
        let rows = (WIDE_VALUES / m.intermediate_size).max(fewest);
        tiles(self.documents, rows.next_multiple_of(WHOLE))
    }

    /// See [`Pass::forward`]; of the norm, up_proj and down_proj.
    pub(super) fn mlp(
        &self,
        m: &MlpConfig,
        [norm, up_proj, down_proj]: [&[f32]; 3],
        saved: &mut Saved,
        next: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let (h, width) = (self.config.hidden_size, m.intermediate_size);
        saved.wide.resize(next.len() / h * width, 0.0);
        for TokenTile { rows, .. } in self.token_tiles(m) {
            let (narrow, wide) = (of(&rows, h), of(&rows, width));
            let normed = sized(&mut scratch.normed, narrow.len());
            let x = MatRef::new(&saved.x[narrow.clone()], h);
            rms_norm(self.cpu, x, norm, self.eps, MatMut::new(normed, h));
            let up = &mut saved.wide[wide.clone()];
            self.project_to(MatRef::new(normed, h), up_proj, MatMut::new(up, width));
            let units = sized(&mut scratch.dwide, wide.len());
            relu2_of(self.cpu, MatRef::new(up, width), MatMut::new(units, width));
            let out = sized(&mut scratch.out, narrow.len());
            self.project_to(MatRef::new(units, width), down_proj, MatMut::new(out, h));
            add_of(self.cpu, x, MatRef::new(out, h), MatMut::new(&mut next[narrow], h));
        }
    }

    /// See [`Pass::backward`]; of the norm, up_proj and down_proj.
    pub(super) fn mlp_backward(
        &self,
        m: &MlpConfig,
        [norm, up_proj, down_proj]: [&[f32]; 3],
        saved: &Saved,
        [gnorm, gup, gdown]: [&mut [f32]; 3],
        d: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let (h, width) = (self.config.hidden_size, m.intermediate_size);
        for TokenTile { rows, pieces } in self.token_tiles(m) {
            let pass = Pass { documents: &pieces, prompts: None, ..*self };
            let (narrow, wide) = (of(&rows, h), of(&rows, width));
            let (x, d) = (MatRef::new(&saved.x[narrow.clone()], h), &mut d[narrow.clone()]);
            let up = MatRef::new(&saved.wide[wide.clone()], width);
            let normed = sized(&mut scratch.normed, narrow.len());
            rms_norm(self.cpu, x, norm, self.eps, MatMut::new(normed, h));
            let dup = sized(&mut scratch.dwide, wide.len());
            let down = MatRef::new(down_proj, width);
            pass.product(MatRef::new(d, h), down, MatMut::new(dup, width), Write::Store);
            let units = sized(&mut scratch.dmix, wide.len());
            relu2_backward(self.cpu, up, MatMut::new(units, width), MatMut::new(dup, width));
            let (units, to) = (MatRef::new(units, width), MatMut::new(gdown, width));
            pass.add_weight_gradient(MatRef::new(d, h), units, to);
            let dnormed = sized(&mut scratch.dnormed, narrow.len());
            pass.linear(dup, (up_proj, &mut *gup), (normed, h), dnormed, Write::Store);
            let (dout, dx) = (MatRef::new(dnormed, h), MatMut::new(d, h));
            rms_norm_backward(self.cpu, x, norm, self.eps, dout, dx, gnorm);
        }
    }
}

/// Values of rows of `cols` values.
fn of(rows: &Range<usize>, cols: usize) -> Range<usize> {
    rows.start * cols..rows.end * cols
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every token once and in order, whole multiples from the start of each document.
    #[test]
    fn tiles_end_with_a_document_or_a_multiple() {
        for documents in [&[5, 1, 300, 64, 33][..], &[32], &[1000], &[], &[31, 31, 31]] {
            for most in [32, 64, 96, 4096] {
                let tiles = tiles(documents, most);
                let (mut at, mut document, mut within) = (0, 0, 0);
                for tile in &tiles {
                    assert_eq!(tile.rows, at..at + tile.pieces.iter().sum::<usize>());
                    assert!((1..=most).contains(&tile.rows.len()), "{documents:?} {most}");
                    at = tile.rows.end;
                    for piece in &tile.pieces {
                        assert_eq!(within % WHOLE, 0, "{documents:?} {most}");
                        within += piece;
                        if within == documents[document] {
                            (document, within) = (document + 1, 0);
                        }
                    }
                }
                assert_eq!((document, within), (documents.len(), 0), "{documents:?} {most}");
            }
        }
    }
}
