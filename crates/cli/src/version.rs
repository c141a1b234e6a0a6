//! `hybra --version [-v]`.

use anyhow::Result;
use hybra_kernels::Isa;
use std::process::ExitCode;

/// Prints the version; `verbose` adds what the binary found on this machine.
pub(crate) fn print(verbose: bool) -> Result<ExitCode> {
    println!("hybra {}", env!("CARGO_PKG_VERSION"));
    if verbose {
        let names: Vec<_> = Isa::available().iter().map(|isa| isa.name()).collect();
        println!("instruction set: {} (available: {})", Isa::from_env()?, names.join(", "));
        println!("threads: {}", std::thread::available_parallelism().map_or(1, usize::from));
        println!("target: {}-{}", std::env::consts::ARCH, std::env::consts::OS);
    }
    Ok(ExitCode::SUCCESS)
}
