//! The sampler: against a naive full-sort implementation, against exact distributions, and by hand.

use hybra_engine::{
    Allowed, Draw, SampleInput, Sampler, SamplingError, SamplingParams, TokenHistory,
};
use proptest::prelude::*;

fn draw_at(
    sampler: &mut Sampler,
    logits: &[f32],
    params: &SamplingParams,
    seed: u64,
    position: u64,
) -> Result<u32, SamplingError> {
    let history = TokenHistory::default();
    let draw = Draw { seed, position };
    sampler.sample(
        logits,
        SampleInput { params, history: &history, allowed: None, forbidden: &[], draw },
    )
}

/// Kept tokens in rank order with their weights: everything sorted, nothing clever.
fn naive_kept(logits: &[f32], params: &SamplingParams) -> Vec<(u32, f32)> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scale = 1.0 / params.temperature;
    let mut kept: Vec<(u32, f32)> = logits
        .iter()
        .enumerate()
        .map(|(i, &l)| (i as u32, ((l - max) * scale).exp()))
        .filter(|&(_, w)| w >= params.min_p)
        .collect();
    kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if params.top_k > 0 {
        kept.truncate(params.top_k as usize);
    }
    let total: f64 = kept.iter().map(|k| f64::from(k.1)).sum();
    let mut before = 0.0;
    kept.retain(|k| {
        let keep = params.top_p >= 1.0 || before < f64::from(params.top_p) * total;
        before += f64::from(k.1);
        keep
    });
    kept
}

fn naive_sample(logits: &[f32], params: &SamplingParams, draw: Draw) -> u32 {
    let mut kept = naive_kept(logits, params);
    if params.top_k == 0 && params.top_p >= 1.0 {
        kept.sort_by_key(|k| k.0);
    }
    let total: f64 = kept.iter().map(|k| f64::from(k.1)).sum();
    let mut mass = 0.0;
    for &(token, weight) in &kept {
        mass += f64::from(weight);
        if mass > draw.uniform() * total {
            return token;
        }
    }
    panic!("no token chosen of {}", kept.len())
}

fn params_strategy() -> impl Strategy<Value = SamplingParams> {
    let top_k = prop_oneof![Just(0i64), 2..8i64, 60..400i64, Just(100_000)];
    let top_p = prop_oneof![Just(1.0f32), 0.01..0.999f32];
    let min_p = prop_oneof![Just(0.0f32), 0.0..0.5f32];
    (0.05..4.0f32, top_k, top_p, min_p).prop_map(|(temperature, top_k, top_p, min_p)| {
        SamplingParams { temperature, top_k, top_p, min_p, ..Default::default() }
    })
}

/// Rows with many ties (quantized), with a spread from flat to sharp, and masked tokens.
fn logits_strategy() -> impl Strategy<Value = Vec<f32>> {
    let value = prop_oneof![8 => -40..40i32, 1 => Just(i32::MIN)];
    (prop::collection::vec(value, 1..700), 0.01..1.0f32).prop_map(|(values, step)| {
        let mut row: Vec<f32> = values
            .iter()
            .map(|&v| if v == i32::MIN { f32::NEG_INFINITY } else { v as f32 * step })
            .collect();
        row[0] = 0.0;
        row
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn equals_a_full_sort(logits in logits_strategy(), params in params_strategy(), seed: u64) {
        let mut sampler = Sampler::new();
        for position in 0..8 {
            let expected = naive_sample(&logits, &params, Draw { seed, position });
            let found = draw_at(&mut sampler, &logits, &params, seed, position).unwrap();
            prop_assert_eq!(found, expected, "{:?} {:?}", params, logits);
        }
    }

    #[test]
    fn logprobs_equal_a_full_sort(logits in logits_strategy(), n in 0..21usize) {
        let exact: Vec<f64> = {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = logits.iter().map(|&l| (f64::from(l) - f64::from(max)).exp()).sum();
            logits.iter().map(|&l| f64::from(l) - f64::from(max) - sum.ln()).collect()
        };
        let mut ranked: Vec<usize> =
            (0..logits.len()).filter(|&i| logits[i] > f32::NEG_INFINITY).collect();
        ranked.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        ranked.truncate(n);
        let mut top = Vec::new();
        let chosen = Sampler::new().logprobs(&logits, 0, n, &mut top).unwrap();
        prop_assert!((f64::from(chosen) - exact[0]).abs() < 1e-5);
        let ids: Vec<usize> = top.iter().map(|t| t.token as usize).collect();
        prop_assert_eq!(ids, ranked);
        for entry in top {
            prop_assert!((f64::from(entry.logprob) - exact[entry.token as usize]).abs() < 1e-5);
        }
    }
}

/// Pearson's statistic of `n` draws against the exact distribution of the kept tokens.
fn check_distribution(logits: &[f32], params: &SamplingParams, seed: u64) {
    let kept = naive_kept(logits, params);
    let total: f64 = kept.iter().map(|k| f64::from(k.1)).sum();
    let n = 40_000u32;
    let mut counts = vec![0u32; logits.len()];
    let mut sampler = Sampler::new();
    for position in 0..u64::from(n) {
        counts[draw_at(&mut sampler, logits, params, seed, position).unwrap() as usize] += 1;
    }
    let mut statistic = 0.0;
    for &(token, weight) in &kept {
        let expected = f64::from(weight) / total * f64::from(n);
        assert!(expected > 5.0, "the test needs cells that fill");
        statistic += (f64::from(counts[token as usize]) - expected).powi(2) / expected;
        counts[token as usize] = 0;
    }
    assert_eq!(counts.iter().sum::<u32>(), 0, "only kept tokens are drawn");
    // Chi-square with d degrees of freedom: mean d, variance 2d; five standard deviations.
    let d = (kept.len() - 1) as f64;
    assert!(statistic < d + 5.0 * (2.0 * d).sqrt() + 5.0, "{statistic} at {d} degrees");
}

#[test]
fn draws_follow_the_distribution() {
    let logits: Vec<f32> = (0..40).map(|i| ((i * 7) % 23) as f32 * 0.15).collect();
    let base = SamplingParams::default();
    for (seed, params) in [
        base.clone(),
        SamplingParams { temperature: 0.6, ..base.clone() },
        SamplingParams { temperature: 3.0, ..base.clone() },
        SamplingParams { top_k: 5, ..base.clone() },
        SamplingParams { top_p: 0.7, ..base.clone() },
        SamplingParams { min_p: 0.3, ..base.clone() },
        SamplingParams { temperature: 0.8, top_k: 12, top_p: 0.9, min_p: 0.1, ..base },
    ]
    .into_iter()
    .enumerate()
    {
        check_distribution(&logits, &params, seed as u64);
    }
}

#[test]
fn a_choice_depends_on_seed_and_position_only() {
    let logits: Vec<f32> = (0..1000).map(|i| ((i * 37) % 101) as f32 * 0.05).collect();
    let params = SamplingParams::default();
    let mut sampler = Sampler::new();
    let forward: Vec<u32> =
        (0..50).map(|p| draw_at(&mut sampler, &logits, &params, 7, p).unwrap()).collect();
    let backward: Vec<u32> = (0..50)
        .rev()
        .map(|p| draw_at(&mut Sampler::new(), &logits, &params, 7, p).unwrap())
        .collect();
    assert!(forward.iter().eq(backward.iter().rev()));
    let other: Vec<u32> =
        (0..50).map(|p| draw_at(&mut sampler, &logits, &params, 8, p).unwrap()).collect();
    assert_ne!(forward, other);
    // ChaCha8, key = seed (little endian), stream = position: the numbers are part of the contract.
    let uniform = |seed, position| Draw { seed, position }.uniform();
    assert_eq!(uniform(0, 0), (0xd640_5f89_2fef_003eu64 >> 11) as f64 / (1u64 << 53) as f64);
    assert_ne!(uniform(1, 0), uniform(0, 1));
}

#[test]
fn ties_go_to_the_lowest_id() {
    let logits = [1.0, 3.0, 3.0, 2.0, 3.0];
    let mut sampler = Sampler::new();
    assert_eq!(draw_at(&mut sampler, &logits, &SamplingParams::greedy(), 0, 0), Ok(1));
    let top_two = SamplingParams { top_k: 2, ..Default::default() };
    // Half of the mass of three equal tokens is reached by the second one.
    let half = SamplingParams { top_p: 0.5, min_p: 0.9, ..Default::default() };
    for params in [top_two, half] {
        let drawn: std::collections::BTreeSet<u32> =
            (0..200).map(|p| draw_at(&mut sampler, &logits, &params, 1, p).unwrap()).collect();
        assert_eq!(Vec::from_iter(drawn), [1, 2], "{params:?}");
    }
    // Exact boundaries: half of four equal tokens is two of them; min-p 1 keeps all maxima.
    for (logits, params, kept) in [
        ([2.0; 4], SamplingParams { top_p: 0.5, ..Default::default() }, [0, 1]),
        ([2.0; 4], SamplingParams { top_p: 0.5, top_k: 4, ..Default::default() }, [0, 1]),
        ([1.0, 5.0, 5.0, 2.0], SamplingParams { min_p: 1.0, ..Default::default() }, [1, 2]),
    ] {
        let drawn: std::collections::BTreeSet<u32> =
            (0..200).map(|p| draw_at(&mut sampler, &logits, &params, 1, p).unwrap()).collect();
        assert_eq!(Vec::from_iter(drawn), kept, "{params:?}");
    }
    // More ties than the selection buffer holds.
    let flat = vec![0.5; 5000];
    let params = SamplingParams { top_k: 3, ..Default::default() };
    for position in 0..50 {
        assert!(draw_at(&mut sampler, &flat, &params, 1, position).unwrap() < 3);
    }
}

#[test]
fn extreme_temperatures() {
    let logits = [0.0, 1.0, 0.999, -1e30, f32::NEG_INFINITY];
    let mut sampler = Sampler::new();
    for temperature in [0.0, 1e-30, 1e-6, 2e-5] {
        let params = SamplingParams { temperature, ..Default::default() };
        for position in 0..20 {
            assert_eq!(draw_at(&mut sampler, &logits, &params, 3, position), Ok(1));
        }
    }
    let params = SamplingParams { temperature: 100.0, ..Default::default() };
    let mut counts = [0; 5];
    for position in 0..3000 {
        counts[draw_at(&mut sampler, &logits, &params, 3, position).unwrap() as usize] += 1;
    }
    assert!(counts[..3].iter().all(|&c| (900..1100).contains(&c)), "{counts:?}");
    assert_eq!(counts[3..], [0, 0]);
}

#[test]
fn processors_act_on_greedy_and_masks_hold() {
    let mut sampler = Sampler::new();
    let logits = [1.0, 5.0, 4.0, 3.0];
    let mut history = TokenHistory::new(&[1]);
    history.observe(2);
    let mut choose = |params: &SamplingParams, forbidden: &[&[u32]]| {
        let draw = Draw { seed: 0, position: 0 };
        let input = SampleInput { params, history: &history, allowed: None, forbidden, draw };
        sampler.sample(&logits, input)
    };
    let greedy = SamplingParams::greedy();
    assert_eq!(choose(&greedy, &[]), Ok(1));
    assert_eq!(choose(&greedy, &[&[1], &[2]]), Ok(3));
    assert_eq!(choose(&SamplingParams { repetition_penalty: 2.0, ..greedy.clone() }, &[]), Ok(3));
    assert_eq!(
        choose(&SamplingParams { logit_bias: vec![(0, 10.0)], ..greedy.clone() }, &[]),
        Ok(0)
    );
    // A bias does not lift a mask.
    let biased = SamplingParams { logit_bias: vec![(1, 100.0)], ..greedy.clone() };
    assert_eq!(choose(&biased, &[&[1]]), Ok(2));
    assert_eq!(
        choose(&greedy, &[&[0, 1, 2, 3]]),
        Err(SamplingError::NoCandidate { vocab_size: 4 })
    );
}

/// A constraint's mask against a filter by hand, for rows that do not end with a word.
#[test]
fn a_mask_leaves_what_it_names() {
    let mut sampler = Sampler::new();
    let (greedy, history) = (SamplingParams::greedy(), TokenHistory::default());
    for len in [1usize, 31, 32, 33, 64, 100, 200] {
        let logits: Vec<f32> = (0..len).map(|i| (i * 37 % 211) as f32).collect();
        for (mask, beside) in [
            (vec![u32::MAX; 7], vec![]),
            (vec![0, 0x8000_0001, u32::MAX, 0x0f0f], vec![]),
            (vec![0b10_1100; 2], vec![0]),
            (vec![], vec![0, len as u32 - 1]),
        ] {
            let allowed = Allowed { mask: &mask, beside: &beside };
            let kept = |i: &usize| allowed.has(*i as u32) || beside.contains(&(*i as u32));
            let best = (0..len).filter(kept).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
            let draw = Draw { seed: 0, position: 0 };
            let allowed = Some(allowed);
            let input =
                SampleInput { params: &greedy, history: &history, allowed, forbidden: &[], draw };
            let expected = best.map(|i| i as u32);
            assert_eq!(sampler.sample(&logits, input).ok(), expected, "{len}: {mask:x?}");
        }
    }
}

#[test]
fn defective_logits_are_an_error_of_the_sequence() {
    let mut sampler = Sampler::new();
    let params = SamplingParams::default();
    for bad in [f32::NAN, f32::INFINITY] {
        let mut logits = vec![0.0; 40];
        logits[33] = bad;
        let error = draw_at(&mut sampler, &logits, &params, 0, 0).unwrap_err();
        assert!(matches!(error, SamplingError::NotFinite { token: 33, .. }));
        assert!(sampler.logprobs(&logits, 0, 5, &mut Vec::new()).is_err());
    }
    let none = [f32::NEG_INFINITY; 4];
    assert_eq!(
        draw_at(&mut sampler, &none, &params, 0, 0),
        Err(SamplingError::NoCandidate { vocab_size: 4 })
    );
    // The sampler is as good as new afterwards.
    assert_eq!(draw_at(&mut sampler, &[0.0, 9.0], &SamplingParams::greedy(), 0, 0), Ok(1));
}

#[test]
fn large_vocabulary_top_p_is_exact() {
    // Flat rows make the nucleus large: the piecewise ranking runs many rounds.
    let logits: Vec<f32> =
        (0..131_072u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 20) as f32 * 1e-3).collect();
    let mut sampler = Sampler::new();
    for (top_p, top_k) in [(0.3, 0), (0.95, 0), (0.999, 0), (0.9, 50), (1.0, 1000)] {
        let params = SamplingParams { top_p, top_k, ..Default::default() };
        for position in 0..3 {
            let expected = naive_sample(&logits, &params, Draw { seed: 5, position });
            assert_eq!(draw_at(&mut sampler, &logits, &params, 5, position), Ok(expected));
        }
    }
}
