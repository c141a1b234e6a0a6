//! Block formats to f32 and back.
//!
//! Decoding follows ggml's `dequantize_row_*` operation by operation, so every value has the same
//! bits as there (layouts: `ggml-common.h`). Encoding to Q8_0 and Q4_0 follows ggml's reference
//! `quantize_row_*_ref`, to IQ4_NL a search of our own (`iq4_nl.rs`); F16 and BF16 round to nearest,
//! ties to even.
//!
//! | format | value |
//! |---|---|
//! | Q4_0, Q5_0 | d·(q − 8), d·(q − 16) |
//! | Q4_1, Q5_1 | d·q + m |
//! | Q8_0 | d·q |
//! | IQ4_NL | d·level\[q\] |
//! | Q4_K, Q5_K | (d·sc)·q − (dmin·m), sc and m 6 bits per 32 values |
//! | Q6_K | (d·sc)·(q − 32), sc 8 bits per 16 values |

use crate::dtype::DType;
use crate::isa::Isa;
use crate::simd::{Simd, WithSimd, dispatch};
use half::f16;

/// Levels of IQ4_NL (`kvalues_iq4nl`).
pub(crate) const IQ4_NL_LEVELS: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Decodes block after block with `$block`; handed on as a value, it was not compiled for the
/// instruction set.
macro_rules! each {
    ($data:expr, $out:expr, $block:ident) => {{
        let (blocks, _) = $data.as_chunks();
        let (values, _) = $out.as_chunks_mut();
        for (b, y) in blocks.iter().zip(values) {
            $block(b, y);
        }
    }};
}

/// Decodes whole blocks: `out.len()` values from `data`.
///
/// # Panics
/// If `data` is not exactly the bytes of `out.len()` values.
pub fn dequantize_row(isa: Isa, dtype: DType, data: &[u8], out: &mut [f32]) {
    struct Row<'a>(DType, &'a [u8], &'a mut [f32]);
    impl WithSimd for Row<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, _: S) {
            decode(self.0, self.1, self.2);
        }
    }
    dispatch(isa, Row(dtype, data, out));
}

/// [`dequantize_row`] inside a body that is already compiled for an instruction set.
#[inline(always)]
pub(crate) fn decode(dtype: DType, data: &[u8], out: &mut [f32]) {
    assert_eq!(Some(data.len()), dtype.row_bytes(out.len()), "{dtype}, {} values", out.len());
    match dtype {
        DType::F32 => each!(data, out, f32_1),
        DType::F16 => each!(data, out, f16_1),
        DType::Bf16 => each!(data, out, bf16_1),
        DType::Q4_0 => each!(data, out, q4_0),
        DType::Q4_1 => each!(data, out, q4_1),
        DType::Q5_0 => each!(data, out, q5_0),
        DType::Q5_1 => each!(data, out, q5_1),
        DType::Q8_0 => each!(data, out, q8_0),
        DType::Iq4Nl => each!(data, out, iq4_nl),
        DType::Q4K => each!(data, out, q4_k),
        DType::Q5K => each!(data, out, q5_k),
        DType::Q6K => each!(data, out, q6_k),
    }
}

#[inline(always)]
fn f32_1(b: &[u8; 4], y: &mut [f32; 1]) {
    y[0] = f32::from_le_bytes(*b);
}

#[inline(always)]
fn f16_1(b: &[u8; 2], y: &mut [f32; 1]) {
    y[0] = f16_at(b, 0);
}

#[inline(always)]
fn bf16_1(b: &[u8; 2], y: &mut [f32; 1]) {
    y[0] = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
}

#[inline(always)]
fn f16_at(b: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([b[at], b[at + 1]]))
}

/// Widening without branches on the value's class, so that loops over it vectorize.
#[inline(always)]
fn f16_to_f32(h: u16) -> f32 {
    let sign = u32::from(h & 0x8000) << 16;
    let magnitude = u32::from(h & 0x7fff);
    // Normal numbers: shift into place and rebias. Infinity and NaN get the full exponent.
    let infinite = if magnitude >= 0x7c00 { 0x3800_0000 } else { 0 };
    let normal = (magnitude << 13) + 0x3800_0000 + infinite;
    // Subnormal numbers are exact multiples of 2^-24.
    let subnormal = (magnitude as f32 * f32::from_bits(0x3380_0000)).to_bits();
    f32::from_bits(sign | if magnitude < 0x400 { subnormal } else { normal })
}

#[inline(always)]
fn q4_0(b: &[u8; 18], y: &mut [f32; 32]) {
    let d = f16_at(b, 0);
    for j in 0..16 {
        let q = b[2 + j];
        y[j] = (i32::from(q & 15) - 8) as f32 * d;
        y[j + 16] = (i32::from(q >> 4) - 8) as f32 * d;
    }
}

#[inline(always)]
fn q4_1(b: &[u8; 20], y: &mut [f32; 32]) {
    let (d, m) = (f16_at(b, 0), f16_at(b, 2));
    for j in 0..16 {
        let q = b[4 + j];
        y[j] = f32::from(q & 15) * d + m;
        y[j + 16] = f32::from(q >> 4) * d + m;
    }
}

/// The fifth bits of value `j` and value `j + 16`, at bit 4.
#[inline(always)]
fn fifth_bits(high: u32, j: usize) -> (u8, u8) {
    ((((high >> j) << 4) & 16) as u8, ((high >> (j + 12)) & 16) as u8)
}

#[inline(always)]
fn q5_0(b: &[u8; 22], y: &mut [f32; 32]) {
    let d = f16_at(b, 0);
    let high = u32::from_le_bytes([b[2], b[3], b[4], b[5]]);
    for j in 0..16 {
        let (h0, h1) = fifth_bits(high, j);
        let q = b[6 + j];
        y[j] = (i32::from(q & 15 | h0) - 16) as f32 * d;
        y[j + 16] = (i32::from(q >> 4 | h1) - 16) as f32 * d;
    }
}

#[inline(always)]
fn q5_1(b: &[u8; 24], y: &mut [f32; 32]) {
    let (d, m) = (f16_at(b, 0), f16_at(b, 2));
    let high = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
    for j in 0..16 {
        let (h0, h1) = fifth_bits(high, j);
        let q = b[8 + j];
        y[j] = f32::from(q & 15 | h0) * d + m;
        y[j + 16] = f32::from(q >> 4 | h1) * d + m;
    }
}

#[inline(always)]
fn q8_0(b: &[u8; 34], y: &mut [f32; 32]) {
    let d = f16_at(b, 0);
    for j in 0..32 {
        y[j] = f32::from(b[2 + j] as i8) * d;
    }
}

#[inline(always)]
fn iq4_nl(b: &[u8; 18], y: &mut [f32; 32]) {
    let d = f16_at(b, 0);
    for j in 0..16 {
        let q = b[2 + j];
        y[j] = d * f32::from(IQ4_NL_LEVELS[usize::from(q & 15)]);
        y[j + 16] = d * f32::from(IQ4_NL_LEVELS[usize::from(q >> 4)]);
    }
}

/// 6-bit scale and minimum of sub-block `j` (ggml's `get_scale_min_k4`).
#[inline(always)]
pub(crate) fn scale_min_k4(j: usize, s: &[u8]) -> (u8, u8) {
    if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        (s[j + 4] & 15 | (s[j - 4] >> 6) << 4, s[j + 4] >> 4 | (s[j] >> 6) << 4)
    }
}

#[inline(always)]
fn q4_k(b: &[u8; 144], y: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(b, 0), f16_at(b, 2));
    let (scales, qs) = (&b[4..16], &b[16..144]);
    for j in 0..8 {
        let (sc, m) = scale_min_k4(j, scales);
        let (d1, m1) = (d * f32::from(sc), dmin * f32::from(m));
        let (low, shift) = (&qs[32 * (j / 2)..32 * (j / 2) + 32], 4 * (j % 2));
        for l in 0..32 {
            y[32 * j + l] = d1 * f32::from((low[l] >> shift) & 15) - m1;
        }
    }
}

#[inline(always)]
fn q5_k(b: &[u8; 176], y: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(b, 0), f16_at(b, 2));
    let (scales, qh, qs) = (&b[4..16], &b[16..48], &b[48..176]);
    for j in 0..8 {
        let (sc, m) = scale_min_k4(j, scales);
        let (d1, m1) = (d * f32::from(sc), dmin * f32::from(m));
        let (low, shift) = (&qs[32 * (j / 2)..32 * (j / 2) + 32], 4 * (j % 2));
        for l in 0..32 {
            let q = (low[l] >> shift) & 15 | ((qh[l] >> j) & 1) << 4;
            y[32 * j + l] = d1 * f32::from(q) - m1;
        }
    }
}

#[inline(always)]
fn q6_k(b: &[u8; 210], y: &mut [f32; 256]) {
    let (ql, qh, sc) = (&b[0..128], &b[128..192], &b[192..208]);
    let d = f16_at(b, 208);
    for half in 0..2 {
        let (ql, qh, sc) = (&ql[64 * half..][..64], &qh[32 * half..][..32], &sc[8 * half..][..8]);
        for part in 0..4 {
            let (low, shift) = (&ql[32 * (part % 2)..][..32], 4 * (part / 2));
            for l in 0..32 {
                let q = (low[l] >> shift) & 15 | ((qh[l] >> (2 * part)) & 3) << 4;
                let scale = d * f32::from(sc[2 * part + l / 16] as i8);
                y[128 * half + 32 * part + l] = scale * (i32::from(q) - 32) as f32;
            }
        }
    }
}

/// Formats that [`quantize_row`] writes.
pub const ENCODABLE: [DType; 6] =
    [DType::F32, DType::F16, DType::Bf16, DType::Q8_0, DType::Q4_0, DType::Iq4Nl];

/// Encodes a row of whole blocks; `out` is exactly its bytes.
///
/// # Panics
/// If the lengths disagree or the format is not in [`ENCODABLE`].
pub fn quantize_row(dtype: DType, x: &[f32], out: &mut [u8]) {
    assert_eq!(Some(out.len()), dtype.row_bytes(x.len()), "{dtype}, {} values", x.len());
    if dtype == DType::Iq4Nl {
        return crate::ops::iq4_nl::encode(x, out);
    }
    let blocks = x.chunks_exact(dtype.block_len()).zip(out.chunks_exact_mut(dtype.block_bytes()));
    for (x, b) in blocks {
        match dtype {
            DType::F32 => b.copy_from_slice(&x[0].to_le_bytes()),
            DType::F16 => b.copy_from_slice(&f16::from_f32(x[0]).to_le_bytes()),
            DType::Bf16 => b.copy_from_slice(&half::bf16::from_f32(x[0]).to_le_bytes()),
            DType::Q8_0 => encode_q8_0(x, b),
            DType::Q4_0 => encode_q4_0(x, b),
            other => panic!("{other} is not written"),
        }
    }
}

fn encode_q8_0(x: &[f32], b: &mut [u8]) {
    let largest = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let d = largest / 127.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    b[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    for (q, v) in b[2..].iter_mut().zip(x) {
        *q = (v * inverse).round() as i8 as u8;
    }
}

fn encode_q4_0(x: &[f32], b: &mut [u8]) {
    // The value of largest magnitude keeps its sign and maps to −8.
    let extreme = x.iter().fold(0.0f32, |m, &v| if v.abs() > m.abs() { v } else { m });
    let d = extreme / -8.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    b[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    let level = |v: f32| ((v * inverse + 8.5) as i32).clamp(0, 15) as u8;
    for j in 0..16 {
        b[2 + j] = level(x[j]) | level(x[j + 16]) << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_precision_widens_exactly() {
        for bits in 0..=u16::MAX {
            let (got, want) = (f16_to_f32(bits), f16::from_bits(bits).to_f32());
            let nan = got.is_nan() && want.is_nan();
            assert!(nan || got.to_bits() == want.to_bits(), "{bits:04x}: {got} ≠ {want}");
        }
    }

    /// Decoding has the same bits on every instruction set (no contraction to FMA).
    #[test]
    fn every_format_decodes_alike_on_every_isa() {
        let mut seed = 1u64;
        let mut byte = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 56) as u8
        };
        for dtype in DType::ALL {
            let data: Vec<u8> = (0..dtype.row_bytes(1024).unwrap()).map(|_| byte()).collect();
            let mut want = vec![0.0; 1024];
            dequantize_row(Isa::Scalar, dtype, &data, &mut want);
            for isa in Isa::available() {
                let mut got = vec![0.0; 1024];
                dequantize_row(isa, dtype, &data, &mut got);
                let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan();
                assert!(got.iter().zip(&want).all(same), "{dtype} on {isa}");
            }
        }
    }

    #[test]
    fn encoding_is_within_half_a_step() {
        let x: Vec<f32> = (0..256).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.013).collect();
        for (dtype, step) in
            [(DType::F32, 0.0), (DType::F16, 5e-4), (DType::Bf16, 4e-3), (DType::Q8_0, 6e-3)]
        {
            let (mut data, mut back) = (vec![0; dtype.row_bytes(256).unwrap()], vec![0.0; 256]);
            quantize_row(dtype, &x, &mut data);
            dequantize_row(Isa::Scalar, dtype, &data, &mut back);
            let worst = x.iter().zip(&back).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(worst <= step, "{dtype}: {worst}");
        }
        let mut data = vec![0; 18];
        let x: Vec<f32> = (0..32).map(|i| i as f32 - 16.0).collect();
        quantize_row(DType::Q4_0, &x, &mut data);
        let mut back = vec![0.0; 32];
        dequantize_row(Isa::Scalar, DType::Q4_0, &data, &mut back);
        assert_eq!((back[0], back[16]), (-16.0, 0.0));
        assert!(x.iter().zip(&back).all(|(a, b)| (a - b).abs() <= 2.0), "{back:?}");
    }

    #[test]
    fn zero_rows_stay_zero() {
        for dtype in ENCODABLE {
            let (mut data, mut back) = (vec![1; dtype.row_bytes(32).unwrap()], vec![1.0; 32]);
            quantize_row(dtype, &[0.0; 32], &mut data);
            dequantize_row(Isa::Scalar, dtype, &data, &mut back);
            assert!(back.iter().all(|v| *v == 0.0), "{dtype}");
        }
    }
}
