//! Keys and values of one attention layer and one sequence.
//!
//! [Blocks](super::kv_block) of 64 positions are allocated as the sequence grows, and nothing is
//! allocated in between. Positions from `len` on hold leftovers that nobody reads. Clones share
//! blocks until one of them is written. What is stored for a position depends on its own keys and
//! values alone.

use crate::Cpu;
use crate::buffer::{Chunks, MatRef};
use crate::ops::kv_block::{BLOCK, Block, Stored};
use std::io::{self, Read, Write};
use std::sync::Arc;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvDtype {
    /// As they come.
    F32,
    /// Rounded to bfloat16, ties to even.
    Bf16,
    /// Signed bytes with an f32 scale for each position and head, one for keys, one for values:
    /// rounded once, by at most 0.5001/127 of the largest key or value of the head.
    Q8,
}

impl KvDtype {
    /// Bytes of a position, keys and values together, that attention reads; the padding of values
    /// to whole vectors comes on top.
    #[must_use]
    pub fn position_bytes(self, num_kv_heads: usize, head_dim: usize) -> usize {
        let (width, scale) = match self {
            Self::F32 => (4, 0),
            Self::Bf16 => (2, 0),
            Self::Q8 => (1, size_of::<f32>()),
        };
        2 * num_kv_heads * (head_dim * width + scale)
    }
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
    Q8(Vec<Arc<Block<i8>>>),
}

/// `$body` with `$blocks` bound to the blocks, whatever their type.
macro_rules! with_blocks {
    ($cache:expr, $blocks:ident => $body:expr) => {
        match $cache {
            Blocks::F32($blocks) => $body,
            Blocks::Bf16($blocks) => $body,
            Blocks::Q8($blocks) => $body,
        }
    };
}
pub(crate) use with_blocks;

impl KvCache {
    /// An empty cache.
    pub fn new(kv_dtype: KvDtype, num_kv_heads: usize, head_dim: usize) -> Self {
        assert!(num_kv_heads > 0 && head_dim > 0, "{num_kv_heads} heads of {head_dim}");
        let blocks = match kv_dtype {
            KvDtype::F32 => Blocks::F32(Vec::new()),
            KvDtype::Bf16 => Blocks::Bf16(Vec::new()),
            KvDtype::Q8 => Blocks::Q8(Vec::new()),
        };
        Self { blocks, num_kv_heads, head_dim, len: 0 }
    }

    /// Appends T positions: k and v `[T, kv heads · head_dim]`.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn append(&mut self, cpu: &Cpu, k: MatRef, v: MatRef) {
        let width = self.num_kv_heads * self.head_dim;
        assert_eq!([k.cols(), v.cols()], [width; 2], "columns of k and v");
        assert_eq!(k.rows(), v.rows(), "rows of k and v");
        let (heads, dim, len) = (self.num_kv_heads, self.head_dim, self.len);
        with_blocks!(&mut self.blocks, blocks => append(cpu, blocks, heads, dim, len, k, v));
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
        with_blocks!(&mut self.blocks, blocks => blocks.truncate(len.div_ceil(BLOCK)));
    }

    /// Bytes of the blocks held; a block that clones share counts in each of them.
    pub fn bytes(&self) -> usize {
        fn bytes<E: Stored>(blocks: &[Arc<Block<E>>], heads: usize, dim: usize) -> usize {
            blocks.len() * Block::<E>::bytes(heads, dim)
        }
        with_blocks!(&self.blocks, blocks => bytes(blocks, self.num_kv_heads, self.head_dim))
    }

    /// Bytes of a block of 64 positions.
    pub fn block_bytes(&self) -> usize {
        let (heads, dim) = (self.num_kv_heads, self.head_dim);
        match self.blocks {
            Blocks::F32(_) => Block::<f32>::bytes(heads, dim),
            Blocks::Bf16(_) => Block::<u16>::bytes(heads, dim),
            Blocks::Q8(_) => Block::<i8>::bytes(heads, dim),
        }
    }

    /// Calls `each` with a number for every block; clones that share a block give the same one.
    pub fn for_each_block(&self, mut each: impl FnMut(usize)) {
        with_blocks!(&self.blocks, blocks => {
            blocks.iter().for_each(|block| each(Arc::as_ptr(block).addr()));
        });
    }

    /// Writes all blocks, in the machine's byte order.
    ///
    /// # Errors
    /// What `to` answers.
    pub fn write_to(&self, to: &mut dyn Write) -> io::Result<()> {
        with_blocks!(&self.blocks, blocks => blocks.iter().try_for_each(|b| b.write_to(to)))
    }

    /// Becomes the cache of `len` positions that [`Self::write_to`] wrote. Memory grows with what
    /// is read.
    ///
    /// # Errors
    /// What `from` answers, such as an early end; the cache then holds no position.
    pub fn read_from(&mut self, from: &mut dyn Read, len: usize) -> io::Result<()> {
        self.truncate(0);
        let (heads, dim) = (self.num_kv_heads, self.head_dim);
        with_blocks!(&mut self.blocks, blocks => read(blocks, from, len, heads, dim))?;
        self.len = len;
        Ok(())
    }
}

fn read<E: Stored>(
    blocks: &mut Vec<Arc<Block<E>>>,
    from: &mut dyn Read,
    len: usize,
    heads: usize,
    dim: usize,
) -> io::Result<()> {
    let read = (0..len.div_ceil(BLOCK)).try_for_each(|_| {
        let mut block = Block::new(heads, dim);
        block.read_from(from)?;
        blocks.push(Arc::new(block));
        Ok(())
    });
    if read.is_err() {
        blocks.clear();
    }
    read
}

/// Operations, roughly, to store a value.
const STORE_OPERATIONS: usize = 8;

/// A task is a block.
fn append<E: Stored>(
    cpu: &Cpu,
    blocks: &mut Vec<Arc<Block<E>>>,
    heads: usize,
    dim: usize,
    len: usize,
    k: MatRef,
    v: MatRef,
) {
    let end = len + k.rows();
    blocks.resize_with(end.div_ceil(BLOCK), || Arc::new(Block::new(heads, dim)));
    let first = len / BLOCK;
    let written = &mut blocks[first..];
    let operations = STORE_OPERATIONS * 2 * k.rows() * k.cols();
    cpu.pool().for_parts_sized(operations, Chunks::new(written, 1), |i, block| {
        let at = (first + i) * BLOCK;
        let (from, to) = (len.max(at), end.min(at + BLOCK));
        if let ([block], true) = (block, from < to) {
            let [k, v] = [k, v].map(|m| m.rows_at(from - len, to - from));
            Arc::make_mut(block).write(from - at..to - at, k, v, dim);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::ops::kv_block::value_stride;
    use crate::ops::testing::values;
    use half::bf16;

    const DTYPES: [KvDtype; 3] = [KvDtype::F32, KvDtype::Bf16, KvDtype::Q8];

    /// Key and value of a position, as they are read.
    fn position(cache: &KvCache, at: usize) -> Vec<f32> {
        fn read<E: Stored>(
            c: &KvCache,
            blocks: &[Arc<Block<E>>],
            at: usize,
            widen: impl Fn(E) -> f32,
        ) -> Vec<f32> {
            let (block, slot) = (&blocks[at / BLOCK], at % BLOCK);
            let (dim, stride) = (c.head_dim, value_stride(c.head_dim));
            let scale = |scales: &[f32]| if E::SCALED { scales[slot] } else { 1.0 };
            let heads = || (0..c.num_kv_heads).map(|h| block.head(h, dim));
            let keys = heads().flat_map(|h| {
                let scale = scale(h.key_scales);
                h.keys[slot..].iter().step_by(BLOCK).map(|x| widen(*x) * scale).collect::<Vec<_>>()
            });
            let values = heads().flat_map(|h| {
                let scale = scale(h.value_scales);
                let row = &h.values[slot * stride..][..dim];
                row.iter().map(|x| widen(*x) * scale).collect::<Vec<_>>()
            });
            keys.chain(values).collect()
        }
        match &cache.blocks {
            Blocks::F32(b) => read(cache, b, at, |x| x),
            Blocks::Bf16(b) => read(cache, b, at, |x| bf16::from_bits(x).to_f32()),
            Blocks::Q8(b) => read(cache, b, at, f32::from),
        }
    }

    /// What is to be read for a row of k and v.
    fn stored(dtype: KvDtype, row: &[f32], dim: usize) -> Vec<f32> {
        match dtype {
            KvDtype::F32 => row.to_vec(),
            KvDtype::Bf16 => row.iter().map(|x| bf16::from_f32(*x).to_f32()).collect(),
            KvDtype::Q8 => row
                .chunks(dim)
                .flat_map(|head| {
                    let scale = head.iter().fold(0f32, |m, x| m.max(x.abs())) / 127.0;
                    head.iter().map(move |x| (x / scale).round_ties_even() * scale)
                })
                .collect(),
        }
    }

    #[test]
    fn positions_are_kept_rounded_truncated_and_overwritten() {
        let (heads, dim, rows) = (3, 20, 350);
        let (k, v) = (values(rows * heads * dim, 1), values(rows * heads * dim, 2));
        let (k, v) = (MatRef::new(&k, heads * dim), MatRef::new(&v, heads * dim));
        let cpu = Cpu::new(Isa::best(), 3);
        for dtype in DTYPES {
            let want = |row: usize| -> Vec<f32> {
                [stored(dtype, k.row(row), dim), stored(dtype, v.row(row), dim)].concat()
            };
            let mut cache = KvCache::new(dtype, heads, dim);
            assert!(cache.is_empty() && cache.bytes() == 0);
            for (from, len) in [(0, 1), (1, 0), (1, 63), (64, 0), (64, 207), (271, 79)] {
                cache.append(&cpu, k.rows_at(from, len), v.rows_at(from, len));
            }
            assert_eq!(cache.len(), rows);
            assert!((0..rows).all(|i| position(&cache, i) == want(i)), "{dtype:?}");
            let head = match dtype {
                KvDtype::F32 => (20 + 32) * 4,
                KvDtype::Bf16 => (20 + 32) * 2,
                KvDtype::Q8 => (20 + 32) + 2 * 4,
            };
            assert_eq!(cache.bytes(), 6 * 64 * heads * head);
            let padding = if dtype == KvDtype::Q8 { 12 } else { 12 * head / 52 };
            assert_eq!(dtype.position_bytes(heads, dim), heads * (head - padding));

            let before = cache.clone();
            cache.truncate(65);
            assert_eq!((cache.len(), cache.bytes() * 3), (65, before.bytes()));
            cache.append(&cpu, k.rows_at(0, 2), v.rows_at(0, 2));
            assert_eq!(position(&cache, 64), want(64));
            assert_eq!(position(&cache, 65), want(0));
            assert_eq!(position(&before, 65), want(65), "a clone keeps its positions");
            let mut written = Vec::new();
            cache.write_to(&mut written).unwrap();
            assert_eq!(written.len(), 2 * cache.block_bytes());
            let mut again = KvCache::new(dtype, heads, dim);
            again.read_from(&mut &written[..], 67).unwrap();
            assert!((0..67).all(|i| position(&again, i) == position(&cache, i)));
            again.read_from(&mut &written[1..], 67).unwrap_err();
            assert_eq!((again.len(), again.bytes()), (0, 0));
            cache.truncate(0);
            assert_eq!(cache.bytes(), 0);
        }
    }

    #[test]
    fn bytes_are_within_their_bound_and_only_their_row_is_poisoned() {
        let (dim, cpu) = (32, Cpu::new(Isa::best(), 1));
        let mut k = values(5 * dim, 3);
        k[dim..2 * dim].iter_mut().for_each(|x| *x *= 1e30);
        k[2 * dim..3 * dim].fill(0.0);
        k[3 * dim..4 * dim].iter_mut().for_each(|x| *x *= 1e-29);
        k[4 * dim + 5] = f32::INFINITY;
        let mut cache = KvCache::new(KvDtype::Q8, 1, dim);
        cache.append(&cpu, MatRef::new(&k, dim), MatRef::new(&k, dim));
        for (i, row) in k.chunks(dim).take(4).enumerate() {
            let most = row.iter().fold(0f32, |m, x| m.max(x.abs()));
            for (got, x) in position(&cache, i).iter().zip(row.iter().chain(row)) {
                assert!((got - x).abs() <= 0.5001 / 127.0 * most, "row {i}: {got} ≠ {x}");
            }
        }
        assert!(position(&cache, 4).iter().all(|x| x.is_nan()));
    }
}
