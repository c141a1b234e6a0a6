//! Chat templates: semantics of `transformers`, arguments, limits, hostile sources.

mod common;

use std::time::{Duration, Instant, UNIX_EPOCH};

use common::{chatml, golden, request};
use hybra_tokenizer::{ChatRequest, Message, TemplateError, Tokenizer};
use serde_json::json;

fn hello() -> ChatRequest {
    ChatRequest {
        messages: vec![Message::new("user", "Hello")],
        add_generation_prompt: true,
        ..ChatRequest::default()
    }
}

fn render(source: &str, request: &ChatRequest) -> Result<String, TemplateError> {
    let tokenizer = chatml(source);
    Ok(tokenizer.chat_template()?.render(request)?.text().to_owned())
}

#[test]
fn python_semantics() {
    let cases = [
        // trim_blocks and lstrip_blocks
        ("a\n  {% if true %}\nb\n  {% endif %}\nc\n", "a\nb\nc"),
        ("{{ none }} {{ true }} {{ [1, 'x', none] }}", "None True [1, 'x', None]"),
        ("{{ '  x '.strip() }}|{{ 'xax'.strip('x') }}|{{ 'a,b'.split(',')[-1] }}", "x|a|b"),
        (
            "{{ 'abc'[::-1] }} {{ 'abc'[1:] }} {{ 'Ab'.lower() }} {{ 'x'.startswith('x') }}",
            "cba bc ab True",
        ),
        ("{% for i in [1,2,3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "13"),
        ("{{ {'b': 1, 'a': [2.0, none, true]} | tojson }}", r#"{"b": 1, "a": [2.0, null, true]}"#),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}", r#"{"a": 2, "b": 1}"#),
        (
            "{{ {'b': [1, {}], 'a': []} | tojson(indent=2) }}",
            "{\n  \"b\": [\n    1,\n    {}\n  ],\n  \"a\": []\n}",
        ),
        ("{{ [1, 2] | tojson(separators=[',', ':']) }}", "[1,2]"),
        ("{{ '<é\u{1}\\u2028>&' | tojson }}", "\"<é\\u0001\u{2028}>&\""),
        ("{{ 'é🙂' | tojson(ensure_ascii=true) }}", "\"\\u00e9\\ud83d\\ude42\""),
        ("{{ messages[0].content | upper }}{{ messages | length }}", "HELLO1"),
        ("{{ tools is none }} {{ enable_thinking is defined }}", "True False"),
        ("{{ strftime_now('%Y-%m-%d') }}", "2023-11-14"),
        ("{%- set ns = namespace(x=1) -%}{%- set ns.x = ns.x + 1 -%}{{ ns.x }}", "2"),
        ("{% macro m(a) %}<{{ a }}>{% endmacro %}{{ m('q') }}", "<q>"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "a1"),
    ];
    let request =
        ChatRequest { now: Some(UNIX_EPOCH + Duration::from_secs(1_700_000_000)), ..hello() };
    for (source, want) in cases {
        assert_eq!(render(source, &request).unwrap(), want, "{source}");
    }
}

#[test]
fn tool_json_keeps_order_numbers_and_text() {
    let inner = json!({"n": 1e20, "i": 12345678901234567890u64, "q": "\"<b>\"\n"});
    let tool = json!({"type": "function", "z": 1, "a": inner});
    let request = ChatRequest { tools: vec![tool], ..hello() };
    assert_eq!(
        render("{{ tools[0] | tojson }}", &request).unwrap(),
        concat!(
            r#"{"type": "function", "z": 1, "#,
            r#""a": {"n": 1e+20, "i": 12345678901234567890, "q": "\"<b>\"\n"}}"#
        )
    );
}

#[test]
fn messages_are_normalised() {
    let input = json!({"messages": [
        {"role": "developer", "content": [
            {"type": "text", "text": "a"}, {"type": "text", "text": "b"},
        ]},
        {"role": "assistant", "content": null},
    ]});
    let source = "{% for m in messages %}{{ m.role }}={{ m.content | tojson }};{% endfor %}";
    assert_eq!(render(source, &request(&input)).unwrap(), r#"system="a\nb";assistant="";"#);
    let image = json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]});
    assert!(matches!(
        render(source, &request(&image)),
        Err(TemplateError::ContentPart { index: 0, .. })
    ));
}

#[test]
fn arguments_reach_the_template_but_replace_nothing() {
    let mut request = hello();
    request.kwargs.insert("style".into(), json!({"tone": "dry"}));
    assert_eq!(render("{{ style.tone }}", &request).unwrap(), "dry");
    for key in
        ["messages", "tools", "add_generation_prompt", "enable_thinking", "bos_token", "range"]
    {
        let mut request = hello();
        request.kwargs.insert(key.into(), json!([]));
        let error = render("x", &request).unwrap_err();
        assert!(matches!(&error, TemplateError::ReservedArgument(k) if k == key), "{error}");
    }
    request.kwargs.insert("style".into(), json!("x".repeat(10_000_000)));
    assert!(matches!(render("x", &request), Err(TemplateError::ArgumentsTooLarge { .. })));
}

#[test]
fn thinking_argument_is_seen_only_where_it_is_read() {
    let reads = |source: &str| chatml(source).chat_template().unwrap().reads_enable_thinking();
    assert!(reads("{% if enable_thinking is defined and enable_thinking %}a{% endif %}"));
    assert!(reads("{%- if not (enable_thinking | default(true)) -%}a{%- endif -%}"));
    assert!(!reads("{{ messages[0].content }}"));
    assert!(!reads("{% set enable_thinking = true %}{{ enable_thinking }}"));
    assert!(!reads("{{ 'enable_thinking' }}"));
}

#[test]
fn final_message_is_continued_with_any_template() {
    let source =
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";
    let mut request = hello();
    request.messages.push(Message::new("assistant", "The answer "));
    request.add_generation_prompt = false;
    request.continue_final_message = true;
    let want = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nThe answer";
    assert_eq!(render(source, &request).unwrap(), want);
    request.add_generation_prompt = true;
    assert!(matches!(render(source, &request), Err(TemplateError::Continue(_))));
    request.add_generation_prompt = false;
    assert!(matches!(render("nothing", &request), Err(TemplateError::Continue(_))));
    request.messages.pop();
    assert!(matches!(render(source, &request), Err(TemplateError::Continue(_))));
}

#[test]
fn end_of_turn_is_read_from_the_template() {
    let chat =
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";
    assert_eq!(chatml(chat).eos_ids(), [257]);
    assert_eq!(chatml("{{ messages[0].content }}").eos_ids(), [0u32; 0]);
}

/// Renders on a thread with a small stack, as a server would, and bounds the time.
fn bounded(source: &str) -> Result<String, TemplateError> {
    let source = source.to_owned();
    let start = Instant::now();
    let thread =
        std::thread::Builder::new().stack_size(256 * 1024).spawn(move || render(&source, &hello()));
    let result = thread.unwrap().join().unwrap();
    assert!(start.elapsed() < Duration::from_secs(9), "took {:?}", start.elapsed());
    result
}

fn hostile(source: &str) -> TemplateError {
    bounded(source).expect_err("a hostile template must fail")
}

#[test]
fn hostile_templates_fail_quickly() {
    let loops = "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}";
    let fuel = [
        loops,
        concat!(
            "{% set ns = namespace(s='xxxxxxxx') %}",
            "{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"
        ),
        concat!(
            "{% set ns = namespace(s='xxxxxxxx') %}",
            "{% for i in range(60) %}{% set ns.s = ns.s.replace('x', 'xx') %}{% endfor %}"
        ),
        "{{ ('x' * 1000000) | replace('x', 'y' * 1000000) }}",
    ];
    for source in fuel {
        let error = hostile(source);
        assert!(matches!(error, TemplateError::Fuel { .. }), "{source}: {error}");
    }
    let run = [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('xxxxxxxxxxxxxxxx') }}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{{ 'x' * 1000000000 }}",
        "{{ range(100000) | list * 100000 }}",
        "{% include 'chat' %}",
        "{{ messages[0].content.nothing() }}",
    ];
    for source in run {
        let error = hostile(source);
        assert!(
            matches!(error, TemplateError::Render(_) | TemplateError::Fuel { .. }),
            "{source}: {error}"
        );
    }
    for source in [
        "{{ 'x' * 70000000 }}",
        "{% set x = 'x' * 9000000 %}{% for i in range(9) %}{{ x }}{% endfor %}",
    ] {
        assert!(matches!(hostile(source), TemplateError::OutputTooLarge { .. }), "{source}");
    }
    let parens = format!("{{{{ {}1{} }}}}", "(".repeat(150), ")".repeat(150));
    assert!(matches!(hostile(&parens), TemplateError::Syntax(_)));
    assert!(matches!(hostile("{% if %}"), TemplateError::Syntax(_)));
    assert!(matches!(hostile(&"x".repeat(150_000)), TemplateError::TooLarge { .. }));
}

#[test]
fn long_chains_and_deep_values_do_not_overflow_the_stack() {
    let nest = |outer: &str, end: &str| {
        let body = format!("{{% set ns.x = {outer} %}}");
        format!(
            "{{% set ns = namespace(x=1) %}}{{% for i in range(90000) %}}{body}{{% endfor %}}{end}"
        )
    };
    let chains = [
        format!("{{{{ 1{} }}}}", "+1".repeat(30_000)),
        format!("{{{{ messages{} }}}}", "|f".repeat(30_000)),
        format!("{{{{ messages{} }}}}", ".a".repeat(30_000)),
        format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(10_000)),
        format!("{{{{ {} 1 }}}}", "not ".repeat(30_000)),
        format!("{{{{ {}1 }}}}", "-".repeat(120_000)),
        nest("[ns.x]", "{{ ns.x | tojson }}"),
        nest("{'a': ns.x}", "{{ ns.x }}"),
    ];
    for source in chains {
        match bounded(&source) {
            Ok(text) => assert!(text.len() < 1 << 20),
            Err(error) => assert!(!error.to_string().contains("panicked"), "{error}"),
        }
    }
}

#[test]
fn a_template_that_outlasts_the_deadline_blocks_itself() {
    // Every slice of a slice costs its depth, but one step of fuel. The user's word starts it, so
    // that the probes at load do not.
    let source = concat!(
        "{% if 'Hello' in messages[0].content %}{% set ns = namespace(x=messages) %}",
        "{% for i in range(90000) %}{% set ns.x = ns.x[:] %}{% endfor %}{{ ns.x | length }}",
        "{% endif %}"
    );
    let tokenizer = chatml(source);
    let template = tokenizer.chat_template().unwrap();
    let start = Instant::now();
    let error = template.render(&hello()).unwrap_err();
    assert!(matches!(error, TemplateError::Timeout { seconds: 5 }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(7));
    assert!(matches!(template.clone().render(&hello()), Err(TemplateError::Stuck)));
}

#[test]
fn a_broken_template_leaves_plain_text_working() {
    let tokenizer: Tokenizer = chatml("{% endfor %}");
    assert!(matches!(tokenizer.chat_template(), Err(TemplateError::Syntax(_))));
    assert_eq!(tokenizer.encode("ab", false).unwrap().len(), 2);
}

#[test]
fn raised_text_is_the_templates_own() {
    let Some(tokenizer) = golden() else { return };
    let request = request(&json!({"messages": [{"role": "<SPECIAL_11>", "content": "x"}]}));
    let error = tokenizer.chat_template().unwrap().render(&request).unwrap_err();
    assert_eq!(error.to_string(), "unknown role: <SPECIAL_11>");
}
