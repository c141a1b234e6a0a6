//! Which of two answers is better: what a generative reward model is asked, and how it answers.
//!
//! The judge reads a conversation with two answers, thinks, and gives two scores from 1 to 5 and a
//! ranking from 1 (the first is much better) to 6 (the second is). The form is that of the generative
//! reward models of NVIDIA's NeMo-Gym. The same text asks in training, in evaluation and as a reward.
//!
//! Examples come from the other tasks: the right answer against one with another number, another
//! example's answer, one that is cut off, doubled or empty, or against itself. The thinking is the
//! problem's own, then the right answer, then either answer beside the right one and a word about it:
//! `1: 530=528 bad`. Side by side they are compared by a small model too; apart they are not. Of two
//! answers that are as good the ranking is 3: in a circle, where each answer is read once in either place,
//! that favours nobody. The structure is the problem's: what is held out of its task is held out of this
//! one.

use crate::conversation::{assistant, text, user};
use crate::random::Random;
use crate::task::{Draft, Plan, Task};
use crate::verify::{calls_of, numbers};
use hybra_tokenizer::Message;

/// Scores and rankings of a judge.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Verdict {
    /// Of the first and the second answer, 1 to 5.
    pub scores: [u8; 2],
    /// 1 to 6: up to 3 the first is better, from 4 the second.
    pub ranking: u8,
}

impl Verdict {
    /// The last three numbers of a judge's answer; `None` where there are fewer, or out of range.
    #[must_use]
    pub fn parse(answer: &str) -> Option<Self> {
        let found = numbers(answer);
        let [.., first, second, ranking] = found[..] else { return None };
        let within = |text: &str, most: u8| text.parse().ok().filter(|n| (1..=most).contains(n));
        Some(Self { scores: [within(first, 5)?, within(second, 5)?], ranking: within(ranking, 6)? })
    }

    /// What each answer is worth: its score, and where the scores are equal half a ranking step more
    /// or less for every step from the middle.
    #[must_use]
    pub fn worth(self) -> [f64; 2] {
        let [first, second] = self.scores.map(f64::from);
        let lead = if first == second { 3.5 - f64::from(self.ranking) } else { 0.0 };
        [first + lead, second - lead]
    }
}

/// What the judge is asked about two answers to `conversation`, the turns up to them.
#[must_use]
pub fn question(conversation: &[Message], first: &str, second: &str) -> String {
    let said = match conversation {
        [only] => text(only).to_owned(),
        turns => turns.iter().map(spoken).collect::<Vec<_>>().join("\n"),
    };
    format!(
        "Compare two answers.\n{said}\n1: {}\n2: {}\nTwo scores from 1 to 5, a ranking from 1 to 6?",
        one_line(first),
        one_line(second)
    )
}

/// A turn with its role and its calls.
fn spoken(message: &Message) -> String {
    let calls = calls_of(message).into_iter().map(|call| answered("", &[call]));
    let calls: String = calls.collect();
    format!("{}: {}{calls}", message.role, one_line(text(message)))
}

/// An answer with its calls, as the judge reads it.
#[must_use]
pub fn answered(answer: &str, calls: &[crate::Call]) -> String {
    let calls = calls.iter().map(|call| format!("{}({})", call.name, call.arguments));
    calls.fold(
        answer.to_owned(),
        |text, call| if text.is_empty() { call } else { text + " " + &call },
    )
}

/// Lines tell the answers apart, so an answer has only one.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Tasks whose answers are judged.
const BASES: [Task; 3] = [Task::Arithmetic, Task::Recall, Task::Format];

pub(crate) fn draft(random: &mut Random, plan: &Plan) -> Draft {
    let base = *random.pick(&BASES);
    let mut problem = || base.draft(random, &Plan { difficulty: level(base, plan), ..*plan });
    let (asked, other) = (problem(), problem());
    let right = one_line(text(&asked.messages[1]));
    let candidates = [0, 1].map(|_| one_line(&candidate(random, &right, text(&other.messages[1]))));
    // At least one of most pairs is right: two wrong ones teach little.
    let mut candidates = candidates;
    if random.percent(75) {
        candidates[random.below(2)].clone_from(&right);
    }
    let good = candidates.each_ref().map(|answer| *answer == right);
    let Verdict { scores: [one, two], ranking } = verdict(good);
    let answer = format!("{one} {two} {ranking}");
    let solved = asked.messages[1].reasoning_content.clone().unwrap_or_default();
    let [first, second] = &candidates;
    let remark = |number: usize, answer: &str, good: bool| {
        format!("{number}: {answer}={right} {}", if good { "good" } else { "bad" })
    };
    let (one, two) = (remark(1, first, good[0]), remark(2, second, good[1]));
    let thinking = format!("{solved}\n{right}\n{one}\n{two}");
    Draft {
        messages: vec![
            user(question(&asked.messages[..1], first, second)),
            assistant(thinking, answer.as_str()),
        ],
        tools: Vec::new(),
        answer,
        structure: asked.structure,
    }
}

/// The difficulty of the problem: its task's own scale.
fn level(base: Task, plan: &Plan) -> u32 {
    match base {
        Task::Recall => plan.difficulty * if plan.hard { 7 } else { 2 },
        Task::Arithmetic if plan.hard => 5,
        _ => plan.difficulty,
    }
}

/// An answer that may be right or wrong in one of several ways.
fn candidate(random: &mut Random, right: &str, other: &str) -> String {
    let chars: Vec<char> = right.chars().collect();
    match random.below(6) {
        0 => right.to_owned(),
        1 => other.to_owned(),
        2 => chars[..random.below(chars.len().max(1))].iter().collect(),
        3 => format!("{right} {right}"),
        _ => match chars.iter().any(char::is_ascii_digit) {
            true => another_digit(random, &chars),
            false => other.to_owned(),
        },
    }
}

/// The text with one of its digits exchanged.
fn another_digit(random: &mut Random, chars: &[char]) -> String {
    let digits: Vec<usize> = (0..chars.len()).filter(|&at| chars[at].is_ascii_digit()).collect();
    let (at, mut chars) = (*random.pick(&digits), chars.to_vec());
    let digit = chars[at].to_digit(10).expect("a digit");
    let exchanged = (digit + 1 + random.below(9) as u32) % 10;
    chars[at] = char::from_digit(exchanged, 10).expect("below 10");
    chars.into_iter().collect()
}

fn verdict(good: [bool; 2]) -> Verdict {
    let scores = good.map(|good| if good { 5 } else { 1 });
    let ranking = match good {
        [true, false] => 1,
        [false, true] => 6,
        _ => 3,
    };
    Verdict { scores, ranking }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Phrasing, Split, TaskOptions};

    #[test]
    fn a_verdict_is_the_last_three_numbers_within_range() {
        let parse = Verdict::parse;
        let found = parse("5 1 1").unwrap();
        assert_eq!((found.scores, found.ranking), ([5, 1], 1));
        assert_eq!(parse("Scores of 2 answers: 4, 3; ranking: 2.").unwrap().scores, [4, 3]);
        for bad in ["", "5 1", "6 1 1", "0 1 1", "5 1 7", "5 1 -1", "5.5 1 1"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn equal_scores_are_parted_by_the_ranking_and_others_are_not() {
        let worth = |scores, ranking| Verdict { scores, ranking }.worth();
        assert_eq!(worth([5, 1], 6), [5.0, 1.0]);
        assert_eq!(worth([3, 3], 1), [5.5, 0.5]);
        assert_eq!(worth([3, 3], 4), [2.5, 3.5]);
    }

    #[test]
    fn verdicts_are_balanced_and_follow_from_the_answers() {
        let options =
            TaskOptions { split: Split::Train, phrasing: Phrasing::Mixed, max_difficulty: None };
        let mut rankings = [0_usize; 7];
        for index in 0..2000 {
            let example = Task::Judge.example(options, 5, index).unwrap();
            let verdict = Verdict::parse(&example.answer).unwrap();
            rankings[usize::from(verdict.ranking)] += 1;
            let asked = text(&example.messages[0]);
            let lines: Vec<&str> = asked.lines().collect();
            let [.., one, two, _] = lines[..] else { panic!("{asked}") };
            let (one, two) = (&one[2..], &two[2..]);
            if one == two {
                assert_eq!(verdict.scores[0], verdict.scores[1], "{asked}");
            }
            assert_eq!(verdict.ranking == 3, verdict.scores[0] == verdict.scores[1], "{asked}");
            let thinking = example.messages[1].reasoning_content.clone().unwrap();
            let right = thinking.lines().rev().nth(2).unwrap();
            let good = |answer: &str| if answer.trim() == right { 5 } else { 1 };
            assert_eq!(verdict.scores, [good(one), good(two)], "{asked}\n{thinking}");
        }
        assert!(rankings[1] > 400 && rankings[6] > 400, "{rankings:?}");
        assert!(rankings[1].abs_diff(rankings[6]) < 150, "no side is better: {rankings:?}");
    }
}
