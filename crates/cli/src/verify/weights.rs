//! Compares dequantized weights with a reference, bit by bit: decoding has one right answer.

use super::difference::Difference;
use super::reference::Tensor;
use anyhow::{Context, Result, ensure};
use hybra_checkpoint::Checkpoint;
use hybra_kernels::Cpu;
use hybra_kernels::ops::quantize::dequantize_row;
use hybra_model::load::weight_type;

/// One matrix.
pub(crate) struct Decoded {
    pub(crate) difference: Difference,
    /// Values.
    pub(crate) total: usize,
    /// Values whose bits differ.
    pub(crate) differing: usize,
}

/// Decodes the checkpoint's tensor `name` and compares it with `expected`.
pub(crate) fn compare(
    cpu: &Cpu,
    checkpoint: &Checkpoint,
    name: &str,
    expected: Tensor<'_>,
) -> Result<Decoded> {
    let view = checkpoint.require(name).context("the reference holds its values")?;
    let path = checkpoint.path().display();
    ensure!(
        view.shape == expected.shape,
        "{path}: `{name}`: expected shape {:?} by the reference, found {:?}",
        expected.shape,
        view.shape
    );
    let dtype = weight_type(view.dtype)
        .with_context(|| format!("{path}: `{name}`: {} is no weight type", view.dtype.name()))?;
    let row_len = *view.shape.last().context("a matrix has rows")?;
    let row_bytes = dtype.row_bytes(row_len).context("rows of whole blocks")?;
    let mut row = vec![0.0; row_len];
    let mut decoded = Decoded { difference: Difference::default(), total: 0, differing: 0 };
    for data in view.data.chunks_exact(row_bytes) {
        dequantize_row(cpu.isa(), dtype, data, &mut row);
        let at = decoded.total;
        decoded.difference.add(at, &row, expected.values(at, row_len));
        let pairs = row.iter().zip(expected.values(at, row_len));
        decoded.differing += pairs.filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        decoded.total += row_len;
    }
    Ok(decoded)
}
