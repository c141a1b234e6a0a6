//! Matrix products and embeddings on the device, against products in f64 of the same values.

mod emulated;

use bytemuck::Pod;
use half::{bf16, f16};
use hybra_cuda::ops::Value;
use hybra_cuda::ops::embedding::embedding;
use hybra_cuda::ops::matmul::{Epilogue, Tile, matmul, matmul_in_tiles};
use hybra_cuda::{Compute, DeviceMatrix, Gpu, device_bytes, stride};
use hybra_kernels::ops::quantize::dequantize_row;
use hybra_kernels::{DType, Isa, WeightRef};

/// Pseudo-random numbers (an LCG of Knuth's).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }

    /// In -1..1.
    fn value(&mut self) -> f32 {
        self.bits() as f32 / (1 << 30) as f32 - 1.0
    }
}

/// Stored bytes of a matrix. Quants take every value; scales are finite.
fn stored(dtype: DType, rows: usize, cols: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut data = vec![0; rows * dtype.row_bytes(cols).unwrap()];
    for block in data.chunks_exact_mut(dtype.block_bytes()) {
        let value = random.value();
        match dtype {
            DType::F32 => block.copy_from_slice(&value.to_le_bytes()),
            DType::F16 => block.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
            DType::Bf16 => block.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
            DType::Q8_0 | DType::Q4_0 => {
                block.fill_with(|| random.bits() as u8);
                block[..2].copy_from_slice(&f16::from_f32(value / 100.0).to_le_bytes());
            }
            // Below 0x40, so that scales are below 2, wherever they lie.
            _ => block.fill_with(|| random.bits() as u8 & 0x3f),
        }
    }
    data
}

/// What the device's matrix holds: decoded, and rounded to bf16 unless it is kept in its format.
fn decoded(weight: WeightRef, compute: Compute, row: usize) -> Vec<f32> {
    let mut values = vec![0.0; weight.cols()];
    let data = weight.row_part(row, 0, weight.cols());
    dequantize_row(Isa::Scalar, weight.dtype(), data, &mut values);
    let kept = matches!(weight.dtype(), DType::Q8_0 | DType::Q4_0);
    if compute == Compute::Bf16 && !kept {
        values.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32());
    }
    values
}

/// A compute type as tests see it.
trait Number: Value {
    fn of(value: f32) -> Self;
    fn value(self) -> f32;
}

impl Number for f32 {
    fn of(value: f32) -> Self {
        value
    }
    fn value(self) -> f32 {
        self
    }
}

impl Number for bf16 {
    fn of(value: f32) -> Self {
        bf16::from_f32(value)
    }
    fn value(self) -> f32 {
        self.to_f32()
    }
}

/// `rows` of `cols` values, padded with zeros.
fn inputs<T: Number>(rows: usize, cols: usize) -> Vec<T> {
    let mut random = Random(7);
    let mut x = vec![T::of(0.0); rows * stride(cols)];
    for row in x.chunks_exact_mut(stride(cols)) {
        row[..cols].fill_with(|| T::of(random.value()));
    }
    x
}

/// What an output holds where nothing is written.
const UNTOUCHED: f32 = -77.0;

/// The products of the rows of `x`, in tiles of a shape or those that the op chooses.
fn product<T: Number>(gpu: &Gpu, tile: Option<Tile>, x: &[T], weight: &DeviceMatrix) -> Vec<f32> {
    let n = weight.rows();
    // With a gap between rows, which stays as it is.
    let (rows, apart) = (x.len() / stride(weight.cols()), n + 3);
    let on_x = gpu.upload_new(x).unwrap();
    let mut out = gpu.upload_new(&vec![UNTOUCHED; rows * apart]).unwrap();
    let to = Epilogue::Store { out: out.slice_mut(..(rows - 1) * apart + n), stride: apart };
    match tile {
        Some(tile) => matmul_in_tiles(gpu, tile, on_x.slice(..), weight, to).unwrap(),
        None => matmul(gpu, on_x.slice(..), weight, to).unwrap(),
    }
    let out = gpu.to_vec(out.slice(..)).unwrap();
    assert!(out.chunks(apart).all(|row| row[n..] == [UNTOUCHED; 3]), "written between rows");
    out.chunks(apart).flat_map(|row| &row[..n]).copied().collect()
}

fn same_bits<T: Pod>(got: &[T], want: &[T], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let size = size_of::<T>();
    let (got, want): (&[u8], &[u8]) = (bytemuck::cast_slice(got), bytemuck::cast_slice(want));
    let differs = got.chunks(size).zip(want.chunks(size)).position(|(a, b)| a != b);
    assert_eq!(differs, None, "first value that differs: {what}");
}

/// Within K · 2⁻²² · Σ|x·w| of the product in f64: a rounding of f32 for every step, doubled twice,
/// as tensor cores truncate.
fn check_products<T: Number>(
    got: &[f32],
    x: &[T],
    weight: WeightRef,
    compute: Compute,
    what: &str,
) {
    let (n, k) = (weight.rows(), weight.cols());
    for c in 0..n {
        let w = decoded(weight, compute, c);
        for (r, x) in x.chunks_exact(stride(k)).enumerate() {
            let (mut sum, mut size) = (0.0, 0.0);
            for (x, w) in x.iter().zip(&w) {
                let product = f64::from(x.value()) * f64::from(*w);
                (sum, size) = (sum + product, size + product.abs());
            }
            let value = got[r * n + c];
            let bound = k as f64 * 2f64.powi(-22) * size;
            assert!((f64::from(value) - sum).abs() <= bound, "{what} {r} {c}: {value}, not {sum}");
        }
    }
}

/// Sum with what is there, and relu² of the compute type, of products that `Store` gives.
fn check_epilogues<T: Number>(
    gpu: &Gpu,
    x: &[T],
    weight: &DeviceMatrix,
    products: &[f32],
    what: &str,
) {
    let (n, apart) = (weight.rows(), weight.rows() + weight.rows() % 2);
    let rows = products.len() / n;
    let on_x = gpu.upload_new(x).unwrap();
    let residual: Vec<f32> = (0..rows * apart).map(|i| (i % 13) as f32 / 7.0).collect();
    let mut out = gpu.upload_new(&residual).unwrap();
    let to = Epilogue::Add { out: out.slice_mut(..), stride: apart };
    matmul(gpu, on_x.slice(..), weight, to).unwrap();
    let mut want = residual;
    for (want, products) in want.chunks_mut(apart).zip(products.chunks(n)) {
        want.iter_mut().zip(products).for_each(|(to, product)| *to += product);
    }
    same_bits(&gpu.to_vec(out.slice(..)).unwrap(), &want, &format!("{what} added"));

    let mut out = gpu.upload_new(&vec![T::of(UNTOUCHED); rows * stride(n)]).unwrap();
    let to = Epilogue::Relu2 { out: out.slice_mut(..) };
    matmul(gpu, on_x.slice(..), weight, to).unwrap();
    let mut want = vec![T::of(0.0); rows * stride(n)];
    for (want, products) in want.chunks_mut(stride(n)).zip(products.chunks(n)) {
        want.iter_mut().zip(products).for_each(|(to, product)| {
            *to = T::of(product.max(0.0) * product.max(0.0));
        });
    }
    same_bits(&gpu.to_vec(out.slice(..)).unwrap(), &want, &format!("{what} relu²"));
}

const ROWS: [usize; 8] = [1, 2, 15, 16, 17, 64, 65, 130];

/// All numbers of rows and columns, for weights of a format.
fn check_format<T: Number>(dtype: DType, compute: Compute, depths: &[usize]) {
    let Some(gpu) = emulated::gpu() else { return };
    for n in [1, 7, 33, 130] {
        for &k in depths {
            let data = stored(dtype, n, k, (n * k) as u64);
            let stored = WeightRef::new(dtype, n, k, &data);
            let weight = DeviceMatrix::upload(gpu, stored, compute, 2).unwrap();
            let x = inputs::<T>(130, k);
            let all = product(gpu, Some(Tile::R128C128), &x, &weight);
            check_products(&all, &x, stored, compute, &format!("{dtype} N {n} K {k}"));
            for m in ROWS {
                let what = format!("{dtype} M {m} N {n} K {k}");
                let (x, products) = (&x[..m * stride(k)], &all[..m * n]);
                same_bits(&product(gpu, None, x, &weight), products, &what);
                check_epilogues(gpu, x, &weight, products, &what);
            }
        }
    }
}

#[test]
fn products_with_f32() {
    check_format::<f32>(DType::F32, Compute::F32, &[1, 31, 64, 100, 320]);
}

#[test]
fn products_with_bf16() {
    check_format::<bf16>(DType::Bf16, Compute::Bf16, &[1, 31, 64, 100, 320]);
}

#[test]
fn products_with_8_bits() {
    check_format::<bf16>(DType::Q8_0, Compute::Bf16, &[32, 64, 320]);
}

#[test]
fn products_with_4_bits() {
    check_format::<bf16>(DType::Q4_0, Compute::Bf16, &[32, 64, 320]);
}

/// Formats that are decoded at upload.
#[test]
fn products_with_other_formats() {
    let Some(gpu) = emulated::gpu() else { return };
    for dtype in DType::ALL {
        let (n, k) = (33, 256);
        let data = stored(dtype, n, k, 3);
        let stored = WeightRef::new(dtype, n, k, &data);
        let weight = DeviceMatrix::upload(gpu, stored, Compute::Bf16, 2).unwrap();
        let x = inputs::<bf16>(5, k);
        let got = product(gpu, None, &x, &weight);
        check_products(&got, &x, stored, Compute::Bf16, &format!("{dtype}"));
        let weight = DeviceMatrix::upload(gpu, stored, Compute::F32, 2).unwrap();
        let x = inputs::<f32>(5, k);
        let got = product(gpu, None, &x, &weight);
        check_products(&got, &x, stored, Compute::F32, &format!("{dtype} in f32"));
    }
}

/// A row alone, in a batch, and in every shape of tile. K is longer than all pipelines, N wider
/// than a tile, and there are several bands of tiles.
fn check_rows<T: Number>(dtype: DType, compute: Compute) {
    let Some(gpu) = emulated::gpu() else { return };
    let (m, n, k) = (130, 290, 1856);
    let data = stored(dtype, n, k, 5);
    let weight = DeviceMatrix::upload(gpu, WeightRef::new(dtype, n, k, &data), compute, 2).unwrap();
    let x = inputs::<T>(m, k);
    let all = product(gpu, None, &x, &weight);
    for tile in Tile::ALL {
        same_bits(&product(gpu, Some(tile), &x, &weight), &all, &format!("{dtype} {tile:?}"));
    }
    for (first, len) in [(0, 1), (77, 1), (129, 1), (30, 16), (65, 40), (50, 64), (3, 100)] {
        let x = &x[first * stride(k)..][..len * stride(k)];
        let what = format!("{dtype} {len} rows from {first}");
        same_bits(&product(gpu, None, x, &weight), &all[first * n..][..len * n], &what);
    }
}

#[test]
fn rows_do_not_depend_on_others_f32() {
    check_rows::<f32>(DType::F32, Compute::F32);
}

#[test]
fn rows_do_not_depend_on_others_bf16() {
    check_rows::<bf16>(DType::Bf16, Compute::Bf16);
}

#[test]
fn rows_do_not_depend_on_others_8_bits() {
    check_rows::<bf16>(DType::Q8_0, Compute::Bf16);
}

#[test]
fn rows_do_not_depend_on_others_4_bits() {
    check_rows::<bf16>(DType::Q4_0, Compute::Bf16);
}

#[test]
fn no_rows_are_no_work() {
    let Some(gpu) = emulated::gpu() else { return };
    let data = stored(DType::Bf16, 3, 5, 1);
    let weight = WeightRef::new(DType::Bf16, 3, 5, &data);
    let weight = DeviceMatrix::upload(gpu, weight, Compute::Bf16, 2).unwrap();
    let (x, mut out) = (gpu.alloc::<bf16>(0).unwrap(), gpu.alloc::<f32>(0).unwrap());
    let to = Epilogue::Store { out: out.slice_mut(..), stride: 3 };
    matmul(gpu, x.slice(..), &weight, to).unwrap();
}

#[test]
#[should_panic(expected = "compute type for weights in F32")]
fn weights_of_the_other_compute_type_are_refused() {
    let Some(gpu) = emulated::gpu() else { panic!("compute type for weights in F32: no device") };
    let weight = WeightRef::new(DType::F32, 1, 1, &[0; 4]);
    let weight = DeviceMatrix::upload(gpu, weight, Compute::F32, 2).unwrap();
    let (x, mut out) = (gpu.alloc::<bf16>(64).unwrap(), gpu.alloc::<f32>(1).unwrap());
    let to = Epilogue::Store { out: out.slice_mut(..), stride: 1 };
    matmul(gpu, x.slice(..), &weight, to).unwrap();
}

/// Embeds `ids` and compares with decoded rows.
fn check_embedding(gpu: &Gpu, weight: WeightRef, compute: Compute, ids: &[u32]) {
    let (dtype, cols) = (weight.dtype(), weight.cols());
    let table = DeviceMatrix::upload(gpu, weight, compute, 2).unwrap();
    assert_eq!(table.bytes(), device_bytes(dtype, weight.rows(), cols, compute), "{dtype}");
    let on_ids = gpu.upload_new(ids).unwrap();
    let mut out = gpu.alloc::<f32>(ids.len() * cols).unwrap();
    embedding(gpu, &table, on_ids.slice(..), out.slice_mut(..)).unwrap();
    let want = ids.iter().flat_map(|&id| decoded(weight, compute, id as usize));
    let what = format!("{dtype} {compute:?} {cols} columns");
    same_bits(&gpu.to_vec(out.slice(..)).unwrap(), &want.collect::<Vec<_>>(), &what);
}

#[test]
fn embeddings_are_decoded_rows() {
    let Some(gpu) = emulated::gpu() else { return };
    for dtype in DType::ALL {
        for cols in [1, 77, 96, 256, 768] {
            if dtype.row_bytes(cols).is_none() {
                continue;
            }
            let data = stored(dtype, 70, cols, 9);
            let weight = WeightRef::new(dtype, 70, cols, &data);
            for compute in [Compute::F32, Compute::Bf16] {
                check_embedding(gpu, weight, compute, &[3, 0, 69, 64, 63, 3]);
            }
        }
    }
}

/// Matrices that are uploaded in more than one part (16 MiB each).
#[test]
fn parts_of_an_upload_join() {
    let Some(gpu) = emulated::gpu() else { return };
    for dtype in [DType::F32, DType::F16, DType::Q8_0, DType::Bf16] {
        let compute = if dtype == DType::F32 { Compute::F32 } else { Compute::Bf16 };
        let (rows, cols) = (5_101, 4096);
        let data = stored(dtype, rows, cols, 2);
        let weight = WeightRef::new(dtype, rows, cols, &data);
        let mut ids: Vec<u32> = (0..rows as u32).step_by(97).collect();
        ids.extend([1023, 1024, 2047, 2048, 3967, 3968, 5056, 5100]);
        check_embedding(gpu, weight, compute, &ids);
    }
}

/// 256 bytes are what the driver aligns to; the sizes are those of the layouts' description.
#[test]
fn sizes_are_known_without_a_device() {
    assert_eq!(device_bytes(DType::F16, 3, 65, Compute::F32), 3 * 128 * 4);
    assert_eq!(device_bytes(DType::Q6K, 5, 256, Compute::Bf16), 5 * 256 * 2);
    assert_eq!(device_bytes(DType::Bf16, 1, 1, Compute::Bf16), 256);
    assert_eq!(device_bytes(DType::Q8_0, 65, 96, Compute::Bf16), 65 * 128 + 128 + 128 * 4 * 2);
    assert_eq!(device_bytes(DType::Q4_0, 64, 64, Compute::Bf16), 64 * 32 + 64 * 2 * 2);
}
