//! AArch64 Advanced SIMD (NEON): 4 lanes, 32 registers.
//!
//! Invariant: a [`Neon`] value exists only on AArch64, whose base architecture includes NEON.

use crate::simd::{Simd, WithSimd};
use core::arch::aarch64::*;

/// Proof that the CPU has NEON.
#[derive(Clone, Copy)]
pub struct Neon(());

impl Neon {
    /// The token; NEON is part of every AArch64 CPU that Rust targets.
    #[inline(always)]
    pub fn new() -> Option<Self> {
        Some(Self(()))
    }
}

impl Simd for Neon {
    const LANES: usize = 4;
    const REGISTERS: usize = 32;
    type V = float32x4_t;
    type I = uint8x16_t;

    #[inline(never)]
    fn vectorize<O: WithSimd>(self, op: O) -> O::Output {
        op.run(self)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        // SAFETY: NEON is present on AArch64.
        unsafe { vdupq_n_f32(x) }
    }
    #[inline(always)]
    fn load(self, s: &[f32]) -> float32x4_t {
        assert!(s.len() >= 4);
        // SAFETY: NEON is present; 4 values are in bounds.
        unsafe { vld1q_f32(s.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, v: float32x4_t, s: &mut [f32]) {
        assert!(s.len() >= 4);
        // SAFETY: NEON is present; 4 values are in bounds.
        unsafe { vst1q_f32(s.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn load_bf16(self, s: &[u16]) -> float32x4_t {
        assert!(s.len() >= 4);
        // SAFETY: NEON is present; 4 values of 2 bytes are in bounds.
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(s.as_ptr()))) }
    }
    #[inline(always)]
    fn load_i8(self, s: &[i8]) -> float32x4_t {
        let lanes = [0, 1, 2, 3].map(|i| i32::from(s[i]));
        // SAFETY: NEON is present; 4 values are in bounds.
        unsafe { vcvtq_f32_s32(vld1q_s32(lanes.as_ptr())) }
    }
    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is present on AArch64.
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is present on AArch64.
        unsafe { vsubq_f32(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is present on AArch64.
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is present on AArch64.
        unsafe { vdivq_f32(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is present on AArch64.
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is present on AArch64.
        unsafe { vmaxq_f32(a, b) }
    }
    #[inline(always)]
    fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is present on AArch64.
        unsafe { vminq_f32(a, b) }
    }
    #[inline(always)]
    fn select_lt(
        self,
        a: float32x4_t,
        b: float32x4_t,
        x: float32x4_t,
        y: float32x4_t,
    ) -> float32x4_t {
        // SAFETY: NEON is present on AArch64.
        unsafe { vbslq_f32(vcltq_f32(a, b), x, y) }
    }
    #[inline(always)]
    fn round(self, a: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is present on AArch64.
        unsafe { vrndnq_f32(a) }
    }
    #[inline(always)]
    fn pow2(self, n: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is present on AArch64.
        unsafe {
            let biased = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
        }
    }
    #[inline(always)]
    fn sum(self, a: float32x4_t) -> f32 {
        // SAFETY: NEON is present on AArch64.
        unsafe { vaddvq_f32(a) }
    }
    #[inline(always)]
    fn max_lane(self, a: float32x4_t) -> f32 {
        // SAFETY: NEON is present on AArch64.
        unsafe { vmaxvq_f32(a) }
    }
    #[inline(always)]
    fn load_f16(self, s: &[u8]) -> float32x4_t {
        assert!(s.len() >= 8);
        // SAFETY: NEON is present on AArch64.
        unsafe {
            let mut wide = [0.0; 4];
            for (to, h) in wide.iter_mut().zip(s.as_chunks::<2>().0) {
                *to = half::f16::from_le_bytes(*h).to_f32();
            }
            vld1q_f32(wide.as_ptr())
        }
    }
    #[inline(always)]
    fn load_u8(self, s: &[u8]) -> float32x4_t {
        // SAFETY: NEON is present on AArch64.
        unsafe {
            let bytes = u32::from_le_bytes([s[0], s[1], s[2], s[3]]);
            let half = vget_low_u16(vmovl_u8(vcreate_u8(u64::from(bytes))));
            vcvtq_f32_u32(vmovl_u16(half))
        }
    }
    #[inline(always)]
    fn store_i8(self, v: float32x4_t, s: &mut [u8]) {
        // SAFETY: NEON is present on AArch64.
        unsafe {
            let half = vqmovn_s32(vcvtnq_s32_f32(v));
            let bytes = vqmovn_s16(vcombine_s16(half, half));
            let word = vget_lane_u32::<0>(vreinterpret_u32_s8(bytes));
            s[..4].copy_from_slice(&word.to_le_bytes());
        }
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> uint8x16_t {
        // SAFETY: NEON is present on AArch64.
        unsafe { vreinterpretq_u8_s32(vdupq_n_s32(x)) }
    }
    #[inline(always)]
    fn load_i(self, s: &[u8]) -> uint8x16_t {
        assert!(s.len() >= 16);
        // SAFETY: NEON is present; the bytes are in bounds.
        unsafe { vld1q_u8(s.as_ptr()) }
    }
    #[inline(always)]
    fn store_i(self, v: uint8x16_t, s: &mut [u8]) {
        assert!(s.len() >= 16);
        // SAFETY: NEON is present; the bytes are in bounds.
        unsafe {
            vst1q_u8(s.as_mut_ptr(), v);
        }
    }
    #[inline(always)]
    fn and_i(self, a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        // SAFETY: NEON is present on AArch64.
        unsafe { vandq_u8(a, b) }
    }
    #[inline(always)]
    fn or_i(self, a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        // SAFETY: NEON is present on AArch64.
        unsafe { vorrq_u8(a, b) }
    }
    #[inline(always)]
    fn shl_i<const N: u32>(self, a: uint8x16_t) -> uint8x16_t {
        // SAFETY: NEON is present on AArch64.
        unsafe { vreinterpretq_u8_u32(vshlq_u32(vreinterpretq_u32_u8(a), vdupq_n_s32(N as i32))) }
    }
    #[inline(always)]
    fn shr_i<const N: u32>(self, a: uint8x16_t) -> uint8x16_t {
        // SAFETY: NEON is present on AArch64.
        unsafe {
            vreinterpretq_u8_u32(vshlq_u32(vreinterpretq_u32_u8(a), vdupq_n_s32(-(N as i32))))
        }
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], index: uint8x16_t) -> uint8x16_t {
        // SAFETY: NEON is present on AArch64.
        unsafe { vqtbl1q_u8(vld1q_u8(table.as_ptr()), index) }
    }
    #[inline(always)]
    fn interleave(self, [a, b, c, d]: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        // SAFETY: NEON is present on AArch64.
        unsafe {
            let half = |a, b| vreinterpretq_u16_u8(vzip1q_u8(a, b));
            let high = |a, b| vreinterpretq_u16_u8(vzip2q_u8(a, b));
            let (ab, cd, ab_high, cd_high) = (half(a, b), half(c, d), high(a, b), high(c, d));
            [
                vreinterpretq_u8_u16(vzip1q_u16(ab, cd)),
                vreinterpretq_u8_u16(vzip2q_u16(ab, cd)),
                vreinterpretq_u8_u16(vzip1q_u16(ab_high, cd_high)),
                vreinterpretq_u8_u16(vzip2q_u16(ab_high, cd_high)),
            ]
        }
    }
    #[inline(always)]
    fn dot(self, acc: uint8x16_t, w: uint8x16_t, a: uint8x16_t, low: bool) -> uint8x16_t {
        // SAFETY: NEON is present on AArch64.
        unsafe {
            let a = vreinterpretq_s8_u8(a);
            // Weights above 127 count 128 less, and 128 · Σ a is added after.
            let flip = if low { 0 } else { 0x80 };
            let w = vreinterpretq_s8_u8(veorq_u8(w, vdupq_n_u8(flip)));
            let first = vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(a)));
            let second = vpaddlq_s16(vmull_high_s8(w, a));
            let mut sums = vaddq_s32(vreinterpretq_s32_u8(acc), vpaddq_s32(first, second));
            if !low {
                sums = vaddq_s32(sums, vshlq_n_s32::<7>(vpaddlq_s16(vpaddlq_s8(a))));
            }
            vreinterpretq_u8_s32(sums)
        }
    }
    #[inline(always)]
    fn to_f32(self, a: uint8x16_t) -> float32x4_t {
        // SAFETY: NEON is present on AArch64.
        unsafe { vcvtq_f32_s32(vreinterpretq_s32_u8(a)) }
    }
    #[inline(always)]
    fn dot_bf16(self, acc: float32x4_t, w: uint8x16_t, a: uint8x16_t) -> float32x4_t {
        // SAFETY: NEON is present on AArch64.
        unsafe {
            let [w, a] = [w, a].map(|x| vreinterpretq_u32_u8(x));
            let [w0, a0] = [w, a].map(|x| vreinterpretq_f32_u32(vshlq_n_u32::<16>(x)));
            let high = vdupq_n_u32(0xffff_0000);
            let [w1, a1] = [w, a].map(|x| vreinterpretq_f32_u32(vandq_u32(x, high)));
            vfmaq_f32(vfmaq_f32(acc, w0, a0), w1, a1)
        }
    }
    #[inline(always)]
    fn cast_f32(self, a: Self::I) -> Self::V {
        // SAFETY: NEON is present on AArch64.
        unsafe { vreinterpretq_f32_u8(a) }
    }
    #[inline(always)]
    fn cast_i32(self, a: Self::V) -> Self::I {
        // SAFETY: NEON is present on AArch64.
        unsafe { vreinterpretq_u8_f32(a) }
    }
}
