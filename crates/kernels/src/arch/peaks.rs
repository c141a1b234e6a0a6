//! Loops that do nothing but dot products of small types, to measure what the machine can do.
//!
//! Invariant: a [`PeakLoop`] exists only where the CPU has its instruction. The loops keep enough
//! independent accumulators in registers to fill every execution unit, and read no memory.

use crate::Isa;

/// A loop over one instruction.
#[derive(Clone, Copy)]
pub struct PeakLoop {
    /// The instruction, as the manual spells it.
    pub instruction: &'static str,
    /// Multiplications and additions, counted separately, of one turn.
    pub ops_per_turn: usize,
    body: unsafe fn(usize),
}

impl PeakLoop {
    /// Runs `turns` turns on the calling thread.
    pub fn run(&self, turns: usize) {
        // SAFETY: the functions below make a loop only where the CPU has its features.
        unsafe { (self.body)(turns) }
    }
}

/// Dot products of bf16, on the matrix unit where `isa` has one.
pub fn bf16_dot(isa: Isa) -> Option<PeakLoop> {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Amx {
        return loops::bf16_tiles();
    }
    let _ = isa;
    loops::bf16_dot()
}

/// Dot products of bytes, on the matrix unit where `isa` has one.
pub fn int8_dot(isa: Isa) -> Option<PeakLoop> {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Amx {
        return loops::int8_tiles();
    }
    let _ = isa;
    loops::int8_dot()
}

#[cfg(target_arch = "x86_64")]
mod loops {
    use super::PeakLoop;
    use crate::arch::x86_64::Amx;
    use core::arch::x86_64::*;
    use std::hint::black_box;

    /// Accumulators of the 512-bit loops: two pipes of latency 4 to 6, of 32 registers.
    const WIDE: usize = 20;
    /// Accumulators of the 256-bit loops, of 16 registers.
    const NARROW: usize = 10;

    /// `TDPBF16PS` on whole tiles, where the CPU has it.
    pub(super) fn bf16_tiles() -> Option<PeakLoop> {
        Amx::new().map(|_| PeakLoop {
            instruction: "tdpbf16ps",
            ops_per_turn: Amx::PRODUCTS * 16 * 16 * 32 * 2,
            body: |turns| Amx::new().expect("AMX").turn_bf16(turns),
        })
    }

    /// `TDPBSSD` on whole tiles, where the CPU has it.
    pub(super) fn int8_tiles() -> Option<PeakLoop> {
        Amx::new().map(|_| PeakLoop {
            instruction: "tdpbssd",
            ops_per_turn: Amx::PRODUCTS * 16 * 16 * 64 * 2,
            body: |turns| Amx::new().expect("AMX").turn_bytes(turns),
        })
    }

    /// `VDPBF16PS` on 512 bits, where the CPU has it.
    pub(super) fn bf16_dot() -> Option<PeakLoop> {
        let found = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
        found.then_some(PeakLoop {
            instruction: "vdpbf16ps",
            ops_per_turn: WIDE * 32 * 2,
            body: vdpbf16ps,
        })
    }

    /// The widest dot product of bytes: AVX-512 VNNI, AVX-VNNI, or AVX2 with sums of 16 bits.
    pub(super) fn int8_dot() -> Option<PeakLoop> {
        let (instruction, ops_per_turn, body): (_, _, unsafe fn(usize)) =
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
                ("vpdpbusd, 512 bits", WIDE * 64 * 2, vpdpbusd_512)
            } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("avxvnni") {
                ("vpdpbusd, 256 bits", NARROW * 32 * 2, vpdpbusd_256)
            } else if is_x86_feature_detected!("avx2") {
                ("vpmaddubsw", NARROW * 32 * 2, vpmaddubsw)
            } else {
                return None;
            };
        Some(PeakLoop { instruction, ops_per_turn, body })
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn vdpbf16ps(turns: usize) {
        // SAFETY: any bits are valid in every lane.
        let [a, b] = black_box([1u16, 2].map(|x| unsafe {
            std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi16(x as i16))
        }));
        let mut acc = black_box([_mm512_setzero_ps(); WIDE]);
        for _ in 0..turns {
            for v in &mut acc {
                *v = _mm512_dpbf16_ps(*v, a, b);
            }
        }
        black_box(acc);
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn vpdpbusd_512(turns: usize) {
        let [a, b] = black_box([_mm512_set1_epi8(1), _mm512_set1_epi8(2)]);
        let mut acc = black_box([_mm512_setzero_si512(); WIDE]);
        for _ in 0..turns {
            for v in &mut acc {
                *v = _mm512_dpbusd_epi32(*v, a, b);
            }
        }
        black_box(acc);
    }

    #[target_feature(enable = "avx2,avxvnni")]
    fn vpdpbusd_256(turns: usize) {
        let [a, b] = black_box([_mm256_set1_epi8(1), _mm256_set1_epi8(2)]);
        let mut acc = black_box([_mm256_setzero_si256(); NARROW]);
        for _ in 0..turns {
            for v in &mut acc {
                *v = _mm256_dpbusd_avx_epi32(*v, a, b);
            }
        }
        black_box(acc);
    }

    #[target_feature(enable = "avx2")]
    fn vpmaddubsw(turns: usize) {
        let b = black_box(_mm256_set1_epi8(2));
        let mut acc = black_box([_mm256_setzero_si256(); NARROW]);
        for _ in 0..turns {
            for v in &mut acc {
                // The sum is an operand, so that no two turns multiply the same values.
                *v = _mm256_add_epi16(*v, _mm256_maddubs_epi16(*v, b));
            }
        }
        black_box(acc);
    }
}

#[cfg(target_arch = "aarch64")]
mod loops {
    use super::PeakLoop;
    use core::arch::asm;
    use std::arch::is_aarch64_feature_detected;

    /// Instructions of one turn: each has a register of its own to add to.
    const UNROLL: usize = 16;

    /// Sixteen times one dot-product instruction, into v0 to v15.
    macro_rules! turn {
        ($extension:literal, $op:literal, $from:literal) => {
            asm!(
                concat!(".arch_extension ", $extension),
                concat!($op, " v0.4s, v16.", $from, ", v17.", $from),
                concat!($op, " v1.4s, v16.", $from, ", v17.", $from),
                concat!($op, " v2.4s, v16.", $from, ", v17.", $from),
                concat!($op, " v3.4s, v16.", $from, ", v17.", $from),
                concat!($op, " v4.4s, v16.", $from, ", v17.", $from),
                concat!($op, " v5.4s, v16.", $from, ", v17.", $from),
                concat!($op, " v6.4s, v16.", $from, ", v17.", $from),
                concat!($op, " v7.4s, v16.", $from, ", v17.", $from),
                concat!($op, " v8.4s, v16.", $from, ", v17.", $from),
                concat!($op, " v9.4s, v16.", $from, ", v17.", $from),
                concat!($op, " v10.4s, v16.", $from, ", v17.", $from),
                concat!($op, " v11.4s, v16.", $from, ", v17.", $from),
                concat!($op, " v12.4s, v16.", $from, ", v17.", $from),
                concat!($op, " v13.4s, v16.", $from, ", v17.", $from),
                concat!($op, " v14.4s, v16.", $from, ", v17.", $from),
                concat!($op, " v15.4s, v16.", $from, ", v17.", $from),
                out("v0") _, out("v1") _, out("v2") _, out("v3") _,
                out("v4") _, out("v5") _, out("v6") _, out("v7") _,
                out("v8") _, out("v9") _, out("v10") _, out("v11") _,
                out("v12") _, out("v13") _, out("v14") _, out("v15") _,
                options(nomem, nostack, preserves_flags),
            )
        };
    }

    /// `BFDOT`, where the CPU has it.
    pub(super) fn bf16_dot() -> Option<PeakLoop> {
        let found = is_aarch64_feature_detected!("bf16");
        found.then_some(PeakLoop {
            instruction: "bfdot",
            ops_per_turn: UNROLL * 8 * 2,
            body: bfdot,
        })
    }

    /// `SDOT`, where the CPU has it.
    pub(super) fn int8_dot() -> Option<PeakLoop> {
        let found = is_aarch64_feature_detected!("dotprod");
        found.then_some(PeakLoop { instruction: "sdot", ops_per_turn: UNROLL * 16 * 2, body: sdot })
    }

    fn bfdot(turns: usize) {
        for _ in 0..turns {
            // SAFETY: made only where the CPU has `bf16`; only the named registers change.
            unsafe { turn!("bf16", "bfdot", "8h") };
        }
    }

    fn sdot(turns: usize) {
        for _ in 0..turns {
            // SAFETY: made only where the CPU has `dotprod`; only the named registers change.
            unsafe { turn!("dotprod", "sdot", "16b") };
        }
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod loops {
    use super::PeakLoop;

    /// No loop is written for this architecture.
    pub(super) fn bf16_dot() -> Option<PeakLoop> {
        None
    }

    /// No loop is written for this architecture.
    pub(super) fn int8_dot() -> Option<PeakLoop> {
        None
    }
}
