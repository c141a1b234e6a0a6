//! The kernels that measure a device do the work that is counted.

mod emulated;

use hybra_cuda::ops::limits::DeviceLimits;

#[test]
fn products_and_reads_are_done() {
    let Some(gpu) = emulated::gpu() else { return };
    let mut limits = DeviceLimits::new(gpu, 1 << 20).unwrap();
    assert!(limits.mma_bf16(3).unwrap() > 0.0);
    // Each of 256 threads has 32 sums of 16 ones a round; rounds were four times as many until
    // they took a while.
    let results = limits.results().unwrap();
    let rounds = results[0] / (256 * 32 * 16) as f32;
    let could_be = |times: u32| rounds == (3 * 4u32.pow(times)) as f32;
    assert!((0..9).any(could_be), "{rounds} rounds");
    assert!(results.iter().all(|sum| *sum == results[0]));
    assert!(limits.memory_read().unwrap() > 0.0);
    assert!(limits.results().unwrap().iter().all(|sum| *sum == 0.0), "zeros were read");
}
