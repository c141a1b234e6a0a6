//! How far two tensors are apart: relative error over all values and the largest absolute one.
//!
//! The relative error is ‖found − expected‖ / ‖expected‖ in f64 (0 where both are zero). A NaN on
//! either side makes it NaN, and NaN is never within a tolerance.

/// A comparison that is fed piece by piece.
#[derive(Clone, Debug, Default)]
pub(crate) struct Difference {
    squared_error: f64,
    squared_expected: f64,
    /// The largest absolute error, `None` before any value.
    worst: Option<Worst>,
}

/// Where the largest absolute error is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Worst {
    /// Position in the expected tensor, row-major.
    pub(crate) index: usize,
    pub(crate) found: f32,
    pub(crate) expected: f32,
}

impl Worst {
    /// The absolute error; infinite where a side is NaN, so that a NaN is the worst of all.
    pub(crate) fn error(&self) -> f64 {
        let error = (f64::from(self.found) - f64::from(self.expected)).abs();
        if error.is_nan() { f64::INFINITY } else { error }
    }

    /// The position as one index for each dimension of `shape`.
    pub(crate) fn coordinates(&self, shape: &[usize]) -> Vec<usize> {
        let mut rest = self.index;
        let mut coordinates: Vec<usize> = shape
            .iter()
            .rev()
            .map(|&dim| {
                let coordinate = rest % dim;
                rest /= dim;
                coordinate
            })
            .collect();
        coordinates.reverse();
        coordinates
    }
}

impl Difference {
    /// Takes in values that lie at `offset` of the expected tensor.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub(crate) fn add(
        &mut self,
        offset: usize,
        found: &[f32],
        expected: impl ExactSizeIterator<Item = f32>,
    ) {
        assert_eq!(found.len(), expected.len(), "both sides of a comparison");
        for (i, (&found, expected)) in found.iter().zip(expected).enumerate() {
            let error = f64::from(found) - f64::from(expected);
            self.squared_error += error * error;
            self.squared_expected += f64::from(expected) * f64::from(expected);
            let here = Worst { index: offset + i, found, expected };
            if self.worst.is_none_or(|worst| here.error() > worst.error()) {
                self.worst = Some(here);
            }
        }
    }

    /// ‖found − expected‖ / ‖expected‖.
    pub(crate) fn relative(&self) -> f64 {
        if self.squared_error == 0.0 {
            return 0.0;
        }
        (self.squared_error / self.squared_expected).sqrt()
    }

    /// The largest absolute error.
    pub(crate) fn worst(&self) -> Option<Worst> {
        self.worst
    }

    /// Whether the relative error is at most `tolerance`.
    pub(crate) fn is_within(&self, tolerance: f64) -> bool {
        self.relative() <= tolerance
    }
}

/// Of two relative errors the worse one; NaN is worst.
pub(crate) fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(found: &[f32], expected: &[f32]) -> Difference {
        let mut whole = Difference::default();
        whole.add(0, found, expected.iter().copied());
        whole
    }

    #[test]
    fn relative_error_and_place() {
        let d = difference(&[3.0, 4.0, 0.5], &[3.0, 4.0, 0.0]);
        assert!((d.relative() - 0.1).abs() < 1e-12);
        assert_eq!(d.worst(), Some(Worst { index: 2, found: 0.5, expected: 0.0 }));
        assert!(d.is_within(0.1001) && !d.is_within(0.0999));
        let worst = Worst { index: 2 * 15 + 3 * 5 + 4, found: 0.0, expected: 0.0 };
        assert_eq!(worst.coordinates(&[9, 3, 5]), [3, 0, 4]);
    }

    #[test]
    fn pieces_add_up_to_the_whole() {
        let found: Vec<f32> = (0..40).map(|i| i as f32 * 1.01).collect();
        let expected: Vec<f32> = (0..40).map(|i| i as f32).collect();
        let whole = difference(&found, &expected);
        let mut pieces = Difference::default();
        for at in (0..40).step_by(8) {
            pieces.add(at, &found[at..at + 8], expected[at..at + 8].iter().copied());
        }
        assert_eq!(pieces.relative(), whole.relative());
        assert_eq!(pieces.worst(), whole.worst());
    }

    #[test]
    fn zeros_infinities_and_nan() {
        assert_eq!(difference(&[0.0; 3], &[0.0; 3]).relative(), 0.0);
        assert!(!difference(&[1e-9], &[0.0]).is_within(1e30));
        for (found, expected) in [(f32::NAN, 1.0), (1.0, f32::NAN), (f32::INFINITY, 1.0)] {
            let d = difference(&[100.0, found, 7.0], &[0.0, expected, 7.0]);
            assert!(!d.is_within(1e30), "{found} for {expected}: {}", d.relative());
            assert_eq!(d.worst().unwrap().index, 1);
        }
        assert!(worse(f64::NAN, 1.0).is_nan() && worse(1.0, f64::NAN).is_nan());
        assert_eq!((worse(1.0, 2.0), worse(3.0, 2.0)), (2.0, 3.0));
    }
}
