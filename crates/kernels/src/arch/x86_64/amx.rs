//! AMX: registers of 16 rows of 64 bytes ("tiles") and products of two tiles, of bf16 with sums in
//! f32 and of bytes with sums in i32. Compilers have no stable intrinsics for it, so this is
//! assembly.
//!
//! Invariant: an [`Amx`] value exists only where the CPU has AMX with BF16 and INT8 and the system
//! lets this process use it.
//!
//! `TDPBF16PS` (Intel SDM, vol. 2) adds to an output, for 16 pairs along k at a time, the f32 sums
//! of the products of the first and of the second values, each rounded after every product;
//! subnormal numbers count as zero. An output depends on its row of a and its column of b alone.

use crate::MatMut;
use crate::arch::tiles::{
    BYTE_ROWS, ByteRows, ByteSums, COLUMNS, PairRows, Start, TILE_PAIRS, WidePair,
};
use core::arch::asm;
use core::arch::x86_64::*;
use std::sync::OnceLock;

mod bytes;

/// Rows of a tile.
const TILE_ROWS: usize = 16;
/// Bytes of a row of a tile.
const ROW_BYTES: usize = 4 * TILE_PAIRS;
/// Bytes along k of a product of bytes, and groups of four of them.
const BYTE_DEPTH: usize = 32;
const GROUPS: usize = BYTE_DEPTH / 4;

/// Proof that the CPU has AMX-BF16, AMX-INT8 and AVX-512 with BF16, and that the system allows them.
#[derive(Clone, Copy)]
pub struct Amx(());

impl Amx {
    /// The token, if this machine has the features; asks the system for the tiles the first time.
    pub fn new() -> Option<Self> {
        static FOUND: OnceLock<bool> = OnceLock::new();
        FOUND.get_or_init(|| has_amx() && allowed()).then_some(Self(()))
    }
}

/// CPUID 7: EDX bit 22 AMX-BF16, bit 24 AMX-TILE, bit 25 AMX-INT8; with the sets of
/// `Avx512<true>`, which every CPU with AMX has.
fn has_amx() -> bool {
    let leaves = __cpuid(0).eax;
    let found = leaves >= 7 && {
        let edx = __cpuid_count(7, 0).edx;
        [22, 24, 25].into_iter().all(|bit| edx & (1 << bit) != 0)
    };
    found && super::Avx512::<true>::new().is_some()
}

/// Linux gives a process the room that tiles need in signal frames only when it asks.
#[cfg(target_os = "linux")]
fn allowed() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call reads two integers and changes nothing but this process's permissions.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn allowed() -> bool {
    false
}

impl PairRows<'_> {
    /// Whether `rows` rows of `pairs` pairs are there.
    fn holds(&self, rows: usize, pairs: usize) -> bool {
        let last = (rows - 1).checked_mul(self.stride).and_then(|at| at.checked_add(4 * pairs));
        last.is_some_and(|end| end <= self.bytes.len())
    }

    /// Copies `pairs` pairs, from number `pair` on, of as many rows as `to` has, from `row` on.
    fn copy(&self, row: usize, pair: usize, pairs: usize, to: &mut [[u8; ROW_BYTES]]) {
        for (r, to) in to.iter_mut().enumerate() {
            let from = (row + r) * self.stride + 4 * pair;
            to[..4 * pairs].copy_from_slice(&self.bytes[from..from + 4 * pairs]);
        }
    }
}

/// What `LDTILECFG` reads: palette 1, and for each tile the bytes of a row and the rows.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Config {
    /// Shapes of the tiles in order, rows and bytes of a row; none for those that follow.
    fn new(tiles: [(usize, usize); 8]) -> Self {
        let of = |i: usize| tiles.get(i).copied().unwrap_or_default();
        Self {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: std::array::from_fn(|i| of(i).1 as u16),
            rows: std::array::from_fn(|i| of(i).0 as u8),
        }
    }

    /// For bf16: tiles 0–3 are sums, 4 and 5 rows of a, 6 and 7 pairs of rows of b; `upper` rows in
    /// 0, 1 and 4.
    fn bf16(upper: usize, lower: usize) -> Self {
        let rows = [upper, upper, lower, lower, upper, lower, TILE_PAIRS, TILE_PAIRS];
        Self::new(rows.map(|rows| (rows, ROW_BYTES)))
    }

    /// For bytes: tiles 0 and 1 are sums, 4 rows of a, 6 and 7 groups of b.
    fn bytes() -> Self {
        let (sums, a, b) = ((BYTE_ROWS, ROW_BYTES), (BYTE_ROWS, BYTE_DEPTH), (GROUPS, ROW_BYTES));
        Self::new([sums, sums, sums, sums, a, a, b, b])
    }

    /// Sets this thread's tiles up and fills them with zeros.
    ///
    /// # Safety
    /// The CPU has AMX and the system allows it.
    unsafe fn load(&self) {
        // SAFETY: as of the caller; the configurations above are valid: palette 1, 1 to 16 rows of
        // up to 64 bytes.
        unsafe { asm!("ldtilecfg [{0}]", in(reg) self, options(nostack, preserves_flags)) };
    }
}

impl Amx {
    /// See [`crate::arch::tiles::Tiles::multiply`].
    pub(crate) fn multiply(
        self,
        pairs: usize,
        a: PairRows,
        b: [PairRows; 2],
        mut c: MatMut,
        start: Start,
    ) {
        let rows = c.rows();
        assert_eq!(c.cols(), COLUMNS, "columns of two tiles");
        if rows == 0 {
            return;
        }
        if pairs == 0 {
            if start == Start::Zero {
                (0..rows).for_each(|r| c.row_mut(r).fill(0.0));
            }
            return;
        }
        assert!(a.holds(rows, pairs) && b.iter().all(|b| b.holds(pairs, TILE_PAIRS)));
        assert_eq!(b[0].stride, b[1].stride, "parts of b");
        let (c, c_stride) = c.raw();
        let (whole, rest) = (pairs - pairs % TILE_PAIRS, pairs % TILE_PAIRS);
        let mut last_b = [[[0; ROW_BYTES]; TILE_PAIRS]; 2];
        if rest > 0 {
            last_b
                .iter_mut()
                .zip(b)
                .for_each(|(to, b)| b.copy(whole, 0, TILE_PAIRS, &mut to[..rest]));
        }
        let mut set_up = 0;
        for from in (0..rows).step_by(2 * TILE_ROWS) {
            let height = (rows - from).min(2 * TILE_ROWS);
            if height != set_up {
                let lower = height.saturating_sub(TILE_ROWS).max(1);
                // SAFETY: the token proves AMX.
                unsafe { Config::bf16(height.min(TILE_ROWS), lower).load() };
                set_up = height; // Costs more than a step of the loop: only where it changes.
            }
            let c = c.wrapping_add(from * c_stride);
            let mut start = start;
            let mut block = |a: *const u8, a_stride, b: [*const u8; 2], b_stride, steps| {
                let at = Pointers { a, a_stride, b, b_stride, c, c_stride: 4 * c_stride, start };
                start = Start::Output;
                // SAFETY: the token proves AMX, and the tiles are set up to read and write `height`
                // rows of a and c and `steps · 16` rows of b, which `c` and the assertions above (or the
                // arrays of the last pairs) show to be there.
                unsafe { if height > TILE_ROWS { at.two_tiles(steps) } else { at.one_tile(steps) } }
            };
            if whole > 0 {
                let at = a.bytes[from * a.stride..].as_ptr();
                let b_at = b.map(|b| b.bytes.as_ptr());
                block(at, a.stride, b_at, b[0].stride, whole / TILE_PAIRS);
            }
            if rest > 0 {
                let mut last_a = [[0; ROW_BYTES]; 2 * TILE_ROWS];
                a.copy(from, whole, rest, &mut last_a[..height]);
                let b_at = [last_b[0].as_ptr().cast(), last_b[1].as_ptr().cast()];
                block(last_a.as_ptr().cast(), ROW_BYTES, b_at, ROW_BYTES, 1);
            }
        }
        self.release();
    }

    /// Sets this thread's tiles up for [`Self::multiply_bytes`].
    pub(crate) fn set_up_bytes(self) {
        // SAFETY: the token proves AMX.
        unsafe { Config::bytes().load() };
    }

    /// Gives this thread's tiles back; their use ends the process until they are set up again.
    pub(crate) fn release(self) {
        // SAFETY: the token proves AMX.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }

    /// See [`crate::arch::tiles::ByteTiles::multiply`].
    pub(crate) fn multiply_bytes(self, a: ByteRows, b: WidePair, c: &mut ByteSums) {
        if b.blocks == 0 {
            c.0 = [[[0.0; 16]; 2]; BYTE_ROWS];
            return;
        }
        assert!(a.bytes.len() >= BYTE_ROWS * b.blocks * BYTE_DEPTH);
        assert!(a.factors.len() >= BYTE_ROWS * b.blocks);
        assert!(b.bytes.len() >= b.blocks * WidePair::block_bytes(b.has_min));
        // SAFETY: the token proves AMX and AVX-512, and the assertions show that the operands are
        // there. Tiles that are set up otherwise than for bytes are only those of `multiply`, which
        // releases them before it returns.
        unsafe {
            if b.has_min {
                bytes::multiply_with_min(a, b, c);
            } else {
                bytes::multiply(a, b, c);
            }
        }
    }
}

impl Amx {
    /// See [`crate::arch::tiles::Tiles::transpose`].
    #[inline(always)]
    pub(crate) fn transpose(self, square: &mut [[u32; 16]; 16]) {
        // SAFETY: every CPU with the token has AVX-512.
        unsafe { transpose(square) }
    }
}

/// In four steps: words of two rows, pairs of words of four rows, and twice quarters of rows.
#[target_feature(enable = "avx512f")]
fn transpose(square: &mut [[u32; 16]; 16]) {
    let mut rows = [_mm512_setzero_si512(); 16];
    for (to, row) in rows.iter_mut().zip(square.iter()) {
        // SAFETY: a row has 64 bytes.
        *to = unsafe { _mm512_loadu_si512(row.as_ptr().cast()) };
    }
    let mut twos = rows;
    for i in (0..16).step_by(2) {
        twos[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        twos[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    // Quarter q of `fours[4 · i + j]` is column 4 · q + j of rows 4 · i to 4 · i + 3.
    let mut fours = rows;
    for i in (0..16).step_by(4) {
        fours[i] = _mm512_unpacklo_epi64(twos[i], twos[i + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(twos[i], twos[i + 2]);
        fours[i + 2] = _mm512_unpacklo_epi64(twos[i + 1], twos[i + 3]);
        fours[i + 3] = _mm512_unpackhi_epi64(twos[i + 1], twos[i + 3]);
    }
    for j in 0..4 {
        let upper = [fours[j], fours[4 + j]];
        let lower = [fours[8 + j], fours[12 + j]];
        let even = |[a, b]: [__m512i; 2]| _mm512_shuffle_i32x4::<0x88>(a, b);
        let odd = |[a, b]: [__m512i; 2]| _mm512_shuffle_i32x4::<0xdd>(a, b);
        let (evens, odds) = ([even(upper), even(lower)], [odd(upper), odd(lower)]);
        rows[j] = even(evens);
        rows[4 + j] = even(odds);
        rows[8 + j] = odd(evens);
        rows[12 + j] = odd(odds);
    }
    for (row, to) in rows.iter().zip(square) {
        // SAFETY: a row has room for 64 bytes.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), *row) };
    }
}

/// Four products of whole tiles, `turns` times over, of tiles of zeros.
macro_rules! turns {
    ($turns:expr, $product:literal) => {
        asm!(
            "2:",
            concat!($product, " tmm0, tmm4, tmm6"),
            concat!($product, " tmm1, tmm4, tmm7"),
            concat!($product, " tmm2, tmm5, tmm6"),
            concat!($product, " tmm3, tmm5, tmm7"),
            "dec {n}",
            "jnz 2b",
            n = inout(reg) $turns => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            options(nomem, nostack),
        )
    };
}

/// For measuring what the unit can do.
impl Amx {
    /// Products of two tiles in a turn.
    pub(crate) const PRODUCTS: usize = 4;

    /// `turns` turns of bf16 that read no memory.
    pub(crate) fn turn_bf16(self, turns: usize) {
        // SAFETY: the token proves AMX.
        unsafe {
            Config::bf16(TILE_ROWS, TILE_ROWS).load();
            turns!(turns.max(1), "tdpbf16ps");
        }
        self.release();
    }

    /// `turns` turns of bytes that read no memory.
    pub(crate) fn turn_bytes(self, turns: usize) {
        // SAFETY: the token proves AMX; the shapes are those of whole tiles.
        unsafe {
            Config::bf16(TILE_ROWS, TILE_ROWS).load();
            turns!(turns.max(1), "tdpbssd");
        }
        self.release();
    }
}

/// Where the operands of a block lie; strides in bytes.
struct Pointers {
    a: *const u8,
    a_stride: usize,
    b: [*const u8; 2],
    b_stride: usize,
    c: *mut f32,
    c_stride: usize,
    start: Start,
}

impl Pointers {
    /// Where the sums begin: tiles 0 and 1, or 2 and 3. (Compilers use no tiles, so these keep their
    /// values until the next piece of assembly.)
    ///
    /// # Safety
    /// The CPU has AMX, tiles are set up for bf16, and c has as many rows as its tiles.
    unsafe fn begin<const LOWER: bool>(&self, c: *const f32) {
        // SAFETY: as of the caller.
        unsafe {
            match (self.start, LOWER) {
                (Start::Zero, false) => asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    out("tmm0") _, out("tmm1") _,
                    options(nomem, nostack, preserves_flags),
                ),
                (Start::Zero, true) => asm!(
                    "tilezero tmm2",
                    "tilezero tmm3",
                    out("tmm2") _, out("tmm3") _,
                    options(nomem, nostack, preserves_flags),
                ),
                (Start::Output, false) => asm!(
                    "tileloadd tmm0, [{c} + {cs}*1]",
                    "tileloadd tmm1, [{c} + {cs}*1 + 64]",
                    c = in(reg) c,
                    cs = in(reg) self.c_stride,
                    out("tmm0") _, out("tmm1") _,
                    options(readonly, nostack, preserves_flags),
                ),
                (Start::Output, true) => asm!(
                    "tileloadd tmm2, [{c} + {cs}*1]",
                    "tileloadd tmm3, [{c} + {cs}*1 + 64]",
                    c = in(reg) c,
                    cs = in(reg) self.c_stride,
                    out("tmm2") _, out("tmm3") _,
                    options(readonly, nostack, preserves_flags),
                ),
            }
        }
    }

    /// As many rows as tile 0 has, times `steps` tiles along k. Loads of a pass by the first cache,
    /// so that b stays there for the rows that follow.
    ///
    /// # Safety
    /// As of [`Self::begin`]; a has as many rows as its tile, b `16 · steps`, and there is a step.
    unsafe fn one_tile(&self, steps: usize) {
        // SAFETY: as of the caller.
        unsafe {
            self.begin::<false>(self.c);
            asm!(
                "2:",
                "tileloaddt1 tmm4, [{a} + {as}*1]",
                "tileloadd tmm6, [{b0} + {bs}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b1} + {bs}*1]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "add {a}, 64",
                "add {b0}, {step}",
                "add {b1}, {step}",
                "dec {n}",
                "jnz 2b",
                "tilestored [{c} + {cs}*1], tmm0",
                "tilestored [{c} + {cs}*1 + 64], tmm1",
                c = in(reg) self.c,
                cs = in(reg) self.c_stride,
                a = inout(reg) self.a => _,
                as = in(reg) self.a_stride,
                b0 = inout(reg) self.b[0] => _,
                b1 = inout(reg) self.b[1] => _,
                bs = in(reg) self.b_stride,
                step = in(reg) self.b_stride * TILE_PAIRS,
                n = inout(reg) steps => _,
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// As [`Self::one_tile`], and the 16 rows behind them that tile 2 has.
    ///
    /// # Safety
    /// As of [`Self::one_tile`].
    unsafe fn two_tiles(&self, steps: usize) {
        // SAFETY: as of the caller.
        unsafe {
            let (a1, c1) = (
                self.a.wrapping_add(TILE_ROWS * self.a_stride),
                self.c.wrapping_byte_add(TILE_ROWS * self.c_stride),
            );
            self.begin::<false>(self.c);
            self.begin::<true>(c1);
            asm!(
                "2:",
                "tileloaddt1 tmm4, [{a} + {as}*1]",
                "tileloadd tmm6, [{b0} + {bs}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b1} + {bs}*1]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloaddt1 tmm5, [{a1} + {as}*1]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a}, 64",
                "add {a1}, 64",
                "add {b0}, {step}",
                "add {b1}, {step}",
                "dec {n}",
                "jnz 2b",
                "tilestored [{c} + {cs}*1], tmm0",
                "tilestored [{c} + {cs}*1 + 64], tmm1",
                "tilestored [{c1} + {cs}*1], tmm2",
                "tilestored [{c1} + {cs}*1 + 64], tmm3",
                c = in(reg) self.c,
                c1 = in(reg) c1,
                cs = in(reg) self.c_stride,
                a = inout(reg) self.a => _,
                a1 = inout(reg) a1 => _,
                as = in(reg) self.a_stride,
                b0 = inout(reg) self.b[0] => _,
                b1 = inout(reg) self.b[1] => _,
                bs = in(reg) self.b_stride,
                step = in(reg) self.b_stride * TILE_PAIRS,
                n = inout(reg) steps => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}
