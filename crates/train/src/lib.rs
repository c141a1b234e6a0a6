//! Training: data, losses, optimizer, trainer, communicator.
//!
//! - [`trainer`]: the loop; read it first. [`config`] is its TOML file, [`schedule`] its learning
//!   rate, [`optimizer`] its AdamW.
//! - [`cross_entropy`], [`distil`], [`dpo`], [`policy_gradient`]: what is minimized;
//!   [`teacher_cache`]: a teacher's answers on disk.
//! - [`rollout`]: the model's own answers, by the engine; [`grpo`] and [`on_policy`] learn from them.
//! - [`objective`]: what the loop needs to know of a stage: a loss with its gradient, and data.
//! - [`comm`]: ranks, in one process or over MPI, and sums in one fixed order.
//! - [`checkpoint_store`]: what is kept of a run, and checked when it goes on; [`run_dir`] and
//!   [`log`]: its folder and its lines; [`report`]: its page; [`tensorboard`]: its event file.
//!
//! A run is a function of its configuration and data: weights and log have the same bits for any
//! number of threads and ranks, and whether or not it was killed and went on.

#![forbid(unsafe_code)]

mod atomic;
pub mod checkpoint_store;
pub mod comm;
pub mod config;
pub mod cross_entropy;
pub mod data;
pub mod distil;
pub mod dpo;
pub mod grpo;
pub mod log;
pub mod lora;
pub mod objective;
pub mod on_policy;
pub mod optimizer;
pub mod policy_gradient;
pub mod report;
pub mod rollout;
pub mod run_dir;
pub mod schedule;
pub mod teacher_cache;
pub mod tensorboard;
pub mod trainer;

pub use checkpoint_store::{CheckpointStore, StoreError};
pub use comm::{Comm, CommError, LocalComm};
pub use config::{RunConfig, RunConfigError};
pub use objective::{Batches, BoxError, Evaluator, LossSums, Objective, Policy};
pub use run_dir::{RunDir, RunDirError, Start};
pub use trainer::{Event, ModelFiles, Outcome, TrainError, Trainer};
