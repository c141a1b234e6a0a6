//! One of many key–value pairs: `ann=red;bob=sky;bob?`. The trace is the pair that was asked for.
//!
//! The structure is the whole list with the question.

use crate::conversation::{assistant, user};
use crate::random::Random;
use crate::task::{Draft, Plan};

/// Keys: short first names; as many as the longest list has pairs.
pub(crate) const NAMES: [&str; 40] = [
    "ann", "bob", "cat", "dan", "eve", "fay", "gus", "hal", "ida", "jon", "kim", "leo", "mia",
    "ned", "oda", "pam", "quin", "ray", "sue", "tim", "una", "val", "wes", "xia", "yan", "zoe",
    "amy", "ben", "cleo", "dora", "emil", "finn", "gina", "hugo", "ivy", "jack", "kate", "lena",
    "max", "nora",
];
/// Values.
const THINGS: [&str; 32] = [
    "red", "blue", "green", "gold", "pink", "gray", "black", "white", "apple", "pear", "plum",
    "fig", "lime", "bread", "rice", "tea", "milk", "fish", "dog", "horse", "bird", "bee", "sun",
    "moon", "star", "rain", "snow", "tree", "stone", "ship", "book", "drum",
];

pub(crate) fn draft(random: &mut Random, plan: &Plan) -> Draft {
    let keys = random.sample(&NAMES, plan.difficulty as usize);
    let pairs: Vec<_> = keys.iter().map(|&key| (key, *random.pick(&THINGS))).collect();
    let (key, value) = *random.pick(&pairs);
    let list = |verb: &str, separator: &str| -> String {
        let pairs = pairs.iter().map(|(key, value)| format!("{key}{verb}{value}"));
        pairs.collect::<Vec<_>>().join(separator)
    };
    let structure = format!("{};{key}?", list("=", ";"));
    let question = match plan.natural.then(|| random.below(4)) {
        None => structure.clone(),
        Some(0) => format!("{}. What does {key} like?", list(" likes ", ", ")),
        Some(1) => format!("{}. What does {key} have?", list(" has ", ", ")),
        Some(2) => format!("Remember: {}. What is {key}?", list(" is ", ", ")),
        Some(_) => format!("What does {key} like if {}?", list(" likes ", ", ")),
    };
    Draft {
        messages: vec![user(question), assistant(format!("{key}={value}"), value)],
        tools: Vec::new(),
        answer: value.to_owned(),
        structure,
    }
}
