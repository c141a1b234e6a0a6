//! Causal attention of a batch over paged keys and values, and the writing of those pages.
//!
//! Token t of a segment is at position `past + t` of its sequence and sees the positions up to its
//! own. Query head j uses kv head j / (heads / kv heads); positions are not encoded:
//!
//! `out[t, j] = Σ_i p_i v_i`, `p = softmax_i(q[t, j] · k_i / √head_dim)`, i = 0 … past + t.
//!
//! **Pages.** A page is [`KV_PAGE_LEN`] positions of one sequence, all attention layers: at a
//! layer's byte offset lie `[k|v][kv head][64][head_dim]` of T. Pages lie anywhere in device
//! memory, aligned to 16 bytes, and positions nobody has written yet may hold anything.
//!
//! **Which kernel.** The last row of a segment of 64k + 1 rows, so also a segment of one token, and
//! every row where T = f32 or [`KvLayer::takes_prefill`] says no, goes through attention_decode.cu:
//! spans of 512 positions in parallel, then their merge. Other rows go through attention_prefill.cu
//! (FlashAttention-2). So a row takes the same kernel however a prompt is cut at multiples of 64.
//!
//! **Equalities.** With either kernel a row's bits are a function of its query, its position, and
//! the keys and values up to its page's end. So a batch gives each segment the bits it has alone,
//! and pieces of a sequence cut at multiples of 64 (where T = f32, any pieces) give the bits of the
//! whole. The two kernels agree to rounding only.
//!
//! **Numbers.** Sums and softmax in f32. Where T = bf16, keys, values and the output are rounded to
//! it; on matrix units (prefill, and decode with head_dim 64 or 128) also queries, and the weights
//! that are multiplied with values, but not those that are summed to the norm.
//!
//! In prefill, a NaN or infinite value of a token reaches the rows of its page before it, too.
//!
//! Sources: those of the CPU's op of this name; Kwon et al. 2023 (PagedAttention).

use crate::driver::Gpu;
use crate::error::CudaError;
use crate::memory::{DeviceSlice, DeviceSliceMut};
use crate::ops::Value;
use crate::stride;
use half::bf16;
use std::ops::Range;

/// Positions of a page.
pub const KV_PAGE_LEN: usize = 64;
/// Positions of a span, as in attention_decode.cu: launches for contexts of as many spans are alike.
pub const SPAN: usize = 512;
/// Query heads of a kv head that a block takes, as in attention_decode.cu.
const HEADS_PER_BLOCK: usize = 8;
/// Most f32 values of scratch that [`attention`] asks for: 64 MiB.
pub const MOST_SCRATCH: usize = 16 << 20;
/// Positions that a block takes, as in attention_prefill.cu.
const PREFILL_ROWS: usize = 128;

/// One attention layer, and the sequences of a batch with their pages.
#[derive(Clone, Copy)]
pub struct KvLayer<'a> {
    /// Query heads, a multiple of the kv heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Where the layer begins in a page, in bytes.
    pub layer_offset: usize,
    /// The batch.
    pub segments: KvSegments<'a>,
}

/// The segments of a batch.
#[derive(Clone, Copy)]
pub struct KvSegments<'a> {
    /// First rows: each segment begins where the one before ends.
    pub start: DeviceSlice<'a, u32>,
    /// Numbers of rows.
    pub len: DeviceSlice<'a, u32>,
    /// Tokens read before: the position of the first row.
    pub past: DeviceSlice<'a, u32>,
    /// Where a segment's pages begin in `pages`.
    pub first_page: DeviceSlice<'a, u32>,
    /// Addresses of pages: of each segment those of all its positions, in order.
    pub pages: DeviceSlice<'a, u64>,
}

/// What the host knows of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentLen {
    /// Rows.
    pub len: usize,
    /// Tokens read before.
    pub past: usize,
}

/// Columns of a matrix of f32: queries, keys or values of all heads, one after the other.
#[derive(Clone, Copy)]
pub struct HeadColumns<'a> {
    /// `[T, stride]`.
    pub rows: DeviceSlice<'a, f32>,
    /// The first column.
    pub first: usize,
    /// Columns of the matrix.
    pub stride: usize,
}

/// As in kv_append.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct KvBatch {
    pages: u64,
    starts: u64,
    lens: u64,
    pasts: u64,
    first_pages: u64,
    layer_offset: u64,
    num_segments: u32,
    num_kv_heads: u32,
    head_dim: u32,
    num_heads: u32,
}

/// As in kv_append.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct KvAppendArgs {
    k: u64,
    v: u64,
    batch: KvBatch,
    k_stride: u32,
    v_stride: u32,
}

/// As in attention_decode.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct AttentionArgs {
    q: u64,
    values: u64,
    stats: u64,
    out: u64,
    batch: KvBatch,
    first: u32,
    num_spans: u32,
    q_stride: u32,
    out_stride: u32,
    scale: f32,
    _end: u32,
}

impl<'a> HeadColumns<'a> {
    /// All columns of `rows`, `[T, width]`.
    #[must_use]
    pub fn all(rows: DeviceSlice<'a, f32>, width: usize) -> Self {
        Self { rows, first: 0, stride: width }
    }

    /// Address of the first value and number of rows.
    fn check(&self, width: usize) -> (u64, usize) {
        let Self { rows, first, stride } = *self;
        assert!(first + width <= stride, "{width} columns from {first} on, of {stride}");
        assert!(rows.len().is_multiple_of(stride), "{} values, rows of {stride}", rows.len());
        (rows.ptr() + (first * size_of::<f32>()) as u64, rows.len() / stride)
    }
}

impl KvLayer<'_> {
    /// Bytes of a layer in a page.
    #[must_use]
    pub fn layer_bytes<T: Value>(num_kv_heads: usize, head_dim: usize) -> usize {
        2 * num_kv_heads * KV_PAGE_LEN * head_dim * size_of::<T>()
    }

    /// Whether segments of several tokens take the prefill kernel.
    #[must_use]
    pub fn takes_prefill<T: Value>(&self) -> bool {
        is_bf16::<T>() && self.head_dim.is_multiple_of(8) && self.head_dim <= 128
    }

    /// f32 values of scratch for [`attention_decode`] with `tokens` rows at once that see at most
    /// `context` positions. With fewer, but enough for one row, rows are taken in several launches.
    #[must_use]
    pub fn scratch_len(&self, tokens: usize, context: usize) -> usize {
        tokens * self.num_heads * context.div_ceil(SPAN) * (self.head_dim + 2)
    }

    /// f32 values of scratch for [`attention`] of a batch: of all rows of the decode kernel, or of
    /// as many as [`MOST_SCRATCH`] holds, at least one.
    #[must_use]
    pub fn attention_scratch_len<T: Value>(&self, lens: &[SegmentLen]) -> usize {
        let decoded = |segment: &SegmentLen| self.decoded_rows::<T>(segment);
        let rows: usize = lens.iter().map(decoded).sum();
        let contexts = lens.iter().filter(|s| decoded(s) > 0).map(|s| s.past + s.len);
        let each = self.scratch_len(1, contexts.max().unwrap_or(0));
        each * rows.min((MOST_SCRATCH / each.max(1)).max(1))
    }

    /// The last rows of a segment that the decode kernel takes.
    fn decoded_rows<T: Value>(&self, segment: &SegmentLen) -> usize {
        match self.takes_prefill::<T>() {
            true => usize::from(segment.len % KV_PAGE_LEN == 1),
            false => segment.len,
        }
    }

    fn batch(&self) -> KvBatch {
        let Self { num_heads, num_kv_heads, head_dim, layer_offset, segments } = *self;
        assert!(num_kv_heads > 0 && head_dim > 0, "{num_kv_heads} kv heads of {head_dim}");
        assert!(num_heads.is_multiple_of(num_kv_heads), "{num_heads} of {num_kv_heads} heads");
        assert!(layer_offset.is_multiple_of(16), "layer at byte {layer_offset}");
        let KvSegments { start, len, past, first_page, pages } = segments;
        let lens = [start.len(), len.len(), past.len(), first_page.len()];
        assert_eq!(lens, [len.len(); 4], "arrays of segments");
        KvBatch {
            pages: pages.ptr(),
            starts: start.ptr(),
            lens: len.ptr(),
            pasts: past.ptr(),
            first_pages: first_page.ptr(),
            layer_offset: layer_offset as u64,
            num_segments: len.len() as u32,
            num_kv_heads: num_kv_heads as u32,
            head_dim: head_dim as u32,
            num_heads: num_heads as u32,
        }
    }

    /// Arguments without scratch, and rows of q and out.
    fn args<T>(&self, q: HeadColumns, out: &DeviceSliceMut<T>) -> (AttentionArgs, usize) {
        let batch = self.batch();
        let width = self.num_heads * self.head_dim;
        let (q_ptr, rows) = q.check(width);
        assert_eq!(out.len(), rows * stride(width), "{rows} rows of {width} columns");
        let args = AttentionArgs {
            q: q_ptr,
            values: 0,
            stats: 0,
            out: out.ptr(),
            batch,
            first: 0,
            num_spans: 0,
            q_stride: q.stride as u32,
            out_stride: stride(width) as u32,
            scale: std::f32::consts::LOG2_E / (self.head_dim as f32).sqrt(),
            _end: 0,
        };
        (args, rows)
    }
}

fn is_bf16<T: Value>() -> bool {
    size_of::<T>() == size_of::<bf16>()
}

/// Writes the keys and values of the rows of a batch, `[T, kv heads · head_dim]`, into its pages.
/// Rows of no segment are left out.
///
/// # Errors
/// What the driver says.
///
/// # Panics
/// If the sizes do not fit.
pub fn kv_append<T: Value>(
    gpu: &Gpu,
    layer: &KvLayer,
    k: HeadColumns,
    v: HeadColumns,
) -> Result<(), CudaError> {
    let batch = layer.batch();
    let width = layer.num_kv_heads * layer.head_dim;
    let ((k_ptr, rows), (v_ptr, v_rows)) = (k.check(width), v.check(width));
    assert_eq!(rows, v_rows, "rows of k and v");
    let (k_stride, v_stride) = (k.stride as u32, v.stride as u32);
    let args = KvAppendArgs { k: k_ptr, v: v_ptr, batch, k_stride, v_stride };
    let aligned = (k_ptr | v_ptr).is_multiple_of(16)
        && [layer.head_dim, k.stride, v.stride].iter().all(|n| n.is_multiple_of(4));
    let kernel = match aligned {
        true => T::pick("kv_append_f32_v4", "kv_append_bf16_v4"),
        false => T::pick("kv_append_f32", "kv_append_bf16"),
    };
    gpu.launch(kernel, [rows as u32, 1, 1], 256, 0, &args)
}

/// Attention of all rows of a batch: q `[T, heads · head_dim]`, out `[T, stride(heads · head_dim)]`
/// with zeros in the padding. `lens` are the segments, as on the device; keys and values of their
/// rows are in the pages already. `scratch`: [`KvLayer::attention_scratch_len`].
///
/// # Errors
/// What the driver says.
///
/// # Panics
/// If the sizes do not fit.
pub fn attention<T: Value>(
    gpu: &Gpu,
    layer: &KvLayer,
    lens: &[SegmentLen],
    q: HeadColumns,
    mut out: DeviceSliceMut<T>,
    mut scratch: DeviceSliceMut<f32>,
) -> Result<(), CudaError> {
    assert_eq!(lens.len(), layer.segments.len.len(), "segments");
    let decoded = |segment: &SegmentLen| layer.decoded_rows::<T>(segment);
    let prefills = |segment: &SegmentLen| decoded(segment) < segment.len;
    let mut segment = 0;
    for run in lens.chunk_by(|a, b| prefills(a) == prefills(b)) {
        let segments = segment..segment + run.len();
        segment = segments.end;
        if prefills(&run[0]) {
            let longest = run.iter().map(|s| s.len).max().unwrap_or(0);
            attention_prefill(gpu, layer, segments, longest, q, out.reborrow())?;
        }
    }
    // After prefill, which wrote the last rows of its segments, too. Neighbours share a launch.
    let (mut end, mut tokens, mut context) = (0, 0..0, 0);
    for segment in lens {
        end += segment.len;
        let rows = end - decoded(segment)..end;
        if tokens.end != rows.start && !rows.is_empty() {
            let (out, scratch) = (out.reborrow(), scratch.reborrow());
            attention_decode(gpu, layer, tokens, context, q, out, scratch)?;
            (tokens, context) = (rows.start..rows.start, 0);
        }
        if !rows.is_empty() {
            (tokens.end, context) = (rows.end, context.max(segment.past + segment.len));
        }
    }
    attention_decode(gpu, layer, tokens, context, q, out, scratch)
}

/// The rows `tokens` of [`attention`], span by span, whatever segments they are of; other rows of
/// `out` are left alone. `context` is at least the number of positions that any of them sees: the
/// launches depend on it alone, and a row that sees more becomes NaN.
///
/// # Errors
/// What the driver says.
///
/// # Panics
/// If the sizes do not fit.
pub fn attention_decode<T: Value>(
    gpu: &Gpu,
    layer: &KvLayer,
    tokens: Range<usize>,
    context: usize,
    q: HeadColumns,
    out: DeviceSliceMut<T>,
    scratch: DeviceSliceMut<f32>,
) -> Result<(), CudaError> {
    let (mut args, rows) = layer.args(q, &out);
    assert!(tokens.end <= rows, "tokens {tokens:?} of {rows}");
    if tokens.is_empty() {
        return Ok(());
    }
    let each = layer.scratch_len(1, context);
    assert!(
        context > 0 && scratch.len() >= each,
        "{} values of scratch, {each} a row",
        scratch.len()
    );
    let (dim, kv_heads) = (layer.head_dim, layer.num_kv_heads);
    let (kernel, shared_bytes) = decode_kernel::<T>(dim);
    let blocks = kv_heads * (layer.num_heads / kv_heads).div_ceil(HEADS_PER_BLOCK);
    let spans = context.div_ceil(SPAN) as u32;
    args.num_spans = spans;
    args.values = scratch.ptr();
    for first in tokens.clone().step_by(scratch.len() / each) {
        let rows = (tokens.end - first).min(scratch.len() / each);
        let values = layer.num_heads * dim * spans as usize * rows;
        args.stats = args.values + (values * size_of::<f32>()) as u64;
        args.first = first as u32;
        let rows = rows as u32;
        gpu.launch(kernel, [rows, blocks as u32, spans], 256, shared_bytes, &args)?;
        let merge = T::pick("attention_merge_f32", "attention_merge_bf16");
        gpu.launch(merge, [rows, layer.num_heads as u32, 1], 128, 0, &args)?;
    }
    Ok(())
}

/// The kernel for a head_dim, and its dynamic shared memory.
fn decode_kernel<T: Value>(dim: usize) -> (&'static str, u32) {
    match dim {
        64 if is_bf16::<T>() => return ("attention_decode_bf16_d64", 0),
        128 if is_bf16::<T>() => return ("attention_decode_bf16_d128", 0),
        _ => {}
    }
    let kernel = match (dim * size_of::<T>()).is_multiple_of(16) {
        true => T::pick("attention_decode_f32_v4", "attention_decode_bf16_v8"),
        false => T::pick("attention_decode_f32", "attention_decode_bf16"),
    };
    (kernel, (HEADS_PER_BLOCK * dim * size_of::<f32>()) as u32)
}

/// The rows of the segments `segments` of [`attention`], none of which has more than `longest`
/// rows, on matrix units; other rows of `out` are left alone.
///
/// # Errors
/// What the driver says.
///
/// # Panics
/// If the sizes do not fit, or not [`KvLayer::takes_prefill`].
pub fn attention_prefill<T: Value>(
    gpu: &Gpu,
    layer: &KvLayer,
    segments: Range<usize>,
    longest: usize,
    q: HeadColumns,
    out: DeviceSliceMut<T>,
) -> Result<(), CudaError> {
    assert!(layer.takes_prefill::<T>(), "prefill with heads of {}", layer.head_dim);
    let (mut args, _) = layer.args(q, &out);
    let num = layer.segments.len.len();
    assert!(segments.end <= num, "segments {segments:?} of {num}");
    args.first = segments.start as u32;
    let (kernel, dim) = match layer.head_dim {
        ..=64 => ("attention_prefill_d64", 64),
        _ => ("attention_prefill_d128", 128),
    };
    // Two pages of keys and values, rows padded by 16 bytes.
    let shared_bytes = 2 * 2 * KV_PAGE_LEN * (dim + 8) * size_of::<bf16>();
    // Blocks count from a multiple of 16 positions, up to 15 before the first row.
    let tiles = if longest == 0 { 0 } else { (longest + 15).div_ceil(PREFILL_ROWS) };
    let grid = [layer.num_heads as u32, tiles as u32, segments.len() as u32];
    gpu.launch(kernel, grid, 256, shared_bytes as u32, &args)
}
