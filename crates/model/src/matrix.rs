//! One large matrix of a model, as stored or in compute layout, and its product with activations.
//!
//! Two arithmetics, chosen by the form in which the weights are held:
//! - *as stored*: weights decode to f32, activations are f32 (the exact path that references are
//!   compared with);
//! - *packed*: activations are rounded to int8 (32 values share a scale) for block formats and to
//!   bf16 for bf16, once for all matrices that read them ([`Rounded`]); sums are exact in i32
//!   within a block and f32 across blocks. F32 and F16 have no packed form.

use hybra_checkpoint::Region;
use hybra_kernels::ops::activation::{add_assign, relu2};
use hybra_kernels::ops::gemm::gemm;
use hybra_kernels::ops::packed::{Epilogue, Layout, PackedRef, Rows, matmul, pack, packed_bytes};
use hybra_kernels::ops::q8_rows::{Bf16Rows, Q8Rows};
use hybra_kernels::{Cpu, DType, HugeBytes, MatMut, MatRef, WeightRef};
use std::io;
use std::ops::Deref;
use std::sync::Arc;

/// A matrix of `rows` output features by `cols` input features.
#[derive(Clone)]
pub struct Matrix {
    dtype: DType,
    rows: usize,
    cols: usize,
    /// The order of its bytes when packed.
    layout: Layout,
    data: Data,
}

#[derive(Clone)]
enum Data {
    Stored(Region),
    Packed(Packed),
}

/// Bytes in compute layout.
#[derive(Clone)]
enum Packed {
    /// Packed at load.
    Owned(Arc<HugeBytes>),
    /// Packed before, in a mapped file.
    Mapped(Region),
}

impl Deref for Packed {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Mapped(bytes) => bytes,
        }
    }
}

impl Matrix {
    /// A matrix as a file holds it.
    pub(crate) fn stored(dtype: DType, rows: usize, cols: usize, data: Region) -> Self {
        Self { dtype, rows, cols, layout: Layout::Panels, data: Data::Stored(data) }
    }

    /// The matrix, whose inputs are mostly zero: packed, the columns of zeros are not read where the
    /// format has a layout for that.
    pub(crate) fn of_sparse_inputs(self) -> Self {
        Self { layout: Layout::of_sparse_inputs(self.dtype, self.rows), ..self }
    }

    /// The matrix as stored.
    ///
    /// # Panics
    /// If it is packed.
    #[must_use]
    pub fn view(&self) -> WeightRef<'_> {
        match &self.data {
            Data::Stored(data) => WeightRef::new(self.dtype, self.rows, self.cols, data),
            Data::Packed(_) => panic!("{} {}×{} is packed", self.dtype, self.rows, self.cols),
        }
    }

    /// Output features.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Stored format.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes as held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.data {
            Data::Stored(data) => data.len(),
            Data::Packed(data) => data.len(),
        }
    }

    /// Lets the file's pages leave memory; they come back when they are read.
    pub(crate) fn release(&self) {
        if let Data::Stored(stored) = &self.data {
            stored.release();
        }
    }

    /// Whether there is a compute layout for the format.
    pub(crate) fn is_packable(&self) -> bool {
        packed_bytes(self.dtype, self.rows, self.cols).is_some()
    }

    /// Packs a matrix that has a compute layout and releases the file's pages; others stay.
    pub(crate) fn pack(&mut self, cpu: &Cpu) -> io::Result<()> {
        let Data::Stored(stored) = &self.data else { return Ok(()) };
        let Some(bytes) = packed_bytes(self.dtype, self.rows, self.cols) else { return Ok(()) };
        let mut packed = HugeBytes::zeroed(bytes)?;
        pack(cpu, self.view(), self.layout, &mut packed);
        stored.release();
        self.data = Data::Packed(Packed::Owned(Arc::new(packed)));
        Ok(())
    }

    /// The bytes in compute layout, where it is packed.
    pub(crate) fn packed(&self) -> Option<&[u8]> {
        if let Data::Packed(data) = &self.data { Some(data) } else { None }
    }

    /// Whether `bytes` could be this matrix in compute layout, by their length.
    pub(crate) fn could_adopt(&self, bytes: &[u8]) -> bool {
        packed_bytes(self.dtype, self.rows, self.cols) == Some(bytes.len())
    }

    /// Takes bytes that [`Self::pack`] once made.
    pub(crate) fn adopt(&mut self, bytes: Region) {
        debug_assert!(self.could_adopt(&bytes));
        self.data = Data::Packed(Packed::Mapped(bytes));
    }

    /// `out = x · wᵀ` and the epilogue. `rounded` holds x for packed matrices; `scratch` is used
    /// where a stored matrix adds to the output.
    pub(crate) fn apply(
        &self,
        cpu: &Cpu,
        x: MatRef,
        rounded: &Rounded,
        mut out: MatMut,
        epilogue: Epilogue,
        scratch: &mut Vec<f32>,
    ) {
        if let Data::Packed(data) = &self.data {
            let w = PackedRef::new(self.dtype, self.rows, self.cols, self.layout, data);
            return matmul(cpu, rounded.rows(self.dtype), w, out, epilogue);
        }
        match epilogue {
            Epilogue::Store => gemm(cpu, x, self.view(), out),
            Epilogue::Relu2 => {
                gemm(cpu, x, self.view(), out.reborrow());
                relu2(cpu, out);
            }
            Epilogue::Add => {
                let product = crate::activations::sized(scratch, x.rows() * self.rows);
                gemm(cpu, x, self.view(), MatMut::new(product, self.rows));
                add_assign(cpu, out, MatRef::new(product, self.rows));
            }
        }
    }
}

/// Activations in the forms that packed matrices read.
#[derive(Default)]
pub(crate) struct Rounded {
    q8: Q8Rows,
    bf16: Bf16Rows,
}

impl Rounded {
    /// Rounds `x` to what `readers` take: nothing for stored matrices.
    pub(crate) fn prepare(&mut self, cpu: &Cpu, x: MatRef, readers: &[&Matrix]) {
        let packed = |m: &&&Matrix| matches!(m.data, Data::Packed(_));
        let bf16 = |m: &&Matrix| m.dtype == DType::Bf16;
        if readers.iter().filter(packed).any(bf16) {
            self.bf16.round(cpu, x);
        }
        if readers.iter().filter(packed).any(|m| !bf16(m)) {
            self.q8.quantize(cpu, x);
        }
    }

    fn rows(&self, dtype: DType) -> Rows<'_> {
        if dtype == DType::Bf16 { Rows::Bf16(&self.bf16) } else { Rows::Q8(&self.q8) }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.q8.bytes() + self.bf16.bytes()
    }
}
