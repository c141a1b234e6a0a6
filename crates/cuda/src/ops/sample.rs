//! What a sampler wants of rows of logits, so that they need not leave the device: the largest, and
//! the sums that normalize them.
//!
//! Candidates rank by descending value, then ascending id; −0 equals 0 and is given as 0. NaN never
//! ranks. Ids and values are exact; the order of sums is fixed, and they are f64.

use crate::driver::Gpu;
use crate::error::CudaError;
use crate::memory::{DeviceSlice, DeviceSliceMut};

/// Candidates of a row.
pub const NUM_CANDIDATES: usize = 64;
/// Words of what is kept of a row: see [`Record`].
pub const RECORD_LEN: usize = NUM_CANDIDATES + 2;
/// Logits of a part, as in sample.cu.
const PART: usize = 4096;

/// As in sample.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct SampleArgs {
    logits: u64,
    scales: u64,
    keys: u64,
    sums: u64,
    records: u64,
    vocab: u32,
    parts: u32,
}

/// 64-bit values of scratch for [`reduce`].
#[must_use]
pub fn reduce_scratch_len(rows: usize, vocab: usize) -> usize {
    rows * vocab.div_ceil(PART) * RECORD_LEN
}

/// Of each row of `logits` \[R, V\] a [`Record`] into `records` \[R, [`RECORD_LEN`]\]. `scales`
/// \[R\] are the bits of f32. `scratch`: [`reduce_scratch_len`].
///
/// # Errors
/// What the driver says.
///
/// # Panics
/// If the sizes do not fit.
pub fn reduce(
    gpu: &Gpu,
    (logits, vocab): (DeviceSlice<f32>, usize),
    scales: DeviceSlice<u32>,
    records: DeviceSliceMut<u64>,
    scratch: DeviceSliceMut<u64>,
) -> Result<(), CudaError> {
    assert!(vocab > 0 && logits.len().is_multiple_of(vocab), "{} of {vocab}", logits.len());
    let (rows, parts) = (logits.len() / vocab, vocab.div_ceil(PART));
    assert_eq!((scales.len(), records.len()), (rows, rows * RECORD_LEN), "{rows} rows");
    let needed = reduce_scratch_len(rows, vocab);
    assert!(scratch.len() >= needed, "{} values of scratch, {needed} needed", scratch.len());
    let args = SampleArgs {
        logits: logits.ptr(),
        scales: scales.ptr(),
        keys: scratch.ptr(),
        sums: scratch.ptr() + (rows * parts * NUM_CANDIDATES * size_of::<u64>()) as u64,
        records: records.ptr(),
        vocab: vocab as u32,
        parts: parts as u32,
    };
    let (rows, parts) = (rows as u32, parts as u32);
    gpu.launch("sample_top_parts", [parts, rows, 1], 256, 0, &args)?;
    gpu.launch("sample_top_rows", [rows, 1, 1], 256, 0, &args)?;
    gpu.launch("sample_sum_parts", [parts, rows, 1], 256, 0, &args)?;
    gpu.launch("sample_sum_rows", [rows, 1, 1], 32, 0, &args)
}

/// What is kept of a row: the keys of its candidates, and two sums.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a>(&'a [u64]);

impl<'a> Record<'a> {
    /// Takes what [`reduce`] wrote for a row.
    ///
    /// # Panics
    /// If it is not [`RECORD_LEN`] words.
    #[must_use]
    pub fn new(words: &'a [u64]) -> Self {
        assert_eq!(words.len(), RECORD_LEN, "words of a record");
        Self(words)
    }

    /// Ids and values of the candidates in order: all there are, or [`NUM_CANDIDATES`].
    pub fn candidates(self) -> impl ExactSizeIterator<Item = (u32, f32)> + Clone + 'a {
        let num = self.0[..NUM_CANDIDATES].iter().take_while(|key| **key != 0).count();
        self.0[..num].iter().map(|&key| {
            let ordered = (key >> 32) as u32;
            let bits = if ordered >> 31 == 1 { ordered & 0x7fff_ffff } else { !ordered };
            (u32::MAX - key as u32, f32::from_bits(bits))
        })
    }

    /// Σ e^((l − l_max) · scale), each power rounded to f32; NaN if a logit is NaN or l_max infinite.
    #[must_use]
    pub fn scaled_sum(self) -> f64 {
        f64::from_bits(self.0[NUM_CANDIDATES])
    }

    /// Σ e^(l − l_max), the difference rounded to f32; NaN if a logit is NaN or l_max infinite.
    #[must_use]
    pub fn sum(self) -> f64 {
        f64::from_bits(self.0[NUM_CANDIDATES + 1])
    }
}
