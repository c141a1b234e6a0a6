//! States in files: they outlive the engine, and what is torn or of another model is left alone.

mod support;

use hybra_engine::{Engine, EngineConfig};
use hybra_kernels::ops::ssm_state::SsmDtype;
use std::fs;
use std::path::{Path, PathBuf};
use support::{Kit, Numbers, Output, run};

fn config(folder: &Path) -> EngineConfig {
    let cache_dir = Some(folder.to_owned());
    EngineConfig { cache_memory: 1 << 30, cache_dir, model_id: 3, ..EngineConfig::default() }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn cached(output: &Output) -> usize {
    output.end.as_ref().unwrap().cached_tokens
}

/// Leaves the state of one prompt in `folder`.
fn fill(kit: &Kit, folder: &Path, tokens: &[u32]) {
    let mut engine = kit.engine(config(folder));
    assert!(engine.cache_dir_error().is_none());
    run(&mut engine, kit.request(tokens, 1, 1));
    assert_eq!(engine.stats().cache_file_errors, 0);
}

#[test]
fn a_new_engine_goes_on_where_the_old_one_was() {
    let (kit, dir) = (Kit::new(), tempfile::tempdir().unwrap());
    let tokens = Numbers(1).tokens(600);
    fill(&kit, dir.path(), &tokens[..500]);
    assert_eq!(files(dir.path()).len(), 1);
    let alone = run(&mut kit.engine(EngineConfig::default()), kit.request(&tokens, 2, 30));
    for cache_memory in [1 << 30, 0] {
        let config = EngineConfig { cache_memory, ..config(dir.path()) };
        let mut engine = kit.engine(config);
        let again = run(&mut engine, kit.request(&tokens, 2, 30));
        let from = if cache_memory > 0 { 448 } else { 576 };
        assert_eq!(cached(&again), from, "the first of the two left a longer one");
        assert_eq!(again.tokens, alone.tokens);
    }
    let mut salted = kit.request(&tokens, 2, 1);
    salted.cache_salt = 1;
    assert_eq!(cached(&run(&mut kit.engine(config(dir.path())), salted)), 0);
}

#[test]
fn a_file_of_another_model_or_type_is_ignored_and_stays() {
    let (kit, dir) = (Kit::new(), tempfile::tempdir().unwrap());
    let tokens = Numbers(2).tokens(200);
    fill(&kit, dir.path(), &tokens);
    let path = files(dir.path()).remove(0);
    let before = fs::read(&path).unwrap();
    for other in [
        EngineConfig { model_id: 4, ..config(dir.path()) },
        EngineConfig { state_dtype: SsmDtype::Bf16, ..config(dir.path()) },
    ] {
        let mut engine = kit.engine(other);
        assert_eq!(cached(&run(&mut engine, kit.request(&tokens, 1, 1))), 0);
        assert_eq!(engine.stats().cache_file_errors, 0);
        drop(engine);
        assert_eq!(fs::read(&path).unwrap(), before);
    }
    let mut engine = kit.engine(config(dir.path()));
    assert_eq!(cached(&run(&mut engine, kit.request(&tokens, 1, 1))), 192);
}

/// Cut anywhere, while no engine looks or under its eyes: read again, and never a wrong state.
#[test]
fn torn_files_are_deleted_and_their_prompts_read() {
    let (kit, dir) = (Kit::new(), tempfile::tempdir().unwrap());
    let tokens = Numbers(3).tokens(130);
    let alone = run(&mut kit.engine(EngineConfig::default()), kit.request(&tokens, 1, 8));
    fill(&kit, dir.path(), &tokens);
    let path = files(dir.path()).remove(0);
    let whole = fs::read(&path).unwrap();
    let answer = |engine: &mut Engine, cut: &str| {
        let output = run(engine, kit.request(&tokens, 1, 8));
        assert_eq!((cached(&output), &output.tokens), (0, &alone.tokens), "{cut}");
    };
    let step = whole.len() / 12;
    for cut in (0..whole.len()).step_by(step).chain([8, 47, 48, 600, whole.len() - 1]) {
        fs::write(&path, &whole[..cut]).unwrap();
        let engine = kit.engine(config(dir.path()));
        assert!(files(dir.path()).is_empty(), "{cut} bytes are deleted at the start");
        drop(engine);
        fs::write(&path, &whole).unwrap();
        let mut engine = kit.engine(config(dir.path()));
        fs::write(&path, &whole[..cut]).unwrap();
        answer(&mut engine, &format!("{cut} bytes"));
        assert_eq!(engine.stats().cache_file_errors, 1);
    }
    let mut changed = whole.clone();
    changed[whole.len() / 2] ^= 4;
    fs::write(&path, &changed).unwrap();
    answer(&mut kit.engine(config(dir.path())), "a changed bit");
    // What was never finished goes; what is not ours stays.
    fs::write(path.with_extension("tmp"), b"x").unwrap();
    fs::write(dir.path().join("notes.state"), b"x").unwrap();
    drop(kit.engine(config(dir.path())));
    let names: Vec<_> =
        files(dir.path()).iter().map(|p| p.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, [path.file_name().unwrap(), "notes.state".as_ref()]);
}

#[test]
fn files_take_the_bytes_they_may() {
    let (kit, dir) = (Kit::new(), tempfile::tempdir().unwrap());
    fill(&kit, dir.path(), &Numbers(0).tokens(200));
    let one = fs::metadata(&files(dir.path())[0]).unwrap().len();
    let config = EngineConfig { cache_dir_bytes: 2 * one + one / 2, ..config(dir.path()) };
    for i in 1..5 {
        let mut engine = kit.engine(config.clone());
        run(&mut engine, kit.request(&Numbers(i).tokens(200), 1, 1));
        drop(engine);
        assert!(files(dir.path()).len() <= 2);
    }
    let mut engine = kit.engine(config.clone());
    for (i, found) in [(4, 192), (3, 192), (2, 0)] {
        let output = run(&mut engine, kit.request(&Numbers(i).tokens(200), 1, 1));
        assert_eq!(cached(&output), found, "prompt {i}");
    }
    drop(engine);
    drop(kit.engine(EngineConfig { cache_dir_bytes: one, ..config }));
    assert_eq!(files(dir.path()).len(), 1);
}

#[test]
fn a_folder_that_cannot_be_used_is_told() {
    let (kit, dir) = (Kit::new(), tempfile::tempdir().unwrap());
    let file = dir.path().join("file");
    fs::write(&file, b"x").unwrap();
    let mut engine = kit.engine(config(&file));
    assert!(engine.cache_dir_error().is_some());
    run(&mut engine, kit.request(&[1; 100], 1, 1));
}
