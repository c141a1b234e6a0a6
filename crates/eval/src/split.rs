//! Which examples are for training, which are held out, which are out of range; and their wording.
//!
//! A structure is held out by its own hash, never by a seed: no seed can bring a held-out one into
//! training.

use std::fmt;
use std::str::FromStr;

/// Of so many structures one is held out.
const ONE_OF: u64 = 5;

/// A set of examples.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Split {
    /// To learn from.
    #[default]
    Train,
    /// Structures that training never shows, in the same range.
    Test,
    /// Out of range: longer chains, more digits, more pairs.
    Hard,
}

impl Split {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Train, Self::Test, Self::Hard];

    /// The name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
            Self::Hard => "hard",
        }
    }

    /// The split of a structure within the range of training.
    pub(crate) fn of(structure: &str) -> Self {
        if hash(structure).is_multiple_of(ONE_OF) { Self::Test } else { Self::Train }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Split {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let split = Self::ALL.into_iter().find(|split| split.name() == text);
        split.ok_or_else(|| format!("expected train, test or hard, found {text:?}"))
    }
}

/// How questions are worded.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Phrasing {
    /// Symbols only, such as `b=0;d=b*9;d?`.
    Terse,
    /// Sentences.
    Natural,
    /// Sentences in 40 % of the examples.
    #[default]
    Mixed,
}

impl Phrasing {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Terse, Self::Natural, Self::Mixed];

    /// The name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Terse => "terse",
            Self::Natural => "natural",
            Self::Mixed => "mixed",
        }
    }
}

impl FromStr for Phrasing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let phrasing = Self::ALL.into_iter().find(|phrasing| phrasing.name() == text);
        phrasing.ok_or_else(|| format!("expected terse, natural or mixed, found {text:?}"))
    }
}

/// 64-bit FNV-1a, its bits mixed once more so that remainders are even. Splits depend on it: it
/// never changes.
pub(crate) fn hash(text: &str) -> u64 {
    let fnv = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let mixed = (fnv ^ (fnv >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_is_held_out() {
        let held = (0..10_000).filter(|n| Split::of(&format!("s{n}")) == Split::Test).count();
        assert!((1_850..2_150).contains(&held), "{held}");
    }

    #[test]
    fn the_hash_stays_as_it_was_published() {
        assert_eq!(hash(""), 17_058_014_651_485_797_458);
    }

    #[test]
    fn names_are_read_back() {
        assert!(Split::ALL.into_iter().all(|split| split.name().parse() == Ok(split)));
        assert!(Phrasing::ALL.into_iter().all(|p| p.name().parse() == Ok(p)));
        assert!("validation".parse::<Split>().unwrap_err().contains("\"validation\""));
    }
}
