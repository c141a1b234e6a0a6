//! What the ops' tests share: repeatable values, every context, comparison with an f64 twin.

use crate::{Cpu, Isa};

/// `n` values in −1 .. 1 that depend on `seed` alone.
pub(crate) fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 40) as f32 / (1u64 << 23) as f32) - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Runs `op` on every instruction set with one thread and with three, demands equal bits and
/// returns one result per instruction set.
pub(crate) fn on_every_cpu(op: impl Fn(&Cpu) -> Vec<f32>) -> Vec<(Isa, Vec<f32>)> {
    let run = |isa| {
        let one = op(&Cpu::new(isa, 1));
        assert_same_bits(&op(&Cpu::new(isa, 3)), &one, &format!("{isa}: 3 threads and 1"));
        (isa, one)
    };
    Isa::available().into_iter().map(run).collect()
}

/// Demands equal bits.
pub(crate) fn assert_same_bits(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert_eq!(g.to_bits(), w.to_bits(), "{what}: value {i}: {g} ≠ {w}");
    }
}

/// Demands `|got − want| ≤ tolerance · (1 + |want|)` for every value.
pub(crate) fn assert_near(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(g) - w).abs() / (1.0 + w.abs());
        assert!(error <= tolerance, "{what}: value {i}: {g} ≠ {w} (off by {error:e})");
    }
}

/// `|got − want| / |want|` over all values (Euclidean norms).
pub(crate) fn relative_error(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len(), "lengths");
    let square = |v: f64| v * v;
    let error: f64 = got.iter().zip(want).map(|(&g, &w)| square(f64::from(g) - w)).sum();
    let size: f64 = want.iter().map(|&w| square(w)).sum();
    if size == 0.0 { error.sqrt() } else { (error / size).sqrt() }
}

/// Slopes of `loss` along every value of all `inputs`, laid end to end, by central differences in
/// f64 (error about h² = 1e-8 of the third derivative).
pub(crate) fn central_differences(inputs: &[&[f32]], loss: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut v: Vec<f64> = inputs.iter().flat_map(|x| x.iter()).map(|x| f64::from(*x)).collect();
    let slope = |i: usize, v: &mut Vec<f64>| {
        let (at, h) = (v[i], 1e-5);
        v[i] = at + h;
        let above = loss(v);
        v[i] = at - h;
        let below = loss(v);
        v[i] = at;
        (above - below) / (2.0 * h)
    };
    (0..v.len()).map(|i| slope(i, &mut v)).collect()
}
