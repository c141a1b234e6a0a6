//! All weights of a model on a device.

use crate::matrix::Matrix;
use crate::weights::{LayerWeights, Mamba2Weights, Weights};
use hybra_cuda::{Compute, CudaError, DeviceBuffer, DeviceMatrix, Gpu};

/// A block's norm and its mixer.
pub(super) struct DeviceLayer {
    pub(super) norm: DeviceBuffer<f32>,
    pub(super) mixer: DeviceMixer,
}

/// The weights of a mixer.
pub(super) enum DeviceMixer {
    Mamba2(Box<DeviceMamba2>),
    Attention([DeviceMatrix; 4]),
    Mlp([DeviceMatrix; 2]),
}

/// As [`Mamba2Weights`].
pub(super) struct DeviceMamba2 {
    pub(super) in_proj: DeviceMatrix,
    pub(super) conv_weight: DeviceBuffer<f32>,
    pub(super) conv_bias: Option<DeviceBuffer<f32>>,
    pub(super) a: DeviceBuffer<f32>,
    pub(super) d: DeviceBuffer<f32>,
    pub(super) dt_bias: DeviceBuffer<f32>,
    pub(super) gated_norm: DeviceBuffer<f32>,
    pub(super) out_proj: DeviceMatrix,
}

/// As [`Weights`].
pub(super) struct DeviceWeights {
    pub(super) embedding: DeviceMatrix,
    pub(super) layers: Vec<DeviceLayer>,
    pub(super) final_norm: DeviceBuffer<f32>,
    /// `None` where the embedding is the head.
    pub(super) lm_head: Option<DeviceMatrix>,
}

/// What an upload needs at every matrix.
struct Upload<'a> {
    gpu: &'a Gpu,
    compute: Compute,
    threads: usize,
    done: u64,
    progress: &'a mut dyn FnMut(u64),
}

impl DeviceWeights {
    pub(super) fn upload(
        gpu: &Gpu,
        weights: &Weights,
        compute: Compute,
        threads: usize,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self, CudaError> {
        let mut upload = Upload { gpu, compute, threads, done: 0, progress };
        let embedding = upload.matrix(&weights.embedding)?;
        let layers = weights.layers.iter().map(|layer| upload.layer(layer));
        let layers = layers.collect::<Result<_, _>>()?;
        let lm_head = weights.lm_head.as_ref().map(|head| upload.matrix(head)).transpose()?;
        Ok(Self { embedding, layers, final_norm: gpu.upload_new(&weights.final_norm)?, lm_head })
    }

    /// Bytes of device memory.
    pub(super) fn bytes(&self) -> usize {
        let layer = |layer: &DeviceLayer| {
            let mixer = match &layer.mixer {
                DeviceMixer::Mamba2(w) => {
                    let small = [&w.conv_weight, &w.a, &w.d, &w.dt_bias, &w.gated_norm];
                    let small: usize = small.iter().map(|v| v.bytes()).sum();
                    let bias = w.conv_bias.as_ref().map_or(0, DeviceBuffer::bytes);
                    small + bias + w.in_proj.bytes() + w.out_proj.bytes()
                }
                DeviceMixer::Attention(all) => all.iter().map(DeviceMatrix::bytes).sum(),
                DeviceMixer::Mlp(all) => all.iter().map(DeviceMatrix::bytes).sum(),
            };
            layer.norm.bytes() + mixer
        };
        let head = self.lm_head.as_ref().map_or(0, DeviceMatrix::bytes);
        let ends = self.embedding.bytes() + self.final_norm.bytes() + head;
        ends + self.layers.iter().map(layer).sum::<usize>()
    }
}

impl Upload<'_> {
    /// Uploads a matrix as stored; the file's pages leave memory.
    fn matrix(&mut self, matrix: &Matrix) -> Result<DeviceMatrix, CudaError> {
        let uploaded = DeviceMatrix::upload(self.gpu, matrix.view(), self.compute, self.threads)?;
        matrix.release();
        self.done += matrix.bytes() as u64;
        (self.progress)(self.done);
        Ok(uploaded)
    }

    fn layer(&mut self, layer: &LayerWeights) -> Result<DeviceLayer, CudaError> {
        let mixer = match layer {
            LayerWeights::Mamba2(w) => DeviceMixer::Mamba2(Box::new(self.mamba2(w)?)),
            LayerWeights::Attention(w) => DeviceMixer::Attention([
                self.matrix(&w.q_proj)?,
                self.matrix(&w.k_proj)?,
                self.matrix(&w.v_proj)?,
                self.matrix(&w.o_proj)?,
            ]),
            LayerWeights::Mlp(w) => {
                DeviceMixer::Mlp([self.matrix(&w.up_proj)?, self.matrix(&w.down_proj)?])
            }
        };
        Ok(DeviceLayer { norm: self.gpu.upload_new(layer.norm())?, mixer })
    }

    fn mamba2(&mut self, w: &Mamba2Weights) -> Result<DeviceMamba2, CudaError> {
        let gpu = self.gpu;
        Ok(DeviceMamba2 {
            in_proj: self.matrix(&w.in_proj)?,
            conv_weight: gpu.upload_new(&w.conv_weight)?,
            conv_bias: w.conv_bias.as_ref().map(|bias| gpu.upload_new(bias)).transpose()?,
            a: gpu.upload_new(&w.a)?,
            d: gpu.upload_new(&w.d)?,
            dt_bias: gpu.upload_new(&w.dt_bias)?,
            gated_norm: gpu.upload_new(&w.gated_norm)?,
            out_proj: self.matrix(&w.out_proj)?,
        })
    }
}
