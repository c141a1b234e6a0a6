//! Everything between the two projections of a Mamba-2 mixer, for a whole batch.
//!
//! With `z (HP) | x (HP) | B (GN) | C (GN) | dt (H)` the columns of a row of in_proj's output:
//! 1. `x | B | C ← silu(bias + Σ_k w_k · in_{t−K+1+k})` (causal_conv1d.cu); in a sequence's first
//!    tokens the window is its conv state, which moves on;
//! 2. `Δ = clamp(softplus(dt + dt_bias), dt_limit)`, `S ← e^{Δa} S + B ⊗ Δx`, `y = Sᵀ C + d·x`:
//!    token by token (selective_state_update.cu) or by chunks of [`SCAN_CHUNK`] (ssd.cu);
//! 3. `u = y · silu(z)`, `out = u · w / √(mean(u²) + eps)`, the mean over each of the G groups.
//!
//! **Which scan.** With T = bf16 and sizes that ssd.cu takes, the whole chunks of a segment, counted
//! from its start, are scanned on tensor cores, and its last tokens, fewer than a chunk, one by
//! one. So a segment has the same bits whole and in pieces that are cut at multiples of the chunk,
//! and a segment of fewer tokens has those of as many calls. With T = f32, or other sizes, all
//! tokens are scanned one by one, and any split has the same bits.
//!
//! **Numbers.** f32, but for the products of a chunk: x, B and C after the convolution, the masked
//! products C·Bᵀ, rows of B times their decays, and the state where C is multiplied with it are
//! rounded to bf16 there; sums, decays and the state itself are f32.
//!
//! Source: `mamba_split_conv1d_scan_combined` of state-spaces/mamba; Dao and Gu 2024, section 6.

use crate::driver::Gpu;
use crate::error::CudaError;
use crate::memory::{DeviceSlice, DeviceSliceMut};
use crate::ops::Value;
use crate::ops::rms_norm::rms_norm_gated;
use half::bf16;

/// Tokens of a chunk.
pub const SCAN_CHUNK: usize = 64;

/// Sizes and constants of a mixer.
#[derive(Clone, Copy)]
pub struct MixerParams<'a> {
    /// H.
    pub num_heads: usize,
    /// P.
    pub head_dim: usize,
    /// G; divides H.
    pub n_groups: usize,
    /// N.
    pub state_size: usize,
    /// −exp(A_log), \[H\].
    pub a: DeviceSlice<'a, f32>,
    /// Skip connection, \[H\].
    pub d: DeviceSlice<'a, f32>,
    /// Added to the raw step before softplus, \[H\].
    pub dt_bias: DeviceSlice<'a, f32>,
    /// Least and largest step.
    pub dt_limit: (f32, f32),
    /// Taps, \[K, HP + 2GN\].
    pub conv_weight: DeviceSlice<'a, f32>,
    /// \[HP + 2GN\].
    pub conv_bias: Option<DeviceSlice<'a, f32>>,
    /// Weight of the gated norm, \[HP\].
    pub norm_weight: DeviceSlice<'a, f32>,
    /// Epsilon of the gated norm.
    pub norm_eps: f32,
}

/// The sequences of a batch: of each its rows and where its states are, at multiples of 16 bytes.
#[derive(Clone, Copy)]
pub struct MixerSegments<'a> {
    /// First rows: each segment begins where the one before ends.
    pub start: DeviceSlice<'a, u32>,
    /// Numbers of rows, at least 1.
    pub len: DeviceSlice<'a, u32>,
    /// Addresses of the last inputs of the convolutions, f32 \[K − 1, HP + 2GN\], oldest first.
    pub conv_states: DeviceSlice<'a, u64>,
    /// Addresses of the states of the recurrences, f32 \[H, N, P\].
    pub ssm_states: DeviceSlice<'a, u64>,
    /// The greatest of `len`.
    pub longest: usize,
}

/// Memory for one call.
pub struct MixerScratch<'a> {
    /// \[T, HP + 2GN\]: x, B and C after the convolution; y takes the place of x.
    pub xbc: DeviceSliceMut<'a, f32>,
    /// The same rounded, where [`MixerParams::scans_chunks`]; else it may be empty.
    pub rounded: DeviceSliceMut<'a, bf16>,
}

impl MixerParams<'_> {
    /// Columns of x, B and C: HP + 2GN.
    #[must_use]
    pub fn conv_dim(&self) -> usize {
        self.inner() + 2 * self.n_groups * self.state_size
    }

    /// Whether whole chunks are scanned on tensor cores, in a model with compute type T.
    #[must_use]
    pub fn scans_chunks<T: Value>(&self) -> bool {
        let fits = |size: usize| size.is_multiple_of(8) && size <= 128;
        size_of::<T>() == size_of::<bf16>() && fits(self.head_dim) && fits(self.state_size)
    }

    fn inner(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Columns of a row of in_proj's output.
    fn in_cols(&self) -> usize {
        self.inner() + self.conv_dim() + self.num_heads
    }

    fn check(&self) {
        let (heads, conv_dim) = (self.num_heads, self.conv_dim());
        assert!(self.n_groups > 0 && heads.is_multiple_of(self.n_groups), "heads and groups");
        assert_eq!(
            [self.a.len(), self.d.len(), self.dt_bias.len()],
            [heads; 3],
            "a, d and dt_bias"
        );
        let taps = self.conv_weight.len();
        assert!(taps > 0 && taps.is_multiple_of(conv_dim), "{taps} taps of {conv_dim} columns");
        assert!(self.conv_bias.is_none_or(|b| b.len() == conv_dim), "bias of the convolution");
        assert_eq!(self.norm_weight.len(), self.inner(), "weight of the norm");
    }
}

/// Runs the rows of `zxbcdt` \[T, 2HP + 2GN + H\] through the mixer, moves the segments' states on,
/// and writes `out` \[T, `stride(HP)`\].
///
/// # Errors
/// What the driver says.
///
/// # Panics
/// If the sizes do not fit. What is on the device is not checked: segments have to cover the rows
/// in order, and addresses to be those of states.
pub fn mamba_split_conv1d_scan<T: Value>(
    gpu: &Gpu,
    p: &MixerParams,
    zxbcdt: DeviceSlice<f32>,
    segments: &MixerSegments,
    scratch: MixerScratch,
    out: DeviceSliceMut<T>,
) -> Result<(), CudaError> {
    p.check();
    let (cols, num) = (p.in_cols(), segments.start.len());
    let call = Call {
        p,
        tokens: zxbcdt.len() / cols,
        chunks: p.scans_chunks::<T>() && segments.longest >= SCAN_CHUNK,
        segments,
        zxbcdt: zxbcdt.ptr(),
        xbc: scratch.xbc.ptr(),
        rounded: scratch.rounded.ptr(),
    };
    let tokens = call.tokens;
    assert_eq!(zxbcdt.len(), tokens * cols, "rows of {cols}");
    assert_eq!(segments.len.len(), num, "lengths of segments");
    assert_eq!([segments.conv_states.len(), segments.ssm_states.len()], [num; 2], "states");
    assert!(segments.longest <= tokens && num <= tokens, "{num} segments of {tokens} rows");
    assert!(tokens == 0 || segments.longest > 0, "segments cover the rows");
    assert_eq!(scratch.xbc.len(), tokens * p.conv_dim(), "scratch");
    assert!(!call.chunks || scratch.rounded.len() == tokens * p.conv_dim(), "rounded scratch");
    call.conv(gpu)?;
    call.scan(gpu)?;
    // z begins the rows of zxbcdt, and y those of xbc.
    let y = (*scratch.xbc, p.conv_dim());
    rms_norm_gated(gpu, y, (zxbcdt, cols), p.norm_weight, p.n_groups, p.norm_eps, out)
}

/// As in causal_conv1d.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct CausalConv1dArgs {
    x: u64,
    weight: u64,
    bias: u64,
    out: u64,
    rounded: u64,
    states: u64,
    start: u64,
    len: u64,
    tokens: u32,
    segments: u32,
    cols: u32,
    x_stride: u32,
    taps: u32,
    move_states: u32,
}

/// As in selective_state_update.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct SsdArgs {
    xbc: u64,
    rounded: u64,
    dt: u64,
    a: u64,
    d: u64,
    dt_bias: u64,
    states: u64,
    start: u64,
    len: u64,
    dt_stride: u32,
    num_heads: u32,
    head_dim: u32,
    n_groups: u32,
    state_size: u32,
    chunk: u32,
    dt_least: f32,
    dt_most: f32,
}

struct Call<'a> {
    p: &'a MixerParams<'a>,
    segments: &'a MixerSegments<'a>,
    tokens: usize,
    /// Whether there is a chunk to scan on tensor cores.
    chunks: bool,
    zxbcdt: u64,
    xbc: u64,
    rounded: u64,
}

impl Call<'_> {
    /// The address of a column of the first row of zxbcdt.
    fn column(&self, column: usize) -> u64 {
        self.zxbcdt + (column * size_of::<f32>()) as u64
    }

    fn conv(&self, gpu: &Gpu) -> Result<(), CudaError> {
        const COLUMNS: usize = 256;
        const ROWS: usize = 8;
        let (p, segments, cols) = (self.p, self.segments, self.p.conv_dim());
        let taps = p.conv_weight.len() / cols;
        let single = segments.longest == 1;
        let args = CausalConv1dArgs {
            x: self.column(p.inner()),
            weight: p.conv_weight.ptr(),
            bias: p.conv_bias.map_or(0, |bias| bias.ptr()),
            out: self.xbc,
            rounded: if self.chunks { self.rounded } else { 0 },
            states: segments.conv_states.ptr(),
            start: segments.start.ptr(),
            len: segments.len.ptr(),
            tokens: self.tokens as u32,
            segments: segments.start.len() as u32,
            cols: cols as u32,
            x_stride: p.in_cols() as u32,
            taps: taps as u32,
            move_states: single.into(),
        };
        let (kernel, rows) = match (taps, single) {
            (4, false) => ("causal_conv1d_rows_4", self.tokens.div_ceil(ROWS)),
            (4, true) => ("causal_conv1d_row_4", self.tokens),
            _ => ("causal_conv1d_row", self.tokens),
        };
        let across = cols.div_ceil(COLUMNS) as u32;
        gpu.launch(kernel, [rows as u32, across, 1], COLUMNS as u32, 0, &args)?;
        if single {
            return Ok(());
        }
        let grid = [segments.start.len() as u32, across, 1];
        gpu.launch("causal_conv1d_states", grid, COLUMNS as u32, 0, &args)
    }

    fn scan(&self, gpu: &Gpu) -> Result<(), CudaError> {
        const COLUMNS: usize = 16;
        /// Rows of a state that fit the registers of a block.
        const ROWS: usize = 128;
        let (p, segments) = (self.p, self.segments);
        let args = SsdArgs {
            xbc: self.xbc,
            rounded: self.rounded,
            dt: self.column(p.inner() + p.conv_dim()),
            a: p.a.ptr(),
            d: p.d.ptr(),
            dt_bias: p.dt_bias.ptr(),
            states: segments.ssm_states.ptr(),
            start: segments.start.ptr(),
            len: segments.len.ptr(),
            dt_stride: p.in_cols() as u32,
            num_heads: p.num_heads as u32,
            head_dim: p.head_dim as u32,
            n_groups: p.n_groups as u32,
            state_size: p.state_size as u32,
            chunk: if self.chunks { SCAN_CHUNK as u32 } else { 0 },
            dt_least: p.dt_limit.0,
            dt_most: p.dt_limit.1,
        };
        let (heads, num) = (p.num_heads as u32, segments.start.len() as u32);
        if self.chunks {
            let kernel = match p.head_dim {
                64 => "ssd_chunk_scan_64",
                80 => "ssd_chunk_scan_80",
                128 => "ssd_chunk_scan_128",
                _ => "ssd_chunk_scan",
            };
            let bytes = ssd_shared_bytes(p.state_size, p.head_dim) as u32;
            gpu.launch(kernel, [heads, num, 1], 256, bytes, &args)?;
        }
        let kernel = match (p.state_size <= ROWS, segments.longest == 1) {
            (true, true) => "selective_state_update_128_one",
            (true, false) => "selective_state_update_128",
            (false, _) => "selective_state_update",
        };
        let across = p.head_dim.div_ceil(COLUMNS) as u32;
        gpu.launch(kernel, [across, heads, num], 128, 0, &args)
    }
}

/// Bytes of `ssd_tiles` of ssd.cu: two tables of decays, B and C, x, M, and the state.
fn ssd_shared_bytes(state_size: usize, head_dim: usize) -> usize {
    let pitch = |cols: usize| ((cols / 8) | 1) * 8;
    let n = state_size.next_multiple_of(32);
    let (bc, x, m) = (pitch(n), pitch(head_dim), SCAN_CHUNK + 8);
    let decays = 2 * 4 * SCAN_CHUNK * size_of::<f32>();
    decays + (SCAN_CHUNK * (2 * bc + x + m) + n * x) * size_of::<bf16>()
}
