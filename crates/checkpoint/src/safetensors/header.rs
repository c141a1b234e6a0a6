//! The JSON header of a safetensors file, read in one pass without losing what is wrong with it:
//! duplicate names are kept, numbers keep their sign and fraction, and whatever exceeds a cap is
//! counted but not stored.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Number;

use super::MAX_RANK;
use crate::{MAX_TENSORS, SafetensorsError};

/// The key beside the tensors: a map of strings, of no meaning to a reader.
pub(crate) const METADATA_KEY: &str = "__metadata__";

/// An entry as it stands in the header.
#[derive(Debug)]
pub(super) struct RawEntry {
    pub(super) name: String,
    pub(super) dtype: String,
    /// The first [`MAX_RANK`] dimensions.
    pub(super) dims: Vec<Number>,
    /// The number of all dimensions.
    pub(super) rank: usize,
    pub(super) offsets: (Number, Number),
}

/// The first [`MAX_TENSORS`] entries, and the number of all.
#[derive(Debug, Default)]
pub(super) struct Header {
    pub(super) entries: Vec<RawEntry>,
    pub(super) count: usize,
}

/// Reads the header's text.
pub(super) fn parse(text: &str) -> Result<Header, SafetensorsError> {
    let mut sink = Sink::default();
    let mut json = serde_json::Deserializer::from_str(text);
    match sink.deserialize(&mut json).and_then(|()| json.end()) {
        Ok(()) => Ok(sink.header),
        Err(error) => {
            let reason = error.to_string();
            match sink.current {
                Some(tensor) => Err(SafetensorsError::BadEntry { tensor, reason }),
                None => Err(SafetensorsError::HeaderNotJson { reason }),
            }
        }
    }
}

/// Collects entries; `current` is the name whose value is being read, for errors.
#[derive(Default)]
struct Sink {
    header: Header,
    current: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawValue {
    dtype: String,
    shape: Dims,
    data_offsets: (Number, Number),
}

impl<'de> DeserializeSeed<'de> for &mut Sink {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &mut Sink {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA_KEY {
                map.next_value::<StringMap>()?;
                continue;
            }
            self.header.count += 1;
            if self.header.count > MAX_TENSORS {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let name = self.current.insert(name).clone();
            let RawValue { dtype, shape, data_offsets } = map.next_value()?;
            self.current = None;
            let Dims { dims, rank } = shape;
            self.header.entries.push(RawEntry { name, dtype, dims, rank, offsets: data_offsets });
        }
        Ok(())
    }
}

/// An object of strings; nothing of it is stored.
struct StringMap;

impl<'de> Deserialize<'de> for StringMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<StringMap, D::Error> {
        struct MapVisitor;
        impl<'de> Visitor<'de> for MapVisitor {
            type Value = StringMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<StringMap, A::Error> {
                while map.next_entry::<String, String>()?.is_some() {}
                Ok(StringMap)
            }
        }
        deserializer.deserialize_map(MapVisitor)
    }
}

/// A list of numbers of which at most [`MAX_RANK`] are stored.
struct Dims {
    dims: Vec<Number>,
    rank: usize,
}

impl<'de> Deserialize<'de> for Dims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Dims, D::Error> {
        struct DimsVisitor;
        impl<'de> Visitor<'de> for DimsVisitor {
            type Value = Dims;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Dims, A::Error> {
                let mut dims = Vec::new();
                while dims.len() < MAX_RANK {
                    match seq.next_element()? {
                        Some(dim) => dims.push(dim),
                        None => break,
                    }
                }
                let mut rank = dims.len();
                while rank >= MAX_RANK && seq.next_element::<IgnoredAny>()?.is_some() {
                    rank += 1;
                }
                Ok(Dims { dims, rank })
            }
        }
        deserializer.deserialize_seq(DimsVisitor)
    }
}
