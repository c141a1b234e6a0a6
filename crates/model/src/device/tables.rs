//! What kernels must know of a batch: its tokens, its segments, and where their states lie.
//!
//! One array on the device, uploaded in one piece that nobody waits for. Words come first, two to a
//! place: ids `[T]`; starts, lengths, tokens read before and first page of the segments, `[S]` each;
//! the scales of rows of logits as f32, `[R]`. Then addresses: of every Mamba layer the convolutions' windows `[S]` and the SSM states `[S]`,
//! and the pages of all segments, one segment after the other. So all but the number of pages lies
//! where T, S and R say.

use super::scratch::Grown;
use super::state::{Layout, PAGE};
use crate::batch::Batch;
use crate::state::SequenceState;
use hybra_cuda::ops::attention::{KvSegments, SPAN, SegmentLen};
use hybra_cuda::ops::mamba_split_conv1d_scan::MixerSegments;
use hybra_cuda::{CudaError, DeviceSlice, Gpu, Staging};

/// The array, and what the host knows of it.
#[derive(Default)]
pub(super) struct Tables {
    on_device: Grown<u64>,
    staging: Option<Staging>,
    /// As launches take them: in a step of single tokens all see the same number of positions.
    lens: Vec<SegmentLen>,
    /// T.
    tokens: usize,
    /// Mamba layers before each layer.
    mamba_before: Vec<usize>,
    words: Vec<u32>,
    addresses: Vec<u64>,
    staged: Vec<u64>,
}

impl Tables {
    /// Uploads the batch's tokens alone.
    pub(super) fn fill_ids(&mut self, gpu: &Gpu, batch: &Batch) -> Result<(), CudaError> {
        self.begin(batch);
        self.upload(gpu)
    }

    /// Brings the batch's states to the device, with room for its tokens, and uploads everything.
    pub(super) fn fill(
        &mut self,
        gpu: &Gpu,
        layout: &Layout,
        batch: &Batch,
        states: &mut [&mut SequenceState],
    ) -> Result<(), CudaError> {
        self.begin(batch);
        let segments = batch.segments();
        let mamba: Vec<(u64, u64)> = layout.mamba.iter().flatten().copied().collect();
        let (num, per_layer) = (segments.len(), 2 * segments.len());
        self.addresses.resize(mamba.len() * per_layer, 0);
        self.words.extend(segments.iter().map(|s| s.start as u32));
        self.words.extend(segments.iter().map(|s| s.len as u32));
        self.words.extend(states.iter().map(|s| s.len() as u32));
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
                self.addresses[layer * per_layer + i] = slot + conv;
                self.addresses[layer * per_layer + num + i] = slot + ssm;
            }
            self.words.push(pages);
            let needed =
                &resident.pages[..(past + segment.len).div_ceil(PAGE).min(resident.pages.len())];
            pages += needed.len() as u32;
            self.addresses.extend(needed.iter().map(|page| page.address()));
        }
        for segment in segments {
            let scale = segment.scale.to_bits();
            self.words.extend(std::iter::repeat_n(scale, segment.num_logits()));
        }
        let is_mamba = layout.mamba.iter().map(Option::is_some);
        let before =
            is_mamba.scan(0, |count, is| Some(std::mem::replace(count, *count + usize::from(is))));
        self.mamba_before.clear();
        self.mamba_before.extend(before);
        self.round_contexts();
        layout.in_room(|| self.upload(gpu))
    }

    /// Steps of about as many positions have the same launches, which have room for more: bits do
    /// not depend on it.
    fn round_contexts(&mut self) {
        if let Some(context) = self.decode_context() {
            self.lens.iter_mut().for_each(|segment| segment.past = context - 1);
        }
    }

    /// Positions that attention is launched for, of a batch of single tokens.
    pub(super) fn decode_context(&self) -> Option<usize> {
        let most = self.lens.iter().map(|segment| segment.past + 1).max()?;
        let single = self.lens.iter().all(|segment| segment.len == 1);
        single.then(|| most.div_ceil(SPAN).next_power_of_two() * SPAN)
    }

    /// Where the array lies.
    pub(super) fn address(&self) -> u64 {
        self.on_device.address()
    }

    /// Empty but for the tokens.
    fn begin(&mut self, batch: &Batch) {
        self.lens.clear();
        self.addresses.clear();
        self.words.clear();
        self.words.extend(batch.tokens());
        self.tokens = batch.tokens().len();
    }

    fn upload(&mut self, gpu: &Gpu) -> Result<(), CudaError> {
        // Hosts of these devices are little-endian, as the devices are.
        let pair = |pair: &[u32]| u64::from(pair[0]) | u64::from(*pair.get(1).unwrap_or(&0)) << 32;
        self.staged.clear();
        self.staged.extend(self.words.chunks(2).map(pair));
        self.staged.extend(&self.addresses);
        let to = self.on_device.sized(gpu, self.staged.len())?;
        let staging = self.staging.take().filter(|staging| staging.gpu() == gpu);
        self.staging.insert(staging.unwrap_or_else(|| Staging::new(gpu))).upload(to, &self.staged)
    }

    /// The segments, as the host knows them.
    pub(super) fn lens(&self) -> &[SegmentLen] {
        &self.lens
    }

    /// The batch's tokens.
    pub(super) fn ids(&self) -> DeviceSlice<'_, u32> {
        self.words().part(0..self.tokens)
    }

    /// Scales of the batch's `rows` rows of logits.
    pub(super) fn scales(&self, rows: usize) -> DeviceSlice<'_, u32> {
        let first = self.tokens + 4 * self.lens.len();
        self.words().part(first..first + rows)
    }

    fn words(&self) -> DeviceSlice<'_, u32> {
        self.on_device.get(self.words.len().div_ceil(2)).halves()
    }

    /// Array `index` of those of the segments.
    fn of_segments(&self, index: usize) -> DeviceSlice<'_, u32> {
        let (first, num) = (self.tokens, self.lens.len());
        self.words().part(first + index * num..first + (index + 1) * num)
    }

    fn addresses(&self) -> DeviceSlice<'_, u64> {
        let words = self.words.len().div_ceil(2);
        self.on_device.get(words + self.addresses.len()).part(words..words + self.addresses.len())
    }

    /// The segments as the mixer of Mamba layer `layer` takes them.
    pub(super) fn mixer(&self, layer: usize) -> MixerSegments<'_> {
        let num = self.lens.len();
        let first = self.mamba_before[layer] * 2 * num;
        MixerSegments {
            start: self.of_segments(0),
            len: self.of_segments(1),
            conv_states: self.addresses().part(first..first + num),
            ssm_states: self.addresses().part(first + num..first + 2 * num),
            longest: self.lens.iter().map(|s| s.len).max().unwrap_or(0),
        }
    }

    /// The segments as attention takes them.
    pub(super) fn attention(&self, layout: &Layout) -> KvSegments<'_> {
        let first = layout.mamba.iter().flatten().count() * 2 * self.lens.len();
        KvSegments {
            start: self.of_segments(0),
            len: self.of_segments(1),
            past: self.of_segments(2),
            first_page: self.of_segments(3),
            pages: self.addresses().part(first..self.addresses.len()),
        }
    }
}
