//! Small random teachers on disk, and what they say.

use hybra_checkpoint::{Checkpoint, Dtype, SafetensorsOptions, SafetensorsWriter, TensorInfo};
use hybra_kernels::ops::attention::KvDtype;
use hybra_kernels::{Cpu, Isa};
use hybra_model::config::TorchDtype;
use hybra_model::parameters::Layout;
use hybra_model::presets::preset;
use hybra_model::tensors::Role;
use hybra_model::{Activations, Batch, Config, LogitsFor, NemotronH, NoObserver};
use std::path::{Path, PathBuf};

/// The preset `micro`: all kinds of layers, two groups, two kv heads.
pub(crate) fn config() -> Config {
    Config { dtype: TorchDtype::Float32, ..preset("micro").unwrap() }
}

pub(crate) fn cpu(threads: usize) -> Cpu {
    Cpu::new(Isa::best(), threads)
}

/// Random values whose norms are not all 1.
pub(crate) fn parameters(config: &Config, seed: u64) -> Vec<f32> {
    let layout = Layout::new(config);
    let mut values = layout.random(config, seed);
    for slot in layout.slots() {
        if matches!(slot.spec.role, Role::BlockNorm | Role::FinalNorm | Role::GatedNorm) {
            let norm = values[slot.range.clone()].iter_mut().enumerate();
            norm.for_each(|(i, v)| *v *= 0.5 + (i * 7 % 11) as f32 / 10.0);
        }
    }
    values
}

/// Writes a checkpoint of these values.
pub(crate) fn write(dir: &Path, config: &Config, values: &[f32]) -> PathBuf {
    let layout = Layout::new(config);
    let info = |name: &str, shape: &[usize]| TensorInfo::new(name, Dtype::F32, shape);
    let infos: Vec<_> = layout.slots().iter().map(|s| info(&s.spec.name, &s.spec.shape)).collect();
    let text = config.to_json();
    let options = SafetensorsOptions { overwrite: true, ..SafetensorsOptions::default() };
    let files = [("config.json", text.as_bytes())];
    let mut writer = SafetensorsWriter::create(dir, &infos, &files, &options).unwrap();
    for slot in layout.slots() {
        let bytes: Vec<u8> =
            values[slot.range.clone()].iter().flat_map(|v| v.to_le_bytes()).collect();
        writer.write(&slot.spec.name, &bytes).unwrap();
    }
    writer.finish().unwrap();
    dir.to_owned()
}

/// The values of a checkpoint.
#[allow(dead_code, reason = "not every test binary needs it")]
pub(crate) fn read(dir: &Path) -> (Config, Vec<f32>) {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let config = Config::from_checkpoint(&checkpoint).unwrap();
    let values = Layout::new(&config).load(&checkpoint, &config).unwrap();
    (config, values)
}

/// A few documents of known tokens.
pub(crate) fn documents(config: &Config, count: usize) -> Vec<Vec<u32>> {
    let token = |i: usize, t: usize| ((i * 131 + t * t * 17 + t * 5) % config.vocab_size) as u32;
    (0..count).map(|i| (0..20 + 7 * i).map(|t| token(i, t)).collect()).collect()
}

/// Logits of every token of every document, exact arithmetic.
pub(crate) fn logits(dir: &Path, documents: &[Vec<u32>]) -> Vec<f32> {
    let (cpu, model) = (cpu(2), NemotronH::open(dir).unwrap());
    let mut all = Vec::new();
    for document in documents {
        let batch = Batch::single(document, LogitsFor::All);
        let (mut state, mut act) = (model.new_state(KvDtype::F32), Activations::new());
        let found = model.forward(&cpu, &batch, &mut [&mut state], &mut act, &mut NoObserver);
        all.extend_from_slice(found.unwrap());
    }
    all
}

/// ‖a − b‖ / ‖b‖.
pub(crate) fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |v: f64| v * v;
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let whole: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
    (difference / whole).sqrt()
}
