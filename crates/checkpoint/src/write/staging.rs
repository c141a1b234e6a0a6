//! Atomic replacement: everything is written into a temporary directory beside the target, and
//! moved in place when it is complete and on disk.
//!
//! - Dropping a `Staging` removes the temporary directory. Only a killed process or machine leaves
//!   it, as `.<name>.XXXXXX.tmp` beside the target.
//! - A file, and a directory whose target is absent or empty, appears by one rename.
//! - A directory that replaces a non-empty one takes two renames, because no portable call swaps
//!   directories: the old one moves aside, the new one in place; then the old one is deleted. A
//!   crash between the two leaves no target, but both directories complete beside it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::{Error, WriteError};

/// The name of the one file of a [`Target::File`] while it is written.
pub(super) const STAGED_FILE: &str = "file";

/// What the target is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    File,
    Directory,
}

#[derive(Debug)]
pub(super) struct Staging {
    target: PathBuf,
    kind: Target,
    overwrite: bool,
    dir: TempDir,
}

impl Staging {
    /// Makes the temporary directory beside `target`, whose parent must exist.
    pub(super) fn new(target: &Path, kind: Target, overwrite: bool) -> Result<Staging, Error> {
        check_target(target, kind, overwrite)?;
        let dir = sibling(target)?;
        Ok(Staging { target: target.to_owned(), kind, overwrite, dir })
    }

    /// The path the result will have.
    pub(super) fn target(&self) -> &Path {
        &self.target
    }

    /// Creates a file of the result.
    pub(super) fn create(&self, name: &str) -> Result<File, Error> {
        let path = self.dir.path().join(name);
        File::create_new(&path).map_err(|cause| Error::io(&path, "create", cause))
    }

    /// Writes a whole file of a directory and syncs it.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let mut file = self.create(name)?;
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(|cause| Error::io(&self.target.join(name), "write", cause))
    }

    /// Moves the result in place. Its files must be synced; that of [`Target::File`] is
    /// [`STAGED_FILE`].
    pub(super) fn commit(self) -> Result<(), Error> {
        let failed = |cause| Error::io(&self.target, "move the new checkpoint in place", cause);
        check_target(&self.target, self.kind, self.overwrite)?;
        match self.kind {
            Target::File => {
                fs::rename(self.dir.path().join(STAGED_FILE), &self.target).map_err(failed)?;
                self.sync_name()?;
            }
            Target::Directory => {
                sync_dir(self.dir.path()).map_err(failed)?;
                self.replace_directory()?;
                // Moved away: there is nothing left at the temporary path to remove.
                let _ = self.dir.keep();
            }
        }
        Ok(())
    }

    /// Makes the renames beside the target durable.
    fn sync_name(&self) -> Result<(), Error> {
        sync_dir(parent(&self.target)).map_err(|cause| {
            Error::io(&self.target, "make durable the new checkpoint that is in place at", cause)
        })
    }

    fn replace_directory(&self) -> Result<(), Error> {
        let failed = |cause| Error::io(&self.target, "replace the directory", cause);
        if !is_occupied(&self.target).map_err(failed)? {
            fs::rename(self.dir.path(), &self.target).map_err(failed)?;
            return self.sync_name();
        }
        let aside = sibling(&self.target)?;
        let old = aside.path().join("old");
        fs::rename(&self.target, &old).map_err(failed)?;
        if let Err(cause) = fs::rename(self.dir.path(), &self.target) {
            if fs::rename(&old, &self.target).is_err() {
                // The old checkpoint stays where it is rather than be deleted with `aside`.
                let _ = aside.keep();
            }
            return Err(failed(cause));
        }
        // The new name must be durable before the old data goes.
        self.sync_name()?;
        aside
            .close()
            .map_err(|cause| Error::io(&old, "delete the old checkpoint, replaced,", cause))
    }
}

/// A temporary directory beside `target`.
fn sibling(target: &Path) -> Result<TempDir, Error> {
    let Some(name) = target.file_name() else {
        return Err(Error::write(target, WriteError::TargetName));
    };
    tempfile::Builder::new()
        .prefix(&format!(".{}.", name.to_string_lossy()))
        .suffix(".tmp")
        .tempdir_in(parent(target))
        .map_err(|cause| Error::io(target, "create a temporary directory beside it", cause))
}

fn parent(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

fn check_target(target: &Path, kind: Target, overwrite: bool) -> Result<(), Error> {
    let looked = |cause| Error::io(target, "look at", cause);
    match fs::metadata(target) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(cause) => return Err(looked(cause)),
        Ok(found) if found.is_dir() != (kind == Target::Directory) => {
            let expected = if kind == Target::File { "a file" } else { "a directory" };
            return Err(Error::write(target, WriteError::TargetKind { expected }));
        }
        Ok(_) => {}
    }
    if !overwrite && is_occupied(target).map_err(looked)? {
        return Err(Error::write(target, WriteError::TargetExists));
    }
    Ok(())
}

/// Whether the target exists with anything in it.
fn is_occupied(target: &Path) -> io::Result<bool> {
    match fs::metadata(target) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(cause) => Err(cause),
        Ok(found) if found.is_dir() => Ok(fs::read_dir(target)?.next().is_some()),
        Ok(found) => Ok(found.len() > 0),
    }
}

/// Makes the names in a directory durable, where the system can.
fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}
