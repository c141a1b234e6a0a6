//! Importance, prune plans, compensation, search and merging: no gradients, no optimizer.
//!
//! - [`moments`]: one pass over calibration data, kept by [`store`]; [`scores`]: what channels are
//!   worth; [`depth`]: the order in which layers go.
//! - [`target`]: the shape of a student; [`mod@select`] makes the [`plan`]: which channels stay.
//! - [`space`]: shapes and the memory they must fit; [`surrogate`] ranks them, [`halving`] trains them.
//! - [`nested`]: several students in one checkpoint, sliced when it is loaded.
//! - [`merge`]: models of one shape become one.
//! - [`axes`]: the rows and columns of a plan; [`prune`]: applied to files; [`compensate`]: repair.
//!
//! Everything here is a deterministic function of its arguments: no clock, no environment, no
//! printing. Checkpoints go in and out as directories, tensor by tensor.
#![forbid(unsafe_code)]

pub mod adapter;
pub mod axes;
pub mod compensate;
pub mod depth;
pub mod document;
pub mod halving;
pub mod merge;
pub mod moments;
pub mod nested;
pub mod plan;
pub mod prune;
pub mod scores;
pub mod select;
pub mod space;
pub mod store;
pub mod surrogate;
pub mod target;

pub use depth::{Floors, Removal};
pub use moments::Moments;
pub use plan::{LayerPlan, PlanError, PrunePlan};
pub use target::{Target, TargetError};

use hybra_kernels::ops::attention::KvDtype;

/// Keys and values of a measured pass: not rounded.
const STATE: KvDtype = KvDtype::F32;
/// Why a pass has no error: models are on the CPU here, and documents were checked.
const ON_CPU: &str = "tokens of checked documents, on the CPU";
