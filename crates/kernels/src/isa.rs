//! Instruction sets: which exist, which this machine has, which one is used.
//!
//! The choice is made once per process by [`Isa::from_env`]; `HYBRA_ISA` overrides detection.

use std::fmt;

/// An instruction set that ops are compiled for, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, one lane; exists everywhere and is the oracle of the others.
    Scalar,
    /// AArch64 Advanced SIMD, 4 lanes.
    Neon,
    /// AVX2 with FMA and F16C, 8 lanes.
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI, 16 lanes.
    Avx512,
    /// The same, with AMX tiles for products of bf16 and of many rows of bytes.
    Amx,
}

/// Why `HYBRA_ISA` cannot be obeyed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IsaError {
    /// The value is no instruction set's name.
    #[error("HYBRA_ISA={0:?}: expected one of amx, avx512, avx2, neon, scalar")]
    Unknown(String),
    /// The machine lacks it.
    #[error("HYBRA_ISA={0}: this machine has only {1}")]
    Unavailable(Isa, String),
}

impl Isa {
    /// All instruction sets, weakest first.
    pub const ALL: [Isa; 5] = [Isa::Scalar, Isa::Neon, Isa::Avx2, Isa::Avx512, Isa::Amx];

    /// The name used by `HYBRA_ISA`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Neon => "neon",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
        }
    }

    /// Whether this machine can run it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            Isa::Neon => cfg!(target_arch = "aarch64"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => crate::arch::x86_64::Avx2::new().is_some(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => crate::arch::x86_64::Avx512::<false>::new().is_some(),
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => crate::arch::x86_64::Amx::new().is_some(),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 | Isa::Amx => false,
        }
    }

    /// Those that this machine can run, weakest first.
    pub fn available() -> Vec<Isa> {
        Self::ALL.into_iter().filter(|i| i.is_available()).collect()
    }

    /// The strongest that this machine can run.
    pub fn best() -> Isa {
        *Self::available().last().expect("scalar is always available")
    }

    /// Reads a name as in `HYBRA_ISA`.
    ///
    /// # Errors
    /// Unknown name, or an instruction set that this machine lacks.
    pub fn parse(name: &str) -> Result<Isa, IsaError> {
        let isa = Self::ALL
            .into_iter()
            .find(|i| i.name() == name)
            .ok_or_else(|| IsaError::Unknown(name.to_owned()))?;
        if isa.is_available() {
            return Ok(isa);
        }
        let have: Vec<_> = Self::available().iter().map(|i| i.name()).collect();
        Err(IsaError::Unavailable(isa, have.join(", ")))
    }

    /// `HYBRA_ISA` if it is set and not empty, else [`Isa::best`].
    ///
    /// # Errors
    /// As [`Isa::parse`].
    pub fn from_env() -> Result<Isa, IsaError> {
        match std::env::var("HYBRA_ISA") {
            Ok(name) if !name.is_empty() => Self::parse(&name),
            _ => Ok(Self::best()),
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_or_say_what_the_machine_has() {
        for isa in Isa::ALL {
            match Isa::parse(isa.name()) {
                Ok(found) => assert_eq!(found, isa),
                Err(e) => assert!(e.to_string().contains("this machine has only scalar"), "{e}"),
            }
        }
        assert!(
            Isa::parse("sse9").unwrap_err().to_string().contains("amx, avx512, avx2, neon, scalar")
        );
    }
}
