//! What a prune plan may and may not change: invariances of slices, sizes, repairs.

mod support;

use hybra_checkpoint::{Checkpoint, SafetensorsOptions};
use hybra_compress::axes::{Axes, mixed};
use hybra_compress::compensate::{Compensation, Repair};
use hybra_compress::prune::Teacher;
use hybra_compress::scores::{Method, Scores, scores};
use hybra_compress::select::{Channels, select};
use hybra_compress::{LayerPlan, Moments, PrunePlan, Target};
use hybra_kernels::DType;
use hybra_model::Config;
use hybra_model::memory::WeightFormat;
use hybra_model::parameters::Layout;
use hybra_model::presets::preset;
use hybra_model::tensors::{Role, tensor_specs};
use proptest::prelude::*;
use std::path::Path;
use support::{config, cpu, documents, logits, parameters, read, relative_error, write};

fn prune(teacher: &Path, plan: &PrunePlan, fix: Option<&Compensation>, out: &Path) {
    let checkpoint = Checkpoint::open(teacher).unwrap();
    let teacher = Teacher::new(&checkpoint).unwrap();
    let text = plan.student(&teacher.config).unwrap().to_json();
    let options = SafetensorsOptions { overwrite: true, ..SafetensorsOptions::default() };
    let files = [("config.json", text.as_bytes())];
    let repair = fix.map(|fix| fix as &dyn Repair);
    teacher.prune(plan, repair, out, &files, &options, &mut |_, _| {}).unwrap();
}

fn weights(dir: &Path) -> Vec<u8> {
    std::fs::read(dir.join("model.safetensors")).unwrap()
}

/// A smaller shape of the micro preset, all axes cut.
fn small(teacher: &Config) -> Target {
    let full = Target::full(teacher);
    Target {
        layers: full.layers[1..].to_vec(),
        hidden_size: full.hidden_size * 3 / 4,
        intermediate_size: full.intermediate_size * 3 / 4,
        mamba_num_heads: full.mamba_num_heads / 2,
        mamba_head_dim: full.mamba_head_dim * 3 / 4,
        num_attention_heads: full.num_attention_heads / 2,
    }
}

#[test]
fn keeping_everything_keeps_every_bit_and_a_plan_is_a_function() {
    let (config, dir) = (config(), tempfile::tempdir().unwrap());
    let teacher = write(&dir.path().join("t"), &config, &parameters(&config, 1));
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    prune(&teacher, &PrunePlan::everything(&config), None, &a);
    assert_eq!(weights(&a), weights(&teacher));
    let scores = Scores::random(&config, 4);
    let plan = select(&config, &small(&config), &scores, Channels::PerHead).unwrap();
    prune(&teacher, &plan, None, &a);
    prune(&teacher, &plan, None, &b);
    assert_eq!(weights(&a), weights(&b));
    assert!(weights(&a).len() < weights(&teacher).len());
    let (student, _) = read(&a);
    prune(&a, &PrunePlan::everything(&student), None, &b);
    assert_eq!(weights(&a), weights(&b));
}

/// Every set in an order of its own, heads inside their groups.
fn shuffled(config: &Config) -> PrunePlan {
    let mut plan = PrunePlan::everything(config);
    let turn = |list: &mut [usize], by: usize| {
        let by = by % list.len();
        list.rotate_left(by);
    };
    turn(&mut plan.hidden, 5);
    for layer in &mut plan.layers {
        match layer {
            LayerPlan::Mamba { layer, heads, channels } => {
                let groups = config.layers[*layer].as_mamba2().unwrap().n_groups;
                let part = heads.len() / groups;
                heads.chunks_mut(part).for_each(|group| group.reverse());
                channels.iter_mut().enumerate().for_each(|(i, kept)| turn(kept, i + 1));
            }
            LayerPlan::Attention { layer, heads } => {
                let groups = config.layers[*layer].as_attention().unwrap().num_kv_heads;
                let part = heads.len() / groups;
                heads.chunks_mut(part).for_each(|group| group.reverse());
            }
            LayerPlan::Mlp { neurons, .. } => turn(neurons, 3),
        }
    }
    plan
}

#[test]
fn an_order_inside_groups_heads_and_layers_changes_no_logit() {
    let (config, dir) = (config(), tempfile::tempdir().unwrap());
    let teacher = write(&dir.path().join("t"), &config, &parameters(&config, 2));
    let sorted = dir.path().join("sorted");
    prune(&teacher, &shuffled(&config), None, &sorted);
    assert_ne!(weights(&sorted), weights(&teacher));
    let documents = documents(&config, 3);
    let error = relative_error(&logits(&sorted, &documents), &logits(&teacher, &documents));
    assert!(error < 1e-5, "{error}");
}

/// Sets the channels that `plan` drops to zero, at the place where they leave the teacher.
fn masked(config: &Config, values: &[f32], plan: &PrunePlan) -> Vec<f32> {
    let (layout, mut values) = (Layout::new(config), values.to_vec());
    for slot in layout.slots() {
        let (spec, tensor) = (&slot.spec, &mut values[slot.range.clone()]);
        let cols = spec.row_len();
        let kept = |set: &[usize], at: usize| set.contains(&at);
        let layer = spec.layer.map(|at| &plan.layers[at]);
        match spec.role {
            // Residual channels: nothing writes them.
            Role::Embedding => {
                let dropped = |i: &usize| !kept(&plan.hidden, i % cols);
                (0..tensor.len()).filter(dropped).for_each(|i| tensor[i] = 0.0);
            }
            Role::OutProj | Role::OProj | Role::DownProj => {
                let inner = mixed(layer.unwrap(), config);
                for i in 0..tensor.len() {
                    if !kept(&plan.hidden, i / cols) || !kept(&inner, i % cols) {
                        tensor[i] = 0.0;
                    }
                }
            }
            // A gate of zero: the channel adds nothing to the gated norm's denominator.
            Role::InProj => {
                let inner = mixed(layer.unwrap(), config);
                let all = config.layers[spec.layer.unwrap()].as_mamba2().unwrap().d_inner();
                for row in (0..all).filter(|row| !kept(&inner, *row)) {
                    tensor[row * cols..(row + 1) * cols].fill(0.0);
                }
            }
            _ => {}
        }
    }
    values
}

#[test]
fn a_slice_is_the_masked_teacher_but_for_the_norms_denominators() {
    let (config, dir) = (config(), tempfile::tempdir().unwrap());
    let scores = Scores::random(&config, 9);
    let full = Target::full(&config);
    let target = Target { layers: full.layers.clone(), ..small(&config) };
    let plan = select(&config, &target, &scores, Channels::PerHead).unwrap();
    let teacher =
        write(&dir.path().join("t"), &config, &masked(&config, &parameters(&config, 3), &plan));
    let slice = dir.path().join("s");
    prune(&teacher, &plan, None, &slice);
    let (student, mut values) = read(&slice);
    // A mean over fewer channels, of which the others were zero, is larger.
    let share = |kept: usize, all: usize| (all as f32 / kept as f32).sqrt();
    let layout = Layout::new(&student);
    for slot in layout.slots() {
        let inner = target.mamba_num_heads * target.mamba_head_dim;
        let whole = full.mamba_num_heads * full.mamba_head_dim;
        let factor = match slot.spec.role {
            Role::BlockNorm | Role::FinalNorm => share(target.hidden_size, full.hidden_size),
            Role::GatedNorm => share(inner, whole),
            _ => 1.0,
        };
        values[slot.range.clone()].iter_mut().for_each(|v| *v *= factor);
    }
    let scaled = write(&dir.path().join("scaled"), &student, &values);
    let documents = documents(&config, 3);
    let (of_teacher, of_slice) = (logits(&teacher, &documents), logits(&scaled, &documents));
    // The norms' epsilon is the whole difference.
    let error = relative_error(&of_slice, &of_teacher);
    assert!(error < 2e-3, "{error}");
    assert!(relative_error(&logits(&slice, &documents), &of_teacher) > 10.0 * error);
}

#[test]
fn every_tensor_of_a_large_model_has_axes_of_the_students_shape() {
    let teacher = preset("nano2-12b").unwrap();
    let full = Target::full(&teacher);
    let target = Target {
        layers: full.layers[6..].to_vec(),
        hidden_size: 4480,
        intermediate_size: 15680,
        mamba_num_heads: 112,
        mamba_head_dim: 72,
        num_attention_heads: 32,
    };
    let plan = select(&teacher, &target, &Scores::random(&teacher, 0), Channels::PerHead).unwrap();
    let student = target.config(&teacher).unwrap();
    let old = tensor_specs(&teacher);
    for spec in tensor_specs(&student) {
        let layer = spec.layer.map(|at| plan.layers[at].layer());
        let from = old.iter().find(|o| (o.role, o.layer) == (spec.role, layer)).unwrap();
        let axes = Axes::of(&spec, &plan, &teacher);
        let len = |set: &Option<Vec<usize>>, all: usize| set.as_ref().map_or(all, Vec::len);
        assert_eq!(len(&axes.rows, from.shape[0]), spec.shape[0], "{}", spec.name);
        if spec.is_matrix() {
            assert_eq!(len(&axes.cols, from.row_len()), spec.row_len(), "{}", spec.name);
        }
        let inside = |set: &Option<Vec<usize>>, all: usize| set.iter().flatten().all(|i| *i < all);
        assert!(inside(&axes.rows, from.shape[0]) && inside(&axes.cols, from.row_len()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    /// Bytes on disk are those that the memory model counts.
    #[test]
    fn bytes_are_the_analytic_ones(seed in any::<u64>(), hidden in 8usize..64, drop in 0usize..4) {
        let (config, dir) = (config(), tempfile::tempdir().unwrap());
        let teacher = write(&dir.path().join("t"), &config, &parameters(&config, seed));
        let full = Target::full(&config);
        let target = Target {
            layers: full.layers[drop..].to_vec(),
            hidden_size: hidden.min(full.hidden_size),
            ..small(&config)
        };
        let plan = select(&config, &target, &Scores::random(&config, seed), Channels::Shared);
        let out = dir.path().join("s");
        prune(&teacher, &plan.unwrap(), None, &out);
        let checkpoint = Checkpoint::open(&out).unwrap();
        let bytes: usize = checkpoint.tensors().map(|info| info.byte_len().unwrap()).sum();
        let student = target.config(&config).unwrap();
        prop_assert_eq!(bytes as u64, WeightFormat::stored(DType::F32).weight_bytes(&student));
    }
}

#[test]
fn what_is_worth_nothing_goes_first_and_costs_nothing() {
    let (config, dir) = (config(), tempfile::tempdir().unwrap());
    let mut values = parameters(&config, 5);
    let dead = |at: usize| at.is_multiple_of(3);
    for slot in Layout::new(&config).slots() {
        if slot.spec.role == Role::DownProj {
            let (cols, tensor) = (slot.spec.row_len(), &mut values[slot.range.clone()]);
            (0..tensor.len()).filter(|i| dead(i % cols)).for_each(|i| tensor[i] = 0.0);
        }
    }
    let teacher = write(&dir.path().join("t"), &config, &values);
    let documents = documents(&config, 4);
    let model = hybra_model::NemotronH::open(&teacher).unwrap();
    let moments = Moments::collect(&cpu(2), &model, &documents, false, &mut |_| {}).unwrap();
    let full = Target::full(&config);
    let alive = (0..full.intermediate_size).filter(|at| !dead(*at)).count();
    let target = Target { intermediate_size: alive, ..full };
    let checkpoint = Checkpoint::open(&teacher).unwrap();
    let opened = Teacher::new(&checkpoint).unwrap();
    let energy = scores(Method::Energy, &opened, Some(&moments)).unwrap();
    let plan = select(&config, &target, &energy, Channels::PerHead).unwrap();
    let out = dir.path().join("s");
    prune(&teacher, &plan, None, &out);
    let error = relative_error(&logits(&out, &documents), &logits(&teacher, &documents));
    assert!(error < 1e-6, "{error}");
    // The published scores do not see down_proj.
    let act = scores(Method::ActL2, &opened, Some(&moments)).unwrap();
    let other = select(&config, &target, &act, Channels::PerHead).unwrap();
    assert_ne!(other.layers, plan.layers);
    assert!(scores(Method::Energy, &opened, None).unwrap_err().to_string().contains("importance"));
}

/// Σ over rows of (w′x − wx)² over the calibration inputs, from their Gram matrix.
fn calibration_error(student: &[f32], teacher: &[f32], axes: &Axes, gram: &[f64]) -> f64 {
    let (cols, width) = (axes.cols.as_ref().unwrap(), (gram.len() as f64).sqrt() as usize);
    let rows = axes.rows.clone().unwrap_or_else(|| (0..teacher.len() / width).collect());
    let mut error = 0.0;
    for (at, &row) in rows.iter().enumerate() {
        let mut delta: Vec<f64> =
            teacher[row * width..][..width].iter().map(|w| -f64::from(*w)).collect();
        for (i, &col) in cols.iter().enumerate() {
            delta[col] += f64::from(student[at * cols.len() + i]);
        }
        for (i, a) in delta.iter().enumerate() {
            error +=
                a * delta.iter().enumerate().map(|(j, b)| gram[i * width + j] * b).sum::<f64>();
        }
    }
    error
}

#[test]
fn least_squares_never_err_more_than_the_slice() {
    let (config, dir) = (config(), tempfile::tempdir().unwrap());
    let teacher = write(&dir.path().join("t"), &config, &parameters(&config, 6));
    let documents = documents(&config, 8);
    let model = hybra_model::NemotronH::open(&teacher).unwrap();
    let moments = Moments::collect(&cpu(2), &model, &documents, true, &mut |_| {}).unwrap();
    let scores = Scores::act_l2(&config, &moments);
    let plan = select(&config, &small(&config), &scores, Channels::PerHead).unwrap();
    let (plain, fixed) = (dir.path().join("plain"), dir.path().join("fixed"));
    prune(&teacher, &plan, None, &plain);
    let (_, old) = read(&teacher);
    let (student, sliced) = read(&plain);
    let (old_layout, layout) = (Layout::new(&config), Layout::new(&student));
    for ridge in [1e-6, 1e-2, 10.0] {
        let fix = Compensation { moments: &moments, norms: true, ridge: Some(ridge) };
        prune(&teacher, &plan, Some(&fix), &fixed);
        let (_, repaired) = read(&fixed);
        let mut better = 0;
        for slot in layout.slots().iter().filter(|slot| slot.spec.is_matrix()) {
            let spec = &slot.spec;
            let layer = spec.layer.map(|at| plan.layers[at].layer());
            let from = old_layout.slots().iter();
            let from = from.clone().find(|o| (o.spec.role, o.spec.layer) == (spec.role, layer));
            let from = &old[from.unwrap().range.clone()];
            let gram = match (spec.role, layer) {
                (Role::Embedding, _) => continue,
                (Role::OutProj | Role::OProj | Role::DownProj, Some(layer)) => {
                    &moments.layers[layer].mixed.gram
                }
                (_, Some(layer)) => &moments.layers[layer].normed.gram,
                (_, None) => &moments.head.gram,
            };
            let axes = Axes::of(spec, &plan, &config);
            let error =
                |values: &[f32]| calibration_error(&values[slot.range.clone()], from, &axes, gram);
            let (slice, repair) = (error(&sliced), error(&repaired));
            assert!(repair <= slice * (1.0 + 1e-5), "{}: {repair} > {slice}", spec.name);
            better += usize::from(repair < 0.9 * slice);
        }
        assert!(better > 0 || ridge > 1.0, "λ = {ridge}");
    }
    // With everything kept there is nothing to repair, and W comes back.
    let fix = Compensation { moments: &moments, norms: true, ridge: Some(1e-3) };
    prune(&teacher, &PrunePlan::everything(&config), Some(&fix), &fixed);
    assert_eq!(weights(&fixed), weights(&teacher));
}
