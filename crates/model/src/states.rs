//! How states of a model are made: new, or from an image; and what they cost.
//!
//! Invariant: states lie where the model's weights do.

use crate::config::Config;
use crate::device::Layout;
use crate::nemotron_h::NemotronH;
use crate::state::{SequenceState, StateDtypes};
use crate::state_image::{StateBytes, StateImageError};
use std::io::Read;
use std::sync::Arc;

/// Makes states. On a device their number types are the model's own, whatever is asked for.
#[derive(Clone, Copy)]
pub struct States<'m> {
    config: &'m Config,
    device: Option<&'m Arc<Layout>>,
}

impl<'m> States<'m> {
    /// States in the machine's own memory.
    #[must_use]
    pub fn of(config: &'m Config) -> Self {
        Self { config, device: None }
    }

    /// The state of a sequence before its first token.
    #[must_use]
    pub fn fresh(self, dtypes: impl Into<StateDtypes>) -> SequenceState {
        match self.device {
            Some(layout) => SequenceState::on_device(layout.fresh(), 0),
            None => SequenceState::new(self.config, dtypes),
        }
    }

    /// What states cost; a draft on a device, which reads none, nothing.
    #[must_use]
    pub fn costs(self, dtypes: impl Into<StateDtypes>) -> StateBytes {
        match self.device {
            Some(layout) => StateBytes {
                constant: layout.slot_bytes(),
                block: layout.page_bytes(),
                draft: 0,
                draft_token: 0,
            },
            None => StateBytes::of(self.config, dtypes),
        }
    }

    /// Reads the state of `len` tokens from its image of `found` bytes.
    ///
    /// # Errors
    /// A size that such a state has not, or an early end.
    pub fn read(
        self,
        dtypes: impl Into<StateDtypes>,
        len: usize,
        found: u64,
        from: &mut dyn Read,
    ) -> Result<SequenceState, StateImageError> {
        let dtypes = dtypes.into();
        let Some(layout) = self.device else {
            return SequenceState::read_from(self.config, dtypes, len, found, from);
        };
        let expected = self.costs(dtypes).at(len) as u64;
        if found != expected {
            return Err(StateImageError::Bytes { len, expected, found });
        }
        let mut image = Vec::new();
        from.take(expected).read_to_end(&mut image)?;
        if image.len() as u64 != expected {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        Ok(SequenceState::on_device(layout.from_image(image), len))
    }
}

impl NemotronH {
    /// How its states are made.
    #[must_use]
    pub fn states(&self) -> States<'_> {
        States { device: self.device_layout(), ..States::of(self.config()) }
    }
}
