//! The folder of a run, and whether a command begins, goes on, or begins anew.
//!
//! ```text
//! RUN/run.toml          the configuration with every default
//! RUN/log.jsonl         loss, learning rate, gradient norm; timing.jsonl: seconds
//! RUN/checkpoints/      step-000100, …: servable models with the optimizer's state
//! RUN/failed/           batches of a step that was not finite
//! RUN/model/            the model at the end
//! RUN/adapter/          its adapter, where one was trained
//! ```

use crate::atomic;
use crate::config::RunConfig;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What to do with a folder that holds a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Start {
    /// Go on if the configuration is the same.
    #[default]
    Auto,
    /// Go on with another configuration.
    Resume,
    /// Delete the run and begin anew.
    Force,
}

/// Why a folder cannot take a run.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// It cannot be read or written.
    #[error("{}: {action}: {cause}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What failed.
        action: &'static str,
        /// Why.
        cause: io::Error,
    },
    /// It holds something else.
    #[error("{}: holds files but no run.toml: not a run; choose another folder", path.display())]
    NotARun {
        /// The folder.
        path: PathBuf,
    },
    /// It holds a run of another configuration.
    #[error(
        "{}: holds a run with another configuration ({changed}); --resume goes on with the new \
         one, --force deletes the run and begins anew",
        path.display()
    )]
    Changed {
        /// The folder.
        path: PathBuf,
        /// The lines of run.toml that differ: `old → new`.
        changed: String,
    },
    /// `--resume` without a run.
    #[error("{}: --resume, but there is no run.toml: leave --resume out to begin", path.display())]
    NothingToResume {
        /// The folder.
        path: PathBuf,
    },
}

/// The folder of a run.
#[derive(Debug, Clone)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// The folder at `path`, whatever it holds.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// All runs with a log at `path` or below it, by name; nothing is looked for inside a run.
    /// Hidden folders are unfinished work, and links may lead round in a circle: both are left out.
    ///
    /// # Errors
    /// [`RunDirError::Io`].
    pub fn find(path: &Path) -> Result<Vec<Self>, RunDirError> {
        let run = Self::new(path);
        if run.log().is_file() {
            return Ok(vec![run]);
        }
        let mut below = Vec::new();
        for entry in fs::read_dir(path).map_err(failed(path, "read"))? {
            let entry = entry.map_err(failed(path, "read"))?;
            let is_dir = entry.file_type().map_err(failed(path, "read"))?.is_dir();
            if is_dir && !entry.file_name().as_encoded_bytes().starts_with(b".") {
                below.push(entry.path());
            }
        }
        below.sort();
        let mut runs = Vec::new();
        for path in below {
            match Self::find(&path) {
                // A stage that runs may have deleted the folder meanwhile.
                Err(RunDirError::Io { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {}
                found => runs.extend(found?),
            }
        }
        Ok(runs)
    }

    /// Makes the folder ready for `config`.
    ///
    /// # Errors
    /// [`RunDirError`].
    pub fn prepare(&self, config: &RunConfig, start: Start) -> Result<(), RunDirError> {
        let file = self.path.join("run.toml");
        let text = config.to_toml();
        let old = match fs::read_to_string(&file) {
            Ok(old) => Some(old),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => None,
            Err(cause) => return Err(failed(&file, "read")(cause)),
        };
        match (&old, start) {
            (None, Start::Resume) => {
                return Err(RunDirError::NothingToResume { path: self.path.clone() });
            }
            (None, _) => self.require_empty()?,
            (Some(_), Start::Force) => self.clear()?,
            (Some(old), Start::Auto) if *old != text => {
                let changed = changes(old, &text);
                return Err(RunDirError::Changed { path: self.path.clone(), changed });
            }
            (Some(_), _) => {}
        }
        let checkpoints = self.checkpoints();
        fs::create_dir_all(&checkpoints).map_err(failed(&checkpoints, "create"))?;
        if old.as_deref() != Some(&text) || start == Start::Force {
            atomic::write(&file, text.as_bytes()).map_err(failed(&file, "write"))?;
        }
        Ok(())
    }

    fn require_empty(&self) -> Result<(), RunDirError> {
        let entries = fs::read_dir(&self.path);
        if entries.is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(RunDirError::NotARun { path: self.path.clone() });
        }
        Ok(())
    }

    /// Deletes what a run writes, and nothing else; run.toml last, so that a crash leaves a run.
    fn clear(&self) -> Result<(), RunDirError> {
        for name in ["checkpoints", "failed", "model", "log.jsonl", "timing.jsonl", "run.toml"] {
            let path = self.path.join(name);
            let gone =
                if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            match gone {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                    return Err(failed(&path, "delete")(cause));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The folder itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `checkpoints/`.
    #[must_use]
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// `log.jsonl`.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.path.join("log.jsonl")
    }

    /// `timing.jsonl`.
    #[must_use]
    pub fn timing(&self) -> PathBuf {
        self.path.join("timing.jsonl")
    }

    /// `model/`.
    #[must_use]
    pub fn model(&self) -> PathBuf {
        self.path.join("model")
    }

    /// `adapter/`.
    #[must_use]
    pub fn adapter(&self) -> PathBuf {
        self.path.join("adapter")
    }

    /// `failed/`.
    #[must_use]
    pub fn failed(&self) -> PathBuf {
        self.path.join("failed")
    }
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> RunDirError {
    let path = path.to_owned();
    move |cause| RunDirError::Io { path, action, cause }
}

/// The keys whose values only one of two run files has.
fn changes(old: &str, new: &str) -> String {
    let lines = |text: &str| {
        let mut lines = Vec::new();
        let table = text.parse().unwrap_or_default();
        flatten("", &toml::Value::Table(table), &mut lines);
        lines
    };
    let (old, new) = (lines(old), lines(new));
    let only = |a: &[String], b: &[String]| {
        let mine: Vec<_> = a.iter().filter(|line| !b.contains(line)).cloned().collect();
        mine.join(", ")
    };
    format!("was: {}; now: {}", only(&old, &new), only(&new, &old))
}

/// One line for each value, with the whole path of its key.
fn flatten(key: &str, value: &toml::Value, lines: &mut Vec<String>) {
    let below = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    match value {
        toml::Value::Table(table) => {
            table.iter().for_each(|(name, value)| flatten(&below(name), value, lines));
        }
        toml::Value::Array(items) => {
            let items = items.iter().enumerate();
            items.for_each(|(i, value)| flatten(&below(&i.to_string()), value, lines));
        }
        other => lines.push(format!("{key} = {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_below_a_folder_and_not_inside_each_other() {
        let dir = tempfile::tempdir().unwrap();
        for run in ["b", "a/c", "a/c/inside", ".hidden", "d.log"] {
            fs::create_dir_all(dir.path().join(run)).unwrap();
            fs::write(dir.path().join(run).join("log.jsonl"), "").unwrap();
        }
        fs::create_dir(dir.path().join("empty")).unwrap();
        let found = |path: &Path| RunDir::find(path).unwrap();
        let runs = found(dir.path());
        let names: Vec<_> =
            runs.iter().map(|run| run.path().strip_prefix(dir.path()).unwrap()).collect();
        assert_eq!(names, ["a/c", "b", "d.log"].map(Path::new));
        assert_eq!(found(runs[0].path()).len(), 1);
        assert!(found(&dir.path().join("empty")).is_empty());
        let error = RunDir::find(&dir.path().join("nowhere")).unwrap_err().to_string();
        assert!(error.contains("nowhere: read: "), "{error}");
    }

    #[test]
    fn a_run_goes_on_only_with_its_own_configuration() {
        let config = |steps: u64| {
            let text = format!("steps = {steps}\n[model]\n[data]\n");
            RunConfig::parse(&text, Path::new("run.toml"), &[]).unwrap()
        };
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(&dir.path().join("run"));
        let refused = |steps, start| run.prepare(&config(steps), start).unwrap_err().to_string();
        assert!(refused(5, Start::Resume).contains("leave --resume out"));
        run.prepare(&config(5), Start::Auto).unwrap();
        run.prepare(&config(5), Start::Auto).unwrap();
        let message = refused(6, Start::Auto);
        assert!(message.contains("was: steps = 5; now: steps = 6"), "{message}");
        // A value that another key has, too, is a change all the same.
        let (old, new) = ("seed = 1\n[data]\nseed = 1\n", "seed = 2\n[data]\nseed = 1\n");
        assert_eq!(changes(old, new), "was: seed = 1; now: seed = 2");
        fs::write(run.log(), "{}\n").unwrap();
        run.prepare(&config(6), Start::Resume).unwrap();
        assert!(run.log().exists());
        run.prepare(&config(6), Start::Force).unwrap();
        assert!(!run.log().exists() && run.checkpoints().is_dir());
        fs::remove_file(run.path().join("run.toml")).unwrap();
        assert!(refused(5, Start::Force).contains("not a run"));
    }
}
