//! A sequence's state on a device: a slot for its Mamba layers, pages for its keys and values.
//!
//! Invariants: a page that two states share is full and never written again; memory is taken when
//! tokens are first read; where a copy finds no room on the device it is kept on the host, with the
//! same bits, and goes back before it is read on. An image is the slot's bytes, then the pages'.

use super::memory::{Block, Pool};
use crate::config::Config;
use crate::layer::LayerConfig;
use hybra_cuda::{CudaError, Gpu};
use std::sync::Arc;

/// Positions of a page.
pub(super) const PAGE: usize = 64;
/// Floats that a layer's part of a slot is rounded up to, so that vectors of it are aligned.
const ALIGN: usize = 64;
/// Bytes that pages are taken from the driver in.
const CHUNK_BYTES: usize = 32 << 20;

/// Where the parts of a state lie, and the memory they come from.
pub(crate) struct Layout {
    pub(super) slots: Arc<Pool>,
    pub(super) pages: Arc<Pool>,
    /// By layer: bytes from the start of the slot to the convolution's window and the SSM state.
    pub(super) mamba: Vec<Option<(u64, u64)>>,
    /// By layer: bytes from the start of a page to its keys.
    pub(super) attention: Vec<Option<u64>>,
}

impl Layout {
    /// The layout of a model's states with keys and values of `value_bytes`.
    pub(super) fn new(gpu: &Gpu, config: &Config, value_bytes: usize) -> Arc<Self> {
        let (mut slot, mut page) = (0, 0);
        let (mut mamba, mut attention) = (Vec::new(), Vec::new());
        for layer in &config.layers {
            let mut own = (None, None);
            match layer {
                LayerConfig::Mamba2(m) => {
                    let conv = slot;
                    slot += 4 * ((m.conv_kernel - 1) * m.conv_dim()).next_multiple_of(ALIGN);
                    own.0 = Some((conv as u64, slot as u64));
                    slot += 4 * (m.d_inner() * m.state_size).next_multiple_of(ALIGN);
                }
                LayerConfig::Attention(a) => {
                    own.1 = Some(page as u64);
                    page += 2 * PAGE * a.kv_width() * value_bytes;
                }
                LayerConfig::Mlp(_) => {}
            }
            mamba.push(own.0);
            attention.push(own.1);
        }
        let (slots, pages) = (Pool::new(gpu, slot, 0), Pool::new(gpu, page, CHUNK_BYTES));
        Arc::new(Self { slots, pages, mamba, attention })
    }

    /// What `make` makes, if need be after unused memory of states went back to the driver.
    pub(super) fn in_room<T>(
        &self,
        mut make: impl FnMut() -> Result<T, CudaError>,
    ) -> Result<T, CudaError> {
        match make() {
            Err(CudaError::OutOfMemory { .. }) => {
                self.slots.release();
                self.pages.release();
                make()
            }
            made => made,
        }
    }

    /// A state that has read nothing.
    pub(crate) fn fresh(self: &Arc<Self>) -> DeviceState {
        DeviceState { layout: Arc::clone(self), place: Place::Fresh }
    }

    /// A state from its image.
    pub(crate) fn from_image(self: &Arc<Self>, image: Vec<u8>) -> DeviceState {
        DeviceState { layout: Arc::clone(self), place: Place::Host(image) }
    }

    /// Bytes of a state that has read nothing.
    pub(crate) fn slot_bytes(&self) -> usize {
        self.slots.block_bytes()
    }

    /// Bytes of 64 positions.
    pub(crate) fn page_bytes(&self) -> usize {
        self.pages.block_bytes()
    }
}

/// The state of one sequence.
pub(crate) struct DeviceState {
    layout: Arc<Layout>,
    place: Place,
}

enum Place {
    /// Nothing was read yet.
    Fresh,
    Device(Resident),
    /// An image on the host.
    Host(Vec<u8>),
    /// A copy that could be made in neither memory, and why.
    Lost(String),
}

/// What lies on the device.
pub(super) struct Resident {
    pub(super) slot: Block,
    pub(super) pages: Vec<Arc<Block>>,
}

impl DeviceState {
    /// Bytes of a state of `len` tokens.
    pub(crate) fn bytes(&self, len: usize) -> usize {
        self.layout.slot_bytes() + len.div_ceil(PAGE) * self.layout.page_bytes()
    }

    /// Calls `each` with a number and the bytes of every page; states that share one give the same.
    pub(crate) fn for_each_page(&self, mut each: impl FnMut(usize, usize)) {
        if let Place::Device(resident) = &self.place {
            let bytes = self.layout.page_bytes();
            resident.pages.iter().for_each(|page| each(page.address() as usize, bytes));
        }
    }

    /// Whether it is of the model with this layout.
    pub(super) fn is_of(&self, layout: &Layout) -> bool {
        std::ptr::eq(&raw const *self.layout, layout)
    }

    /// Brings it to the device, with pages for `len` positions.
    pub(super) fn reserve(&mut self, len: usize) -> Result<&Resident, CudaError> {
        let Layout { slots, pages, .. } = &*self.layout;
        match &self.place {
            Place::Device(_) => {}
            Place::Fresh => {
                let slot = self.layout.in_room(|| slots.zeroed())?;
                self.place = Place::Device(Resident { slot, pages: Vec::new() });
            }
            Place::Host(image) => {
                let (slot, rest) = image.split_at(slots.block_bytes());
                let slot = self.layout.in_room(|| slots.upload(slot))?;
                let parts = rest.chunks_exact(pages.block_bytes().max(1));
                let upload = |page| self.layout.in_room(|| pages.upload(page)).map(Arc::new);
                let pages = parts.map(upload);
                let pages = pages.collect::<Result<_, _>>()?;
                self.place = Place::Device(Resident { slot, pages });
            }
            Place::Lost(error) => {
                return Err(CudaError::Driver { call: "copying a state", error: error.clone() });
            }
        }
        let Place::Device(resident) = &mut self.place else { unreachable!("brought there above") };
        while pages.block_bytes() > 0 && resident.pages.len() < len.div_ceil(PAGE) {
            resident.pages.push(Arc::new(self.layout.in_room(|| pages.zeroed())?));
        }
        Ok(resident)
    }

    /// All bytes of a state of `len` tokens.
    pub(crate) fn image(&self, len: usize) -> Result<Vec<u8>, CudaError> {
        let mut image = vec![0; self.bytes(len)];
        match &self.place {
            Place::Fresh => {}
            Place::Host(bytes) => image.copy_from_slice(bytes),
            Place::Device(resident) => {
                let (slot, rest) = image.split_at_mut(self.layout.slot_bytes());
                resident.slot.download(slot)?;
                let parts = rest.chunks_exact_mut(self.layout.page_bytes().max(1));
                parts.zip(&resident.pages).try_for_each(|(to, page)| page.download(to))?;
            }
            Place::Lost(error) => {
                return Err(CudaError::Driver { call: "copying a state", error: error.clone() });
            }
        }
        Ok(image)
    }

    /// An independent copy of a state of `len` tokens.
    pub(crate) fn copy(&self, len: usize) -> Self {
        let place = match &self.place {
            Place::Fresh => Place::Fresh,
            Place::Host(image) => Place::Host(image.clone()),
            Place::Lost(error) => Place::Lost(error.clone()),
            Place::Device(resident) => match self.copy_resident(resident, len) {
                Ok(copy) => Place::Device(copy),
                Err(CudaError::OutOfMemory { .. }) => match self.image(len) {
                    Ok(image) => Place::Host(image),
                    Err(error) => Place::Lost(error.to_string()),
                },
                Err(error) => Place::Lost(error.to_string()),
            },
        };
        Self { layout: Arc::clone(&self.layout), place }
    }

    fn copy_resident(&self, resident: &Resident, len: usize) -> Result<Resident, CudaError> {
        let layout = &self.layout;
        let slot = layout.in_room(|| layout.slots.copy_of(&resident.slot))?;
        let mut pages = resident.pages[..(len / PAGE).min(resident.pages.len())].to_vec();
        if let Some(begun) = resident.pages.get(len / PAGE).filter(|_| !len.is_multiple_of(PAGE)) {
            pages.push(Arc::new(layout.in_room(|| layout.pages.copy_of(begun))?));
        }
        Ok(Resident { slot, pages })
    }
}
