//! Products of whole tiles of bf16 or bytes, for CPUs with a matrix unit (so far AMX).
//!
//! Invariants: a [`Tiles`] value exists only where there is such a unit. Products of bytes are
//! exact. With bf16 an output's bits depend on its row of a and its column of b alone, and on where
//! the reduction is cut: calls that go on from each other's sums give the bits of one call if all
//! but the last take whole tiles of pairs.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

use crate::{Isa, MatMut};
use std::marker::PhantomData;

/// Columns of c and b of one product.
pub(crate) const COLUMNS: usize = 32;
/// Pairs along k that the unit takes at a time.
pub(crate) const TILE_PAIRS: usize = 16;

/// Rows of a that a product of bytes takes at a time.
pub(crate) const BYTE_ROWS: usize = 12;

/// Two panels of 16 rows with a signed byte per code, block by block of 32 along k: the codes of
/// either panel (eight groups `[16, 4]`), the scales d of either, and what every value adds, if any.
#[derive(Clone, Copy)]
pub(crate) struct WidePair<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) blocks: usize,
    pub(crate) has_min: bool,
}

impl WidePair<'_> {
    /// Bytes of the codes of a block of one panel.
    pub(crate) const CODES: usize = 512;
    /// Bytes of one f32 for each row of a panel.
    pub(crate) const SCALES: usize = 64;

    /// Bytes of a block.
    pub(crate) const fn block_bytes(has_min: bool) -> usize {
        2 * (Self::CODES + Self::SCALES * (1 + has_min as usize))
    }
}

/// Rows of signed bytes, in blocks of 32; of every block its scale and the sum of its bytes times
/// the scale.
#[derive(Clone, Copy)]
pub(crate) struct ByteRows<'a> {
    /// `[rows, blocks, 32]`.
    pub(crate) bytes: &'a [u8],
    /// `[rows, blocks]`.
    pub(crate) factors: &'a [[f32; 2]],
}

/// Sums of a product of bytes: for each row of a, of 16 rows of either panel.
#[repr(C, align(64))]
pub(crate) struct ByteSums(pub(crate) [[[f32; 16]; 2]; BYTE_ROWS]);

/// Rows of pairs of bf16; row r begins at byte `r · stride`.
#[derive(Clone, Copy)]
pub(crate) struct PairRows<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) stride: usize,
}

/// Where sums begin.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// At zero.
    Zero,
    /// At the values that are in the output.
    Output,
}

#[cfg(target_arch = "x86_64")]
use super::x86_64::Amx as Unit;

/// No unit is known for this architecture.
#[cfg(not(target_arch = "x86_64"))]
#[derive(Clone, Copy)]
enum Unit {}

/// A matrix unit.
#[derive(Clone, Copy)]
pub(crate) struct Tiles(Unit);

impl Tiles {
    /// The unit that `isa` stands for.
    pub(crate) fn of(isa: Isa) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if isa == Isa::Amx {
            return Unit::new().map(Self);
        }
        let _ = isa;
        None
    }

    /// `c[r, n] (+)= Σ a[r, p] · b[p, n]` for 32 columns n in two parts of 16: a `[rows, pairs]`, each
    /// part of b `[pairs, 16]`, c `[rows, 32]`.
    ///
    /// # Panics
    /// If an operand is shorter than that or the parts of b have different strides.
    pub(crate) fn multiply(
        self,
        pairs: usize,
        a: PairRows,
        b: [PairRows; 2],
        c: MatMut,
        start: Start,
    ) {
        #[cfg(target_arch = "x86_64")]
        self.0.multiply(pairs, a, b, c, start);
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = (pairs, a, b, c, start);
            match self.0 {}
        }
    }

    /// Turns a square of pairs: rows become columns.
    #[inline(always)]
    pub(crate) fn transpose(self, square: &mut [[u32; 16]; 16]) {
        #[cfg(target_arch = "x86_64")]
        self.0.transpose(square);
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = square;
            match self.0 {}
        }
    }
}

/// A matrix unit that is set up for bytes on this thread, until it is dropped. (A second one, or a
/// product of bf16, in its lifetime would leave it without tiles, and its next product would end
/// the process.)
pub(crate) struct ByteTiles(Tiles, PhantomData<*const ()>);

impl ByteTiles {
    /// Sets `unit` up.
    pub(crate) fn new(unit: Tiles) -> Self {
        #[cfg(target_arch = "x86_64")]
        unit.0.set_up_bytes();
        Self(unit, PhantomData)
    }

    /// For the first [`BYTE_ROWS`] rows r of a, which have the blocks of b:
    /// `c[r, p, n] = Σ_blocks (Σ_k a[r, k] · b[p][n, k]) · (d[p][n] · scale[r])`, the inner sum exact,
    /// blocks in ascending order with one fused multiply-add each; where b has what every value
    /// adds, `+ min[p][n] · sum[r]` with another.
    ///
    /// # Panics
    /// If an operand is shorter than that.
    pub(crate) fn multiply(&mut self, a: ByteRows, b: WidePair, c: &mut ByteSums) {
        #[cfg(target_arch = "x86_64")]
        self.0.0.multiply_bytes(a, b, c);
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = (a, b, c);
            match self.0.0 {}
        }
    }
}

impl Drop for ByteTiles {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        self.0.0.release();
    }
}
