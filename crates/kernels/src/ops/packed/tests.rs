//! Every format on every instruction set, against the decoded weights and from one row to many.

use super::*;
use crate::MatRef;
use crate::dtype::WeightRef;
use crate::ops::quantize::dequantize_row;
use crate::ops::testing::{assert_same_bits, on_every_cpu, values};

const FORMATS: [DType; 10] = [
    DType::Bf16,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q8_0,
    DType::Iq4Nl,
    DType::Q4K,
    DType::Q5K,
    DType::Q6K,
];

/// Random blocks with sane scales.
fn weights(dtype: DType, rows: usize, cols: usize) -> Vec<u8> {
    let mut data: Vec<u8> = values(dtype.row_bytes(cols).unwrap() * rows, 7)
        .iter()
        .map(|v| (v * 1e6) as i32 as u8)
        .collect();
    if dtype == DType::Bf16 {
        let values = values(rows * cols, 8);
        return values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
    }
    for (i, block) in data.chunks_mut(dtype.block_bytes()).enumerate() {
        for &at in halves(dtype) {
            let scale = half::f16::from_f32(0.01 * ((i * 7 + at) % 11) as f32 - 0.04);
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
    data
}

/// Where the f16 of a block lie.
fn halves(dtype: DType) -> &'static [usize] {
    match dtype {
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 | DType::Iq4Nl => &[0],
        DType::Q6K => &[208],
        _ => &[0, 2],
    }
}

struct Case {
    dtype: DType,
    rows: usize,
    cols: usize,
    data: Vec<u8>,
}

impl Case {
    fn new(dtype: DType, rows: usize, cols: usize) -> Self {
        let data = weights(dtype, rows, cols);
        Self { dtype, rows, cols, data }
    }

    fn product(&self, cpu: &Cpu, x: MatRef, epilogue: Epilogue, out: &mut [f32]) {
        self.product_of(Layout::Panels, cpu, x, epilogue, out);
    }

    fn product_of(
        &self,
        layout: Layout,
        cpu: &Cpu,
        x: MatRef,
        epilogue: Epilogue,
        out: &mut [f32],
    ) {
        let w = WeightRef::new(self.dtype, self.rows, self.cols, &self.data);
        let mut packed = vec![0; packed_bytes(self.dtype, self.rows, self.cols).unwrap()];
        pack(cpu, w, layout, &mut packed);
        let w = PackedRef::new(self.dtype, self.rows, self.cols, layout, &packed);
        let (mut q8, mut bf16) = (Q8Rows::default(), Bf16Rows::default());
        q8.quantize(cpu, x);
        bf16.round(cpu, x);
        let x = if self.dtype == DType::Bf16 { Rows::Bf16(&bf16) } else { Rows::Q8(&q8) };
        matmul(cpu, x, w, MatMut::new(out, self.rows), epilogue);
    }

    /// The sum in f64 over decoded weights and rounded activations, and the sum of magnitudes.
    fn naive(&self, x: MatRef) -> Vec<(f64, f64)> {
        let mut decoded = vec![0.0; self.rows * self.cols];
        let bytes = self.dtype.row_bytes(self.cols).unwrap();
        for (row, data) in decoded.chunks_mut(self.cols).zip(self.data.chunks(bytes)) {
            dequantize_row(Isa::Scalar, self.dtype, data, row);
        }
        let mut out = Vec::new();
        for t in 0..x.rows() {
            let x = self.rounded(x.row(t));
            for w in decoded.chunks(self.cols) {
                let products = w.iter().zip(&x).map(|(w, x)| f64::from(*w) * x);
                out.push(products.fold((0.0, 0.0), |(s, m), p| (s + p, m + p.abs())));
            }
        }
        out
    }

    fn rounded(&self, x: &[f32]) -> Vec<f64> {
        if self.dtype == DType::Bf16 {
            return x.iter().map(|v| half::bf16::from_f32(*v).to_f64()).collect();
        }
        let block = |x: &[f32]| -> Vec<f64> {
            let largest = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            let value = |v: &f32| f64::from((v * inverse).round_ties_even() * (largest / 127.0));
            x.iter().map(value).collect()
        };
        x.chunks(BLOCK).flat_map(block).collect()
    }
}

fn shapes(dtype: DType) -> [(usize, usize, usize); 4] {
    match dtype.block_len() {
        1 => [(1, 37, 75), (5, 16, 512), (40, 50, 160), (70, 33, 1101)],
        256 => [(1, 37, 256), (5, 16, 512), (40, 50, 768), (3, 33, 256)],
        _ => [(1, 37, 96), (5, 16, 512), (40, 50, 160), (3, 33, 64)],
    }
}

#[test]
fn products_agree_with_the_decoded_weights_on_every_isa() {
    for dtype in FORMATS {
        for (t, n, k) in shapes(dtype) {
            let case = Case::new(dtype, n, k);
            let x = values(t * k, 3);
            let x = MatRef::new(&x, k);
            let want = case.naive(x);
            let all = on_every_cpu(|cpu| {
                let mut out = vec![f32::NAN; t * n];
                case.product(cpu, x, Epilogue::Store, &mut out);
                out
            });
            for (isa, out) in &all {
                for (i, (got, (want, size))) in out.iter().zip(&want).enumerate() {
                    let error = (f64::from(*got) - want).abs();
                    assert!(error <= 2e-6 * size, "{isa} {dtype} {t}×{n}×{k} {i}: {got} {want}");
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_many() {
    for dtype in FORMATS {
        let (t, n, k) = if dtype == DType::Bf16 { (75, 33, 1101) } else { (45, 50, 512) };
        let case = Case::new(dtype, n, k);
        let x = values(t * k, 4);
        let x = MatRef::new(&x, k);
        let whole = on_every_cpu(|cpu| {
            let mut out = vec![0.0; t * n];
            case.product(cpu, x, Epilogue::Store, &mut out);
            out
        });
        for (isa, whole) in whole {
            let cpu = Cpu::new(isa, 2);
            for (from, len) in [(0, 1), (7, 6), (20, 13), (3, 31), (t - 33, 33), (1, t - 2)] {
                let mut out = vec![0.0; len * n];
                case.product(&cpu, x.rows_at(from, len), Epilogue::Store, &mut out);
                assert_same_bits(
                    &out,
                    &whole[from * n..(from + len) * n],
                    &format!("{isa} {dtype}"),
                );
            }
        }
    }
}

#[test]
fn epilogues_follow_the_sum() {
    let (t, n, k) = (7, 37, 64);
    for dtype in [DType::Q4_0, DType::Bf16] {
        let case = Case::new(dtype, n, k);
        let (x, old) = (values(t * k, 5), values(t * n, 6));
        for isa in Isa::available() {
            let cpu = Cpu::new(isa, 2);
            let run = |epilogue| {
                let mut out = old.clone();
                case.product(&cpu, MatRef::new(&x, k), epilogue, &mut out);
                out
            };
            let plain = run(Epilogue::Store);
            let relu: Vec<f32> = plain.iter().map(|v| v.max(0.0) * v.max(0.0)).collect();
            let sum: Vec<f32> = plain.iter().zip(&old).map(|(v, o)| v + o).collect();
            assert_same_bits(&run(Epilogue::Relu2), &relu, "relu²");
            assert_same_bits(&run(Epilogue::Add), &sum, "sum");
        }
    }
}

#[test]
fn a_bad_activation_reaches_its_row_alone() {
    let case = Case::new(DType::Q4_0, 40, 64);
    let mut x = values(3 * 64, 9);
    x[64 + 5] = f32::NAN;
    for (isa, out) in on_every_cpu(|cpu| {
        let mut out = vec![0.0; 120];
        case.product(cpu, MatRef::new(&x, 64), Epilogue::Relu2, &mut out);
        out
    }) {
        for (i, v) in out.iter().enumerate() {
            assert_eq!(v.is_nan(), (40..80).contains(&i), "{isa} {i}: {v}");
        }
    }
}

#[test]
fn the_largest_bytes_do_not_overflow() {
    // All codes at their ends against activations at ±127.
    let (t, n, k) = (30, 16, 256);
    let x: Vec<f32> = (0..t * k).map(|i| if i / k % 2 == 0 { 1.0 } else { -1.0 }).collect();
    let x = MatRef::new(&x, k);
    for dtype in FORMATS.into_iter().filter(|dtype| *dtype != DType::Bf16) {
        for byte in [0x00, 0x7f, 0x80, 0xff] {
            let mut data = vec![byte; dtype.row_bytes(k).unwrap() * n];
            for block in data.chunks_mut(dtype.block_bytes()) {
                for &at in halves(dtype) {
                    block[at..at + 2].copy_from_slice(&half::f16::ONE.to_le_bytes());
                }
            }
            let case = Case { dtype, rows: n, cols: k, data };
            let want = case.naive(x);
            for (isa, out) in on_every_cpu(|cpu| {
                let mut out = vec![0.0; t * n];
                case.product(cpu, x, Epilogue::Store, &mut out);
                out
            }) {
                for (got, (want, size)) in out.iter().zip(&want) {
                    let error = (f64::from(*got) - want).abs();
                    assert!(error <= 2e-6 * size, "{isa} {dtype} {byte}: {got} {want}");
                }
            }
        }
    }
}

/// Values of which about the share `density` is not zero.
fn sparse(n: usize, seed: u64, density: f32) -> Vec<f32> {
    let keep = values(n, seed + 1);
    values(n, seed)
        .iter()
        .zip(keep)
        .map(|(v, k)| if k.abs() < density { *v } else { 0.0 })
        .collect()
}

#[test]
fn columns_have_the_bits_of_panels() {
    for dtype in [DType::Q4_0, DType::Iq4Nl, DType::Q8_0, DType::Q4K] {
        // Strips: one of a band, one that is short, one whole and one more.
        for (n, k) in [(128, 256), (384, 512), (1152, 768)] {
            let case = Case::new(dtype, n, k);
            assert_eq!(Layout::of_sparse_inputs(dtype, n), Layout::Columns);
            for (t, density) in
                [(1, 0.0), (1, 0.1), (1, 1.0), (2, 0.5), (5, 0.03), (9, 0.3), (27, 0.2)]
            {
                let mut x = sparse(t * k, 11, density);
                // Rows of zeros, and one that is not finite.
                x[..k / 2].fill(0.0);
                if t == 9 {
                    x[4 * k + 7] = f32::INFINITY;
                }
                let (x, old) = (MatRef::new(&x, k), values(t * n, 6));
                for isa in Isa::available() {
                    for (threads, epilogue) in [(1, Epilogue::Add), (3, Epilogue::Store)] {
                        let cpu = Cpu::new(isa, threads);
                        let run = |layout| {
                            let mut out = old.clone();
                            case.product_of(layout, &cpu, x, epilogue, &mut out);
                            out
                        };
                        let what = format!("{isa} {dtype} {t}×{n}×{k} {density}");
                        assert_same_bits(&run(Layout::Columns), &run(Layout::Panels), &what);
                    }
                }
            }
        }
    }
}

/// Threads that outnumber the bands share the rows of activations.
#[test]
fn many_threads_share_many_rows() {
    let (t, n, k) = (200, 256, 256);
    let case = Case::new(DType::Q4_0, n, k);
    let x = values(t * k, 11);
    let x = MatRef::new(&x, k);
    for isa in Isa::available() {
        let run = |layout, threads| {
            let mut out = vec![0.0; t * n];
            case.product_of(layout, &Cpu::new(isa, threads), x, Epilogue::Store, &mut out);
            out
        };
        let what = isa.to_string();
        assert_same_bits(&run(Layout::Columns, 5), &run(Layout::Panels, 1), &what);
    }
}

#[test]
fn columns_are_for_whole_bands_of_formats_that_have_them() {
    assert_eq!(Layout::of_sparse_inputs(DType::Q4_0, 127), Layout::Panels);
    assert_eq!(Layout::of_sparse_inputs(DType::Q4_0, 0), Layout::Panels);
    assert_eq!(Layout::of_sparse_inputs(DType::Bf16, 128), Layout::Panels);
    assert_eq!(Layout::of_sparse_inputs(DType::Q6K, 128), Layout::Panels);
}
