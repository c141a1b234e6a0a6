//! Speed of the packed matrix product by number of rows, as shares of the machine's limits:
//! `cargo run --release -p hybra-kernels --example gemm -- [FORMAT] [N K]`.
//! THREADS (2), T (only so many rows), ROUNDS and DENSITY (layout by columns, share of inputs that
//! are not zero) are read from the environment.

use hybra_kernels::dtype::{DType, WeightRef};
use hybra_kernels::ops::packed::{Epilogue, Layout, PackedRef, Rows, matmul, pack, packed_bytes};
use hybra_kernels::ops::q8_rows::{Bf16Rows, Q8Rows};
use hybra_kernels::{Cpu, HugeBytes, Isa, MatMut, MatRef, limits};
use std::time::Instant;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let name = args.first().map_or("Q4_0", String::as_str);
    let dtype = DType::ALL.into_iter().find(|d| d.name() == name).expect("a weight format");
    let number = |i: usize, default| args.get(i).map_or(default, |a| a.parse().expect("a number"));
    let (n, k): (usize, usize) = (number(1, 22656), number(2, 4480));
    // With DENSITY, a layout by columns and inputs of which that share is not zero.
    let density: Option<f64> = variable("DENSITY");
    let layout = match density {
        Some(_) => Layout::of_sparse_inputs(dtype, n),
        None => Layout::Panels,
    };
    let threads = variable("THREADS").unwrap_or(2);
    let cpu = Cpu::new(Isa::from_env().expect("HYBRA_ISA"), threads);
    let peak = if dtype == DType::Bf16 { limits::bf16_dot(&cpu) } else { limits::int8_dot(&cpu) };
    let peak = peak.map_or(f64::NAN, |p| p.ops_per_second);
    // Several matrices, so that weights come from memory and not from a cache.
    let copies = (1 << 28) / packed_bytes(dtype, n, k).expect("a compute layout") + 1;
    let mut stored: Vec<u8> = (0..dtype.row_bytes(k).expect("blocks") * n)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 & 0x3f)
        .collect();
    stored.iter_mut().step_by(dtype.block_bytes()).for_each(|b| *b &= 0x0f);
    let packed: Vec<HugeBytes> = (0..copies)
        .map(|_| {
            let bytes = packed_bytes(dtype, n, k).expect("a compute layout");
            let mut to = HugeBytes::zeroed(bytes).expect("memory");
            pack(&cpu, WeightRef::new(dtype, n, k, &stored), layout, &mut to);
            to
        })
        .collect();
    println!("{name} {n}x{k}, {threads} threads, {}, peak {:.0} GOP/s", cpu.isa(), peak / 1e9);
    let rounds: Option<usize> = variable("ROUNDS");
    let only: Option<usize> = variable("T");
    let all = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 512];
    for t in all.into_iter().filter(|t| only.is_none_or(|o| o == *t)) {
        let mut x: Vec<f32> = (0..t * k).map(|i| (i * 7919 % 2003) as f32 / 1001.0 - 1.0).collect();
        for (i, x) in x.iter_mut().enumerate() {
            let number = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            if number as f64 / (1 << 24) as f64 >= density.unwrap_or(1.0) {
                *x = 0.0;
            }
        }
        let (mut q8, mut bf16) = (Q8Rows::default(), Bf16Rows::default());
        q8.quantize(&cpu, MatRef::new(&x, k));
        bf16.round(&cpu, MatRef::new(&x, k));
        let rows = if dtype == DType::Bf16 { Rows::Bf16(&bf16) } else { Rows::Q8(&q8) };
        let mut out = vec![0.0; t * n];
        let mut best = f64::INFINITY;
        let mut times = Vec::new();
        for i in 0..rounds.unwrap_or(8.max(2 * copies)) {
            let w = PackedRef::new(dtype, n, k, layout, &packed[i % copies]);
            let start = Instant::now();
            matmul(&cpu, rows, w, MatMut::new(&mut out, n), Epilogue::Store);
            times.push(start.elapsed().as_secs_f64());
            best = best.min(*times.last().expect("one"));
        }
        times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];
        let (ops, bytes) = (2.0 * (t * n * k) as f64, packed[0].len() as f64);
        println!(
            "T {t:4}  {:9.1} us  {:7.1} GOP/s ({:4.1} % of peak, best {:4.1} %)  {:5.1} GB/s",
            median * 1e6,
            ops / median / 1e9,
            100.0 * ops / median / peak,
            100.0 * ops / best / peak,
            bytes / median / 1e9
        );
    }
}

/// A number from the environment.
fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    let parse = |v: String| v.parse().unwrap_or_else(|_| panic!("{name}: {v:?} is no number"));
    std::env::var(name).ok().map(parse)
}
