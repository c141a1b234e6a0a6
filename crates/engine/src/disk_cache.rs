//! A folder of states that outlive the process: the least recently used go first.
//!
//! A thread of its own writes; where the disk is slower than prompts end, states are left out. A
//! file is read by whoever finds it. At the start only headers are read.
//!
//! Invariants: a file is used only if it is whole, of this model and of the very tokens asked for;
//! torn files are deleted, files of others stay; files that this engine may use take at most the
//! bytes allowed.

use crate::prefix::{Prefixes, prefix_keys};
use crate::snapshot_file::{Form, Header, SnapshotError};
use hybra_model::{SequenceState, States};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::SystemTime;

/// States that wait to be written.
const MOST_QUEUED: usize = 4;
/// How names of complete files end.
const EXTENSION: &str = "state";

/// The folder.
pub(crate) struct DiskCache {
    form: Form,
    limit: u64,
    index: Arc<Mutex<Index>>,
    /// `None` once it is closed.
    jobs: Option<SyncSender<Job>>,
    writer: Option<JoinHandle<()>>,
}

struct Job {
    key: u64,
    salt: u64,
    tokens: Vec<u32>,
    state: Arc<SequenceState>,
}

/// What is in the folder.
struct Index {
    folder: PathBuf,
    form: Form,
    files: HashMap<u64, Entry>,
    bytes: u64,
    errors: u64,
}

struct Entry {
    bytes: u64,
    used: SystemTime,
}

impl Index {
    /// Where the state of a key lies: engines of another form have other names.
    fn path(&self, key: u64) -> PathBuf {
        self.folder.join(format!("{key:016x}-{:016x}.{EXTENSION}", self.form.key()))
    }

    fn add(&mut self, key: u64, bytes: u64, used: SystemTime) {
        self.bytes += bytes;
        if let Some(before) = self.files.insert(key, Entry { bytes, used }) {
            self.bytes -= before.bytes;
        }
    }

    /// Forgets a file and deletes it.
    fn delete(&mut self, key: u64) {
        if let Some(entry) = self.files.remove(&key) {
            self.bytes -= entry.bytes;
            self.errors += u64::from(fs::remove_file(self.path(key)).is_err());
        }
    }

    /// Deletes the least recently used until at most `limit` bytes are left.
    fn shrink_to(&mut self, limit: u64) {
        while self.bytes > limit {
            let Some((&key, _)) = self.files.iter().min_by_key(|(_, entry)| entry.used) else {
                return;
            };
            self.delete(key);
        }
    }
}

fn lock(index: &Mutex<Index>) -> MutexGuard<'_, Index> {
    index.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DiskCache {
    /// Opens a folder, which is made if it is not there, for files of at most `limit` bytes.
    ///
    /// # Errors
    /// The folder cannot be made or read, or the system gives no thread.
    pub(crate) fn open(folder: &Path, form: Form, limit: u64) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let (files, folder) = (HashMap::new(), folder.to_owned());
        let mut found = Index { folder, form, files, bytes: 0, errors: 0 };
        for file in fs::read_dir(&found.folder)? {
            index_file(&mut found, &file?)?;
        }
        found.shrink_to(limit);
        let index = Arc::new(Mutex::new(found));
        let (jobs, received) = sync_channel(MOST_QUEUED);
        let shared = Arc::clone(&index);
        let writer = std::thread::Builder::new()
            .name("state-writer".to_owned())
            .spawn(move || write_all(&received, form, limit, &shared))?;
        Ok(Self { form, limit, index, jobs: Some(jobs), writer: Some(writer) })
    }

    /// Files that could not be written, read or deleted.
    pub(crate) fn errors(&self) -> u64 {
        lock(&self.index).errors
    }

    /// Has a state written, unless a file has its key or the writer is behind.
    pub(crate) fn keep(&self, prefixes: Prefixes, state: &Arc<SequenceState>) {
        let (Some(&key), Some(jobs)) = (prefixes.keys.last(), &self.jobs) else { return };
        let too_large = self.form.file_bytes(prefixes.tokens, state) > self.limit;
        if too_large || lock(&self.index).files.contains_key(&key) {
            return;
        }
        let (salt, tokens, state) = (prefixes.salt, prefixes.tokens.to_vec(), Arc::clone(state));
        // A full queue: the disk is slower than prompts end.
        let _ = jobs.try_send(Job { key, salt, tokens, state });
    }

    /// The state of the longest prefix of more than `have` tokens that has a file.
    pub(crate) fn find(
        &self,
        prefixes: Prefixes,
        have: usize,
        states: States<'_>,
    ) -> Option<SequenceState> {
        let mut longer = prefixes.longest_first().take_while(|(_, tokens)| tokens.len() > have);
        longer.find_map(|(key, tokens)| {
            let known = lock(&self.index).files.contains_key(&key);
            known.then(|| self.read(key, prefixes.salt, tokens, states)).flatten()
        })
    }

    fn read(
        &self,
        key: u64,
        salt: u64,
        tokens: &[u32],
        states: States<'_>,
    ) -> Option<SequenceState> {
        let path = lock(&self.index).path(key);
        match self.form.read(&path, states) {
            Ok((header, state)) if header.salt == salt && header.tokens == tokens => {
                let now = SystemTime::now();
                if let Some(entry) = lock(&self.index).files.get_mut(&key) {
                    entry.used = now;
                }
                // The order of use survives a restart; without it, that of writing does.
                let _ = File::options().append(true).open(&path).and_then(|f| f.set_modified(now));
                Some(state)
            }
            Ok(_) => None,
            Err(error) => {
                let mut index = lock(&self.index);
                index.errors += u64::from(!matches!(error, SnapshotError::Foreign));
                index.delete(key);
                None
            }
        }
    }
}

impl Drop for DiskCache {
    /// Waits until everything that was taken is written.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has nothing left to write.
            let _ = writer.join();
        }
    }
}

/// Takes a file of this engine into the index; deletes it if it is torn or was never finished.
fn index_file(index: &mut Index, file: &fs::DirEntry) -> io::Result<()> {
    let path = file.path();
    let extension = path.extension().and_then(|e| e.to_str()).filter(|_| is_own_name(&path));
    match extension {
        Some("tmp") => return fs::remove_file(path),
        Some(EXTENSION) => {}
        _ => return Ok(()),
    }
    match index.form.read_header(&path) {
        Ok(Header { salt, tokens, .. }) => {
            let key = prefix_keys(salt, &tokens).last().copied();
            // Keys are those of this build; a file under another key would never be found.
            let Some(key) = key.filter(|&key| index.path(key) == path) else {
                return fs::remove_file(path);
            };
            let metadata = file.metadata()?;
            index.add(key, metadata.len(), metadata.modified()?);
            Ok(())
        }
        Err(SnapshotError::Torn) => fs::remove_file(path),
        Err(SnapshotError::Foreign) => Ok(()),
        Err(SnapshotError::Io(error)) => Err(error),
    }
}

/// Whether a file has such a name as [`Index::path`] gives.
fn is_own_name(path: &Path) -> bool {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("");
    let is_number = |part: &str| part.len() == 16 && part.bytes().all(|b| b.is_ascii_hexdigit());
    stem.split_once('-').is_some_and(|(key, form)| is_number(key) && is_number(form))
}

/// The writer's thread.
fn write_all(jobs: &Receiver<Job>, form: Form, limit: u64, index: &Mutex<Index>) {
    for Job { key, salt, tokens, state } in jobs {
        let bytes = form.file_bytes(&tokens, &state);
        let path = {
            let mut index = lock(index);
            index.shrink_to(limit - bytes);
            index.path(key)
        };
        let written = form.write(&path, salt, &tokens, &state);
        let mut index = lock(index);
        match written {
            Ok(()) => index.add(key, bytes, SystemTime::now()),
            Err(_) => index.errors += 1,
        }
    }
}
