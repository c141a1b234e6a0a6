//! Ranks that train together: exchange of bytes, and sums in one fixed order.
//!
//! **The order.** A step's gradient is a balanced tree over its micro-batches: a range is cut in
//! half until it is one micro-batch ([`share`], `tree_sum`). Ranks are cut in half the same way,
//! so a rank holds whole branches, adds them by itself, and the ranks' sums are joined as the tree
//! joins them: any number of ranks gives the bits of one. Powers of two share the work evenly.
//!
//! Collectives are entered by all ranks in the same order. Sizes of parts may differ.

mod local;
#[cfg(feature = "mpi")]
mod mpi;

pub use local::LocalComm;
#[cfg(feature = "mpi")]
pub use mpi::MpiComm;

use std::borrow::Cow;
use std::ops::Range;

/// Why ranks cannot go on together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommError {
    /// Another rank ended.
    #[error("rank {rank} ended; its own message says why")]
    Lost {
        /// Which.
        rank: usize,
    },
    /// What a rank sent is not what this one waits for: their configurations differ.
    #[error("rank {rank} sent {found} bytes, expected {expected}: start all ranks with one file")]
    Length {
        /// Who sent it.
        rank: usize,
        /// Bytes.
        expected: usize,
        /// Bytes.
        found: usize,
    },
    /// MPI cannot be used.
    #[error("MPI: {defect}")]
    Mpi {
        /// What is wrong.
        defect: &'static str,
    },
}

/// A group of ranks, as one of them sees it.
pub trait Comm {
    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn size(&self) -> usize;

    /// Sends `parts[r]` to every rank r and gives what each sent here, in rank order.
    ///
    /// # Errors
    /// [`CommError::Lost`].
    fn all_to_all(&self, parts: &[&[u8]]) -> Result<Vec<Vec<u8>>, CommError>;

    /// The bytes of every rank, in rank order.
    ///
    /// # Errors
    /// [`CommError::Lost`].
    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        self.all_to_all(&vec![bytes; self.size()])
    }

    /// Returns when all ranks have come here.
    ///
    /// # Errors
    /// [`CommError::Lost`].
    fn barrier(&self) -> Result<(), CommError> {
        self.all_gather(&[]).map(drop)
    }

    /// The bytes of rank `root`.
    ///
    /// # Errors
    /// [`CommError::Lost`].
    fn broadcast(&self, root: usize, bytes: &[u8]) -> Result<Vec<u8>, CommError> {
        let own: &[u8] = if self.rank() == root { bytes } else { &[] };
        Ok(self.all_to_all(&vec![own; self.size()])?.swap_remove(root))
    }

    /// Sums `values` over the ranks in the order of the tree and gives the values of
    /// `shards[rank]`, the ranges of the ranks.
    ///
    /// # Errors
    /// [`CommError::Lost`], [`CommError::Length`].
    fn reduce_scatter_sum<'v>(
        &self,
        values: &'v [f32],
        shards: &[Range<usize>],
    ) -> Result<Cow<'v, [f32]>, CommError> {
        let own = shards[self.rank()].clone();
        if self.size() == 1 {
            return Ok(Cow::Borrowed(&values[own]));
        }
        let cut = |shard: &Range<usize>| bytemuck::cast_slice(&values[shard.clone()]);
        let parts: Vec<&[u8]> = shards.iter().map(cut).collect();
        let parts = self.all_to_all(&parts)?;
        let parts = parts.iter().enumerate().map(|(rank, part)| numbers(rank, part, own.len()));
        let mut parts: Vec<Vec<f32>> = parts.collect::<Result<_, _>>()?;
        tree_sum(&mut parts, &mut |sum, part| {
            sum.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
        });
        Ok(Cow::Owned(parts.swap_remove(0)))
    }

    /// Gives every rank the values of all shards, each from the rank that it belongs to.
    ///
    /// # Errors
    /// [`CommError::Lost`], [`CommError::Length`].
    fn all_gather_shards(
        &self,
        values: &mut [f32],
        shards: &[Range<usize>],
    ) -> Result<(), CommError> {
        if self.size() == 1 {
            return Ok(());
        }
        let own = bytemuck::cast_slice(&values[shards[self.rank()].clone()]);
        let parts = self.all_gather(own)?;
        for (rank, (part, shard)) in parts.iter().zip(shards).enumerate() {
            values[shard.clone()].copy_from_slice(&numbers(rank, part, shard.len())?);
        }
        Ok(())
    }

    /// Sums `values` over the ranks in the order of the tree.
    ///
    /// # Errors
    /// [`CommError::Lost`], [`CommError::Length`].
    fn all_reduce_sum(&self, values: &mut [f32]) -> Result<(), CommError> {
        let (len, size) = (values.len(), self.size());
        let shards: Vec<_> = (0..size).map(|r| len * r / size..len * (r + 1) / size).collect();
        let own = self.reduce_scatter_sum(values, &shards)?.into_owned();
        values[shards[self.rank()].clone()].copy_from_slice(&own);
        self.all_gather_shards(values, &shards)
    }

    /// The numbers of every rank, in rank order.
    ///
    /// # Errors
    /// [`CommError::Lost`].
    fn all_gather_f64(&self, values: &[f64]) -> Result<Vec<Vec<f64>>, CommError> {
        let parts = self.all_gather(bytemuck::cast_slice(values))?;
        Ok(parts.iter().map(|part| plain(part)).collect())
    }
}

/// The numbers in bytes, of any alignment; a part of one at the end is left out.
pub(crate) fn plain<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
    let len = bytes.len() / size_of::<T>();
    let mut values = vec![T::zeroed(); len];
    let room: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
    room.copy_from_slice(&bytes[..len * size_of::<T>()]);
    values
}

/// The f32 values of a message.
fn numbers(rank: usize, bytes: &[u8], len: usize) -> Result<Vec<f32>, CommError> {
    if bytes.len() != 4 * len {
        return Err(CommError::Length { rank, expected: 4 * len, found: bytes.len() });
    }
    Ok(plain(bytes))
}

/// The part of `items` that belongs to `rank` of `size`: items and ranks are cut in half together.
#[must_use]
pub fn share(items: Range<usize>, rank: usize, size: usize) -> Range<usize> {
    if size <= 1 {
        return items;
    }
    let (middle, left) = (halfway(&items), size / 2);
    if rank < left {
        share(items.start..middle, rank, left)
    } else {
        share(middle..items.end, rank - left, size - left)
    }
}

/// Where a branch of the tree is cut.
pub(crate) fn halfway(items: &Range<usize>) -> usize {
    items.start + items.len() / 2
}

/// Adds all of `parts` into the first, in the order of the tree.
pub(crate) fn tree_sum<T>(parts: &mut [T], add: &mut impl FnMut(&mut T, &T)) {
    if parts.len() > 1 {
        let (left, right) = parts.split_at_mut(parts.len() / 2);
        tree_sum(left, add);
        tree_sum(right, add);
        add(&mut left[0], &right[0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `work` as every rank of a group.
    fn ranks<T: Send>(size: usize, work: impl Fn(&LocalComm) -> T + Sync) -> Vec<T> {
        std::thread::scope(|scope| {
            let start = |comm| {
                scope.spawn(|| {
                    let comm = comm;
                    work(&comm)
                })
            };
            let threads: Vec<_> = LocalComm::group(size).into_iter().map(start).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn shares_cover_the_items_and_are_branches_of_the_tree() {
        assert_eq!((0..4).map(|r| share(0..7, r, 4)).collect::<Vec<_>>(), [0..1, 1..3, 3..5, 5..7]);
        for (len, size) in [(1, 1), (4, 2), (7, 3), (12, 5), (64, 8)] {
            let shares: Vec<_> = (0..size).map(|rank| share(0..len, rank, size)).collect();
            assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start), "{shares:?}");
            assert_eq!((shares[0].start, shares[size - 1].end), (0, len));
        }
    }

    #[test]
    fn sums_are_those_of_the_tree_for_any_number_of_ranks() {
        let items: Vec<Vec<f32>> = (0..13)
            .map(|i| (0..100).map(|j| ((i * 71 + j * 13) % 97) as f32 * 1.1f32.powi(i)).collect())
            .collect();
        let sum = |range: Range<usize>| {
            fn branch(items: &[Vec<f32>], range: Range<usize>) -> Vec<f32> {
                if range.len() == 1 {
                    return items[range.start].clone();
                }
                let middle = halfway(&range);
                let right = branch(items, middle..range.end);
                let left = branch(items, range.start..middle);
                left.iter().zip(&right).map(|(a, b)| a + b).collect()
            }
            branch(&items, range)
        };
        let want = sum(0..13);
        let in_order: Vec<f32> = (0..100).map(|j| items.iter().map(|item| item[j]).sum()).collect();
        assert_ne!(want, in_order, "the order must show");
        for size in [1, 2, 3, 4, 5, 8] {
            for got in ranks(size, |comm| {
                let mut values = sum(share(0..13, comm.rank(), size));
                comm.all_reduce_sum(&mut values).unwrap();
                values
            }) {
                assert_eq!(got, want, "{size} ranks");
            }
        }
    }

    #[test]
    fn bytes_reach_everyone_and_a_lost_rank_is_named() {
        for got in ranks(3, |comm| {
            comm.barrier().unwrap();
            let rank = comm.rank() as u8;
            let all = comm.all_gather(&vec![rank; comm.rank()]).unwrap();
            let from_one = comm.broadcast(1, &[rank; 2]).unwrap();
            (all, from_one)
        }) {
            assert_eq!(got, (vec![vec![], vec![1], vec![2, 2]], vec![1, 1]));
        }
        let ended = ranks(2, |comm| if comm.rank() == 1 { Ok(()) } else { comm.barrier() });
        assert_eq!(ended[0], Err(CommError::Lost { rank: 1 }));
    }
}
