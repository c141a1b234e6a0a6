//! A block of a [`super::kv_cache::KvCache`]: keys and values of 64 positions, all kv heads.
//!
//! A head's keys and values lie side by side: keys transposed, \[head_dim, 64\], so that scores
//! run along positions in lanes, then values \[64, head_dim\], rows padded to whole vectors.
//! Bytes (`i8`) have a scale for each position and head, one for keys and one for values:
//!
//! `scale = max|x| / 127`, `stored = round(x / scale)`, ties to even; `|x − scale · stored| ≤
//! 0.5001 · scale` where `max|x| ≥ 1e-30`. A row with a value that is not finite has the scale NaN.

use crate::buffer::MatRef;
use crate::ops::tile::Element;
use crate::simd::Simd;
use half::bf16;
use std::io::{self, Read, Write};
use std::ops::Range;

/// Positions in a block.
pub(crate) const BLOCK: usize = 64;
/// Rows of values are a multiple of this: the widest vector.
const PAD: usize = 16;
/// Columns of keys that are transposed together: a cache line of f32.
const COLUMNS: usize = 16;

/// A signed byte times a scale.
impl Element for i8 {
    #[inline(always)]
    fn load<S: Simd>(s: S, v: &[i8]) -> S::V {
        s.load_i8(v)
    }
}

/// A value as a block stores it.
pub(crate) trait Stored: Element + Default + bytemuck::Pod {
    /// Whether values are multiples of a scale of their position and head.
    const SCALED: bool;
    /// The value for `x`; `scale` is 1 where values have none.
    fn of(x: f32, scale: f32) -> Self;
}

impl Stored for f32 {
    const SCALED: bool = false;
    fn of(x: f32, _: f32) -> f32 {
        x
    }
}

/// The bits of a bf16.
impl Stored for u16 {
    const SCALED: bool = false;
    fn of(x: f32, _: f32) -> u16 {
        bf16::from_f32(x).to_bits()
    }
}

impl Stored for i8 {
    const SCALED: bool = true;
    fn of(x: f32, scale: f32) -> i8 {
        // NaN, from the scale of a row that is not finite or all zero, becomes 0.
        (x / scale).round_ties_even().clamp(-127.0, 127.0) as i8
    }
}

/// The scale of a row.
fn scale(row: &[f32]) -> f32 {
    if row.iter().all(|x| x.is_finite()) {
        row.iter().fold(0.0, |most: f32, x| most.max(x.abs())) / 127.0
    } else {
        f32::NAN
    }
}

/// Keys and values of 64 positions; those that were not written yet are unspecified.
#[derive(Clone)]
pub(crate) struct Block<E> {
    /// For each head its keys, then its values.
    data: Vec<E>,
    /// For each head 64 scales of keys, then 64 of values; none where values have none.
    scales: Vec<f32>,
}

/// One head of a block.
pub(crate) struct HeadBlock<'a, E> {
    /// \[head_dim, 64\].
    pub(crate) keys: &'a [E],
    /// \[64, padded head_dim\].
    pub(crate) values: &'a [E],
    /// Scales of keys, 64 or none.
    pub(crate) key_scales: &'a [f32],
    /// Scales of values, 64 or none.
    pub(crate) value_scales: &'a [f32],
}

/// Values in a padded row.
pub(crate) fn value_stride(head_dim: usize) -> usize {
    head_dim.next_multiple_of(PAD)
}

/// Elements of a head in a block.
fn head_len(head_dim: usize) -> usize {
    BLOCK * (head_dim + value_stride(head_dim))
}

impl<E: Stored> Block<E> {
    /// A block of no positions.
    pub(crate) fn new(heads: usize, head_dim: usize) -> Self {
        let scales = if E::SCALED { heads * 2 * BLOCK } else { 0 };
        let data = vec![E::default(); heads * head_len(head_dim)];
        Self { data, scales: vec![0.0; scales] }
    }

    /// Bytes of such a block.
    pub(crate) fn bytes(heads: usize, head_dim: usize) -> usize {
        let scales = if E::SCALED { 2 * BLOCK * size_of::<f32>() } else { 0 };
        heads * (head_len(head_dim) * size_of::<E>() + scales)
    }

    /// Writes what is held, in the machine's byte order.
    pub(crate) fn write_to(&self, to: &mut dyn Write) -> io::Result<()> {
        to.write_all(bytemuck::cast_slice(&self.data))?;
        to.write_all(bytemuck::cast_slice(&self.scales))
    }

    /// Takes what [`Self::write_to`] wrote.
    pub(crate) fn read_from(&mut self, from: &mut dyn Read) -> io::Result<()> {
        from.read_exact(bytemuck::cast_slice_mut(&mut self.data))?;
        from.read_exact(bytemuck::cast_slice_mut(&mut self.scales))
    }

    /// A head.
    #[inline(always)]
    pub(crate) fn head(&self, head: usize, head_dim: usize) -> HeadBlock<'_, E> {
        let data = &self.data[head * head_len(head_dim)..][..head_len(head_dim)];
        let (keys, values) = data.split_at(head_dim * BLOCK);
        let scales = if E::SCALED { &self.scales[head * 2 * BLOCK..][..2 * BLOCK] } else { &[] };
        let (key_scales, value_scales) = scales.split_at(scales.len() / 2);
        HeadBlock { keys, values, key_scales, value_scales }
    }

    /// Writes the positions `slots` from as many rows of k and v, `[_, heads · head_dim]`.
    pub(crate) fn write(&mut self, slots: Range<usize>, k: MatRef, v: MatRef, head_dim: usize) {
        for (head, data) in self.data.chunks_exact_mut(head_len(head_dim)).enumerate() {
            let (keys, values) = data.split_at_mut(head_dim * BLOCK);
            let columns = head * head_dim;
            let (k, v) = (k.columns(columns, head_dim), v.columns(columns, head_dim));
            let mut scales = [[1.0; BLOCK]; 2];
            if E::SCALED {
                for (t, slot) in slots.clone().enumerate() {
                    let own = [scale(k.row(t)), scale(v.row(t))];
                    for (i, own) in own.into_iter().enumerate() {
                        scales[i][slot] = own;
                        self.scales[(2 * head + i) * BLOCK + slot] = own;
                    }
                }
            }
            write_keys(keys, slots.clone(), k, &scales[0]);
            for (t, slot) in slots.clone().enumerate() {
                let row = &mut values[slot * value_stride(head_dim)..];
                for (to, x) in row.iter_mut().zip(v.row(t)) {
                    *to = E::of(*x, scales[1][slot]);
                }
            }
        }
    }
}

/// Transposes, some columns at a time so that the lines of k that are read stay in the cache.
fn write_keys<E: Stored>(keys: &mut [E], slots: Range<usize>, k: MatRef, scales: &[f32; BLOCK]) {
    for from in (0..k.cols()).step_by(COLUMNS) {
        let columns = k.columns(from, COLUMNS.min(k.cols() - from));
        for c in 0..columns.cols() {
            let to = &mut keys[(from + c) * BLOCK..][..BLOCK][slots.clone()];
            for (t, (to, scale)) in to.iter_mut().zip(&scales[slots.clone()]).enumerate() {
                *to = E::of(columns.row(t)[c], *scale);
            }
        }
    }
}
