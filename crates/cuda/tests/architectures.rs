//! Every kernel compiles for the GPUs that are meant, by NVIDIA's own compiler, and none keeps
//! registers in memory. It needs no GPU, only the compiler's library: `HYBRA_NVRTC` names the folder
//! of libnvrtc.so.12 (the Python package nvidia-cuda-nvrtc-cu12 has it in nvidia/cuda_nvrtc/lib).

#![cfg(feature = "cuda")]

#[allow(dead_code)] // The emulator must stay away from here.
mod emulated;

use std::collections::BTreeMap;
use std::path::PathBuf;

/// A100; A10G; H100 and H200.
const ARCHITECTURES: [&str; 3] = ["sm_80", "sm_86", "sm_90"];
/// Registers of a multiprocessor.
const REGISTERS: usize = 65_536;
/// Bytes of shared memory that a kernel may declare without asking for more.
const SHARED_BYTES: usize = 48 << 10;

/// What the compiler says of a kernel.
#[derive(Default)]
struct Usage {
    registers: usize,
    stack_bytes: usize,
    spilled_bytes: usize,
    shared_bytes: usize,
}

#[test]
fn kernels_compile_for_each_architecture_and_do_not_spill() {
    let Some(folder) = std::env::var_os("HYBRA_NVRTC").map(PathBuf::from) else {
        eprintln!("SKIPPED: HYBRA_NVRTC names no folder with libnvrtc.so.12");
        return;
    };
    emulated::preload(&folder.join("libnvrtc.so.12"));
    let threads = threads_of_kernels();
    for architecture in ARCHITECTURES {
        let compiled = hybra_cuda::compile(architecture, &["--ptxas-options=-v"], None);
        let (code, log) = compiled.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(&code[..4], b"\x7fELF", "{architecture}: no machine code");
        let usage = usage(&log);
        assert!(usage.keys().eq(threads.keys()), "{architecture}: other kernels than the sources'");
        for (kernel, used) in &usage {
            let Usage { registers, stack_bytes, spilled_bytes, shared_bytes } = *used;
            println!("{architecture} {kernel}: {registers} registers, {shared_bytes} bytes shared");
            let what = format!("{kernel} for {architecture}");
            assert_eq!((stack_bytes, spilled_bytes), (0, 0), "{what} keeps registers in memory");
            assert!(registers > 0 && registers * threads[kernel] <= REGISTERS, "{what}");
            assert!(shared_bytes <= SHARED_BYTES, "{what}: {shared_bytes} bytes shared");
        }
    }
}

/// Kernels of the sources with their threads a block.
fn threads_of_kernels() -> BTreeMap<String, usize> {
    let sources = hybra_cuda::kernel_sources();
    let kernels = sources.lines().filter_map(|line| line.strip_prefix("KERNEL("));
    let kernel = |text: &str| {
        let mut parts = text.split(',').map(str::trim);
        Some((parts.next()?.to_owned(), parts.next()?.parse().ok()?))
    };
    let threads: BTreeMap<_, _> = kernels.filter_map(kernel).collect();
    assert!(threads.len() > 20, "{} kernels in the sources", threads.len());
    threads
}

/// The messages of `--ptxas-options=-v`, by kernel.
fn usage(log: &str) -> BTreeMap<String, Usage> {
    let mut usage: BTreeMap<String, Usage> = BTreeMap::new();
    let mut kernel = String::new();
    for line in log.lines() {
        if let Some((_, name)) = line.split_once("Compiling entry function '") {
            kernel = name.split('\'').next().unwrap_or_default().to_owned();
            usage.insert(kernel.clone(), Usage::default());
        }
        let Some(used) = usage.get_mut(&kernel) else { continue };
        // As "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" and "Used 21
        // registers, used 1 barriers, 128 bytes smem".
        for part in line.rsplit(':').next().unwrap_or_default().split(',') {
            let number = part.split_whitespace().find_map(|word| word.parse::<usize>().ok());
            let Some(number) = number else { continue };
            match part {
                _ if part.contains("stack frame") => used.stack_bytes = number,
                _ if part.contains("bytes spill") => used.spilled_bytes += number,
                _ if part.contains("registers") => used.registers = number,
                _ if part.contains("bytes smem") => used.shared_bytes = number,
                _ => {}
            }
        }
    }
    usage
}
