//! Twelve rows of bytes against two panels, block by block: tiles for the exact sums, AVX-512 for
//! the scales. All of it is one piece of assembly, because its 24 sums in f32 fill the registers to
//! the last, and compilers spill them around the tiles.
//!
//! While vector code scales the sums of a block, the unit multiplies the next one: two buffers.

use crate::arch::tiles::{BYTE_ROWS, ByteRows, ByteSums, WidePair};
use core::arch::asm;

/// Sums of one block: of two tiles, twelve rows each.
#[repr(C, align(64))]
struct BlockSums([[i32; 16]; 2 * BYTE_ROWS]);

/// One function. A row's numbers are the places of its two rows in the block's sums and of its two
/// in the result, and its two registers; its name is that of the register that points to the factors
/// of every third row, and a number of rows from there. With `min` come the instructions that add it.
macro_rules! multiply {
    (
        $name:ident, $has_min:literal, $min:tt,
        [$(($x:literal, $c0:literal, $c1:literal, $to0:literal, $to1:literal,
            $first:literal, $second:literal)),*]
    ) => {
        /// # Safety
        /// The CPU has AMX-INT8 and AVX-512, tiles are set up for bytes, the operands are as long as
        /// [`crate::arch::tiles::ByteTiles::multiply`] says, with at least one block.
        pub(super) unsafe fn $name(a: ByteRows, b: WidePair, c: &mut ByteSums) {
            let mut sums = [const { BlockSums([[0; 16]; 2 * BYTE_ROWS]) }; 2];
            let [even, odd] = &mut sums;
            let factors = |row: usize| a.factors[row * b.blocks..].as_ptr();
            // SAFETY: as of the caller.
            unsafe {
                asm!(
                    $(concat!("vpxord zmm", $first, ", zmm", $first, ", zmm", $first),
                      concat!("vpxord zmm", $second, ", zmm", $second, ", zmm", $second),)*
                    "mov {row}, 64",
                    block!("c0"),
                    "2:",
                    "add {w}, {block}",
                    "cmp {n}, 1",
                    "je 3f",
                    "add {a}, 32",
                    block!("c1"),
                    "3:",
                    "vmovups zmm0, [{w} - {block} + 1024]",
                    "vmovups zmm1, [{w} - {block} + 1088]",
                    $(concat!("vbroadcastss zmm2, dword ptr [", $x, "]"),
                      "vmulps zmm3, zmm0, zmm2",
                      "vmulps zmm4, zmm1, zmm2",
                      concat!("vcvtdq2ps zmm5, zmmword ptr [{c0} + ", $c0, "]"),
                      concat!("vcvtdq2ps zmm6, zmmword ptr [{c0} + ", $c1, "]"),
                      concat!("vfmadd231ps zmm", $first, ", zmm5, zmm3"),
                      concat!("vfmadd231ps zmm", $second, ", zmm6, zmm4"),
                      min!($min, concat!("vbroadcastss zmm7, dword ptr [", $x, " + 4]")),
                      min!($min, concat!(
                          "vfmadd231ps zmm", $first, ", zmm7, zmmword ptr [{w} - {block} + 1152]")),
                      min!($min, concat!(
                          "vfmadd231ps zmm", $second, ", zmm7, zmmword ptr [{w} - {block} + 1216]")),
                    )*
                    "add {x0}, 8",
                    "add {x3}, 8",
                    "add {x6}, 8",
                    "add {x9}, 8",
                    "xchg {c0}, {c1}",
                    "dec {n}",
                    "jnz 2b",
                    $(concat!("vmovups zmmword ptr [{to} + ", $to0, "], zmm", $first),
                      concat!("vmovups zmmword ptr [{to} + ", $to1, "], zmm", $second),)*
                    "vzeroupper",
                    a = inout(reg) a.bytes.as_ptr() => _,
                    stride = in(reg) b.blocks * 32,
                    w = inout(reg) b.bytes.as_ptr() => _,
                    x0 = inout(reg) factors(0) => _,
                    x3 = inout(reg) factors(3) => _,
                    x6 = inout(reg) factors(6) => _,
                    x9 = inout(reg) factors(9) => _,
                    s = in(reg) b.blocks * size_of::<[f32; 2]>(),
                    c0 = inout(reg) even.0.as_mut_ptr() => _,
                    c1 = inout(reg) odd.0.as_mut_ptr() => _,
                    n = inout(reg) b.blocks => _,
                    to = in(reg) c.0.as_mut_ptr(),
                    row = out(reg) _,
                    block = const WidePair::block_bytes($has_min),
                    out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                    out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _,
                    out("zmm4") _, out("zmm5") _, out("zmm6") _, out("zmm7") _,
                    out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
                    out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _,
                    out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _,
                    out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
                    out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _,
                    out("zmm28") _, out("zmm29") _, out("zmm30") _, out("zmm31") _,
                    options(nostack),
                );
            }
        }
    };
}

/// The exact sums of the block at `w` with the rows at `a`.
macro_rules! block {
    ($to:literal) => {
        concat!(
            "tileloadd tmm4, [{a} + {stride}*1]\n",
            "tileloadd tmm6, [{w} + {row}*1]\n",
            "tileloadd tmm7, [{w} + {row}*1 + 512]\n",
            "tilezero tmm0\n",
            "tilezero tmm1\n",
            "tdpbssd tmm0, tmm4, tmm6\n",
            "tdpbssd tmm1, tmm4, tmm7\n",
            "tilestored [{",
            $to,
            "} + {row}*1], tmm0\n",
            "tilestored [{",
            $to,
            "} + {row}*1 + 768], tmm1",
        )
    };
}

/// An instruction, or none.
macro_rules! min {
    (true, $instruction:expr) => {
        $instruction
    };
    (false, $instruction:expr) => {
        ""
    };
}

/// Both functions, with the numbers of the twelve rows.
macro_rules! both {
    ($rows:tt) => {
        multiply!(multiply, false, false, $rows);
        multiply!(multiply_with_min, true, true, $rows);
    };
}

both!([
    ("{x0}", 0, 768, 0, 64, 8, 9),
    ("{x0} + {s}", 64, 832, 128, 192, 10, 11),
    ("{x0} + 2*{s}", 128, 896, 256, 320, 12, 13),
    ("{x3}", 192, 960, 384, 448, 14, 15),
    ("{x3} + {s}", 256, 1024, 512, 576, 16, 17),
    ("{x3} + 2*{s}", 320, 1088, 640, 704, 18, 19),
    ("{x6}", 384, 1152, 768, 832, 20, 21),
    ("{x6} + {s}", 448, 1216, 896, 960, 22, 23),
    ("{x6} + 2*{s}", 512, 1280, 1024, 1088, 24, 25),
    ("{x9}", 576, 1344, 1152, 1216, 26, 27),
    ("{x9} + {s}", 640, 1408, 1280, 1344, 28, 29),
    ("{x9} + 2*{s}", 704, 1472, 1408, 1472, 30, 31)
]);
