//! What a block keeps for the way back, and the memory that all blocks share.

use hybra_kernels::ops::mamba_split_conv1d_scan_backward::KeptScan;

/// What a block keeps.
#[derive(Default)]
pub(super) struct Saved {
    /// Its input, `[T, h]`.
    pub(super) x: Vec<f32>,
    /// Its first projection: Mamba `[T, z | x | B | C | dt]`, attention q, k, v one after the
    /// other, MLP up_proj's output before relu².
    pub(super) wide: Vec<f32>,
    /// The input of its last projection (for an MLP it is made again from `wide`).
    pub(super) mix: Vec<f32>,
    /// Of a Mamba block, if no engine's bits were asked for: y and the states between chunks.
    pub(super) scan: KeptScan,
}

impl Saved {
    pub(super) fn bytes(&self) -> usize {
        4 * (self.x.capacity() + self.wide.capacity() + self.mix.capacity()) + self.scan.bytes()
    }
}

/// Memory that is kept from block to block.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) normed: Vec<f32>,
    pub(super) out: Vec<f32>,
    /// Those of some rows that are read.
    pub(super) read: Vec<f32>,
    /// Gradients: of the residual stream, of the normed input, of `wide` and of `mix`.
    pub(super) dhidden: Vec<f32>,
    pub(super) dnormed: Vec<f32>,
    pub(super) dwide: Vec<f32>,
    pub(super) dmix: Vec<f32>,
    /// States of the documents.
    pub(super) conv: Vec<f32>,
    pub(super) ssm: Vec<f32>,
    /// The block that is run once more.
    pub(super) again: Saved,
}

impl Scratch {
    pub(super) fn bytes(&self) -> usize {
        let all = [
            &self.normed,
            &self.out,
            &self.read,
            &self.dhidden,
            &self.dnormed,
            &self.dwide,
            &self.dmix,
            &self.conv,
            &self.ssm,
        ];
        4 * all.iter().map(|v| v.capacity()).sum::<usize>() + self.again.bytes()
    }
}
