//! From the text of tool calls to calls, piece by piece as it comes.
//!
//! The text is what the engine's tool phase gives: `<TOOLCALL>[{"name": …, "arguments": {…}}, …]`,
//! `</TOOLCALL>`, perhaps text and further lists behind. A call begins once its name and the first
//! byte of its arguments are there; without arguments, at its end. Arguments are passed on as the
//! model wrote them; arguments that are a JSON string are passed on as the text in it.
//!
//! Invariants: the joined output is a function of the joined input, however it is cut. All of the
//! text comes out: as a call, as its brackets, commas and blanks, or as content. Where the text
//! stops being calls, the rest is content; a call that has begun keeps what it has got.

use crate::tool_calls_json::{JsonScanner, Scan};
use crate::tool_calls_string::StringDecoder;

const OPEN: &str = "<TOOLCALL>";
const CLOSE: &str = "</TOOLCALL>";

/// A piece of output.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ToolDelta {
    /// Text that is no call.
    Content(String),
    /// A call begins.
    Call {
        /// Its place among the calls of the reply.
        index: usize,
        /// The function.
        name: String,
    },
    /// More of a call's arguments.
    Arguments {
        /// Which call.
        index: usize,
        /// Joined: the JSON text.
        fragment: String,
    },
}

/// Where the reader is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum At {
    /// In content, behind so many bytes of an open tag.
    Content(usize),
    /// Behind the open tag.
    Opened,
    /// Before a call, or the end of an empty list.
    FirstCall,
    /// Before a call, behind a comma.
    Call,
    /// Before a key, or the end of an empty object.
    FirstKey,
    /// Before a key, behind a comma.
    Key,
    InKey,
    Colon(Member),
    ValueStart(Member),
    InValue(Member),
    AfterValue,
    AfterCall,
    /// Behind the list, and so many bytes of the close tag.
    Close(usize),
    /// Behind the close tag.
    Closed,
}

/// A member of a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Member {
    Name,
    Arguments,
    Other,
}

/// The call that is being read.
#[derive(Debug, Default)]
struct OpenCall {
    name: Option<String>,
    /// Arguments that came before the name.
    early: String,
    has_arguments: bool,
    begun: bool,
}

/// Reads the tool text of one reply.
#[derive(Debug)]
pub struct ToolCallParser {
    at: At,
    /// Text that is content if no call comes of it.
    held: String,
    call: OpenCall,
    /// Calls that have begun, and those of the present list.
    num_calls: usize,
    in_list: usize,
    scanner: JsonScanner,
    /// Of a key or name.
    raw: String,
    /// Set while the arguments are a string.
    decoder: Option<StringDecoder>,
    out: Vec<ToolDelta>,
}

impl Default for ToolCallParser {
    fn default() -> Self {
        Self {
            at: At::Content(0),
            held: String::new(),
            call: OpenCall::default(),
            num_calls: 0,
            in_list: 0,
            scanner: JsonScanner::new(),
            raw: String::new(),
            decoder: None,
            out: Vec::new(),
        }
    }
}

impl ToolCallParser {
    /// A reader before the first byte.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Calls that have begun.
    #[must_use]
    pub fn num_calls(&self) -> usize {
        self.num_calls
    }

    /// Takes the next text; what comes of it.
    pub fn push(&mut self, text: &str) -> Vec<ToolDelta> {
        text.chars().for_each(|c| self.take(c));
        std::mem::take(&mut self.out)
    }

    /// The text is over; what was held back.
    pub fn finish(&mut self) -> Vec<ToolDelta> {
        let of_calls = match self.at {
            At::Content(_) | At::Opened | At::FirstCall => false,
            At::Call | At::Close(_) => self.in_list > 0,
            At::AfterCall | At::Closed => true,
            _ => self.call.begun,
        };
        if of_calls {
            self.held.clear();
        }
        self.give_back();
        self.at = At::Content(0);
        std::mem::take(&mut self.out)
    }

    fn take(&mut self, c: char) {
        if let At::InValue(member) = self.at {
            return self.value(member, c);
        }
        let blank = matches!(c, ' ' | '\n' | '\r' | '\t');
        self.held.push(c);
        match (self.at, c) {
            (At::Content(matched), c) => self.content(matched, c),
            (At::InKey, c) => self.key(c),
            (At::Close(matched), c) if c == char::from(CLOSE.as_bytes()[matched]) => {
                self.at = At::Close(matched + 1);
                if matched + 1 == CLOSE.len() {
                    self.end_list();
                }
            }
            (At::Closed, c) if !blank => {
                // Blanks behind the tag belong to the text that follows.
                self.at = At::Content(0);
                self.content(0, c);
            }
            (At::ValueStart(member), c) if !blank => {
                self.held.pop();
                self.begin_value(member, c);
            }
            (At::Close(1..), _) => self.broken(c),
            (_, _) if blank => {}
            (At::Opened, '[') => self.at = At::FirstCall,
            (At::FirstCall | At::Call, '{') => {
                self.call = OpenCall::default();
                self.at = At::FirstKey;
            }
            (At::FirstCall, ']') => self.at = At::Close(0),
            (At::FirstKey | At::Key, '"') => {
                self.start_scan();
                self.at = At::InKey;
                self.key(c);
            }
            (At::Colon(member), ':') => self.at = At::ValueStart(member),
            (At::AfterValue, ',') => self.at = At::Key,
            (At::AfterValue | At::FirstKey, '}') if self.call.name.is_some() => self.end_call(),
            (At::AfterCall, ',') => self.at = At::Call,
            (At::AfterCall, ']') => {
                self.held.clear();
                self.at = At::Close(0);
            }
            _ => self.broken(c),
        }
    }

    /// In content everything comes out but the beginning of a tag.
    fn content(&mut self, matched: usize, c: char) {
        let next = |matched: usize| c == char::from(OPEN.as_bytes()[matched]);
        // `<` stands in the tag once, at its beginning.
        let matched = if next(matched) { matched + 1 } else { usize::from(next(0)) };
        self.at = At::Content(matched);
        if matched == OPEN.len() {
            (self.at, self.in_list) = (At::Opened, 0);
        }
        let waits = self.held.split_off(self.held.len() - matched);
        self.give_back();
        self.held = waits;
    }

    fn start_scan(&mut self) {
        self.scanner = JsonScanner::new();
        self.raw.clear();
    }

    fn scan(&mut self, c: char) -> Scan {
        // All characters beyond ASCII are alike to JSON.
        let byte = u8::try_from(c).ok().filter(u8::is_ascii).unwrap_or(0x80);
        self.raw.push(c);
        self.scanner.push(byte)
    }

    fn key(&mut self, c: char) {
        let member = match self.scan(c) {
            Scan::More => return,
            Scan::Ended | Scan::Broken => None,
            Scan::End => match serde_json::from_str::<String>(&self.raw).as_deref() {
                Ok("name") => self.call.name.is_none().then_some(Member::Name),
                Ok("arguments") => (!self.call.has_arguments).then_some(Member::Arguments),
                Ok(_) => Some(Member::Other),
                Err(_) => None,
            },
        };
        match member {
            Some(member) => self.at = At::Colon(member),
            None => self.broken(c),
        }
    }

    fn begin_value(&mut self, member: Member, c: char) {
        let sound = match member {
            Member::Name => c == '"',
            Member::Arguments | Member::Other => {
                matches!(c, '{' | '[' | '"' | '-' | '0'..='9' | 't' | 'f' | 'n')
            }
        };
        if !sound {
            self.held.push(c);
            return self.broken(c);
        }
        if member == Member::Arguments {
            self.call.has_arguments = true;
            self.decoder = (c == '"').then(StringDecoder::default);
            if self.call.name.is_some() {
                self.begin_call();
            }
        }
        self.start_scan();
        self.at = At::InValue(member);
        self.value(member, c);
    }

    fn value(&mut self, member: Member, c: char) {
        let scan = self.scan(c);
        match scan {
            Scan::More | Scan::End => {
                if member == Member::Arguments {
                    self.argument(c);
                }
                if !(member == Member::Arguments && self.call.begun) {
                    self.held.push(c);
                }
                if scan == Scan::End {
                    self.end_value(member, c);
                }
            }
            Scan::Ended => {
                self.at = At::AfterValue;
                self.take(c);
            }
            Scan::Broken => {
                self.held.push(c);
                self.broken(c);
            }
        }
    }

    fn end_value(&mut self, member: Member, c: char) {
        self.at = At::AfterValue;
        if member != Member::Name {
            return;
        }
        let Ok(name) = serde_json::from_str(&self.raw) else { return self.broken(c) };
        self.call.name = Some(name);
        if self.call.has_arguments {
            self.begin_call();
        }
    }

    fn argument(&mut self, c: char) {
        let mut text = String::new();
        match &mut self.decoder {
            Some(decoder) => decoder.push(c, &mut text),
            None => text.push(c),
        }
        if self.call.begun {
            self.arguments(&text);
        } else {
            self.call.early.push_str(&text);
        }
    }

    fn begin_call(&mut self) {
        let name = self.call.name.clone().unwrap_or_default();
        self.out.push(ToolDelta::Call { index: self.num_calls, name });
        self.num_calls += 1;
        self.in_list += 1;
        self.call.begun = true;
        self.held.clear();
        let early = std::mem::take(&mut self.call.early);
        self.arguments(&early);
    }

    fn end_call(&mut self) {
        if !self.call.begun {
            self.begin_call();
            self.arguments("{}");
        }
        self.held.clear();
        self.at = At::AfterCall;
    }

    fn end_list(&mut self) {
        if self.in_list > 0 {
            self.held.clear();
            self.at = At::Closed;
        } else {
            // An empty list is no call, and its text stays.
            self.give_back();
            self.at = At::Content(0);
        }
    }

    /// No call goes on with `c`, the last character held.
    fn broken(&mut self, c: char) {
        self.held.pop();
        self.give_back();
        self.held.push(c);
        self.content(0, c);
    }

    fn give_back(&mut self) {
        let held = std::mem::take(&mut self.held);
        if held.is_empty() {
            return;
        }
        match self.out.last_mut() {
            Some(ToolDelta::Content(text)) => text.push_str(&held),
            _ => self.out.push(ToolDelta::Content(held)),
        }
    }

    fn arguments(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        let fragment = match self.out.last_mut() {
            Some(ToolDelta::Arguments { fragment, .. }) => return fragment.push_str(text),
            _ => text.to_owned(),
        };
        self.out.push(ToolDelta::Arguments { index: self.num_calls - 1, fragment });
    }
}

#[cfg(test)]
mod tests;
