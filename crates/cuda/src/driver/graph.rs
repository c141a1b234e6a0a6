//! Launches that were recorded once and run again as one: CUDA graphs.
//!
//! Invariants: a graph runs the kernels of its recording with the arguments of then, so whoever
//! replays it answers for the memory that they name; nothing runs while it is recorded; recording
//! goes through a stream of its own, so what other threads do meanwhile is not in it.

use super::{Gpu, Lane, failed};
use crate::error::CudaError;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode_enum};
use cudarc::driver::{result, sys};
use std::sync::{Arc, PoisonError};

/// Recorded launches, ready to run.
pub struct Graph {
    gpu: Gpu,
    exec: sys::CUgraphExec,
}

// SAFETY: handles of the driver may be used from any thread whose current context is theirs, which
// `Gpu::enter` makes it before every call.
unsafe impl Send for Graph {}
// SAFETY: a shared reference is of no use but to launch it, which the driver allows from anywhere.
unsafe impl Sync for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: made by `record`, destroyed once; the driver keeps it while it runs. Errors
            // have nobody to go to.
            let _ = unsafe { result::graph::exec_destroy(self.exec) };
        }
    }
}

/// A stream that records; it stops when this goes, whatever happens.
struct Recording(sys::CUstream);

impl Drop for Recording {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the stream lives as long as the `Gpu` that records. What was recorded is
            // dropped; errors have nobody to go to.
            unsafe {
                if let Ok(graph) = result::stream::end_capture(self.0) {
                    let _ = result::graph::destroy(graph);
                }
            }
        }
    }
}

impl Recording {
    /// What was recorded.
    fn end(mut self) -> Result<sys::CUgraph, CudaError> {
        let stream = std::mem::replace(&mut self.0, std::ptr::null_mut());
        // SAFETY: as above.
        unsafe { result::stream::end_capture(stream) }.map_err(failed("cuStreamEndCapture"))
    }
}

impl Gpu {
    /// Records the launches that `work` makes through the handle that it is given; they do not run.
    /// It must neither allocate nor wait, and every kernel must have run before: code is loaded at
    /// its first use.
    ///
    /// # Errors
    /// Those of `work`, or what the driver says.
    pub fn record(
        &self,
        work: impl FnOnce(&Self) -> Result<(), CudaError>,
    ) -> Result<Graph, CudaError> {
        let stream = self.0.recorder;
        // A recording that panicked has ended.
        let _alone = self.0.recording.lock().unwrap_or_else(PoisonError::into_inner);
        self.enter()?;
        let mode = CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as `self`, and nobody else records now.
        unsafe { result::stream::begin_capture(stream, mode) }
            .map_err(failed("cuStreamBeginCapture"))?;
        let recording = Recording(stream);
        work(&Self(Arc::clone(&self.0), Lane::Recorder))?;
        let graph = recording.end()?;
        // SAFETY: the graph was recorded above and is of no use after.
        let exec = unsafe {
            let exec = result::graph::instantiate(graph, CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            exec.map_err(failed("cuGraphInstantiate"))?
        };
        Ok(Graph { gpu: self.clone(), exec })
    }

    /// Runs recorded launches.
    ///
    /// # Errors
    /// What the driver says, also about kernels that ran before.
    ///
    /// # Panics
    /// If another device recorded them.
    pub fn replay(&self, graph: &Graph) -> Result<(), CudaError> {
        assert!(*self == graph.gpu, "a graph runs on the device that recorded it");
        self.enter()?;
        // SAFETY: graph and stream are alive. Kernels can only reach device memory.
        unsafe { result::graph::launch(graph.exec, self.stream()) }.map_err(failed("cuGraphLaunch"))
    }
}
