//! A checkpoint being written, in either format, tensor by tensor.
//!
//! Used by `convert` and `init`. The result appears at once when it is complete and on disk;
//! memory holds a few blocks of rows, whatever the size of the model.

use crate::progress::Progress;
use anyhow::{Result, bail};
use hybra_checkpoint::{GgufValue, GgufWriter, SafetensorsOptions, SafetensorsWriter, TensorInfo};
use hybra_kernels::buffer::Chunks;
use hybra_kernels::ops::quantize::quantize_row;
use hybra_kernels::{DType, ThreadPool};
use hybra_model::load::file_type;
use hybra_model::tensors::TensorSpec;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Element types that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum StoredType {
    /// 32 bits
    F32,
    /// 16 bits, 5 of them exponent
    F16,
    /// 16 bits, 8 of them exponent
    Bf16,
    /// 8.5 bits in blocks of 32 (GGUF only)
    #[value(name = "q8_0")]
    Q8_0,
    /// 4.5 bits in blocks of 32 (GGUF only)
    #[value(name = "q4_0")]
    Q4_0,
    /// 4.5 bits in blocks of 32, levels and scales of least error (GGUF only)
    #[value(name = "iq4_nl")]
    Iq4Nl,
}

impl StoredType {
    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::Bf16,
            Self::Q8_0 => DType::Q8_0,
            Self::Q4_0 => DType::Q4_0,
            Self::Iq4Nl => DType::Iq4Nl,
        }
    }

    /// Whether only GGUF can hold it.
    pub(crate) fn is_quantized(self) -> bool {
        self.dtype().block_len() > 1
    }
}

/// The format of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Container {
    /// A directory.
    Safetensors,
    /// One file.
    Gguf,
}

impl Container {
    /// By the ending of the path: `.gguf` or a directory.
    pub(crate) fn of(path: &Path) -> Self {
        let is_gguf = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
        if is_gguf { Self::Gguf } else { Self::Safetensors }
    }
}

/// A tensor of the output: its registry entry and the type it is stored in.
pub(crate) struct OutTensor {
    pub(crate) spec: TensorSpec,
    pub(crate) dtype: DType,
}

impl OutTensor {
    fn name(&self, container: Container) -> &str {
        match container {
            Container::Safetensors => &self.spec.name,
            Container::Gguf => &self.spec.gguf_name,
        }
    }

    fn info(&self, container: Container) -> TensorInfo {
        let shape = match container {
            Container::Safetensors => &self.spec.shape,
            Container::Gguf => &self.spec.gguf_shape,
        };
        TensorInfo::new(self.name(container), file_type(self.dtype), shape)
    }

    /// Stored bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.spec.num_elements() / self.dtype.block_len() as u64 * self.dtype.block_bytes() as u64
    }
}

/// What goes beside the tensors.
pub(crate) enum Beside<'a> {
    /// Files of a directory.
    Files(&'a [(&'static str, String)]),
    /// Keys of a GGUF file.
    Metadata(&'a [(&'static str, GgufValue)]),
}

enum Writer {
    Safetensors(SafetensorsWriter),
    Gguf(GgufWriter),
}

/// An output with a progress bar over its bytes.
pub(crate) struct Output<'p> {
    writer: Writer,
    container: Container,
    pool: &'p ThreadPool,
    bar: Progress,
}

impl<'p> Output<'p> {
    /// Begins an output; nothing is at `path` before [`finish`](Self::finish).
    pub(crate) fn create(
        path: &Path,
        tensors: &[OutTensor],
        beside: &Beside,
        force: bool,
        pool: &'p ThreadPool,
    ) -> Result<Self> {
        let container = match beside {
            Beside::Files(_) => Container::Safetensors,
            Beside::Metadata(_) => Container::Gguf,
        };
        if !force && path.exists() && (path.is_file() || path.read_dir()?.next().is_some()) {
            bail!("{}: already exists; --force replaces it", path.display());
        }
        let infos: Vec<TensorInfo> = tensors.iter().map(|tensor| tensor.info(container)).collect();
        let writer = match beside {
            Beside::Files(files) => {
                let files: Vec<_> = files.iter().map(|(name, t)| (*name, t.as_bytes())).collect();
                let options = SafetensorsOptions { overwrite: force, ..Default::default() };
                Writer::Safetensors(SafetensorsWriter::create(path, &infos, &files, &options)?)
            }
            Beside::Metadata(keys) => Writer::Gguf(GgufWriter::create(path, keys, &infos, force)?),
        };
        let bar = Progress::bytes("writing", tensors.iter().map(OutTensor::bytes).sum());
        Ok(Self { writer, container, pool, bar })
    }

    /// Writes stored bytes of a tensor as they are.
    pub(crate) fn write_bytes(&mut self, tensor: &OutTensor, bytes: &[u8]) -> Result<()> {
        const PIECE: usize = 8 << 20;
        self.bar.message(tensor.name(self.container));
        for piece in bytes.chunks(PIECE) {
            self.write_piece(tensor, piece)?;
        }
        Ok(())
    }

    /// Writes a tensor from values: `fill(first, values)` gives those from position `first` on,
    /// whole rows at a time, from several threads.
    pub(crate) fn write_values(
        &mut self,
        tensor: &OutTensor,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<()> {
        /// Values that one thread turns into bytes at a time.
        const TASK_VALUES: usize = 1 << 17;
        const TASKS_PER_THREAD: usize = 4;
        self.bar.message(tensor.name(self.container));
        let (dtype, cols) = (tensor.dtype, tensor.spec.row_len());
        let rows = tensor.spec.num_elements() as usize / cols;
        let row_bytes = dtype.row_bytes(cols).expect("the type was chosen for the row");
        let task_rows = (TASK_VALUES / cols).clamp(1, rows);
        let batch_rows = (task_rows * TASKS_PER_THREAD * self.pool.threads()).min(rows);
        let mut values = vec![0.0f32; batch_rows * cols];
        let mut bytes = vec![0u8; batch_rows * row_bytes];
        let bad = AtomicUsize::new(usize::MAX);
        for first in (0..rows).step_by(batch_rows) {
            let count = batch_rows.min(rows - first);
            let (values, bytes) = (&mut values[..count * cols], &mut bytes[..count * row_bytes]);
            let values = Chunks::new(values, task_rows * cols);
            let parts = (values, Chunks::new(bytes, task_rows * row_bytes));
            self.pool.for_parts(parts, |task, (values, bytes)| {
                let start = (first + task * task_rows) * cols;
                fill(start, values);
                if let Some(at) = values.iter().position(|v| !is_storable(dtype, *v)) {
                    bad.fetch_min(start + at, Ordering::Relaxed);
                }
                let rows = values.chunks_exact(cols).zip(bytes.chunks_exact_mut(row_bytes));
                rows.for_each(|(row, out)| quantize_row(dtype, row, out));
            });
            if bad.load(Ordering::Relaxed) != usize::MAX {
                let (name, at) = (tensor.name(self.container), bad.into_inner());
                bail!("tensor `{name}`: value {at} is not a finite number that {dtype} can hold");
            }
            self.write_piece(tensor, bytes)?;
        }
        Ok(())
    }

    fn write_piece(&mut self, tensor: &OutTensor, bytes: &[u8]) -> Result<()> {
        let name = tensor.name(self.container);
        match &mut self.writer {
            Writer::Safetensors(writer) => writer.write(name, bytes)?,
            Writer::Gguf(writer) => writer.write(name, bytes)?,
        }
        self.bar.advance(bytes.len() as u64);
        Ok(())
    }

    /// Puts the output in place; gives the time since it was begun.
    pub(crate) fn finish(self) -> Result<std::time::Duration> {
        match self.writer {
            Writer::Safetensors(writer) => writer.finish()?,
            Writer::Gguf(writer) => writer.finish()?,
        }
        Ok(self.bar.elapsed())
    }
}

/// Turns A_log into what GGUF holds, the decay rate −exp(A_log).
pub(crate) fn to_decay_rates(values: &mut [f32]) {
    values.iter_mut().for_each(|v| *v = -v.exp());
}

/// Finite, and not infinite in 16 bits. Scales of blocks are 16-bit too: 127 · 65504 is far away.
fn is_storable(dtype: DType, value: f32) -> bool {
    let largest = match dtype {
        DType::F32 => f32::MAX,
        // The largest that rounds to a finite number.
        DType::Bf16 => f32::from_bits(0x7f7f_7fff),
        _ => 65_519.0,
    };
    value.abs() <= largest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_become_infinite_is_not_storable() {
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            let (mut bytes, mut back) = (vec![0; dtype.block_bytes()], [0.0]);
            for bits in [0x7f7f_ffffu32, 0x7f7f_8000, 0x7f7f_7fff, 0x477f_f000, 0x477f_efff] {
                let value = f32::from_bits(bits);
                quantize_row(dtype, &[value], &mut bytes);
                let isa = hybra_kernels::Isa::Scalar;
                hybra_kernels::ops::quantize::dequantize_row(isa, dtype, &bytes, &mut back);
                let kept = back[0].is_finite();
                assert!(!is_storable(dtype, value) || kept, "{dtype} {value}");
            }
            assert!(!is_storable(dtype, f32::NAN) && !is_storable(dtype, f32::INFINITY));
            assert!(is_storable(dtype, -65_504.0));
        }
    }
}
