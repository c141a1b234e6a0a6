//! Integers added, subtracted and multiplied, digit by digit.
//!
//! Thinking first writes the digits of both numbers with a letter for each place, the units last,
//! padded to the same length; then one line for each place, from the units on. `47+138`:
//! `c0b4a7`, `c1b3a8`, `a7+8=15`, `b4+3+1=8`, `c0+1=1`. A line needs the letter after the last
//! line's, its two digits above, and the carry, which is the tens of the last line. A subtraction
//! writes the borrowed ten in front: `a17-8=9`, then `b4-3-1=0`. A product has one digit on the
//! right: `b4a7`, `*8`, `a7*8=56`, `b4*8+5=37`. The answer reads the units of the lines upwards.
//!
//! The structure is the operation with its operands; the order of a sum's or product's is free.

use crate::conversation::{assistant, user};
use crate::op::Op;
use crate::random::Random;
use crate::task::{Draft, Plan};

/// Letters of places, units first.
const PLACES: [char; 6] = ['a', 'b', 'c', 'd', 'e', 'f'];

impl Op {
    /// Wordings; `{a}` and `{b}` stand for the operands.
    fn wordings(self) -> &'static [&'static str] {
        match self {
            Self::Add => &[
                "What is {a} plus {b}?",
                "How much is {a} plus {b}?",
                "What is {a} + {b}?",
                "Add {a} and {b}.",
                "What is the sum of {a} and {b}?",
            ],
            Self::Subtract => &[
                "What is {a} minus {b}?",
                "How much is {a} minus {b}?",
                "What is {a} - {b}?",
                "Subtract {b} from {a}.",
                "Take {b} from {a}.",
            ],
            Self::Multiply => &[
                "What is {a} times {b}?",
                "How much is {a} times {b}?",
                "What is {a} * {b}?",
                "Multiply {a} by {b}.",
                "What is the product of {a} and {b}?",
            ],
        }
    }
}

/// A problem. A difference is not negative; the right side of a product is one digit.
#[derive(Clone, Copy)]
pub(crate) struct Problem {
    op: Op,
    left: u64,
    right: u64,
}

impl Problem {
    /// A problem whose longer operand has `digits` digits.
    pub(crate) fn draw(random: &mut Random, digits: u32) -> Self {
        let op = *random.pick(&Op::ALL);
        let long = number(random, digits);
        if op == Op::Multiply {
            return Self { op, left: long, right: number(random, 1) };
        }
        let other = 1 + random.below(digits as usize) as u32;
        let other = number(random, other);
        let swap = op == Op::Add && random.percent(50) || op == Op::Subtract && long < other;
        let (left, right) = if swap { (other, long) } else { (long, other) };
        Self { op, left, right }
    }

    pub(crate) fn question(self, random: &mut Random, natural: bool) -> String {
        if !natural {
            return format!("{}{}{}?", self.left, self.op.symbol(), self.right);
        }
        let text = random.pick(self.op.wordings());
        text.replace("{a}", &self.left.to_string()).replace("{b}", &self.right.to_string())
    }

    pub(crate) fn answer(self) -> u64 {
        match self.op {
            Op::Add => self.left + self.right,
            Op::Subtract => self.left - self.right,
            Op::Multiply => self.left * self.right,
        }
    }

    pub(crate) fn thinking(self) -> String {
        let places = self.left.to_string().len().max(self.right.to_string().len());
        let mut lines = vec![row(self.left, places)];
        lines.push(match self.op {
            Op::Multiply => format!("*{}", self.right),
            _ => row(self.right, places),
        });
        let mut carry = 0;
        for place in 0..places {
            let left = digit(self.left, place);
            let right = if self.op == Op::Multiply { self.right } else { digit(self.right, place) };
            let (line, next) = self.op.line(left, right, carry);
            lines.push(format!("{}{line}", PLACES[place]));
            carry = next;
        }
        lines.join("\n")
    }

    pub(crate) fn structure(self) -> String {
        let (mut left, mut right) = (self.left, self.right);
        if self.op != Op::Subtract && left < right {
            std::mem::swap(&mut left, &mut right);
        }
        format!("{left}{}{right}", self.op.symbol())
    }
}

impl Op {
    /// The line of one place, and what it carries (or borrows) from the next.
    fn line(self, left: u64, right: u64, carry: u64) -> (String, u64) {
        let symbol = self.symbol();
        let tail = |sign: char| if carry == 0 { String::new() } else { format!("{sign}{carry}") };
        match self {
            Self::Add | Self::Multiply => {
                let sum = if self == Self::Add { left + right } else { left * right } + carry;
                (format!("{left}{symbol}{right}{}={sum}", tail('+')), sum / 10)
            }
            Self::Subtract => {
                let borrow = u64::from(left < right + carry);
                let left = left + 10 * borrow;
                (format!("{left}-{right}{}={}", tail('-'), left - right - carry), borrow)
            }
        }
    }
}

/// A number of exactly `digits` digits.
fn number(random: &mut Random, digits: u32) -> u64 {
    let low = if digits == 1 { 0 } else { 10_u64.pow(digits - 1) };
    random.between(low, 10_u64.pow(digits) - 1)
}

fn digit(number: u64, place: usize) -> u64 {
    number / 10_u64.pow(place as u32) % 10
}

/// The digits with their letters, units last.
fn row(number: u64, places: usize) -> String {
    let digits = (0..places).rev().map(|place| (PLACES[place], digit(number, place)));
    digits.map(|(letter, digit)| format!("{letter}{digit}")).collect()
}

pub(crate) fn draft(random: &mut Random, plan: &Plan) -> Draft {
    let problem = Problem::draw(random, plan.difficulty);
    let answer = problem.answer().to_string();
    let question = user(problem.question(random, plan.natural));
    Draft {
        messages: vec![question, assistant(problem.thinking(), answer.as_str())],
        tools: Vec::new(),
        answer,
        structure: problem.structure(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_go_from_the_units_up() {
        let think = |op, left, right| Problem { op, left, right }.thinking();
        assert_eq!(think(Op::Add, 47, 138), "c0b4a7\nc1b3a8\na7+8=15\nb4+3+1=8\nc0+1=1");
        assert_eq!(think(Op::Subtract, 47, 38), "b4a7\nb3a8\na17-8=9\nb4-3-1=0");
        assert_eq!(think(Op::Multiply, 47, 8), "b4a7\n*8\na7*8=56\nb4*8+5=37");
    }

    /// The answer is what the lines say: the last one whole, then the units of those before.
    #[test]
    fn the_answer_can_be_read_from_the_trace() {
        for index in 0..600 {
            let mut random = Random::new(1, 0, index);
            let problem = Problem::draw(&mut random, 1 + index as u32 % 6);
            let thinking = problem.thinking();
            let results = thinking.lines().filter_map(|line| line.split_once('='));
            let results: Vec<&str> = results.map(|(_, result)| result).collect();
            let mut read = results[results.len() - 1].to_owned();
            let units = results.iter().rev().skip(1).map(|result| &result[result.len() - 1..]);
            read.extend(units);
            assert_eq!(read.parse::<u64>().unwrap(), problem.answer(), "{thinking}");
        }
    }

    #[test]
    fn sentences_name_both_operands() {
        let problem = Problem { op: Op::Subtract, left: 47, right: 38 };
        for index in 0..20 {
            let text = problem.question(&mut Random::new(0, 0, index), true);
            assert!(text.contains("47") && text.contains("38"), "{text}");
            assert!(!text.contains(['{', '}']), "{text}");
        }
    }
}
