//! Matrix views with a row stride, and outputs split into disjoint parts for the worker pool.
//!
//! Invariant: a [`MatMut`] owns its elements exclusively; the parts that a [`Parts`] gives for
//! different indices never overlap, so workers may write them at the same time.

use std::marker::PhantomData;
use std::ops::Range;

/// A read-only matrix: `rows` rows of `cols` values, `stride` values from row to row.
#[derive(Clone, Copy)]
pub struct MatRef<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a> MatRef<'a> {
    /// A contiguous matrix of `cols` columns.
    ///
    /// # Panics
    /// If the length is no multiple of `cols`.
    pub fn new(data: &'a [f32], cols: usize) -> Self {
        assert!(cols > 0 && data.len().is_multiple_of(cols), "{} values, {cols} cols", data.len());
        Self { data, rows: data.len() / cols, cols, stride: cols }
    }

    /// The columns `from .. from + cols`.
    ///
    /// # Panics
    /// If they are out of range.
    pub fn columns(self, from: usize, cols: usize) -> Self {
        assert!(from + cols <= self.cols, "columns {from}+{cols} of {}", self.cols);
        let data = if self.rows == 0 { self.data } else { &self.data[from..] };
        Self { data, cols, ..self }
    }

    /// The rows `from .. from + rows`.
    ///
    /// # Panics
    /// If they are out of range.
    pub fn rows_at(self, from: usize, rows: usize) -> Self {
        assert!(from + rows <= self.rows, "rows {from}+{rows} of {}", self.rows);
        let data = if rows == 0 { &[] } else { &self.data[from * self.stride..] };
        Self { data, rows, ..self }
    }

    /// Row `r`.
    #[inline(always)]
    pub fn row(self, r: usize) -> &'a [f32] {
        debug_assert!(r < self.rows);
        &self.data[r * self.stride..r * self.stride + self.cols]
    }

    /// The values from the first row on, and how many lie from row to row.
    pub(crate) fn data(self) -> (&'a [f32], usize) {
        (self.data, self.stride)
    }

    /// Number of rows.
    pub fn rows(self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(self) -> usize {
        self.cols
    }
}

/// A matrix that is written: `rows` rows of `cols` values, `stride` values from row to row.
pub struct MatMut<'a> {
    data: *mut f32,
    rows: usize,
    cols: usize,
    stride: usize,
    owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: a MatMut is an exclusive borrow of f32 values, which may move between threads.
unsafe impl Send for MatMut<'_> {}

impl<'a> MatMut<'a> {
    /// A contiguous matrix of `cols` columns.
    ///
    /// # Panics
    /// If the length is no multiple of `cols`.
    pub fn new(data: &'a mut [f32], cols: usize) -> Self {
        assert!(cols > 0 && data.len().is_multiple_of(cols), "{} values, {cols} cols", data.len());
        let rows = data.len() / cols;
        Self { data: data.as_mut_ptr(), rows, cols, stride: cols, owner: PhantomData }
    }

    /// Row `r`.
    #[inline(always)]
    pub fn row_mut(&mut self, r: usize) -> &mut [f32] {
        assert!(r < self.rows);
        // SAFETY: row r lies inside the exclusive borrow, and `&mut self` guards it.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(r * self.stride), self.cols) }
    }

    /// Row `r`, to read.
    #[inline(always)]
    pub fn row(&self, r: usize) -> &[f32] {
        assert!(r < self.rows);
        // SAFETY: row r lies inside the exclusive borrow, and `&self` guards it.
        unsafe { std::slice::from_raw_parts(self.data.add(r * self.stride), self.cols) }
    }

    /// The same matrix for a shorter time.
    pub fn reborrow(&mut self) -> MatMut<'_> {
        MatMut { owner: PhantomData, ..*self }
    }

    /// The columns `from .. from + cols`.
    ///
    /// # Panics
    /// If they are out of range.
    pub fn columns(self, from: usize, cols: usize) -> MatMut<'a> {
        assert!(from + cols <= self.cols, "columns {from}+{cols} of {}", self.cols);
        let skip = if self.rows == 0 { 0 } else { from };
        // SAFETY: `from` is at most the row length, inside or one past the borrow.
        MatMut { data: unsafe { self.data.add(skip) }, cols, ..self }
    }

    /// The rows `from .. from + rows`.
    ///
    /// # Panics
    /// If they are out of range.
    pub fn rows_at(self, from: usize, rows: usize) -> MatMut<'a> {
        assert!(from + rows <= self.rows, "rows {from}+{rows} of {}", self.rows);
        let skip = if rows == 0 { 0 } else { from * self.stride };
        // SAFETY: the first row of the part is a row of this matrix.
        MatMut { data: unsafe { self.data.add(skip) }, rows, ..self }
    }

    /// The first `at` columns and the others.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn split_columns(self, at: usize) -> (MatMut<'a>, MatMut<'a>) {
        let others = self.cols - at;
        // The two borrows are of disjoint columns.
        let left = MatMut { owner: PhantomData, ..self };
        (left.columns(0, at), self.columns(at, others))
    }

    /// The first `at` rows and the others.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn split_rows(self, at: usize) -> (MatMut<'a>, MatMut<'a>) {
        let others = self.rows - at;
        // The two borrows are of disjoint rows.
        let top = MatMut { owner: PhantomData, ..self };
        (top.rows_at(0, at), self.rows_at(at, others))
    }

    /// Where the matrix begins, and the values from row to row: for assembly.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(crate) fn raw(&mut self) -> (*mut f32, usize) {
        (self.data, self.stride)
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Panels of `width` columns (the last may be narrower).
    pub fn column_panels(self, width: usize) -> Tiles<'a> {
        let height = self.rows;
        self.tiles(height, width)
    }

    /// Panels of `height` rows (the last may be lower).
    pub fn row_panels(self, height: usize) -> Tiles<'a> {
        let width = self.cols;
        self.tiles(height, width)
    }

    /// Tiles of `height` rows and `width` columns (those at the ends may be smaller), a row of
    /// tiles after the other.
    pub fn tiles(self, height: usize, width: usize) -> Tiles<'a> {
        Tiles { matrix: self, height: height.max(1), width: width.max(1) }
    }
}

/// Something that splits into parts which different threads may write at the same time.
///
/// # Safety
/// Parts of different indices below [`Parts::count`] must not overlap, and making one must not
/// touch another.
pub unsafe trait Parts: Sync {
    /// A part: an exclusive borrow as long as the whole was.
    type Part;
    /// How many parts there are.
    fn count(&self) -> usize;
    /// Part `i`.
    ///
    /// # Safety
    /// `i < self.count()`, and part `i` is made at most once.
    unsafe fn part(&self, i: usize) -> Self::Part;
}

/// A matrix split into tiles.
pub struct Tiles<'a> {
    matrix: MatMut<'a>,
    height: usize,
    width: usize,
}

// SAFETY: parts are made by index from the exclusive borrow that this holds.
unsafe impl Sync for Tiles<'_> {}

// SAFETY: tiles hold disjoint ranges of rows and columns.
unsafe impl<'a> Parts for Tiles<'a> {
    type Part = MatMut<'a>;
    fn count(&self) -> usize {
        self.matrix.rows.div_ceil(self.height) * self.matrix.cols.div_ceil(self.width)
    }
    unsafe fn part(&self, i: usize) -> MatMut<'a> {
        let MatMut { data, rows, cols, stride, .. } = self.matrix;
        let across = cols.div_ceil(self.width);
        let (row, col) = (i / across * self.height, i % across * self.width);
        // SAFETY: `i` is below the count, so `row` and `col` are inside the matrix.
        let data = unsafe { data.add(row * stride + col) };
        let (rows, cols) = (self.height.min(rows - row), self.width.min(cols - col));
        MatMut { data, rows, cols, stride, owner: PhantomData }
    }
}

/// Bands of rows of a matrix, each split into panels of `width` columns: part `i` is panel
/// `i % panels` of band `i / panels`.
pub struct Bands<'a, 'b> {
    matrix: MatMut<'a>,
    bands: &'b [Range<usize>],
    width: usize,
}

impl<'a, 'b> Bands<'a, 'b> {
    /// The rows of `bands`, ascending; rows in none of them stay as they are.
    ///
    /// # Panics
    /// If a band is empty, overlaps another, or leaves the matrix.
    pub fn new(matrix: MatMut<'a>, bands: &'b [Range<usize>], width: usize) -> Self {
        let mut end = 0;
        for band in bands {
            assert!(end <= band.start && band.start < band.end, "band {band:?} behind row {end}");
            end = band.end;
        }
        assert!(end <= matrix.rows, "bands up to row {end} of {}", matrix.rows);
        Self { matrix, bands, width: width.max(1) }
    }
}

// SAFETY: parts are made by index from the exclusive borrow that this holds.
unsafe impl Sync for Bands<'_, '_> {}

// SAFETY: bands are disjoint ranges of rows, as `new` has checked; panels are disjoint columns.
unsafe impl<'a> Parts for Bands<'a, '_> {
    type Part = MatMut<'a>;
    fn count(&self) -> usize {
        self.bands.len() * self.matrix.cols.div_ceil(self.width)
    }
    unsafe fn part(&self, i: usize) -> MatMut<'a> {
        let MatMut { data, cols, stride, .. } = self.matrix;
        let panels = cols.div_ceil(self.width);
        let (band, col) = (&self.bands[i / panels], i % panels * self.width);
        // SAFETY: the band's first row and the column are inside the matrix.
        let data = unsafe { data.add(band.start * stride + col) };
        let cols = self.width.min(cols - col);
        MatMut { data, rows: band.len(), cols, stride, owner: PhantomData }
    }
}

/// A slice split into chunks of `len` values (the last may be shorter).
pub struct Chunks<'a, T> {
    data: *mut T,
    total: usize,
    len: usize,
    owner: PhantomData<&'a mut [T]>,
}

impl<'a, T: Send> Chunks<'a, T> {
    /// Splits `data` into chunks of `len` values.
    pub fn new(data: &'a mut [T], len: usize) -> Self {
        assert!(len > 0, "chunks of no values");
        Self { data: data.as_mut_ptr(), total: data.len(), len, owner: PhantomData }
    }
}

// SAFETY: parts are made by index from the exclusive borrow that this holds; T may be sent.
unsafe impl<T: Send> Sync for Chunks<'_, T> {}

// SAFETY: chunks are disjoint ranges.
unsafe impl<'a, T: Send> Parts for Chunks<'a, T> {
    type Part = &'a mut [T];
    fn count(&self) -> usize {
        self.total.div_ceil(self.len)
    }
    unsafe fn part(&self, i: usize) -> &'a mut [T] {
        let from = i * self.len;
        let len = self.len.min(self.total - from);
        // SAFETY: the range lies inside the exclusive borrow; the caller holds each index once.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(from), len) }
    }
}

/// One of two kinds of parts.
pub enum Either<A, B> {
    /// Of the first kind.
    First(A),
    /// Of the second kind.
    Second(B),
}

/// The parts of A, then the parts of B.
pub struct Both<A, B>(pub A, pub B);

// SAFETY: both members keep the contract, and they are borrows of different things.
unsafe impl<A: Parts, B: Parts> Parts for Both<A, B> {
    type Part = Either<A::Part, B::Part>;
    fn count(&self) -> usize {
        self.0.count() + self.1.count()
    }
    unsafe fn part(&self, i: usize) -> Self::Part {
        match i.checked_sub(self.0.count()) {
            // SAFETY: the index is below the count of the first member and comes once.
            None => Either::First(unsafe { self.0.part(i) }),
            // SAFETY: as above, for the second member.
            Some(i) => Either::Second(unsafe { self.1.part(i) }),
        }
    }
}

// SAFETY: both members keep the contract.
unsafe impl<A: Parts, B: Parts> Parts for (A, B) {
    type Part = (A::Part, B::Part);
    fn count(&self) -> usize {
        assert_eq!(self.0.count(), self.1.count(), "parts that go together");
        self.0.count()
    }
    unsafe fn part(&self, i: usize) -> Self::Part {
        // SAFETY: the caller's promise holds for both members.
        unsafe { (self.0.part(i), self.1.part(i)) }
    }
}

/// Values of 4 bytes in a cache line.
const LINE: usize = 16;

/// `len` values of a buffer, from the start of a cache line on: loads and stores of 64 bytes that
/// cross lines are slow. The buffer only grows; what was there stays as long as it does not.
pub(crate) fn on_line<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    const { assert!(size_of::<T>() == 4) };
    if buffer.len() < len + LINE {
        buffer.reserve_exact(len + LINE - buffer.len());
        buffer.resize(len + LINE, T::default());
    }
    let start = line_start(buffer);
    &mut buffer[start..start + len]
}

/// Where [`on_line`] begins.
#[inline(always)]
pub(crate) fn line_start<T>(buffer: &[T]) -> usize {
    buffer.as_ptr().align_offset(4 * LINE).min(buffer.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ThreadPool;

    #[test]
    fn panels_cover_a_matrix_once() {
        let pool = ThreadPool::new(3);
        let mut data = vec![0.0; 7 * 10];
        pool.for_parts(MatMut::new(&mut data, 10).column_panels(4), |i, mut m| {
            assert_eq!(m.cols(), if i == 2 { 2 } else { 4 });
            for r in 0..m.rows() {
                m.row_mut(r).iter_mut().for_each(|v| *v += 1.0 + i as f32);
            }
        });
        let row: Vec<f32> = [1., 1., 1., 1., 2., 2., 2., 2., 3., 3.].to_vec();
        assert!(data.chunks(10).all(|r| r == row));
        let mut sums = vec![0usize; 4];
        pool.for_parts(
            (MatMut::new(&mut data, 10).row_panels(2), Chunks::new(&mut sums, 1)),
            |_, (m, s)| s[0] = m.rows(),
        );
        assert_eq!(sums, [2, 2, 2, 1]);
        let view = MatRef::new(&data, 10).columns(4, 3).rows_at(1, 2);
        assert_eq!((view.rows(), view.cols(), view.row(1)), (2, 3, &[2., 2., 2.][..]));
        let part = MatMut::new(&mut data, 10).columns(8, 2).rows_at(6, 1).row_mut(0).to_vec();
        assert_eq!(part, [3., 3.]);
        let (mut left, mut right) = MatMut::new(&mut data, 10).split_columns(9);
        assert_eq!((left.row_mut(0).len(), right.row_mut(6)), (9, &mut [3.][..]));
        let (top, mut end) = left.split_rows(5);
        assert_eq!((top.rows(), end.rows(), end.row_mut(1)[3]), (5, 2, 1.));
    }

    #[test]
    fn tiles_are_numbered_row_by_row_and_cover_a_matrix_once() {
        let mut data = vec![0.0; 5 * 7];
        ThreadPool::new(3).for_parts(MatMut::new(&mut data, 7).tiles(2, 3), |i, mut m| {
            for r in 0..m.rows() {
                m.row_mut(r).iter_mut().for_each(|v| *v += i as f32);
            }
        });
        let want = |r: usize, c: usize| (r / 2 * 3 + c / 3) as f32;
        assert!((0..35).all(|i| data[i] == want(i / 7, i % 7)), "{data:?}");
    }

    #[test]
    fn bands_and_chunks_share_a_job_and_cover_what_they_name() {
        let (mut data, mut sums) = (vec![0.0; 6 * 5], vec![0.0; 5]);
        let bands = [0..1, 2..5];
        let parts =
            Both(Bands::new(MatMut::new(&mut data, 5), &bands, 3), Chunks::new(&mut sums, 2));
        ThreadPool::new(3).for_parts(parts, |i, part| match part {
            Either::First(mut m) => {
                for r in 0..m.rows() {
                    m.row_mut(r).iter_mut().for_each(|v| *v += (i + 1) as f32);
                }
            }
            Either::Second(chunk) => chunk.iter_mut().for_each(|v| *v += (i + 1) as f32),
        });
        let rows: Vec<f32> = data.chunks(5).flat_map(|r| [r[0], r[2], r[3], r[4]]).collect();
        let (a, b, none) = ([1., 1., 2., 2.], [3., 3., 4., 4.], [0.; 4]);
        assert_eq!(rows, [a, none, b, b, b, none].concat());
        assert_eq!(sums, [5., 5., 6., 6., 7.]);
    }

    #[test]
    #[should_panic(expected = "behind row 3")]
    fn bands_that_overlap_are_refused() {
        let mut data = vec![0.0; 20];
        Bands::new(MatMut::new(&mut data, 4), &[0..3, 2..4], 4);
    }
}
