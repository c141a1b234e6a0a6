//! Keys and values of one attention layer and one sequence.
//!
//! Blocks of [`BLOCK`] positions are allocated as the sequence grows. In a block the keys of a kv
//! head are transposed, \[head_dim, 64\], so that scores run along positions in lanes; its values
//! are \[64, head_dim\], padded to whole vectors. Positions from `len` on hold leftovers that
//! nobody reads. Clones share blocks until one of them is written.

use crate::buffer::MatRef;
use half::bf16;
use std::sync::Arc;

/// Positions in a block.
pub(crate) const BLOCK: usize = 64;
/// Rows of values are a multiple of this: the widest vector.
const PAD: usize = 16;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvDtype {
    /// As they come.
    F32,
    /// Rounded to bfloat16, ties to even.
    Bf16,
}

/// Keys and values of one layer and one sequence.
#[derive(Clone)]
pub struct KvCache {
    pub(crate) blocks: Blocks,
    num_kv_heads: usize,
    head_dim: usize,
    len: usize,
}

/// The blocks of a cache; bf16 as bits.
#[derive(Clone)]
pub(crate) enum Blocks {
    F32(Vec<Arc<Block<f32>>>),
    Bf16(Vec<Arc<Block<u16>>>),
}

/// Keys \[kv heads, head_dim, 64\] and values \[kv heads, 64, padded head_dim\].
#[derive(Clone)]
pub(crate) struct Block<E> {
    keys: Vec<E>,
    values: Vec<E>,
}

impl<E> Block<E> {
    /// Keys of a head, \[head_dim, 64\].
    pub(crate) fn keys(&self, head: usize, head_dim: usize) -> &[E] {
        let len = head_dim * BLOCK;
        &self.keys[head * len..][..len]
    }

    /// Values of a head, \[64, padded head_dim\].
    pub(crate) fn values(&self, head: usize, head_dim: usize) -> &[E] {
        let len = value_stride(head_dim) * BLOCK;
        &self.values[head * len..][..len]
    }
}

/// Values in a padded row.
pub(crate) fn value_stride(head_dim: usize) -> usize {
    head_dim.next_multiple_of(PAD)
}

impl KvCache {
    /// An empty cache.
    pub fn new(kv_dtype: KvDtype, num_kv_heads: usize, head_dim: usize) -> Self {
        assert!(num_kv_heads > 0 && head_dim > 0, "{num_kv_heads} heads of {head_dim}");
        let blocks = match kv_dtype {
            KvDtype::F32 => Blocks::F32(Vec::new()),
            KvDtype::Bf16 => Blocks::Bf16(Vec::new()),
        };
        Self { blocks, num_kv_heads, head_dim, len: 0 }
    }

    /// Appends T positions: k and v `[T, kv heads · head_dim]`.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn append(&mut self, k: MatRef, v: MatRef) {
        let width = self.num_kv_heads * self.head_dim;
        assert_eq!([k.cols(), v.cols()], [width; 2], "columns of k and v");
        assert_eq!(k.rows(), v.rows(), "rows of k and v");
        let (heads, dim, len) = (self.num_kv_heads, self.head_dim, self.len);
        match &mut self.blocks {
            Blocks::F32(blocks) => append(blocks, heads, dim, len, k, v, |x| x),
            Blocks::Bf16(blocks) => {
                append(blocks, heads, dim, len, k, v, |x| bf16::from_f32(x).to_bits());
            }
        }
        self.len += k.rows();
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Key and value heads.
    pub fn num_kv_heads(&self) -> usize {
        self.num_kv_heads
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Forgets the positions from `len` on and frees blocks that become empty.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn truncate(&mut self, len: usize) {
        assert!(len <= self.len, "{} positions, truncate to {len}", self.len);
        self.len = len;
        match &mut self.blocks {
            Blocks::F32(blocks) => blocks.truncate(len.div_ceil(BLOCK)),
            Blocks::Bf16(blocks) => blocks.truncate(len.div_ceil(BLOCK)),
        }
    }

    /// Bytes of the blocks held; a block that clones share counts in each of them.
    pub fn bytes(&self) -> usize {
        let values = BLOCK * self.num_kv_heads * (self.head_dim + value_stride(self.head_dim));
        match &self.blocks {
            Blocks::F32(blocks) => blocks.len() * values * 4,
            Blocks::Bf16(blocks) => blocks.len() * values * 2,
        }
    }
}

fn append<E: Copy + Default>(
    blocks: &mut Vec<Arc<Block<E>>>,
    heads: usize,
    dim: usize,
    len: usize,
    k: MatRef,
    v: MatRef,
    store: impl Fn(f32) -> E,
) {
    let stride = value_stride(dim);
    for t in 0..k.rows() {
        let (block, slot) = ((len + t) / BLOCK, (len + t) % BLOCK);
        if block == blocks.len() {
            let keys = vec![E::default(); heads * dim * BLOCK];
            let values = vec![E::default(); heads * stride * BLOCK];
            blocks.push(Arc::new(Block { keys, values }));
        }
        let block = Arc::make_mut(&mut blocks[block]);
        for (to, x) in block.keys[slot..].iter_mut().step_by(BLOCK).zip(k.row(t)) {
            *to = store(*x);
        }
        for (h, v) in v.row(t).chunks(dim).enumerate() {
            let row = &mut block.values[(h * BLOCK + slot) * stride..][..dim];
            row.iter_mut().zip(v).for_each(|(to, x)| *to = store(*x));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::values;

    /// Key and value of a position, as stored.
    fn position(cache: &KvCache, at: usize) -> Vec<f32> {
        fn read<E: Copy>(c: &KvCache, blocks: &[Arc<Block<E>>], at: usize) -> Vec<E> {
            let (block, slot) = (&blocks[at / BLOCK], at % BLOCK);
            let (heads, dim) = (0..c.num_kv_heads, c.head_dim);
            let keys = heads.clone().flat_map(|h| block.keys(h, dim)[slot..].iter().step_by(BLOCK));
            let values =
                heads.flat_map(|h| block.values(h, dim)[slot * value_stride(dim)..][..dim].iter());
            keys.chain(values).copied().collect()
        }
        match &cache.blocks {
            Blocks::F32(b) => read(cache, b, at),
            Blocks::Bf16(b) => {
                read(cache, b, at).iter().map(|&v| bf16::from_bits(v).to_f32()).collect()
            }
        }
    }

    #[test]
    fn positions_are_kept_rounded_truncated_and_overwritten() {
        let (heads, dim, rows) = (3, 20, 150);
        let (k, v) = (values(rows * heads * dim, 1), values(rows * heads * dim, 2));
        let (k, v) = (MatRef::new(&k, heads * dim), MatRef::new(&v, heads * dim));
        for dtype in [KvDtype::F32, KvDtype::Bf16] {
            let round = |x: f32| match dtype {
                KvDtype::F32 => x,
                KvDtype::Bf16 => bf16::from_f32(x).to_f32(),
            };
            let want = |row: usize| -> Vec<f32> {
                k.row(row).iter().chain(v.row(row)).map(|x| round(*x)).collect()
            };
            let mut cache = KvCache::new(dtype, heads, dim);
            assert!(cache.is_empty() && cache.bytes() == 0);
            for (from, len) in [(0, 1), (1, 0), (1, 70), (71, 79)] {
                cache.append(k.rows_at(from, len), v.rows_at(from, len));
            }
            assert_eq!(cache.len(), rows);
            assert!((0..rows).all(|i| position(&cache, i) == want(i)));
            let width = if dtype == KvDtype::F32 { 4 } else { 2 };
            assert_eq!(cache.bytes(), 3 * 64 * heads * (20 + 32) * width);

            let before = cache.clone();
            cache.truncate(65);
            assert_eq!((cache.len(), cache.bytes() * 3), (65, before.bytes() * 2));
            cache.append(k.rows_at(0, 2), v.rows_at(0, 2));
            assert_eq!(position(&cache, 64), want(64));
            assert_eq!(position(&cache, 65), want(0));
            assert_eq!(position(&before, 65), want(65), "a clone keeps its positions");
        }
    }
}
