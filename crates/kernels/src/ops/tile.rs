//! The register tile of the ops that multiply small matrices (attention blocks, products of training).
//!
//! A tile is R rows by V vectors of an output that is contiguous along its columns:
//! `acc[r, c] += Σ_k a[r, k] · b[k, c]`, one fused multiply-add per product, k ascending. The
//! order does not depend on R and V, so an output's bits do not depend on the tile it fell in.

use crate::simd::{Simd, WithSimd, array};

/// A value that widens to f32 when it is loaded.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    /// The first `LANES` values of `v`.
    fn load<S: Simd>(s: S, v: &[Self]) -> S::V;
}

impl Element for f32 {
    #[inline(always)]
    fn load<S: Simd>(s: S, v: &[f32]) -> S::V {
        s.load(v)
    }
}

/// The bits of a bf16.
impl Element for u16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, v: &[u16]) -> S::V {
        s.load_bf16(v)
    }
}

/// `acc[r][v] += Σ_k a[r][k] · b[k · stride + v · LANES ..]`.
#[inline(always)]
pub(crate) fn accumulate<S: Simd, E: Element, const R: usize, const V: usize>(
    s: S,
    mut acc: [[S::V; V]; R],
    a: [&[f32]; R],
    b: &[E],
    stride: usize,
) -> [[S::V; V]; R] {
    let len = a[0].len();
    let a = array!(R, r => &a[r][..len]);
    for (k, row) in b.chunks(stride).take(len).enumerate() {
        let row = &row[..V * S::LANES];
        let mut columns = [s.zero(); V];
        for v in 0..V {
            columns[v] = E::load(s, &row[v * S::LANES..]);
        }
        for r in 0..R {
            let x = s.splat(a[r][k]);
            for v in 0..V {
                acc[r][v] = s.fma(x, columns[v], acc[r][v]);
            }
        }
    }
    acc
}

/// An output that is computed tile by tile.
pub(crate) trait Tiled {
    /// Computes the rows `row .. row + R` and the columns from `col`, V vectors wide.
    fn tile<S: Simd, const R: usize, const V: usize>(&mut self, s: S, row: usize, col: usize);
}

/// Most rows of a tile; with `REGISTERS / 8` vectors the accumulators fill three quarters of the
/// registers.
pub(crate) const MAX_ROWS: usize = 6;

/// Covers the rows and `vectors` vectors of columns with tiles of nearly equal size.
#[inline(always)]
pub(crate) fn cover<S: Simd, T: Tiled>(
    s: S,
    op: &mut T,
    rows: std::ops::Range<usize>,
    vectors: usize,
) {
    let most = S::REGISTERS / 8;
    let mut done = 0;
    while done < vectors {
        let width = even_share(vectors - done, most);
        let col = done * S::LANES;
        // Constants, so that nothing is compiled of tiles that are too large.
        match width {
            4 if const { S::REGISTERS >= 4 * 8 } => strip::<S, T, 4>(s, op, rows.clone(), col),
            3 if const { S::REGISTERS >= 3 * 8 } => strip::<S, T, 3>(s, op, rows.clone(), col),
            2 => strip::<S, T, 2>(s, op, rows.clone(), col),
            _ => strip::<S, T, 1>(s, op, rows.clone(), col),
        }
        done += width;
    }
}

/// [`cover`] in a function of its own: one that holds all of an op takes a compiler far longer than
/// its parts.
pub(crate) struct Cover<'a, T> {
    pub(crate) op: &'a mut T,
    pub(crate) rows: std::ops::Range<usize>,
    pub(crate) cols: usize,
}

impl<T: Tiled> WithSimd for Cover<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        cover(s, self.op, self.rows, self.cols.div_ceil(S::LANES));
    }
}

/// Rows of a tile; without vectors, where nothing is fast, few, for there is less code.
const fn most_rows(lanes: usize) -> usize {
    if lanes > 1 { MAX_ROWS } else { 2 }
}

/// Tiles of V vectors below each other: what they read of the right operand stays in the first cache.
#[inline(always)]
fn strip<S: Simd, T: Tiled, const V: usize>(
    s: S,
    op: &mut T,
    rows: std::ops::Range<usize>,
    col: usize,
) {
    let mut row = rows.start;
    while row < rows.end {
        let height = even_share(rows.end - row, most_rows(S::LANES));
        match height {
            1 => op.tile::<S, 1, V>(s, row, col),
            6 if const { most_rows(S::LANES) >= 6 } => op.tile::<S, 6, V>(s, row, col),
            5 if const { most_rows(S::LANES) >= 6 } => op.tile::<S, 5, V>(s, row, col),
            4 if const { most_rows(S::LANES) >= 6 } => op.tile::<S, 4, V>(s, row, col),
            3 if const { most_rows(S::LANES) >= 6 } => op.tile::<S, 3, V>(s, row, col),
            _ => op.tile::<S, 2, V>(s, row, col),
        }
        row += height;
    }
}

/// The first share when `left` is cut into the fewest nearly equal shares of at most `most`.
#[inline(always)]
pub(crate) fn even_share(left: usize, most: usize) -> usize {
    left.div_ceil(left.div_ceil(most))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::dispatch;
    use crate::{Isa, ops::testing::values};

    struct Product<'a> {
        a: &'a [f32],
        b: &'a [f32],
        len: usize,
        stride: usize,
        out: &'a mut [f32],
    }

    impl Tiled for Product<'_> {
        #[inline(always)]
        fn tile<S: Simd, const R: usize, const V: usize>(&mut self, s: S, row: usize, col: usize) {
            let a = std::array::from_fn(|r| &self.a[(row + r) * self.len..][..self.len]);
            let acc = accumulate(s, [[s.zero(); V]; R], a, &self.b[col..], self.stride);
            for (r, acc) in acc.iter().enumerate() {
                for (v, acc) in acc.iter().enumerate() {
                    let at = (row + r) * self.stride + col + v * S::LANES;
                    s.store(*acc, &mut self.out[at..]);
                }
            }
        }
    }

    #[test]
    fn every_number_of_rows_and_vectors_is_covered() {
        for isa in Isa::available() {
            for rows in 0..15 {
                for stride in [16, 80, 128] {
                    let len = 9;
                    let (a, b) = (values(rows * len, 1), values(len * stride, 2));
                    let mut out = vec![f32::NAN; rows * stride];
                    let mut product = Product { a: &a, b: &b, len, stride, out: &mut out };
                    dispatch(isa, Cover { op: &mut product, rows: 0..rows, cols: stride });
                    for (i, got) in out.iter().enumerate() {
                        let (r, c) = (i / stride, i % stride);
                        let want: f32 = (0..len).map(|k| a[r * len + k] * b[k * stride + c]).sum();
                        assert!((got - want).abs() < 1e-5, "{isa} {rows}×{stride}: {got} {want}");
                    }
                }
            }
        }
    }
}
