//! Every way a tokenizer can split a tag over tokens.

use std::sync::Arc;

use hybra_engine::{
    BudgetPlan, EndedBy, Insertion, Start, TagTexts, ThinkingBudget, ThinkingConfig, ThinkingVocab,
};

use crate::run::{Run, open, plan};
use crate::toy::{CLOSE, Output};

/// All ways to cut `text` into non-empty tokens.
fn splits(text: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    (0..1u32 << (text.len() - 1)).map(move |cuts| {
        let mut tokens = Vec::new();
        let mut from = 0;
        for at in 1..=text.len() {
            if at == text.len() || cuts >> (at - 1) & 1 == 1 {
                tokens.push(&text[from..at]);
                from = at;
            }
        }
        tokens
    })
}

#[test]
fn every_split_of_a_natural_close() {
    for text in ["</think>", "\n</think>\n\n", "a\n</think>\n\nb"] {
        let tag_at = text.find(CLOSE).unwrap();
        let (before, after) = (&text[..tag_at], text[tag_at + CLOSE.len()..].trim_start());
        for tokens in splits(text.as_bytes()) {
            let mut run = Run::new(open(BudgetPlan::default()));
            tokens.iter().for_each(|token| run.token(token));
            assert_eq!(run.output.thinking, before.as_bytes(), "{tokens:?}");
            assert_eq!(run.output.answer, after.as_bytes(), "{tokens:?}");
            assert!(run.output.held.is_empty(), "{tokens:?}");
            assert_eq!(run.ended_by(), Some(EndedBy::Natural), "{tokens:?}");
            // A token counts as used if it holds text before the tag, else as tag token if it holds
            // any of the tag's bytes.
            let (mut at, mut used, mut tag_tokens) = (0, 0, 0);
            for token in &tokens {
                if at < tag_at {
                    used += 1;
                } else if at < tag_at + CLOSE.len() {
                    tag_tokens += 1;
                }
                at += token.len();
            }
            assert_eq!(run.report().used, used, "{tokens:?}");
            assert_eq!(run.machine.reasoning_tokens(), used + tag_tokens, "{tokens:?}");
        }
    }
}

#[test]
fn every_split_of_a_sampled_open_tag() {
    for tokens in splits(b"hi<think>a</") {
        let mut run = Run::new(ThinkingConfig { start: Start::Absent, ..Default::default() });
        tokens.iter().for_each(|token| run.token(token));
        assert_eq!(run.output.answer, b"hi", "{tokens:?}");
        assert_eq!(run.output.thinking, b"a", "{tokens:?}");
        assert_eq!(run.output.tag, b"<think>", "{tokens:?}");
        assert_eq!(run.output.held, b"</", "{tokens:?}");
    }
}

#[test]
fn a_half_emitted_tag_is_completed_and_not_doubled() {
    for emitted in 0..CLOSE.len() {
        // The tag's beginning as one token, as single bytes, and glued to text.
        let prefix = &CLOSE[..emitted];
        let glued = format!("a{prefix}");
        let mut ways: Vec<Vec<String>> = vec![vec![glued]];
        ways.push(std::iter::once("a".into()).chain(prefix.chars().map(String::from)).collect());
        for tokens in ways {
            let mut run = Run::new(open(plan(tokens.len() as u32, 0)));
            tokens.iter().for_each(|token| run.token(token));
            let rest = match emitted {
                0 => format!("\n{CLOSE}\n\n"),
                j => format!("{}\n\n", &CLOSE[j..]),
            };
            assert_eq!(run.forced(), rest, "{tokens:?}");
            assert_eq!(run.ended_by(), Some(EndedBy::BudgetHard));
            assert_eq!(run.report().used, tokens.len() as u32);
            run.token("b");
            let thinking: &[u8] = if emitted == 0 { b"a\n" } else { b"a" };
            assert_eq!(run.output.thinking, thinking);
            assert_eq!(run.output.tag, b"</think>\n\n");
            assert_eq!(run.output.answer, b"b");
        }
    }
}

/// Where the tag is one token, its first characters are text: the whole tag is inserted.
#[test]
fn a_tag_of_one_token_has_no_halves() {
    let pieces = [&b"</think>"[..], b"\n", b"<", b"a"];
    let bytes = |id: u32| pieces[id as usize];
    let texts = TagTexts {
        open: b"<think>",
        close: CLOSE.as_bytes(),
        tool_open: b"<TOOLCALL>[",
        separator: b"\n",
    };
    let vocab = Arc::new(ThinkingVocab::new(texts, vec![], 4, bytes).unwrap());
    let insertion = Insertion::new(&vocab, b"", vec![0, 1], vec![1, 0, 1], bytes).unwrap();
    let mut machine = ThinkingBudget::new(vocab, Arc::new(insertion), open(plan(2, 0)));
    let mut output = Output::default();
    for id in [3, 2, 1, 0, 1, 3] {
        if let Some(forced) = machine.forced_next() {
            assert_eq!(forced, id);
        }
        output.push(&mut machine, id, bytes(id));
    }
    assert_eq!(output.thinking, b"a<\n");
    assert_eq!(output.tag, b"</think>\n");
    assert_eq!(output.answer, b"a");
    assert_eq!((machine.report().used, machine.report().forced), (2, 3));
}
