//! The recurrent state of a Mamba-2 layer and one sequence, \[H, N, P\], in f32 or bf16.
//!
//! A head's state is the transpose of the \[P, N\] of the formulas: its rows run along P, as do
//! the rows of X and Y, so that the step and the products of a chunk work along P in lanes and no
//! one ever transposes it. Arithmetic is f32 in either type. A bf16 state is rounded to nearest,
//! ties to even, each time it is stored: after a single token and at the end of a chunk, so that
//! a sequence has the same bits in any split at multiples of the chunk.

use crate::ops::tile::Element;
use crate::simd::{Simd, bf16_bits};

/// Number type of a stored state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SsmDtype {
    /// As it is computed.
    #[default]
    F32,
    /// Rounded to bfloat16, ties to even: half the memory and half the traffic of a step.
    Bf16,
}

/// A state; bf16 as bits.
#[derive(Clone, Debug, PartialEq)]
pub enum SsmState {
    /// [`SsmDtype::F32`].
    F32(Vec<f32>),
    /// [`SsmDtype::Bf16`].
    Bf16(Vec<u16>),
}

impl SsmState {
    /// `len` zeros.
    pub fn new(dtype: SsmDtype, len: usize) -> Self {
        match dtype {
            SsmDtype::F32 => Self::F32(vec![0.0; len]),
            SsmDtype::Bf16 => Self::Bf16(vec![0; len]),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match self {
            Self::F32(values) => 4 * values.len(),
            Self::Bf16(values) => 2 * values.len(),
        }
    }

    /// Becomes a copy of another state of the same type and length, in the memory it has.
    ///
    /// # Panics
    /// If type or length differ.
    pub fn copy_from(&mut self, other: &Self) {
        match (self, other) {
            (Self::F32(to), Self::F32(from)) => to.copy_from_slice(from),
            (Self::Bf16(to), Self::Bf16(from)) => to.copy_from_slice(from),
            (to, from) => panic!("a copy of {} bytes to {}", from.bytes(), to.bytes()),
        }
    }

    /// Sets every value, in order, rounded as a store rounds.
    pub fn fill_with(&mut self, mut value: impl FnMut() -> f32) {
        match self {
            Self::F32(values) => values.iter_mut().for_each(|v| *v = value()),
            Self::Bf16(values) => values.iter_mut().for_each(|v| *v = bf16_bits(value())),
        }
    }

    /// The number type.
    pub fn dtype(&self) -> SsmDtype {
        match self {
            Self::F32(_) => SsmDtype::F32,
            Self::Bf16(_) => SsmDtype::Bf16,
        }
    }

    /// The same values in `dtype`, rounded as a store rounds.
    #[must_use]
    pub fn to_dtype(&self, dtype: SsmDtype) -> Self {
        match (self, dtype) {
            (Self::F32(values), SsmDtype::Bf16) => {
                Self::Bf16(values.iter().map(|v| bf16_bits(*v)).collect())
            }
            (Self::Bf16(values), SsmDtype::F32) => {
                Self::F32(values.iter().map(|v| v.widen()).collect())
            }
            _ => self.clone(),
        }
    }

    /// The values as bytes, in the machine's order.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::F32(values) => bytemuck::cast_slice(values),
            Self::Bf16(values) => bytemuck::cast_slice(values),
        }
    }

    /// As [`Self::as_bytes`], to be written.
    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::F32(values) => bytemuck::cast_slice_mut(values),
            Self::Bf16(values) => bytemuck::cast_slice_mut(values),
        }
    }

    /// All of it, to be written.
    pub fn view_mut(&mut self) -> SsmStateMut<'_> {
        match self {
            Self::F32(values) => SsmStateMut::F32(values),
            Self::Bf16(values) => SsmStateMut::Bf16(values),
        }
    }
}

/// The states of some heads, one after the other, to be written.
#[derive(Debug)]
pub enum SsmStateMut<'a> {
    /// [`SsmDtype::F32`].
    F32(&'a mut [f32]),
    /// [`SsmDtype::Bf16`].
    Bf16(&'a mut [u16]),
}

impl<'a> SsmStateMut<'a> {
    /// Number of values.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// Takes the first `len` values away from this view.
    ///
    /// # Panics
    /// If there are fewer.
    pub(crate) fn split_off(&mut self, len: usize) -> SsmStateMut<'a> {
        let expect = "as many values as heads";
        match self {
            Self::F32(values) => SsmStateMut::F32(values.split_off_mut(..len).expect(expect)),
            Self::Bf16(values) => SsmStateMut::Bf16(values.split_off_mut(..len).expect(expect)),
        }
    }
}

/// A value that a state is stored in.
pub(crate) trait Stored: Element {
    /// Stores to the first `LANES` values of `to`.
    fn store<S: Simd>(s: S, v: S::V, to: &mut [Self]);
    /// One value, widened.
    fn widen(self) -> f32;
    /// One value, rounded.
    fn round(v: f32) -> Self;
    /// The values themselves if they are f32.
    fn as_f32(values: &mut [Self]) -> Option<&mut [f32]>;
}

impl Stored for f32 {
    #[inline(always)]
    fn store<S: Simd>(s: S, v: S::V, to: &mut [f32]) {
        s.store(v, to);
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn round(v: f32) -> f32 {
        v
    }
    #[inline(always)]
    fn as_f32(values: &mut [f32]) -> Option<&mut [f32]> {
        Some(values)
    }
}

impl Stored for u16 {
    #[inline(always)]
    fn store<S: Simd>(s: S, v: S::V, to: &mut [u16]) {
        s.store_bf16(v, to);
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self) << 16)
    }
    #[inline(always)]
    fn round(v: f32) -> u16 {
        bf16_bits(v)
    }
    #[inline(always)]
    fn as_f32(_: &mut [u16]) -> Option<&mut [f32]> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_split_and_counted() {
        for (dtype, bytes) in [(SsmDtype::F32, 40), (SsmDtype::Bf16, 20)] {
            let mut state = SsmState::new(dtype, 10);
            assert_eq!(state.bytes(), bytes);
            let mut view = state.view_mut();
            let first = view.split_off(4);
            assert_eq!((first.len(), view.len()), (4, 6));
            state.fill_with(|| 1.0 / 3.0);
            let other = state.to_dtype(SsmDtype::Bf16).to_dtype(SsmDtype::F32);
            assert_eq!(other, SsmState::F32(vec![0.333_984_38; 10]));
            assert_eq!(state.to_dtype(dtype), state);
            assert_eq!(state.as_bytes().len(), bytes);
            let mut copy = SsmState::new(dtype, 10);
            copy.as_bytes_mut().copy_from_slice(state.as_bytes());
            assert_eq!((copy.dtype(), &copy), (dtype, &state));
        }
    }
}
