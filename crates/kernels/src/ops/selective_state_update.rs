//! One token of the Mamba-2 recurrence, state updated in place.
//!
//! For head h of group g, with `Δ = clamp(softplus(dt + dt_bias), dt_limit)`:
//! `S ← e^{Δ·a} S + (Δ·x) ⊗ B`, `y = S·C + d·x`. S is \[P, N\] f32, x and y \[P\], B and C \[N\]
//! of group h / (H / G). `a ≤ 0` is −exp(A_log).
//!
//! Source: Dao and Gu 2024 (Mamba-2), section 3; `selective_state_update` of state-spaces/mamba.

use crate::Cpu;
use crate::buffer::Chunks;
use crate::ops::ssd::SsdParams;
use crate::simd::{Simd, WithSimd, dispatch};

/// Updates `state` \[H, P, N\] with one token and writes y \[H·P\].
///
/// `xbc` is x \[H·P\], B \[G·N\] and C \[G·N\] after convolution and SiLU; `dt` \[H\] is raw.
///
/// # Panics
/// If a length disagrees with `p`.
pub fn selective_state_update(
    cpu: &Cpu,
    p: &SsdParams,
    xbc: &[f32],
    dt: &[f32],
    state: &mut [f32],
    y: &mut [f32],
) {
    p.check();
    assert_eq!((xbc.len(), dt.len()), (p.conv_dim(), p.num_heads), "xbc and dt");
    assert_eq!((state.len(), y.len()), (p.state_len(), p.inner()), "state and y");
    let (isa, head_len) = (cpu.isa(), p.head_dim * p.state_size);
    let heads = (SHARE / head_len).clamp(1, p.num_heads);
    let parts = (Chunks::new(state, heads * head_len), Chunks::new(y, heads * p.head_dim));
    cpu.pool().for_parts_sized(5 * p.state_len(), parts, |i, (state, y)| {
        dispatch(isa, Heads { p, first: i * heads, xbc, dt, state, y });
    });
}

/// State values that a worker takes at a time, rounded to heads.
const SHARE: usize = 8 * 1024;

struct Heads<'a> {
    p: &'a SsdParams<'a>,
    first: usize,
    xbc: &'a [f32],
    dt: &'a [f32],
    state: &'a mut [f32],
    y: &'a mut [f32],
}

impl WithSimd for Heads<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let p = self.p;
        let states = self.state.chunks_mut(p.head_dim * p.state_size);
        for (i, (state, y)) in states.zip(self.y.chunks_mut(p.head_dim)).enumerate() {
            let head = self.first + i;
            step(s, p, head, self.xbc, p.step_size(head, self.dt[head]), state, y);
        }
    }
}

/// One head and one token; `delta` is Δ.
#[inline(always)]
pub(crate) fn step<S: Simd>(
    s: S,
    p: &SsdParams,
    head: usize,
    xbc: &[f32],
    delta: f32,
    state: &mut [f32],
    y: &mut [f32],
) {
    let x = &xbc[head * p.head_dim..][..p.head_dim];
    let (b, c) = (p.b(xbc, head / p.heads_per_group()), p.c(xbc, head / p.heads_per_group()));
    let decay = s.exp(s.splat(delta * p.a[head]));
    for ((row, &x), y) in state.chunks_mut(p.state_size).zip(x).zip(y) {
        let (u, mut acc) = (s.splat(delta * x), s.zero());
        let parts = b.chunks(S::LANES).zip(c.chunks(S::LANES));
        for (part, (b, c)) in row.chunks_mut(S::LANES).zip(parts) {
            let new = s.fma(u, s.load_partial(b), s.mul(decay, s.load_partial(part)));
            s.store_partial(new, part);
            acc = s.fma(new, s.load_partial(c), acc);
        }
        *y = s.sum(acc) + p.d[head] * x;
    }
}

/// The recurrence in f64 over T tokens: (y \[T, H·P\], state \[H, P, N\]).
#[cfg(test)]
pub(crate) fn naive(
    p: &SsdParams,
    xbc: crate::MatRef,
    dt: crate::MatRef,
    state: &[f32],
) -> (Vec<f64>, Vec<f64>) {
    let n = p.state_size;
    let mut state: Vec<f64> = state.iter().map(|&v| f64::from(v)).collect();
    let mut y = Vec::new();
    for t in 0..xbc.rows() {
        let row = xbc.row(t);
        for h in 0..p.num_heads {
            let raw = f64::from(dt.row(t)[h]) + f64::from(p.dt_bias[h]);
            let limit = (f64::from(p.dt_limit.0), f64::from(p.dt_limit.1));
            let delta = (raw.max(0.0) + (-raw.abs()).exp().ln_1p()).clamp(limit.0, limit.1);
            let decay = (delta * f64::from(p.a[h])).exp();
            let group = h / p.heads_per_group();
            for i in 0..p.head_dim {
                let x = f64::from(row[h * p.head_dim + i]);
                let mut sum = f64::from(p.d[h]) * x;
                for j in 0..n {
                    let s = &mut state[(h * p.head_dim + i) * n + j];
                    *s = decay * *s + delta * x * f64::from(p.b(row, group)[j]);
                    sum += *s * f64::from(p.c(row, group)[j]);
                }
                y.push(sum);
            }
        }
    }
    (y, state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MatRef;
    use crate::ops::testing::{on_every_cpu, relative_error, values};

    #[test]
    fn steps_agree_with_the_recurrence() {
        for (h, p, g, n) in [(1, 1, 1, 1), (6, 5, 3, 37), (16, 80, 2, 128), (4, 33, 1, 24)] {
            let a: Vec<f32> = (0..h).map(|i| -0.3 - i as f32).collect();
            let (d, bias) = (values(h, 1), values(h, 2));
            let p = SsdParams {
                num_heads: h,
                head_dim: p,
                n_groups: g,
                state_size: n,
                a: &a,
                d: &d,
                dt_bias: &bias,
                dt_limit: (0.4, 1.1),
            };
            let (rows, width) = (6, p.conv_dim());
            let (xbc, dt) = (values(rows * width, 3), values(rows * h, 4));
            let start = values(p.state_len(), 5);
            let (want, want_state) =
                naive(&p, MatRef::new(&xbc, width), MatRef::new(&dt, h), &start);
            for (isa, got) in on_every_cpu(|cpu| {
                let (mut state, mut y) = (start.clone(), vec![f32::NAN; rows * p.inner()]);
                for t in 0..rows {
                    let (xbc, dt) = (&xbc[t * width..][..width], &dt[t * h..][..h]);
                    let y = &mut y[t * p.inner()..][..p.inner()];
                    selective_state_update(cpu, &p, xbc, dt, &mut state, y);
                }
                [y, state].concat()
            }) {
                let error = relative_error(&got, &[&want[..], &want_state[..]].concat());
                assert!(error < 1e-6, "{isa} H{h} N{n}: {error:e}");
            }
        }
    }
}
