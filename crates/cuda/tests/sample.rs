//! What is kept of rows of logits, against a full sort and plain sums.

mod emulated;

use hybra_cuda::Gpu;
use hybra_cuda::ops::sample::{NUM_CANDIDATES, RECORD_LEN, Record, reduce, reduce_scratch_len};

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
    all.truncate(NUM_CANDIDATES);
    all
}

/// The records of rows, each at a scale.
fn run(gpu: &Gpu, logits: &[f32], vocab: usize, scales: &[f32]) -> Vec<u64> {
    let rows = logits.len() / vocab;
    let logits = gpu.upload_new(logits).unwrap();
    let bits: Vec<u32> = scales.iter().map(|scale| scale.to_bits()).collect();
    let scales = gpu.upload_new(&bits).unwrap();
    let mut records = gpu.alloc(rows * RECORD_LEN).unwrap();
    let mut scratch = gpu.alloc(reduce_scratch_len(rows, vocab)).unwrap();
    let to = (records.slice_mut(..), scratch.slice_mut(..));
    reduce(gpu, (logits.slice(..), vocab), scales.slice(..), to.0, to.1).unwrap();
    gpu.to_vec(records.slice(..)).unwrap()
}

#[test]
fn candidates_are_those_of_a_full_sort_and_sums_are_near() {
    let Some(gpu) = emulated::gpu() else { return };
    for (num, vocab) in [(1, 1), (3, 77), (2, 4096), (2, 4099), (1, 40_000)] {
        for coarse in [false, true] {
            let logits = rows(num, vocab, coarse);
            let scales: Vec<f32> = (0..num).map(|r| 1.0 / (0.3 + r as f32)).collect();
            let records = run(gpu, &logits, vocab, &scales);
            for (r, row) in logits.chunks(vocab).enumerate() {
                let record = Record::new(&records[r * RECORD_LEN..][..RECORD_LEN]);
                let want = ranked(row);
                assert!(record.candidates().eq(want.iter().copied()), "{num}x{vocab}, row {r}");
                let sum: f64 = row.iter().map(|v| f64::from(v - want[0].1).exp()).sum();
                assert!((record.sum() / sum - 1.0).abs() < 1e-12, "{num}x{vocab}, row {r}");
                let power = |v: &f32| f64::from(((v - want[0].1) * scales[r]).exp());
                let sum: f64 = row.iter().map(power).sum();
                let error = (record.scaled_sum() / sum - 1.0).abs();
                assert!(error < 1e-6, "{num}x{vocab}, row {r}: {error:e}");
                // Alone it has the same bits.
                let alone = run(gpu, row, vocab, &scales[r..=r]);
                assert!(records[r * RECORD_LEN..][..RECORD_LEN] == alone, "{num}x{vocab}, row {r}");
            }
        }
    }
}

#[test]
fn nan_never_ranks_and_shows_in_the_sums() {
    let Some(gpu) = emulated::gpu() else { return };
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let cases = [
        ([nan, nan, nan, -nan], nan),
        ([nan, -inf, 1.0, -nan], nan),
        ([-inf, -inf, nan, -inf], nan),
        ([-inf; 4], nan),
        ([-inf, 3.0, -inf, -inf], 1.0),
        ([1.0, inf, 2.0, inf], nan),
        ([-0.0, 0.0, -0.0, -inf], 3.0),
        ([-3e38, -2e38, -2e38, -inf], 2.0),
    ];
    // In the second part of a row whose first part is −∞ alone, and in a row of one part.
    for before in [0, 4096] {
        for (case, sum) in cases {
            let row: Vec<f32> = std::iter::repeat_n(-inf, before).chain(case).collect();
            let records = run(gpu, &row, row.len(), &[1.0]);
            let record = Record::new(&records);
            assert!(record.candidates().eq(ranked(&row)), "{before} {case:?}");
            for found in [record.sum(), record.scaled_sum()] {
                let same = found == f64::from(sum) || found.is_nan() && sum.is_nan();
                assert!(same, "{before} {case:?}: {found}");
            }
        }
    }
}
