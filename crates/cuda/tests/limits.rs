//! The kernels that measure a device do the work that is counted.

mod emulated;

use hybra_cuda::ops::limits::DeviceLimits;

#[test]
fn products_and_reads_are_done() {
    let Some(gpu) = emulated::gpu() else { return };
    let mut limits = DeviceLimits::new(gpu, 1 << 20).unwrap();
    assert!(limits.mma_bf16(3).unwrap() > 0.0);
    // Each of 256 threads has 32 sums of 16 ones a round.
    let expected = (256 * 32 * 16 * 3) as f32;
    assert!(limits.results().unwrap().iter().all(|sum| *sum == expected));
    assert!(limits.memory_read().unwrap() > 0.0);
    assert!(limits.results().unwrap().iter().all(|sum| *sum == 0.0), "zeros were read");
}
