//! Logits of a pass: whole rows where the model is on the CPU, of a model on a GPU the largest of
//! each row, from where the whole row can be fetched until the next pass.
//!
//! Invariant: what is kept of a row on a GPU is a function of the row and its scale alone.

use crate::nemotron_h::ForwardError;
use hybra_cuda::ops::sample::{RECORD_LEN, Record};
use hybra_cuda::{DeviceSlice, Gpu};

/// One row for each of [`crate::Batch::logit_rows`].
pub struct Logits<'a> {
    rows: Rows<'a>,
    /// V.
    vocab_size: usize,
}

enum Rows<'a> {
    Host(&'a [f32]),
    Device(DeviceRows<'a>),
}

struct DeviceRows<'a> {
    gpu: Gpu,
    logits: DeviceSlice<'a, f32>,
    records: &'a [u64],
}

/// A row.
#[derive(Clone, Copy)]
pub enum LogitRow<'a> {
    /// `[V]`.
    Whole(&'a [f32]),
    /// On a GPU.
    Top(TopLogits<'a>),
}

/// The largest logits of a row that is on a GPU.
#[derive(Clone, Copy)]
pub struct TopLogits<'a> {
    record: Record<'a>,
    logits: DeviceSlice<'a, f32>,
    gpu: &'a Gpu,
}

impl<'a> Logits<'a> {
    /// Rows `[R, V]`.
    pub(crate) fn whole(rows: &'a [f32], vocab_size: usize) -> Self {
        Self { rows: Rows::Host(rows), vocab_size }
    }

    /// Rows `[R, V]` on a GPU, and a record of each, one after the other.
    pub(crate) fn on_device(
        gpu: &Gpu,
        logits: DeviceSlice<'a, f32>,
        records: &'a [u64],
        vocab_size: usize,
    ) -> Self {
        let gpu = gpu.clone();
        Self { rows: Rows::Device(DeviceRows { gpu, logits, records }), vocab_size }
    }

    /// Row `index`.
    ///
    /// # Panics
    /// If there are not as many.
    #[must_use]
    pub fn row(&self, index: usize) -> LogitRow<'_> {
        let range = index * self.vocab_size..(index + 1) * self.vocab_size;
        match &self.rows {
            Rows::Host(rows) => LogitRow::Whole(&rows[range]),
            Rows::Device(DeviceRows { gpu, logits, records }) => {
                let record = Record::new(&records[index * RECORD_LEN..(index + 1) * RECORD_LEN]);
                LogitRow::Top(TopLogits::new(gpu, record, logits.part(range)))
            }
        }
    }
}

impl<'a> TopLogits<'a> {
    /// A row `[V]` on a GPU with its record.
    #[must_use]
    pub fn new(gpu: &'a Gpu, record: Record<'a>, logits: DeviceSlice<'a, f32>) -> Self {
        Self { record, logits, gpu }
    }

    /// What is kept of it.
    #[must_use]
    pub fn record(&self) -> Record<'a> {
        self.record
    }

    /// V.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.logits.len()
    }

    /// Puts the whole row into `to`.
    ///
    /// # Errors
    /// A device that fails.
    pub fn fetch(&self, to: &mut Vec<f32>) -> Result<(), ForwardError> {
        to.resize(self.logits.len(), 0.0);
        Ok(self.gpu.download(to, self.logits)?)
    }
}
