//! Sharded safetensors: `model.safetensors.index.json` and the shards it names.
//!
//! The index and the shards must say the same: every listed tensor lies in the shard listed for it,
//! every tensor of a shard is listed, and no two shards hold the same name. `metadata` (a total
//! size that writers compute in different ways) is not read.

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::files::{Files, is_plain};
use crate::tensor::Tensor;
use crate::{Error, IndexError, MAX_TENSORS, safetensors};

/// The name of the index in a directory.
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";

#[derive(Deserialize)]
struct Index {
    weight_map: WeightMap,
}

/// The first [`MAX_TENSORS`] (tensor, shard) pairs as listed, duplicates included; the number of
/// all.
struct WeightMap {
    listed: Vec<(String, String)>,
    count: usize,
}

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<WeightMap, D::Error> {
        struct MapVisitor;
        impl<'de> Visitor<'de> for MapVisitor {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of shard names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let (mut listed, mut count) = (Vec::new(), 0);
                while let Some(pair) = map.next_entry()? {
                    count += 1;
                    if count <= MAX_TENSORS {
                        listed.push(pair);
                    }
                }
                Ok(WeightMap { listed, count })
            }
        }
        deserializer.deserialize_map(MapVisitor)
    }
}

/// The tensors of all shards, shard by shard in the order of their names.
pub(crate) fn read(files: &Files) -> Result<Vec<Tensor>, Error> {
    let path = files.path(INDEX_FILE);
    let failed = |defect| Error::index(&path, defect);
    let text = files.read_text(INDEX_FILE)?.ok_or(Error::NoModel { path: path.clone() })?;
    let listed = parse_index(&text).map_err(failed)?;

    // Shard name → the first tensor listed for it, which errors name.
    let mut shards: Vec<(&str, &str)> = Vec::new();
    let mut seen = HashSet::new();
    for (tensor, shard) in &listed {
        if seen.insert(shard.as_str()) {
            shards.push((shard, tensor));
        }
    }
    shards.sort_unstable();

    let mut tensors = Vec::new();
    let mut homes: HashMap<String, &str> = HashMap::new();
    for (shard, listed_for) in shards {
        for tensor in read_shard(files, shard, listed_for, &failed)? {
            let name = tensor.info.name.clone();
            if let Some(first) = homes.insert(name.clone(), shard) {
                let (first, second) = (first.to_owned(), shard.to_owned());
                return Err(failed(IndexError::InTwoShards { tensor: name, first, second }));
            }
            tensors.push(tensor);
        }
    }
    compare(&listed, homes).map_err(failed)?;
    Ok(tensors)
}

fn parse_index(text: &str) -> Result<Vec<(String, String)>, IndexError> {
    let index: Index = serde_json::from_str(text)
        .map_err(|error| IndexError::Malformed { reason: error.to_string() })?;
    let WeightMap { listed, count } = index.weight_map;
    if count > MAX_TENSORS {
        return Err(IndexError::TooManyTensors { count, max: MAX_TENSORS });
    }
    let mut names = HashSet::new();
    for (tensor, shard) in &listed {
        if !names.insert(tensor) {
            return Err(IndexError::ListedTwice { tensor: tensor.clone() });
        }
        if !is_plain(shard) {
            let (tensor, shard) = (tensor.clone(), shard.clone());
            return Err(IndexError::ShardName { tensor, shard });
        }
    }
    Ok(listed)
}

fn read_shard(
    files: &Files,
    shard: &str,
    listed_for: &str,
    failed: &impl Fn(IndexError) -> Error,
) -> Result<Vec<Tensor>, Error> {
    match files.open(shard)? {
        Some(map) => safetensors::read(&map, &files.path(shard)),
        None => {
            let (tensor, shard) = (listed_for.to_owned(), shard.to_owned());
            Err(failed(IndexError::MissingShard { tensor, shard }))
        }
    }
}

/// Checks the weight map against the shards that hold the tensors.
fn compare(
    listed: &[(String, String)],
    mut homes: HashMap<String, &str>,
) -> Result<(), IndexError> {
    for (tensor, shard) in listed {
        if homes.remove(tensor) != Some(shard) {
            let (tensor, shard) = (tensor.clone(), shard.clone());
            return Err(IndexError::NotInShard { tensor, shard });
        }
    }
    // The smallest name, so that the message does not depend on the hash order.
    match homes.into_iter().min() {
        Some((tensor, shard)) => Err(IndexError::NotListed { tensor, shard: shard.to_owned() }),
        None => Ok(()),
    }
}
