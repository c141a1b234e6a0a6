//! The gradient against central differences of the recurrence, token by token in f64.

use super::*;
use crate::Isa;
use crate::ops::ssd::SsdParams;
use crate::ops::testing::{
    assert_same_bits, central_differences, on_every_cpu, relative_error, values,
};

const EPS: f32 = 1e-5;

/// Sizes H, P, G, N; taps; documents; the constants and inputs in the order of `flat`.
struct Case {
    sizes: [usize; 4],
    taps: usize,
    documents: Vec<usize>,
    /// zxbcdt, conv weight, conv bias, A_log, D, dt_bias, norm weight.
    inputs: [Vec<f32>; 7],
    dout: Vec<f32>,
}

impl Case {
    fn new(sizes @ [h, p, g, n]: [usize; 4], taps: usize, documents: &[usize]) -> Self {
        let (inner, conv) = (h * p, h * p + 2 * g * n);
        let rows: usize = documents.iter().sum();
        let a_log = values(h, 4).iter().map(|v| v + 0.5).collect();
        let inputs = [
            values(rows * (inner + conv + h), 1).iter().map(|v| 2.0 * v).collect(),
            values(taps * conv, 2),
            values(conv, 3),
            a_log,
            values(h, 5),
            values(h, 6),
            values(inner, 7),
        ];
        Self { sizes, taps, documents: documents.to_vec(), inputs, dout: values(rows * inner, 8) }
    }

    /// The output, and the gradients with and without what the forward pass kept.
    fn run(&self, cpu: &Cpu, documents: &[&[usize]]) -> (Vec<f32>, [Vec<f32>; 2]) {
        let [num_heads, head_dim, n_groups, state_size] = self.sizes;
        let [wide, conv_weight, conv_bias, a_log, d, dt_bias, norm_weight] = &self.inputs;
        let a: Vec<f32> = a_log.iter().map(|v| -v.exp()).collect();
        let ssd = SsdParams {
            num_heads,
            head_dim,
            n_groups,
            state_size,
            a: &a,
            d,
            dt_bias,
            dt_limit: (0.0, f32::INFINITY),
        };
        let conv_bias_ = Some(conv_bias.as_slice());
        let p = MixerParams { ssd, conv_weight, conv_bias: conv_bias_, norm_weight, norm_eps: EPS };
        let (width, inner) = (ssd.inner() + ssd.conv_dim() + num_heads, ssd.inner());
        let (wide, dout) = (MatRef::new(wide, width), MatRef::new(&self.dout, inner));
        let mut out = vec![f32::NAN; self.dout.len()];
        let gradients = [true, false].map(|keep| {
            let mut all = self.inputs.each_ref().map(|v| vec![0.0; v.len()]);
            let [dwide, conv_weight, conv_bias, a_log, d, dt_bias, norm_weight] = &mut all;
            let mut g = MixerGradients { a_log, d, dt_bias, conv_weight, conv_bias, norm_weight };
            let (mut dwide, mut from) = (MatMut::new(dwide, width), 0);
            // Kept from batch to batch.
            let mut kept = KeptScan::default();
            for documents in documents {
                let rows = documents.iter().sum();
                let to = dwide.reborrow().rows_at(from, rows);
                let (wide, dout) = (wide.rows_at(from, rows), dout.rows_at(from, rows));
                let out = MatMut::new(&mut out, inner).rows_at(from, rows);
                mamba_split_conv1d_scan_kept(cpu, &p, wide, documents, &mut kept, out);
                if !keep {
                    kept.clear();
                }
                let g = &mut g;
                mamba_split_conv1d_scan_backward(cpu, &p, wide, documents, &kept, dout, to, g);
                from += rows;
            }
            all.concat()
        });
        (out, gradients)
    }

    /// `Σ dout · out`, by the recurrence.
    fn loss(&self, flat: &[f64]) -> f64 {
        let ([h, p, g, n], taps) = (self.sizes, self.taps);
        let (inner, conv) = (h * p, h * p + 2 * g * n);
        let mut rest = flat;
        let inputs = self.inputs.each_ref().map(|v| {
            let (mine, others) = rest.split_at(v.len());
            rest = others;
            mine
        });
        let [wide, conv_weight, conv_bias, a_log, d, dt_bias, norm_weight] = inputs;
        let silu = |v: f64| v / (1.0 + (-v).exp());
        let (mut loss, mut start) = (0.0, 0);
        for &len in &self.documents {
            let row = |t: usize| &wide[(start + t) * (inner + conv + h)..][..inner + conv + h];
            let mut state = vec![0.0; inner * n];
            for t in 0..len {
                let convolved = |c: usize| {
                    let tap = |k: usize| {
                        let at = (t + k + 1).checked_sub(taps);
                        at.map_or(0.0, |at| conv_weight[k * conv + c] * row(at)[inner + c])
                    };
                    silu(conv_bias[c] + (0..taps).map(tap).sum::<f64>())
                };
                let mut y = vec![0.0; inner];
                for head in 0..h {
                    let raw = row(t)[inner + conv + head] + dt_bias[head];
                    let delta = raw.max(0.0) + (-raw.abs()).exp().ln_1p();
                    let decay = (-delta * a_log[head].exp()).exp();
                    let b = inner + head / (h / g) * n;
                    for i in head * p..(head + 1) * p {
                        let x = convolved(i);
                        y[i] = d[head] * x;
                        for k in 0..n {
                            let s = &mut state[i * n + k];
                            *s = decay * *s + delta * x * convolved(b + k);
                            y[i] += *s * convolved(b + g * n + k);
                        }
                    }
                }
                for group in 0..g {
                    let columns = group * inner / g..(group + 1) * inner / g;
                    let u: Vec<f64> = columns.clone().map(|i| y[i] * silu(row(t)[i])).collect();
                    let mean = u.iter().map(|v| v * v).sum::<f64>() / u.len() as f64;
                    let scale = 1.0 / (mean + f64::from(EPS)).sqrt();
                    for (i, u) in columns.zip(u) {
                        let dout = f64::from(self.dout[(start + t) * inner + i]);
                        loss += dout * u * scale * norm_weight[i];
                    }
                }
            }
            start += len;
        }
        loss
    }

    fn check(&self) {
        let inputs = self.inputs.each_ref().map(|v| v.as_slice());
        let want = central_differences(&inputs, |flat| self.loss(flat));
        let exact: Vec<f64> = inputs.concat().into_iter().map(f64::from).collect();
        let loss = self.loss(&exact);
        for (isa, got) in on_every_cpu(|cpu| {
            let (out, [kept, again]) = self.run(cpu, &[&self.documents]);
            assert_same_bits(&again, &kept, "with and without what was kept");
            let products = out.iter().zip(&self.dout).map(|(a, b)| f64::from(*a) * f64::from(*b));
            let (sum, size) = products.fold((0.0, 0.0), |(sum, size), v| (sum + v, size + v.abs()));
            assert!((sum - loss).abs() < 1e-5 * size, "{} {sum} {loss}", cpu.isa());
            kept
        }) {
            let mut from = 0;
            for (i, input) in self.inputs.iter().enumerate() {
                let range = from..from + input.len();
                from = range.end;
                let error = relative_error(&got[range.clone()], &want[range]);
                assert!(error < 2e-5, "{isa} {:?} input {i}: {error:e}", self.sizes);
            }
        }
    }
}

#[test]
fn gradients_are_the_slopes_of_the_recurrence() {
    Case::new([2, 3, 1, 4], 4, &[7]).check();
    Case::new([4, 5, 2, 3], 2, &[3, 1, 5]).check();
    Case::new([2, 3, 1, 4], 1, &[7]).check();
    // Longer than a chunk of 32.
    Case::new([2, 2, 2, 2], 4, &[70, 2]).check();
    // Chunks of 64.
    Case::new([1, 1, 1, 33], 4, &[67]).check();
    // Columns in whole vectors, and some behind them, with the usual taps and with more.
    Case::new([2, 10, 1, 18], 4, &[6, 2]).check();
    Case::new([2, 10, 1, 18], 5, &[6, 2]).check();
    // More heads than a block has.
    Case::new([3, 65, 1, 2], 4, &[3]).check();
}

#[test]
fn packed_documents_and_documents_one_by_one_have_the_same_bits() {
    let case = Case::new([4, 16, 2, 16], 4, &[40, 1, 70, 5]);
    for isa in Isa::available() {
        let cpu = Cpu::new(isa, 2);
        let (packed_out, [packed, _]) = case.run(&cpu, &[&case.documents]);
        let (single_out, [single, _]) = case.run(&cpu, &[&[40], &[1], &[70], &[5]]);
        assert_same_bits(&single, &packed, &isa.to_string());
        assert_same_bits(&single_out, &packed_out, &isa.to_string());
    }
}
