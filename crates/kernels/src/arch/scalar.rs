//! The instruction set that exists everywhere: one lane, plain Rust.

use crate::simd::{Simd, WithSimd};

/// Token of the scalar implementation.
#[derive(Clone, Copy)]
pub struct Scalar;

impl Simd for Scalar {
    const LANES: usize = 1;
    const REGISTERS: usize = 16;
    type V = f32;
    type I = u32;

    #[inline(never)]
    fn vectorize<O: WithSimd>(self, op: O) -> O::Output {
        op.run(self)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn load(self, s: &[f32]) -> f32 {
        s[0]
    }
    #[inline(always)]
    fn store(self, v: f32, s: &mut [f32]) {
        s[0] = v;
    }
    #[inline(always)]
    fn load_bf16(self, s: &[u16]) -> f32 {
        f32::from_bits(u32::from(s[0]) << 16)
    }
    #[inline(always)]
    fn load_i8(self, s: &[i8]) -> f32 {
        f32::from(s[0])
    }
    #[inline(always)]
    fn add(self, a: f32, b: f32) -> f32 {
        a + b
    }
    #[inline(always)]
    fn sub(self, a: f32, b: f32) -> f32 {
        a - b
    }
    #[inline(always)]
    fn mul(self, a: f32, b: f32) -> f32 {
        a * b
    }
    #[inline(always)]
    fn div(self, a: f32, b: f32) -> f32 {
        a / b
    }
    // `f32::mul_add` is a library call where the target has no FMA: two roundings instead.
    #[inline(always)]
    fn fma(self, a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
    #[inline(always)]
    fn max(self, a: f32, b: f32) -> f32 {
        if a > b { a } else { b }
    }
    #[inline(always)]
    fn min(self, a: f32, b: f32) -> f32 {
        if a < b { a } else { b }
    }
    #[inline(always)]
    fn select_lt(self, a: f32, b: f32, x: f32, y: f32) -> f32 {
        if a < b { x } else { y }
    }
    #[inline(always)]
    fn round(self, a: f32) -> f32 {
        a.round_ties_even()
    }
    #[inline(always)]
    fn pow2(self, n: f32) -> f32 {
        f32::from_bits(((n as i32 + 127) << 23) as u32)
    }
    #[inline(always)]
    fn sum(self, a: f32) -> f32 {
        a
    }
    #[inline(always)]
    fn max_lane(self, a: f32) -> f32 {
        a
    }
    #[inline(always)]
    fn load_f16(self, s: &[u8]) -> f32 {
        half::f16::from_le_bytes([s[0], s[1]]).to_f32()
    }
    #[inline(always)]
    fn load_u8(self, s: &[u8]) -> f32 {
        f32::from(s[0])
    }
    #[inline(always)]
    fn store_i8(self, v: f32, s: &mut [u8]) {
        s[0] = v as i8 as u8;
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> u32 {
        x as u32
    }
    #[inline(always)]
    fn load_i(self, s: &[u8]) -> u32 {
        u32::from_le_bytes([s[0], s[1], s[2], s[3]])
    }
    #[inline(always)]
    fn store_i(self, v: u32, s: &mut [u8]) {
        s[..4].copy_from_slice(&v.to_le_bytes());
    }
    #[inline(always)]
    fn and_i(self, a: u32, b: u32) -> u32 {
        a & b
    }
    #[inline(always)]
    fn or_i(self, a: u32, b: u32) -> u32 {
        a | b
    }
    #[inline(always)]
    fn shl_i<const N: u32>(self, a: u32) -> u32 {
        a << N
    }
    #[inline(always)]
    fn shr_i<const N: u32>(self, a: u32) -> u32 {
        a >> N
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], index: u32) -> u32 {
        u32::from_le_bytes(index.to_le_bytes().map(|i| table[usize::from(i & 15)]))
    }
    #[inline(always)]
    fn dot(self, acc: u32, w: u32, a: u32, _low: bool) -> u32 {
        let products = w.to_le_bytes().into_iter().zip(a.to_le_bytes());
        products
            .fold(acc, |sum, (w, a)| sum.wrapping_add((i32::from(w) * i32::from(a as i8)) as u32))
    }
    #[inline(always)]
    fn to_f32(self, a: u32) -> f32 {
        a as i32 as f32
    }
    #[inline(always)]
    fn dot_bf16(self, acc: f32, w: u32, a: u32) -> f32 {
        let low = |x: u32| f32::from_bits(x << 16);
        let high = |x: u32| f32::from_bits(x & 0xffff_0000);
        acc + low(w) * low(a) + high(w) * high(a)
    }
    #[inline(always)]
    fn cast_f32(self, a: Self::I) -> Self::V {
        f32::from_bits(a)
    }
    #[inline(always)]
    fn cast_i32(self, a: Self::V) -> Self::I {
        a.to_bits()
    }
}
