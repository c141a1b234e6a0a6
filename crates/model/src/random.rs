//! Random weights as a function of (seed, tensor name, position).
//!
//! Counter-based: any part of any tensor can be made alone, in any order and on any number of
//! threads, so a checkpoint of any size streams to disk. Bits come from SplitMix64 (Steele et al.,
//! 2014); normal values are sums of four uniform 16-bit numbers (Irwin–Hall), which have the right
//! mean and variance and end at ±3.46 σ: weights need no tails.

use crate::config::Config;
use crate::tensors::{Role, TensorSpec};

/// The values of one tensor.
pub struct RandomTensor {
    key: u64,
    kind: Kind,
}

enum Kind {
    Constant(f32),
    /// Mean 0 and this standard deviation.
    Normal(f32),
    /// Between minus and plus this.
    Uniform(f32),
    /// ln of uniform numbers in [1, 16]: A_log.
    LogDecay,
    /// softplus⁻¹ of log-uniform numbers: dt_bias. ln of the bounds, and the floor.
    InverseSoftplus {
        ln_min: f32,
        ln_max: f32,
        floor: f32,
    },
}

impl RandomTensor {
    /// The rule for a tensor. Standard deviation of matrices: 1/√(row length), and for those that
    /// write to the residual stream another factor 1/√(2·layers), so that activations keep the
    /// size that the embedding gives them (1 per value).
    #[must_use]
    pub fn new(seed: u64, spec: &TensorSpec, config: &Config) -> Self {
        let fan_in = spec.row_len() as f32;
        let kind = match spec.role {
            // A tied embedding is also the head.
            Role::Embedding if !config.tie_word_embeddings => Kind::Normal(1.0),
            Role::OutProj | Role::OProj | Role::DownProj => {
                Kind::Normal((fan_in * 2.0 * config.layers.len() as f32).sqrt().recip())
            }
            Role::FinalNorm | Role::BlockNorm | Role::GatedNorm | Role::D => Kind::Constant(1.0),
            // Bound of PyTorch's Conv1d: one over the root of the kernel length.
            Role::ConvWeight => Kind::Uniform(fan_in.sqrt().recip()),
            Role::ConvBias => Kind::Constant(0.0),
            Role::ALog => Kind::LogDecay,
            Role::DtBias => Kind::InverseSoftplus {
                ln_min: config.init.time_step_min.ln(),
                ln_max: config.init.time_step_max.ln(),
                floor: config.init.time_step_floor,
            },
            _ => Kind::Normal(fan_in.sqrt().recip()),
        };
        Self { key: key(seed, &spec.name), kind }
    }

    /// The values from position `first` on.
    pub fn fill(&self, first: usize, out: &mut [f32]) {
        let key = self.key;
        let each = |out: &mut [f32], value: &dyn Fn(u64) -> f32| {
            for (at, v) in (first as u64..).zip(out) {
                *v = value(bits(key, at));
            }
        };
        match self.kind {
            Kind::Constant(value) => out.fill(value),
            // The bulk of a model: kept out of the indirect call.
            Kind::Normal(deviation) => {
                for (at, v) in (first as u64..).zip(out) {
                    *v = normal(bits(key, at)) * deviation;
                }
            }
            Kind::Uniform(bound) => each(out, &|b| (2.0 * unit(b) - 1.0) * bound),
            Kind::LogDecay => each(out, &|b| (1.0 + 15.0 * unit(b)).ln()),
            Kind::InverseSoftplus { ln_min, ln_max, floor } => each(out, &|b| {
                let dt = (ln_min + (ln_max - ln_min) * unit(b)).exp().max(floor);
                dt + (-(-dt).exp_m1()).ln()
            }),
        }
    }
}

/// SplitMix64's output function.
#[inline(always)]
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// SplitMix64's increment.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The start of a tensor's sequence.
fn key(seed: u64, name: &str) -> u64 {
    name.bytes().fold(mix(seed.wrapping_add(STEP)), |key, b| mix(key ^ u64::from(b)))
}

#[inline(always)]
fn bits(key: u64, at: u64) -> u64 {
    mix(key.wrapping_add((at + 1).wrapping_mul(STEP)))
}

/// Uniform in [0, 1).
fn unit(bits: u64) -> f32 {
    (bits >> 40) as f32 / (1u64 << 24) as f32
}

/// Mean 0, variance 1.
#[inline(always)]
fn normal(bits: u64) -> f32 {
    /// Four times the mean of a 16-bit number, and the deviation of the sum of four.
    const MEAN: f32 = 131_070.0;
    const DEVIATION: f32 = 37_837.227;
    let lanes = (bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48);
    (lanes as f32 - MEAN) * (1.0 / DEVIATION)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets::preset;
    use crate::tensors::tensor_specs;

    fn tensor(seed: u64, role: Role) -> (RandomTensor, Vec<f32>) {
        let config = preset("micro").unwrap();
        let spec = tensor_specs(&config).into_iter().find(|spec| spec.role == role).unwrap();
        let random = RandomTensor::new(seed, &spec, &config);
        let mut values = vec![0.0; spec.num_elements() as usize];
        random.fill(0, &mut values);
        (random, values)
    }

    #[test]
    fn matrices_have_the_intended_mean_and_deviation() {
        for (role, want) in [(Role::Embedding, 1.0), (Role::LmHead, 0.125)] {
            let (_, values) = tensor(1, role);
            let n = values.len() as f64;
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            let square = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n;
            assert!(mean.abs() < 5.0 * want / n.sqrt(), "{role:?}: mean {mean}");
            assert!((square.sqrt() / want - 1.0).abs() < 0.01, "{role:?}: {}", square.sqrt());
        }
    }

    #[test]
    fn a_part_is_the_same_alone() {
        for role in [Role::InProj, Role::ConvWeight, Role::ALog, Role::DtBias, Role::D] {
            let (random, whole) = tensor(7, role);
            let mut part = vec![0.0; whole.len() / 2];
            random.fill(3, &mut part);
            assert_eq!(part, whole[3..3 + part.len()], "{role:?}");
        }
        assert_ne!(tensor(7, Role::InProj).1, tensor(8, Role::InProj).1);
        assert_ne!(tensor(7, Role::Embedding).1[0], tensor(7, Role::LmHead).1[0] * 8.0);
    }

    #[test]
    fn time_steps_and_decay_rates_are_in_range() {
        for bias in tensor(3, Role::DtBias).1 {
            let dt = bias.exp().ln_1p();
            assert!((0.000_999..0.1001).contains(&dt), "{dt}");
        }
        for a in tensor(3, Role::ALog).1 {
            assert!((0.0..=16.0f32.ln()).contains(&a), "{a}");
        }
        let bound = 0.5;
        assert!(tensor(3, Role::ConvWeight).1.iter().all(|v| v.abs() <= bound));
    }
}
