//! Damaged files: cut at every byte, every bit flipped, random changes. None panics; whatever still
//! opens keeps its promises.

use hybra_checkpoint::{Checkpoint, Mapping};
use proptest::prelude::*;

use crate::gguf::{GGUF, Raw, sound_gguf};
use crate::open;
use crate::safetensors::{FILE, entry, safetensors};

/// Opens and, if that succeeds, touches everything.
fn read_everything(name: &str, bytes: Vec<u8>) {
    let len = bytes.len();
    let Ok(checkpoint) = Checkpoint::from_memory("here", [(name, Mapping::from(bytes))]) else {
        return;
    };
    let mut total = 0;
    for info in checkpoint.tensors() {
        let view = checkpoint.require(&info.name).unwrap();
        assert_eq!(view.data.len(), info.byte_len().unwrap());
        total += view.data.len();
    }
    assert!(total <= len, "tensors share bytes");
    let Some(gguf) = checkpoint.gguf() else { return };
    for key in gguf.keys() {
        gguf.describe(key).unwrap();
        let found = [
            gguf.get_u32(key).is_ok(),
            gguf.get_f32(key).is_ok(),
            gguf.get_bool(key).is_ok(),
            gguf.get_str(key).is_ok(),
            gguf.get_u32s(key).is_ok(),
            gguf.get_f32s(key).is_ok(),
            gguf.get_strs(key).is_ok(),
        ];
        // A scalar u32 is also the one value of `get_u32s`; an empty array is one of anything.
        assert!(found.iter().filter(|&&ok| ok).count() <= 3, "{key}: {found:?}");
    }
}

fn damaged(sound: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let len = sound.len();
    let changes = proptest::collection::vec((0..len, any::<u8>()), 1..6);
    (changes, 0..=len, any::<bool>()).prop_map(move |(changes, cut, cuts)| {
        let mut bytes = sound.clone();
        changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
        if cuts {
            bytes.truncate(cut);
        }
        bytes
    })
}

fn sound_safetensors() -> Vec<u8> {
    let header = [
        r#""__metadata__":{"format":"pt"}"#.to_owned(),
        entry("a", "F32", "[2,3]", "0", "24"),
        entry("b", "BF16", "[4]", "24", "32"),
        entry("c", "I64", "[]", "32", "40"),
    ];
    safetensors(&format!("{{{}}}", header.join(",")), 40)
}

#[test]
fn every_prefix_of_a_safetensors_file() {
    let bytes = sound_safetensors();
    assert_eq!(open(&[(FILE, bytes.clone())]).unwrap().tensors().len(), 3);
    for len in 0..bytes.len() {
        assert!(open(&[(FILE, bytes[..len].to_vec())]).is_err(), "{len} bytes");
    }
}

#[test]
fn every_single_bit_flip() {
    for (name, sound) in [(GGUF, sound_gguf()), (FILE, sound_safetensors())] {
        for bit in 0..sound.len() * 8 {
            let mut bytes = sound.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            read_everything(name, bytes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn damaged_gguf_files(bytes in damaged(sound_gguf())) {
        read_everything(GGUF, bytes);
    }

    #[test]
    fn damaged_safetensors_files(bytes in damaged(sound_safetensors())) {
        read_everything(FILE, bytes);
    }

    #[test]
    fn anything_behind_a_gguf_magic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        read_everything(GGUF, Raw::new(1, 1).bytes(&bytes).0);
    }
}
