//! The log of a run as a TensorBoard event file.
//!
//! ```text
//! file   = record*                                            TFRecord framing
//! record = len u64 LE, masked(len) u32 LE, data, masked(data) u32 LE
//! masked = rotate_right(crc32c, 15) + 0xa282ead8, modulo 2^32
//! data   = Event { 1: wall_time double, 2: step int64, 3: file_version string, 5: Summary }
//! Summary { 1: Value { 1: tag string, 2: simple_value float }, repeated }       protobuf
//! ```
//!
//! The first record holds the version alone; then there is one for each line of `log.jsonl`. Source:
//! `tensorflow/core/util/event.proto`, `framework/summary.proto` and `lib/io/record_writer.h`.
//!
//! A log names no date. The clock of a file therefore starts at 0, in its name as in its events, and
//! the same log always gives the same bytes: the time of a step is the sum of the seconds in
//! `timing.jsonl`, or the step's number where a run has no such file.

use crate::atomic;
use crate::log::StepLog;
use crate::report::RunLog;
use std::io;
use std::path::{Path, PathBuf};

/// TensorBoard finds files by `tfevents`; by convention a number of seconds and a host follow. One
/// name for all runs, so that a file that is written again takes the place of the older one.
pub const FILE_NAME: &str = "events.out.tfevents.0000000000.hybra";

const VERSION: &str = "brain.Event:2";
const MASK_DELTA: u32 = 0xa282_ead8;

/// Writes the file of `log` into `dir`, which is made where it is missing; whole or not at all.
/// Gives the path of the file.
///
/// # Errors
/// What the file system says.
pub fn write(dir: &Path, log: &RunLog) -> io::Result<PathBuf> {
    std::fs::create_dir_all(dir)?;
    let path = dir.join(FILE_NAME);
    atomic::write(&path, &encode(log))?;
    Ok(path)
}

/// The bytes of the file of `log`.
#[must_use]
pub fn encode(log: &RunLog) -> Vec<u8> {
    let mut file = Vec::new();
    let mut version = Vec::new();
    double(&mut version, 1, 0.0);
    bytes(&mut version, 3, VERSION.as_bytes());
    record(&mut file, &version);

    let mut timings = log.timings.iter().peekable();
    let (mut clock, mut timed) = (0.0, 0);
    for line in &log.steps {
        let mut speed = None;
        while let Some(timing) = timings.next_if(|timing| timing.step <= line.step) {
            // A step that `log.every` left out is taken to have lasted as long as the next one.
            clock += timing.seconds * timing.step.saturating_sub(timed) as f64;
            timed = timing.step;
            speed = (timing.step == line.step).then_some(timing.tokens_per_second);
        }
        let wall_time = if log.timings.is_empty() { line.step as f64 } else { clock };
        record(&mut file, &event(line, wall_time, speed));
    }
    file
}

/// All scalars of a step under the names that other trainers' logs have.
fn event(line: &StepLog, wall_time: f64, tokens_per_second: Option<f64>) -> Vec<u8> {
    let mut summary = Vec::new();
    let mut scalar = |tag: &str, value: f64| {
        let mut message = Vec::new();
        bytes(&mut message, 1, tag.as_bytes());
        float(&mut message, 2, value as f32);
        bytes(&mut summary, 1, &message);
    };
    scalar("train/loss", line.loss);
    scalar("train/grad_norm", line.grad_norm);
    scalar("train/learning_rate", f64::from(line.lr));
    scalar("train/num_tokens", line.tokens as f64);
    scalar("train/num_learned_tokens", line.learned_tokens as f64);
    if let Some(speed) = tokens_per_second {
        scalar("train/tokens_per_second", speed);
    }
    line.metrics.iter().for_each(|(name, value)| scalar(&format!("train/{name}"), *value));
    line.eval.iter().for_each(|(name, value)| scalar(&format!("eval/{name}"), *value));

    let mut event = Vec::new();
    double(&mut event, 1, wall_time);
    key(&mut event, 2, 0);
    varint(&mut event, line.step);
    bytes(&mut event, 5, &summary);
    event
}

fn record(file: &mut Vec<u8>, data: &[u8]) {
    let len = (data.len() as u64).to_le_bytes();
    file.extend(len);
    file.extend(masked(&len).to_le_bytes());
    file.extend(data);
    file.extend(masked(data).to_le_bytes());
}

/// A checksum that stays one where the data holds checksums.
fn masked(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(MASK_DELTA)
}

/// The number of a field with its wire type.
fn key(message: &mut Vec<u8>, field: u64, wire: u64) {
    varint(message, field << 3 | wire);
}

fn varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

fn double(message: &mut Vec<u8>, field: u64, value: f64) {
    key(message, field, 1);
    message.extend(value.to_le_bytes());
}

fn bytes(message: &mut Vec<u8>, field: u64, value: &[u8]) {
    key(message, field, 2);
    varint(message, value.len() as u64);
    message.extend(value);
}

fn float(message: &mut Vec<u8>, field: u64, value: f32) {
    key(message, field, 5);
    message.extend(value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::StepTiming;
    use std::collections::BTreeMap;

    /// What TensorBoard 2.21 itself writes (`RecordWriter`, and its own classes of the messages).
    const GOLDEN: &str = "bd000000000000006321290909000000000000f83f10ac022aae01\
        0a110a0a747261696e2f6c6f73731500000040\
        0a160a0f747261696e2f677261645f6e6f726d1500000000\
        0a1a0a13747261696e2f6c6561726e696e675f72617465150000003f\
        0a170a10747261696e2f6e756d5f746f6b656e731500008042\
        0a1f0a18747261696e2f6e756d5f6c6561726e65645f746f6b656e731500001041\
        0a120a0b747261696e2f7269676874150000803e\
        0a170a106576616c2f636861696e626f78203136150000803fc098e7b4";

    fn line(step: u64) -> StepLog {
        StepLog {
            step,
            loss: 2.0,
            lr: 0.5,
            grad_norm: 0.0,
            tokens: 64,
            learned_tokens: 9,
            metrics: BTreeMap::from([("right".to_owned(), 0.25)]),
            eval: BTreeMap::from([("chainbox 16".to_owned(), 1.0)]),
        }
    }

    /// The data of all records, each of whose checksums is right.
    fn records(mut file: &[u8]) -> Vec<&[u8]> {
        let mut found = Vec::new();
        while let Some((len, rest)) = file.split_first_chunk::<8>() {
            let (len_sum, rest) = rest.split_first_chunk::<4>().unwrap();
            let (data, rest) = rest.split_at(u64::from_le_bytes(*len) as usize);
            let (data_sum, rest) = rest.split_first_chunk::<4>().unwrap();
            assert_eq!(u32::from_le_bytes(*len_sum), masked(len));
            assert_eq!(u32::from_le_bytes(*data_sum), masked(data));
            found.push(data);
            file = rest;
        }
        assert!(file.is_empty(), "{} bytes left", file.len());
        found
    }

    fn wall_time(data: &[u8]) -> f64 {
        assert_eq!(data[0], 1 << 3 | 1);
        f64::from_le_bytes(data[1..9].try_into().unwrap())
    }

    #[test]
    fn a_record_has_the_bytes_that_tensorboard_writes() {
        // RFC 3720, B.4: 32 zeros have the checksum 0x8a9136aa.
        let expected = 0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(masked(&[0; 32]), expected);
        let mut file = Vec::new();
        record(&mut file, &event(&line(300), 1.5, None));
        let hex: String = file.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, GOLDEN);
    }

    #[test]
    fn a_file_has_a_version_and_the_clock_of_its_run() {
        let timing = |step, seconds| StepTiming { step, seconds, tokens_per_second: 8.0 };
        let mut log = RunLog { steps: vec![line(1), line(4), line(5)], timings: Vec::new() };
        let times = |log: &RunLog| {
            let file = encode(log);
            let found = records(&file);
            assert!(found[0].ends_with(b"\x1a\x0dbrain.Event:2"));
            found.iter().map(|data| wall_time(data)).collect::<Vec<_>>()
        };
        assert_eq!(times(&log), [0.0, 1.0, 4.0, 5.0]);
        // Steps 2 and 3 were not logged; step 5 has not got its time yet.
        log.timings = vec![timing(1, 0.5), timing(4, 2.0)];
        assert_eq!(times(&log), [0.0, 0.5, 6.5, 6.5]);
        let speeds = |log| encode(log).windows(16).filter(|w| w == b"okens_per_second").count();
        assert_eq!(speeds(&log), 2);

        let dir = tempfile::tempdir().unwrap();
        let path = write(&dir.path().join("a/b"), &log).unwrap();
        log.steps.pop();
        assert_eq!(write(&dir.path().join("a/b"), &log).unwrap(), path);
        assert_eq!(std::fs::read(&path).unwrap(), encode(&log));
        assert_eq!(path.parent().unwrap().read_dir().unwrap().count(), 1);
    }
}
