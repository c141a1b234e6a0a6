//! AVX-512 F, BW, DQ, VL and VNNI: 16 lanes, 32 registers; with `BF16` also AVX512_BF16.
//!
//! Invariant: an [`Avx512`] value exists only where [`Avx512::new`] found the features, so every
//! method may use them. CPUs with AVX-512 but without VNNI count as AVX2.

use crate::simd::{Simd, WithSimd};
use core::arch::x86_64::*;

/// Proof that the CPU has AVX-512 F, BW, DQ, VL and VNNI (and FMA, F16C), and AVX512_BF16 where
/// `BF16` is true.
#[derive(Clone, Copy)]
pub struct Avx512<const BF16: bool = false>(());

impl<const BF16: bool> Avx512<BF16> {
    /// The token, if this machine has the features.
    #[inline(always)]
    pub fn new() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && (!BF16 || is_x86_feature_detected!("avx512bf16"));
        found.then_some(Self(()))
    }
}

impl<const BF16: bool> Avx512<BF16> {
    /// Rounded to bf16.
    #[inline(always)]
    fn half(self, v: __m512) -> __m256i {
        if BF16 {
            // SAFETY: `BF16` is true only where the CPU has AVX512_BF16; any bits are valid.
            return unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v)) };
        }
        // SAFETY: the token proves the features.
        unsafe {
            let bits = _mm512_castps_si512(v);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let up = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            let rounded = _mm512_add_epi32(bits, up);
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
            let chosen = _mm512_mask_blend_epi32(nan, rounded, quiet);
            _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(chosen))
        }
    }

    /// Four sums of lanes at once, each in the order of [`Simd::sum`]: lanes i and i + 8, then + 4,
    /// + 2 and + 1.
    #[inline(always)]
    fn four_sums(self, [a, b, c, d]: &[__m512; 4]) -> [f32; 4] {
        // SAFETY: the token proves the features; the store has room for four values.
        unsafe {
            let halves = |a, b| {
                let low = _mm512_shuffle_f32x4::<0x44>(a, b);
                _mm512_add_ps(low, _mm512_shuffle_f32x4::<0xee>(a, b))
            };
            let (ab, cd) = (halves(*a, *b), halves(*c, *d));
            let even = _mm512_shuffle_f32x4::<0x88>(ab, cd);
            let quarters = _mm512_add_ps(even, _mm512_shuffle_f32x4::<0xdd>(ab, cd));
            let pairs = _mm512_add_ps(quarters, _mm512_permute_ps::<0b1110>(quarters));
            let sums = _mm512_add_ps(pairs, _mm512_movehdup_ps(pairs));
            let firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
            let mut out = [0.0; 4];
            let sums = _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, sums));
            _mm_storeu_ps(out.as_mut_ptr(), sums);
            out
        }
    }
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    const LANES: usize = 16;
    const REGISTERS: usize = 32;
    type V = __m512;
    type I = __m512i;

    fn vectorize<O: WithSimd>(self, op: O) -> O::Output {
        #[target_feature(
            enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt"
        )]
        #[inline(never)]
        fn inner<O: WithSimd, const BF16: bool>(s: Avx512<BF16>, op: O) -> O::Output {
            op.run(s)
        }
        #[target_feature(
            enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt"
        )]
        #[inline(never)]
        fn with_bf16<O: WithSimd, const BF16: bool>(s: Avx512<BF16>, op: O) -> O::Output {
            op.run(s)
        }
        // SAFETY: the token proves AVX-512, FMA and F16C, and BF16 where it says so; the
        // bit-manipulation sets come with them.
        unsafe { if const { BF16 } { with_bf16(self, op) } else { inner(self, op) } }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, s: &[f32]) -> __m512 {
        assert!(s.len() >= 16);
        // SAFETY: the token proves the features; 16 values are in bounds.
        unsafe { _mm512_loadu_ps(s.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, v: __m512, s: &mut [f32]) {
        assert!(s.len() >= 16);
        // SAFETY: the token proves the features; 16 values are in bounds.
        unsafe { _mm512_storeu_ps(s.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn load_partial(self, s: &[f32]) -> __m512 {
        let mask = if s.len() >= 16 { u16::MAX } else { (1 << s.len()) - 1 };
        // SAFETY: the token proves the features; masked lanes are not read.
        unsafe { _mm512_maskz_loadu_ps(mask, s.as_ptr()) }
    }
    #[inline(always)]
    fn store_partial(self, v: __m512, s: &mut [f32]) {
        let mask = if s.len() >= 16 { u16::MAX } else { (1 << s.len()) - 1 };
        // SAFETY: the token proves the features; masked lanes are not written.
        unsafe { _mm512_mask_storeu_ps(s.as_mut_ptr(), mask, v) }
    }
    #[inline(always)]
    fn load_bf16(self, s: &[u16]) -> __m512 {
        assert!(s.len() >= 16);
        // SAFETY: the token proves the features; 16 values of 2 bytes are in bounds.
        unsafe {
            let half = _mm256_loadu_si256(s.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
        }
    }
    #[inline(always)]
    fn store_bf16(self, v: __m512, s: &mut [u16]) {
        assert!(s.len() >= 16);
        // SAFETY: the token proves the features; 16 values of 2 bytes are in bounds.
        unsafe { _mm256_storeu_si256(s.as_mut_ptr().cast(), self.half(v)) }
    }
    #[inline(always)]
    fn load_i8(self, s: &[i8]) -> __m512 {
        assert!(s.len() >= 16);
        // SAFETY: the token proves the features; 16 values are in bounds.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(s.as_ptr().cast()))) }
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
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn select_lt(self, a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x) }
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_roundscale_ps::<0>(a) }
    }
    #[inline(always)]
    fn pow2(self, n: __m512) -> __m512 {
        // SAFETY: the token proves the features.
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    fn scale(self, a: __m512, n: __m512) -> __m512 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_scalef_ps(a, n) }
    }
    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        // SAFETY: the token proves the features.
        unsafe {
            let o = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let q = _mm_add_ps(_mm256_castps256_ps128(o), _mm256_extractf128_ps::<1>(o));
            let d = _mm_add_ps(q, _mm_movehl_ps(q, q));
            _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)))
        }
    }
    #[inline(always)]
    fn sums<const N: usize>(self, a: &[__m512; N]) -> [f32; N] {
        let mut sums = [0.0; N];
        let (fours, rest) = a.as_chunks::<4>();
        let (out, out_rest) = sums.as_chunks_mut::<4>();
        for (out, a) in out.iter_mut().zip(fours) {
            *out = self.four_sums(a);
        }
        for (out, a) in out_rest.iter_mut().zip(rest) {
            *out = self.sum(*a);
        }
        sums
    }
    #[inline(always)]
    fn max_lane(self, a: __m512) -> f32 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_reduce_max_ps(a) }
    }
    #[inline(always)]
    fn load_f16(self, s: &[u8]) -> __m512 {
        assert!(s.len() >= 32);
        // SAFETY: the token proves the features; the bytes are in bounds.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(s.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_u8(self, s: &[u8]) -> __m512 {
        assert!(s.len() >= 16);
        // SAFETY: the token proves the features; the bytes are in bounds.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(s.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn store_i8(self, v: __m512, s: &mut [u8]) {
        assert!(s.len() >= 16);
        // SAFETY: the token proves the features; the bytes are in bounds.
        unsafe {
            _mm_storeu_si128(s.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
        }
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    fn load_i(self, s: &[u8]) -> __m512i {
        assert!(s.len() >= 64);
        // SAFETY: the token proves the features; the bytes are in bounds.
        unsafe { _mm512_loadu_si512(s.as_ptr().cast()) }
    }
    #[inline(always)]
    fn store_i(self, v: __m512i, s: &mut [u8]) {
        assert!(s.len() >= 64);
        // SAFETY: the token proves the features; the bytes are in bounds.
        unsafe {
            _mm512_storeu_si512(s.as_mut_ptr().cast(), v);
        }
    }
    #[inline(always)]
    fn and_i(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    fn or_i(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    fn shl_i<const N: u32>(self, a: __m512i) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe { _mm512_slli_epi32::<N>(a) }
    }
    #[inline(always)]
    fn shr_i<const N: u32>(self, a: __m512i) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe { _mm512_srli_epi32::<N>(a) }
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], index: __m512i) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, index)
        }
    }
    #[inline(always)]
    fn dot(self, acc: __m512i, w: __m512i, a: __m512i, _low: bool) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe { _mm512_dpbusd_epi32(acc, w, a) }
    }
    #[inline(always)]
    fn to_f32(self, a: __m512i) -> __m512 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_cvtepi32_ps(a) }
    }
    #[inline(always)]
    fn dot_bf16(self, acc: __m512, w: __m512i, a: __m512i) -> __m512 {
        if BF16 {
            // SAFETY: `BF16` is true only where the CPU has AVX512_BF16; any bits are valid.
            unsafe {
                let w = std::mem::transmute::<__m512i, __m512bh>(w);
                let a = std::mem::transmute::<__m512i, __m512bh>(a);
                return _mm512_dpbf16_ps(acc, w, a);
            }
        }
        // SAFETY: the token proves the features.
        unsafe {
            let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            let w0 = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(w));
            let a0 = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(a));
            let w1 = _mm512_castsi512_ps(_mm512_and_si512(w, high));
            let a1 = _mm512_castsi512_ps(_mm512_and_si512(a, high));
            _mm512_fmadd_ps(w1, a1, _mm512_fmadd_ps(w0, a0, acc))
        }
    }
    #[inline(always)]
    fn pair_bf16(self, low: __m512, high: __m512) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe {
            let high = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(self.half(high)));
            _mm512_or_si512(_mm512_cvtepu16_epi32(self.half(low)), high)
        }
    }
    #[inline(always)]
    fn interleave(self, [a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
        // SAFETY: the token proves the features.
        unsafe {
            let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
            let (ab_high, cd_high) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
            [
                _mm512_unpacklo_epi16(ab, cd),
                _mm512_unpackhi_epi16(ab, cd),
                _mm512_unpacklo_epi16(ab_high, cd_high),
                _mm512_unpackhi_epi16(ab_high, cd_high),
            ]
        }
    }
    #[inline(always)]
    fn sub_bytes(self, a: __m512i, x: u8) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe { _mm512_sub_epi8(a, _mm512_set1_epi8(x as i8)) }
    }
    #[inline(always)]
    fn cast_f32(self, a: Self::I) -> Self::V {
        // SAFETY: the token proves the features.
        unsafe { _mm512_castsi512_ps(a) }
    }
    #[inline(always)]
    fn cast_i32(self, a: Self::V) -> Self::I {
        // SAFETY: the token proves the features.
        unsafe { _mm512_castps_si512(a) }
    }
}
