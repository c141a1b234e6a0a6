//! Where the budget cuts, and what it inserts.

use hybra_engine::{EndedBy, Phase};

use crate::run::{Run, open, plan};

/// Tokens, then the end that follows the last of them; `None`: still open.
type CutCase = (&'static [&'static str], Option<EndedBy>);

fn check_cuts(limit: u32, grace: u32, cases: &[CutCase]) {
    for (tokens, expected) in cases {
        let mut run = Run::new(open(plan(limit, grace)));
        tokens.iter().for_each(|token| run.token(token));
        let context = format!("B {limit}, g {grace}: {tokens:?}");
        assert_eq!(run.ended_by(), *expected, "{context}");
        assert_eq!(run.machine.forced_next().is_some(), expected.is_some(), "{context}");
        assert_eq!(run.report().used, tokens.len() as u32, "{context}");
    }
}

#[test]
fn order_of_events_in_the_window() {
    use EndedBy::{BudgetHard, BudgetNewline, BudgetSentence};
    // B = 2, g = 4: newline from token 2, sentence from token 4, hard at token 6.
    check_cuts(
        2,
        4,
        &[
            (&["a\n"], None),
            (&["a", "b\n"], Some(BudgetNewline)),
            (&["a", "b\n \t"], Some(BudgetNewline)),
            (&["a\n", " "], Some(BudgetNewline)),
            (&["a", "b\nc"], None),
            (&["a", "b", "\n"], Some(BudgetNewline)),
            (&["a", "b.", "c"], None),
            (&["a", "b", "c."], None),
            (&["a", "b", "c", "d."], Some(BudgetSentence)),
            (&["a", "b", "c", "d.\""], Some(BudgetSentence)),
            (&["a", "b", "c", "だ。"], Some(BudgetSentence)),
            (&["a", "b", "c", "d.\n"], Some(BudgetNewline)),
            (&["a", "b", "c", "3."], None),
            (&["a", "b", "c", "3", "."], None),
            (&["a", "b", "c", "d", "e"], None),
            (&["a", "b", "c", "d", "e", "f"], Some(BudgetHard)),
            (&["a", "b", "c", "d", "e", "f."], Some(BudgetSentence)),
            (&["a", "b", "c", "d", "e", "f\n"], Some(BudgetNewline)),
        ],
    );
    // Odd window: the second half begins at B + ⌈3/2⌉.
    check_cuts(1, 3, &[(&["a", "b."], None), (&["a", "b", "c."], Some(BudgetSentence))]);
    // Without a window the cut is exact and always hard.
    check_cuts(
        2,
        0,
        &[(&["a"], None), (&["a", "b"], Some(BudgetHard)), (&["a", "b.\n"], Some(BudgetHard))],
    );
}

#[test]
fn a_character_is_not_split_but_not_waited_for_forever() {
    let smile = "😀".as_bytes();
    let mut run = Run::new(open(plan(1, 0)));
    run.token(&smile[..1]);
    run.token(&smile[1..2]);
    run.token(&smile[2..3]);
    run.token(&smile[3..]);
    assert_eq!((run.ended_by(), run.report().used), (Some(EndedBy::BudgetHard), 4));
    assert_eq!(run.forced(), "\n</think>\n\n");
    assert_eq!(run.output.thinking, "😀\n".as_bytes());

    let mut run = Run::new(open(plan(1, 0)));
    for _ in 0..4 {
        run.token([0xF0]);
    }
    assert_eq!((run.ended_by(), run.report().used), (Some(EndedBy::BudgetHard), 4));
}

#[test]
fn natural_end_at_the_hard_cap_inserts_nothing() {
    let mut run = Run::new(open(plan(2, 1)));
    run.token("a");
    run.token("</th");
    run.token("ink>");
    run.token("b");
    assert_eq!(run.ended_by(), Some(EndedBy::Natural));
    let report = run.report();
    assert_eq!((report.used, report.forced, run.machine.reasoning_tokens()), (1, 0, 3));
    use Phase::{Answer, Tag, Thinking};
    assert_eq!(run.phases, [Thinking, Thinking, Tag, Answer]);
}

#[test]
fn message_at_the_cut() {
    let mut run = Run::with_message(open(plan(1, 0)), "\nTime is up.");
    run.token("a");
    assert_eq!(run.forced(), "\nTime is up.\n</think>\n\n");
    run.token("b");
    assert_eq!(run.output.thinking, b"a\nTime is up.\n");
    assert_eq!(run.output.answer, b"b");
    let report = run.report();
    assert_eq!(run.machine.reasoning_tokens(), report.used + report.forced);
    assert_eq!(run.phases.iter().filter(|&&p| p == Phase::Answer).count(), 1);
    // With a half-emitted tag there is no room for a message.
    let mut run = Run::with_message(open(plan(1, 0)), "\nTime is up.");
    run.token("a</");
    assert_eq!(run.forced(), "think>\n\n");
}
