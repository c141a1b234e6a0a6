//! `out = x · wᵀ` with weights in compute layout and activations in int8 or bf16.
//!
//! A matrix of N rows and K columns becomes ⌈N / 16⌉ panels of 16 rows (the last filled up with
//! zeros), each one contiguous run of bytes, in which what one vector instruction needs lies side
//! by side. The bytes are those of the file in another order (K-quants grow by up to 3 %), and
//! [`pack`] rounds nothing. Block formats take [`Q8Rows`], bf16 takes [`Bf16Rows`].
//!
//! Row independence holds as everywhere: one design serves one row (a stream of weights at memory
//! bandwidth) and thousands (byte dot products at the arithmetic limit), with the same bits.
//! `docs/gemm.md` explains the layout and the tiles.

mod bf16;
mod byte_tiles;
mod columns;
mod format;
mod kernel;
mod pack;
mod tiles;

pub use pack::{pack, packed_bytes};

use crate::arch::tiles::Tiles;
use crate::buffer::MatMut;
use crate::dtype::DType;
use crate::ops::q8_rows::{BLOCK, Bf16Rows, Q8Rows, Q8View};
use crate::simd::{Simd, dispatch, dispatch_bf16};
use crate::{Cpu, Isa};
use format::{Format, ROWS, panel_bytes};
use std::cell::RefCell;
use std::marker::PhantomData;

/// What becomes of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// `out = x·wᵀ`.
    Store,
    /// `out = max(x·wᵀ, 0)²`; NaN stays NaN.
    Relu2,
    /// `out = out + x·wᵀ`.
    Add,
}

/// The order of a packed matrix's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Panels of 16 rows.
    Panels,
    /// By columns, for inputs that are mostly zero (`docs/gemm.md`).
    Columns,
}

impl Layout {
    /// The order for a matrix of `rows` rows whose inputs may be mostly zero: [`Self::Columns`]
    /// where the format and the rows (a multiple of 128) allow it.
    #[must_use]
    pub fn of_sparse_inputs(dtype: DType, rows: usize) -> Self {
        if columns::suits(dtype, rows) { Self::Columns } else { Self::Panels }
    }

    fn check(self, dtype: DType, rows: usize) {
        let fits = self == Self::Panels || columns::suits(dtype, rows);
        assert!(fits, "{dtype} of {rows} rows by columns");
    }
}

/// A matrix in compute layout.
#[derive(Clone, Copy)]
pub struct PackedRef<'a> {
    dtype: DType,
    rows: usize,
    cols: usize,
    layout: Layout,
    data: &'a [u8],
}

impl<'a> PackedRef<'a> {
    /// A view of what [`pack`] wrote.
    ///
    /// # Panics
    /// If the length is not [`packed_bytes`], or the layout not one of the matrix.
    #[must_use]
    pub fn new(dtype: DType, rows: usize, cols: usize, layout: Layout, data: &'a [u8]) -> Self {
        assert_eq!(Some(data.len()), packed_bytes(dtype, rows, cols), "{dtype} {rows}×{cols}");
        layout.check(dtype, rows);
        Self { dtype, rows, cols, layout, data }
    }
}

/// Rows of activations in the form that a matrix reads.
#[derive(Clone, Copy)]
pub enum Rows<'a> {
    /// For block formats.
    Q8(&'a Q8Rows),
    /// For bf16.
    Bf16(&'a Bf16Rows),
}

impl Rows<'_> {
    fn shape(&self) -> (usize, usize) {
        match self {
            Rows::Q8(x) => (x.rows(), x.cols()),
            Rows::Bf16(x) => (x.rows(), x.cols()),
        }
    }
}

/// What a worker keeps between its parts.
#[derive(Default)]
struct Scratch {
    /// Widened panels.
    wide: Vec<u8>,
    /// Panels widened for a matrix unit; sums that wait.
    words: Vec<u32>,
    sums: Vec<f32>,
    /// Panels made of columns.
    band: Vec<u32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Packed bytes that a worker takes at a time, rounded to pairs of panels. In int8 they hold several
/// pairs, so that most panels are fetched while those before them are multiplied.
fn part_bytes(isa: Isa, x: Rows) -> usize {
    match x {
        Rows::Q8(_) => 384 * 1024,
        Rows::Bf16(x) if Tiles::of(isa).is_some() && x.rows() > tiles::FEW_ROWS => 4 << 20,
        Rows::Bf16(_) => 96 * 1024,
    }
}

/// `out = x · wᵀ`, then the epilogue.
///
/// # Panics
/// If the shapes disagree (x `[T, K]`, w `[N, K]`, out `[T, N]`), or x has not the form that the
/// format reads.
pub fn matmul(cpu: &Cpu, x: Rows, w: PackedRef, out: MatMut, epilogue: Epilogue) {
    let (rows, cols) = x.shape();
    assert_eq!((cols, w.rows), (w.cols, out.cols()), "x·wᵀ: reduction and columns");
    assert_eq!(rows, out.rows(), "x·wᵀ: rows");
    if rows == 0 || w.rows == 0 {
        return;
    }
    if let (Layout::Columns, Rows::Q8(x)) = (w.layout, x) {
        return columns::matmul(cpu, x.view(), w, out, epilogue);
    }
    let panels = w.rows.div_ceil(ROWS);
    let bytes = w.data.len() / panels;
    // Pairs of panels: a tile takes two.
    let most = panels.div_ceil(8 * cpu.pool().threads()).max(1);
    let mut pairs = (part_bytes(cpu.isa(), x) / bytes / 2).clamp(1, most);
    if let (Rows::Bf16(_), Some(_)) = (x, Tiles::of(cpu.isa())) {
        pairs = pairs.min(tiles::MOST_SUMS / (2 * ROWS * rows)).max(1);
    }
    let step = 2 * pairs;
    let isa = cpu.isa();
    let operations = rows * w.rows * w.cols / 4;
    cpu.pool().for_parts_sized(operations, out.column_panels(step * ROWS), |i, out| {
        let data = &w.data[i * step * bytes..w.data.len().min((i + 1) * step * bytes)];
        SCRATCH.with_borrow_mut(|scratch| part(isa, x, w.dtype, data, out, epilogue, scratch));
    });
}

fn part(
    isa: Isa,
    x: Rows,
    dtype: DType,
    data: &[u8],
    out: MatMut,
    epilogue: Epilogue,
    scratch: &mut Scratch,
) {
    match x {
        Rows::Q8(x) => {
            let op = Part { isa, x: x.view(), data, out, epilogue, scratch };
            with_format(dtype, op).unwrap_or_else(|_| panic!("{dtype} does not take int8 rows"));
        }
        Rows::Bf16(x) => {
            assert_eq!(dtype, DType::Bf16, "bf16 rows");
            if let Some(tiles) = Tiles::of(isa) {
                let sums = &mut scratch.sums;
                return dispatch(isa, tiles::Panels { tiles, x, data, out, epilogue, sums });
            }
            dispatch_bf16(isa, bf16::Panels { x, data, out, epilogue });
        }
    }
}

struct Part<'a> {
    isa: Isa,
    x: Q8View<'a>,
    data: &'a [u8],
    out: MatMut<'a>,
    epilogue: Epilogue,
    scratch: &'a mut Scratch,
}

impl WithFormat for Part<'_> {
    type Output = ();
    fn run<F: Format>(self) {
        let Part { isa, x, data, out, epilogue, scratch } = self;
        let (tiles, format) = (Tiles::of(isa), PhantomData::<F>);
        dispatch(isa, kernel::Panels { x, data, out, epilogue, scratch, tiles, format });
    }
}

/// Something generic over the block format.
trait WithFormat {
    type Output;
    fn run<F: Format>(self) -> Self::Output;
}

/// Runs `op` for the format of `dtype`; gives it back where that is no block format.
fn with_format<O: WithFormat>(dtype: DType, op: O) -> Result<O::Output, O> {
    Ok(match dtype {
        DType::Q4_0 => op.run::<format::Q4_0>(),
        DType::Q4_1 => op.run::<format::Q4_1>(),
        DType::Q5_0 => op.run::<format::Q5_0>(),
        DType::Q5_1 => op.run::<format::Q5_1>(),
        DType::Q8_0 => op.run::<format::Q8_0>(),
        DType::Iq4Nl => op.run::<format::Iq4Nl>(),
        DType::Q4K => op.run::<format::Q4K>(),
        DType::Q5K => op.run::<format::Q5K>(),
        DType::Q6K => op.run::<format::Q6K>(),
        DType::F32 | DType::F16 | DType::Bf16 => return Err(op),
    })
}

/// Bytes of a panel of `cols` columns; `None` for formats without a compute layout.
fn panel_len(dtype: DType, cols: usize) -> Option<usize> {
    struct Bytes(usize);
    impl WithFormat for Bytes {
        type Output = usize;
        fn run<F: Format>(self) -> usize {
            panel_bytes::<F>(self.0)
        }
    }
    match dtype {
        DType::Bf16 => Some(cols.div_ceil(2) * format::GROUP_BYTES),
        _ => with_format(dtype, Bytes(cols.div_ceil(BLOCK))).ok(),
    }
}

/// Applies the epilogue to one vector and stores what the output has room for.
#[inline(always)]
fn finish<S: Simd>(s: S, v: S::V, epilogue: Epilogue, out: &mut [f32]) {
    let v = match epilogue {
        Epilogue::Store => v,
        Epilogue::Add => s.add(s.load_partial(out), v),
        Epilogue::Relu2 => {
            // The value is the second operand: `max` keeps it where it is NaN.
            let v = s.max(s.zero(), v);
            s.mul(v, v)
        }
    };
    s.store_partial(v, out);
}

#[cfg(test)]
mod tests;
