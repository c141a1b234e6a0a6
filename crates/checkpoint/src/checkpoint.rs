//! The front door: opens a model in whatever form it lies and gives access to its tensors.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::files::Files;
use crate::shard::INDEX_FILE;
use crate::tensor::Tensor;
use crate::{Error, Gguf, Mapping, TensorInfo, TensorView, gguf, json, safetensors, shard};

/// The name of a model that is one safetensors file, in a directory.
pub(crate) const SINGLE_FILE: &str = "model.safetensors";

/// The container format of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One safetensors file, or shards and their index.
    Safetensors,
    /// One GGUF file.
    Gguf,
}

/// An open model: every header is checked, nothing is copied.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    files: Files,
    tensors: Vec<Tensor>,
    /// Positions in `tensors`, in the order of the names.
    by_name: Vec<usize>,
    gguf: Option<Gguf>,
}

/// Tensors, and the metadata where the format has some.
type Contents = (Vec<Tensor>, Option<Gguf>);

impl Checkpoint {
    /// Opens a directory, a `.safetensors` file, a `.gguf` file (also one without that ending) or
    /// the index of a sharded model.
    ///
    /// A directory holds exactly one of: `model.safetensors`; `model.safetensors.index.json` with
    /// its shards; one `.gguf` file. Side files are those of the directory, for a `.safetensors`
    /// file or an index those beside it; a `.gguf` file opened by its path has none, as it carries
    /// its own config and vocabulary.
    ///
    /// # Errors
    /// Nothing or more than one model found, a file that cannot be read, or any defect of a header.
    pub fn open(path: &Path) -> Result<Checkpoint, Error> {
        let found = fs::metadata(path).map_err(|cause| Error::io(path, "open", cause))?;
        if found.is_dir() {
            let files = Files::Directory(path.to_owned());
            let contents = read_set(&files, path)?;
            return Ok(Checkpoint::new(path, files, contents));
        }
        if let (true, Some(parent)) = (path.ends_with(INDEX_FILE), path.parent()) {
            let files = Files::Directory(parent.to_owned());
            let tensors = shard::read(&files)?;
            return Ok(Checkpoint::new(path, files, (tensors, None)));
        }
        let map = Mapping::open(path).map_err(|cause| Error::io(path, "open", cause))?;
        let contents = read_file(Arc::new(map), path)?;
        let files = match (&contents.1, path.parent()) {
            (None, Some(parent)) => Files::Directory(parent.to_owned()),
            _ => Files::None,
        };
        Ok(Checkpoint::new(path, files, contents))
    }

    /// Opens a set of files that lie in memory, such as a model embedded in the program; the rules
    /// are those of a directory. `origin` stands for the path in messages and in
    /// [`path`](Self::path).
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn from_memory<'a>(
        origin: &str,
        files: impl IntoIterator<Item = (&'a str, Mapping)>,
    ) -> Result<Checkpoint, Error> {
        let files: BTreeMap<_, _> =
            files.into_iter().map(|(name, mapping)| (name.to_owned(), Arc::new(mapping))).collect();
        let files = Files::Memory(files);
        let contents = read_set(&files, Path::new(origin))?;
        Ok(Checkpoint::new(Path::new(origin), files, contents))
    }

    fn new(path: &Path, files: Files, (tensors, gguf): Contents) -> Checkpoint {
        let mut by_name: Vec<usize> = (0..tensors.len()).collect();
        by_name.sort_unstable_by(|&a, &b| tensors[a].info.name.cmp(&tensors[b].info.name));
        Checkpoint { path: path.to_owned(), files, tensors, by_name, gguf }
    }

    /// The container format.
    pub fn format(&self) -> Format {
        if self.gguf.is_some() { Format::Gguf } else { Format::Safetensors }
    }

    /// The path given to [`open`](Self::open), or the origin given to
    /// [`from_memory`](Self::from_memory).
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors in the order of the data (safetensors) or of the declarations (GGUF).
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.tensors.iter().map(|tensor| &tensor.info)
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        let found = self
            .by_name
            .binary_search_by(|&index| self.tensors[index].info.name.as_str().cmp(name));
        found.ok().map(|at| self.tensors[self.by_name[at]].view())
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// [`Error::NoTensor`].
    pub fn require(&self, name: &str) -> Result<TensorView<'_>, Error> {
        self.get(name)
            .ok_or_else(|| Error::NoTensor { path: self.path.clone(), tensor: name.to_owned() })
    }

    /// BLAKE3 over names and bytes of all tensors, by name: two checkpoints with the same weights
    /// have the same hash, however they are split into files.
    pub fn hash(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for &index in &self.by_name {
            let view = self.tensors[index].view();
            for part in [view.name.as_bytes(), view.data] {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part);
            }
            // A file larger than memory is read once, not held.
            view.region().release();
        }
        hasher.finalize().to_hex().to_string()
    }

    /// The metadata of a GGUF file.
    pub fn gguf(&self) -> Option<&Gguf> {
        self.gguf.as_ref()
    }

    /// The text of a file beside the weights (`tokenizer.json`, `generation_config.json`,
    /// `tokenizer_config.json`, `chat_template.jinja`, …); `None` where there is none.
    ///
    /// # Errors
    /// A name that is not one plain component, a file over
    /// [`MAX_TEXT_BYTES`](crate::MAX_TEXT_BYTES) or not UTF-8, or one that cannot be read.
    pub fn read_text(&self, name: &str) -> Result<Option<String>, Error> {
        self.files.read_text(name)
    }

    /// The text of `config.json` after [`relax_json`](crate::relax_json); `None` where there is
    /// none.
    ///
    /// # Errors
    /// As for [`read_text`](Self::read_text).
    pub fn config_json(&self) -> Result<Option<String>, Error> {
        let text = self.read_text("config.json")?;
        Ok(text.map(|text| json::relax_json(&text).into_owned()))
    }
}

/// Reads a single model file, by its ending or, failing that, its first bytes.
fn read_file(map: Arc<Mapping>, path: &Path) -> Result<Contents, Error> {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
    if ending.as_deref() == Some("gguf") || map.starts_with(gguf::MAGIC) {
        let (gguf, tensors) = Gguf::read(map, path)?;
        Ok((tensors, Some(gguf)))
    } else if ending.as_deref() == Some("safetensors") {
        Ok((safetensors::read(&map, path)?, None))
    } else {
        Err(Error::UnknownFormat { path: path.to_owned() })
    }
}

/// Finds and reads the one model of a directory or of a set in memory.
fn read_set(files: &Files, path: &Path) -> Result<Contents, Error> {
    let is_model = |name: &str| {
        name == SINGLE_FILE || name == INDEX_FILE || name.to_lowercase().ends_with(".gguf")
    };
    let mut found = files.names(is_model)?;
    let Some(name) = found.pop() else {
        return Err(Error::NoModel { path: path.to_owned() });
    };
    if !found.is_empty() {
        found.push(name);
        return Err(Error::AmbiguousModel { path: path.to_owned(), found });
    }
    if name == INDEX_FILE {
        return Ok((shard::read(files)?, None));
    }
    let file_path = files.path(&name);
    match files.open(&name)? {
        Some(map) => read_file(map, &file_path),
        None => Err(Error::NoModel { path: path.to_owned() }),
    }
}
