//! Pointer chasing: K definitions in a chain, shuffled with up to two that lead nowhere, modulo 10.
//!
//! `c=b-7;b=0;d=c*9;j=b-9;d?` is thought about back from the question, then forward: `d=c*9`,
//! `c=b-7`, `b=0`, `c=3`, `d=7`. A line back needs the definition of the last line's right side; a
//! line forward needs one value above and one definition above. A trace from the constant on would
//! need the whole chain before its first line.
//!
//! The structure is the program up to the names in it.

use crate::conversation::{assistant, user};
use crate::op::Op;
use crate::random::Random;
use crate::task::{Draft, Plan};

/// Names of values; the longest programs use all.
const NAMES: [char; 10] = ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j'];
/// Chains up to this length have at most one definition beside them, longer ones two.
const SHORT: usize = 4;

impl Op {
    fn words(self) -> &'static str {
        match self {
            Self::Add => "plus",
            Self::Subtract => "minus",
            Self::Multiply => "times",
        }
    }

    /// Right sides that do something: with `+0`, `*1` or `*0` a link would be none.
    fn digits(self) -> (u64, u64) {
        if matches!(self, Self::Multiply) { (2, 9) } else { (1, 9) }
    }

    fn apply(self, left: u32, right: u32) -> u32 {
        match self {
            Self::Add => (left + right) % 10,
            Self::Subtract => (left + 10 - right) % 10,
            Self::Multiply => left * right % 10,
        }
    }
}

/// `name=digit`, or `name=source op digit`.
#[derive(Clone, Copy)]
struct Definition {
    name: char,
    source: Option<(char, Op)>,
    digit: u32,
}

impl Definition {
    fn terse(self) -> String {
        self.terse_as(|name| name)
    }

    fn terse_as(self, mut rename: impl FnMut(char) -> char) -> String {
        let (name, digit) = (rename(self.name), self.digit);
        match self.source {
            None => format!("{name}={digit}"),
            Some((source, op)) => format!("{name}={}{}{digit}", rename(source), op.symbol()),
        }
    }

    /// `name is …`, with `verb` in between.
    fn natural(self, verb: &str) -> String {
        let Self { name, digit, .. } = self;
        match self.source {
            None => format!("{name} {verb} {digit}"),
            Some((source, op)) => format!("{name} {verb} {source} {} {digit}", op.words()),
        }
    }
}

/// A problem with its solution.
pub(crate) struct Program {
    /// As they are shown.
    definitions: Vec<Definition>,
    /// From the constant to what is asked.
    chain: Vec<Definition>,
    values: Vec<u32>,
}

impl Program {
    /// A chain of `length` definitions.
    pub(crate) fn draw(random: &mut Random, length: usize) -> Self {
        let most = if length <= SHORT { 1 } else { 2 };
        let others = random.below(most.min(NAMES.len() - length) + 1);
        let names = random.sample(&NAMES, length + others);
        let mut definitions = Vec::new();
        for (at, &name) in names.iter().enumerate() {
            // One that leads nowhere starts at the chain.
            let source = if at < length { at.checked_sub(1) } else { Some(random.below(length)) };
            let source = source.map(|at| (names[at], *random.pick(&Op::ALL)));
            let (low, high) = source.map_or((0, 9), |(_, op): (char, Op)| op.digits());
            let digit = random.between(low, high) as u32;
            definitions.push(Definition { name, source, digit });
        }
        let chain = definitions[..length].to_vec();
        let mut values = Vec::new();
        for step in &chain {
            let before = values.last().copied().unwrap_or_default();
            values.push(step.source.map_or(step.digit, |(_, op)| op.apply(before, step.digit)));
        }
        random.shuffle(&mut definitions);
        Self { definitions, chain, values }
    }

    fn asked(&self) -> char {
        self.chain[self.chain.len() - 1].name
    }

    /// What the user says.
    pub(crate) fn question(&self, random: &mut Random, natural: bool) -> String {
        let asked = self.asked();
        let list = |verb: &str| -> Vec<String> {
            self.definitions.iter().map(|definition| definition.natural(verb)).collect()
        };
        if !natural {
            let lines: Vec<String> = self.definitions.iter().map(|d| d.terse()).collect();
            return format!("{};{asked}?", lines.join(";"));
        }
        match random.below(5) {
            0 => format!("Let {}. What is {asked}?", and(&list("be"))),
            1 => format!("{}. What is {asked}?", and(&list("is"))),
            2 => format!("If {}, what is {asked}?", and(&list("is"))),
            3 => format!("Given that {}, find {asked}.", and(&list("is"))),
            _ => format!("{}. Tell me {asked}.", list("is").join(". ")),
        }
    }

    /// Back from the question, then forward.
    pub(crate) fn thinking(&self) -> String {
        let back = self.chain.iter().rev().map(|definition| definition.terse());
        let values = self.chain.iter().zip(&self.values).skip(1);
        let forward = values.map(|(step, value)| format!("{}={value}", step.name));
        back.chain(forward).collect::<Vec<_>>().join("\n")
    }

    /// The digit asked for.
    pub(crate) fn answer(&self) -> u32 {
        self.values[self.values.len() - 1]
    }

    /// The program with names in the order in which they appear.
    pub(crate) fn structure(&self) -> String {
        let mut seen = Vec::new();
        let mut rename = |name: char| {
            let at = seen.iter().position(|&other| other == name).unwrap_or_else(|| {
                seen.push(name);
                seen.len() - 1
            });
            NAMES[at]
        };
        let mut lines: Vec<String> =
            self.definitions.iter().map(|definition| definition.terse_as(&mut rename)).collect();
        lines.push(format!("{}?", rename(self.asked())));
        lines.join(";")
    }
}

/// `x, y and z`.
fn and(items: &[String]) -> String {
    match items {
        [all @ .., last] if !all.is_empty() => format!("{} and {last}", all.join(", ")),
        _ => items.concat(),
    }
}

pub(crate) fn draft(random: &mut Random, plan: &Plan) -> Draft {
    let program = Program::draw(random, plan.difficulty as usize);
    let answer = program.answer().to_string();
    let question = user(program.question(random, plan.natural));
    Draft {
        messages: vec![question, assistant(program.thinking(), answer.as_str())],
        tools: Vec::new(),
        answer,
        structure: program.structure(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_of_the_documents_is_thought_about_as_they_say() {
        let step = |name, source, digit| Definition { name, source, digit };
        let chain = vec![
            step('b', None, 0),
            step('c', Some(('b', Op::Subtract)), 7),
            step('d', Some(('c', Op::Multiply)), 9),
        ];
        let other = step('j', Some(('b', Op::Subtract)), 9);
        let definitions = vec![chain[1], chain[0], chain[2], other];
        let program = Program { definitions, chain, values: vec![0, 3, 7] };
        let mut random = Random::new(0, 0, 0);
        assert_eq!(program.question(&mut random, false), "c=b-7;b=0;d=c*9;j=b-9;d?");
        assert_eq!(program.thinking(), "d=c*9\nc=b-7\nb=0\nc=3\nd=7");
        assert_eq!(program.structure(), "a=b-7;b=0;c=a*9;d=b-9;c?");
        let sentence = program.question(&mut random, true);
        assert!(sentence.contains("minus 7"), "{sentence}");
    }

    #[test]
    fn values_follow_from_the_question_alone() {
        for index in 0..300 {
            let mut random = Random::new(5, 0, index);
            let program = Program::draw(&mut random, 1 + index as usize % 10);
            let question = program.question(&mut random, false);
            let (definitions, asked) = question.rsplit_once(';').unwrap();
            let found = value(definitions, asked.trim_end_matches('?'));
            assert_eq!(found, program.answer(), "{question}");
            assert!(program.thinking().len() <= 120, "{}", program.thinking());
        }
    }

    /// Solves a program by looking names up in its text.
    fn value(definitions: &str, name: &str) -> u32 {
        let line = definitions.split(';').find_map(|d| d.strip_prefix(&format!("{name}=")));
        let line = line.unwrap();
        if let Ok(digit) = line.parse() {
            return digit;
        }
        let (left, digit) = (value(definitions, &line[..1]) as i32, &line[2..]);
        let digit: i32 = digit.parse().unwrap();
        let result = match &line[1..2] {
            "+" => left + digit,
            "-" => left - digit,
            _ => left * digit,
        };
        result.rem_euclid(10) as u32
    }
}
