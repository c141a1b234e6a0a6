//! Closed-form repair of a pruned model from calibration moments, tensor by tensor.
//!
//! - *Norms.* An RMSNorm over fewer channels has another denominator. γ′ = γ·√(mean over kept x² /
//!   mean over all x²), of each block norm and of each group of a gated norm, gives the kept channels
//!   the size they had. The means are of `x/rms(x)`, which is the norm's output over γ.
//! - *Consumers.* A matrix that reads fewer channels takes over what the dropped ones told, as far as
//!   the kept ones know it: with X the calibration inputs, K kept and D dropped columns,
//!   `W′ᵀ = W_Kᵀ + (X_KᵀX_K + λI)⁻¹ X_KᵀX_D W_Dᵀ`. This is ridge regression centred on the slice: for
//!   every λ the calibration error is at most that of slicing, and nothing dropped changes nothing.
//!
//! λ is given relative to the mean of the diagonal of X_KᵀX_K. Inputs are those of the teacher: what
//! other layers lose is not seen. Solved in f64 by Cholesky.

use crate::axes::Axes;
use crate::moments::{ChannelMoments, Moments};
use crate::plan::PrunePlan;
use hybra_model::Config;
use hybra_model::load::{Found, LoadError};
use hybra_model::tensors::{Role, TensorSpec};
use nalgebra::{Cholesky, DMatrix};

/// Changes tensors of a student on their way from the teacher.
pub trait Repair {
    /// The new values of the student's tensor `spec`, cut from `found`; `None` where nothing
    /// changes.
    ///
    /// # Errors
    /// A tensor whose values cannot be read.
    fn values(
        &self,
        teacher: &Config,
        plan: &PrunePlan,
        spec: &TensorSpec,
        axes: &Axes,
        found: &Found,
    ) -> Result<Option<Vec<f32>>, LoadError>;
}

/// What is repaired, from what.
pub struct Compensation<'a> {
    /// Of the teacher. Consumers need Gram matrices in it and are left alone without.
    pub moments: &'a Moments,
    /// Whether norms are rescaled.
    pub norms: bool,
    /// λ of the consumers, relative; `None` leaves them.
    pub ridge: Option<f64>,
}

impl Repair for Compensation<'_> {
    fn values(
        &self,
        teacher: &Config,
        plan: &PrunePlan,
        spec: &TensorSpec,
        axes: &Axes,
        found: &Found,
    ) -> Result<Option<Vec<f32>>, LoadError> {
        let (reader, mixer) = self.inputs(plan, spec);
        match spec.role {
            Role::BlockNorm | Role::FinalNorm | Role::GatedNorm if self.norms => {
                let Some(factors) = self.norm_factors(teacher, plan, spec, axes, found)? else {
                    return Ok(None);
                };
                let kept = axes.rows.as_deref().unwrap_or_default();
                Ok(Some(scaled(found, kept, &factors)?))
            }
            Role::OutProj | Role::OProj | Role::DownProj => self.consumer(mixer, axes, found),
            Role::InProj
            | Role::QProj
            | Role::KProj
            | Role::VProj
            | Role::UpProj
            | Role::LmHead => self.consumer(reader, axes, found),
            _ => Ok(None),
        }
    }
}

impl<'a> Compensation<'a> {
    /// Moments of what a layer's norm gives, and of what its last projection reads.
    fn inputs(
        &self,
        plan: &PrunePlan,
        spec: &TensorSpec,
    ) -> (&'a ChannelMoments, &'a ChannelMoments) {
        match spec.layer.map(|at| &self.moments.layers[plan.layers[at].layer()]) {
            Some(layer) => (&layer.normed, &layer.mixed),
            None => (&self.moments.head, &self.moments.head),
        }
    }

    /// What each group of the norm `spec` is multiplied with; `None` for other tensors, and where
    /// nothing is dropped.
    pub(crate) fn norm_factors(
        &self,
        teacher: &Config,
        plan: &PrunePlan,
        spec: &TensorSpec,
        axes: &Axes,
        found: &Found,
    ) -> Result<Option<Vec<f64>>, LoadError> {
        let (reader, mixer) = self.inputs(plan, spec);
        match spec.role {
            Role::BlockNorm | Role::FinalNorm => norm(reader, axes, found, 1),
            Role::GatedNorm => {
                let groups = teacher.mamba_layers().next().map_or(1, |m| m.n_groups);
                norm(mixer, axes, found, groups)
            }
            _ => Ok(None),
        }
    }

    fn consumer(
        &self,
        inputs: &ChannelMoments,
        axes: &Axes,
        found: &Found,
    ) -> Result<Option<Vec<f32>>, LoadError> {
        let (Some(ridge), Some(kept), false) = (self.ridge, &axes.cols, inputs.gram.is_empty())
        else {
            return Ok(None);
        };
        let width = found.spec.row_len();
        let mut is_kept = vec![false; width];
        kept.iter().for_each(|&at| is_kept[at] = true);
        let dropped: Vec<usize> = (0..width).filter(|&at| !is_kept[at]).collect();
        if dropped.is_empty() {
            return Ok(None);
        }
        let w = found.f32_values()?;
        let all: Vec<usize>;
        let rows = match &axes.rows {
            Some(rows) => rows,
            None => {
                all = (0..found.spec.shape[0]).collect();
                &all
            }
        };
        let weight = |row: usize, col: usize| f64::from(w[row * width + col]);
        let gram = |a: &[usize], b: &[usize]| {
            DMatrix::from_fn(a.len(), b.len(), |i, j| inputs.gram[a[i] * width + b[j]])
        };
        let mut inner = gram(kept, kept);
        let lambda = (ridge * inner.trace() / kept.len() as f64).max(f64::MIN_POSITIVE);
        (0..kept.len()).for_each(|i| inner[(i, i)] += lambda);
        // Inputs that are all zero, or λ so small that rounding wins: the slice is left as it is.
        let Some(inner) = Cholesky::new(inner) else { return Ok(None) };
        let lost = DMatrix::from_fn(dropped.len(), rows.len(), |j, r| weight(rows[r], dropped[j]));
        let repair = inner.solve(&(gram(kept, &dropped) * lost));
        let value = |r: usize, i: usize| (weight(rows[r], kept[i]) + repair[(i, r)]) as f32;
        let values = (0..rows.len()).flat_map(|r| (0..kept.len()).map(move |i| (r, i)));
        Ok(Some(values.map(|(r, i)| value(r, i)).collect()))
    }
}

/// The kept values of a norm, each of as many equal parts as there are factors times its factor.
pub(crate) fn scaled(
    found: &Found,
    kept: &[usize],
    factors: &[f64],
) -> Result<Vec<f32>, LoadError> {
    let gamma = found.f32_values()?;
    let factor = |at: usize| factors[at * factors.len() / kept.len()];
    let value = |(at, &row): (usize, &usize)| (f64::from(gamma[row]) * factor(at)) as f32;
    Ok(kept.iter().enumerate().map(value).collect())
}

/// γ′/γ of a norm, for each of `groups` equal parts of the row.
fn norm(
    outputs: &ChannelMoments,
    axes: &Axes,
    found: &Found,
    groups: usize,
) -> Result<Option<Vec<f64>>, LoadError> {
    let gamma = found.f32_values()?;
    let Some(kept) = &axes.rows else { return Ok(None) };
    if kept.len() == gamma.len() {
        return Ok(None);
    }
    // The share that a channel with γ = 0 has of the denominator is not seen.
    let share = |at: usize| match f64::from(gamma[at]) {
        0.0 => 0.0,
        weight => outputs.square[at] / (weight * weight),
    };
    let mean = |part: &mut dyn ExactSizeIterator<Item = usize>| {
        let count = part.len() as f64;
        part.map(share).sum::<f64>() / count
    };
    let (whole, part) = (gamma.len() / groups, kept.len() / groups);
    let factor = |(group, kept): (usize, &[usize])| {
        let all = mean(&mut (group * whole..(group + 1) * whole));
        let kept = mean(&mut kept.iter().copied());
        if all > 0.0 { (kept / all).sqrt() } else { 1.0 }
    };
    Ok(Some(kept.chunks_exact(part).enumerate().map(factor).collect()))
}
