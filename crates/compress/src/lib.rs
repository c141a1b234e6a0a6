//! Importance, prune plans, compensation, search and merging: no gradients, no optimizer.
//!
//! - [`target`]: the shape of a student; [`plan`]: which channels of the teacher it keeps.
//! - [`moments`]: one pass over calibration data; [`depth`]: the order in which layers go.
//!
//! Everything here is a deterministic function of its arguments: no clock, no environment, no
//! printing. Checkpoints go in and out as directories, tensor by tensor.
#![forbid(unsafe_code)]

pub mod depth;
pub mod document;
pub mod moments;
pub mod plan;
pub mod target;

pub use depth::{Floors, Removal};
pub use moments::Moments;
pub use plan::{LayerPlan, PlanError, PrunePlan};
pub use target::{Target, TargetError};

use hybra_kernels::ops::attention::KvDtype;

/// Keys and values of a measured pass: not rounded.
const STATE: KvDtype = KvDtype::F32;
