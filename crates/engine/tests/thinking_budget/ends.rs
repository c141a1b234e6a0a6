//! Every other end of a section, and what comes before and after it: tool calls, OFF, the minimum,
//! end-of-sequence, the client, stops, and the report.

use hybra_engine::{
    BudgetPlan, EndedBy, EosAction, FinishCause, LimitSource, Phase, Start, ThinkingConfig,
};

use crate::run::{Run, open, plan};
use crate::toy::TOOL;

#[test]
fn tool_call_is_never_cut() {
    let text = format!("ok\n{TOOL}{{\"name\": \"f\"}}]</TOOLCALL>");
    for chunk in 1..=5 {
        for limit in 3..text.len() as u32 {
            let config = ThinkingConfig { tools: true, ..open(plan(limit, 0)) };
            let mut run = Run::new(config);
            for token in text.as_bytes().chunks(chunk) {
                if run.machine.forced_next().is_some() {
                    break;
                }
                run.token(token);
            }
            let tool = String::from_utf8_lossy(&run.output.tool).into_owned();
            match run.ended_by() {
                Some(EndedBy::ToolCall) => {
                    assert_eq!(tool, text[3..], "limit {limit}, chunk {chunk}");
                    assert_eq!(run.output.thinking, b"ok\n");
                    assert_eq!(run.report().forced, 0);
                }
                // A cut falls before the call's first byte or not at all.
                ended => {
                    assert_eq!((ended, tool.as_str()), (Some(EndedBy::BudgetHard), ""));
                    assert_eq!(run.output.thinking, b"ok\n", "limit {limit}, chunk {chunk}");
                    assert!(run.output.held.is_empty());
                }
            }
        }
    }
    // A prefix that leads nowhere is waited for, but not for ever.
    let mut run = Run::new(ThinkingConfig { tools: true, ..open(plan(1, 0)) });
    run.token("<TOOL");
    run.token("BOX");
    assert_eq!(run.forced(), "\n</think>\n\n");
    let mut run = Run::new(ThinkingConfig { tools: true, ..open(plan(1, 0)) });
    for _ in 0..=TOOL.len() {
        run.token("<");
    }
    assert_eq!(run.forced(), "/think>\n\n");
    // Without tools it is plain text.
    let mut run = Run::new(open(plan(100, 0)));
    run.token(TOOL);
    assert_eq!(run.output.thinking, TOOL.as_bytes());
}

#[test]
fn tool_call_in_the_answer() {
    let mut run = Run::new(ThinkingConfig { tools: true, ..open(plan(9, 0)) });
    for token in ["a", "</think>", "\n\n", "b<TOOL", "CALL>", "[]"] {
        run.token(token);
    }
    assert_eq!(run.output.answer, b"b");
    assert_eq!(run.output.tool, b"<TOOLCALL>[]");
    assert_eq!(run.ended_by(), Some(EndedBy::Natural));
    use Phase::{Answer, Tag, Thinking, Tool};
    assert_eq!(run.phases, [Thinking, Tag, Tag, Answer, Answer, Tool]);
}

#[test]
fn budget_zero_and_off() {
    // A raw prompt that left the section open: the tag is forced before anything is sampled.
    for (tail, inserted) in [("\n", "</think>\n\n"), ("a", "\n</think>\n\n"), ("</t", "hink>\n\n")]
    {
        for (off, ended) in [(true, EndedBy::Off), (false, EndedBy::BudgetHard)] {
            let plan = BudgetPlan { off, ..plan(0, 0) };
            let start = Start::Open { tail: tail.into() };
            let mut run = Run::new(ThinkingConfig { plan, start, ..Default::default() });
            assert_eq!(run.forced(), inserted);
            run.token("x");
            let report = run.report();
            assert_eq!((report.used, report.ended_by), (0, Some(ended)));
            assert_eq!(run.machine.reasoning_tokens(), report.forced);
            assert_eq!(run.output.answer, b"x");
        }
    }
    // The rendered OFF prefix: nothing to force, a blank line is not answer.
    let plan = BudgetPlan { off: true, ..plan(0, 0) };
    let start = Start::Closed { tail: vec![] };
    let mut run = Run::new(ThinkingConfig { plan, start, ..Default::default() });
    for token in ["\n\n", "7", "<think>", "x</think>"] {
        run.token(token);
    }
    assert_eq!(run.output.answer, b"7<think>x</think>");
    assert_eq!((run.ended_by(), run.machine.reasoning_tokens()), (Some(EndedBy::Off), 0));
    assert!(run.machine.reopened());
}

#[test]
fn a_section_opened_by_the_model_is_budgeted_once() {
    let config = ThinkingConfig { plan: plan(2, 0), ..Default::default() };
    let mut run = Run::new(config);
    for token in ["hi ", "<th", "ink>", "a", "b"] {
        run.token(token);
    }
    assert_eq!(run.report().used, 2);
    assert_eq!(run.forced(), "\n</think>\n\n");
    for token in ["c", "<think>", "d", "e", "f"] {
        run.token(token);
    }
    assert!(run.machine.reopened());
    assert_eq!(run.output.answer, b"hi c<think>def");
    assert_eq!(run.output.thinking, b"ab\n");
}

#[test]
fn minimum_forbids_completion_and_eos_only() {
    let config = ThinkingConfig { min_thinking_tokens: 2, ..open(plan(50, 0)) };
    let mut run = Run::new(config);
    let id =
        |run: &Run, bytes: &[u8]| run.toy.pieces.iter().rposition(|p| p == bytes).unwrap() as u32;
    assert_eq!(run.machine.forbidden(), [id(&run, b"</think>")]);
    run.token("a");
    run.bytes("</");
    assert!(!run.machine.forbids_eos(), "three tokens are in the section");
    // `think` does not complete the tag from here; the whole tag would.
    assert_eq!(run.machine.forbidden(), [id(&run, b"</think>")]);
    run.token("think");
    let mut expected = [id(&run, b">"), id(&run, b"</think>"), id(&run, b">\n\n")];
    expected.sort_unstable();
    assert_eq!(run.machine.forbidden(), expected);
    run.token("s");
    assert!(run.machine.forbidden().is_empty(), "five tokens of text");
    run.token("</think>");
    assert!(run.machine.forbidden().is_empty() && !run.machine.forbids_eos());
    assert_eq!((run.ended_by(), run.report().used), (Some(EndedBy::Natural), 5));
}

#[test]
fn end_of_sequence_in_the_section_closes_it() {
    let mut run = Run::new(ThinkingConfig { min_thinking_tokens: 1, ..open(plan(50, 5)) });
    assert!(run.machine.forbids_eos());
    run.token("a</th");
    assert!(!run.machine.forbids_eos());
    assert_eq!(run.machine.on_eos(), EosAction::CloseAndContinue);
    assert_eq!(run.forced(), "ink>\n\n");
    run.token("b");
    assert_eq!(run.machine.on_eos(), EosAction::Finish);
    assert_eq!((run.ended_by(), run.report().used), (Some(EndedBy::Eos), 1));
    assert_eq!(run.output.answer, b"b");
}

#[test]
fn the_client_ends_thinking_in_the_next_step() {
    let mut run = Run::new(open(BudgetPlan::default()));
    run.token("a");
    assert!(run.machine.end_now());
    assert_eq!(run.forced(), "\n</think>\n\n");
    assert_eq!(run.ended_by(), Some(EndedBy::Client));
    assert!(!run.machine.end_now(), "already answering");
    // Inside a character the end waits for it.
    let mut run = Run::new(open(BudgetPlan::default()));
    run.token([0xC3]);
    assert!(run.machine.end_now());
    run.token([0xA9]);
    assert_eq!(run.forced(), "\n</think>\n\n");
    assert!(!Run::new(ThinkingConfig::default()).machine.end_now(), "no section yet");
}

#[test]
fn stops_and_last_tokens() {
    let mut run = Run::new(ThinkingConfig { stop_in_thinking: true, ..open(plan(9, 0)) });
    assert!(run.machine.stops_apply());
    run.token("a</");
    let runs = run.machine.finish(FinishCause::Stop);
    assert_eq!((runs.as_slice()[0].phase, runs.as_slice()[0].len), (Phase::Thinking, 2));
    assert_eq!(run.ended_by(), Some(EndedBy::Stop));

    let mut run = Run::new(open(plan(1, 0)));
    assert!(!run.machine.stops_apply());
    run.token("a");
    assert!(!run.machine.stops_apply(), "forced text has no stops");
    run.forced();
    assert!(run.machine.stops_apply());
    run.machine.finish(FinishCause::MaxTokens);
    assert_eq!(run.ended_by(), Some(EndedBy::BudgetHard), "the section was over before");

    // The last token came inside a tag that was being inserted: the half tag is not text.
    let mut run = Run::new(open(plan(1, 0)));
    run.token("a</");
    let runs = run.machine.finish(FinishCause::MaxTokens);
    assert_eq!((runs.as_slice()[0].phase, runs.as_slice()[0].len), (Phase::Tag, 2));

    let mut run = Run::new(open(plan(9, 0)));
    run.token("a");
    run.machine.finish(FinishCause::MaxTokens);
    assert_eq!(run.ended_by(), Some(EndedBy::MaxTokens));
}

#[test]
fn the_machine_can_be_rolled_back() {
    let mut run = Run::new(open(plan(3, 2)));
    run.token("a");
    let (saved, output) = (run.machine.clone(), run.output.clone());
    run.token("</thi");
    run.token("nk>");
    (run.machine, run.output) = (saved, output);
    run.token("b");
    run.token("c\n");
    assert_eq!((run.ended_by(), run.report().used), (Some(EndedBy::BudgetNewline), 3));
}

#[test]
fn the_report_has_the_names_of_the_wire() {
    let mut run = Run::new(open(plan(1, 3)));
    run.token("a\n");
    run.forced();
    let json = serde_json::to_string(&run.report()).unwrap();
    let expected = r#"{"requested":1,"limit":1,"limit_source":"request","grace":3,"used":1,"#;
    assert!(json.starts_with(expected), "{json}");
    assert!(json.ends_with(r#""ended_by":"budget_newline"}"#), "{json}");
    let names = [
        (EndedBy::Natural, "natural"),
        (EndedBy::BudgetSentence, "budget_sentence"),
        (EndedBy::BudgetHard, "budget_hard"),
        (EndedBy::ToolCall, "tool_call"),
        (EndedBy::Client, "client"),
        (EndedBy::Eos, "eos"),
        (EndedBy::Stop, "stop"),
        (EndedBy::MaxTokens, "max_tokens"),
        (EndedBy::Off, "off"),
    ];
    for (value, name) in names {
        assert_eq!(serde_json::to_string(&value).unwrap(), format!("\"{name}\""));
    }
    for (value, name) in [
        (LimitSource::Effort, "effort"),
        (LimitSource::Server, "server"),
        (LimitSource::MaxTokens, "max_tokens"),
        (LimitSource::Context, "context"),
    ] {
        assert_eq!(serde_json::to_string(&value).unwrap(), format!("\"{name}\""));
    }
}
