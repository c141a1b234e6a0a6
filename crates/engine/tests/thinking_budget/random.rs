//! The state machine against a naive implementation that searches the whole text again at every
//! step, on random token streams over a vocabulary made of pieces of tags, newlines, sentence ends
//! and parts of characters.

use std::sync::Arc;

use crate::naive::{Case, Item, View, analyse, find, partial, prompt_tail};
use crate::toy::{CLOSE, Output, Toy};
use hybra_engine::{
    BudgetPlan, EndedBy, EosAction, FinishCause, LimitSource, Start, ThinkingBudget, ThinkingConfig,
};
use proptest::prelude::*;

fn toy() -> Toy {
    Toy::new(&[
        b"",
        b"<",
        b"</",
        b"</think",
        b">",
        b"think",
        b"think>",
        b"/",
        b"<think>",
        b"</think>",
        b">\n\n",
        b">\n",
        b"\n",
        b"\n\n",
        b"\n ",
        b" ",
        b"a",
        b"b.",
        b".",
        b"3.",
        b"?\"",
        "。".as_bytes(),
        &[0xE3],
        &[0x80, 0x82],
        &[0x80],
        &[0xF0, 0x9F],
        &[0x98, 0x80],
        "é".as_bytes(),
        b"<TOOL",
        b"CALL>[",
        b"[",
        b"<TOOLCALL>[",
        b"x</think>y",
        b"<think>ab</think>\n\nc<TOOLCALL>[z",
        b"</</think>\n\n\n",
        b"<thi",
        b"nk>",
        b"t</",
        b"k>z",
        b"</think>\n\n",
        b"hello",
    ])
}

fn starts() -> impl Strategy<Value = Start> {
    let tails =
        || prop::sample::select(vec!["", "\n", "\n\n", "ab", "ab</thi", "x\n ", "<TOOLC", "a. "]);
    prop_oneof![
        2 => Just(Start::Absent),
        4 => tails().prop_map(|t| Start::Open { tail: t.into() }),
        1 => prop::sample::select(vec!["", "\n", "\n\n"]).prop_map(|t| Start::Closed { tail: t.into() }),
    ]
}

fn cases() -> impl Strategy<Value = Case> {
    let messages = prop::sample::select(vec!["", "\nStop.", "Enough <TO\n"]);
    let limit = prop_oneof![1 => Just(None), 1 => Just(Some(0)), 6 => (1..9u32).prop_map(Some)];
    (limit, 0..7u32, starts(), any::<bool>(), 0..4u32, messages, any::<bool>()).prop_map(
        |(limit, grace, start, tools, min, message, off)| Case {
            limit,
            grace: if limit == Some(0) { 0 } else { grace },
            off: off && limit == Some(0),
            start,
            tools,
            min,
            message: message.into(),
        },
    )
}

/// Random choices: mostly special pieces, now and then a signal.
fn choices() -> impl Strategy<Value = Vec<u16>> {
    prop::collection::vec(any::<u16>(), 1..40)
}

fn check(machine: &ThinkingBudget, output: &Output, case: &Case, items: &[Item]) -> View {
    let view = analyse(case, items);
    let report = machine.report();
    assert_eq!(output, &view.output, "{case:?} {items:?}");
    let counters = (report.used, report.forced, report.ended_by);
    assert_eq!(counters, (view.used, view.forced, view.ended_by), "{case:?} {items:?}");
    let total = view.used + view.forced + view.tag_tokens;
    assert_eq!(machine.reasoning_tokens(), total, "{case:?} {items:?}");
    assert_eq!(machine.reopened(), view.reopened, "{case:?} {items:?}");
    assert_eq!(machine.is_thinking(), view.thinking, "{case:?} {items:?}");
    view
}

/// The forbidden set by trying every token of the vocabulary on the text.
fn check_forbidden(machine: &ThinkingBudget, toy: &Toy, case: &Case, items: &[Item], view: &View) {
    let mut expected = Vec::new();
    if let (Some(start), None) = (view.open_section, machine.forced_next()) {
        let mut text = prompt_tail(case);
        let mut token_starts = Vec::new();
        for item in items {
            if let Item::Token { bytes, .. } = item {
                if text.len() + bytes.len() > start && !bytes.is_empty() {
                    token_starts.push(text.len().max(start));
                }
                text.extend_from_slice(bytes);
            }
        }
        let tag_start = text.len() - partial(&text[start..], CLOSE);
        let in_tag = token_starts.iter().filter(|&&s| s >= tag_start).count() as u32;
        if view.used - in_tag < case.min {
            for id in 0..toy.pieces.len() as u32 {
                let with = [&text[start..], toy.bytes(id)].concat();
                if find(&with, CLOSE).is_some() {
                    expected.push(id);
                }
            }
        }
    }
    assert_eq!(machine.forbidden(), expected, "{case:?} {items:?}");
}

fn run(case: &Case, choices: &[u16]) {
    let toy = toy();
    let vocab = toy.vocab();
    let insertion = toy.insertion(&vocab, &case.message);
    let plan = BudgetPlan {
        off: case.off,
        requested: case.limit,
        limit: case.limit,
        limit_source: case.limit.map(|_| LimitSource::Request),
        grace: case.grace,
    };
    let config = ThinkingConfig {
        plan,
        start: case.start.clone(),
        min_thinking_tokens: case.min,
        tools: case.tools,
        answer_only: false,
        stop_in_thinking: false,
    };
    let mut machine = ThinkingBudget::new(Arc::clone(&vocab), insertion, config);
    let (mut items, mut output) = (Vec::new(), Output::default());
    let mut choices = choices.iter();
    let mut inserted: Vec<u8> = Vec::new();
    loop {
        let view = check(&machine, &output, case, &items);
        check_forbidden(&machine, &toy, case, &items, &view);
        if let Some(id) = machine.forced_next() {
            let bytes = toy.bytes(id);
            inserted.extend_from_slice(bytes);
            let whole = view.insert.expect("the naive implementation also cuts");
            assert!(whole.starts_with(&inserted), "{case:?} {items:?}: {inserted:?}");
            items.push(Item::Token { bytes: bytes.to_vec(), forced: true });
            assert!(output.push(&mut machine, id, bytes).forced);
            if machine.forced_next().is_none() {
                assert_eq!(whole, inserted, "{case:?} {items:?}");
            }
            continue;
        }
        if let Some(whole) = &view.insert {
            assert_eq!(whole, &inserted, "{case:?} {items:?}");
        }
        let Some(&choice) = choices.next() else { break };
        match choice % 64 {
            0 => {
                let open = view.thinking;
                assert_eq!(machine.end_now(), open);
                items.push(Item::EndNow);
            }
            1 => {
                if machine.on_eos() == EosAction::Finish {
                    break;
                }
                items.push(Item::Eos);
            }
            _ => {
                let id = 256 + u32::from(choice / 64) % (toy.pieces.len() as u32 - 256);
                if machine.forbidden().contains(&id) {
                    continue;
                }
                let bytes = toy.bytes(id);
                items.push(Item::Token { bytes: bytes.to_vec(), forced: false });
                assert!(!output.push(&mut machine, id, bytes).forced);
            }
        }
    }
    finish(machine, output, &items);
}

/// After the end nothing is held, and every byte has come out exactly once.
fn finish(mut machine: ThinkingBudget, mut output: Output, items: &[Item]) {
    let open = machine.is_thinking();
    let runs = machine.finish(FinishCause::MaxTokens);
    let mut held = std::mem::take(&mut output.held);
    runs.drain(&mut held, |phase, bytes| output.add(phase, bytes));
    assert!(held.is_empty());
    let total: usize =
        [&output.thinking, &output.tag, &output.answer, &output.tool].iter().map(|v| v.len()).sum();
    let given = items.iter().map(|item| match item {
        Item::Token { bytes, .. } => bytes.len(),
        _ => 0,
    });
    assert_eq!(total, given.sum::<usize>());
    assert!(!open || machine.report().ended_by == Some(EndedBy::MaxTokens));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn equals_the_naive_implementation(case in cases(), choices in choices()) {
        run(&case, &choices);
    }
}
