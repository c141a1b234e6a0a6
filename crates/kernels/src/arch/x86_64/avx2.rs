//! AVX2 with FMA and F16C: 8 lanes, 16 registers.
//!
//! Invariant: an [`Avx2`] value exists only where [`Avx2::new`] found the features, so every
//! method may use them.

use crate::simd::{Simd, WithSimd};
use core::arch::x86_64::*;

/// Proof that the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    /// The token, if this machine has the features.
    #[inline(always)]
    pub fn new() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    const REGISTERS: usize = 16;
    const HIGH_BIAS: i32 = 128;
    const PAIRS: bool = true;
    type V = __m256;
    type I = __m256i;

    fn vectorize<O: WithSimd>(self, op: O) -> O::Output {
        #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
        #[inline(never)]
        fn inner<O: WithSimd>(s: Avx2, op: O) -> O::Output {
            op.run(s)
        }
        // SAFETY: the token proves AVX2, FMA and F16C; the bit-manipulation sets come with AVX2.
        unsafe { inner(self, op) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: the token proves the features.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, s: &[f32]) -> __m256 {
        assert!(s.len() >= 8);
        // SAFETY: the token proves the features; 8 values are in bounds.
        unsafe { _mm256_loadu_ps(s.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, v: __m256, s: &mut [f32]) {
        assert!(s.len() >= 8);
        // SAFETY: the token proves the features; 8 values are in bounds.
        unsafe { _mm256_storeu_ps(s.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn load_bf16(self, s: &[u16]) -> __m256 {
        assert!(s.len() >= 8);
        // SAFETY: the token proves the features; 8 values of 2 bytes are in bounds.
        unsafe {
            let half = _mm_loadu_si128(s.as_ptr().cast());
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half)))
        }
    }
    #[inline(always)]
    fn load_i8(self, s: &[i8]) -> __m256 {
        assert!(s.len() >= 8);
        // SAFETY: the token proves the features; 8 values are in bounds.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(s.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn prefetch<T>(self, s: &[T]) {
        // SAFETY: a prefetch reads nothing, whatever the address; SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(s.as_ptr().cast()) }
    }
    #[inline(always)]
    fn prefetch_far<T>(self, s: &[T]) {
        // SAFETY: a prefetch reads nothing, whatever the address; SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(s.as_ptr().cast()) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves the features.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves the features.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves the features.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves the features.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: the token proves the features.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves the features.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves the features.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn select_lt(self, a: __m256, b: __m256, x: __m256, y: __m256) -> __m256 {
        // SAFETY: the token proves the features.
        unsafe { _mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)) }
    }
    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        // SAFETY: the token proves the features.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn pow2(self, n: __m256) -> __m256 {
        // SAFETY: the token proves the features.
        unsafe {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    fn sum(self, a: __m256) -> f32 {
        // SAFETY: the token proves the features.
        unsafe {
            let q = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let d = _mm_add_ps(q, _mm_movehl_ps(q, q));
            _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)))
        }
    }
    #[inline(always)]
    fn max_lane(self, a: __m256) -> f32 {
        // SAFETY: the token proves the features.
        unsafe {
            let q = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let d = _mm_max_ps(q, _mm_movehl_ps(q, q));
            _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)))
        }
    }
    #[inline(always)]
    fn load_f16(self, s: &[u8]) -> __m256 {
        assert!(s.len() >= 16);
        // SAFETY: the token proves the features; the bytes are in bounds.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(s.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_u8(self, s: &[u8]) -> __m256 {
        assert!(s.len() >= 8);
        // SAFETY: the token proves the features; the bytes are in bounds.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(s.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn store_i8(self, v: __m256, s: &mut [u8]) {
        assert!(s.len() >= 8);
        // SAFETY: the token proves the features; the bytes are in bounds.
        unsafe {
            let wide = _mm256_cvtps_epi32(v);
            let (low, high) = (_mm256_castsi256_si128(wide), _mm256_extracti128_si256::<1>(wide));
            let half = _mm_packs_epi32(low, high);
            _mm_storel_epi64(s.as_mut_ptr().cast(), _mm_packs_epi16(half, half));
        }
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> __m256i {
        // SAFETY: the token proves the features.
        unsafe { _mm256_set1_epi32(x) }
    }
    #[inline(always)]
    fn load_i(self, s: &[u8]) -> __m256i {
        assert!(s.len() >= 32);
        // SAFETY: the token proves the features; the bytes are in bounds.
        unsafe { _mm256_loadu_si256(s.as_ptr().cast()) }
    }
    #[inline(always)]
    fn store_i(self, v: __m256i, s: &mut [u8]) {
        assert!(s.len() >= 32);
        // SAFETY: the token proves the features; the bytes are in bounds.
        unsafe {
            _mm256_storeu_si256(s.as_mut_ptr().cast(), v);
        }
    }
    #[inline(always)]
    fn and_i(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the token proves the features.
        unsafe { _mm256_and_si256(a, b) }
    }
    #[inline(always)]
    fn or_i(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the token proves the features.
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    fn shl_i<const N: u32>(self, a: __m256i) -> __m256i {
        // SAFETY: the token proves the features.
        unsafe { _mm256_sll_epi32(a, _mm_cvtsi32_si128(N as i32)) }
    }
    #[inline(always)]
    fn shr_i<const N: u32>(self, a: __m256i) -> __m256i {
        // SAFETY: the token proves the features.
        unsafe { _mm256_srl_epi32(a, _mm_cvtsi32_si128(N as i32)) }
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], index: __m256i) -> __m256i {
        // SAFETY: the token proves the features.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            _mm256_shuffle_epi8(table, index)
        }
    }
    #[inline(always)]
    fn interleave(self, [a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
        // SAFETY: the token proves the features.
        unsafe {
            let (ab, cd) = (_mm256_unpacklo_epi8(a, b), _mm256_unpacklo_epi8(c, d));
            let (ab_high, cd_high) = (_mm256_unpackhi_epi8(a, b), _mm256_unpackhi_epi8(c, d));
            [
                _mm256_unpacklo_epi16(ab, cd),
                _mm256_unpackhi_epi16(ab, cd),
                _mm256_unpacklo_epi16(ab_high, cd_high),
                _mm256_unpackhi_epi16(ab_high, cd_high),
            ]
        }
    }
    #[inline(always)]
    fn dot(self, acc: __m256i, w: __m256i, a: __m256i, low: bool) -> __m256i {
        if low {
            return self.add_pairs(acc, self.dot_pairs(self.splat_i(0), w, a));
        }
        // SAFETY: the token proves the features.
        unsafe {
            // 2 · 128 · 127 fits in 16 bits: the pairs do not saturate.
            let w = _mm256_xor_si256(w, _mm256_set1_epi8(i8::MIN));
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
            self.add_pairs(acc, pairs)
        }
    }
    #[inline(always)]
    fn dot_pairs(self, acc: __m256i, w: __m256i, a: __m256i) -> __m256i {
        // SAFETY: the token proves the features.
        unsafe { _mm256_add_epi16(acc, _mm256_maddubs_epi16(w, a)) }
    }
    #[inline(always)]
    fn add_pairs(self, acc: __m256i, pairs: __m256i) -> __m256i {
        // SAFETY: the token proves the features.
        unsafe { _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))) }
    }
    #[inline(always)]
    fn to_f32(self, a: __m256i) -> __m256 {
        // SAFETY: the token proves the features.
        unsafe { _mm256_cvtepi32_ps(a) }
    }
    #[inline(always)]
    fn dot_bf16(self, acc: __m256, w: __m256i, a: __m256i) -> __m256 {
        // SAFETY: the token proves the features.
        unsafe {
            let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            let w0 = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(w));
            let a0 = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(a));
            let w1 = _mm256_castsi256_ps(_mm256_and_si256(w, high));
            let a1 = _mm256_castsi256_ps(_mm256_and_si256(a, high));
            _mm256_fmadd_ps(w1, a1, _mm256_fmadd_ps(w0, a0, acc))
        }
    }
    #[inline(always)]
    fn cast_f32(self, a: Self::I) -> Self::V {
        // SAFETY: the token proves the features.
        unsafe { _mm256_castsi256_ps(a) }
    }
    #[inline(always)]
    fn cast_i32(self, a: Self::V) -> Self::I {
        // SAFETY: the token proves the features.
        unsafe { _mm256_castps_si256(a) }
    }
}
