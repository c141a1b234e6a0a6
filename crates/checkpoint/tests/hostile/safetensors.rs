//! Hostile safetensors files: headers, counts, entries, coverage.

use hybra_checkpoint::{Error, MAX_TENSORS, SafetensorsError, ShapeError};

use crate::{assert_names, open};

pub(crate) const FILE: &str = "model.safetensors";

/// A file with that header, padded with spaces, and so many bytes of data.
pub(crate) fn safetensors(header: &str, data_len: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.resize(bytes.len() + data_len, 1);
    bytes
}

/// An entry of a header.
pub(crate) fn entry(name: &str, dtype: &str, shape: &str, begin: &str, end: &str) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

fn safetensors_defect(bytes: Vec<u8>, words: &[&str]) -> SafetensorsError {
    let error = open(&[(FILE, bytes)]).unwrap_err();
    assert_names(&error, &[FILE]);
    assert_names(&error, words);
    match error {
        Error::Safetensors { defect, .. } => defect,
        other => panic!("{other}"),
    }
}

#[test]
fn a_sound_safetensors_file() {
    let header = format!(
        "{{{},{}}}  ",
        entry("b", "I8", "[2]", "4", "6"),
        entry("a", "F32", "[]", "0", "4")
    );
    let checkpoint = open(&[(FILE, safetensors(&header, 6))]).unwrap();
    assert_eq!(checkpoint.tensors().map(|info| &*info.name).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(checkpoint.require("a").unwrap().data, [1; 4]);
    assert!(checkpoint.get("c").is_none());
    assert_names(&checkpoint.require("c").unwrap_err(), &["here", "no tensor `c`"]);
}

#[test]
fn safetensors_headers() {
    use SafetensorsError as E;
    refused!(safetensors_defect, E::FileTooShort, vec![0; 7], "7 bytes");
    refused!(safetensors_defect, E::FileTooShort, Vec::new(), "0 bytes");
    let with_len = |len: u64| [&len.to_le_bytes()[..], b"{}"].concat();
    for len in [u64::MAX, 1 << 63, 1 << 32, 100_000_001] {
        refused!(safetensors_defect, E::HeaderTooLarge, with_len(len), "at most 100000000");
    }
    refused!(safetensors_defect, E::HeaderPastEnd, with_len(3), "ends at byte 11, the file at 10");
    refused!(safetensors_defect, E::HeaderPastEnd, with_len(100_000_000), "cut short");
    let mut not_utf8 = safetensors(r#"{"x":1}"#, 0);
    not_utf8[10] = 0xff;
    refused!(safetensors_defect, E::HeaderNotUtf8, not_utf8, "byte 10");
    let deep = "[".repeat(100_000);
    for json in ["", "{", "[]", "1", "{}{}", "{\"a", "\0", "{a:1}", &deep] {
        refused!(safetensors_defect, E::HeaderNotJson, safetensors(json, 0), "not a JSON object");
    }
    let metadata = r#"{"__metadata__":{"format":1}}"#;
    refused!(safetensors_defect, E::HeaderNotJson, safetensors(metadata, 0), "string");
    let deep = format!(r#"{{"a":{deep}"#);
    for json in [
        r#"{"a""#,
        r#"{"a":{"dtype":"F32","#,
        r#"{"a":1}"#,
        r#"{"a":{}}"#,
        r#"{"a":{"dtype":"F32","shape":[1]}}"#,
        r#"{"a":{"dtype":1,"shape":[1],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":1,"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":["1"],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}"#,
        r#"{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}"#,
        &deep,
    ] {
        refused!(safetensors_defect, E::BadEntry, safetensors(json, 4), "tensor `a`");
    }
}

#[test]
fn safetensors_counts_and_names() {
    use SafetensorsError as E;
    let one = |name: &str| entry(name, "I8", "[1]", "0", "1");
    let twice = format!("{{{},{}}}", one("a"), one("a"));
    refused!(safetensors_defect, E::DuplicateTensor, safetensors(&twice, 1), "tensor `a`");
    for count in [MAX_TENSORS + 1, 100_000] {
        let entries: Vec<String> = (0..count).map(|i| one(&i.to_string())).collect();
        let header = format!("{{{}}}", entries.join(","));
        let count = format!("{count} tensors");
        refused!(safetensors_defect, E::TooManyTensors, safetensors(&header, 1), &count);
    }
    let dims = format!("[{}1]", "1,".repeat(100_000));
    for (rank, shape) in [("9 dim", "[1,1,1,1,1,1,1,1,1]"), ("100001 dim", &dims)] {
        let header = format!("{{{}}}", entry("a", "I8", shape, "0", "1"));
        refused!(safetensors_defect, E::TooManyDims, safetensors(&header, 1), "`a`", rank);
    }
}

#[test]
fn safetensors_entries() {
    use SafetensorsError as E;
    let one = |dtype: &str, shape: &str, begin: &str, end: &str| {
        safetensors(&format!("{{{}}}", entry("a", dtype, shape, begin, end)), 8)
    };
    for dtype in ["F33", "Q4_0", "F8_E4M3", "", "f32"] {
        let bytes = one(dtype, "[2]", "0", "8");
        refused!(safetensors_defect, E::UnknownDtype, bytes, "`a`", "unknown dtype");
    }
    refused!(safetensors_defect, E::Negative, one("F32", "[-2]", "0", "8"), "`a`", "-2");
    refused!(safetensors_defect, E::Negative, one("F32", "[2]", "-8", "0"), "`a`", "-8");
    refused!(safetensors_defect, E::Negative, one("F32", "[2]", "0", "-1"), "data_offsets");
    for number in ["1.5", "2e0", "18446744073709551616"] {
        let shape = one("F32", &format!("[{number}]"), "0", "8");
        refused!(safetensors_defect, E::NotAnInteger, shape, "`a`", "shape holds");
        let offset = one("F32", "[2]", "0", number);
        refused!(safetensors_defect, E::NotAnInteger, offset, "`a`", "data_offsets holds");
    }
    for shape in ["[18446744073709551615]", "[4294967296,4294967296]", "[2,9223372036854775808]"] {
        let bytes = one("F32", shape, "0", "8");
        refused!(safetensors_defect, E::BadShape, bytes, "`a`", "the size overflows");
    }
    // Also where a later zero would hide the overflow.
    for shape in ["[0]", "[2,0]", "[4294967296,4294967296,0]"] {
        let defect = safetensors_defect(one("F32", shape, "0", "0"), &["`a`", "is 0"]);
        let is_zero = |defect: &ShapeError| matches!(defect, ShapeError::ZeroDim { .. });
        assert!(matches!(&defect, E::BadShape { defect, .. } if is_zero(defect)), "{defect:?}");
    }
    refused!(safetensors_defect, E::OffsetsReversed, one("F32", "[2]", "8", "0"), "`a`", "[8, 0]");
    refused!(safetensors_defect, E::PastEnd, one("F32", "[2]", "1", "9"), "`a`", "byte 9 of 8");
    let far = one("F32", "[2]", "0", "18446744073709551615");
    refused!(safetensors_defect, E::PastEnd, far, "`a`");
    let length = one("F32", "[1]", "0", "8");
    refused!(safetensors_defect, E::WrongLength, length, "`a`", "takes 4 bytes", "span 8");
}

#[test]
fn safetensors_coverage() {
    use SafetensorsError as E;
    let two = |first: (&str, &str), second: (&str, &str), data_len| {
        let one = |name, (begin, end): (&str, &str)| {
            let len: usize = end.parse::<usize>().unwrap() - begin.parse::<usize>().unwrap();
            entry(name, "I8", &format!("[{len}]"), begin, end)
        };
        safetensors(&format!("{{{},{}}}", one("a", first), one("b", second)), data_len)
    };
    let inside = two(("0", "4"), ("3", "6"), 6);
    refused!(safetensors_defect, E::Overlap, inside, "`b` begins at byte 3", "inside `a`");
    refused!(safetensors_defect, E::Overlap, two(("0", "4"), ("0", "4"), 4), "`a`", "`b`");
    refused!(safetensors_defect, E::Overlap, two(("2", "4"), ("0", "6"), 6), "`a`", "`b`");
    refused!(safetensors_defect, E::Hole, two(("0", "2"), ("3", "6"), 6), "`b`", "from 2");
    refused!(safetensors_defect, E::Hole, two(("1", "2"), ("2", "6"), 6), "`a`", "from 0");
    refused!(safetensors_defect, E::TrailingBytes, two(("0", "2"), ("2", "6"), 7), "6", "7");
    refused!(safetensors_defect, E::TrailingBytes, safetensors("{}", 1), "byte 0", "at 1");
}
