//! Records by index: lines of a JSONL file, rows of a Parquet file, or a generator.
//!
//! A file is read once when it is opened, for the offsets of its lines (16 bytes each) and its
//! checksum; records are read when they are asked for. A Parquet file is decoded once into an
//! unnamed temporary file of lines, which gives random access in any order.

use super::error::{DataError, Place};
use super::parquet_rows;
use super::record::Record;
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// A record as a function of its index; the same index gives the same record for ever.
pub type Generator = Box<dyn Fn(u64) -> Value + Send + Sync>;

/// Where records come from.
pub struct Source {
    name: Arc<str>,
    records: Records,
    fingerprint: String,
}

enum Records {
    Lines { file: Mutex<File>, lines: Vec<Line>, unit: &'static str },
    Generated(Generator),
}

/// A line that is not blank.
struct Line {
    start: u64,
    len: u32,
    /// From 1.
    number: u32,
}

impl Source {
    /// Opens a file: Parquet by its ending, JSON lines otherwise.
    ///
    /// # Errors
    /// A file that cannot be read, is damaged as a whole, or holds no record.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let is_parquet = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("parquet"));
        let (file, unit) = match is_parquet {
            true => (parquet_rows::to_lines(path)?, "row"),
            false => (File::open(path).map_err(DataError::io(path))?, "line"),
        };
        let (lines, fingerprint) = index(&file, path)?;
        if lines.is_empty() {
            return Err(DataError::Empty { path: path.to_owned() });
        }
        let records = Records::Lines { file: Mutex::new(file), lines, unit };
        Ok(Self { name: path.display().to_string().into(), records, fingerprint })
    }

    /// A source without end. `name` is for errors; name and `version` tell a resumed run whether
    /// it has the same source, so `version` changes with whatever the generator depends on.
    pub fn generated(name: &str, version: &str, generator: Generator) -> Self {
        let fingerprint = format!("{name} {version}");
        Self { name: name.into(), records: Records::Generated(generator), fingerprint }
    }

    /// Number of records, `None` for a generator.
    pub fn num_records(&self) -> Option<u64> {
        match &self.records {
            Records::Lines { lines, .. } => Some(lines.len() as u64),
            Records::Generated(_) => None,
        }
    }

    /// Identifies the content.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// File or generator as it was named.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where record `index` is.
    ///
    /// # Panics
    /// If a file has fewer records.
    pub fn place(&self, index: u64) -> Place {
        let (unit, number) = match &self.records {
            Records::Lines { lines, unit, .. } => (*unit, lines[index as usize].number.into()),
            Records::Generated(_) => ("record", index),
        };
        Place { source: self.name.clone(), unit, number }
    }

    /// Record `index`, from 0.
    ///
    /// # Errors
    /// A line that cannot be read or is not JSON.
    ///
    /// # Panics
    /// If a file has fewer records.
    pub fn record(&self, index: u64) -> Result<Value, DataError> {
        let (file, line) = match &self.records {
            Records::Generated(generator) => return Ok(generator(index)),
            Records::Lines { file, lines, .. } => (file, &lines[index as usize]),
        };
        let mut bytes = vec![0; line.len as usize];
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(line.start))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(DataError::io(&*self.name))?;
        drop(file);
        serde_json::from_slice(&bytes)
            .map_err(|cause| DataError::Json { place: self.place(index), cause })
    }
}

/// Finds the lines that are not blank, and the checksum of the whole.
fn index(file: &File, path: &Path) -> Result<(Vec<Line>, String), DataError> {
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let (mut hash, mut lines) = (blake3::Hasher::new(), Vec::new());
    let (mut start, mut len, mut number, mut blank) = (0, 0_u64, 1_u32, true);
    let mut end_line = |start: u64, len: u64, number: u32, blank: bool| {
        if blank {
            return Ok(());
        }
        let len = u32::try_from(len).map_err(|_| DataError::Field {
            place: Place {
                source: path.display().to_string().into(),
                unit: "line",
                number: number.into(),
            },
            field: "line".to_owned(),
            expected: "at most 4 GiB",
            found: format!("{len} bytes"),
        })?;
        lines.push(Line { start, len, number });
        Ok(())
    };
    loop {
        let bytes = reader.fill_buf().map_err(DataError::io(path))?;
        if bytes.is_empty() {
            break;
        }
        let (taken, ended) = match bytes.iter().position(|&b| b == b'\n') {
            Some(at) => (at + 1, true),
            None => (bytes.len(), false),
        };
        hash.update(&bytes[..taken]);
        blank &= bytes[..taken].iter().all(u8::is_ascii_whitespace);
        len += taken as u64;
        reader.consume(taken);
        if ended {
            end_line(start, len, number, blank)?;
            (start, len, number, blank) = (start + len, 0, number.saturating_add(1), true);
        }
    }
    end_line(start, len, number, blank)?;
    Ok((lines, hash.finalize().to_hex().to_string()))
}

impl Source {
    /// The first `limit` records (all of a file if it has fewer) in the order of the source.
    /// `ignore` names columns to leave alone.
    pub fn records(
        &self,
        limit: u64,
        ignore: &[String],
    ) -> impl Iterator<Item = Result<(Place, Record), DataError>> + Send {
        let num = self.num_records().map_or(limit, |num| num.min(limit));
        (0..num).map(move |index| {
            let place = self.place(index);
            let record = Record::from_json(self.record(index)?, &place, ignore)?;
            Ok((place, record))
        })
    }
}
