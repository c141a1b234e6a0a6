//! A Parquet file as lines of JSON.
//!
//! Lists and structs become arrays and objects, binary columns base64. The file is untrusted: a
//! decoder that panics on a damaged file is an error like any other.

use super::error::DataError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Decodes all rows into an unnamed temporary file, one line each.
pub(super) fn to_lines(path: &Path) -> Result<File, DataError> {
    let input = File::open(path).map_err(DataError::io(path))?;
    let lines = tempfile::tempfile().map_err(DataError::io(std::env::temp_dir()))?;
    let mut out = BufWriter::new(lines);
    let mut rows = 0;
    let decoded = catch_unwind(AssertUnwindSafe(|| write_rows(path, input, &mut out, &mut rows)));
    decoded.unwrap_or_else(|_| {
        let detail = "the decoder failed on damaged data".to_owned();
        Err(DataError::Parquet { path: path.to_owned(), rows, detail })
    })?;
    let mut lines = out
        .into_inner()
        .map_err(|e| DataError::Io { path: std::env::temp_dir(), cause: e.into_error() })?;
    lines.seek(SeekFrom::Start(0)).map_err(DataError::io(std::env::temp_dir()))?;
    Ok(lines)
}

fn write_rows(
    path: &Path,
    input: File,
    out: &mut BufWriter<File>,
    rows: &mut u64,
) -> Result<(), DataError> {
    let damaged = |rows, error: parquet::errors::ParquetError| DataError::Parquet {
        path: path.to_owned(),
        rows,
        detail: error.to_string(),
    };
    let reader = SerializedFileReader::new(input).map_err(|e| damaged(0, e))?;
    for row in reader.get_row_iter(None).map_err(|e| damaged(0, e))? {
        let row = row.map_err(|e| damaged(*rows, e))?.to_json_value();
        serde_json::to_writer(&mut *out, &row)
            .map_err(std::io::Error::from)
            .and_then(|()| out.write_all(b"\n"))
            .map_err(DataError::io(std::env::temp_dir()))?;
        *rows += 1;
    }
    Ok(())
}
