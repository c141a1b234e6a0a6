//! Decode steps as CUDA graphs: recorded when a shape comes for the second time, replayed from then
//! on, so that a step is one call of the driver and not some hundreds.
//!
//! What changes from step to step is in the tables (tokens, lengths, pages, addresses of states),
//! which are uploaded before. A shape is all that the launches depend on beside: the model, the
//! number of sequences, the spans of attention, and where the buffers lie. So a buffer that grew
//! makes another shape, and the graphs that name the old one go.
//!
//! Invariant: a replay runs the launches, with the arguments, that the pass would make itself.

use super::state::Layout;
use hybra_cuda::{CudaError, Gpu, Graph};
use std::sync::Arc;

/// Shapes that are kept.
const MOST: usize = 32;

/// Graphs by shape.
#[derive(Default)]
pub(super) struct Graphs {
    /// The last used at the end.
    kept: Vec<(Shape, Kept)>,
    replays: u64,
}

/// All that the launches of a decode step depend on.
#[derive(Clone)]
pub(super) struct Shape {
    /// Of the model whose weights they name.
    pub(super) layout: Arc<Layout>,
    /// Sequences.
    pub(super) num: usize,
    /// Positions that attention is launched for.
    pub(super) context: usize,
    /// Where the buffers lie.
    pub(super) buffers: [u64; 10],
}

enum Kept {
    /// Came once, so its kernels are loaded.
    Seen,
    Recorded(Graph),
    /// The driver does not record it.
    Refused,
}

impl Shape {
    /// Whether the same step could have both.
    fn is_alike(&self, other: &Self) -> bool {
        let same_model = Arc::ptr_eq(&self.layout, &other.layout);
        same_model && (self.num, self.context) == (other.num, other.context)
    }
}

impl Graphs {
    /// Makes the launches of `launch`, or replays them.
    pub(super) fn run(
        &mut self,
        gpu: &Gpu,
        shape: Shape,
        mut launch: impl FnMut(&Gpu) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        // All graphs name the same buffers; those that moved do not come back.
        self.kept.retain(|(kept, _)| kept.buffers == shape.buffers);
        let found = self.kept.iter().position(|(kept, _)| kept.is_alike(&shape));
        let Some(found) = found else {
            if self.kept.len() == MOST {
                self.kept.remove(0);
            }
            self.kept.push((shape, Kept::Seen));
            return launch(gpu);
        };
        let (shape, kept) = self.kept.remove(found);
        let kept = match kept {
            Kept::Seen => gpu.record(&mut launch).map_or(Kept::Refused, Kept::Recorded),
            kept => kept,
        };
        let ran = match &kept {
            Kept::Recorded(graph) => {
                self.replays += 1;
                gpu.replay(graph)
            }
            Kept::Seen | Kept::Refused => launch(gpu),
        };
        self.kept.push((shape, kept));
        ran
    }

    /// Steps that were replays.
    pub(super) fn replays(&self) -> u64 {
        self.replays
    }
}
