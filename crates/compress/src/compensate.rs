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

/// What is repaired, from what.
pub struct Compensation<'a> {
    /// Of the teacher. Consumers need Gram matrices in it and are left alone without.
    pub moments: &'a Moments,
    /// Whether norms are rescaled.
    pub norms: bool,
    /// λ of the consumers, relative; `None` leaves them.
    pub ridge: Option<f64>,
}

impl Compensation<'_> {
    /// The new values of the student's tensor `spec`, cut from `found`; `None` where nothing
    /// changes.
    pub(crate) fn values(
        &self,
        teacher: &Config,
        plan: &PrunePlan,
        spec: &TensorSpec,
        axes: &Axes,
        found: &Found,
    ) -> Result<Option<Vec<f32>>, LoadError> {
        let (reader, mixer) = match spec.layer.map(|at| plan.layers[at].layer()) {
            Some(layer) => (&self.moments.layers[layer].normed, &self.moments.layers[layer].mixed),
            None => (&self.moments.head, &self.moments.head),
        };
        match spec.role {
            Role::BlockNorm | Role::FinalNorm if self.norms => norm(reader, axes, found, 1),
            Role::GatedNorm if self.norms => {
                let groups = teacher.mamba_layers().next().map_or(1, |m| m.n_groups);
                norm(mixer, axes, found, groups)
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

/// γ′ of a norm over `groups` equal parts of the row.
fn norm(
    outputs: &ChannelMoments,
    axes: &Axes,
    found: &Found,
    groups: usize,
) -> Result<Option<Vec<f32>>, LoadError> {
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
    let mut values = Vec::with_capacity(kept.len());
    for (group, kept) in kept.chunks_exact(part).enumerate() {
        let all = mean(&mut (group * whole..(group + 1) * whole));
        let kept_mean = mean(&mut kept.iter().copied());
        let factor = if all > 0.0 { (kept_mean / all).sqrt() } else { 1.0 };
        values.extend(kept.iter().map(|&at| (f64::from(gamma[at]) * factor) as f32));
    }
    Ok(Some(values))
}
