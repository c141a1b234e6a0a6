//! Function calls whose argument another call looks up first.
//!
//! "What is the balance of ann?" needs `find_user {"name": "ann"}` → `{"id": 42}`, then
//! `get_balance {"id": 42}` → `{"balance": 17}`, then "The balance of ann is 17." Numbers come from
//! results only; a name that is not found is answered as that. Each line of thinking repeats what
//! the last result said, or names the call to make.
//!
//! Difficulty 1: the id is in the question. 2: it is looked up. 3: with another pair of functions
//! to choose from; 4, out of range: with two.
//!
//! The structure is what is asked of whom, with the numbers of the results.

use crate::conversation::{assistant, calling, tool, user};
use crate::random::Random;
use crate::recall::NAMES;
use crate::task::{Draft, Plan};
use crate::verify::Call;
use hybra_tokenizer::Message;
use serde_json::{Value, json};

/// Share of names that no function finds, in percent.
const UNKNOWN_PERCENT: usize = 15;
/// What an answer says of them.
const NOT_FOUND: &str = "could not find";

/// Two functions: one finds an id by name, one gives a number for an id.
#[derive(Clone, Copy)]
struct Domain {
    subject: &'static str,
    property: &'static str,
}

const fn domain(subject: &'static str, property: &'static str) -> Domain {
    Domain { subject, property }
}

const DOMAINS: [Domain; 8] = [
    domain("user", "balance"),
    domain("user", "age"),
    domain("city", "temperature"),
    domain("book", "price"),
    domain("team", "score"),
    domain("room", "size"),
    domain("train", "delay"),
    domain("shop", "stock"),
];

impl Domain {
    fn find(self, name: &str) -> Call {
        let arguments = format!("{{\"name\": \"{name}\"}}");
        Call { name: format!("find_{}", self.subject), arguments }
    }

    fn get(self, id: u64) -> Call {
        let arguments = format!("{{\"id\": {id}}}");
        Call { name: format!("get_{}", self.property), arguments }
    }

    fn definitions(self) -> [Value; 2] {
        let function = |name: String, parameter: &str, kind: &str| {
            let properties = json!({ parameter: { "type": kind } });
            let parameters =
                json!({ "type": "object", "properties": properties, "required": [parameter] });
            json!({ "type": "function", "function": { "name": name, "parameters": parameters } })
        };
        [
            function(format!("find_{}", self.subject), "name", "string"),
            function(format!("get_{}", self.property), "id", "integer"),
        ]
    }
}

/// What is asked, and the world that functions tell about.
struct Request {
    domain: Domain,
    /// `None`: the question has the id.
    name: Option<&'static str>,
    /// `None`: no function finds the name.
    id: Option<u64>,
    value: u64,
}

impl Request {
    fn draw(random: &mut Random, plan: &Plan) -> Self {
        let domain = *random.pick(&DOMAINS);
        let name = (plan.difficulty > 1).then(|| *random.pick(&NAMES));
        let unknown = name.is_some() && random.percent(UNKNOWN_PERCENT);
        let id = (!unknown).then(|| random.between(10, 99));
        Self { domain, name, id, value: random.between(0, 99) }
    }

    /// Of whom or what.
    fn whom(&self) -> String {
        let id = || format!("{} {}", self.domain.subject, self.id.unwrap_or_default());
        self.name.map_or_else(id, str::to_owned)
    }

    fn question(&self, random: &mut Random, natural: bool) -> String {
        let (whom, property) = (self.whom(), self.domain.property);
        if !natural {
            return format!("{property} {whom}?");
        }
        match random.below(4) {
            0 => format!("What is the {property} of {whom}?"),
            1 => format!("Tell me the {property} of {whom}."),
            2 => format!("Please look up the {property} of {whom}."),
            _ => format!("I need the {property} of {whom}."),
        }
    }

    fn answer(&self) -> String {
        self.id.map_or_else(|| NOT_FOUND.to_owned(), |_| self.value.to_string())
    }

    fn conversation(&self, question: String) -> Vec<Message> {
        let (whom, Domain { subject, property }) = (self.whom(), self.domain);
        let mut messages = vec![user(question)];
        if let Some(name) = self.name {
            let find = self.domain.find(name);
            messages.push(calling(format!("{} {name}", find.name), "call_1", &find));
            messages.push(tool(
                "call_1",
                self.id.map_or_else(
                    || "{\"error\": \"not found\"}".to_owned(),
                    |id| format!("{{\"id\": {id}}}"),
                ),
            ));
        }
        let Some(id) = self.id else {
            let answer = format!("I {NOT_FOUND} the {subject} {whom}.");
            messages.push(assistant("not found", answer));
            return messages;
        };
        let get = self.domain.get(id);
        messages.push(calling(format!("id={id}\n{} {id}", get.name), "call_2", &get));
        messages.push(tool("call_2", format!("{{\"{property}\": {}}}", self.value)));
        let thinking = format!("{property}={}", self.value);
        // An id in the question is no number of the answer.
        let whom = self.name.map_or_else(|| format!("this {subject}"), str::to_owned);
        let answer = format!("The {property} of {whom} is {}.", self.value);
        messages.push(assistant(thinking, answer));
        messages
    }
}

pub(crate) fn draft(random: &mut Random, plan: &Plan) -> Draft {
    let request = Request::draw(random, plan);
    let Domain { subject, property } = request.domain;
    let mut domains = vec![request.domain];
    let others: Vec<Domain> =
        DOMAINS.into_iter().filter(|d| d.subject != subject && d.property != property).collect();
    domains.extend(random.sample(&others, plan.difficulty.saturating_sub(2) as usize));
    random.shuffle(&mut domains);
    let numbers = request.id.map_or_else(|| "?".to_owned(), |id| format!("{id}={}", request.value));
    // Out of range are the functions to choose from.
    let shown = if plan.hard { "; three pairs" } else { "" };
    Draft {
        tools: domains.into_iter().flat_map(Domain::definitions).collect(),
        answer: request.answer(),
        structure: format!("{property} {} {numbers}{shown}", request.whom()),
        messages: {
            let question = request.question(random, plan.natural);
            request.conversation(question)
        },
    }
}
