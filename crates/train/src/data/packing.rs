//! Best fit: a pack begins with the document that waits longest, then takes the longest one that
//! still fits, until none does.
//!
//! Every document is packed in the end, because each pack takes the oldest; none is split.

/// Takes documents for one pack of at most `pack_len` tokens out of `lengths`, oldest first; gives
/// their positions in the order in which they lie in the pack. Empty only if there are none.
///
/// # Panics
/// If the oldest document is longer than a pack.
pub(super) fn best_fit(lengths: &[usize], pack_len: usize) -> Vec<usize> {
    let Some(&oldest) = lengths.first() else { return Vec::new() };
    assert!(oldest <= pack_len, "a document of {oldest} tokens in packs of {pack_len}");
    let (mut taken, mut room) = (vec![0], pack_len - oldest);
    let mut by_length: Vec<usize> = (1..lengths.len()).collect();
    by_length.sort_by_key(|&i| (std::cmp::Reverse(lengths[i]), i));
    for i in by_length {
        if lengths[i] <= room {
            room -= lengths[i];
            taken.push(i);
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::draw::{Draws, Purpose};

    #[test]
    fn the_oldest_comes_first_then_the_longest_that_fits() {
        assert_eq!(best_fit(&[3, 5, 9, 6, 1], 10), [0, 3, 4]);
        assert_eq!(best_fit(&[10, 1], 10), [0]);
        assert!(best_fit(&[], 10).is_empty());
    }

    #[test]
    fn packs_of_random_lengths_are_nearly_full() {
        let mut draws = Draws::new(3, Purpose::Trace, 0, 0);
        let (mut pool, mut used, mut packs) = (Vec::new(), 0, 0);
        while packs < 500 {
            while pool.len() < 64 {
                pool.push(20 + (draws.share() * 400.0) as usize);
            }
            let mut taken = best_fit(&pool, 1024);
            assert_eq!(taken[0], 0);
            let len: usize = taken.iter().map(|&i| pool[i]).sum();
            assert!(len <= 1024);
            taken.sort_unstable();
            for &at in taken.iter().rev() {
                pool.remove(at);
            }
            (used, packs) = (used + len, packs + 1);
        }
        let fill = used as f64 / (1024 * packs) as f64;
        assert!(fill >= 0.97, "{fill}");
    }
}
