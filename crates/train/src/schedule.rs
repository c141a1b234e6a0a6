//! The learning rate of every step.
//!
//! Step s counts from 0. A linear warm-up gives lr·(s + 1)/w for s < w; then
//! - `constant` stays at lr;
//! - `cosine` falls to `min_lr` along half a cosine over the steps that are left;
//! - `wsd` (warm-up, stable, decay) stays at lr and falls linearly over the last `decay_steps`.

use serde::{Deserialize, Serialize};

/// How the learning rate goes after the warm-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Stays.
    #[default]
    Constant,
    /// Falls along half a cosine.
    Cosine,
    /// Stays, then falls linearly at the end.
    Wsd,
}

/// `[schedule]` of a run file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// After the warm-up.
    pub kind: ScheduleKind,
    /// Steps of the warm-up.
    pub warmup_steps: u64,
    /// Steps of the fall at the end; for `wsd` only.
    pub decay_steps: u64,
    /// Where `cosine` and `wsd` end.
    pub min_lr: f32,
}

impl Schedule {
    /// The learning rate of step `step` (from 0) of `steps`, with peak `lr`.
    #[must_use]
    pub fn lr(&self, lr: f32, step: u64, steps: u64) -> f32 {
        let (peak, least) = (f64::from(lr), f64::from(self.min_lr));
        if step < self.warmup_steps {
            return (peak * (step + 1) as f64 / self.warmup_steps as f64) as f32;
        }
        let left = match self.kind {
            ScheduleKind::Constant => return lr,
            ScheduleKind::Cosine => {
                let progress = part(step - self.warmup_steps, steps - self.warmup_steps);
                0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
            ScheduleKind::Wsd => {
                let start = steps - self.decay_steps;
                1.0 - part(step.saturating_sub(start), self.decay_steps)
            }
        };
        (least + (peak - least) * left) as f32
    }

    /// What is wrong with the settings of a run of `steps` with peak `lr`: key, what is expected,
    /// and what was found.
    pub(crate) fn defect(&self, lr: f32, steps: u64) -> Option<(&'static str, String, String)> {
        let Self { kind, warmup_steps, decay_steps, min_lr } = *self;
        if warmup_steps > steps {
            return Some(("warmup_steps", format!("at most {steps}"), warmup_steps.to_string()));
        }
        if !(0.0..=lr).contains(&min_lr) {
            return Some(("min_lr", format!("0 to {lr}, the peak"), min_lr.to_string()));
        }
        let expected = match kind {
            ScheduleKind::Wsd if decay_steps > steps - warmup_steps => {
                format!("at most {}, the steps after the warm-up", steps - warmup_steps)
            }
            ScheduleKind::Constant | ScheduleKind::Cosine if decay_steps > 0 => {
                "none unless `kind` is \"wsd\"".to_owned()
            }
            _ => return None,
        };
        Some(("decay_steps", expected, decay_steps.to_string()))
    }
}

fn part(done: u64, of: u64) -> f64 {
    if of == 0 { 1.0 } else { done as f64 / of as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(kind: ScheduleKind, decay_steps: u64, steps: u64) -> Vec<f32> {
        let schedule = Schedule { kind, warmup_steps: 4, decay_steps, min_lr: 0.2 };
        assert_eq!(schedule.defect(1.0, steps), None);
        (0..steps).map(|step| schedule.lr(1.0, step, steps)).collect()
    }

    #[test]
    fn tables() {
        let warm = [0.25, 0.5, 0.75, 1.0];
        let close = |got: &[f32], want: &[f32]| {
            assert_eq!(got.len(), want.len());
            assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-6), "{got:?} ≠ {want:?}");
        };
        close(&table(ScheduleKind::Constant, 0, 6), &[&warm[..], &[1.0, 1.0]].concat());
        let wsd = table(ScheduleKind::Wsd, 4, 10);
        close(&wsd, &[&warm[..], &[1.0, 1.0, 1.0, 0.8, 0.6, 0.4]].concat());
        let cosine = table(ScheduleKind::Cosine, 0, 8);
        let half = 0.2 + 0.8 * 0.5;
        let at = |x: f32| 0.2 + 0.4 * (1.0 + x);
        let root = 0.5f32.sqrt();
        close(&cosine, &[&warm[..], &[1.0, at(root), half, at(-root)]].concat());
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let base = Schedule { warmup_steps: 2, ..Schedule::default() };
        for (schedule, key) in [
            (Schedule { warmup_steps: 11, ..base.clone() }, "warmup_steps"),
            (Schedule { decay_steps: 1, ..base.clone() }, "decay_steps"),
            (Schedule { kind: ScheduleKind::Wsd, decay_steps: 9, ..base.clone() }, "decay_steps"),
            (Schedule { min_lr: 2.0, ..base.clone() }, "min_lr"),
            (Schedule { min_lr: f32::NAN, ..base }, "min_lr"),
        ] {
            assert_eq!(schedule.defect(1.0, 10).unwrap().0, key);
        }
    }
}
