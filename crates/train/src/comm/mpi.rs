//! Ranks that mpirun or srun started, over MPI.
//!
//! MPI moves bytes; every sum is made by [`super::Comm`], in its order. Messages are cut into
//! rounds, because MPI counts in 32 bits.

use super::{Comm, CommError};
use mpi::datatype::{Partition, PartitionMut};
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives};

/// Most bytes from one rank to another in one round.
const ROUND_BYTES: usize = 16 << 20;

/// One process of an MPI job. Dropping it ends MPI in this process.
pub struct MpiComm {
    world: SimpleCommunicator,
    rank: usize,
    size: usize,
    _universe: Universe,
}

impl MpiComm {
    /// Joins the job; a program that mpirun did not start is a job of one rank.
    ///
    /// # Errors
    /// [`CommError::Mpi`] if this process has joined before.
    pub fn join() -> Result<Self, CommError> {
        let universe = mpi::initialize();
        let universe = universe.ok_or(CommError::Mpi { defect: "it was initialized before" })?;
        let world = universe.world();
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        Ok(Self { world, rank, size, _universe: universe })
    }

    /// Ends every process of the job: what a rank that failed does, for the others wait for it.
    pub fn abort(&self, code: i32) -> ! {
        self.world.abort(code)
    }

    /// Part of a message that belongs to a round.
    fn round(part: &[u8], round: usize) -> &[u8] {
        let from = part.len().min(round * ROUND_BYTES);
        &part[from..part.len().min(from + ROUND_BYTES)]
    }
}

/// Counts and displacements of parts that lie end to end.
fn places(lens: impl Iterator<Item = usize>) -> (Vec<i32>, Vec<i32>) {
    let counts: Vec<i32> = lens.map(|len| len as i32).collect();
    let starts = counts.iter().scan(0, |end, count| {
        *end += count;
        Some(*end - count)
    });
    let starts = starts.collect();
    (counts, starts)
}

impl Comm for MpiComm {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_to_all(&self, parts: &[&[u8]]) -> Result<Vec<Vec<u8>>, CommError> {
        assert_eq!(parts.len(), self.size, "a part for every rank");
        let lens: Vec<u64> = parts.iter().map(|part| part.len() as u64).collect();
        let mut expected = vec![0u64; self.size];
        self.world.all_to_all_into(&lens[..], &mut expected[..]);
        let longest = lens.iter().chain(&expected).max().map_or(0, |len| *len as usize);
        let mut most = 0u64;
        let all = mpi::collective::SystemOperation::max();
        self.world.all_reduce_into(&(longest as u64), &mut most, all);
        let mut received: Vec<Vec<u8>> = vec![Vec::new(); self.size];
        for round in 0..(most as usize).div_ceil(ROUND_BYTES) {
            let cut: Vec<&[u8]> = parts.iter().map(|part| Self::round(part, round)).collect();
            let (counts, starts) = places(cut.iter().map(|part| part.len()));
            let left = expected.iter().zip(&received);
            let left = left.map(|(len, got)| ROUND_BYTES.min(*len as usize - got.len()));
            let (counts_in, starts_in) = places(left);
            let bytes = cut.concat();
            let mut bytes_in = vec![0u8; counts_in.iter().sum::<i32>() as usize];
            let send = Partition::new(&bytes[..], counts, starts);
            let mut receive = PartitionMut::new(&mut bytes_in[..], counts_in.clone(), starts_in);
            self.world.all_to_all_varcount_into(&send, &mut receive);
            let mut rest = &bytes_in[..];
            for (got, count) in received.iter_mut().zip(counts_in) {
                let (part, others) = rest.split_at(count as usize);
                got.extend_from_slice(part);
                rest = others;
            }
        }
        Ok(received)
    }
}
