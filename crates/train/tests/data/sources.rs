//! Damaged files: the error names file, line or row, field, expected and found.

use crate::{CHAT, config, open, write};
use hybra_train::data::{DataError, Record, Source, SourceConfig};
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use std::path::Path;
use std::sync::Arc;

/// The error of the first record that has one.
fn first_error(path: &Path) -> String {
    let source = match Source::open(path) {
        Err(error) => return error.to_string(),
        Ok(source) => source,
    };
    let error = source.records(u64::MAX, &[]).find_map(Result::err);
    error.expect("an error").to_string()
}

#[test]
fn defects_of_jsonl_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let good = r#"{"text":"a"}"#;
    let cases = [
        ("{\"text\":\n", "line 3: not valid JSON: EOF while parsing"),
        ("[1]", "line 3: `record`: expected a JSON object, found [1]"),
        (r#"{"messages":[{"content":"x"}]}"#, "`messages[0].role`: expected system"),
        (
            r#"{"messages":[{"role":"user","content":"x"}]}"#,
            "expected an assistant's turn at the end",
        ),
        (r#"{"messages":[]}"#, "expected an assistant's turn at the end, found nothing"),
        (r#"{"messages":"[1"}"#, "`messages`: expected a list"),
        (r#"{"messages":[{"role":"user","content":5}]}"#, "`messages[0].content`: expected text"),
        (r#"{"messages":[{"role":"user","contnet":"x"}]}"#, "`messages[0].contnet`: expected role"),
        (r#"{"conversations":[]}"#, "`conversations`: expected messages, tools"),
        (r#"{"text":"a","messages":[]}"#, "`text`: expected no `messages`"),
        (r#"{"text":""}"#, "`text`: expected text that is not empty"),
        (r#"{"input":"a"}"#, "`output`: expected text, found nothing"),
        (r#"{"input":"a","output":"b","reasoning":"maybe"}"#, "`reasoning`: expected \"on\""),
        (r#"{"input":"a","output":"b","reasoning":"on"}"#, "for a record without a trace"),
        (r#"{"input":"a","output":"<think>b"}"#, "`messages[1].content`: expected one <think>"),
        (r#"{"input":"a","output":"<think>b</think>"}"#, "expected an answer or `tool_calls`"),
        (r#"{"messages":[{"role":"assistant","content":"x","weight":2}]}"#, "expected 0 or 1"),
        (
            r#"{"messages":[{"role":"assistant","tool_calls":[{"name":"f","arguments":"{"}]}]}"#,
            "`messages[0].tool_calls[0].arguments`: expected an object",
        ),
        (
            r#"{"messages":[{"role":"assistant","content":"x","reasoning_content":"a</think>"}]}"#,
            "`messages[0].reasoning_content`: expected no </think>",
        ),
    ];
    for (line, want) in cases {
        let path = write(directory.path(), "bad.jsonl", format!("{good}\n\n{line}\n{good}\n"));
        let error = first_error(&path);
        assert!(error.contains("bad.jsonl: line 3: ") && error.contains(want), "{line}: {error}");
    }
    let path = write(directory.path(), "bad.jsonl", b"{\"text\":\"\xff\"}\n");
    assert!(first_error(&path).contains("line 1: not valid JSON"), "{}", first_error(&path));
    let path = write(directory.path(), "empty.jsonl", "\n \n");
    assert!(first_error(&path).contains("empty.jsonl: no records"));
    assert!(first_error(&directory.path().join("absent.jsonl")).contains("absent.jsonl: "));
    let path = write(directory.path(), "c.jsonl", r#"{"extra":1,"text":"a"}"#);
    let ignore = SourceConfig { ignore: vec!["extra".into()], ..SourceConfig::default() };
    assert!(open(&config(path.clone(), ignore)).unwrap().sample(0).is_ok());
    assert!(open(&config(path, SourceConfig::default())).unwrap().sample(0).is_err());
}

#[test]
fn a_message_that_the_template_refuses_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let line =
        r#"{"messages":[{"role":"wizard","content":"x"},{"role":"assistant","content":"y"}]}"#;
    let path = write(directory.path(), "roles.jsonl", line);
    let error = open(&config(path, SourceConfig::default())).unwrap().sample(0).unwrap_err();
    let want = "roles.jsonl: line 1: messages[1]: unknown role: wizard";
    assert!(error.to_string().ends_with(want), "{error}");
}

/// A file of string columns, and one with `messages` as a list of structs.
fn parquet(schema: &str, codec: Compression, columns: &[(&[&str], &[i16], &[i16])]) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(codec).build());
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for (values, def_levels, rep_levels) in columns {
        let values: Vec<ByteArray> = values.iter().map(|&v| ByteArray::from(v)).collect();
        let mut column = group.next_column().unwrap().unwrap();
        let typed = column.typed::<ByteArrayType>();
        typed.write_batch(&values, Some(def_levels), Some(rep_levels)).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

fn nested(codec: Compression) -> Vec<u8> {
    let schema = "message s { optional binary category (UTF8);
        optional group messages (LIST) { repeated group list { optional group element {
        optional binary role (UTF8); optional binary content (UTF8); } } } }";
    let levels: (&[i16], &[i16]) = (&[4, 4, 4, 4], &[0, 1, 0, 1]);
    parquet(
        schema,
        codec,
        &[
            (&["math"], &[1, 0], &[0, 0]),
            (&["user", "assistant", "user", "assistant"], levels.0, levels.1),
            (&["1+1?", "<think>\none more\n</think>\n\n2", "hi", "Hello."], levels.0, levels.1),
        ],
    )
}

#[test]
fn parquet_rows_are_records() {
    let directory = tempfile::tempdir().unwrap();
    // The codecs of published files.
    let open = |codec: Compression| {
        Source::open(&write(directory.path(), "nested.parquet", nested(codec))).unwrap()
    };
    let source = open(Compression::UNCOMPRESSED);
    let jsonl = r#"{"messages":[{"role":"user","content":"1+1?"},{"role":"assistant","reasoning_content":"one more","content":"2"}]}
{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"Hello."}]}"#;
    let same = Source::open(&write(directory.path(), "same.jsonl", jsonl)).unwrap();
    let records = |source: &Source| -> Vec<Record> {
        source.records(u64::MAX, &[]).map(|record| record.unwrap().1).collect()
    };
    assert_eq!(records(&source), records(&same));
    for codec in [Compression::SNAPPY, Compression::ZSTD(ZstdLevel::default())] {
        assert_eq!(records(&open(codec)), records(&same), "{codec:?}");
    }
    assert_eq!(source.place(1).to_string().rsplit(": ").next(), Some("row 2"));

    // Lists as strings of JSON.
    let first: serde_json::Value = serde_json::from_str(jsonl.lines().next().unwrap()).unwrap();
    let text = first["messages"].to_string();
    let schema = "message s { optional binary messages (UTF8); }";
    let bytes = parquet(schema, Compression::UNCOMPRESSED, &[(&[&text, "[{}]"], &[1, 1], &[0, 0])]);
    let path = write(directory.path(), "strings.parquet", bytes);
    let source = Source::open(&path).unwrap();
    assert_eq!(source.records(1, &[]).next().unwrap().unwrap().1, records(&same)[0]);
    assert!(first_error(&path).contains("row 2: `messages[0].role`"), "{}", first_error(&path));
}

#[test]
fn damaged_parquet_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = nested(Compression::SNAPPY);
    for len in (0..bytes.len()).step_by(7) {
        let path = write(directory.path(), "cut.parquet", &bytes[..len]);
        let error = Source::open(&path).map(drop).unwrap_err();
        assert!(matches!(error, DataError::Parquet { .. }), "{len}: {error}");
        assert!(error.to_string().contains("cut.parquet: not a readable Parquet file"));
    }
    // Flipped bytes give an error, or records that may be wrong; never a panic.
    for at in 0..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x55;
        let path = write(directory.path(), "flipped.parquet", bytes);
        if let Ok(source) = Source::open(&path) {
            source.records(u64::MAX, &[]).for_each(drop);
        }
    }
}

#[test]
fn a_generator_is_a_source_without_end() {
    let source = Source::generated(
        "count",
        "1",
        Box::new(|index| serde_json::json!({ "text": index.to_string() })),
    );
    assert_eq!(source.num_records(), None);
    assert_eq!(source.record(1 << 40).unwrap()["text"], (1_u64 << 40).to_string());
    assert_eq!(source.place(9).to_string(), "count: record 9");
    assert!(CHAT.lines().count() > 7);
}
