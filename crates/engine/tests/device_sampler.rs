//! Choosing from the largest logits of a row on a GPU gives the token of the whole row, or nothing:
//! random rows with many ties, random settings.

#[allow(dead_code)]
#[path = "../../cuda/tests/emulated/mod.rs"]
mod emulated;

use hybra_cuda::ops::sample::{RECORD_LEN, Record, reduce, reduce_scratch_len};
use hybra_cuda::{DeviceBuffer, Gpu};
use hybra_engine::{Allowed, Draw, SampleInput, Sampler, SamplingParams, TokenHistory};
use hybra_model::TopLogits;

/// Numbers that look random.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        self.0 >> 33
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn unit(&mut self) -> f32 {
        self.below(1 << 24) as f32 / (1 << 24) as f32
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// Steps of a random size, with a spread from flat to sharp; some tokens at −∞, rarely NaN.
    fn row(&mut self, vocab: usize) -> Vec<f32> {
        let (step, spread) = (self.pick(&[1e-7, 0.01, 0.3, 1.0]), self.pick(&[3, 40, 400]));
        let unsound = self.below(16) == 0;
        let value = |_| match self.below(200) {
            0 => f32::NEG_INFINITY,
            1 if unsound => f32::NAN,
            _ => (self.below(2 * spread) as f32 - spread as f32) * step,
        };
        (0..vocab).map(value).collect()
    }

    fn params(&mut self, family: usize) -> SamplingParams {
        let top_k = self.pick(&[1, 5, 40, 63, 64, 65, 1000]);
        let (top_p, min_p) = (0.01 + 0.98 * self.unit(), self.pick(&[0.02, 0.1, 0.5]));
        let temperature = self.pick(&[0.05, 0.3, 0.6, 1.0, 3.0]);
        let all = SamplingParams { temperature, ..SamplingParams::default() };
        match family {
            0 => SamplingParams { temperature: 0.0, ..all },
            1 => SamplingParams { top_k, ..all },
            2 => SamplingParams { top_p, ..all },
            3 => SamplingParams { min_p, ..all },
            4 => SamplingParams { top_k, top_p, min_p, ..all },
            5 => SamplingParams { top_p, min_p, ..all },
            6 => all,
            7 => SamplingParams { logit_bias: vec![(3, 2.0)], ..all },
            _ => SamplingParams { frequency_penalty: 0.5, top_k, ..all },
        }
    }
}

/// Rows on the device, and their records.
fn reduced(gpu: &Gpu, rows: &[f32], scales: &[u32]) -> (DeviceBuffer<f32>, Vec<u64>) {
    let (num, vocab) = (scales.len(), rows.len() / scales.len());
    let (logits, scales) = (gpu.upload_new(rows).unwrap(), gpu.upload_new(scales).unwrap());
    let mut records = gpu.alloc(num * RECORD_LEN).unwrap();
    let mut scratch = gpu.alloc(reduce_scratch_len(num, vocab)).unwrap();
    let (to, room) = (records.slice_mut(..), scratch.slice_mut(..));
    reduce(gpu, (logits.slice(..), vocab), scales.slice(..), to, room).unwrap();
    let records = gpu.to_vec(records.slice(..)).unwrap();
    (logits, records)
}

/// Forbidden tokens that are no candidates may hold most of the mass of which top-p takes a share.
#[test]
fn forbidden_tokens_outside_the_candidates_leave_top_p_open() {
    let Some(gpu) = emulated::gpu() else { return };
    let (vocab, mut sampler, history) = (700, Sampler::new(), TokenHistory::new(&[1]));
    let row: Vec<f32> = (0..vocab).map(|i| -1e-4 * i.min(100) as f32).collect();
    let (logits, records) = reduced(gpu, &row, &[1.0f32.to_bits()]);
    let top = TopLogits::new(gpu, Record::new(&records), logits.slice(..));
    let params = SamplingParams { temperature: 1.0, top_p: 0.05, ..SamplingParams::default() };
    let forbidden: Vec<u32> = (90..690).collect();
    for (forbidden, is_told) in [(&[][..], true), (&forbidden, false)] {
        for position in 0..20 {
            let draw = Draw { seed: 3, position };
            let forbidden: &[&[u32]] = &[forbidden];
            let input =
                SampleInput { params: &params, history: &history, allowed: None, forbidden, draw };
            let found = sampler.sample_top(&top, input);
            assert_eq!(found.is_some(), is_told);
            if let Some(found) = found {
                assert_eq!(Ok(found), sampler.sample(&row, input));
            }
        }
    }
}

#[test]
fn tokens_are_those_of_whole_rows() {
    let Some(gpu) = emulated::gpu() else { return };
    let (mut numbers, mut told) = (Numbers(7), [[0u32; 2]; 9]);
    let (mut sampler, mut whole_sampler) = (Sampler::new(), Sampler::new());
    let mut history = TokenHistory::new(&[1, 2, 3]);
    history.observe(5);
    for vocab in [50, 64, 65, 700] {
        const ROWS: usize = 150;
        let rows: Vec<Vec<f32>> = (0..ROWS).map(|_| numbers.row(vocab)).collect();
        let all: Vec<_> = (0..ROWS).map(|i| (i % 9, numbers.params(i % 9))).collect();
        let scale = |p: &SamplingParams| if p.is_greedy() { 1.0 } else { 1.0 / p.temperature };
        let scales: Vec<u32> = all.iter().map(|(_, p)| scale(p).to_bits()).collect();
        let (logits, records) = reduced(gpu, &rows.concat(), &scales);
        for (i, ((family, params), row)) in all.iter().zip(&rows).enumerate() {
            let record = Record::new(&records[i * RECORD_LEN..][..RECORD_LEN]);
            let top = TopLogits::new(gpu, record, logits.slice(i * vocab..(i + 1) * vocab));
            let mask: Vec<u32> = (0..vocab.div_ceil(32))
                .map(|_| (numbers.next() | numbers.next() << 16) as u32)
                .collect();
            let best = record.candidates().next().map_or(0, |(token, _)| token);
            let forbidden =
                [vec![], vec![best], vec![1, 2, 3, 7, 60]][numbers.below(3) as usize].clone();
            let forbidden: Vec<u32> =
                forbidden.into_iter().filter(|t| (*t as usize) < vocab).collect();
            let allowed = Allowed { mask: &mask, beside: &[2, 4] };
            let allowed = (numbers.below(3) == 0).then_some(allowed);
            for position in 0..12 {
                let input = SampleInput {
                    params,
                    history: &history,
                    allowed,
                    forbidden: &[&forbidden],
                    draw: Draw { seed: i as u64, position },
                };
                let found = sampler.sample_top(&top, input);
                let expected = whole_sampler.sample(row, input);
                told[*family][usize::from(found.is_some())] += 1;
                if let Some(found) = found {
                    assert_eq!(Ok(found), expected, "{vocab} {params:?} {forbidden:?} {row:?}");
                }
            }
            let (mut most, mut expected) = (Vec::new(), Vec::new());
            let n = numbers.below(21) as usize;
            if let Some(found) = sampler.logprobs_top(&top, best, n, &mut most) {
                let whole = whole_sampler.logprobs(row, best, n, &mut expected).unwrap();
                assert!((found - whole).abs() <= 1e-6 * whole.abs(), "{found} {whole}");
                let ids = |of: &[hybra_engine::TokenLogprob]| -> Vec<u32> {
                    of.iter().map(|entry| entry.token).collect()
                };
                assert_eq!(ids(&most), ids(&expected));
            }
            let mut fetched = Vec::new();
            top.fetch(&mut fetched).unwrap();
            assert!(fetched.iter().map(|v| v.to_bits()).eq(row.iter().map(|v| v.to_bits())));
        }
    }
    println!("not told and told, by family: {told:?}");
    let share =
        |family: usize| f64::from(told[family][1]) / f64::from(told[family][0] + told[family][1]);
    // What is not told of greedy rows is NaN, or a mask without a candidate.
    assert!(share(0) > 0.8 && share(1) > 0.4 && share(2) > 0.3 && share(4) > 0.4, "{told:?}");
    assert!(share(3) > 0.3 && share(5) > 0.3 && share(6) > 0.2, "{told:?}");
    assert_eq!([told[7][1], told[8][1]], [0; 2], "biases and penalties take whole rows");
}
