//! What a sampler wants of rows of logits, so that they need not leave the device: the most
//! probable token and the normalizer of log-probabilities, and the largest candidates.
//!
//! Candidates rank by descending value, then ascending id; −0 equals 0. NaN never ranks. Ids and
//! values are exact; sums are f32, and their order is fixed.

use crate::driver::Gpu;
use crate::error::CudaError;
use crate::memory::{DeviceSlice, DeviceSliceMut};

/// Most candidates of a row.
pub const MAX_TOP: usize = 64;
/// The id where there is no candidate; its value is −∞.
pub const NO_TOKEN: u32 = u32::MAX;
/// Logits of a part, as in sample.cu.
const PART: usize = 4096;

/// As in sample.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct SampleArgs {
    logits: u64,
    keys: u64,
    sums: u64,
    ids: u64,
    values: u64,
    log_sums: u64,
    vocab: u32,
    parts: u32,
    k: u32,
    _end: u32,
}

/// 64-bit values of scratch that either op needs for `rows` rows.
#[must_use]
pub fn sample_scratch_len(rows: usize, vocab: usize) -> usize {
    rows * vocab.div_ceil(PART) * MAX_TOP
}

/// Checks what both ops have in common; returns the arguments and the number of rows.
fn args(
    logits: DeviceSlice<f32>,
    vocab: usize,
    ids: &DeviceSliceMut<u32>,
    values: &DeviceSliceMut<f32>,
    scratch: &DeviceSliceMut<u64>,
) -> (SampleArgs, usize) {
    assert!(vocab > 0 && logits.len().is_multiple_of(vocab), "{} of {vocab}", logits.len());
    let rows = logits.len() / vocab;
    assert_eq!(ids.len(), values.len(), "ids and values");
    let needed = sample_scratch_len(rows, vocab);
    assert!(scratch.len() >= needed, "{} values of scratch, {needed} needed", scratch.len());
    let args = SampleArgs {
        logits: logits.ptr(),
        keys: scratch.ptr(),
        sums: scratch.ptr() + (rows * vocab.div_ceil(PART) * size_of::<u64>()) as u64,
        ids: ids.ptr(),
        values: values.ptr(),
        log_sums: 0,
        vocab: vocab as u32,
        parts: vocab.div_ceil(PART) as u32,
        k: 1,
        _end: 0,
    };
    (args, rows)
}

/// Of each row of `logits` \[rows, vocab\]: `ids` and `values` \[rows\] of the largest, the lowest
/// id of equal ones ([`NO_TOKEN`] and −∞ where all are NaN), and `log_sums` \[rows\], ln Σ eˣ: NaN
/// if any is NaN, else ∞ if any is ∞. `scratch`: [`sample_scratch_len`].
///
/// # Errors
/// What the driver says.
///
/// # Panics
/// If the sizes do not fit.
pub fn argmax(
    gpu: &Gpu,
    (logits, vocab): (DeviceSlice<f32>, usize),
    ids: DeviceSliceMut<u32>,
    values: DeviceSliceMut<f32>,
    log_sums: DeviceSliceMut<f32>,
    scratch: DeviceSliceMut<u64>,
) -> Result<(), CudaError> {
    let (mut args, rows) = args(logits, vocab, &ids, &values, &scratch);
    assert_eq!([ids.len(), log_sums.len()], [rows; 2], "results of {rows} rows");
    args.log_sums = log_sums.ptr();
    gpu.launch("sample_largest_parts", [args.parts, rows as u32, 1], 256, 0, &args)?;
    gpu.launch("sample_largest_rows", [rows as u32, 1, 1], 256, 0, &args)
}

/// Of each row of `logits` \[rows, vocab\]: `ids` and `values` \[rows, k\] of its `k` first
/// candidates in order, [`NO_TOKEN`] and −∞ where there are fewer. `scratch`:
/// [`sample_scratch_len`].
///
/// # Errors
/// What the driver says.
///
/// # Panics
/// If the sizes do not fit, or k is not 1 to [`MAX_TOP`].
pub fn top_k(
    gpu: &Gpu,
    (logits, vocab): (DeviceSlice<f32>, usize),
    k: usize,
    ids: DeviceSliceMut<u32>,
    values: DeviceSliceMut<f32>,
    scratch: DeviceSliceMut<u64>,
) -> Result<(), CudaError> {
    let (mut args, rows) = args(logits, vocab, &ids, &values, &scratch);
    assert!((1..=MAX_TOP).contains(&k), "{k} candidates");
    assert_eq!(ids.len(), rows * k, "{k} candidates of {rows} rows");
    args.k = k as u32;
    gpu.launch("sample_top_parts", [args.parts, rows as u32, 1], 256, 0, &args)?;
    gpu.launch("sample_top_rows", [rows as u32, 1, 1], 256, 0, &args)
}
