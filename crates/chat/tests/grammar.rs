//! Grammars without a model: random walks satisfy them, hostile ones are errors in time.

#[path = "../../../testdata/json_tokenizer.rs"]
mod json_tokenizer;
#[path = "../../../testdata/schemas.rs"]
mod schemas;

use hybra_chat::{GrammarError, GrammarSpec, Grammars, ToolCallParser, ToolChoice, ToolDelta};
use hybra_chat::{ToolSpec, Tools};
use hybra_engine::{Constraint, ConstraintScope};
use hybra_tokenizer::Tokenizer;
use schemas::{Numbers, random_schema, satisfies};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

const EOS: [u32; 2] = [2, 5];

struct Kit {
    tokenizer: Arc<Tokenizer>,
    grammars: Grammars,
}

fn kit(tool_tokens: bool) -> Kit {
    let tokenizer = Arc::new(json_tokenizer::json_tokenizer(tool_tokens));
    let grammars = Grammars::new(Arc::clone(&tokenizer), EOS.to_vec());
    Kit { tokenizer, grammars }
}

impl Kit {
    /// Random allowed tokens until the end; blanks and line ends are rare. `None`: no end in sight.
    fn walk(&self, constraint: &mut dyn Constraint, seed: u64) -> Option<String> {
        let (mut numbers, mut text) = (Numbers(seed), Vec::new());
        for _ in 0..3000 {
            if constraint.is_complete() {
                return Some(String::from_utf8(text).unwrap());
            }
            let mask = constraint.allowed().unwrap().to_vec();
            let has = |id: u32| mask[id as usize / 32] >> (id % 32) & 1 == 1;
            let ids: Vec<u32> = (0..mask.len() as u32 * 32).filter(|&id| has(id)).collect();
            assert!(ids.iter().all(|&id| (id as usize) < self.tokenizer.vocab_size()));
            let ends = ids.iter().any(|id| EOS.contains(id));
            if ends && numbers.below(3) == 0 {
                return Some(String::from_utf8(text).unwrap());
            }
            let ids: Vec<u32> = ids.into_iter().filter(|id| !EOS.contains(id)).collect();
            if ids.is_empty() {
                return Some(String::from_utf8(text).unwrap());
            }
            let id = ids[numbers.below(ids.len())];
            text.extend_from_slice(self.tokenizer.token_bytes(id));
            constraint.push(id).unwrap();
        }
        None
    }

    fn error(&self, spec: &GrammarSpec) -> GrammarError {
        let start = Instant::now();
        let result = self.grammars.constraint(spec);
        let took = start.elapsed();
        assert!(took < Duration::from_millis(2500), "{took:?}");
        result.expect_err("expected an error")
    }
}

/// The value of sound JSON; `None` for a number that no machine type holds.
fn sound(text: &str) -> Option<Value> {
    let large = |error: &serde_json::Error| error.to_string().starts_with("number out of range");
    match serde_json::from_str(text) {
        Err(error) if large(&error) => None,
        value => Some(value.unwrap_or_else(|error| panic!("{text}: {error}"))),
    }
}

#[test]
fn walks_satisfy_their_schema() {
    let kit = kit(false);
    let mut numbers = Numbers(7);
    for seed in 0..150 {
        let schema = random_schema(&mut numbers, 3);
        let spec = GrammarSpec::JsonSchema(schema.clone());
        let mut constraint = kit.grammars.constraint(&spec).unwrap();
        let text = kit.walk(&mut *constraint, seed).unwrap_or_else(|| panic!("no end: {schema}"));
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert!(satisfies(&value, &schema), "{schema}\n{text}");
    }
}

#[test]
fn every_kind_holds() {
    let kit = kit(true);
    let choices = ["a", "ab", "tea \"x\"\n", "{}"].map(str::to_owned);
    for seed in 0..20 {
        let walk = |spec| kit.walk(&mut *kit.grammars.constraint(&spec).unwrap(), seed);
        let text = walk(GrammarSpec::Choice(choices.to_vec())).unwrap();
        assert!(choices.contains(&text), "{text:?}");
        let text = walk(GrammarSpec::Regex("a{2,3}(/|b)+".to_owned())).unwrap();
        assert!(text.starts_with("aa") && !text.trim_start_matches('a').is_empty(), "{text}");
        let lark = "start: \"[\" item (\",\" item)* \"]\"\nitem: /[0-9]/ | start".to_owned();
        if let Some(text) = walk(GrammarSpec::Lark(lark)) {
            assert!(serde_json::from_str::<Vec<Value>>(&text).is_ok(), "{text}");
        }
        if let Some(text) = walk(GrammarSpec::JsonObject) {
            let value = sound(&text);
            assert!(value.is_none_or(|value| value.is_object()), "{text}");
        }
    }
    // The only text is none: complete from the start.
    let empty = GrammarSpec::Regex(String::new());
    assert!(kit.grammars.constraint(&empty).unwrap().is_complete());
    // Nothing may follow a closed object, not even blanks.
    let closed = GrammarSpec::JsonSchema(json!({ "const": {} }));
    let mut constraint = kit.grammars.constraint(&closed).unwrap();
    for text in ["{", "}"] {
        constraint.push(kit.tokenizer.token_to_id(text).unwrap()).unwrap();
    }
    assert!(constraint.is_complete());
    // A copy goes on by itself.
    let mut one = kit.grammars.constraint(&closed).unwrap();
    let mut two = one.boxed_clone();
    one.push(kit.tokenizer.token_to_id("{").unwrap()).unwrap();
    assert!(two.push(kit.tokenizer.token_to_id("}").unwrap()).is_err());
    assert!(one.push(kit.tokenizer.token_to_id("}").unwrap()).is_ok());
}

fn nested(depth: usize) -> Value {
    (0..depth).fold(json!({ "type": "string" }), |inner, i| {
        // The macro would walk what is inside.
        let key = if i % 2 == 0 { "a" } else { "properties" };
        Value::Object([(key.to_owned(), inner)].into_iter().collect())
    })
}

/// Sources that other engines died of.
#[test]
fn hostile_sources_are_errors_in_time() {
    let kit = kit(false);
    let regex = |text: &str| GrammarSpec::Regex(text.to_owned());
    let lark = |text: &str| GrammarSpec::Lark(text.to_owned());
    let groups = |n: usize| format!("{}a{}", "(".repeat(n), ")".repeat(n));
    let many = |n: usize, piece: &dyn Fn(usize) -> String| (0..n).map(piece).collect::<String>();
    let chain = many(400, &|i| format!("T{i}: T{} \"a\"?\n", i + 1)) + "T400: \"b\"\nstart: T0\n";
    let strings: Vec<String> = (0..100_000).map(|i| format!("value {i}")).collect();
    let patterns: Vec<Value> =
        (0..30).map(|i| json!({ "pattern": format!("(a|b)*a(a|b){{{i}}}") })).collect();
    let properties: serde_json::Map<_, _> =
        (0..5000).map(|i| (format!("p{i}"), json!({}))).collect();
    let cases = [
        (regex(&groups(60_000)), "bytes of a regex"),
        (regex(&groups(3000)), "regex: "),
        (lark(&format!("start: {}", groups(10_000))), "grammar: "),
        (lark(&format!("start: /{}/", groups(3000))), "grammar: "),
        (regex("a{1000000000}"), "at most 100000 repetitions, found 1000000000"),
        (regex("a{2,99999999999999999999999}"), "repetitions"),
        (lark("start: \"a\"~1000000000"), "repetitions"),
        (regex("(?<=a)b"), "look-behind"),
        (regex("a(?=b)"), "look-ahead"),
        (regex("*a"), "repetition operator missing expression"),
        (regex("a\\"), "backslash"),
        (regex("(a"), "unclosed group"),
        (regex("[^\\x00-\\x{10FFFF}]"), "empty language"),
        (lark("start: \"a\" start"), "empty language"),
        (lark("start: start"), "empty language"),
        (lark("x: \"a\""), "start"),
        (lark("start: <SPECIAL_12>"), "a token by name or number"),
        (lark("start: <[5]>"), "a token by name or number"),
        (lark("start: %json {}"), "directive %json"),
        (lark("start[temperature=2]: \"a\""), "attribute \"temperature\""),
        (lark("root ::= \"a\""), "::="),
        (lark(&many(600, &|i| format!("r{i}: \"a\"\n"))), "rules"),
        (lark(&format!("start: T\nT: {}", vec!["/a.*/"; 30].join(" & "))), "intersections"),
        (GrammarSpec::Choice(vec![]), "choice: nothing"),
        (GrammarSpec::Choice(strings.clone()), "choices"),
        (GrammarSpec::JsonSchema(json!({ "enum": strings })), "bytes of schema"),
        (GrammarSpec::JsonSchema(nested(20_000)), "levels of schema"),
        (GrammarSpec::JsonSchema(json!({ "$ref": "#" })), "empty language"),
        (
            GrammarSpec::JsonSchema(json!({
                "$ref": "#/$defs/a",
                "$defs": { "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } },
            })),
            "empty language",
        ),
        (
            GrammarSpec::JsonSchema(json!({
                "type": "object", "properties": { "a": { "$ref": "#" } }, "required": ["a"],
            })),
            "empty language",
        ),
        (
            GrammarSpec::JsonSchema(json!({ "allOf": [{ "$ref": "#" }, { "$ref": "#" }] })),
            "json_schema: ",
        ),
        (GrammarSpec::JsonSchema(json!({ "$ref": "http://a/b" })), "json_schema: "),
        (GrammarSpec::JsonSchema(json!({ "type": "string", "minLength": 1e9 as u64 })), "repetit"),
        (GrammarSpec::JsonSchema(json!({ "allOf": patterns })), "patterns that hold"),
        (GrammarSpec::JsonSchema(json!({ "properties": properties })), "properties of an object"),
        (GrammarSpec::JsonSchema(json!(false)), "json_schema: "),
        (GrammarSpec::JsonSchema(json!({ "type": "integer", "minimum": 5, "maximum": 3 })), "5"),
        (GrammarSpec::JsonSchema(json!(7)), "expected a schema"),
    ];
    for (spec, words) in cases {
        let error = kit.error(&spec).to_string();
        assert!(error.contains(words), "{error:?} lacks {words:?}");
        assert!(error.len() < 600, "{error}");
    }
    // Slow ones are bounded, whether they compile or not; so is each step of what compiles.
    for spec in [
        regex("(a+)+b"),
        regex("(a{1000}){1000}"),
        regex("[ab]*a[ab]{40}"),
        regex(&"(a|b)*c?".repeat(1000)),
        regex(&"a?".repeat(4000)),
        lark(&chain),
    ] {
        let start = Instant::now();
        let constraint = kit.grammars.constraint(&spec);
        assert!(start.elapsed() < Duration::from_millis(2500), "{:?}", start.elapsed());
        let Ok(mut constraint) = constraint else { continue };
        for _ in 0..50 {
            let start = Instant::now();
            let Ok(mask) = constraint.allowed() else { break };
            let Some(at) = mask.iter().position(|word| *word != 0) else { break };
            let id = at as u32 * 32 + mask[at].trailing_zeros();
            if EOS.contains(&id) || constraint.push(id).is_err() {
                break;
            }
            assert!(start.elapsed() < Duration::from_millis(2500), "{:?}", start.elapsed());
        }
    }
}

#[test]
fn what_a_schema_says_is_held_or_named() {
    let kit = kit(false);
    for (schema, words) in [
        (json!({ "not": {} }), "the keyword \"not\" (at #/not)"),
        (json!({ "properties": { "a": { "minlength": 3 } } }), "\"minlength\" (at #/properties/a/"),
        (json!({ "items": { "uniqueItems": true } }), "\"uniqueItems\""),
        (json!({ "if": {}, "then": {} }), "\"if\""),
        (json!({ "type": "string", "format": "color" }), "format"),
        (json!({ "x-guidance": { "lenient": true } }), "\"x-guidance\""),
        (json!({ "$defs": { "a": { "dependentRequired": {} } } }), "\"dependentRequired\""),
        (json!({ "oneOf": [{ "type": "string" }, { "minLength": 3 }] }), "oneOf"),
        (json!({ "anyOf": {} }), "expected a list of schemas"),
    ] {
        let error = kit.error(&GrammarSpec::JsonSchema(schema)).to_string();
        assert!(error.contains(words), "{error:?} lacks {words:?}");
    }
    // Annotations are none of the answer's business; an old draft hides no keyword.
    for schema in [
        json!({
            "$schema": "http://json-schema.org/draft-04/schema#", "title": "t", "deprecated": true,
            "x-order": 1, "const": 5,
        }),
        json!({ "$ref": "#/definitions/a", "definitions": { "a": { "const": 5 } } }),
    ] {
        let mut constraint = kit.grammars.constraint(&GrammarSpec::JsonSchema(schema)).unwrap();
        assert_eq!(kit.walk(&mut *constraint, 1).unwrap(), "5");
    }
}

#[test]
fn many_schemas_leave_a_bounded_cache() {
    let kit = kit(false);
    for i in 0..300 {
        let spec = GrammarSpec::JsonSchema(json!({ "type": "string", "maxLength": i }));
        kit.grammars.constraint(&spec).unwrap();
    }
    assert_eq!(kit.grammars.num_cached(), 64);
    // Errors are not kept.
    kit.error(&GrammarSpec::Regex("(".to_owned()));
    assert_eq!(kit.grammars.num_cached(), 64);
}

fn tools(choice: ToolChoice, single: bool, strict: bool) -> Tools {
    let parameters = json!({
        "type": "object", "properties": { "a": { "type": "integer", "minimum": 0, "maximum": 99 } },
        "required": ["a"], "additionalProperties": false,
    });
    let add = ToolSpec { name: "add".to_owned(), parameters: Some(parameters), strict };
    let get = json!({ "type": "function", "function": { "name": "get_c" } });
    Tools { specs: vec![add, ToolSpec::from_json(1, &get).unwrap()], choice, single }
}

/// Content and calls of a walk's text.
fn calls(text: &str) -> (String, Vec<(String, String)>) {
    let mut parser = ToolCallParser::new();
    let (mut content, mut calls) = (String::new(), Vec::new());
    for delta in parser.push(text).into_iter().chain(parser.finish()) {
        match delta {
            ToolDelta::Content(text) => content.push_str(&text),
            ToolDelta::Call { name, .. } => calls.push((name, String::new())),
            ToolDelta::Arguments { index, fragment } => calls[index].1.push_str(&fragment),
        }
    }
    (content, calls)
}

#[test]
fn tool_grammars_give_sound_calls() {
    for tool_tokens in [false, true] {
        let kit = kit(tool_tokens);
        let named = ToolChoice::Named("add".to_owned());
        for (choice, single) in
            [(ToolChoice::Required, false), (ToolChoice::Required, true), (named.clone(), false)]
        {
            let tools = tools(choice.clone(), single, false);
            let mut ends = 0;
            for seed in 0..20 {
                let constraint = kit.grammars.tool_constraint(&tools, None).unwrap();
                let mut constraint = constraint.unwrap();
                assert_eq!(constraint.scope(), ConstraintScope::Answer);
                let Some(text) = kit.walk(&mut *constraint, seed) else { continue };
                ends += 1;
                assert!(text.starts_with("<TOOLCALL>[{\"name\": \""), "{text}");
                assert!(text.ends_with("]</TOOLCALL>"), "{text}");
                let (content, calls) = calls(&text);
                assert_eq!(content, "", "{text}");
                let most = if single { 1 } else { usize::MAX };
                assert!((1..=most).contains(&calls.len()), "{text}");
                for (name, arguments) in calls {
                    let Some(arguments) = sound(&arguments) else { continue };
                    if name == "add" {
                        assert!(arguments["a"].as_u64().unwrap() < 100, "{text}");
                    } else {
                        assert!(choice != named && name == "get_c" && arguments.is_object());
                    }
                }
            }
            assert!(ends > 5, "{ends} of 20 walks ended");
        }
    }
}

#[test]
fn automatic_calls() {
    let kit = kit(true);
    let auto = |single, strict| tools(ToolChoice::Auto, single, strict);
    let constraint = |tools: &Tools, answer| kit.grammars.tool_constraint(tools, answer).unwrap();
    // Nothing to hold: no constraint.
    assert!(constraint(&auto(false, false), None).is_none());
    assert!(constraint(&tools(ToolChoice::None, false, true), None).is_none());
    // Strict or single: from behind the tag.
    for tools in [auto(false, true), auto(true, false)] {
        let mut constraint = constraint(&tools, None).unwrap();
        assert_eq!(constraint.scope(), ConstraintScope::ToolCall);
        constraint.open_tool_call().unwrap();
        if let Some(text) = kit.walk(&mut *constraint, 3) {
            let (content, calls) = calls(&format!("<TOOLCALL>[{text}"));
            assert!(content.is_empty() && !calls.is_empty(), "{text}");
            assert!(!tools.single || calls.len() == 1);
        }
    }
    // A response format stands beside the calls, and answers to `none` and `required` too.
    let five = GrammarSpec::JsonSchema(json!({ "const": 5 }));
    let mut both = constraint(&auto(false, false), Some(&five)).unwrap();
    let mut other = both.boxed_clone();
    both.push(kit.tokenizer.token_to_id("5").unwrap()).unwrap();
    assert!(both.is_complete());
    other.open_tool_call().unwrap();
    let mut none = constraint(&tools(ToolChoice::None, false, true), Some(&five)).unwrap();
    assert_eq!(kit.walk(&mut *none, 1).unwrap(), "5");
    assert!(none.open_tool_call().is_err());
    let mut required = constraint(&tools(ToolChoice::Required, false, true), Some(&five)).unwrap();
    assert!(required.push(kit.tokenizer.token_to_id("5").unwrap()).is_err());
}

#[test]
fn faults_of_tools_are_named() {
    let kit = kit(false);
    let error = |tools: Tools| kit.grammars.tool_constraint(&tools, None).unwrap_err().to_string();
    let unknown = ToolChoice::Named("sub".to_owned());
    assert!(error(tools(unknown, false, false)).contains("tool_choice"));
    let mut twice = tools(ToolChoice::Auto, false, true);
    twice.specs.push(twice.specs[0].clone());
    assert!(error(twice).starts_with("tools[2].function.name"));
    let mut bad = tools(ToolChoice::Required, false, false);
    bad.specs[0].name = "a\"b".to_owned();
    assert!(error(bad).starts_with("tools[0].function.name"));
    let mut not = tools(ToolChoice::Required, false, false);
    not.specs[0].parameters = Some(json!({ "properties": { "a": { "not": {} } } }));
    let words = "tools: the parameters of add: the keyword \"not\"";
    assert!(error(not).starts_with(words));
    let required = Tools { choice: ToolChoice::Required, ..Tools::default() };
    assert!(error(required).starts_with("tool_choice"));
    let name = ToolSpec::from_json(3, &json!({ "function": { "name": 5 } })).unwrap_err();
    assert_eq!(name.to_string(), "tools[3].function.name: expected a string, found 5");
}
