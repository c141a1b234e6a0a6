//! What holds for the examples of every task: they satisfy their own verifier and no other answer
//! does, splits share no structure, and an example is a function of its arguments.

use hybra_eval::{
    Call, Example, Phrasing, Split, Task, TaskOptions, read_examples, write_examples,
};
use hybra_tokenizer::{Content, Message};
use std::collections::HashSet;

const SEED: u64 = 17;

fn examples(task: Task, split: Split, phrasing: Phrasing, n: u64) -> Vec<Example> {
    let options = TaskOptions { split, phrasing, max_difficulty: None };
    (0..n).map(|index| task.example(options, SEED, index).unwrap()).collect()
}

/// Every task, split and phrasing.
fn every(n: u64, mut check: impl FnMut(Task, Split, &[Example])) {
    for task in Task::ALL {
        for split in Split::ALL {
            for phrasing in Phrasing::ALL {
                check(task, split, &examples(task, split, phrasing, n));
            }
        }
    }
}

fn text(message: &Message) -> &str {
    match &message.content {
        Some(Content::Text(text)) => text,
        other => panic!("{other:?}"),
    }
}

fn calls(message: &Message) -> Vec<Call> {
    let part = |call: &serde_json::Value, key: &str| {
        call["function"][key].as_str().expect("a string").to_owned()
    };
    let calls = message.tool_calls.iter();
    calls.map(|c| Call { name: part(c, "name"), arguments: part(c, "arguments") }).collect()
}

fn all_calls(example: &Example) -> Vec<Call> {
    example.messages.iter().flat_map(calls).collect()
}

#[test]
fn every_example_satisfies_its_verifier() {
    every(200, |task, split, examples| {
        for example in examples {
            let answer = text(example.messages.last().unwrap());
            assert!(example.verify(answer, &all_calls(example)), "{task} {split} {example:?}");
            assert!(example.verify(&format!(" {answer}\n"), &all_calls(example)));
            for turn in example.assistant_turns() {
                let message = &example.messages[turn];
                assert!(example.verify_turn(turn, text(message), &calls(message)), "{example:?}");
                assert!(message.reasoning_content.as_ref().is_some_and(|t| !t.is_empty()));
            }
            assert!(task.difficulties(split).contains(&example.difficulty));
        }
    });
}

#[test]
fn other_answers_are_refused() {
    every(100, |_, _, examples| {
        for (example, other) in examples.iter().zip(examples.iter().skip(1)) {
            let own = all_calls(example);
            for wrong in ["", "I think so.", "12345678", "[", "{\"answer\": true}"] {
                assert!(!example.verify(wrong, &own), "{wrong}: {example:?}");
            }
            if other.answer != example.answer {
                let answer = text(other.messages.last().unwrap());
                assert!(!example.verify(answer, &own), "{answer}: {example:?}");
            }
        }
    });
}

#[test]
fn calls_are_checked_by_name_and_value() {
    let all = examples(Task::Tools, Split::Train, Phrasing::Mixed, 300);
    assert!(all.iter().any(|e| e.answer == "could not find"));
    for example in all {
        let answer = text(example.messages.last().unwrap());
        let good = all_calls(&example);
        let change = |at: usize, new: Call| {
            let mut calls = good.clone();
            calls[at] = new;
            calls
        };
        let spaced = good[0].arguments.replace(": ", " :  ");
        let spaced = change(0, Call { arguments: spaced, ..good[0].clone() });
        assert!(example.verify(answer, &spaced));
        let renamed = change(0, Call { name: "find_nobody".into(), ..good[0].clone() });
        let (broken, other) = ("{\"id\": ", "{\"id\": 100}");
        let broken = change(0, Call { arguments: broken.into(), ..good[0].clone() });
        let other = change(0, Call { arguments: other.into(), ..good[0].clone() });
        let twice = [good.clone(), good.clone()].concat();
        for bad in [renamed, broken, other, twice, Vec::new()] {
            assert!(!example.verify(answer, &bad), "{bad:?}");
        }
        // A result that is told before it is known is invented.
        let turn = example.assistant_turns()[0];
        let first = calls(&example.messages[turn]);
        assert!(!example.verify_turn(turn, "It is 17.", &first));
        assert!(!example.verify(&format!("{answer} Or 99."), &good));
    }
}

#[test]
fn splits_share_no_structure() {
    for task in Task::ALL {
        let structures = |split| -> HashSet<String> {
            let examples = examples(task, split, Phrasing::Mixed, 3_000);
            examples.into_iter().map(|example| example.structure).collect()
        };
        let [train, test, hard] = Split::ALL.map(structures);
        assert!(train.is_disjoint(&test), "{task}: {:?}", train.intersection(&test).next());
        assert!(train.is_disjoint(&hard), "{task}: {:?}", train.intersection(&hard).next());
        assert!(test.is_disjoint(&hard), "{task}: {:?}", test.intersection(&hard).next());
    }
}

/// A program that is held out of one task is held out of those that use it.
#[test]
fn forms_are_around_problems_of_their_split() {
    let structures = |task, split| -> HashSet<String> {
        let examples = examples(task, split, Phrasing::Terse, 5_000);
        examples.into_iter().map(|example| example.structure).collect()
    };
    let forms = structures(Task::Format, Split::Test);
    for task in [Task::Chainbox, Task::Arithmetic] {
        assert!(forms.is_disjoint(&structures(task, Split::Train)));
        assert!(!forms.is_disjoint(&structures(task, Split::Test)));
    }
}

#[test]
fn every_difficulty_occurs_and_a_limit_holds() {
    for task in Task::ALL {
        for split in Split::ALL {
            let found = examples(task, split, Phrasing::Mixed, 2_000);
            let found: HashSet<u32> = found.iter().map(|example| example.difficulty).collect();
            assert_eq!(found, task.difficulties(split).collect(), "{task} {split}");
            let least = *task.difficulties(split).start();
            let options = TaskOptions { split, max_difficulty: Some(least), ..Default::default() };
            for index in 0..100 {
                assert_eq!(task.example(options, 0, index).unwrap().difficulty, least);
            }
            let options = TaskOptions { split, max_difficulty: Some(least - 1), ..options };
            let error = task.example(options, 0, 0).unwrap_err().to_string();
            assert!(error.contains("max_difficulty") && error.contains(task.name()), "{error}");
        }
    }
}

#[test]
fn an_example_is_a_function_of_its_arguments() {
    for task in Task::ALL {
        let options = TaskOptions::default();
        let make = |seed, index| task.example(options, seed, index).unwrap().to_json();
        assert_eq!(make(3, 5), make(3, 5));
        let others: HashSet<String> = (0..20).map(|index| make(3, index).to_string()).collect();
        assert!(others.len() > 10, "{task}");
        assert!((0..20).any(|index| make(3, index) != make(4, index)), "{task}");
    }
}

/// Recorded once: data of a published seed stay what they were.
#[test]
fn the_first_chainbox_line_is_as_published() {
    let options = TaskOptions { phrasing: Phrasing::Terse, ..TaskOptions::default() };
    let line = Task::Chainbox.example(options, 0, 0).unwrap().to_json().to_string();
    assert_eq!(line, FIRST_LINE);
}

const FIRST_LINE: &str = concat!(
    r#"{"messages":[{"role":"user","content":"h=c-1;c=8;j=c+8;j?"},{"role":"assistant","rea"#,
    r#"soning_content":"j=c+8\nc=8\nj=6","content":"6"}],"task":"chainbox","answer":"6","di"#,
    r#"fficulty":2}"#
);

#[test]
fn a_file_gives_its_examples_back() {
    every(20, |_, _, examples| {
        let mut file = Vec::new();
        write_examples(&mut file, examples).unwrap();
        let read = read_examples(file.as_slice(), "x.jsonl").unwrap();
        for (read, example) in read.into_iter().zip(examples) {
            let expected = Example { structure: String::new(), ..example.clone() };
            assert_eq!(read, expected);
        }
    });
}

/// The small model knows few characters: lines stay short and plain.
#[test]
fn traces_are_short_and_text_is_plain() {
    every(300, |task, split, examples| {
        for example in examples {
            for message in &example.messages {
                let thinking = message.reasoning_content.as_deref().unwrap_or_default();
                // A judge solves the problem and repeats its answer.
                let most = if task == Task::Judge { 300 } else { 120 };
                assert!(thinking.len() <= most, "{task} {split}: {thinking}");
                let plain = |text: &str| text.bytes().all(|b| b == b'\n' || (32..127).contains(&b));
                assert!(plain(thinking) && plain(text(message)), "{message:?}");
            }
        }
    });
}

#[test]
fn about_has_many_wordings_and_intents() {
    let all = examples(Task::About, Split::Train, Phrasing::Natural, 5_000);
    let intents: HashSet<&str> = all.iter().map(|example| example.answer.as_str()).collect();
    assert!(intents.len() >= 12, "{}", intents.len());
    let test = examples(Task::About, Split::Test, Phrasing::Natural, 5_000);
    let held: HashSet<&str> = test.iter().map(|example| example.answer.as_str()).collect();
    assert_eq!(intents, held, "every intent is both trained and tested");
}
