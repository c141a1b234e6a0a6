//! The ops over logits on the device against plain ones.

mod emulated;

use hybra_cuda::Gpu;
use hybra_cuda::ops::sample::{MAX_TOP, NO_TOKEN, argmax, sample_scratch_len, top_k};

/// Rows of many magnitudes; few different values where `coarse`, so that there are many ties.
fn rows(rows: usize, vocab: usize, coarse: bool) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ vocab as u64;
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let value = |_| if coarse { (next() * 4.0).round() } else { next() * 30.0 };
    (0..rows * vocab).map(value).collect()
}

/// All candidates of a row in order.
fn ranked(row: &[f32]) -> Vec<(u32, f32)> {
    let mut all: Vec<_> = (0u32..).zip(row.iter().copied()).filter(|(_, v)| !v.is_nan()).collect();
    all.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
    all
}

/// Ids, values and log-sums.
fn run_argmax(gpu: &Gpu, logits: &[f32], vocab: usize) -> (Vec<u32>, Vec<f32>, Vec<f32>) {
    let rows = logits.len() / vocab;
    let logits = gpu.upload_new(logits).unwrap();
    let mut ids = gpu.alloc(rows).unwrap();
    let [mut values, mut sums] = [gpu.alloc(rows).unwrap(), gpu.alloc(rows).unwrap()];
    let mut scratch = gpu.alloc(sample_scratch_len(rows, vocab)).unwrap();
    let (to, room) = ([values.slice_mut(..), sums.slice_mut(..)], scratch.slice_mut(..));
    let [to_values, to_sums] = to;
    argmax(gpu, (logits.slice(..), vocab), ids.slice_mut(..), to_values, to_sums, room).unwrap();
    let [values, sums] = [values, sums].map(|b| gpu.to_vec(b.slice(..)).unwrap());
    (gpu.to_vec(ids.slice(..)).unwrap(), values, sums)
}

/// Ids and values of k candidates a row.
fn run_top(gpu: &Gpu, logits: &[f32], vocab: usize, k: usize) -> (Vec<u32>, Vec<f32>) {
    let rows = logits.len() / vocab;
    let logits = gpu.upload_new(logits).unwrap();
    let (mut ids, mut values) = (gpu.alloc(rows * k).unwrap(), gpu.alloc(rows * k).unwrap());
    let mut scratch = gpu.alloc(sample_scratch_len(rows, vocab)).unwrap();
    let (to, room) = ((ids.slice_mut(..), values.slice_mut(..)), scratch.slice_mut(..));
    top_k(gpu, (logits.slice(..), vocab), k, to.0, to.1, room).unwrap();
    (gpu.to_vec(ids.slice(..)).unwrap(), gpu.to_vec(values.slice(..)).unwrap())
}

#[test]
fn the_largest_is_the_first_of_equal_ones_and_sums_are_near() {
    let Some(gpu) = emulated::gpu() else { return };
    for (num, vocab) in [(1, 1), (3, 77), (2, 4096), (2, 4099), (1, 40_000)] {
        for coarse in [false, true] {
            let logits = rows(num, vocab, coarse);
            let (ids, values, sums) = run_argmax(gpu, &logits, vocab);
            for (r, row) in logits.chunks(vocab).enumerate() {
                assert_eq!((ids[r], values[r]), ranked(row)[0], "{num}x{vocab}, row {r}");
                let sum: f64 = row.iter().map(|v| f64::from(*v).exp()).sum();
                let error = (f64::from(sums[r]) - sum.ln()).abs();
                assert!(error <= 5e-6, "{num}x{vocab}, row {r}: {} ≠ {}", sums[r], sum.ln());
            }
        }
    }
}

#[test]
fn candidates_are_those_of_a_full_sort() {
    let Some(gpu) = emulated::gpu() else { return };
    for (num, vocab) in [(1, 1), (3, 77), (2, 4096), (2, 4099), (1, 40_000)] {
        for (coarse, k) in [(false, MAX_TOP), (true, MAX_TOP), (false, 1), (true, 20)] {
            let logits = rows(num, vocab, coarse);
            let (ids, values) = run_top(gpu, &logits, vocab, k);
            for (r, row) in logits.chunks(vocab).enumerate() {
                let mut want = ranked(row);
                want.resize(vocab.max(k), (NO_TOKEN, f32::NEG_INFINITY));
                let got = ids[r * k..].iter().copied().zip(values[r * k..].iter().copied());
                assert!(got.take(k).eq(want.into_iter().take(k)), "{num}x{vocab}, k {k}, row {r}");
            }
        }
    }
}

#[test]
fn nan_never_ranks_and_shows_in_the_sum() {
    let Some(gpu) = emulated::gpu() else { return };
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let cases: [([f32; 4], u32, f32, f32); 8] = [
        ([nan, nan, nan, -nan], NO_TOKEN, -inf, nan),
        ([nan, -inf, 1.0, -nan], 2, 1.0, nan),
        ([-inf, -inf, nan, -inf], 0, -inf, nan),
        ([-inf; 4], 0, -inf, -inf),
        ([-inf, 3.0, -inf, -inf], 1, 3.0, 3.0),
        ([1.0, inf, 2.0, inf], 1, inf, inf),
        ([-0.0, 0.0, -0.0, -inf], 0, 0.0, 3f32.ln()),
        ([-3e38, -2e38, -2e38, -inf], 1, -2e38, -2e38),
    ];
    // In the second part of a row whose first part is −∞ alone, and in a row of one part.
    for before in [0, 4096] {
        for (case, id, value, sum) in cases {
            let row: Vec<f32> = std::iter::repeat_n(-inf, before).chain(case).collect();
            let (ids, values, sums) = run_argmax(gpu, &row, row.len());
            let first =
                if value == -inf && before > 0 { 0 } else { id.wrapping_add(before as u32) };
            let first = if id == NO_TOKEN && before == 0 { NO_TOKEN } else { first };
            assert_eq!((ids[0], values[0]), (first, value), "{before} {case:?}");
            let same = sums[0] == sum || sums[0].is_nan() && sum.is_nan();
            assert!(same || (sums[0] - sum).abs() < 1e-6, "{before} {case:?}: {}", sums[0]);
            let (ids, values) = run_top(gpu, &row, row.len(), 4);
            let mut want = ranked(&row);
            want.resize(row.len(), (NO_TOKEN, -inf));
            let got: Vec<_> = ids.into_iter().zip(values).collect();
            assert_eq!(got, want[..4], "{before} {case:?}");
        }
    }
}
