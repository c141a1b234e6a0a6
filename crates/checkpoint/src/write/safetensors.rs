//! The safetensors writer: a directory with one file, or with shards and their index.
//!
//! Shards are filled in declared order. Inside a file the layout is the reference writer's: falling
//! alignment of the element type, then the name, a header padded to 8 bytes; a file without shards
//! equals the reference writer's byte for byte. Data therefore goes to known places, not to the
//! end.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::json;

use super::progress::Progress;
use super::staging::{Staging, Target};
use super::{BUFFER_BYTES, check_declared};
use crate::checkpoint::SINGLE_FILE;
use crate::files::is_plain;
use crate::safetensors::{MAX_HEADER_BYTES, MAX_RANK, METADATA_KEY};
use crate::shard::INDEX_FILE;
use crate::{Error, TensorInfo, WriteError};

/// Bytes of tensor data in a shard, unless a single tensor has more: 5 GB, as Hugging Face writes.
pub const DEFAULT_SHARD_BYTES: u64 = 5_000_000_000;

/// How a directory is written.
#[derive(Debug, Clone)]
pub struct SafetensorsOptions {
    /// Most bytes of tensor data in one file; a tensor that is larger has a file of its own.
    pub max_shard_bytes: u64,
    /// Replace a target directory that holds files. Everything in it goes. Where the target is not
    /// empty there is an instant at which it is absent; a crash then leaves the old and the new
    /// directory complete beside it, as `.<name>.XXXXXX.tmp`.
    pub overwrite: bool,
}

impl Default for SafetensorsOptions {
    fn default() -> SafetensorsOptions {
        SafetensorsOptions { max_shard_bytes: DEFAULT_SHARD_BYTES, overwrite: false }
    }
}

/// Writes a checkpoint directory. Nothing is at the target before [`finish`](Self::finish);
/// dropping the writer removes what it wrote.
#[derive(Debug)]
pub struct SafetensorsWriter {
    staging: Staging,
    shards: Vec<Shard>,
    /// Per declared tensor: its shard, and its place in the shard's file.
    places: Vec<Place>,
    progress: Progress,
    /// The shard that is being written.
    open: Option<(usize, BufWriter<File>)>,
}

#[derive(Debug)]
struct Shard {
    name: String,
    /// The length, the JSON and its padding.
    header: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    shard: usize,
    offset: u64,
}

impl SafetensorsWriter {
    /// Begins a checkpoint at `dir`, whose parent must exist. `side_files` (such as `config.json`)
    /// are written beside the weights as they are.
    ///
    /// # Errors
    /// [`WriteError`] for a target that may not be replaced, and for declarations and names that
    /// the format or this crate's reader does not allow; [`Error::Io`].
    pub fn create(
        dir: &Path,
        tensors: &[TensorInfo],
        side_files: &[(&str, &[u8])],
        options: &SafetensorsOptions,
    ) -> Result<SafetensorsWriter, Error> {
        let refused = |defect| Error::write(dir, defect);
        let lens = check(tensors).map_err(refused)?;
        let (shards, places) = plan(tensors, &lens, options.max_shard_bytes).map_err(refused)?;
        check_side_files(side_files, &shards).map_err(refused)?;
        let staging = Staging::new(dir, Target::Directory, options.overwrite)?;
        for (name, bytes) in side_files {
            staging.write(name, bytes)?;
        }
        if shards.len() > 1 {
            staging.write(INDEX_FILE, &index_json(tensors, &lens, &shards, &places))?;
        }
        let progress = Progress::new(tensors, &lens);
        Ok(SafetensorsWriter { staging, shards, places, progress, open: None })
    }

    /// Appends bytes to the tensor `name`, which must be the next one in declared order that is not
    /// complete. A tensor is complete with its last byte; no call ends it.
    ///
    /// # Errors
    /// [`WriteError`] for another tensor's turn or too many bytes (nothing is written then);
    /// [`Error::Io`], after which the writer accepts nothing more.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let refused = |defect| Error::write(self.staging.target(), defect);
        let (tensor, first) = self.progress.check(name, bytes.len() as u64).map_err(refused)?;
        let written = self.put(self.places[tensor], first, bytes);
        match &written {
            Ok(()) => self.progress.advance(bytes.len() as u64),
            Err(_) => self.progress.fail(),
        }
        written
    }

    /// Puts the checkpoint in place.
    ///
    /// # Errors
    /// [`WriteError::TooShort`] where data is missing; [`WriteError::TargetExists`] where the
    /// target came up meanwhile; [`Error::Io`]. The target is as it was, unless the
    /// message says that the new checkpoint is in place and only could not be made durable, or
    /// that only the old one could not be deleted.
    pub fn finish(mut self) -> Result<(), Error> {
        self.progress.finish().map_err(|defect| Error::write(self.staging.target(), defect))?;
        if self.places.is_empty() {
            self.open_shard(0)?;
        }
        self.close_shard()?;
        self.staging.commit()
    }

    fn put(&mut self, place: Place, first: bool, bytes: &[u8]) -> Result<(), Error> {
        if self.open.as_ref().map(|(shard, _)| *shard) != Some(place.shard) {
            self.close_shard()?;
            self.open_shard(place.shard)?;
        }
        let (_, file) = self.open.as_mut().expect("the shard was opened above");
        let mut put = || -> io::Result<()> {
            if first {
                file.seek(SeekFrom::Start(place.offset))?;
            }
            file.write_all(bytes)
        };
        put().map_err(|cause| Error::io(self.staging.target(), "write a shard of", cause))
    }

    fn open_shard(&mut self, shard: usize) -> Result<(), Error> {
        let Shard { name, header } = &self.shards[shard];
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, self.staging.create(name)?);
        file.write_all(header)
            .map_err(|cause| Error::io(self.staging.target(), "write a shard of", cause))?;
        self.open = Some((shard, file));
        Ok(())
    }

    fn close_shard(&mut self) -> Result<(), Error> {
        let Some((_, mut file)) = self.open.take() else { return Ok(()) };
        file.flush()
            .and_then(|()| file.get_ref().sync_all())
            .map_err(|cause| Error::io(self.staging.target(), "write a shard of", cause))
    }
}

fn check(tensors: &[TensorInfo]) -> Result<Vec<u64>, WriteError> {
    for TensorInfo { name, dtype, shape } in tensors {
        if name == METADATA_KEY {
            return Err(WriteError::Reserved { name: name.clone() });
        }
        let (tensor, rank) = (name.clone(), shape.len());
        if dtype.is_quantized() {
            let format = "safetensors";
            return Err(WriteError::DtypeNotInFormat { tensor, dtype: *dtype, format });
        }
        if rank > MAX_RANK {
            return Err(WriteError::TooManyDims { tensor, rank, max: MAX_RANK });
        }
    }
    check_declared(tensors)
}

fn check_side_files(side_files: &[(&str, &[u8])], shards: &[Shard]) -> Result<(), WriteError> {
    let mut names: HashSet<&str> = shards.iter().map(|shard| shard.name.as_str()).collect();
    names.extend([SINGLE_FILE, INDEX_FILE]);
    for (name, _) in side_files {
        let is_model = name.to_lowercase().ends_with(".gguf");
        if !is_plain(name) || is_model || !names.insert(name) {
            return Err(WriteError::SideFile { name: (*name).to_owned() });
        }
    }
    Ok(())
}

/// The shards with their headers, and the place of every tensor.
fn plan(
    tensors: &[TensorInfo],
    lens: &[u64],
    max_shard_bytes: u64,
) -> Result<(Vec<Shard>, Vec<Place>), WriteError> {
    let members = fill_shards(lens, max_shard_bytes);
    let count = members.len();
    let mut shards = Vec::new();
    let mut places = vec![Place { shard: 0, offset: 0 }; tensors.len()];
    for (shard, mut members) in members.into_iter().enumerate() {
        members.sort_by(|&a, &b| {
            let (a, b) = (&tensors[a], &tensors[b]);
            b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name))
        });
        let header = header(tensors, lens, &members)?;
        let mut offset = header.len() as u64;
        for tensor in members {
            places[tensor] = Place { shard, offset };
            offset += lens[tensor];
        }
        let name = match count {
            1 => SINGLE_FILE.to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", shard + 1),
        };
        shards.push(Shard { name, header });
    }
    Ok((shards, places))
}

/// The tensors of each shard, by index; at least one shard.
fn fill_shards(lens: &[u64], max_shard_bytes: u64) -> Vec<Vec<usize>> {
    let mut shards = vec![Vec::new()];
    let mut filled = 0u64;
    for (tensor, &len) in lens.iter().enumerate() {
        let is_full = filled > 0 && filled.saturating_add(len) > max_shard_bytes;
        if is_full {
            shards.push(Vec::new());
            filled = 0;
        }
        filled = filled.saturating_add(len);
        shards.last_mut().expect("there is always a shard").push(tensor);
    }
    shards
}

/// The JSON of a header, entries in the order of `members`.
struct Header<'a> {
    tensors: &'a [TensorInfo],
    lens: &'a [u64],
    members: &'a [usize],
}

impl Serialize for Header<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(serde::Serialize)]
        struct Entry<'a> {
            dtype: &'a str,
            shape: &'a [usize],
            data_offsets: (u64, u64),
        }
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry(METADATA_KEY, &BTreeMap::from([("format", "pt")]))?;
        let mut begin = 0;
        for &tensor in self.members {
            let end = begin + self.lens[tensor];
            let TensorInfo { name, dtype, shape } = &self.tensors[tensor];
            let entry = Entry { dtype: dtype.name(), shape, data_offsets: (begin, end) };
            map.serialize_entry(name, &entry)?;
            begin = end;
        }
        map.end()
    }
}

/// The length, the JSON, and its padding with spaces to a multiple of 8 bytes.
fn header(tensors: &[TensorInfo], lens: &[u64], members: &[usize]) -> Result<Vec<u8>, WriteError> {
    let json = serde_json::to_string(&Header { tensors, lens, members })
        .expect("strings and integers always serialize");
    let padded = json.len().next_multiple_of(8);
    if padded as u64 > MAX_HEADER_BYTES {
        let max = MAX_HEADER_BYTES as usize;
        return Err(WriteError::TooMany { what: "bytes of header", found: padded, max });
    }
    let mut header = (padded as u64).to_le_bytes().to_vec();
    header.extend(json.bytes());
    header.resize(8 + padded, b' ');
    Ok(header)
}

fn index_json(tensors: &[TensorInfo], lens: &[u64], shards: &[Shard], places: &[Place]) -> Vec<u8> {
    let weight_map: BTreeMap<&str, &str> = tensors
        .iter()
        .zip(places)
        .map(|(tensor, place)| (tensor.name.as_str(), shards[place.shard].name.as_str()))
        .collect();
    let total_size: u64 = lens.iter().sum();
    let index = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
    let mut text = serde_json::to_vec_pretty(&index).expect("strings always serialize");
    text.push(b'\n');
    text
}
