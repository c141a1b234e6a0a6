//! Launches that are recorded run when they are replayed, each time, and not before; a recording
//! that fails leaves nothing behind.

mod emulated;

use hybra_cuda::ops::rms_norm::rms_norm;
use hybra_cuda::{CudaError, DeviceBuffer, Gpu, stride};
use std::panic::{AssertUnwindSafe, catch_unwind};

const WIDTH: usize = 64;

/// A launch over buffers, and what it writes.
struct Work {
    x: DeviceBuffer<f32>,
    weight: DeviceBuffer<f32>,
    out: DeviceBuffer<f32>,
}

impl Work {
    fn new(gpu: &Gpu) -> Self {
        let weight = gpu.upload_new(&[1.0; WIDTH]).unwrap();
        let mut work = Self { x: gpu.alloc(WIDTH).unwrap(), weight, out: gpu.alloc(64).unwrap() };
        // Code is loaded at its first use.
        work.launch(gpu).unwrap();
        work
    }

    fn launch(&mut self, gpu: &Gpu) -> Result<(), CudaError> {
        assert_eq!(stride(WIDTH), self.out.len());
        rms_norm(gpu, self.x.slice(..), self.weight.slice(..), 0.0, self.out.slice_mut(..))
    }

    /// Fills x.
    fn set(&mut self, gpu: &Gpu, value: f32) {
        gpu.upload(self.x.slice_mut(..), &[value; WIDTH]).unwrap();
    }

    /// The first value of the output.
    fn out(&self, gpu: &Gpu) -> f32 {
        gpu.to_vec(self.out.slice(..)).unwrap()[0]
    }
}

#[test]
fn what_is_recorded_runs_when_it_is_replayed() {
    let Some(gpu) = emulated::gpu() else { return };
    let mut work = Work::new(gpu);
    gpu.zero(work.out.slice_mut(..)).unwrap();
    let mut other = Work::new(gpu);
    other.set(gpu, 2.0);
    let graph = gpu
        .record(|recorder| {
            work.launch(recorder)?;
            // What another thread does meanwhile runs, and is not recorded.
            std::thread::scope(|scope| {
                let run = scope.spawn(|| {
                    other.launch(gpu).unwrap();
                    other.out(gpu)
                });
                assert_eq!(run.join().unwrap(), 1.0);
            });
            Ok(())
        })
        .unwrap();
    gpu.zero(other.out.slice_mut(..)).unwrap();
    assert_eq!(work.out(gpu), 0.0, "before the first replay");
    for value in [3.0f32, -5.0] {
        work.set(gpu, value);
        gpu.replay(&graph).unwrap();
        assert_eq!(work.out(gpu), value.signum());
    }
    assert_eq!(other.out(gpu), 0.0, "a replay ran what was not recorded");
}

#[test]
fn a_recording_that_fails_is_dropped_and_the_next_one_is_not_disturbed() {
    let Some(gpu) = emulated::gpu() else { return };
    let mut work = Work::new(gpu);
    let allocated = gpu.record(|recorder| recorder.alloc::<f32>(4).map(drop));
    assert!(matches!(allocated.err(), Some(CudaError::Driver { .. })), "no memory in a recording");
    let waited = gpu.record(|recorder| {
        work.launch(recorder)?;
        recorder.synchronize()
    });
    assert!(waited.is_err(), "nobody waits for a recording");
    let panicked = catch_unwind(AssertUnwindSafe(|| gpu.record(|_| panic!("in a recording"))));
    assert!(panicked.is_err());
    let graph = gpu.record(|recorder| work.launch(recorder)).unwrap();
    work.set(gpu, 4.0);
    gpu.zero(work.out.slice_mut(..)).unwrap();
    gpu.replay(&graph).unwrap();
    assert_eq!(work.out(gpu), 1.0);
}
