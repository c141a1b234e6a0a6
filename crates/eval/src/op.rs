//! The three operations of programs and sums.

/// An operation on two numbers; each task adds its wording and its arithmetic.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Op {
    Add,
    Subtract,
    Multiply,
}

impl Op {
    pub(crate) const ALL: [Self; 3] = [Self::Add, Self::Subtract, Self::Multiply];

    pub(crate) fn symbol(self) -> char {
        match self {
            Self::Add => '+',
            Self::Subtract => '-',
            Self::Multiply => '*',
        }
    }
}
