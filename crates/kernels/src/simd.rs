//! One trait for vectors of f32, implemented by a zero-size token per instruction set.
//!
//! Contract: a token exists only where the CPU has its features. Every method but `vectorize` is
//! inlined into the body that is compiled for the instruction set. Slices are bounds-checked.
//! A vector has [`Simd::LANES`] lanes; `fma(a, b, c)` is `a·b + c` with one rounding, except on
//! `scalar`, where it rounds twice.

use crate::isa::Isa;

/// An array of `$n` values, element `$i` being `$value`, by a plain loop: a closure that is handed to
/// `from_fn` or `map` can stay a function of its own, which is not compiled for the instruction set
/// and makes a call of every vector operation in it.
macro_rules! array {
    ($n:expr, $i:ident => $value:expr) => {{
        let mut all = {
            let $i = 0;
            [$value; $n]
        };
        for $i in 1..$n {
            all[$i] = $value;
        }
        all
    }};
}
pub(crate) use array;

/// Operations on vectors of f32.
pub trait Simd: Copy + Send + Sync + 'static {
    /// Lanes of a vector.
    const LANES: usize;
    /// Architectural vector registers: how large a tile of accumulators may be.
    const REGISTERS: usize;
    /// A vector.
    type V: Copy;
    /// `LANES` i32, or `4 · LANES` bytes.
    type I: Copy;

    /// Runs `op` in a function of its own, compiled with the features.
    fn vectorize<O: WithSimd>(self, op: O) -> O::Output;
    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;
    /// The first `LANES` values of `s`; panics if there are fewer.
    fn load(self, s: &[f32]) -> Self::V;
    /// Stores to the first `LANES` values of `s`; panics if there are fewer.
    fn store(self, v: Self::V, s: &mut [f32]);
    /// The first `LANES` bf16 bit patterns of `s`, widened; panics if there are fewer.
    fn load_bf16(self, s: &[u16]) -> Self::V;
    /// Stores as bf16 bit patterns, rounded to nearest, ties to even; panics if `s` is shorter
    /// than a vector. (With [`dispatch_bf16`] subnormal numbers may become zero, as they do in
    /// [`Self::dot_bf16`].)
    #[inline(always)]
    fn store_bf16(self, v: Self::V, s: &mut [u16]) {
        let mut buffer = [0.0; 16];
        self.store(v, &mut buffer);
        for (to, v) in s[..Self::LANES].iter_mut().zip(buffer) {
            *to = bf16_bits(v);
        }
    }
    /// The first `LANES` values of `s`, widened; panics if there are fewer.
    fn load_i8(self, s: &[i8]) -> Self::V;
    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a − b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a · b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a · b + c`.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Lane-wise maximum; `b` where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// Lane-wise minimum; `b` where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `x` where `a < b`, else `y`.
    fn select_lt(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// Nearest integer, ties to even.
    fn round(self, a: Self::V) -> Self::V;
    /// `2^n` for integral lanes `n` in −126 ..= 127.
    fn pow2(self, n: Self::V) -> Self::V;
    /// `a · 2^n` for integral lanes `n` in −126 ..= 127 where neither end is subnormal.
    #[inline(always)]
    fn scale(self, a: Self::V, n: Self::V) -> Self::V {
        self.mul(a, self.pow2(n))
    }
    /// Sum of the lanes in a fixed order.
    fn sum(self, a: Self::V) -> f32;
    /// The sum of each vector's lanes, as of [`Self::sum`].
    #[inline(always)]
    fn sums<const N: usize>(self, a: &[Self::V; N]) -> [f32; N] {
        let mut sums = [0.0; N];
        for i in 0..N {
            sums[i] = self.sum(a[i]);
        }
        sums
    }
    /// Largest lane.
    fn max_lane(self, a: Self::V) -> f32;

    /// The first `LANES` f16 of `s`, little-endian, widened; panics if there are fewer.
    fn load_f16(self, s: &[u8]) -> Self::V;
    /// The first `LANES` bytes of `s` as unsigned numbers; panics if there are fewer.
    fn load_u8(self, s: &[u8]) -> Self::V;
    /// Stores integral lanes in −128 ..= 127 as bytes; panics if there is less room.
    fn store_i8(self, v: Self::V, s: &mut [u8]);

    /// All lanes `x`.
    fn splat_i(self, x: i32) -> Self::I;
    /// The first `4 · LANES` bytes of `s`; panics if there are fewer.
    fn load_i(self, s: &[u8]) -> Self::I;
    /// Stores `4 · LANES` bytes; panics if there is less room.
    fn store_i(self, v: Self::I, s: &mut [u8]);
    /// Bitwise `a & b`.
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Bitwise `a | b`.
    fn or_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Every i32 shifted left by `N`.
    fn shl_i<const N: u32>(self, a: Self::I) -> Self::I;
    /// Every i32 shifted right by `N`, zeros coming in.
    fn shr_i<const N: u32>(self, a: Self::I) -> Self::I;
    /// Byte-wise `table[index]`; every byte of `index` is below 16.
    fn lookup(self, table: &[u8; 16], index: Self::I) -> Self::I;
    /// `acc + Σ w·a` over the four bytes of every lane, exact: w unsigned, a in −127 ..= 127.
    /// `low` promises that every w is at most 127; else the products are of `w − HIGH_BIAS`.
    fn dot(self, acc: Self::I, w: Self::I, a: Self::I, low: bool) -> Self::I;
    /// What [`Self::dot`] takes from bytes that may be above 127: 128 where signed bytes are faster.
    const HIGH_BIAS: i32 = 0;
    /// Whether [`Self::dot_pairs`] is the fast way to sum up several dot products.
    const PAIRS: bool = false;
    /// `acc + w·a` of every pair of bytes, in 16 bits, where `PAIRS`: exact while the sum over
    /// all calls of `2 · 127 · max w` is below 2¹⁵.
    #[inline(always)]
    fn dot_pairs(self, _acc: Self::I, _w: Self::I, _a: Self::I) -> Self::I {
        unreachable!("only where PAIRS")
    }
    /// `acc + Σ pairs`: the two i16 of every lane added to its i32, where `PAIRS`.
    #[inline(always)]
    fn add_pairs(self, _acc: Self::I, _pairs: Self::I) -> Self::I {
        unreachable!("only where PAIRS")
    }
    /// The same bits as f32.
    fn cast_f32(self, a: Self::I) -> Self::V;
    /// The same bits as i32.
    fn cast_i32(self, a: Self::V) -> Self::I;
    /// Every i32 as f32.
    fn to_f32(self, a: Self::I) -> Self::V;
    /// `acc + w₀a₀ + w₁a₁` over the two bf16 of every lane.
    fn dot_bf16(self, acc: Self::V, w: Self::I, a: Self::I) -> Self::V;
    /// Pairs of bf16, those of `low` in the lower halves; rounded as by [`Self::store_bf16`].
    #[inline(always)]
    fn pair_bf16(self, low: Self::V, high: Self::V) -> Self::I {
        let (mut halves, mut pairs) = ([[0; 16]; 2], [0; 16]);
        self.store_bf16(low, &mut halves[0]);
        self.store_bf16(high, &mut halves[1]);
        for (i, pair) in pairs.iter_mut().enumerate() {
            *pair = u32::from(halves[0][i]) | u32::from(halves[1][i]) << 16;
        }
        self.load_i(bytemuck::cast_slice(&pairs))
    }
    /// `a − x` of every byte, modulo 256.
    #[inline(always)]
    fn sub_bytes(self, a: Self::I, x: u8) -> Self::I {
        let mut bytes = [0; 64];
        self.store_i(a, &mut bytes);
        self.load_i(&bytes.map(|byte| byte.wrapping_sub(x)))
    }
    /// Four columns of bytes side by side: byte c of a word is column c's. Bytes 16·L + 4·v + i of
    /// the columns become word 4·L + i of result v; with one lane, bytes v word 0 of result v.
    #[inline(always)]
    fn interleave(self, columns: [Self::I; 4]) -> [Self::I; 4] {
        let (mut from, mut to) = ([[0; 64]; 4], [[0; 64]; 4]);
        for c in 0..4 {
            self.store_i(columns[c], &mut from[c]);
        }
        for (v, to) in to.iter_mut().enumerate() {
            for word in 0..Self::LANES {
                let at = if Self::LANES == 1 { v } else { word / 4 * 16 + 4 * v + word % 4 };
                for c in 0..4 {
                    to[4 * word + c] = from[c][at];
                }
            }
        }
        array!(4, v => self.load_i(&to[v]))
    }
    /// Asks for the cache line where `s` begins: a hint that changes no value.
    #[inline(always)]
    fn prefetch<T>(self, _s: &[T]) {}

    /// As [`Simd::prefetch`], into the second cache: for what is read after other work.
    #[inline(always)]
    fn prefetch_far<T>(self, _s: &[T]) {}

    /// Zero.
    #[inline(always)]
    fn zero(self) -> Self::V {
        self.splat(0.0)
    }

    /// The first `min(LANES, s.len())` values of `s`, other lanes zero.
    #[inline(always)]
    fn load_partial(self, s: &[f32]) -> Self::V {
        if s.len() >= Self::LANES {
            return self.load(s);
        }
        let mut buffer = [0.0; 16];
        buffer[..s.len()].copy_from_slice(s);
        self.load(&buffer)
    }

    /// Stores the first `min(LANES, s.len())` lanes.
    #[inline(always)]
    fn store_partial(self, v: Self::V, s: &mut [f32]) {
        if s.len() >= Self::LANES {
            return self.store(v, s);
        }
        let mut buffer = [0.0; 16];
        self.store(v, &mut buffer);
        let n = s.len();
        s.copy_from_slice(&buffer[..n]);
    }

    /// `e^a`, within 2 units in the last place; 0 below −87.33, `e^88.37` above
    /// 88.37, NaN for NaN.
    ///
    /// Source: Cody–Waite reduction by ln 2 in two parts and a degree-6 minimax polynomial
    /// (Cephes `expf`).
    #[inline(always)]
    fn exp(self, a: Self::V) -> Self::V {
        // The bound comes first: a NaN in the second operand survives `max` and `min`.
        let x = self.min(self.splat(88.37), self.max(self.splat(-87.33), a));
        let n = self.round(self.mul(x, self.splat(std::f32::consts::LOG2_E)));
        let r = self.fma(n, self.splat(-0.693_359_4), x);
        let r = self.fma(n, self.splat(2.121_944_4e-4), r);
        let mut p = self.splat(1.987_569_1e-4);
        for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
            p = self.fma(p, r, self.splat(c));
        }
        let y = self.add(self.fma(p, self.mul(r, r), r), self.splat(1.0));
        let y = self.scale(y, n);
        self.select_lt(a, self.splat(-87.33), self.zero(), y)
    }

    /// `a / (1 + e^−a)`.
    #[inline(always)]
    fn silu(self, a: Self::V) -> Self::V {
        let e = self.exp(self.sub(self.zero(), a));
        self.div(a, self.add(self.splat(1.0), e))
    }
}

/// The bits of the nearest bf16, ties to even; NaN stays NaN. Without branches, so that loops
/// over it become vector code.
#[inline(always)]
pub(crate) fn bf16_bits(v: f32) -> u16 {
    let bits = v.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet_nan = (bits >> 16) | 0x40;
    (if v.is_nan() { quiet_nan } else { rounded }) as u16
}

/// A body that is generic over the instruction set.
pub trait WithSimd {
    /// What it returns.
    type Output;
    /// The body; mark implementations `#[inline(always)]`.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// Runs `op` compiled for `isa`.
///
/// # Panics
/// If this machine lacks `isa`.
pub fn dispatch<O: WithSimd>(isa: Isa, op: O) -> O::Output {
    match isa {
        Isa::Scalar => crate::arch::scalar::Scalar.vectorize(op),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => crate::arch::x86_64::Avx2::new().expect("AVX2 and FMA").vectorize(op),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => {
            crate::arch::x86_64::Avx512::<false>::new().expect("AVX-512").vectorize(op)
        }
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => crate::arch::aarch64::Neon::new().expect("NEON").vectorize(op),
        #[allow(unreachable_patterns)]
        other => panic!("instruction set {other} is not available on this machine"),
    }
}

/// [`dispatch`] for ops that live on [`Simd::dot_bf16`]: with the CPU's own instruction for it
/// where there is one.
pub fn dispatch_bf16<O: WithSimd>(isa: Isa, op: O) -> O::Output {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512
        && let Some(token) = crate::arch::x86_64::Avx512::<true>::new()
    {
        return token.vectorize(op);
    }
    dispatch(isa, op)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exp<'a>(&'a [f32], &'a mut [f32]);
    impl WithSimd for Exp<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for (x, y) in self.0.chunks(S::LANES).zip(self.1.chunks_mut(S::LANES)) {
                s.store_partial(s.exp(s.load_partial(x)), y);
            }
        }
    }

    struct Sums<'a, const N: usize>(&'a [f32]);
    impl<const N: usize> WithSimd for Sums<'_, N> {
        type Output = Vec<[f32; 2]>;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<[f32; 2]> {
            let a: [S::V; N] = std::array::from_fn(|i| s.load(&self.0[i * S::LANES..]));
            let sums = s.sums(&a);
            (0..N).map(|i| [sums[i], s.sum(a[i])]).collect()
        }
    }

    #[test]
    fn sums_of_several_vectors_are_those_of_each() {
        let values: Vec<f32> = crate::ops::testing::values(16 * 9, 3);
        for isa in Isa::available() {
            let several = [
                dispatch(isa, Sums::<1>(&values)),
                dispatch(isa, Sums::<4>(&values)),
                dispatch(isa, Sums::<9>(&values)),
            ];
            for [together, alone] in several.into_iter().flatten() {
                assert_eq!(together.to_bits(), alone.to_bits(), "{isa}");
            }
        }
    }

    #[test]
    fn exp_is_within_two_ulp_on_every_isa() {
        let x: Vec<f32> = (-8733..8830).map(|i| i as f32 * 0.01).collect();
        for isa in Isa::available() {
            let mut y = vec![0.0; x.len()];
            dispatch(isa, Exp(&x, &mut y));
            for (&x, &y) in x.iter().zip(&y) {
                let want = f64::from(x).exp();
                let ulp = want * f64::from(f32::EPSILON);
                assert!((f64::from(y) - want).abs() <= 2.0 * ulp, "{isa}: exp({x}) = {y} ≠ {want}");
            }
            let mut edge = [0.0; 2];
            dispatch(isa, Exp(&[-1e30, f32::NEG_INFINITY], &mut edge));
            assert_eq!(edge, [0.0, 0.0], "{isa}");
        }
    }

    struct StoreBf16<'a>(&'a [f32; 16], &'a mut [u16; 16]);
    impl WithSimd for StoreBf16<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for (x, y) in self.0.chunks(S::LANES).zip(self.1.chunks_mut(S::LANES)) {
                s.store_bf16(s.load(x), y);
            }
        }
    }

    #[test]
    fn bf16_is_stored_as_the_half_crate_rounds() {
        let mut x: Vec<f32> = (0..16 * 512).map(|i| (i as f32 - 4000.0) * 1.234_567e-3).collect();
        let ties = [0x3f80_8000, 0x3f81_8000, 0x7f7f_ffff, 0x7f80_0000, 0xffc1_2345, 0x7f80_0001];
        x[..6].copy_from_slice(&ties.map(f32::from_bits));
        for isa in Isa::available() {
            for x in x.chunks_exact(16) {
                let x: &[f32; 16] = x.try_into().unwrap();
                let mut got = [0; 16];
                dispatch(isa, StoreBf16(x, &mut got));
                assert_eq!(got, x.map(|v| half::bf16::from_f32(v).to_bits()), "{isa} {x:?}");
            }
        }
    }

    struct Lanes<'a>(&'a [f32; 16], &'a [u16; 16], &'a [i8; 16]);
    impl WithSimd for Lanes<'_> {
        type Output = Vec<f32>;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<f32> {
            let (a, b) = (s.load(self.0), s.load_bf16(self.1));
            let mut out = vec![s.sum(a), s.max_lane(a)];
            for v in [
                s.add(a, b),
                s.sub(a, b),
                s.mul(a, b),
                s.div(a, b),
                s.fma(a, b, a),
                s.max(a, b),
                s.min(a, b),
                s.select_lt(a, b, a, s.splat(9.0)),
                s.round(s.mul(a, s.splat(0.5))),
                s.pow2(a),
                s.scale(b, a),
                s.silu(a),
                s.load_i8(self.2),
            ] {
                let mut lane = [0.0; 16];
                s.store(v, &mut lane);
                out.extend_from_slice(&lane[..S::LANES]);
            }
            out
        }
    }

    /// Every lane of every operation against plain arithmetic (values are exact in f32).
    #[test]
    fn operations_mean_the_same_on_every_isa() {
        let a: [f32; 16] = std::array::from_fn(|i| i as f32 - 5.0);
        let b: [f32; 16] = std::array::from_fn(|i| if i % 2 == 0 { 2.0 } else { -4.0 });
        let bits: [u16; 16] = std::array::from_fn(|i| (b[i].to_bits() >> 16) as u16);
        let bytes: [i8; 16] = std::array::from_fn(|i| [-128, 127, 0, -3][i % 4]);
        for isa in Isa::available() {
            let got = dispatch(isa, Lanes(&a, &bits, &bytes));
            let lanes = (got.len() - 2) / 13;
            let mut want = vec![a[..lanes].iter().sum(), a[lanes - 1]];
            let ops: [fn(f32, f32) -> f32; 12] = [
                |a, b| a + b,
                |a, b| a - b,
                |a, b| a * b,
                |a, b| a / b,
                |a, b| a * b + a,
                f32::max,
                f32::min,
                |a, b| if a < b { a } else { 9.0 },
                |a, _| (a * 0.5).round_ties_even(),
                |a, _| a.exp2(),
                |a, b| b * a.exp2(),
                |a, _| a / (1.0 + (-a).exp()),
            ];
            for op in ops {
                want.extend((0..lanes).map(|i| op(a[i], b[i])));
            }
            want.extend(bytes[..lanes].iter().map(|&byte| f32::from(byte)));
            for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                assert!((g - w).abs() <= 3e-7 * w.abs(), "{isa} value {i}: {g} ≠ {w}");
            }
        }
    }
}
