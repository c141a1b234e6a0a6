//! What all handlers share.

use crate::config::ServerConfig;
use crate::error::ApiError;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use hybra_chat::ChatModel;
use hybra_engine::{EngineHandle, SequenceId};
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// A model behind an engine, and the settings of the server before it.
pub struct AppState {
    /// The text side of the model.
    pub model: ChatModel,
    /// The engine.
    pub engine: EngineHandle,
    /// Settings.
    pub config: ServerConfig,
    /// Longest sequence, prompt and output.
    pub max_model_len: usize,
    /// What the server counts.
    pub metrics: Arc<Metrics>,
    /// Where the server is.
    pub lifecycle: Arc<Lifecycle>,
    controls: Mutex<HashMap<String, Vec<SequenceId>>>,
}

impl AppState {
    /// State before the first request.
    #[must_use]
    pub fn new(
        model: ChatModel,
        engine: EngineHandle,
        config: ServerConfig,
        max_model_len: usize,
    ) -> Self {
        let (metrics, lifecycle, controls) = Default::default();
        Self { model, engine, config, max_model_len, metrics, lifecycle, controls }
    }

    /// With the counters and the phases of the server around it.
    #[must_use]
    pub fn with(self, metrics: Arc<Metrics>, lifecycle: Arc<Lifecycle>) -> Self {
        Self { metrics, lifecycle, ..self }
    }

    /// Requests whose thinking may be ended, by id.
    pub fn controls(&self) -> MutexGuard<'_, HashMap<String, Vec<SequenceId>>> {
        self.controls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks the `model` field.
    ///
    /// # Errors
    /// A model that is not served here.
    pub fn check_model(&self, name: Option<&str>) -> Result<(), ApiError> {
        let Some(name) = name else { return Ok(()) };
        let served = &self.config.served_model_names;
        if name == self.model.name || served.iter().any(|other| other == name) {
            return Ok(());
        }
        let name: String = name.chars().take(128).collect();
        let message = format!("model: {name:?} is not served here; expected {:?}", self.model.name);
        Err(ApiError::NotFound { param: Some("model".to_owned()), message })
    }
}

/// A number that nobody can guess: randomness enters here and nowhere else.
#[must_use]
pub fn random_u64() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// `prefix` and 128 random bits.
#[must_use]
pub fn new_id(prefix: &str) -> String {
    format!("{prefix}{:016x}{:016x}", random_u64(), random_u64())
}

/// Unix seconds.
#[must_use]
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
