//! Files that are whole or absent: written beside their place, synced, and renamed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Replaces the file at `path`.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let parent = parent(path);
    let name = &mut tempfile::Builder::new();
    // Unlike a temporary file's, the permissions are those of any new file.
    let mut file =
        name.prefix(".").suffix(".tmp").make_in(parent, |path| File::create_new(path))?;
    file.as_file_mut().write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync_dir(parent)
}

/// Writes a file that nobody looks at yet, and syncs it.
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Deletes a directory so that a crash leaves no part of it under its name.
pub(crate) fn remove_dir(path: &Path) -> io::Result<()> {
    let aside = tempfile::Builder::new().prefix(".").suffix(".tmp").tempdir_in(parent(path))?;
    fs::rename(path, aside.path().join("old"))?;
    aside.close()
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."))
}
