//! Distillation: a student learns the next-token distributions of a frozen teacher.
//!
//! The loss of a step is the mean over counted tokens of `τ²·KL`, forward `KL(teacher ‖ student)` or
//! reverse, at temperature τ; the T² keeps gradients of the same size for every τ. Counted are all
//! tokens that another one of their document follows, or those that SFT would learn. Teacher and
//! student share the vocabulary and nothing else: depth and widths may differ.
//!
//! Sources: Hinton et al. 2015; Muralidharan et al. 2024 (Minitron: logits alone, no cross entropy).

use crate::data::TokenClass;
use crate::objective::{LossSums, Objective};
use hybra_kernels::ops::linear_cross_entropy::HeadGradients;
use hybra_kernels::ops::linear_kl_div::{Direction, KlOptions, Teacher, linear_kl_div};
use hybra_kernels::{Cpu, MatMut, MatRef};
use hybra_model::training::{PackedBatch, SoftLabels, Tape, Trainable};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// `[distil]` of a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistilConfig {
    /// The teacher's directory; with a cache it is not run, but must be the cache's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<PathBuf>,
    /// The teacher's answers, from `hybra train cache`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
    /// τ.
    #[serde(default = "one")]
    pub temperature: f32,
    /// Of the divergence.
    #[serde(default)]
    pub direction: KlDirection,
    /// Which tokens count.
    #[serde(default)]
    pub tokens: CountedTokens,
}

fn one() -> f32 {
    1.0
}

/// Which distribution the mean is taken over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlDirection {
    /// The teacher's: the student covers all that the teacher does.
    #[default]
    Forward,
    /// The student's: it does nothing that the teacher does not.
    Reverse,
}

/// Which tokens count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CountedTokens {
    /// All that another token of the document follows.
    #[default]
    All,
    /// Those before a token that SFT would learn.
    Learned,
}

impl DistilConfig {
    /// Key, what would do, and what it is, if a value is out of range.
    pub(crate) fn defect(&self) -> Option<(&'static str, &'static str, String)> {
        if self.teacher.is_none() && self.cache.is_none() {
            return Some(("teacher", "a directory (or `cache`)", "neither".to_owned()));
        }
        let range = 0.01..=100.0;
        let wrong = !range.contains(&self.temperature);
        wrong.then(|| ("temperature", "0.01 to 100", self.temperature.to_string()))
    }

    fn weights(&self, batch: &PackedBatch) -> Vec<f32> {
        match self.tokens {
            CountedTokens::All => batch.followed(),
            CountedTokens::Learned => batch.weights.clone(),
        }
    }
}

/// A model and its weights.
pub struct Weighted {
    /// The shape.
    pub model: Trainable,
    /// Flat, in layout order.
    pub parameters: Vec<f32>,
}

/// The loss of a student.
pub struct Distillation {
    student: Trainable,
    tape: Tape,
    /// None where batches carry its answers.
    teacher: Option<Weighted>,
    teacher_tape: Tape,
    config: DistilConfig,
    dnormed: Vec<f32>,
    losses: Vec<f32>,
}

impl Distillation {
    /// The objective for a student of this shape; without a teacher batches need soft labels.
    ///
    /// # Panics
    /// If the vocabularies have different sizes.
    #[must_use]
    pub fn new(student: Trainable, teacher: Option<Weighted>, config: DistilConfig) -> Self {
        let size = |model: &Trainable| model.config().vocab_size;
        let same = teacher.as_ref().is_none_or(|teacher| size(&teacher.model) == size(&student));
        assert!(same, "vocabulary of student and teacher");
        let (tape, teacher_tape) = (Tape::default(), Tape::default());
        let (dnormed, losses) = (Vec::new(), Vec::new());
        Self { student, tape, teacher, teacher_tape, config, dnormed, losses }
    }
}

impl Objective for Distillation {
    fn micro_batch(
        &mut self,
        cpu: &Cpu,
        parameters: &[f32],
        batch: &PackedBatch,
        scale: f32,
        gradient: &mut [f32],
    ) -> LossSums {
        let (student, weights) = (&self.student, self.config.weights(batch));
        if let (Some(teacher), None) = (&self.teacher, &batch.soft_labels) {
            let tape = &mut self.teacher_tape;
            teacher.model.forward(cpu, &teacher.parameters, batch, &weights, tape);
        }
        student.forward(cpu, parameters, batch, &weights, &mut self.tape);
        let h = student.config().hidden_size;
        self.dnormed.resize(self.tape.normed().len(), 0.0);
        let g = HeadGradients {
            x: MatMut::new(&mut self.dnormed, h),
            w: student.head_gradient(gradient),
        };
        let options = options(&self.config, &weights, scale);
        let teacher = match (&batch.soft_labels, &self.teacher) {
            (Some(SoftLabels { k, ids, probs }), _) => Teacher::TopK { k: *k, ids, probs },
            (None, Some(teacher)) => logits(of(teacher, &self.teacher_tape)),
            (None, None) => panic!("a batch without a teacher's answers"),
        };
        let side = (&self.tape, student, parameters);
        let loss = kl(cpu, side, teacher, options, &mut self.losses, Some(g));
        student.backward(cpu, parameters, batch, &mut self.tape, &self.dnormed, gradient);
        let metrics = by_class(batch, &weights, &self.losses);
        LossSums { loss, weight: sum(&weights), metrics }
    }

    fn weight(&self, batch: &PackedBatch) -> f64 {
        sum(&self.config.weights(batch))
    }
}

/// How far a student is from its teacher: means over tokens, in nats.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Divergence {
    /// Forward KL per token, over all tokens that another one follows.
    pub kl: f64,
    /// Of each class that occurs.
    pub by_class: Vec<(&'static str, f64)>,
    /// Tokens counted.
    pub tokens: u64,
}

/// Forward KL of a student from its teacher at temperature 1.
#[must_use]
pub fn divergence(
    cpu: &Cpu,
    teacher: &Weighted,
    student: &Weighted,
    batches: &[PackedBatch],
) -> Divergence {
    let (mut tapes, mut losses) = ([Tape::default(), Tape::default()], Vec::new());
    let (mut total, mut tokens) = (0.0, 0.0);
    let mut classes = [(0.0, 0.0); TokenClass::ALL.len()];
    let config = DistilConfig {
        teacher: None,
        cache: None,
        temperature: 1.0,
        direction: KlDirection::Forward,
        tokens: CountedTokens::All,
    };
    for batch in batches {
        let weights = batch.followed();
        for (side, tape) in [student, teacher].into_iter().zip(&mut tapes) {
            side.model.forward(cpu, &side.parameters, batch, &weights, tape);
        }
        let (side, teacher) = (of(student, &tapes[0]), logits(of(teacher, &tapes[1])));
        total += kl(cpu, side, teacher, options(&config, &weights, 1.0), &mut losses, None);
        tokens += sum(&weights);
        for (sums, (_, loss, count)) in classes.iter_mut().zip(by_class(batch, &weights, &losses)) {
            *sums = (sums.0 + loss, sums.1 + count);
        }
    }
    let class = |(class, (loss, count)): (&TokenClass, (f64, f64))| (class.name(), loss / count);
    let occurs = |(_, (_, count)): &(&TokenClass, (f64, f64))| *count > 0.0;
    let by_class = TokenClass::ALL.iter().zip(classes).filter(occurs).map(class).collect();
    Divergence { kl: total / f64::max(tokens, 1.0), by_class, tokens: tokens as u64 }
}

/// The output side of a model after a forward pass.
type Side<'a> = (&'a Tape, &'a Trainable, &'a [f32]);

fn of<'a>(side: &'a Weighted, tape: &'a Tape) -> Side<'a> {
    (tape, &side.model, &side.parameters)
}

fn logits((tape, model, parameters): Side<'_>) -> Teacher<'_> {
    let x = MatRef::new(tape.normed(), model.config().hidden_size);
    Teacher::Logits { x, w: model.head(parameters) }
}

fn options<'a>(config: &DistilConfig, weights: &'a [f32], scale: f32) -> KlOptions<'a> {
    let direction = match config.direction {
        KlDirection::Forward => Direction::Forward,
        KlDirection::Reverse => Direction::Reverse,
    };
    KlOptions { weights, temperature: config.temperature, direction, scale }
}

/// Σ weight·loss of student and teacher, and each token's loss (0 where the weight is).
fn kl(
    cpu: &Cpu,
    student: Side,
    teacher: Teacher,
    options: KlOptions,
    losses: &mut Vec<f32>,
    gradients: Option<HeadGradients>,
) -> f64 {
    losses.clear();
    losses.resize(options.weights.len(), 0.0);
    let x = MatRef::new(student.0.normed(), student.1.config().hidden_size);
    let w = student.1.head(student.2);
    linear_kl_div(cpu, x, w, teacher, options, losses, gradients)
}

/// Σ loss and count of each class, under the names of the log.
fn by_class(batch: &PackedBatch, weights: &[f32], losses: &[f32]) -> Vec<(&'static str, f64, f64)> {
    const NAMES: [&str; TokenClass::ALL.len()] =
        ["kl_prompt", "kl_thinking", "kl_answer", "kl_tool"];
    let mut sums: Vec<_> = NAMES.iter().map(|&name| (name, 0.0, 0.0)).collect();
    let tokens = batch.classes.iter().zip(weights).zip(losses);
    for ((&class, &weight), &loss) in tokens.filter(|((_, weight), _)| **weight != 0.0) {
        let (_, total, count) = &mut sums[usize::from(class)];
        *total += f64::from(weight) * f64::from(loss);
        *count += f64::from(weight);
    }
    sums
}

fn sum(weights: &[f32]) -> f64 {
    weights.iter().map(|&weight| f64::from(weight)).sum()
}
