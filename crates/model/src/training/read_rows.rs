//! The tokens whose output is read, and what that spares.
//!
//! A loss over replies reads few rows of the last hidden states. Behind the last block in which
//! tokens meet (attention or Mamba-2) no other row matters: that block's last projection and all
//! MLPs after it run on the rows that are read. **Invariant:** what is left out would have added
//! zeros, so in f32 no gradient changes its value; document by document nothing is added across.

use crate::activations::sized;

/// Rows that are read, of a batch in which others are not.
pub(super) struct ReadRows {
    /// Ascending.
    index: Vec<usize>,
    /// How many there are of each document that has any.
    pub(super) documents: Vec<usize>,
}

impl ReadRows {
    /// The rows whose weight is not 0; none if that are all.
    pub(super) fn new(documents: &[usize], weights: &[f32]) -> Option<Self> {
        let is_read = |t: &usize| weights[*t] != 0.0;
        let index: Vec<usize> = (0..weights.len()).filter(is_read).collect();
        let mut from = 0;
        let counts = documents.iter().map(|len| {
            from += len;
            (from - len..from).filter(is_read).count()
        });
        let documents = counts.filter(|&count| count > 0).collect();
        (index.len() < weights.len()).then_some(Self { index, documents })
    }

    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// The rows that are read, out of all.
    pub(super) fn gather<'a>(
        &self,
        all: &[f32],
        cols: usize,
        to: &'a mut Vec<f32>,
    ) -> &'a mut [f32] {
        let to = sized(to, self.len() * cols);
        for (row, t) in to.chunks_exact_mut(cols).zip(&self.index) {
            row.copy_from_slice(&all[t * cols..][..cols]);
        }
        to
    }

    /// Puts rows that are read where they lie among all; the others become 0.
    pub(super) fn scatter(&self, rows: &[f32], cols: usize, all: &mut [f32]) {
        all.fill(0.0);
        for (row, t) in rows.chunks_exact(cols).zip(&self.index) {
            all[t * cols..][..cols].copy_from_slice(row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_and_come_back() {
        assert!(ReadRows::new(&[2, 1], &[1.0; 3]).is_none());
        let read = ReadRows::new(&[2, 1, 3], &[0.0, 1.0, 0.0, 0.5, 0.0, -1.0]).unwrap();
        assert_eq!(read.documents, [1, 2]);
        let (all, mut rows) = ([0, 1, 2, 3, 4, 5].map(|v| v as f32), Vec::new());
        assert_eq!(read.gather(&all, 1, &mut rows), [1.0, 3.0, 5.0]);
        let mut back = [9.0; 6];
        read.scatter(&rows, 1, &mut back);
        assert_eq!(back, [0.0, 1.0, 0.0, 3.0, 0.0, 5.0]);
    }
}
