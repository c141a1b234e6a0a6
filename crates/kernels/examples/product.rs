//! Speed of the products of training for four matrices of a small model and the tokens of a step:
//! `cargo run --release -p hybra-kernels --example product -- [TOKENS]`.

use hybra_kernels::ops::product::{Write, product, product_bf16};
use hybra_kernels::{Cpu, Isa, MatMut, MatRef, limits};
use std::time::Instant;

/// Values of a row of x and of the output.
const SHAPES: [(usize, usize); 4] = [(128, 648), (256, 128), (128, 512), (512, 128)];
const ROUNDS: usize = 25;

fn main() {
    let tokens = std::env::args().nth(1).map_or(4096, |a| a.parse().expect("a number"));
    let threads = std::env::var("THREADS").map_or(2, |t| t.parse().expect("a number"));
    let cpu = Cpu::new(Isa::from_env().expect("HYBRA_ISA"), threads);
    let peak = limits::f32_fma(&cpu).ops_per_second / 1e9;
    println!("{tokens} tokens, {threads} threads, {}, f32 peak {peak:.0} GFLOP/s", cpu.isa());
    println!("                x · wᵀ    d · w   dᵀ · x   GFLOP/s, medians of {ROUNDS}");
    for bf16 in [false, true] {
        for (h, n) in SHAPES {
            let [out, dx, dw] = [0, 1, 2].map(|which| rate(&cpu, (tokens, h, n), which, bf16));
            let name = if bf16 { "bf16" } else { "f32" };
            println!("{name:4} {n:4} × {h:3} {out:8.0} {dx:8.0} {dw:8.0}");
        }
    }
}

/// Of one of `x · wᵀ`, `d · w` and `dᵀ · x`.
fn rate(cpu: &Cpu, (tokens, h, n): (usize, usize, usize), which: usize, bf16: bool) -> f64 {
    let values = |len: usize| (0..len).map(|i| (i * 7919 % 2003) as f32 / 1001.0 - 1.0).collect();
    let (x, d, w): (Vec<f32>, Vec<f32>, Vec<f32>) =
        (values(tokens * h), values(tokens * n), values(n * h));
    let (x, d, w) = (MatRef::new(&x, h), MatRef::new(&d, n), MatRef::new(&w, h));
    let (a, b, k, rows, cols) = match which {
        0 => (x.into(), w.t(), h, tokens, n),
        1 => (d.into(), w.into(), n, tokens, h),
        _ => (d.t(), x.into(), tokens, n, h),
    };
    let mut out = vec![0.0; rows * cols];
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let out = MatMut::new(&mut out, cols);
            let start = Instant::now();
            match bf16 {
                true => product_bf16(cpu, a, b, &[k], out, Write::Store),
                false => product(cpu, a, b, out, Write::Store),
            }
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    2.0 * (tokens * h * n) as f64 / times[ROUNDS / 2] / 1e9
}
