//! Hostile GGUF files: preambles, keys, declarations, data.

use hybra_checkpoint::{Error, GgufError};

use crate::{assert_names, open};

pub(crate) const GGUF: &str = "model.gguf";

/// A GGUF file put together piece by piece.
#[derive(Clone, Default)]
pub(crate) struct Raw(pub(crate) Vec<u8>);

impl Raw {
    /// Magic, version 3 and the counts.
    pub(crate) fn new(tensors: u64, keys: u64) -> Raw {
        Raw(b"GGUF".to_vec()).u32(3).u64(tensors).u64(keys)
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Raw {
        self.0.extend(bytes);
        self
    }

    fn u32(self, value: u32) -> Raw {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(self, value: u64) -> Raw {
        self.bytes(&value.to_le_bytes())
    }

    fn str(self, text: &str) -> Raw {
        self.u64(text.len() as u64).bytes(text.as_bytes())
    }

    /// A key with a u32.
    fn key_u32(self, key: &str, value: u32) -> Raw {
        self.str(key).u32(4).u32(value)
    }

    /// A declaration; `ne` has the fastest dimension first.
    fn tensor(self, name: &str, ne: &[u64], ty: u32, offset: u64) -> Raw {
        let raw = self.str(name).u32(ne.len() as u32);
        ne.iter().fold(raw, |raw, &dim| raw.u64(dim)).u32(ty).u64(offset)
    }

    /// Padding to 32 and so many bytes of data.
    fn data(mut self, len: usize) -> Vec<u8> {
        self.0.resize(self.0.len().next_multiple_of(32), 0);
        self.0.resize(self.0.len() + len, 1);
        self.0
    }
}

/// A file with one of everything; its last byte belongs to a tensor.
pub(crate) fn sound_gguf() -> Vec<u8> {
    Raw::new(2, 5)
        .str("general.architecture")
        .u32(8)
        .str("nemotron_h")
        .key_u32("general.alignment", 32)
        .str("yes")
        .u32(7)
        .bytes(&[1])
        .str("words")
        .u32(9)
        .u32(8)
        .u64(2)
        .str("a")
        .str("bc")
        .str("sizes")
        .u32(9)
        .u32(5)
        .u64(3)
        .u32(1)
        .u32(2)
        .u32(3)
        .tensor("a", &[3], 0, 0)
        .tensor("b.weight", &[64, 2], 8, 32)
        .data(32 + 136)
}

fn gguf_defect(bytes: Vec<u8>, words: &[&str]) -> GgufError {
    let error = open(&[(GGUF, bytes)]).unwrap_err();
    assert_names(&error, &[GGUF]);
    assert_names(&error, words);
    match error {
        Error::Gguf { defect, .. } => defect,
        other => panic!("{other}"),
    }
}

#[test]
fn a_sound_gguf_file_and_all_its_prefixes() {
    let bytes = sound_gguf();
    let checkpoint = open(&[(GGUF, bytes.clone())]).unwrap();
    assert_eq!(checkpoint.require("b.weight").unwrap().shape, [2, 64]);
    assert_eq!(checkpoint.require("b.weight").unwrap().data, [1; 136]);
    assert_eq!(checkpoint.gguf().unwrap().get_strs("words").unwrap(), Some(vec!["a", "bc"]));
    for len in 0..bytes.len() {
        gguf_defect(bytes[..len].to_vec(), &[]);
    }
    // Version 2 has the same layout.
    let mut version_2 = bytes;
    version_2[4] = 2;
    assert_eq!(open(&[(GGUF, version_2)]).unwrap().gguf().unwrap().version(), 2);
}

#[test]
fn gguf_preambles() {
    use GgufError as E;
    refused!(gguf_defect, E::BadMagic, b"GGML\x03\0\0\0".to_vec(), "47, 47, 4d, 4c");
    refused!(gguf_defect, E::Truncated, b"GGU".to_vec(), "byte 0", "the magic");
    for version in [0u32, 1, 4, u32::MAX] {
        let bytes = Raw(b"GGUF".to_vec()).u32(version).u64(0).u64(0).0;
        refused!(gguf_defect, E::Version, bytes, &format!("version {version}:"));
    }
    for version in 1u32..=3 {
        let bytes = Raw(b"GGUF".to_vec()).bytes(&version.to_be_bytes()).u64(0).u64(0).0;
        refused!(gguf_defect, E::BigEndian, bytes, "big-endian");
    }
    for count in [u64::MAX, 1 << 63, 1 << 32, u64::MAX / 24 + 1, 1] {
        let count_text = count.to_string();
        let tensors = Raw::new(count, 0).data(0);
        refused!(gguf_defect, E::CountPastEnd, tensors, "byte 8", "tensors", &count_text);
        let keys = Raw::new(0, count).data(0);
        refused!(gguf_defect, E::CountPastEnd, keys, "byte 16", "keys", &count_text);
    }
    let many = Raw::new(100_000, 0).data(2_400_000);
    refused!(gguf_defect, E::TooMany, many, "100000 tensors");
    refused!(gguf_defect, E::TooMany, Raw::new(0, 100_000).data(1_300_000), "100000 keys");
}

#[test]
fn gguf_keys() {
    use GgufError as E;
    let one = || Raw::new(0, 1);
    for len in [u64::MAX, 1 << 63, 1 << 32, 1000] {
        let need = format!("takes {len} bytes");
        let name = one().u64(len).data(64);
        refused!(gguf_defect, E::Truncated, name, "byte 32", "key 0", &need);
        let value = one().str("k").u32(8).u64(len).data(64);
        refused!(gguf_defect, E::Truncated, value, "byte 45", "k takes", &need);
        let element = one().str("k").u32(9).u32(8).u64(1).u64(len).data(64);
        refused!(gguf_defect, E::Truncated, element, "byte 57", &need);
        for ty in [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12] {
            let array = one().str("k").u32(9).u32(ty).u64(len).data(64);
            refused!(gguf_defect, E::CountPastEnd, array, "byte 41", "`k`", &len.to_string());
        }
    }
    let long = one().str(&"k".repeat(65_536)).u32(7).data(64);
    refused!(gguf_defect, E::NameTooLong, long, "byte 24", "65536");
    for bad in [&b"\xff"[..], b"\xc3", b"\xed\xa0\x80"] {
        let name = one().u64(bad.len() as u64).bytes(bad).u32(4).data(64);
        refused!(gguf_defect, E::NotUtf8, name, "byte 32", "key 0");
        let value = one().str("k").u32(8).u64(bad.len() as u64).bytes(bad).data(64);
        refused!(gguf_defect, E::NotUtf8, value, "byte 45", "k is not");
        let element = one().str("k").u32(9).u32(8).u64(1).u64(bad.len() as u64).bytes(bad);
        refused!(gguf_defect, E::NotUtf8, element.data(64), "byte 57", "k is not");
    }
    let twice = Raw::new(0, 2).key_u32("k", 1).key_u32("k", 1).data(0);
    refused!(gguf_defect, E::DuplicateKey, twice, "`k`");
    for ty in [13, 255, u32::MAX] {
        let value = one().str("k").u32(ty).data(64);
        refused!(gguf_defect, E::UnknownValueType, value, "byte 33", "`k`", &ty.to_string());
        let element = one().str("k").u32(9).u32(ty).u64(0).data(64);
        refused!(gguf_defect, E::UnknownValueType, element, "byte 37", "`k`");
    }
    let nested = one().str("k").u32(9).u32(9).u64(1).u32(9).u64(1).data(64);
    refused!(gguf_defect, E::NestedArray, nested, "byte 37", "`k`");
    let not_bool = one().str("k").u32(7).bytes(&[2]).data(64);
    refused!(gguf_defect, E::NotABool, not_bool, "byte 37", "`k`", "is 2");
    let not_bools = one().str("k").u32(9).u32(7).u64(2).bytes(&[1, 255]).data(64);
    refused!(gguf_defect, E::NotABool, not_bools, "byte 50", "`k`", "255");
    for alignment in [0, 3, 4, 24, 33, 0x2_0000, 0x8000_0000, u32::MAX] {
        let bytes = one().key_u32("general.alignment", alignment).data(64);
        let found = format!("found {alignment}");
        refused!(gguf_defect, E::Alignment, bytes, "general.alignment", "8..=65536", &found);
    }
    let of_string = one().str("general.alignment").u32(8).str("32").data(64);
    refused!(gguf_defect, E::WrongType, of_string, "general.alignment", "string \"32\"");
}

#[test]
fn gguf_alignments_in_range() {
    for alignment in [8, 64, 65_536] {
        let mut bytes = Raw::new(1, 1)
            .key_u32("general.alignment", alignment)
            .tensor("a", &[2], 0, alignment.into())
            .0;
        let start = bytes.len().next_multiple_of(alignment as usize) + alignment as usize;
        bytes.resize(start, 0);
        bytes.extend([7; 8]);
        assert_eq!(open(&[(GGUF, bytes)]).unwrap().require("a").unwrap().data, [7; 8]);
    }
}

#[test]
fn gguf_declarations() {
    use GgufError as E;
    let one = |ne: &[u64], ty, offset| Raw::new(1, 0).tensor("a", ne, ty, offset).data(256);
    for len in [u64::MAX, 1 << 32, 1000] {
        let bytes = Raw::new(1, 0).u64(len).data(64);
        refused!(gguf_defect, E::Truncated, bytes, "byte 32", "tensor 0", &len.to_string());
    }
    for dims in [5, 0x8000_0000, u32::MAX] {
        let bytes = Raw::new(1, 0).str("a").u32(dims).data(64);
        refused!(gguf_defect, E::TooManyDims, bytes, "byte 33", "`a`", &dims.to_string());
    }
    refused!(gguf_defect, E::TooManyDims, one(&[1; 5], 0, 0), "`a`", "5 dimensions");
    for ne in [&[0][..], &[3, 0], &[0, u64::MAX, u64::MAX]] {
        refused!(gguf_defect, E::BadShape, one(ne, 0, 0), "`a`", "is 0");
    }
    for ne in [
        &[u64::MAX][..],
        &[1 << 62],
        &[1 << 32, 1 << 32],
        &[1 << 16; 4],
        &[3, (1 << 63) + 1, 2],
        &[u64::MAX, u64::MAX, u64::MAX, u64::MAX],
    ] {
        refused!(gguf_defect, E::BadShape, one(ne, 0, 0), "`a`", "overflows");
    }
    for (ty, name) in
        [(2, "Q4_0"), (3, "Q4_1"), (6, "Q5_0"), (7, "Q5_1"), (8, "Q8_0"), (20, "IQ4_NL")]
    {
        let words = [name, "row length 48", "block length 32"];
        refused!(
            gguf_defect,
            E::BadShape,
            one(&[48, 2], ty, 0),
            "`a`",
            words[0],
            words[1],
            words[2]
        );
        refused!(gguf_defect, E::BadShape, one(&[], ty, 0), "`a`", "row length 1 ");
    }
    for (ty, name) in [(12, "Q4_K"), (13, "Q5_K"), (14, "Q6_K")] {
        refused!(gguf_defect, E::BadShape, one(&[128, 2], ty, 0), "`a`", name, "row length 128");
    }
    for (ty, name) in [
        (4, "number 4"),
        (9, "Q8_1"),
        (10, "Q2_K"),
        (11, "Q3_K"),
        (23, "IQ4_XS"),
        (26, "I32"),
        (28, "F64"),
        (u32::MAX, "number 4294967295"),
    ] {
        refused!(gguf_defect, E::UnsupportedType, one(&[256], ty, 0), "`a`", name);
    }
    let twice = Raw::new(2, 0).tensor("a", &[8], 0, 0).tensor("a", &[8], 0, 32).data(64);
    refused!(gguf_defect, E::DuplicateTensor, twice, "`a`");
}

#[test]
fn gguf_data() {
    use GgufError as E;
    let one = |len: u64, offset| Raw::new(1, 0).tensor("a", &[len], 0, offset).data(256);
    assert!(open(&[(GGUF, one(64, 0))]).is_ok());
    assert!(open(&[(GGUF, one(56, 32))]).is_ok());
    for offset in [1, 31, 33, u64::MAX] {
        refused!(gguf_defect, E::Unaligned, one(8, offset), "`a`", &offset.to_string());
    }
    // Offsets near 2^64 would wrap to a place inside the file.
    for (len, offset) in [
        (65, 0),
        (64, 32),
        (1, 256),
        (1, 1 << 32),
        (1, 1 << 63),
        (8, u64::MAX - 31),
        (1 << 40, 0),
        ((1 << 61) - 1, 0),
        ((1 << 61) - 1, u64::MAX - 31),
    ] {
        refused!(gguf_defect, E::PastEnd, one(len, offset), "`a`", "256 bytes");
    }
    for (a, b) in [((0, 9), (32, 8)), ((0, 8), (0, 8)), ((32, 1), (0, 16))] {
        let (offset, len): (u64, u64) = a;
        let raw = Raw::new(2, 0).tensor("a", &[len], 0, offset).tensor("b", &[b.1], 0, b.0);
        refused!(gguf_defect, E::Overlap, raw.data(256), "`a`", "`b`", "inside");
    }
    // Without the padding that the data would follow.
    let cut = Raw::new(1, 0).tensor("a", &[8], 0, 0).0;
    refused!(gguf_defect, E::PastEnd, cut, "`a`", "0 bytes");
}
