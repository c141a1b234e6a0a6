//! What kernels must know of a batch: its segments, and where their states lie.
//!
//! Two arrays on the device. Words: starts, lengths, tokens read before and first page, `[S]` each.
//! Addresses: of every Mamba layer the convolutions' windows `[S]` and the SSM states `[S]`, then
//! the pages of all segments, one segment after the other.

use super::scratch::Grown;
use super::state::{Layout, PAGE};
use crate::batch::Batch;
use crate::state::SequenceState;
use hybra_cuda::ops::attention::{KvSegments, SegmentLen};
use hybra_cuda::ops::mamba_split_conv1d_scan::MixerSegments;
use hybra_cuda::{CudaError, Gpu};

/// The arrays, and what the host knows of them.
#[derive(Default)]
pub(super) struct Tables {
    words: Grown<u32>,
    addresses: Grown<u64>,
    lens: Vec<SegmentLen>,
    /// Mamba layers before each layer.
    mamba_before: Vec<usize>,
    num_addresses: usize,
    staged_words: Vec<u32>,
    staged_addresses: Vec<u64>,
}

impl Tables {
    /// Brings the batch's states to the device, with room for its tokens, and uploads the tables.
    pub(super) fn fill(
        &mut self,
        gpu: &Gpu,
        layout: &Layout,
        batch: &Batch,
        states: &mut [&mut SequenceState],
    ) -> Result<(), CudaError> {
        let segments = batch.segments();
        self.lens.clear();
        self.staged_words.clear();
        self.staged_addresses.clear();
        let mamba: Vec<(u64, u64)> = layout.mamba.iter().flatten().copied().collect();
        let (num, per_layer) = (segments.len(), 2 * segments.len());
        self.staged_addresses.resize(mamba.len() * per_layer, 0);
        self.staged_words.extend(segments.iter().map(|s| s.start as u32));
        self.staged_words.extend(segments.iter().map(|s| s.len as u32));
        self.staged_words.extend(states.iter().map(|s| s.len() as u32));
        let mut pages = 0;
        for (i, (segment, state)) in segments.iter().zip(states).enumerate() {
            assert!(!segment.draft, "a device reads no drafts");
            let past = state.len();
            self.lens.push(SegmentLen { len: segment.len, past });
            let device = state.device.as_mut().filter(|device| device.is_of(layout));
            let device = device.expect("states are of the model that reads them");
            let resident = device.reserve(past + segment.len)?;
            for (layer, (conv, ssm)) in mamba.iter().enumerate() {
                let slot = resident.slot.address();
                self.staged_addresses[layer * per_layer + i] = slot + conv;
                self.staged_addresses[layer * per_layer + num + i] = slot + ssm;
            }
            self.staged_words.push(pages);
            let needed =
                &resident.pages[..(past + segment.len).div_ceil(PAGE).min(resident.pages.len())];
            pages += needed.len() as u32;
            self.staged_addresses.extend(needed.iter().map(|page| page.address()));
        }
        let is_mamba = layout.mamba.iter().map(Option::is_some);
        let before =
            is_mamba.scan(0, |count, is| Some(std::mem::replace(count, *count + usize::from(is))));
        self.mamba_before = before.collect();
        self.num_addresses = self.staged_addresses.len();
        gpu.upload(self.words.sized(gpu, self.staged_words.len())?, &self.staged_words)?;
        gpu.upload(self.addresses.sized(gpu, self.num_addresses)?, &self.staged_addresses)
    }

    /// The segments, as the host knows them.
    pub(super) fn lens(&self) -> &[SegmentLen] {
        &self.lens
    }

    /// The segments as the mixer of Mamba layer `layer` takes them.
    pub(super) fn mixer(&self, layer: usize) -> MixerSegments<'_> {
        let num = self.lens.len();
        let first = self.mamba_before[layer] * 2 * num;
        MixerSegments {
            start: self.words.range(0..num),
            len: self.words.range(num..2 * num),
            conv_states: self.addresses.range(first..first + num),
            ssm_states: self.addresses.range(first + num..first + 2 * num),
            longest: self.lens.iter().map(|s| s.len).max().unwrap_or(0),
        }
    }

    /// The segments as attention takes them.
    pub(super) fn attention(&self, layout: &Layout) -> KvSegments<'_> {
        let num = self.lens.len();
        let first = layout.mamba.iter().flatten().count() * 2 * num;
        KvSegments {
            start: self.words.range(0..num),
            len: self.words.range(num..2 * num),
            past: self.words.range(2 * num..3 * num),
            first_page: self.words.range(3 * num..4 * num),
            pages: self.addresses.range(first..self.num_addresses),
        }
    }
}
