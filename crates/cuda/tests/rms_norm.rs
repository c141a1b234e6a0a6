//! Norms on the device against the CPU's.

mod emulated;

use half::bf16;
use hybra_cuda::{ops, stride};

#[test]
fn rows_are_normed_and_padded_with_zeros() {
    let Some(gpu) = emulated::gpu() else { return };
    for (rows, width) in [(1, 1), (3, 65), (2, 300), (5, 64)] {
        let x: Vec<f32> = (0..rows * width).map(|i| ((i * 37 % 101) as f32 - 50.0) / 9.0).collect();
        let weight: Vec<f32> = (0..width).map(|i| 1.0 + (i % 7) as f32 / 8.0).collect();
        let (on_x, on_w) = (gpu.upload_new(&x).unwrap(), gpu.upload_new(&weight).unwrap());
        let mut exact = gpu.alloc::<f32>(rows * stride(width)).unwrap();
        let mut rounded = gpu.alloc::<bf16>(rows * stride(width)).unwrap();
        let (x_, w) = (on_x.slice(..), on_w.slice(..));
        ops::rms_norm::rms_norm(gpu, x_, w, 1e-5, exact.slice_mut(..)).unwrap();
        ops::rms_norm::rms_norm(gpu, x_, w, 1e-5, rounded.slice_mut(..)).unwrap();
        let exact = gpu.to_vec(exact.slice(..)).unwrap();
        let rounded = gpu.to_vec(rounded.slice(..)).unwrap();
        for r in 0..rows {
            let row = &x[r * width..][..width];
            let mean = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / width as f64;
            for c in 0..stride(width) {
                let value = exact[r * stride(width) + c];
                let expected = match row.get(c) {
                    Some(x) => f64::from(*x) / (mean + 1e-5).sqrt() * f64::from(weight[c]),
                    None => 0.0,
                };
                let error = (f64::from(value) - expected).abs();
                assert!(error <= 1e-6 * expected.abs(), "{rows}x{width}, {r}, {c}: {value}");
                assert_eq!(rounded[r * stride(width) + c], bf16::from_f32(value));
            }
        }
    }
}
