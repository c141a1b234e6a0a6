//! The bytes of a file, mapped or held in memory, and shared ranges of them.
//!
//! The only `unsafe` of the crate: mapping a file. A map is read-only and private to the process,
//! but it shows the file as it is: whoever truncates or rewrites a model file in place while it is
//! open changes the weights or ends the process with SIGBUS. Replacing a file by rename, as the
//! writers of this crate do, is harmless.

#![allow(unsafe_code)]

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

/// The bytes of one file. `From` takes `Vec<u8>` and `&'static [u8]` for models that lie in memory
/// or are embedded in the program.
pub struct Mapping(Backing);

enum Backing {
    Mapped(Mmap),
    Owned(Vec<u8>),
    Static(&'static [u8]),
}

impl Mapping {
    /// Maps a regular file; anything else (a pipe, a device, a directory) is `InvalidInput`.
    pub(crate) fn open(path: &Path) -> io::Result<Mapping> {
        // Looked at before opening: opening a pipe would wait for its writer.
        if !fs::metadata(path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let file = File::open(path)?;
        // SAFETY: the map is read-only and only ever handed out as `&[u8]`, for which every byte
        // pattern is valid. That nobody truncates or rewrites the file in place while it is mapped
        // is the precondition the head of this file states; no API can enforce it.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Mapping(Backing::Mapped(map)))
    }
}

impl From<Vec<u8>> for Mapping {
    fn from(bytes: Vec<u8>) -> Mapping {
        Mapping(Backing::Owned(bytes))
    }
}

impl From<&'static [u8]> for Mapping {
    fn from(bytes: &'static [u8]) -> Mapping {
        Mapping(Backing::Static(bytes))
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Backing::Mapped(map) => map,
            Backing::Owned(bytes) => bytes,
            Backing::Static(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.0 {
            Backing::Mapped(_) => "mapped",
            Backing::Owned(_) => "owned",
            Backing::Static(_) => "static",
        };
        write!(f, "Mapping({kind}, {} bytes)", self.len())
    }
}

/// A range of a shared [`Mapping`]; dereferences to its bytes, costs a reference count to clone,
/// and keeps the mapping alive. The bytes have no particular alignment.
#[derive(Clone)]
pub struct Region {
    map: Arc<Mapping>,
    range: Range<usize>,
}

impl Region {
    /// `range` must lie inside `map`: the readers have checked it.
    pub(crate) fn new(map: &Arc<Mapping>, range: Range<usize>) -> Region {
        assert!(
            range.start <= range.end && range.end <= map.len(),
            "range {range:?} outside a mapping of {} bytes",
            map.len()
        );
        Region { map: Arc::clone(map), range }
    }

    /// Tells the system that these bytes will hardly be read again: pages of a mapped file leave
    /// this process's memory, and come back from the file if they are read after all.
    pub fn release(&self) {
        #[cfg(unix)]
        if let Backing::Mapped(map) = &self.map.0
            && !self.range.is_empty()
        {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the map is a shared, read-only view of a file; dropped pages are read from
            // the same file again, so no byte that anyone sees changes.
            let _ =
                unsafe { map.unchecked_advise_range(advice, self.range.start, self.range.len()) };
        }
    }
}

impl Deref for Region {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({:?} of {:?})", self.range, self.map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_send_sync_static<T: Send + Sync + Clone + 'static>(_: &T) {}

    #[test]
    fn a_region_outlives_the_handle_it_came_from() {
        let map = Arc::new(Mapping::from(vec![1, 2, 3, 4]));
        let region = Region::new(&map, 1..3);
        drop(map);
        is_send_sync_static(&region);
        assert_eq!(&region.clone()[..], [2, 3]);
    }

    #[test]
    fn files_map_and_other_things_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bytes");
        fs::write(&path, b"abc").unwrap();
        assert_eq!(&Mapping::open(&path).unwrap()[..], b"abc");
        fs::write(&path, b"").unwrap();
        assert!(Mapping::open(&path).unwrap().is_empty());
        assert_eq!(Mapping::open(dir.path()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
