//! The register tile of the products of an SSD chunk.
//!
//! A tile is R rows by V vectors of an output whose columns are contiguous:
//! `acc[r, c] += Σ_k a[k, r] · b[k, c]`, one fused multiply-add per product, k ascending. The
//! order does not depend on R and V, so an output's bits do not depend on the tile it fell in.
//! Left operands that are read for many heads, or written anyway, lie with k as rows: the values
//! that a tile needs for one k are then neighbours and cost one test of bounds.
//!
//! R is 4, or 1 for the rows that are left: chunks of 64 tokens and states of 128 rows have none.
//! Four rows of five vectors (P = 80 in lanes of 16) are 20 sums in 32 registers, and 9 loads for
//! 20 multiply-adds.

use crate::ops::tile::even_share;
use crate::simd::Simd;

/// Rows of a tile.
const ROWS: usize = 4;

/// A left operand.
pub(crate) trait Left: Copy {
    /// The values of k in the rows from `row` on.
    fn values<const R: usize>(self, k: usize, row: usize) -> [f32; R];
}

/// Values of one k are neighbours; `stride` from k to k.
#[derive(Clone, Copy)]
pub(crate) struct KMajor<'a>(pub(crate) &'a [f32], pub(crate) usize);

impl Left for KMajor<'_> {
    #[inline(always)]
    fn values<const R: usize>(self, k: usize, row: usize) -> [f32; R] {
        let at = k * self.1 + row;
        self.0[at..at + R].try_into().expect("R values")
    }
}

/// Values of one row are neighbours; `stride` from row to row.
#[derive(Clone, Copy)]
pub(crate) struct RowMajor<'a>(pub(crate) &'a [f32], pub(crate) usize);

impl Left for RowMajor<'_> {
    #[inline(always)]
    fn values<const R: usize>(self, k: usize, row: usize) -> [f32; R] {
        let mut values = [0.0; R];
        for r in 0..R {
            values[r] = self.0[(row + r) * self.1 + k];
        }
        values
    }
}

/// `acc[r][v] += Σ_k a[k, row + r] · b[k · stride + v · LANES ..]` for k below `len`.
#[inline(always)]
pub(crate) fn accumulate<S: Simd, A: Left, const R: usize, const V: usize>(
    s: S,
    mut acc: [[S::V; V]; R],
    (a, row): (A, usize),
    (b, stride): (&[f32], usize),
    len: usize,
) -> [[S::V; V]; R] {
    for k in 0..len {
        let (a, b) = (a.values::<R>(k, row), &b[k * stride..k * stride + V * S::LANES]);
        let mut columns = [s.zero(); V];
        for v in 0..V {
            columns[v] = s.load(&b[v * S::LANES..]);
        }
        for r in 0..R {
            let x = s.splat(a[r]);
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

/// Vectors of a tile: sums, a row of the right operand and one value must fit into the registers.
const fn most_vectors(registers: usize) -> usize {
    if registers >= 32 { 5 } else { 3 }
}

/// Covers the rows and `vectors` vectors of columns with tiles.
#[inline(always)]
pub(crate) fn cover<S: Simd, T: Tiled>(
    s: S,
    op: &mut T,
    rows: std::ops::Range<usize>,
    vectors: usize,
) {
    let most = most_vectors(S::REGISTERS);
    let mut done = 0;
    while done < vectors {
        let width = even_share(vectors - done, most);
        let col = done * S::LANES;
        // Constants, so that nothing is compiled of tiles that are too large.
        match width {
            5 if const { most_vectors(S::REGISTERS) >= 5 } => {
                column::<S, T, 5>(s, op, rows.clone(), col)
            }
            4 if const { most_vectors(S::REGISTERS) >= 4 } => {
                column::<S, T, 4>(s, op, rows.clone(), col)
            }
            3 => column::<S, T, 3>(s, op, rows.clone(), col),
            2 => column::<S, T, 2>(s, op, rows.clone(), col),
            _ => column::<S, T, 1>(s, op, rows.clone(), col),
        }
        done += width;
    }
}

#[inline(always)]
fn column<S: Simd, T: Tiled, const V: usize>(
    s: S,
    op: &mut T,
    rows: std::ops::Range<usize>,
    col: usize,
) {
    let whole = rows.start + rows.len() / ROWS * ROWS;
    for row in (rows.start..whole).step_by(ROWS) {
        op.tile::<S, ROWS, V>(s, row, col);
    }
    for row in whole..rows.end {
        op.tile::<S, 1, V>(s, row, col);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{WithSimd, dispatch};
    use crate::{Isa, ops::testing::values};

    struct Product<'a, A> {
        a: A,
        b: &'a [f32],
        len: usize,
        stride: usize,
        out: &'a mut [f32],
    }

    impl<A: Left> Tiled for Product<'_, A> {
        #[inline(always)]
        fn tile<S: Simd, const R: usize, const V: usize>(&mut self, s: S, row: usize, col: usize) {
            let (a, b) = ((self.a, row), (&self.b[col..], self.stride));
            let acc = accumulate(s, [[s.zero(); V]; R], a, b, self.len);
            for r in 0..R {
                for v in 0..V {
                    let at = (row + r) * self.stride + col + v * S::LANES;
                    s.store(acc[r][v], &mut self.out[at..]);
                }
            }
        }
    }

    struct Cover<'a, A>(Product<'a, A>, usize);

    impl<A: Left> WithSimd for Cover<'_, A> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(mut self, s: S) {
            let vectors = self.0.stride / S::LANES;
            cover(s, &mut self.0, 0..self.1, vectors);
        }
    }

    #[test]
    fn every_number_of_rows_and_vectors_is_covered() {
        for isa in Isa::available() {
            for rows in 1..10 {
                for stride in [16, 80, 128] {
                    let len = 9;
                    let (a, b) = (values(rows * len, 1), values(len * stride, 2));
                    let transposed: Vec<f32> =
                        (0..rows * len).map(|i| a[i % rows * len + i / rows]).collect();
                    let [mut out, mut same] =
                        [vec![f32::NAN; rows * stride], vec![0.0; rows * stride]];
                    let product =
                        Product { a: RowMajor(&a, len), b: &b, len, stride, out: &mut out };
                    dispatch(isa, Cover(product, rows));
                    let a_t = KMajor(&transposed, rows);
                    dispatch(
                        isa,
                        Cover(Product { a: a_t, b: &b, len, stride, out: &mut same }, rows),
                    );
                    assert_eq!(out, same, "{isa} {rows}×{stride}");
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
