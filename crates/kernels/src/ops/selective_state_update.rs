//! One token of the Mamba-2 recurrence, state updated in place.
//!
//! For head h of group g, with `Δ = clamp(softplus(dt + dt_bias), dt_limit)`:
//! `S ← e^{Δ·a} S + (Δ·x) ⊗ B`, `y = S·C + d·x`. S is \[P, N\], x and y \[P\], B and C \[N\]
//! of group h / (H / G). `a ≤ 0` is −exp(A_log). S is stored transposed, see
//! `ops/ssm_state.rs`: y is then a sum of rows, n ascending, whatever the width of a vector.
//!
//! Source: Dao and Gu 2024 (Mamba-2), section 3; `selective_state_update` of state-spaces/mamba.

use crate::Cpu;
use crate::buffer::Chunks;
use crate::ops::ssd::{SsdParams, StepSizes};
use crate::ops::ssm_state::Stored;
use crate::ops::tile::even_share;
use crate::simd::{Simd, WithSimd, dispatch};

/// Updates `state` \[H, N, P\] with one token and writes y \[H·P\].
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
        let states = state.chunks_exact_mut(head_len).zip(y.chunks_exact_mut(p.head_dim));
        for (j, (state, y)) in states.enumerate() {
            let (head, mut delta) = (i * heads + j, [0.0]);
            let group = head / p.heads_per_group();
            dispatch(isa, StepSizes { p, first: head, dt: &dt[head..=head], delta: &mut delta });
            let x = &xbc[head * p.head_dim..][..p.head_dim];
            let (b, c) = (p.b(xbc, group), p.c(xbc, group));
            let token = Token { a: p.a[head], d: p.d[head], delta: delta[0], x, b, c };
            dispatch(isa, Step { token, state, y });
        }
    });
}

/// State values that a worker takes at a time, rounded to heads.
const SHARE: usize = 8 * 1024;

/// What a token brings to one head.
pub(crate) struct Token<'a> {
    pub(crate) a: f32,
    pub(crate) d: f32,
    /// Δ.
    pub(crate) delta: f32,
    /// \[P\].
    pub(crate) x: &'a [f32],
    /// \[N\].
    pub(crate) b: &'a [f32],
    /// \[N\].
    pub(crate) c: &'a [f32],
}

/// One head and one token: `state` \[N, P\] is read and written once, y \[P\] is written.
pub(crate) struct Step<'a, E> {
    pub(crate) token: Token<'a>,
    pub(crate) state: &'a mut [E],
    pub(crate) y: &'a mut [f32],
}

/// Most vectors of a row of the state that are worked on together: with Δx and y for each they
/// leave registers for the state itself.
const WIDTH: usize = 5;

impl<E: Stored> WithSimd for Step<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { token, state, y } = self;
        let decay = s.splat(s.max_lane(s.exp(s.splat(token.delta * token.a))));
        let vectors = y.len() / S::LANES;
        let mut done = 0;
        while done < vectors {
            let width = even_share(vectors - done, WIDTH);
            let col = done * S::LANES;
            match width {
                1 => columns::<S, E, 1>(s, &token, decay, state, col, y),
                2 => columns::<S, E, 2>(s, &token, decay, state, col, y),
                3 => columns::<S, E, 3>(s, &token, decay, state, col, y),
                4 => columns::<S, E, 4>(s, &token, decay, state, col, y),
                _ => columns::<S, E, WIDTH>(s, &token, decay, state, col, y),
            }
            done += width;
        }
        if !y.len().is_multiple_of(S::LANES) {
            last_columns(s, &token, decay, state, vectors * S::LANES, y);
        }
    }
}

/// V whole vectors from column `col`.
#[inline(always)]
fn columns<S: Simd, E: Stored, const V: usize>(
    s: S,
    token: &Token,
    decay: S::V,
    state: &mut [E],
    col: usize,
    y: &mut [f32],
) {
    let delta = s.splat(token.delta);
    let x = &token.x[col..col + V * S::LANES];
    let (mut u, mut acc) = ([s.zero(); V], [s.zero(); V]);
    for v in 0..V {
        u[v] = s.mul(delta, s.load(&x[v * S::LANES..]));
    }
    let rows = state.chunks_exact_mut(y.len()).zip(token.b.iter().zip(token.c));
    for (row, (b, c)) in rows {
        let row = &mut row[col..col + V * S::LANES];
        let (b, c) = (s.splat(*b), s.splat(*c));
        for v in 0..V {
            let part = &mut row[v * S::LANES..(v + 1) * S::LANES];
            let new = s.fma(u[v], b, s.mul(decay, E::load(s, part)));
            E::store(s, new, part);
            acc[v] = s.fma(new, c, acc[v]);
        }
    }
    for v in 0..V {
        let x = s.load(&x[v * S::LANES..]);
        s.store(s.fma(s.splat(token.d), x, acc[v]), &mut y[col + v * S::LANES..]);
    }
}

/// The columns from `col` on, fewer than a vector.
#[inline(always)]
fn last_columns<S: Simd, E: Stored>(
    s: S,
    token: &Token,
    decay: S::V,
    state: &mut [E],
    col: usize,
    y: &mut [f32],
) {
    let x = s.load_partial(&token.x[col..]);
    let (u, mut acc) = (s.mul(s.splat(token.delta), x), s.zero());
    let rows = state.chunks_exact_mut(y.len()).zip(token.b.iter().zip(token.c));
    for (row, (b, c)) in rows {
        let row = &mut row[col..];
        let mut values = [0.0; 16];
        values.iter_mut().zip(&*row).for_each(|(v, old)| *v = old.widen());
        let new = s.fma(u, s.splat(*b), s.mul(decay, s.load(&values)));
        s.store(new, &mut values);
        row.iter_mut().zip(values).for_each(|(old, v)| *old = E::round(v));
        acc = s.fma(new, s.splat(*c), acc);
    }
    s.store_partial(s.fma(s.splat(token.d), x, acc), &mut y[col..]);
}

/// The recurrence in f64 over T tokens: (y \[T, H·P\], state \[H, N, P\]).
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
                    let s = &mut state[(h * n + j) * p.head_dim + i];
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
        for (h, p, g, n) in
            [(1, 1, 1, 1), (6, 5, 3, 37), (16, 80, 2, 128), (4, 33, 1, 24), (2, 100, 1, 9)]
        {
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
