//! Tools of a request, and the grammar of their calls in the family's format:
//! `<TOOLCALL>[{"name": "…", "arguments": {…}}, …]</TOOLCALL>`.
//!
//! What a request says decides what is constrained:
//!
//! | `tool_choice` | the answer | arguments |
//! |---|---|---|
//! | none | the response format's | no calls |
//! | auto | free, or the response format's; or calls | any object; the schema's where `strict` |
//! | required, named | calls | the schema's |
//!
//! A constraint in auto mode without a response format exists only where a function is strict or
//! calls must not be parallel; it holds from behind `<TOOLCALL>[`.

use crate::grammar::{GrammarError, GrammarSpec, ToolTags};
use crate::grammar_schema::check_depth;
use crate::grammar_source::{Source, at_most, key, literal};
use hybra_engine::ConstraintScope;
use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use serde_json::Value;
use std::fmt::Write;

/// Most tools of a request.
const MOST_TOOLS: usize = 128;
/// Longest name, as OpenAI's.
const MOST_NAME_BYTES: usize = 64;

/// One function.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ToolSpec {
    /// Its name: letters, digits, `_`, `-` and `.`.
    pub name: String,
    /// JSON schema of its arguments; `None`: any object.
    pub parameters: Option<Value>,
    /// The arguments hold to the schema whether the model wants or not.
    pub strict: bool,
}

impl ToolSpec {
    /// Reads OpenAI's `{"type": "function", "function": {"name", "parameters", "strict"}}`, or its
    /// inner object alone. `index` is the tool's place in the request.
    ///
    /// # Errors
    /// A field of another type; the error names it.
    pub fn from_json(index: usize, tool: &Value) -> Result<Self, GrammarError> {
        let function = tool.get("function").unwrap_or(tool);
        let invalid = |name: &str, expected: &str| GrammarError::Invalid {
            field: format!("tools[{index}].function.{name}"),
            reason: format!("expected {expected}, found {}", found(function.get(name))),
        };
        let name = function.get("name").and_then(Value::as_str);
        let name = name.ok_or_else(|| invalid("name", "a string"))?.to_owned();
        let parameters = function.get("parameters").filter(|value| !value.is_null());
        if parameters.is_some_and(|value| !value.is_object()) {
            return Err(invalid("parameters", "a JSON schema"));
        }
        let strict = match function.get("strict") {
            None | Some(Value::Null) => false,
            Some(value) => value.as_bool().ok_or_else(|| invalid("strict", "true or false"))?,
        };
        Ok(Self { name, parameters: parameters.cloned(), strict })
    }
}

fn found(value: Option<&Value>) -> String {
    value.map_or("nothing".to_owned(), |value| value.to_string().chars().take(64).collect())
}

/// Which tools are called.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// None; they are not shown to the model either.
    None,
    /// At least one.
    Required,
    /// This one.
    Named(String),
}

/// What a request says about tools.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tools {
    /// The functions.
    pub specs: Vec<ToolSpec>,
    /// Which are called.
    pub choice: ToolChoice,
    /// `parallel_tool_calls: false`: at most one call.
    pub single: bool,
}

impl Tools {
    /// Where a constraint holds, if one is needed.
    pub(crate) fn scope(&self, answer: bool) -> Result<Option<ConstraintScope>, GrammarError> {
        self.check()?;
        let strict = self.specs.iter().any(|tool| tool.strict);
        Ok(match self.choice {
            ToolChoice::None => None,
            ToolChoice::Required | ToolChoice::Named(_) => Some(ConstraintScope::Answer),
            ToolChoice::Auto if self.specs.is_empty() => None,
            ToolChoice::Auto if answer => Some(ConstraintScope::Answer),
            ToolChoice::Auto => (strict || self.single).then_some(ConstraintScope::ToolCall),
        })
    }

    fn check(&self) -> Result<(), GrammarError> {
        at_most("tools", "tools", MOST_TOOLS, self.specs.len())?;
        let invalid = |field: String, reason: String| Err(GrammarError::Invalid { field, reason });
        for (index, tool) in self.specs.iter().enumerate() {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
            let sound = (1..=MOST_NAME_BYTES).contains(&tool.name.len());
            if !sound || !tool.name.bytes().all(plain) {
                let expected = "expected 1 to 64 letters, digits, `_`, `-` and `.`";
                let name: String = tool.name.chars().take(80).collect();
                let reason = format!("{expected}, found {name:?}");
                return invalid(format!("tools[{index}].function.name"), reason);
            }
            if let Some(schema) = &tool.parameters {
                check_depth(&blamed(tool), schema)?;
            }
            if self.specs[..index].iter().any(|other| other.name == tool.name) {
                let reason = format!("expected names that differ, found {:?} twice", tool.name);
                return invalid(format!("tools[{index}].function.name"), reason);
            }
        }
        let known = |name: &String| self.specs.iter().any(|tool| tool.name == *name);
        match &self.choice {
            ToolChoice::Named(name) if !known(name) => {
                let reason = format!("expected the name of a tool, found {name:?}");
                invalid("tool_choice".to_owned(), reason)
            }
            ToolChoice::Required if self.specs.is_empty() => {
                let reason = "expected tools beside `required`, found none".to_owned();
                invalid("tool_choice".to_owned(), reason)
            }
            _ => Ok(()),
        }
    }

    /// Equal for equal grammars only.
    pub(crate) fn key(&self, answer: Option<&GrammarSpec>) -> String {
        format!("tools {self:?} {}", answer.map(key).unwrap_or_default())
    }

    /// The grammar of calls; an `answer` is the other thing that may come.
    pub(crate) fn grammar(
        &self,
        tags: &ToolTags,
        answer: Option<&GrammarSpec>,
    ) -> Result<TopLevelGrammar, GrammarError> {
        let answer = answer.filter(|_| self.choice == ToolChoice::Auto);
        let (mut rules, mut grammars) = (String::new(), Vec::new());
        let token = |id: Option<u32>, text: &str| match id {
            Some(id) => format!("<[{id}]>"),
            None => literal(text),
        };
        let open = token(tags.open, "<TOOLCALL>");
        let close = token(tags.close, "</TOOLCALL>");
        let more = if self.single { "" } else { r#" (", " call)*"# };
        let other = if answer.is_some() { "@response | " } else { "" };
        // Writing to a string cannot fail.
        let _ = writeln!(rules, r#"start: {other}calls"#);
        let _ = writeln!(rules, r#"calls: {open} "[" call{more} "]" {close}"#);
        let callable = |tool: &&ToolSpec| match &self.choice {
            ToolChoice::Named(name) => tool.name == *name,
            _ => true,
        };
        let called: Vec<_> = self.specs.iter().filter(callable).collect();
        let alternatives: Vec<_> = (0..called.len()).map(|i| format!("call_{i}")).collect();
        let _ = writeln!(rules, "call: {}", alternatives.join(" | "));
        for (i, tool) in called.into_iter().enumerate() {
            let head = format!(r#"{{"name": "{}", "arguments": "#, tool.name);
            let _ = writeln!(rules, r#"call_{i}: {} @arguments_{i} "}}""#, literal(&head));
            let name = format!("arguments_{i}");
            grammars.push(self.arguments(tool, name)?);
        }
        if let Some(answer) = answer {
            grammars.push(Source::new(answer, Some("response"))?.grammar);
        }
        grammars.insert(0, GrammarWithLexer::from_lark(rules));
        Ok(TopLevelGrammar { grammars, max_tokens: None })
    }

    fn arguments(&self, tool: &ToolSpec, name: String) -> Result<GrammarWithLexer, GrammarError> {
        let held = tool.strict || self.choice != ToolChoice::Auto;
        let spec = match &tool.parameters {
            Some(schema) if held => GrammarSpec::JsonSchema(schema.clone()),
            _ => GrammarSpec::JsonObject,
        };
        let mut grammar = Source::new(&spec, Some(&blamed(tool)))?.grammar;
        grammar.name = Some(name);
        Ok(grammar)
    }
}

fn blamed(tool: &ToolSpec) -> String {
    format!("tools: the parameters of {}", tool.name)
}
