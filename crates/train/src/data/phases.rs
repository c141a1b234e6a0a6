//! Parts of a run with packs of their own length: a short context first, then a long one.
//!
//! A phase begins at the sample behind those that the phase before it has read, so none comes twice;
//! the few that waited in its pool are left out. The state says which phase it is and where its
//! loader stands.

use super::config::DataConfig;
use super::error::DataError;
use super::loader::{Corpus, DataLoader, LoaderState};
use super::{SampleEncoder, task_generator};
use crate::config::PhaseConfig;
use crate::objective::{Batches, BoxError, Policy};
use hybra_model::training::PackedBatch;
use serde_json::{Value, json};

/// The loaders of a run's phases.
pub struct Phases {
    /// Steps, and what they see.
    phases: Vec<(u64, DataLoader)>,
    /// The phase of the next step.
    at: usize,
}

impl Phases {
    /// Opens the data of every phase; `phases` is not empty.
    ///
    /// # Errors
    /// As [`Corpus::open`].
    pub fn open(
        data: &DataConfig,
        phases: &[PhaseConfig],
        encoder: &SampleEncoder,
    ) -> Result<Self, DataError> {
        let open = |phase: &PhaseConfig| {
            let config = DataConfig {
                pack_len: phase.pack_len.unwrap_or(data.pack_len),
                batch_size: phase.batch_size.unwrap_or(data.batch_size),
                ..data.clone()
            };
            let corpus = Corpus::open(&config, encoder.clone(), &task_generator)?;
            Ok((phase.steps, DataLoader::new(corpus)))
        };
        let phases = phases.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self { phases, at: 0 })
    }

    /// Goes behind phases that are done.
    fn skip(&mut self) {
        let is_done = |(steps, loader): &(u64, DataLoader)| loader.state().step >= *steps;
        while self.at + 1 < self.phases.len() && is_done(&self.phases[self.at]) {
            let read = self.phases[self.at].1.state().next_sample;
            self.at += 1;
            self.phases[self.at].1.begin_at(read);
        }
    }
}

impl Batches for Phases {
    fn step(&mut self, _: &Policy) -> Result<Vec<PackedBatch>, BoxError> {
        self.skip();
        let (_, loader) = &mut self.phases[self.at];
        Ok(loader.step(loader.state().step)?)
    }

    fn fingerprint(&self) -> String {
        let phase = |(steps, loader): &(u64, DataLoader)| {
            format!("{steps}:{}", loader.corpus().fingerprint())
        };
        self.phases.iter().map(phase).collect::<Vec<_>>().join(" ")
    }

    fn state(&self) -> Value {
        json!({ "phase": self.at, "loader": self.phases[self.at].1.state() })
    }

    fn restore(&mut self, state: &Value) -> Result<(), BoxError> {
        let phase: usize = serde_json::from_value(state["phase"].clone())?;
        let loader: LoaderState = serde_json::from_value(state["loader"].clone())?;
        let Some((_, at)) = self.phases.get_mut(phase) else {
            let (expected, found) = (format!("below {}", self.phases.len()), phase.to_string());
            return Err(Box::new(DataError::State { field: "phase", expected, found }));
        };
        at.restore(loader)?;
        self.at = phase;
        Ok(())
    }
}
