//! A toy run for `tests/mpi/run.sh`: the same bytes whether mpirun starts one process or several.
//!
//! Usage: `mpirun -n N mpi_ranks FOLDER`. Built with the feature `mpi`.

#[path = "../tests/support/mod.rs"]
mod support;

use hybra_train::comm::MpiComm;
use std::path::Path;

fn main() {
    let comm = MpiComm::join().expect("MPI");
    let dir = std::env::args().nth(1).expect("the folder of the run");
    let mut objective = support::Pull { poison: None, seen: 0 };
    let config = support::config(6, &["optimizer.lr=0.05"]);
    let (outcome, _) = support::train(Path::new(&dir), &comm, &config, &mut objective, 8, 1);
    outcome.expect("the run");
}
