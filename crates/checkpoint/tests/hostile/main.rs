//! Files built to break a reader: each is refused with its own error, which names the file and the
//! tensor, key or offset; none panics.

use hybra_checkpoint::{Checkpoint, Error};

/// Refused with this variant, in words.
macro_rules! refused {
    ($defect:ident, $enum:ident :: $variant:ident, $input:expr, $($word:expr),*) => {
        let defect = $defect($input, &[$($word),*]);
        assert!(matches!(defect, $enum::$variant { .. }), "{}: {defect:?}", stringify!($variant));
    };
}

mod damage;
mod gguf;
mod safetensors;
mod shards;

/// Opens files in memory.
fn open(files: &[(&str, Vec<u8>)]) -> Result<Checkpoint, Error> {
    Checkpoint::from_memory("here", files.iter().map(|(name, bytes)| (*name, bytes.clone().into())))
}

/// Checks that a message says where the defect is.
fn assert_names(error: &Error, words: &[&str]) {
    let message = error.to_string();
    for word in words {
        assert!(message.contains(word), "no {word:?} in: {message}");
    }
}
