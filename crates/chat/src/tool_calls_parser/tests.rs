//! By hand, and over random texts and cuts.

use super::*;
use proptest::prelude::*;

/// Content, and the calls with their arguments.
type Output = (String, Vec<(String, String)>);

fn join(deltas: impl IntoIterator<Item = ToolDelta>) -> Output {
    let (mut content, mut calls) = (String::new(), Vec::new());
    for delta in deltas {
        match delta {
            ToolDelta::Content(text) => content.push_str(&text),
            ToolDelta::Call { index, name } => {
                assert_eq!(index, calls.len());
                calls.push((name, String::new()));
            }
            ToolDelta::Arguments { index, fragment } => {
                assert_eq!(index + 1, calls.len());
                calls[index].1.push_str(&fragment);
            }
        }
    }
    (content, calls)
}

fn parse(text: &str) -> Output {
    let mut parser = ToolCallParser::new();
    let mut deltas = parser.push(text);
    deltas.extend(parser.finish());
    join(deltas)
}

fn call(name: &str, arguments: &str) -> (String, String) {
    (name.to_owned(), arguments.to_owned())
}

#[test]
fn calls_and_their_arguments() {
    for (text, content, calls) in [
        (
            r#"<TOOLCALL>[{"name": "add", "arguments": {"a":  1}}, {"name":"b","arguments":{}}]</TOOLCALL>"#,
            "",
            vec![call("add", r#"{"a":  1}"#), call("b", "{}")],
        ),
        // Arguments first, as a string, none, a number; other members; blanks; no close tag.
        (r#"<TOOLCALL>[{"arguments": [1], "name": "x"}]"#, "", vec![call("x", "[1]")]),
        (
            r#"<TOOLCALL>[{"name": "x", "arguments": "{\"a\": \"\u00e9\ud83d\ude00\ud83d\n\"}"}]"#,
            "",
            vec![call("x", "{\"a\": \"é😀\u{fffd}\n\"}")],
        ),
        (r#"<TOOLCALL> [ { "name" : "x" } ] </TOOLCALL> "#, "", vec![call("x", "{}")]),
        (r#"<TOOLCALL>[{"name": "x", "arguments": -1.5e3}]"#, "", vec![call("x", "-1.5e3")]),
        (r#"<TOOLCALL>[{"id": [1, {}], "n\u0061me": "x"}]"#, "", vec![call("x", "{}")]),
        // Text behind, and a second list.
        (
            r#"<TOOLCALL>[{"name": "x"}]</TOOLCALL> so<TOOLCALL>[{"name": "y"}]</TOOLCALL>"#,
            " so",
            vec![call("x", "{}"), call("y", "{}")],
        ),
        // No calls.
        ("<TOOLCALL>[]</TOOLCALL>", "<TOOLCALL>[]</TOOLCALL>", vec![]),
        ("<TOOLCALL>[{", "<TOOLCALL>[{", vec![]),
        (r#"<TOOLCALL>[{"arguments": 1}]"#, r#"<TOOLCALL>[{"arguments": 1}]"#, vec![]),
        (r#"<TOOLCALL>[{"name": 1}]x"#, r#"<TOOLCALL>[{"name": 1}]x"#, vec![]),
        ("<TOOLCALL>{}", "<TOOLCALL>{}", vec![]),
        ("a<TOOL<TOOLCALL", "a<TOOL<TOOLCALL", vec![]),
        (
            r#"<TOOLCALL>[<TOOLCALL>[{"name": "x"}]</TOOLCALL>"#,
            "<TOOLCALL>[",
            vec![call("x", "{}")],
        ),
        // Broken behind a call, in one, and cut off.
        (
            r#"<TOOLCALL>[{"name": "x", "arguments": {}}, {"nme": "y"}]</TOOLCALL>"#,
            r#", {"nme": "y"}]</TOOLCALL>"#,
            vec![call("x", "{}")],
        ),
        (
            r#"<TOOLCALL>[{"name": "x", "arguments": {"a": oops}}]"#,
            "oops}}]",
            vec![call("x", r#"{"a": "#)],
        ),
        (r#"<TOOLCALL>[{"name": "x", "arguments": {"a"#, "", vec![call("x", r#"{"a"#)]),
        (r#"<TOOLCALL>[{"name": "x"}]</TOOLC"#, "", vec![call("x", "{}")]),
        (r#"<TOOLCALL>[{"name": "x"}, "#, "", vec![call("x", "{}")]),
        (r#"<TOOLCALL>[{"name": "x"}]</TOOLx"#, "</TOOLx", vec![call("x", "{}")]),
        (
            r#"<TOOLCALL>[{"name": "x", "name": "y"}]"#,
            r#"<TOOLCALL>[{"name": "x", "name": "y"}]"#,
            vec![],
        ),
    ] {
        assert_eq!(parse(text), (content.to_owned(), calls), "{text}");
    }
}

#[test]
fn arguments_come_as_they_are_written() {
    let mut parser = ToolCallParser::new();
    assert!(parser.push(r#"<TOOLCALL>[{"name": "add", "argum"#).is_empty());
    let name = "add".to_owned();
    let begun = [
        ToolDelta::Call { index: 0, name },
        ToolDelta::Arguments { index: 0, fragment: r#"{"a": "#.to_owned() },
    ];
    assert_eq!(parser.push(r#"ents": {"a": "#), begun);
    assert_eq!(parser.push("1"), [ToolDelta::Arguments { index: 0, fragment: "1".to_owned() }]);
    assert_eq!(parser.push("}"), [ToolDelta::Arguments { index: 0, fragment: "}".to_owned() }]);
    assert!(parser.push("}]</TOOLCALL>").is_empty() && parser.finish().is_empty());
    assert_eq!(parser.num_calls(), 1);
}

const PIECES: [&str; 24] = [
    "<TOOLCALL>",
    "<TOOLCALL>[",
    "[",
    "]",
    "</TOOLCALL>",
    "{",
    "}",
    "\"name\": \"f\"",
    "\"name\"",
    ":",
    ",",
    " ",
    "\"arguments\": ",
    "{\"a\": [1, \"é\"]}",
    "\"x\"",
    "\\",
    "12",
    "-",
    "é😀",
    "<",
    "{\"name\": \"g\", \"arguments\": ",
    "{\"name\": \"h\"}",
    "\"\\ud83d\\ude00\"",
    "true",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    #[test]
    fn cuts_change_nothing_and_content_is_part_of_the_text(
        pieces in prop::collection::vec(prop::sample::select(PIECES.to_vec()), 0..14),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        tagged in any::<bool>(),
    ) {
        let text = if tagged { "<TOOLCALL>[" } else { "" }.to_owned() + &pieces.concat();
        let whole = parse(&text);
        let ends: Vec<_> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        let mut cuts: Vec<_> = cuts.iter().map(|cut| ends[cut.index(ends.len())]).collect();
        cuts.sort_unstable();
        let (mut parser, mut deltas, mut at) = (ToolCallParser::new(), Vec::new(), 0);
        for cut in cuts.into_iter().chain([text.len()]) {
            deltas.extend(parser.push(&text[at..cut]));
            at = cut;
        }
        deltas.extend(parser.finish());
        let cut = join(deltas);
        prop_assert_eq!(&whole, &cut);
        if whole.1.is_empty() {
            // Nothing is lost, and nothing is added.
            prop_assert_eq!(whole.0, text);
        }
    }

    /// What a sound list of calls says comes out, however it is written.
    #[test]
    fn sound_calls_come_out(
        calls in prop::collection::vec(("[a-z_]{1,8}", "[a-zé\"\\\\\n😀]{0,6}", any::<bool>()), 1..5),
        pretty in any::<bool>(),
    ) {
        let value: Vec<_> = calls.iter().map(|(name, text, string)| {
            let arguments = serde_json::json!({ "t": text });
            let written = if *string { arguments.to_string().into() } else { arguments };
            serde_json::json!({ "name": name, "arguments": written })
        }).collect();
        let json = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
        let (content, found) = parse(&format!("<TOOLCALL>{}</TOOLCALL>", json.unwrap()));
        prop_assert_eq!(content, "");
        let found: Vec<_> = found.into_iter().map(|(name, arguments)| {
            let arguments: serde_json::Value = serde_json::from_str(&arguments).unwrap();
            (name, arguments["t"].as_str().unwrap().to_owned())
        }).collect();
        let expected: Vec<_> = calls.into_iter().map(|(name, text, _)| (name, text)).collect();
        prop_assert_eq!(found, expected);
    }
}
