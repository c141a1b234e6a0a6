//! Time of the part of a Mamba-2 mixer between its projections, and its share of what the
//! machine's multiply-adds reach: `cargo run --release -p hybra-kernels --example ssd [threads]`.

use hybra_kernels::ops::mamba_split_conv1d_scan::{
    MixerParams, MixerSegment, mamba_split_conv1d_scan,
};
use hybra_kernels::ops::ssd::SsdParams;
use hybra_kernels::ops::ssm_state::{SsmDtype, SsmState};
use hybra_kernels::{Cpu, Isa, MatMut, MatRef, limits};
use std::time::Instant;

/// N and G, the same for both models.
const STATE_SIZE: usize = 128;
const N_GROUPS: usize = 8;
const CHUNK: usize = 64;

fn main() {
    let threads = std::env::args().nth(1).and_then(|t| t.parse().ok()).unwrap_or(2);
    let cpu = Cpu::new(Isa::best(), threads);
    let peak = limits::f32_fma(&cpu).ops_per_second;
    println!("{}, {threads} threads, f32 peak {:.0} GFLOP/s", cpu.isa(), peak * 1e-9);
    println!(
        "  H   P  sequences  tokens  state    min ms  median ms  GFLOP/s  of peak  state GB/s"
    );
    for (heads, head_dim) in [(128, 80), (48, 64)] {
        for dtype in [SsmDtype::F32, SsmDtype::Bf16] {
            for (sequences, tokens) in [(1, 512), (1, 1), (4, 1), (16, 1)] {
                measure(&cpu, peak, [heads, head_dim, sequences, tokens], dtype);
            }
        }
    }
}

/// Repeatable values in −1 .. 1.
fn values(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + seed * 104_729) % 2001) as f32 * 1e-3 - 1.0).collect()
}

fn measure(cpu: &Cpu, peak: f64, [heads, p, sequences, tokens]: [usize; 4], dtype: SsmDtype) {
    let (inner, bc) = (heads * p, N_GROUPS * STATE_SIZE);
    let conv_dim = inner + 2 * bc;
    let cols = inner + conv_dim + heads;
    let wide = values(sequences * tokens * cols, 1);
    let (weight, bias) = (values(4 * conv_dim, 2), values(conv_dim, 3));
    let a: Vec<f32> = (0..heads).map(|h| -1.0 - h as f32 / 8.0).collect();
    let (d, dt_bias, norm) = (vec![1.0; heads], vec![-3.0; heads], vec![1.0; inner]);
    let params = MixerParams {
        ssd: SsdParams {
            num_heads: heads,
            head_dim: p,
            n_groups: N_GROUPS,
            state_size: STATE_SIZE,
            a: &a,
            d: &d,
            dt_bias: &dt_bias,
            dt_limit: (0.0, f32::INFINITY),
        },
        conv_weight: &weight,
        conv_bias: Some(&bias),
        norm_weight: &norm,
        norm_eps: 1e-5,
    };
    let new = |_| (vec![0.0; 3 * conv_dim], SsmState::new(dtype, inner * STATE_SIZE));
    let mut states: Vec<_> = (0..sequences).map(new).collect();
    let mut out = vec![0.0; sequences * tokens * inner];
    let mut once = || {
        let segments = states.iter_mut().map(|(conv, state)| MixerSegment {
            chunk: CHUNK,
            len: tokens,
            steps: 0,
            conv,
            state: state.view_mut(),
        });
        let started = Instant::now();
        let out = MatMut::new(&mut out, inner);
        mamba_split_conv1d_scan(cpu, &params, MatRef::new(&wide, cols), segments, out);
        started.elapsed().as_secs_f64()
    };
    let repeats = if tokens == 1 { 41 } else { 9 };
    let mut seconds: Vec<f64> = (0..repeats).map(|_| once()).collect();
    seconds.sort_by(f64::total_cmp);
    let (min, median) = (seconds[0], seconds[repeats / 2]);
    // The products of a chunk with triangles, or the step's.
    let q = CHUNK as f64;
    let (n, p, h, g) = (STATE_SIZE as f64, p as f64, heads as f64, N_GROUPS as f64);
    let per_token =
        if tokens == 1 { 6.0 * h * p * n } else { g * q * n + h * (q * p + 4.0 * p * n) };
    let rate = per_token * (sequences * tokens) as f64 / min;
    let state_bytes: usize = states.iter().map(|(_, state)| 2 * state.bytes()).sum();
    println!(
        "{heads:>3} {p:>3}  {sequences:>9}  {tokens:>6}  {:<5}  {:>8.3}  {:>9.3}  {:>7.1}  {:>5.0} %  {:>10.1}",
        format!("{dtype:?}").to_lowercase(),
        min * 1e3,
        median * 1e3,
        rate * 1e-9,
        100.0 * rate / peak,
        state_bytes as f64 / min * 1e-9,
    );
}
