//! Zeroed memory in huge pages where the system has them, for weights that are streamed.
//!
//! Reading gigabytes a step through 4 KiB pages costs a page walk every 4 KiB; through 2 MiB
//! pages hardly any. Pages become resident when they are first written.

use memmap2::MmapMut;
use std::io;
use std::ops::{Deref, DerefMut};

/// Owned bytes, aligned to a page.
pub struct HugeBytes(MmapMut);

impl HugeBytes {
    /// `len` zeros.
    ///
    /// # Errors
    /// The system has not so much address space.
    pub fn zeroed(len: usize) -> io::Result<Self> {
        let map = MmapMut::map_anon(len.max(1))?;
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage); // a wish: without it pages are small
        Ok(Self(map))
    }
}

impl Deref for HugeBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for HugeBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_zero_and_writable() {
        let mut bytes = HugeBytes::zeroed(3 << 20).unwrap();
        assert!(bytes.iter().all(|b| *b == 0));
        bytes[2 << 20] = 7;
        assert_eq!(bytes[2 << 20], 7);
        assert!(HugeBytes::zeroed(0).is_ok());
    }
}
