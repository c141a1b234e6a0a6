//! x86-64: AVX2 with FMA, AVX-512, and AMX beside it.

mod amx;
mod avx2;
mod avx512;

pub use amx::Amx;
pub use avx2::Avx2;
pub use avx512::Avx512;
