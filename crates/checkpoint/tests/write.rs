//! The writers: what they write reads back, equals the reference's bytes, and appears at once or
//! not at all.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use hybra_checkpoint::{
    Checkpoint, Dtype, Error, Format, GgufValue, GgufWriter, MAX_TENSORS, Mapping, OneOrMany,
    SafetensorsOptions, SafetensorsWriter, TensorInfo, WriteError,
};
use proptest::prelude::*;
use safetensors::tensor::TensorView;

/// Bytes that differ from tensor to tensor and from place to place.
fn data(info: &TensorInfo) -> Vec<u8> {
    let seed = info.name.bytes().fold(7u64, |seed, byte| seed * 31 + u64::from(byte));
    (0..info.byte_len().unwrap() as u64).map(|i| ((seed + i * i) >> 2) as u8).collect()
}

fn infos() -> Vec<TensorInfo> {
    vec![
        TensorInfo::new("b.weight", Dtype::F16, &[3, 5]),
        TensorInfo::new("a.weight", Dtype::F32, &[2, 3]),
        TensorInfo::new("c", Dtype::F32, &[]),
        TensorInfo::new("ids", Dtype::I64, &[4]),
        TensorInfo::new("mask \"ü\"", Dtype::Bool, &[7]),
        TensorInfo::new("a.bias", Dtype::Bf16, &[9]),
    ]
}

fn options(max_shard_bytes: u64, overwrite: bool) -> SafetensorsOptions {
    SafetensorsOptions { max_shard_bytes, overwrite }
}

fn write_directory(dir: &Path, infos: &[TensorInfo], options: &SafetensorsOptions, piece: usize) {
    let side_files: [(&str, &[u8]); 2] =
        [("config.json", b"{\"x\": Infinity}"), ("tokenizer.json", b"{}")];
    let mut writer = SafetensorsWriter::create(dir, infos, &side_files, options).unwrap();
    for info in infos {
        data(info).chunks(piece).for_each(|piece| writer.write(&info.name, piece).unwrap());
    }
    assert!(
        fs::read_dir(dir).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
            || options.overwrite
    );
    writer.finish().unwrap();
}

fn assert_reads_back(checkpoint: &Checkpoint, infos: &[TensorInfo]) {
    assert_eq!(checkpoint.tensors().len(), infos.len());
    for info in infos {
        let view = checkpoint.require(&info.name).unwrap();
        assert_eq!((view.dtype, view.shape), (info.dtype, &info.shape[..]), "{}", info.name);
        assert_eq!(view.data, data(info), "{}", info.name);
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn one_file_equals_the_reference_writers() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("model");
    let infos = infos();
    write_directory(&dir, &infos, &SafetensorsOptions::default(), 4);
    assert_eq!(names(&dir), ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(names(parent.path()), ["model"]);

    let bytes: Vec<Vec<u8>> = infos.iter().map(data).collect();
    let views = infos.iter().zip(&bytes).map(|(info, bytes)| {
        let dtype = serde_json::from_value(info.dtype.name().into()).unwrap();
        (info.name.clone(), TensorView::new(dtype, info.shape.clone(), bytes).unwrap())
    });
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let expected = safetensors::serialize(views, Some(metadata)).unwrap();
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), expected);

    let checkpoint = Checkpoint::open(&dir).unwrap();
    assert_reads_back(&checkpoint, &infos);
    assert_eq!(checkpoint.read_text("tokenizer.json").unwrap().as_deref(), Some("{}"));
    let config = checkpoint.config_json().unwrap().unwrap();
    assert_eq!(config, "{\"x\": 1.7976931348623157e308}");
}

#[test]
fn shards_and_their_index() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("model");
    // Declared order: 30 + 24 + 4 | 32 + 7 + 18 bytes.
    write_directory(&dir, &infos(), &options(60, false), 1 << 20);
    let shards = [1, 2].map(|shard| format!("model-{shard:05}-of-00002.safetensors"));
    for shard in &shards {
        let bytes = fs::read(dir.join(shard)).unwrap();
        safetensors::SafeTensors::deserialize(&bytes).unwrap();
    }
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.join("model.safetensors.index.json")).unwrap())
            .unwrap();
    assert_eq!(index["metadata"]["total_size"], 115);
    assert_eq!(index["weight_map"]["b.weight"], shards[0]);
    assert_eq!(index["weight_map"]["ids"], shards[1]);
    assert_eq!(index["weight_map"]["a.bias"], shards[1]);
    assert_reads_back(&Checkpoint::open(&dir).unwrap(), &infos());
    assert_eq!(names(parent.path()), ["model"]);
}

#[test]
fn no_tensors_is_a_checkpoint_too() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("model");
    write_directory(&dir, &[], &SafetensorsOptions::default(), 1);
    assert_reads_back(&Checkpoint::open(&dir).unwrap(), &[]);
    let path = parent.path().join("model.gguf");
    GgufWriter::create(&path, &[], &[], false).unwrap().finish().unwrap();
    assert_reads_back(&Checkpoint::open(&path).unwrap(), &[]);
}

#[test]
fn embedded_models() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("model");
    write_directory(&dir, &infos(), &options(60, false), 1 << 20);
    let files: Vec<(String, &'static [u8])> = names(&dir)
        .into_iter()
        .map(|name| (name.clone(), &*fs::read(dir.join(&name)).unwrap().leak()))
        .collect();
    drop(parent);
    let files = files.iter().map(|(name, bytes)| (name.as_str(), Mapping::from(*bytes)));
    let checkpoint = Checkpoint::from_memory("the embedded model", files).unwrap();
    assert_eq!(checkpoint.path(), Path::new("the embedded model"));
    assert_reads_back(&checkpoint, &infos());
    assert_eq!(checkpoint.read_text("tokenizer.json").unwrap().as_deref(), Some("{}"));
    assert!(checkpoint.read_text("absent").unwrap().is_none());
    assert!(checkpoint.config_json().unwrap().unwrap().contains("e308"));
    // A region keeps its file, not the checkpoint.
    let region = checkpoint.require("a.weight").unwrap().region();
    drop(checkpoint);
    assert_eq!(region[..], data(&infos()[1]));
}

fn gguf_infos() -> Vec<TensorInfo> {
    let mut infos = vec![
        TensorInfo::new("a.weight", Dtype::F32, &[3, 5]),
        TensorInfo::new("b", Dtype::F16, &[1]),
        TensorInfo::new("scalar", Dtype::F32, &[]),
        TensorInfo::new("c", Dtype::Bf16, &[2, 3, 4, 5]),
    ];
    for dtype in [Dtype::Q4_0, Dtype::Q4_1, Dtype::Q5_0, Dtype::Q5_1, Dtype::Q8_0, Dtype::Iq4Nl] {
        infos.push(TensorInfo::new(dtype.name(), dtype, &[3, 96]));
    }
    for dtype in [Dtype::Q4K, Dtype::Q5K, Dtype::Q6K] {
        infos.push(TensorInfo::new(dtype.name(), dtype, &[2, 512]));
    }
    infos
}

fn gguf_metadata() -> Vec<(&'static str, GgufValue)> {
    let strings = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    vec![
        ("general.architecture", GgufValue::Str("nemotron_h".into())),
        ("x.u32", GgufValue::U32(u32::MAX)),
        ("x.f32", GgufValue::F32(1e-5)),
        ("x.yes", GgufValue::Bool(true)),
        ("x.u32s", GgufValue::U32s(vec![0, 7, u32::MAX])),
        ("x.i32s", GgufValue::I32s(vec![3, 1])),
        ("x.minus", GgufValue::I32s(vec![3, -1])),
        ("x.f32s", GgufValue::F32s(vec![0.5, f32::INFINITY])),
        ("x.bools", GgufValue::Bools(vec![true, false])),
        ("x.strs", GgufValue::Strs(strings(&["", "Ġthe", "\0", "日本"]))),
        ("x.none", GgufValue::Strs(Vec::new())),
    ]
}

fn write_gguf(path: &Path, overwrite: bool, piece: usize) {
    let infos = gguf_infos();
    let mut writer = GgufWriter::create(path, &gguf_metadata(), &infos, overwrite).unwrap();
    for info in &infos {
        data(info).chunks(piece).for_each(|piece| writer.write(&info.name, piece).unwrap());
    }
    writer.finish().unwrap();
}

#[test]
fn gguf_reads_back() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("model.gguf");
    write_gguf(&path, false, 13);
    assert_eq!(names(parent.path()), ["model.gguf"]);
    // A directory with one .gguf is that model, with its side files.
    fs::write(parent.path().join("config.json"), "{}").unwrap();
    for (path, has_config) in [(&path, false), (&parent.path().to_owned(), true)] {
        let checkpoint = Checkpoint::open(path).unwrap();
        assert_eq!(checkpoint.format(), Format::Gguf);
        assert_reads_back(&checkpoint, &gguf_infos());
        assert_eq!(checkpoint.read_text("config.json").unwrap().is_some(), has_config);
    }
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len() % 32, 0);
    // The hub's cache names files by their hash.
    let blob = parent.path().join("0a1b2c");
    fs::write(&blob, &bytes).unwrap();
    assert_eq!(Checkpoint::open(&blob).unwrap().format(), Format::Gguf);
    let checkpoint = Checkpoint::from_memory("x", [("m.gguf", Mapping::from(bytes))]).unwrap();
    let gguf = checkpoint.gguf().unwrap();
    assert_eq!(gguf.get_str("general.architecture").unwrap(), Some("nemotron_h"));
    assert_eq!(gguf.get_u32("general.alignment").unwrap(), Some(32));
    assert_eq!(gguf.get_u32("x.u32").unwrap(), Some(u32::MAX));
    assert_eq!(gguf.get_f32("x.f32").unwrap(), Some(1e-5));
    assert_eq!(gguf.get_bool("x.yes").unwrap(), Some(true));
    let many = |values: &[u32]| Some(OneOrMany::Many(values.to_vec()));
    assert_eq!(gguf.get_u32s("x.u32s").unwrap(), many(&[0, 7, u32::MAX]));
    assert_eq!(gguf.get_u32s("x.i32s").unwrap(), many(&[3, 1]));
    assert!(gguf.get_u32s("x.minus").is_err());
    assert_eq!(gguf.get_f32s("x.f32s").unwrap(), Some(vec![0.5, f32::INFINITY]));
    assert_eq!(gguf.get_strs("x.strs").unwrap(), Some(vec!["", "Ġthe", "\0", "日本"]));
    assert_eq!(gguf.get_strs("x.none").unwrap(), Some(Vec::new()));
    assert_eq!(gguf.describe("x.bools").unwrap(), "array of 2 bool");
    assert_eq!(gguf.describe("x.yes").unwrap(), "bool true");
    for wrong in ["x.u32", "x.u32s", "x.strs"] {
        let error = gguf.get_str(wrong).unwrap_err().to_string();
        assert!(error.contains(wrong) && error.contains("expected a string, found "), "{error}");
    }
    assert!(gguf.missing("x.y").to_string().contains("key `x.y` is missing"));
}

#[test]
fn dropping_a_writer_leaves_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let infos = gguf_infos();
    let path = parent.path().join("model.gguf");
    let mut writer = GgufWriter::create(&path, &[], &infos, false).unwrap();
    writer.write("a.weight", &[1; 60]).unwrap();
    assert_eq!(names(parent.path()).len(), 1, "the temporary directory");
    drop(writer);
    let dir = parent.path().join("model");
    let shards = options(1, false);
    let mut writer =
        SafetensorsWriter::create(&dir, &infos[..4], &[("config.json", b"{}")], &shards).unwrap();
    writer.write("a.weight", &[1; 60]).unwrap();
    writer.write("b", &[1; 2]).unwrap();
    drop(writer);
    assert!(names(parent.path()).is_empty());
}

#[test]
fn finishing_early_leaves_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("model.gguf");
    let mut writer = GgufWriter::create(&path, &[], &gguf_infos(), false).unwrap();
    writer.write("a.weight", &[1; 59]).unwrap();
    let defect = write_defect(writer.finish().unwrap_err());
    assert_eq!(defect, WriteError::TooShort { tensor: "a.weight".into(), expected: 60, found: 59 });
    let dir = parent.path().join("model");
    let writer =
        SafetensorsWriter::create(&dir, &infos(), &[], &SafetensorsOptions::default()).unwrap();
    let defect = write_defect(writer.finish().unwrap_err());
    assert_eq!(defect, WriteError::TooShort { tensor: "b.weight".into(), expected: 30, found: 0 });
    assert!(names(parent.path()).is_empty());
}

fn write_defect(error: Error) -> WriteError {
    match error {
        Error::Write { defect, .. } => defect,
        other => panic!("{other}"),
    }
}

#[test]
fn the_stream_is_checked_and_can_go_on() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("model.gguf");
    let infos = [TensorInfo::new("a", Dtype::F32, &[2]), TensorInfo::new("b", Dtype::F32, &[1])];
    let mut writer = GgufWriter::create(&path, &[], &infos, false).unwrap();
    let mut refused = |name: &str, len: usize, expected: WriteError| {
        assert_eq!(write_defect(writer.write(name, &vec![0; len]).unwrap_err()), expected);
    };
    let (a, b) = (|| "a".to_owned(), || "b".to_owned());
    refused("b", 4, WriteError::OutOfOrder { expected: a(), found: b() });
    refused("a", 9, WriteError::TooLong { tensor: a(), expected: 8, found: 9 });
    writer.write("a", &[1, 2, 3, 4, 5]).unwrap();
    let mut refused = |name: &str, len: usize, expected: WriteError| {
        assert_eq!(write_defect(writer.write(name, &vec![0; len]).unwrap_err()), expected);
    };
    refused("b", 4, WriteError::TooShort { tensor: a(), expected: 8, found: 5 });
    refused("a", 4, WriteError::TooLong { tensor: a(), expected: 8, found: 9 });
    writer.write("a", &[6, 7, 8]).unwrap();
    writer.write("b", &[9; 4]).unwrap();
    let error = writer.write("b", &[0]).unwrap_err();
    assert_eq!(write_defect(error), WriteError::NothingLeft { found: b() });
    writer.finish().unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.require("a").unwrap().data, [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(checkpoint.require("b").unwrap().data, [9; 4]);
}

#[test]
fn targets_are_replaced_only_on_request() {
    let parent = tempfile::tempdir().unwrap();
    let (dir, path) = (parent.path().join("model"), parent.path().join("model.gguf"));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("old"), "old").unwrap();
    fs::write(&path, "old").unwrap();
    let infos = infos();
    let create = |overwrite| SafetensorsWriter::create(&dir, &infos, &[], &options(60, overwrite));
    assert_eq!(write_defect(create(false).unwrap_err()), WriteError::TargetExists);
    let error = GgufWriter::create(&path, &[], &[], false).unwrap_err();
    assert_eq!(write_defect(error), WriteError::TargetExists);
    assert_eq!(fs::read(dir.join("old")).unwrap(), b"old");

    // An unfinished replacement changes nothing.
    drop(create(true).unwrap());
    assert_eq!(names(&dir), ["old"]);

    // What is open stays readable while its file is replaced.
    write_gguf(&path, true, 1 << 20);
    let open = Checkpoint::open(&path).unwrap();
    write_gguf(&path, true, 1 << 20);
    assert_reads_back(&open, &gguf_infos());
    write_directory(&dir, &infos, &options(60, true), 1 << 20);
    assert_reads_back(&Checkpoint::open(&dir).unwrap(), &infos);
    assert!(!dir.join("old").exists());
    assert_eq!(names(parent.path()), ["model", "model.gguf"]);
}

#[test]
fn targets_of_another_kind_or_place() {
    let parent = tempfile::tempdir().unwrap();
    let dir = |path: &Path| {
        SafetensorsWriter::create(path, &[], &[], &options(1, true)).map(drop).unwrap_err()
    };
    let file = |path: &Path| GgufWriter::create(path, &[], &[], true).map(drop).unwrap_err();
    let taken = parent.path().join("taken");
    fs::write(&taken, "").unwrap();
    assert!(matches!(write_defect(dir(&taken)), WriteError::TargetKind { .. }));
    assert!(matches!(write_defect(file(parent.path())), WriteError::TargetKind { .. }));
    assert!(matches!(dir(&parent.path().join("no/such")), Error::Io { .. }));
    assert_eq!(write_defect(dir(Path::new(".."))), WriteError::TargetName);
    assert_eq!(names(parent.path()), ["taken"]);
    // An empty directory, and one that comes up while the writer runs.
    let (empty, late) = (parent.path().join("empty"), parent.path().join("late"));
    fs::create_dir(&empty).unwrap();
    SafetensorsWriter::create(&empty, &[], &[], &options(1, false)).unwrap().finish().unwrap();
    assert_eq!(names(&empty), ["model.safetensors"]);
    let writer = SafetensorsWriter::create(&late, &[], &[], &options(1, false)).unwrap();
    fs::create_dir(&late).unwrap();
    fs::write(late.join("x"), "").unwrap();
    assert_eq!(write_defect(writer.finish().unwrap_err()), WriteError::TargetExists);
    assert_eq!(names(&late), ["x"]);
    assert_eq!(names(parent.path()), ["empty", "late", "taken"]);
}

#[test]
fn declarations_that_could_not_be_read_back() {
    let parent = tempfile::tempdir().unwrap();
    let (dir, path) = (parent.path().join("model"), parent.path().join("model.gguf"));
    let safetensors = |infos: &[TensorInfo]| {
        let options = SafetensorsOptions::default();
        write_defect(SafetensorsWriter::create(&dir, infos, &[], &options).unwrap_err())
    };
    let gguf = |infos: &[TensorInfo]| {
        write_defect(GgufWriter::create(&path, &[], infos, false).unwrap_err())
    };
    let one = |name: &str, dtype, shape: &[usize]| vec![TensorInfo::new(name, dtype, shape)];
    let twice = [one("a", Dtype::F32, &[1]), one("a", Dtype::F16, &[1])].concat();
    let many = vec![TensorInfo::new("a", Dtype::F32, &[1]); MAX_TENSORS + 1];
    let huge: Vec<TensorInfo> =
        (0..3).map(|i| TensorInfo::new(i.to_string(), Dtype::F32, &[1 << 60])).collect();
    for refuse in [&safetensors as &dyn Fn(&[TensorInfo]) -> WriteError, &gguf] {
        assert!(matches!(refuse(&twice), WriteError::DeclaredTwice { .. }));
        assert!(matches!(refuse(&many), WriteError::TooMany { .. }));
        for infos in
            [one("a", Dtype::F32, &[3, 0]), one("a", Dtype::F32, &[1 << 62, 4]), huge.clone()]
        {
            assert!(matches!(refuse(&infos), WriteError::BadShape { .. }));
        }
        assert!(matches!(refuse(&one("a", Dtype::F32, &[1; 9])), WriteError::TooManyDims { .. }));
    }
    assert!(matches!(gguf(&one("a", Dtype::Q4K, &[2, 320])), WriteError::BadShape { .. }));
    assert!(matches!(gguf(&one("a", Dtype::I64, &[2])), WriteError::DtypeNotInFormat { .. }));
    let quantized = safetensors(&one("a", Dtype::Q8_0, &[32]));
    assert!(matches!(quantized, WriteError::DtypeNotInFormat { .. }));
    let reserved = safetensors(&one("__metadata__", Dtype::F32, &[1]));
    assert!(matches!(reserved, WriteError::Reserved { .. }));

    let keys = |keys: &[&str]| {
        let metadata: Vec<_> = keys.iter().map(|key| (*key, GgufValue::U32(32))).collect();
        write_defect(GgufWriter::create(&path, &metadata, &[], false).unwrap_err())
    };
    assert!(matches!(keys(&["general.alignment"]), WriteError::Reserved { .. }));
    assert!(matches!(keys(&["a", "a"]), WriteError::DeclaredTwice { .. }));
    assert!(matches!(keys(&[&"a".repeat(65_536)]), WriteError::TooMany { .. }));
    for side_files in [
        &[("../x", b"" as &[u8])][..],
        &[("a", b""), ("a", b"")],
        &[("model.safetensors", b"")],
        &[("model.safetensors.index.json", b"")],
        &[("other.gguf", b"")],
    ] {
        let options = SafetensorsOptions::default();
        let error = SafetensorsWriter::create(&dir, &[], side_files, &options).unwrap_err();
        assert!(matches!(write_defect(error), WriteError::SideFile { .. }));
    }
    assert!(names(parent.path()).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_declarations_read_back(
        shapes in proptest::collection::vec(
            (0usize..3, proptest::collection::vec(1usize..6, 0..4)), 1..9),
        max_shard_bytes in 1u64..400,
        piece in 1usize..80,
    ) {
        let infos: Vec<TensorInfo> = shapes
            .iter()
            .enumerate()
            .map(|(i, (dtype, shape))| {
                let dtype = [Dtype::F32, Dtype::F16, Dtype::Bf16][*dtype];
                TensorInfo::new(format!("t{}.{i}", i * 7 % 5), dtype, shape)
            })
            .collect();
        let parent = tempfile::tempdir().unwrap();
        let (dir, path) = (parent.path().join("model"), parent.path().join("model.gguf"));
        write_directory(&dir, &infos, &options(max_shard_bytes, false), piece);
        assert_reads_back(&Checkpoint::open(&dir).unwrap(), &infos);
        let mut writer = GgufWriter::create(&path, &[], &infos, false).unwrap();
        for info in &infos {
            data(info).chunks(piece).for_each(|piece| writer.write(&info.name, piece).unwrap());
        }
        writer.finish().unwrap();
        assert_reads_back(&Checkpoint::open(&path).unwrap(), &infos);
    }
}
