//! Which rows and columns of a tensor a plan keeps: the prune axes of the registry.
//!
//! Every role is matched, so a tensor that the registry learns cannot be forgotten here. With Mamba
//! head j and channel p go: rows `j·P + p` of z and of x in in_proj (and `2HP + 2GN + j`, dt, with the
//! head), channel `j·P + p` of the convolution and of the gated norm, column `j·P + p` of out_proj,
//! and entry j of A_log, D and dt_bias. B and C stay.

use crate::plan::{LayerPlan, PrunePlan};
use hybra_model::Config;
use hybra_model::layer::{LayerConfig, Mamba2Config};
use hybra_model::tensors::{Role, TensorSpec};

/// Kept rows and columns, in the student's order; `None`: all, in the teacher's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Axes {
    /// Of the first dimension.
    pub rows: Option<Vec<usize>>,
    /// Of the last dimension of a matrix.
    pub cols: Option<Vec<usize>>,
}

impl Axes {
    /// What `plan` keeps of the teacher's tensor that becomes the student's `spec`.
    ///
    /// # Panics
    /// If the plan does not fit the teacher ([`PrunePlan::student`]).
    #[must_use]
    pub fn of(spec: &TensorSpec, plan: &PrunePlan, teacher: &Config) -> Self {
        let hidden = || Some(plan.hidden.clone());
        let layer = spec.layer.map(|at| &plan.layers[at]);
        let rows = |rows| Self { rows: Some(rows), cols: None };
        match spec.role {
            Role::Embedding | Role::LmHead => Self { rows: None, cols: hidden() },
            Role::FinalNorm | Role::BlockNorm => Self { rows: hidden(), cols: None },
            Role::InProj => {
                Self { rows: Some(Mamba::of(layer, teacher).in_proj()), cols: hidden() }
            }
            Role::ConvWeight | Role::ConvBias => rows(Mamba::of(layer, teacher).conv()),
            Role::ALog | Role::D | Role::DtBias => rows(Mamba::of(layer, teacher).heads.to_vec()),
            Role::GatedNorm => rows(Mamba::of(layer, teacher).inner()),
            Role::OutProj | Role::OProj | Role::DownProj => {
                Self { rows: hidden(), cols: Some(mixed(layer.expect(IN_BLOCK), teacher)) }
            }
            Role::QProj => {
                Self { rows: Some(mixed(layer.expect(IN_BLOCK), teacher)), cols: hidden() }
            }
            Role::KProj | Role::VProj => Self { rows: None, cols: hidden() },
            Role::UpProj => {
                Self { rows: Some(mixed(layer.expect(IN_BLOCK), teacher)), cols: hidden() }
            }
        }
    }
}

const IN_BLOCK: &str = "mixers lie in blocks";
const FITS: &str = "the plan was checked against the teacher";

/// Kept inputs of a layer's last projection.
#[must_use]
pub fn mixed(plan: &LayerPlan, teacher: &Config) -> Vec<usize> {
    match plan {
        LayerPlan::Mamba { .. } => Mamba::of(Some(plan), teacher).inner(),
        LayerPlan::Attention { layer, heads } => {
            let a = teacher.layers[*layer].as_attention().expect(FITS);
            heads.iter().flat_map(|head| head * a.head_dim..(head + 1) * a.head_dim).collect()
        }
        LayerPlan::Mlp { neurons, .. } => neurons.clone(),
    }
}

/// What stays of a Mamba layer.
struct Mamba<'a> {
    config: &'a Mamba2Config,
    heads: &'a [usize],
    channels: &'a [Vec<usize>],
}

impl<'a> Mamba<'a> {
    fn of(plan: Option<&'a LayerPlan>, teacher: &'a Config) -> Self {
        let Some(LayerPlan::Mamba { layer, heads, channels }) = plan else { panic!("{FITS}") };
        let LayerConfig::Mamba2(config) = &teacher.layers[*layer] else { panic!("{FITS}") };
        Self { config, heads, channels }
    }

    /// `j·P + p` of every kept head and channel.
    fn inner(&self) -> Vec<usize> {
        let dim = self.config.head_dim;
        let head = |(head, kept): (&usize, &'a Vec<usize>)| {
            let first = head * dim;
            kept.iter().map(move |channel| first + channel)
        };
        self.heads.iter().zip(self.channels).flat_map(head).collect()
    }

    /// x, then B and C.
    fn conv(&self) -> Vec<usize> {
        let mut rows = self.inner();
        rows.extend(self.config.d_inner()..self.config.conv_dim());
        rows
    }

    /// z, x, B, C, dt.
    fn in_proj(&self) -> Vec<usize> {
        let (inner, conv) = (self.config.d_inner(), self.config.conv_dim());
        let mut rows = self.inner();
        rows.extend(self.conv().iter().map(|row| inner + row));
        rows.extend(self.heads.iter().map(|head| inner + conv + head));
        rows
    }
}
