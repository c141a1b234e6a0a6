//! Random walks over every token that is not forbidden, in a vocabulary full of tokens that
//! straddle tags: what the reader gets as answer is always what the constraint was given.

use super::*;
use crate::thinking_budget::{
    BudgetPlan, Insertion, Phase, Start, TagTexts, ThinkingConfig, ThinkingVocab,
};
use proptest::prelude::*;
use std::sync::Arc;

const TOOL: &str = "<TOOLCALL>[";
const TEXTS: [&str; 2] = ["{\n\"a\n\n", "<TOOLCALL>[{\n}]"];
const PIECES: [&str; 19] = [
    "</think>",
    "</thi",
    "nk>",
    ">\n\n",
    ">\n\n\n",
    ">\n{",
    ">{",
    "</think>{",
    "\n\n",
    "\n\n\n",
    "\n{",
    "{\n",
    "\n\n\"",
    "<TOOLCALL>",
    ">[",
    ">[{",
    "[{\n",
    "CALL>[{",
    "x<TOOLCALL>",
];

fn bytes(id: u32) -> &'static [u8] {
    const BYTES: [u8; 256] = {
        let (mut all, mut i) = ([0; 256], 0);
        while i < 256 {
            all[i] = i as u8;
            i += 1;
        }
        all
    };
    let id = id as usize;
    if id < 256 { &BYTES[id..=id] } else { PIECES[id - 256].as_bytes() }
}

fn vocab_size() -> u32 {
    256 + PIECES.len() as u32
}

/// Exactly this text, in whichever tokens.
#[derive(Clone, Debug)]
struct Exactly {
    text: &'static str,
    at: usize,
    scope: ConstraintScope,
    mask: Vec<u32>,
}

impl Constraint for Exactly {
    fn allowed(&mut self) -> Result<&[u32], String> {
        self.mask = vec![0; (vocab_size() as usize).div_ceil(32)];
        let rest = &self.text.as_bytes()[self.at..];
        for id in (0..vocab_size()).filter(|&id| rest.starts_with(bytes(id))) {
            self.mask[id as usize / 32] |= 1 << (id % 32);
        }
        Ok(&self.mask)
    }

    fn push(&mut self, token: u32) -> Result<(), String> {
        let fits = self.text.as_bytes()[self.at..].starts_with(bytes(token));
        self.at += bytes(token).len();
        fits.then_some(()).ok_or_else(|| format!("{:?} does not fit", bytes(token)))
    }

    fn is_complete(&mut self) -> bool {
        self.at == self.text.len()
    }

    fn boxed_clone(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }

    fn scope(&self) -> ConstraintScope {
        self.scope
    }

    fn open_tool_call(&mut self) -> Result<(), String> {
        self.at = TOOL.len();
        self.text.starts_with(TOOL).then_some(()).ok_or_else(|| "no tool call".to_owned())
    }
}

fn machine(start: Start, limit: Option<u32>, tools: bool, answer_only: bool) -> ThinkingBudget {
    let ids = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    let texts = TagTexts {
        open: b"<think>",
        close: b"</think>",
        tool_open: TOOL.as_bytes(),
        separator: b"\n",
    };
    let rests = (1..8).map(|j| ids(&"</think>\n"[j..])).collect();
    let vocab = Arc::new(ThinkingVocab::new(texts, rests, vocab_size(), bytes).unwrap());
    let forced = (ids("</think>\n"), ids("\n</think>\n"));
    let insertion = Insertion::new(&vocab, b"", forced.0, forced.1, bytes).unwrap();
    let plan = BudgetPlan { limit, ..BudgetPlan::default() };
    let config = ThinkingConfig { plan, start, tools, answer_only, ..ThinkingConfig::default() };
    ThinkingBudget::new(vocab, Arc::new(insertion), config)
}

/// Walks until the constraint is complete: the bytes of answer and tool phase.
fn walk(mut budget: ThinkingBudget, constraint: Exactly, choices: &[u32]) -> Option<Vec<u8>> {
    let mut arming = Arming::new(Box::new(constraint));
    let (mut held, mut text) = (Vec::new(), Vec::new());
    for &choice in choices {
        let token = match budget.forced_next() {
            Some(token) => token,
            None if arming.arm(&budget).unwrap() => break,
            None => {
                let verdict = arming.verdict(&budget).unwrap();
                let may = |id: &u32| {
                    let out = verdict.forbidden.iter().any(|set| set.contains(id));
                    let beside = |a: Allowed<'_>| a.has(*id) || a.beside.contains(id);
                    !out && verdict.allowed.is_none_or(beside)
                };
                // Tokens that matter come often.
                let often = "[[[[[[[[</\n{x".bytes().map(u32::from);
                let likely = (256..vocab_size()).chain(often);
                let open: Vec<_> = likely.chain(0..256).filter(may).collect();
                let token = open[choice as usize % open.len().min(40)];
                arming.push(token, &budget).unwrap();
                token
            }
        };
        let step = budget.push(token, bytes(token));
        held.extend_from_slice(bytes(token));
        step.runs.drain(&mut held, |phase, run| {
            if matches!(phase, Phase::Answer | Phase::Tool) {
                text.extend_from_slice(run);
            }
        });
    }
    let complete = arming.is_complete();
    let runs = budget.finish(crate::FinishCause::Stop);
    runs.drain(&mut held, |phase, run| {
        if matches!(phase, Phase::Answer | Phase::Tool) {
            text.extend_from_slice(run);
        }
    });
    complete.then_some(text)
}

fn starts() -> [Start; 3] {
    [Start::Absent, Start::Open { tail: b"\n".into() }, Start::Closed { tail: Vec::new() }]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_answer_is_what_the_constraint_was_given(
        choices in prop::collection::vec(any::<u32>(), 400),
        start in 0..3usize,
        limit in prop::option::of(0..30u32),
        text in 0..2usize,
    ) {
        let constraint =
            Exactly { text: TEXTS[text], at: 0, scope: ConstraintScope::Answer, mask: vec![] };
        let budget = machine(starts()[start].clone(), limit, text == 1, true);
        if let Some(found) = walk(budget, constraint, &choices) {
            prop_assert_eq!(String::from_utf8(found).unwrap(), TEXTS[text]);
        } else {
            // Only a section without a limit can outlast the walk.
            prop_assert!(limit.is_none() && start == 1);
        }
    }

    #[test]
    fn a_tool_call_is_what_the_constraint_was_given(
        choices in prop::collection::vec(any::<u32>(), 3000),
        start in 0..3usize,
        limit in prop::option::of(0..30u32),
    ) {
        let scope = ConstraintScope::ToolCall;
        let constraint = Exactly { text: TEXTS[1], at: 0, scope, mask: vec![] };
        let budget = machine(starts()[start].clone(), limit, true, false);
        // Long enough that a tag comes by chance.
        let found = walk(budget, constraint, &choices).unwrap();
        prop_assert!(String::from_utf8_lossy(&found).ends_with(TEXTS[1]));
    }
}

/// The walks reach what they are about: cuts, and tool calls inside the section.
#[test]
fn places() {
    let constraint =
        Exactly { text: TEXTS[1], at: 0, scope: ConstraintScope::Answer, mask: vec![] };
    let start = Start::Open { tail: Vec::new() };
    let mut budget = machine(start, None, true, true);
    let mut arming = Arming::new(Box::new(constraint));
    assert!(!arming.arm(&budget).unwrap());
    assert!(arming.verdict(&budget).unwrap().allowed.is_none());
    budget.push(0, b"x<TOOLCALL>");
    let straddling = arming.verdict(&budget).unwrap().forbidden[1];
    assert_eq!(straddling, [256 + 16], "only `[{{\\n` completes the tag and goes on");
    budget.push(0, b"[");
    assert!(!arming.arm(&budget).unwrap());
    assert!(arming.verdict(&budget).unwrap().allowed.unwrap().has(u32::from(b'{')));

    let none = Exactly { text: TEXTS[0], at: 0, scope: ConstraintScope::Answer, mask: vec![] };
    let error = Arming::new(Box::new(none)).arm(&budget).unwrap_err();
    assert_eq!(error, "constraint: no tool call");
}
