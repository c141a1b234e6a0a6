//! Small problems whose answer must have a form: twice, in brackets, reversed, as JSON, …
//!
//! Thinking is the problem's; the form is applied while answering. Difficulty: the problem's; 4, out
//! of range, is two forms, one inside the other. The structure is the problem's, so what is held
//! out of one task is held out of this one; two forms are named in it.

use crate::arithmetic::Problem;
use crate::chainbox::Program;
use crate::conversation::{assistant, user};
use crate::random::Random;
use crate::task::{Draft, Plan};

/// What an answer must look like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Form {
    Twice,
    Brackets,
    Reversed,
    Json,
    Word,
    Sentence,
}

impl Form {
    /// Forms that change an answer of one digit.
    const OF_DIGIT: [Self; 5] =
        [Self::Twice, Self::Brackets, Self::Json, Self::Word, Self::Sentence];
    /// Forms of a number.
    const OF_NUMBER: [Self; 5] =
        [Self::Twice, Self::Brackets, Self::Reversed, Self::Json, Self::Sentence];
    /// What may be inside another form.
    const INNER: [Self; 2] = [Self::Twice, Self::Reversed];
    /// What may be around another form.
    const OUTER: [Self; 2] = [Self::Brackets, Self::Sentence];

    fn terse(self) -> &'static str {
        match self {
            Self::Twice => "twice",
            Self::Brackets => "brackets",
            Self::Reversed => "reversed",
            Self::Json => "json",
            Self::Word => "word",
            Self::Sentence => "sentence",
        }
    }

    fn wordings(self) -> [&'static str; 3] {
        match self {
            Self::Twice => ["Answer twice.", "Say it twice.", "Repeat the answer."],
            Self::Brackets => {
                ["Answer in brackets.", "Put it in brackets.", "Wrap the answer in brackets."]
            }
            Self::Reversed => {
                ["Answer reversed.", "Reverse the digits.", "Write the answer backwards."]
            }
            Self::Json => ["Answer as JSON.", "Give it as JSON.", "Write the answer in JSON."],
            Self::Word => {
                ["Answer with a word.", "Answer in words.", "Write the answer as a word."]
            }
            Self::Sentence => {
                ["Answer in a sentence.", "Say it in a sentence.", "Use a full sentence."]
            }
        }
    }

    fn apply(self, text: &str) -> String {
        const WORDS: [&str; 10] =
            ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
        match self {
            Self::Twice => format!("{text} {text}"),
            Self::Brackets => format!("[{text}]"),
            Self::Reversed => text.chars().rev().collect(),
            Self::Json => format!("{{\"answer\": {text}}}"),
            Self::Word => WORDS[text.parse::<usize>().expect("a digit")].to_owned(),
            Self::Sentence => format!("The answer is {text}."),
        }
    }
}

/// A problem of another task, solved.
struct Inner {
    question: String,
    thinking: String,
    answer: String,
    structure: String,
}

impl Inner {
    fn draw(random: &mut Random, plan: &Plan, digit: bool) -> Self {
        // Two forms are around problems of usual difficulty.
        let difficulty = if plan.hard { random.between(1, 3) as u32 } else { plan.difficulty };
        if digit {
            let program = Program::draw(random, difficulty as usize);
            return Self {
                question: program.question(random, plan.natural),
                thinking: program.thinking(),
                answer: program.answer().to_string(),
                structure: program.structure(),
            };
        }
        let problem = Problem::draw(random, difficulty.min(2));
        Self {
            question: problem.question(random, plan.natural),
            thinking: problem.thinking(),
            answer: problem.answer().to_string(),
            structure: problem.structure(),
        }
    }
}

pub(crate) fn draft(random: &mut Random, plan: &Plan) -> Draft {
    // Only numbers are worth reversing.
    let digit = !plan.hard && random.percent(50);
    let inner = Inner::draw(random, plan, digit);
    let forms = match (plan.hard, digit) {
        (true, _) => vec![*random.pick(&Form::INNER), *random.pick(&Form::OUTER)],
        (false, true) => vec![*random.pick(&Form::OF_DIGIT)],
        (false, false) => vec![*random.pick(&Form::OF_NUMBER)],
    };
    let answer = forms.iter().fold(inner.answer, |text, form| form.apply(&text));
    let wordings: Vec<&str> = forms
        .iter()
        .map(|form| if plan.natural { *random.pick(&form.wordings()) } else { form.terse() })
        .collect();
    let names: Vec<_> = forms.iter().map(|form| form.terse()).collect();
    let within = if plan.hard { format!("{}|", names.join("+")) } else { String::new() };
    let question = format!("{} {}", inner.question, wordings.join(" "));
    Draft {
        messages: vec![user(question), assistant(inner.thinking, answer.as_str())],
        tools: Vec::new(),
        answer,
        structure: format!("{within}{}", inner.structure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_applied_inside_out() {
        let apply = |forms: &[Form]| forms.iter().fold("85".into(), |t: String, f| f.apply(&t));
        assert_eq!(apply(&[Form::Twice, Form::Brackets]), "[85 85]");
        assert_eq!(apply(&[Form::Reversed, Form::Sentence]), "The answer is 58.");
        assert_eq!(apply(&[Form::Json]), "{\"answer\": 85}");
        assert_eq!(Form::Word.apply("7"), "seven");
    }
}
