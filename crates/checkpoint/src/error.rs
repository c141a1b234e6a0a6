//! Every way in which reading or writing a checkpoint fails: one variant per defect.
//!
//! [`Error`] names the file; the enum inside it names the tensor, key or offset, what was expected
//! and what was found. Messages are complete in themselves: there is no `source()` to add.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::{Dtype, ShapeError};

/// An operation on a checkpoint failed.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the fields are named by the messages")]
pub enum Error {
    /// The operating system refused something.
    #[error("{}: cannot {action}: {cause}", path.display())]
    Io { path: PathBuf, action: &'static str, cause: io::Error },
    /// The directory (or set of files in memory) holds no model.
    #[error(
        "{}: no model here: looked for model.safetensors, model.safetensors.index.json and a \
         .gguf file",
        path.display()
    )]
    NoModel { path: PathBuf },
    /// The directory holds more than one model.
    #[error(
        "{}: more than one model here ({}): name the file that is meant",
        path.display(),
        found.join(", ")
    )]
    AmbiguousModel { path: PathBuf, found: Vec<String> },
    /// The file is neither `.safetensors` nor GGUF.
    #[error(
        "{}: expected a directory, a .safetensors file, its index or a .gguf file",
        path.display()
    )]
    UnknownFormat { path: PathBuf },
    /// A name that is to lead to a file of the directory leads, or might lead, elsewhere.
    #[error("{}: {name:?} is not a plain file name", path.display())]
    FileName { path: PathBuf, name: String },
    /// A side file is larger than [`MAX_TEXT_BYTES`](crate::MAX_TEXT_BYTES).
    #[error("{}: the file has {found} bytes, at most {max} are read", path.display())]
    TextTooLarge { path: PathBuf, found: usize, max: usize },
    /// A side file is not UTF-8.
    #[error("{}: not UTF-8 at byte {offset}", path.display())]
    TextNotUtf8 { path: PathBuf, offset: usize },
    /// The model has no tensor of that name.
    #[error("{}: no tensor `{tensor}`", path.display())]
    NoTensor { path: PathBuf, tensor: String },
    /// A safetensors file is malformed.
    #[error("{}: {defect}", path.display())]
    Safetensors { path: PathBuf, defect: SafetensorsError },
    /// A shard index is malformed or disagrees with its shards.
    #[error("{}: {defect}", path.display())]
    Index { path: PathBuf, defect: IndexError },
    /// A GGUF file is malformed, or its metadata is not what was asked for.
    #[error("{}: {defect}", path.display())]
    Gguf { path: PathBuf, defect: GgufError },
    /// A checkpoint cannot be written as asked.
    #[error("{}: {defect}", path.display())]
    Write { path: PathBuf, defect: WriteError },
}

impl Error {
    pub(crate) fn io(path: &Path, action: &'static str, cause: io::Error) -> Error {
        Error::Io { path: path.to_owned(), action, cause }
    }

    pub(crate) fn safetensors(path: &Path, defect: SafetensorsError) -> Error {
        Error::Safetensors { path: path.to_owned(), defect }
    }

    pub(crate) fn index(path: &Path, defect: IndexError) -> Error {
        Error::Index { path: path.to_owned(), defect }
    }

    pub(crate) fn gguf(path: &Path, defect: GgufError) -> Error {
        Error::Gguf { path: path.to_owned(), defect }
    }

    pub(crate) fn write(path: &Path, defect: WriteError) -> Error {
        Error::Write { path: path.to_owned(), defect }
    }
}

/// What is wrong with a safetensors file. Offsets of tensors count from the end of the header.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the fields are named by the messages")]
pub enum SafetensorsError {
    /// Too short to hold the header's length.
    #[error("the file has {len} bytes, a safetensors file has at least 8")]
    FileTooShort { len: usize },
    /// The header is longer than [`MAX_HEADER_BYTES`](crate::MAX_HEADER_BYTES).
    #[error("the header has {len} bytes, at most {max} are read")]
    HeaderTooLarge { len: u64, max: u64 },
    /// The header is longer than the file.
    #[error("the header ends at byte {end}, the file at {file_len}: cut short?")]
    HeaderPastEnd { end: u64, file_len: usize },
    /// The header is not UTF-8.
    #[error("the header is not UTF-8 at byte {offset}")]
    HeaderNotUtf8 { offset: usize },
    /// The header is not a JSON object.
    #[error("the header is not a JSON object of tensors: {reason}")]
    HeaderNotJson { reason: String },
    /// The entry of a tensor is not JSON, lacks a field, or has one of another kind.
    #[error("tensor `{tensor}`: malformed entry: {reason}")]
    BadEntry { tensor: String, reason: String },
    /// More tensors than [`MAX_TENSORS`](crate::MAX_TENSORS).
    #[error("the header declares {count} tensors, at most {max} are read")]
    TooManyTensors { count: usize, max: usize },
    /// Two entries of one name.
    #[error("tensor `{tensor}` is declared twice")]
    DuplicateTensor { tensor: String },
    /// An element type that is not read here.
    #[error("tensor `{tensor}`: unknown dtype {dtype:?}")]
    UnknownDtype { tensor: String, dtype: String },
    /// More dimensions than [`MAX_RANK`](crate::MAX_RANK).
    #[error("tensor `{tensor}`: {rank} dimensions, at most {max} are read")]
    TooManyDims { tensor: String, rank: usize, max: usize },
    /// A negative dimension or offset.
    #[error("tensor `{tensor}`: {field} holds the negative number {found}")]
    Negative { tensor: String, field: &'static str, found: String },
    /// A dimension or offset that is a fraction or too large.
    #[error("tensor `{tensor}`: {field} holds {found}, expected an unsigned 64-bit integer")]
    NotAnInteger { tensor: String, field: &'static str, found: String },
    /// Type and shape make no tensor: a dimension of 0 or a size that overflows.
    #[error("tensor `{tensor}`: shape {shape:?}: {defect}")]
    BadShape { tensor: String, shape: Vec<usize>, defect: ShapeError },
    /// The data would end before it begins.
    #[error("tensor `{tensor}`: data_offsets [{begin}, {end}] are reversed")]
    OffsetsReversed { tensor: String, begin: usize, end: usize },
    /// The data would end behind the file.
    #[error("tensor `{tensor}`: the data ends at byte {end} of {data_len}: file cut short?")]
    PastEnd { tensor: String, end: usize, data_len: usize },
    /// The data has not the bytes that type and shape ask for.
    #[error(
        "tensor `{tensor}`: {dtype} {shape:?} takes {expected} bytes, the offsets span {found}"
    )]
    WrongLength { tensor: String, dtype: Dtype, shape: Vec<usize>, expected: usize, found: usize },
    /// Two tensors share bytes.
    #[error("tensor `{tensor}` begins at byte {begin}, inside `{other}`, which ends at {end}")]
    Overlap { tensor: String, begin: usize, other: String, end: usize },
    /// Bytes between two tensors belong to none.
    #[error("tensor `{tensor}` begins at byte {begin}: bytes from {end} on belong to no tensor")]
    Hole { tensor: String, begin: usize, end: usize },
    /// Bytes behind the last tensor belong to none.
    #[error("the last tensor ends at byte {end}, the data at {data_len}: bytes of no tensor")]
    TrailingBytes { end: usize, data_len: usize },
}

/// What is wrong with `model.safetensors.index.json`, or between it and the shards.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the fields are named by the messages")]
pub enum IndexError {
    /// Not JSON, or without a `weight_map` of strings.
    #[error("not a shard index: {reason}")]
    Malformed { reason: String },
    /// The weight map names a tensor twice.
    #[error("tensor `{tensor}` is listed twice")]
    ListedTwice { tensor: String },
    /// More tensors than [`MAX_TENSORS`](crate::MAX_TENSORS).
    #[error("the index lists {count} tensors, at most {max} are read")]
    TooManyTensors { count: usize, max: usize },
    /// The weight map leads out of the directory.
    #[error("tensor `{tensor}`: shard {shard:?} is not a plain file name")]
    ShardName { tensor: String, shard: String },
    /// A shard does not exist.
    #[error("tensor `{tensor}`: shard {shard} is missing: download incomplete?")]
    MissingShard { tensor: String, shard: String },
    /// Two shards hold a tensor of one name.
    #[error("tensor `{tensor}` lies in {first} and in {second}")]
    InTwoShards { tensor: String, first: String, second: String },
    /// The index lists a tensor that its shard does not hold.
    #[error("tensor `{tensor}` is listed for {shard}, which does not hold it")]
    NotInShard { tensor: String, shard: String },
    /// A shard holds a tensor that the index does not list.
    #[error("tensor `{tensor}` of {shard} is not listed")]
    NotListed { tensor: String, shard: String },
}

/// What is wrong with a GGUF file, or with a question to its metadata. Offsets count from the start
/// of the file; shapes are in row-major order.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the fields are named by the messages")]
pub enum GgufError {
    /// The file ends inside something; also every length that is larger than the file.
    #[error("byte {offset}: {what} takes {need} bytes, the file has {left} more")]
    Truncated { offset: usize, what: String, need: u64, left: usize },
    /// The first four bytes are not `GGUF`.
    #[error("not a GGUF file: begins with {found:02x?}")]
    BadMagic { found: [u8; 4] },
    /// The file is big-endian.
    #[error("a big-endian GGUF file: only little-endian files are read")]
    BigEndian,
    /// Neither version 2 nor 3.
    #[error("GGUF version {found}: versions 2 and 3 are read")]
    Version { found: u32 },
    /// A count that the rest of the file cannot hold.
    #[error("byte {offset}: {count} {what}, but the {left} bytes that are left hold at most {max}")]
    CountPastEnd { offset: usize, what: String, count: u64, left: usize, max: usize },
    /// More tensors or keys than [`MAX_TENSORS`](crate::MAX_TENSORS).
    #[error("byte {offset}: {count} {what}, at most {max} are read")]
    TooMany { offset: usize, what: &'static str, count: u64, max: usize },
    /// The name of a key or tensor is longer than the specification allows for keys.
    #[error("byte {offset}: {what} has {len} bytes, at most {max} are read")]
    NameTooLong { offset: usize, what: String, len: u64, max: usize },
    /// A string is not UTF-8.
    #[error("byte {offset}: {what} is not UTF-8")]
    NotUtf8 { offset: usize, what: String },
    /// Two values of one key.
    #[error("key `{key}` occurs twice")]
    DuplicateKey { key: String },
    /// A value type that GGUF does not define.
    #[error("byte {offset}: key `{key}`: unknown value type {found}")]
    UnknownValueType { offset: usize, key: String, found: u32 },
    /// An array of arrays.
    #[error("byte {offset}: key `{key}`: arrays of arrays are not read")]
    NestedArray { offset: usize, key: String },
    /// A bool that is neither 0 nor 1.
    #[error("byte {offset}: key `{key}`: a bool is {found}, expected 0 or 1")]
    NotABool { offset: usize, key: String, found: u8 },
    /// The alignment is not a power of two in a sane range.
    #[error("key `general.alignment`: expected a power of two in {min}..={max}, found {found}")]
    Alignment { found: u32, min: u32, max: u32 },
    /// Two tensors of one name.
    #[error("tensor `{tensor}` is declared twice")]
    DuplicateTensor { tensor: String },
    /// More than the four dimensions of ggml.
    #[error("byte {offset}: tensor `{tensor}`: {found} dimensions, at most 4 are read")]
    TooManyDims { offset: usize, tensor: String, found: u32 },
    /// A block type that is not read here.
    #[error(
        "tensor `{tensor}`: ggml type {found} is not supported: requantize to one of F32, F16, \
         BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, Q4_K, Q5_K, Q6_K"
    )]
    UnsupportedType { tensor: String, found: String },
    /// Type and shape make no tensor.
    #[error("tensor `{tensor}`: {dtype} {shape:?}: {defect}")]
    BadShape { tensor: String, dtype: Dtype, shape: Vec<u64>, defect: ShapeError },
    /// The data does not begin at a multiple of the alignment.
    #[error("tensor `{tensor}`: data offset {found} is not a multiple of {alignment}")]
    Unaligned { tensor: String, found: u64, alignment: u32 },
    /// The data would end behind the file.
    #[error(
        "tensor `{tensor}`: {len} bytes at data offset {offset} end behind the file, whose data \
         has {data_len} bytes: cut short?"
    )]
    PastEnd { tensor: String, offset: u64, len: usize, data_len: usize },
    /// Two tensors share bytes.
    #[error(
        "tensor `{tensor}` begins at data offset {begin}, inside `{other}`, which ends at {end}"
    )]
    Overlap { tensor: String, begin: usize, other: String, end: usize },
    /// A key that the caller needs is absent.
    #[error("key `{key}` is missing")]
    MissingKey { key: String },
    /// A value is of another type, or out of the range, than the caller asks for.
    #[error("key `{key}`: expected {expected}, found {found}")]
    WrongType { key: String, expected: &'static str, found: String },
}

/// Why a checkpoint is not written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the fields are named by the messages")]
pub enum WriteError {
    /// The target exists, is not empty, and may not be replaced.
    #[error("exists already: choose another path or ask for it to be overwritten")]
    TargetExists,
    /// A directory stands where a file is to be written, or the other way round.
    #[error("expected {expected} here, found something else")]
    TargetKind { expected: &'static str },
    /// The path has no last component that could be a name.
    #[error("not a path that can be written to")]
    TargetName,
    /// A side file's name is not plain, occurs twice, or belongs to the model's own files.
    #[error("{name:?} cannot be the name of a file beside the model")]
    SideFile { name: String },
    /// Two tensors or keys of one name.
    #[error("`{name}` is declared twice")]
    DeclaredTwice { name: String },
    /// A name that the format keeps for itself.
    #[error("the name `{name}` is reserved by the format")]
    Reserved { name: String },
    /// More tensors, or a longer header, than the reader accepts.
    #[error("{found} {what}, at most {max} can be read back")]
    TooMany { what: &'static str, found: usize, max: usize },
    /// The format cannot hold the element type.
    #[error("tensor `{tensor}`: {format} files of this family do not hold {dtype}")]
    DtypeNotInFormat { tensor: String, dtype: Dtype, format: &'static str },
    /// More dimensions than the format allows.
    #[error("tensor `{tensor}`: {rank} dimensions, at most {max} can be read back")]
    TooManyDims { tensor: String, rank: usize, max: usize },
    /// Type and shape make no tensor.
    #[error("tensor `{tensor}`: {dtype} {shape:?}: {defect}")]
    BadShape { tensor: String, dtype: Dtype, shape: Vec<usize>, defect: ShapeError },
    /// Data came for another tensor than the next one declared.
    #[error("data came for tensor `{found}`, the next one declared is `{expected}`")]
    OutOfOrder { expected: String, found: String },
    /// Data came after the last declared tensor was complete.
    #[error("data came for tensor `{found}`, but all declared tensors are complete")]
    NothingLeft { found: String },
    /// A tensor got more bytes than it has.
    #[error("tensor `{tensor}` takes {expected} bytes, got {found}")]
    TooLong { tensor: String, expected: u64, found: u64 },
    /// A tensor got fewer bytes than it has.
    #[error("tensor `{tensor}` takes {expected} bytes, got only {found}")]
    TooShort { tensor: String, expected: u64, found: u64 },
    /// An earlier write failed, so what lies in the file is unknown.
    #[error("an earlier write failed; begin again")]
    Failed,
}
