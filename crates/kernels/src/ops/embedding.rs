//! `out[t] = table[ids[t]]`: rows of a \[V, D\] table in any weight format, decoded to f32;
//! and its gradient, `dtable[ids[t]] += dout[t]`.

use crate::Cpu;
use crate::buffer::{MatMut, MatRef};
use crate::dtype::WeightRef;
use crate::ops::quantize::dequantize_row;

/// Rows that a worker takes at a time.
const ROWS_PER_PART: usize = 4;

/// `out[t] = table[ids[t]]`.
///
/// # Panics
/// If an id is not below V (callers validate ids), or the shapes disagree: table `[V, D]`,
/// out `[T, D]` with T ids.
pub fn embedding(cpu: &Cpu, table: WeightRef, ids: &[u32], out: MatMut) {
    assert_eq!((ids.len(), table.cols()), (out.rows(), out.cols()), "embedding: output");
    let operations = 4 * ids.len() * table.cols();
    cpu.pool().for_parts_sized(operations, out.row_panels(ROWS_PER_PART), |i, mut out| {
        for r in 0..out.rows() {
            let id = ids[i * ROWS_PER_PART + r] as usize;
            assert!(id < table.rows(), "token id {id}, the table has {} rows", table.rows());
            let data = table.row_part(id, 0, table.cols());
            dequantize_row(cpu.isa(), table.dtype(), data, out.row_mut(r));
        }
    });
}

/// Columns of the table that a worker takes at a time in the backward pass.
const COLUMNS_PER_PART: usize = 64;

/// `dtable[ids[t]] += dout[t]`, t ascending: a left fold for every value of the table.
///
/// # Panics
/// If an id is not below V, or the shapes disagree: dout `[T, D]` with T ids, dtable `[V, D]`.
pub fn embedding_backward(cpu: &Cpu, ids: &[u32], dout: MatRef, dtable: MatMut) {
    assert_eq!((ids.len(), dtable.cols()), (dout.rows(), dout.cols()), "embedding: gradients");
    let operations = ids.len() * dout.cols();
    cpu.pool().for_parts_sized(
        operations,
        dtable.column_panels(COLUMNS_PER_PART),
        |i, mut dtable| {
            let dout = dout.columns(i * COLUMNS_PER_PART, dtable.cols());
            for (t, &id) in ids.iter().enumerate() {
                let row = dtable.row_mut(id as usize);
                row.iter_mut().zip(dout.row(t)).for_each(|(to, d)| *to += d);
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_of_equal_ids_add_up() {
        let (ids, cols) = ([2, 0, 2, 2], 70);
        let dout = values(ids.len() * cols, 1);
        for (isa, got) in on_every_cpu(|cpu| {
            let mut dtable = vec![1.0; 3 * cols];
            let to = MatMut::new(&mut dtable, cols);
            embedding_backward(cpu, &ids, MatRef::new(&dout, cols), to);
            dtable
        }) {
            for (i, got) in got.iter().enumerate() {
                let rows = ids.iter().enumerate().filter(|(_, id)| **id as usize == i / cols);
                let want = rows.fold(1.0, |sum, (t, _)| sum + dout[t * cols + i % cols]);
                assert_eq!(*got, want, "{isa} {i}");
            }
        }
    }
    use crate::dtype::DType;
    use crate::ops::quantize::{ENCODABLE, quantize_row};
    use crate::ops::testing::{assert_same_bits, on_every_cpu, values};
    use crate::{Cpu, Isa};

    #[test]
    fn rows_are_gathered_and_decoded() {
        let (rows, cols) = (11, 1056);
        for dtype in ENCODABLE {
            let mut data = vec![0; dtype.row_bytes(rows * cols).unwrap()];
            quantize_row(dtype, &values(rows * cols, 1), &mut data);
            let mut decoded = vec![0.0; rows * cols];
            dequantize_row(Isa::Scalar, dtype, &data, &mut decoded);
            let table = WeightRef::new(dtype, rows, cols, &data);
            for ids in [vec![], vec![10], (0..29).map(|i| i * 7 % 11).collect::<Vec<u32>>()] {
                let want: Vec<f32> = ids
                    .iter()
                    .flat_map(|&i| &decoded[i as usize * cols..][..cols])
                    .copied()
                    .collect();
                for (isa, got) in on_every_cpu(|cpu| {
                    let mut out = vec![f32::NAN; ids.len() * cols];
                    embedding(cpu, table, &ids, MatMut::new(&mut out, cols));
                    out
                }) {
                    assert_same_bits(&got, &want, &format!("{isa} {dtype} {} ids", ids.len()));
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "token id 3, the table has 3 rows")]
    fn an_id_outside_the_table_is_named() {
        let table = WeightRef::new(DType::F32, 3, 1, &[0; 12]);
        embedding(&Cpu::new(Isa::best(), 1), table, &[3], MatMut::new(&mut [0.0], 1));
    }
}
