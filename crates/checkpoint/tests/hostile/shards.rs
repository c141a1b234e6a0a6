//! Indexes that disagree with their shards, and sets of files without exactly one model.

use hybra_checkpoint::{Checkpoint, Error, IndexError, MAX_TENSORS};

use crate::safetensors::{FILE, entry, safetensors};
use crate::{assert_names, open};

const INDEX: &str = "model.safetensors.index.json";

fn shard(names: &[&str]) -> Vec<u8> {
    let entries: Vec<String> = names
        .iter()
        .enumerate()
        .map(|(i, name)| entry(name, "I8", "[1]", &i.to_string(), &(i + 1).to_string()))
        .collect();
    safetensors(&format!("{{{}}}", entries.join(",")), names.len())
}

/// Two shards, `s1` with a and b, `s2` with c, and that weight map.
fn sharded(weight_map: &str) -> Vec<(&'static str, Vec<u8>)> {
    let index = format!(r#"{{"metadata":{{}},"weight_map":{weight_map}}}"#);
    vec![(INDEX, index.into_bytes()), ("s1", shard(&["a", "b"])), ("s2", shard(&["c"]))]
}

fn index_defect(files: Vec<(&str, Vec<u8>)>, words: &[&str]) -> IndexError {
    let error = open(&files).unwrap_err();
    assert_names(&error, &[INDEX]);
    assert_names(&error, words);
    match error {
        Error::Index { defect, .. } => defect,
        other => panic!("{other}"),
    }
}

#[test]
fn shard_indexes() {
    use IndexError as E;
    let names = |checkpoint: Checkpoint| -> Vec<String> {
        checkpoint.tensors().map(|info| info.name.clone()).collect()
    };
    let sound = open(&sharded(r#"{"c":"s2","a":"s1","b":"s1"}"#)).unwrap();
    assert_eq!(names(sound), ["a", "b", "c"]);
    for map in ["1", "[]", "null", r#"{"a":1}"#, "{", r#"{"a":null}"#] {
        refused!(index_defect, E::Malformed, sharded(map), "not a shard index");
    }
    for index in ["", "{}", "[1]", "\u{feff}{}"] {
        let files = vec![(INDEX, index.as_bytes().to_vec())];
        refused!(index_defect, E::Malformed, files, "not a shard index");
    }
    let twice = sharded(r#"{"a":"s1","b":"s1","c":"s2","a":"s2"}"#);
    refused!(index_defect, E::ListedTwice, twice, "`a` is listed twice");
    for shard in ["../x", "/etc/passwd", "a/b", "..", ".", "", "a\\\\b", "c:x", "s1/", "a\\u0000"] {
        let files = sharded(&format!(r#"{{"a":"{shard}","b":"s1","c":"s2"}}"#));
        refused!(index_defect, E::ShardName, files, "`a`", "not a plain file name");
    }
    let missing = sharded(r#"{"a":"s1","b":"s1","c":"s2","d":"s3"}"#);
    refused!(index_defect, E::MissingShard, missing, "`d`", "s3 is missing");
    let absent = sharded(r#"{"a":"s1","b":"s1","c":"s2","d":"s2"}"#);
    refused!(index_defect, E::NotInShard, absent, "`d`", "s2");
    let elsewhere = sharded(r#"{"a":"s2","b":"s1","c":"s2"}"#);
    refused!(index_defect, E::NotInShard, elsewhere, "`a`", "s2");
    let unlisted = sharded(r#"{"a":"s1","c":"s2"}"#);
    refused!(index_defect, E::NotListed, unlisted, "`b` of s1");
    let mut both = sharded(r#"{"a":"s1","b":"s1","c":"s2"}"#);
    both[2].1 = shard(&["c", "a"]);
    refused!(index_defect, E::InTwoShards, both, "`a` lies in s1 and in s2");
    let entries: Vec<String> = (0..=MAX_TENSORS).map(|i| format!(r#""{i}":"s1""#)).collect();
    let many = sharded(&format!("{{{}}}", entries.join(",")));
    refused!(index_defect, E::TooManyTensors, many, "65537 tensors");
    // A defect of a shard names the shard.
    let mut broken = sharded(r#"{"a":"s1","b":"s1","c":"s2"}"#);
    broken[2].1.pop();
    assert_names(&open(&broken).unwrap_err(), &["s2: tensor `c`", "cut short"]);
}

#[test]
fn sets_without_one_model() {
    let sound = || shard(&["a"]);
    let error = open(&[("config.json", b"{}".to_vec())]).unwrap_err();
    assert!(matches!(error, Error::NoModel { .. }), "{error}");
    assert_names(&error, &["here", FILE, INDEX, ".gguf"]);
    for files in [
        [(FILE, sound()), (INDEX, Vec::new())],
        [(FILE, sound()), ("x.gguf", Vec::new())],
        [("y.GGUF", Vec::new()), ("x.gguf", Vec::new())],
    ] {
        let error = open(&files).unwrap_err();
        assert!(matches!(error, Error::AmbiguousModel { .. }), "{error}");
        assert_names(&error, &["here", files[0].0, files[1].0]);
    }
    let dir = tempfile::tempdir().unwrap();
    let error = Checkpoint::open(dir.path()).unwrap_err();
    assert!(matches!(error, Error::NoModel { .. }), "{error}");
    assert_names(&error, &[&dir.path().display().to_string()]);
    let error = Checkpoint::open(&dir.path().join("absent")).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    assert_names(&error, &["absent"]);
    let path = dir.path().join("weights.bin");
    std::fs::write(&path, sound()).unwrap();
    assert!(matches!(Checkpoint::open(&path).unwrap_err(), Error::UnknownFormat { .. }));
    std::fs::create_dir(dir.path().join(FILE)).unwrap();
    assert_names(&Checkpoint::open(dir.path()).unwrap_err(), &[FILE, "not a regular file"]);
}
