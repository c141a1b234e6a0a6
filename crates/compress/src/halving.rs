//! Successive halving: many shapes trained a little, the better ones trained more.
//!
//! Who comes on is decided by accuracy of generated reasoning, then by divergence: divergence alone
//! misranks, and a ranking before any training flips. How a shape is scored is the caller's.

use crate::target::Target;
use serde::{Deserialize, Serialize};

/// One of `[[rungs]]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rung {
    /// Shapes that are trained.
    pub candidates: usize,
    /// Steps of distillation.
    pub steps: u64,
}

/// A shape and what is known of it without training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The shape.
    pub target: Target,
    /// Bytes at the budget's context and batch.
    pub bytes: u64,
    /// Parameters.
    pub parameters: u64,
    /// By the surrogate.
    pub predicted: f64,
}

/// A shape to be trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Names it in files: rung and hash of the shape.
    pub id: String,
    /// From 0.
    pub rung: usize,
    /// Steps of distillation.
    pub steps: u64,
    /// The shape.
    pub candidate: Candidate,
}

/// What training made of a shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Mean over tasks and budgets, 0 to 1.
    pub accuracy: f64,
    /// Divergence from the teacher, nats per token.
    pub kl: f64,
    /// Of generation, measured.
    pub tokens_per_second: f64,
}

/// A trial with its score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// What was trained.
    pub trial: Trial,
    /// What came of it.
    pub score: Score,
    /// Whether it went on to the next rung, or, in the last one, won.
    pub promoted: bool,
}

/// Runs the rungs; `candidates` are in the order of preference, and `evaluate` scores the trials of
/// a rung in their order. The result holds every trial, rung by rung, the best of a rung first.
///
/// # Errors
/// Those of `evaluate`.
pub fn halve<E>(
    candidates: &[Candidate],
    rungs: &[Rung],
    evaluate: &mut dyn FnMut(&[Trial]) -> Result<Vec<Score>, E>,
) -> Result<Vec<Scored>, E> {
    let mut going = candidates.to_vec();
    let mut all = Vec::new();
    for (rung, &Rung { candidates, steps }) in rungs.iter().enumerate() {
        going.truncate(candidates);
        let trial = |candidate: &Candidate| {
            let json = serde_json::to_string(&candidate.target).expect("numbers");
            let hash = blake3::hash(json.as_bytes()).to_hex();
            let id = format!("rung{rung}-{}", &hash[..10]);
            Trial { id, rung, steps, candidate: candidate.clone() }
        };
        let trials: Vec<Trial> = going.iter().map(trial).collect();
        let mut scored: Vec<(Trial, Score)> =
            trials.iter().cloned().zip(evaluate(&trials)?).collect();
        scored.sort_by(|(_, a), (_, b)| {
            b.accuracy.total_cmp(&a.accuracy).then(a.kl.total_cmp(&b.kl))
        });
        let next = rungs.get(rung + 1).map_or(1, |rung| rung.candidates);
        going = scored.iter().map(|(trial, _)| trial.candidate.clone()).collect();
        let scored = scored.into_iter().enumerate();
        all.extend(scored.map(|(at, (trial, score))| Scored { trial, score, promoted: at < next }));
    }
    Ok(all)
}

/// Which of the points, each a list of qualities where more is better, no other point beats: at
/// least as good in all and better in one.
#[must_use]
pub fn pareto_front(points: &[Vec<f64>]) -> Vec<bool> {
    let beats = |a: &[f64], b: &[f64]| {
        a.iter().zip(b).all(|(a, b)| a >= b) && a.iter().zip(b).any(|(a, b)| a > b)
    };
    points.iter().map(|point| !points.iter().any(|other| beats(other, point))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn candidate(hidden_size: usize) -> Candidate {
        let target = Target {
            layers: vec![0],
            hidden_size,
            intermediate_size: 1,
            mamba_num_heads: 1,
            mamba_head_dim: 1,
            num_attention_heads: 1,
        };
        Candidate { target, bytes: 1, parameters: 1, predicted: 0.0 }
    }

    #[test]
    fn the_best_after_training_wins_whatever_the_order_before() {
        let candidates: Vec<Candidate> = (1..=8).map(candidate).collect();
        let rungs =
            [(6, 10), (3, 40), (1, 160)].map(|(candidates, steps)| Rung { candidates, steps });
        let mut seen = Vec::new();
        let mut evaluate = |trials: &[Trial]| {
            seen.push(trials.iter().map(|t| t.candidate.target.hidden_size).collect::<Vec<_>>());
            // More training moves the optimum from 3 to 5.
            let best = if trials[0].rung == 0 { 3.4 } else { 4.6 };
            let score = |trial: &Trial| {
                let away = (trial.candidate.target.hidden_size as f64 - best).abs();
                Score { accuracy: (10.0 - away).floor(), kl: away, tokens_per_second: 1.0 }
            };
            Ok::<_, Infallible>(trials.iter().map(score).collect())
        };
        let all = halve(&candidates, &rungs, &mut evaluate).unwrap();
        assert_eq!(seen[0], [1, 2, 3, 4, 5, 6]);
        assert_eq!(seen[1].len(), 3);
        let winner = all.last().unwrap();
        assert!(winner.promoted && winner.trial.rung == 2 && winner.trial.steps == 160);
        assert_eq!(seen[2], [winner.trial.candidate.target.hidden_size]);
        assert_eq!(all.len(), 6 + 3 + 1);
        assert_eq!(all.iter().filter(|scored| scored.promoted).count(), 3 + 1 + 1);
        let ids: std::collections::HashSet<_> = all.iter().map(|s| &s.trial.id).collect();
        assert_eq!(ids.len(), all.len());
    }

    #[test]
    fn a_front_holds_what_nothing_beats() {
        let points = [[1.0, 5.0], [2.0, 4.0], [2.0, 4.0], [1.0, 4.0], [0.0, 6.0]];
        let front = pareto_front(&points.map(Vec::from));
        assert_eq!(front, [true, true, true, false, true]);
    }
}
