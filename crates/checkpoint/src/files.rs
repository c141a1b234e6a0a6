//! Where a checkpoint's files lie: a directory, a set of files in memory, or nowhere but itself.
//!
//! Every name that reaches the file system here is one plain component, so nothing a file says can
//! lead out of the directory.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::{Error, Mapping};

/// Largest side file (`config.json`, `tokenizer.json`, …) that is read: 64 MiB.
pub const MAX_TEXT_BYTES: usize = 64 << 20;

/// The files beside, and of, a model.
#[derive(Debug)]
pub(crate) enum Files {
    Directory(PathBuf),
    Memory(BTreeMap<String, Arc<Mapping>>),
    /// A model file that stands for itself (a `.gguf` opened by its path).
    None,
}

impl Files {
    /// The path errors give for the file `name`.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        match self {
            Files::Directory(dir) => dir.join(name),
            Files::Memory(_) | Files::None => PathBuf::from(name),
        }
    }

    /// The bytes of the file `name`; `None` where there is no such file.
    pub(crate) fn open(&self, name: &str) -> Result<Option<Arc<Mapping>>, Error> {
        let path = self.path(name);
        if !is_plain(name) {
            return Err(Error::FileName { path, name: name.to_owned() });
        }
        match self {
            Files::Directory(_) => match Mapping::open(&path) {
                Ok(map) => Ok(Some(Arc::new(map))),
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(cause) => Err(Error::io(&path, "open", cause)),
            },
            Files::Memory(files) => Ok(files.get(name).cloned()),
            Files::None => Ok(None),
        }
    }

    /// The text of the file `name`; `None` where there is no such file.
    pub(crate) fn read_text(&self, name: &str) -> Result<Option<String>, Error> {
        let Some(map) = self.open(name)? else { return Ok(None) };
        if map.len() > MAX_TEXT_BYTES {
            let (path, found) = (self.path(name), map.len());
            return Err(Error::TextTooLarge { path, found, max: MAX_TEXT_BYTES });
        }
        match String::from_utf8(map.to_vec()) {
            Ok(text) => Ok(Some(text)),
            Err(error) => {
                let offset = error.utf8_error().valid_up_to();
                Err(Error::TextNotUtf8 { path: self.path(name), offset })
            }
        }
    }

    /// The names of all files that `keep` takes, sorted.
    pub(crate) fn names(&self, keep: impl Fn(&str) -> bool) -> Result<Vec<String>, Error> {
        let mut names = match self {
            Files::Directory(dir) => directory_names(dir)?,
            Files::Memory(files) => files.keys().cloned().collect(),
            Files::None => Vec::new(),
        };
        names.retain(|name| keep(name));
        names.sort();
        Ok(names)
    }
}

/// The names in a directory; those that are not Unicode cannot be meant by anything here.
fn directory_names(dir: &Path) -> Result<Vec<String>, Error> {
    let failed = |cause| Error::io(dir, "list the directory", cause);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    Ok(names)
}

/// Whether `name` is one component on every system: no separator, drive, `.` or `..`, no NUL.
pub(crate) fn is_plain(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!(components.next(), Some(Component::Normal(only)) if only == name)
        && components.next().is_none()
        && !name.contains(['/', '\\', ':', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names() {
        for name in ["model.safetensors", "..a", "ä b"] {
            assert!(is_plain(name), "{name}");
        }
        for name in ["", ".", "..", "../x", "a/b", "/x", "a/", "./a", "a\\b", "c:x", "a\0"] {
            assert!(!is_plain(name), "{name:?}");
        }
    }

    #[test]
    fn text_is_utf8_and_small() {
        let files = |bytes: Vec<u8>| {
            Files::Memory(BTreeMap::from([("a".to_owned(), Arc::new(Mapping::from(bytes)))]))
        };
        assert_eq!(files(b"x".to_vec()).read_text("a").unwrap().as_deref(), Some("x"));
        assert!(files(b"x".to_vec()).read_text("b").unwrap().is_none());
        let error = files(b"ab\xff".to_vec()).read_text("a").unwrap_err();
        assert!(matches!(error, Error::TextNotUtf8 { offset: 2, .. }), "{error}");
        let error = files(vec![b' '; MAX_TEXT_BYTES + 1]).read_text("a").unwrap_err();
        assert!(matches!(error, Error::TextTooLarge { .. }), "{error}");
        let error = files(Vec::new()).read_text("../a").unwrap_err();
        assert!(matches!(error, Error::FileName { .. }), "{error}");
    }
}
