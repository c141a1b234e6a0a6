//! A plan applied to a checkpoint: file to file, tensor by tensor, gathering rows and columns.
//!
//! The student's tensors keep the teacher's element types, and their values the teacher's bits,
//! unless a [`Repair`] changes a tensor. Memory holds one tensor's rows at a time, or one whole
//! tensor where least squares change it; pages of the source are let go behind the reader.

use crate::axes::Axes;
use crate::compensate::{Compensation, Repair};
use crate::nested::Size;
use crate::plan::{PlanError, PrunePlan};
use crate::target::Target;
use hybra_checkpoint::{Checkpoint, Format, SafetensorsOptions, SafetensorsWriter, TensorInfo};
use hybra_kernels::DType;
use hybra_kernels::ops::quantize::quantize_row;
use hybra_model::load::{Found, LoadError, file_type, find_tensors};
use hybra_model::tensors::{Role, TensorSpec, tensor_specs};
use hybra_model::{Config, ConfigError};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Why a checkpoint cannot be pruned.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// The plan does not fit.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The teacher has no valid configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The teacher's tensors are not those of its configuration.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The student cannot be written.
    #[error(transparent)]
    Checkpoint(#[from] hybra_checkpoint::Error),
    /// Block formats have no columns to gather.
    #[error(
        "{}: is GGUF; prune a Hugging Face directory (`hybra convert` makes one)", path.display()
    )]
    Gguf {
        /// The teacher.
        path: PathBuf,
    },
}

/// The teacher of a plan: its configuration and tensors.
pub struct Teacher<'c> {
    checkpoint: &'c Checkpoint,
    /// The shape.
    pub config: Config,
    /// In registry order.
    tensors: Vec<Found<'c>>,
    places: HashMap<(Role, Option<usize>), usize>,
}

impl<'c> Teacher<'c> {
    /// The model of a Hugging Face directory.
    ///
    /// # Errors
    /// [`PruneError::Gguf`], and what is wrong with its configuration or tensors.
    pub fn new(checkpoint: &'c Checkpoint) -> Result<Self, PruneError> {
        if checkpoint.format() == Format::Gguf {
            return Err(PruneError::Gguf { path: checkpoint.path().to_owned() });
        }
        let config = Config::from_checkpoint(checkpoint)?;
        let tensors = find_tensors(checkpoint, &config)?;
        let place = |(at, found): (usize, &Found)| ((found.spec.role, found.spec.layer), at);
        let places = tensors.iter().enumerate().map(place).collect();
        Ok(Self { checkpoint, config, tensors, places })
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.checkpoint.path()
    }

    /// The tensor that the student's `spec` is cut from.
    fn tensor(&self, spec: &TensorSpec, plan: &PrunePlan) -> &Found<'c> {
        let layer = spec.layer.map(|at| plan.layers[at].layer());
        &self.tensors[self.places[&(spec.role, layer)]]
    }

    /// All tensors, in registry order.
    pub fn tensors(&self) -> impl Iterator<Item = &Found<'c>> {
        self.tensors.iter()
    }

    /// What the norms of `plan`'s student are multiplied with: a size of a nested checkpoint whose
    /// weights are in the teacher's order or another.
    ///
    /// # Errors
    /// A plan that does not fit.
    pub fn size(
        &self,
        plan: &PrunePlan,
        shape: Target,
        compensation: Option<&Compensation>,
    ) -> Result<Size, PruneError> {
        let mut size = Size { shape, norms: Default::default() };
        let Some(fix) = compensation else { return Ok(size) };
        for spec in tensor_specs(&plan.student(&self.config)?) {
            let (found, axes) = (self.tensor(&spec, plan), Axes::of(&spec, plan, &self.config));
            let factors = fix.norm_factors(&self.config, plan, &spec, &axes, found)?;
            size.norms.extend(factors.map(|factors| (spec.name, factors)));
        }
        Ok(size)
    }

    /// Writes the student of `plan` to `out`. `side_files` go beside its weights; `progress` is told
    /// bytes written and bytes in all.
    ///
    /// # Errors
    /// [`PruneError`]; `out` is then as it was.
    pub fn prune(
        &self,
        plan: &PrunePlan,
        repair: Option<&dyn Repair>,
        out: &Path,
        side_files: &[(&str, &[u8])],
        options: &SafetensorsOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), PruneError> {
        let student = plan.student(&self.config)?;
        let specs = tensor_specs(&student);
        let info = |spec: &TensorSpec| {
            let dtype = self.tensor(spec, plan).dtype;
            TensorInfo::new(&spec.name, file_type(dtype), &spec.shape)
        };
        let infos: Vec<_> = specs.iter().map(info).collect();
        let bytes = |spec: &TensorSpec| {
            spec.num_elements() * self.tensor(spec, plan).dtype.block_bytes() as u64
        };
        let (total, mut done) = (specs.iter().map(bytes).sum(), 0);
        let mut writer = SafetensorsWriter::create(out, &infos, side_files, options)?;
        for spec in &specs {
            let (found, axes) = (self.tensor(spec, plan), Axes::of(spec, plan, &self.config));
            let changed = match repair {
                Some(fix) => fix.values(&self.config, plan, spec, &axes, found)?,
                None => None,
            };
            let mut write = |bytes: &[u8]| {
                done += bytes.len() as u64;
                progress(done, total);
                writer.write(&spec.name, bytes)
            };
            match changed {
                Some(values) => write(&encode(found.dtype, &values))?,
                None => gather(found, &axes, &mut write)?,
            }
            found.view.region().release();
        }
        Ok(writer.finish()?)
    }
}

fn encode(dtype: DType, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * dtype.block_bytes()];
    quantize_row(dtype, values, &mut bytes);
    bytes
}

/// The kept rows and columns of a tensor, as stored, in pieces.
fn gather(
    found: &Found,
    axes: &Axes,
    write: &mut dyn FnMut(&[u8]) -> Result<(), hybra_checkpoint::Error>,
) -> Result<(), PruneError> {
    const PIECE: usize = 8 << 20;
    let (size, rows) = (found.dtype.block_bytes(), found.spec.shape[0]);
    let row_bytes = found.view.data.len() / rows;
    let mut piece = Vec::with_capacity(PIECE + row_bytes);
    let mut put = |row: usize| {
        let row = &found.view.data[row * row_bytes..][..row_bytes];
        match &axes.cols {
            None => piece.extend_from_slice(row),
            Some(cols) => {
                cols.iter().for_each(|col| piece.extend_from_slice(&row[col * size..][..size]));
            }
        }
        if piece.len() >= PIECE {
            write(&piece)?;
            piece.clear();
        }
        Ok::<_, hybra_checkpoint::Error>(())
    };
    match &axes.rows {
        None => (0..rows).try_for_each(&mut put)?,
        Some(kept) => kept.iter().copied().try_for_each(&mut put)?,
    }
    if !piece.is_empty() {
        write(&piece)?;
    }
    Ok(())
}
