//! Chat templates: a conversation becomes a prompt, as `transformers` would render it.
//!
//! A template is the model's own Jinja source. It runs under the limits of `template_env`, and all
//! text that a client may choose is marked on the way in ([`crate::ControlStrings`] tells why).

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use minijinja::{Environment, ErrorKind, Value};
use serde_json::Value as Json;

use crate::TemplateError;
use crate::control::{Author, ControlStrings, Marker, Rendered};
use crate::message::{ChatRequest, Message};
use crate::template_env::{
    CappedOutput, FUEL, MAX_OUTPUT_BYTES, MAX_SOURCE_BYTES, NAME, NOW, Raised, environment,
    unix_seconds, with_limits,
};
use crate::tojson::to_template_value;

/// Largest size of template arguments, as JSON.
const MAX_ARGUMENT_BYTES: usize = 64 * 1024;

/// Variables and functions that arguments may not replace.
const RESERVED: [&str; 24] = [
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "enable_thinking",
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "raise_exception",
    "strftime_now",
    "namespace",
    "range",
    "dict",
    "cycler",
    "joiner",
    "lipsum",
    "debug",
    "loop",
    "self",
    "super",
    "caller",
    NOW,
];

/// A parsed chat template of one model. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    env: Arc<Environment<'static>>,
    source: Arc<str>,
    controls: Arc<ControlStrings>,
    /// Variables that the template reads and does not set.
    reads: HashSet<String>,
    /// `bos_token` and its kind, as the tokenizer's configuration names them.
    token_names: BTreeMap<&'static str, String>,
    /// Alive while a rendering runs that went past the deadline.
    overdue: Arc<Mutex<Weak<()>>>,
}

impl ChatTemplate {
    /// Parses a template.
    ///
    /// `token_names` are the variables `bos_token`, `eos_token`, … with their texts.
    ///
    /// # Errors
    /// [`TemplateError::TooLarge`] and [`TemplateError::Syntax`].
    pub fn new(
        source: &str,
        controls: Arc<ControlStrings>,
        token_names: BTreeMap<&'static str, String>,
    ) -> Result<Self, TemplateError> {
        if source.len() > MAX_SOURCE_BYTES {
            let (found, limit) = (source.len(), MAX_SOURCE_BYTES);
            return Err(TemplateError::TooLarge { found, limit });
        }
        let owned = source.to_owned();
        let (env, reads) = with_limits(move || {
            let env = environment(&owned).map_err(|e| TemplateError::Syntax(e.to_string()))?;
            let template = env.get_template(NAME).expect("the template was just added");
            let reads = template.undeclared_variables(false);
            Ok::<_, TemplateError>((env, reads))
        })??;
        let overdue = Arc::default();
        Ok(Self {
            env: Arc::new(env),
            source: source.into(),
            controls,
            reads,
            token_names,
            overdue,
        })
    }

    /// The Jinja source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// True when the template reads the variable `enable_thinking`. Where it does not, thinking is
    /// switched by flag words in the messages.
    pub fn reads_enable_thinking(&self) -> bool {
        self.reads.contains("enable_thinking")
    }

    /// Renders a conversation.
    ///
    /// `continue_final_message` reaches templates that read it; for the others the prompt is cut
    /// after the final message's text, as `transformers` does.
    ///
    /// # Errors
    /// What the template raises, the limits, and faults of the request (see [`TemplateError`]).
    pub fn render(&self, request: &ChatRequest) -> Result<Rendered, TemplateError> {
        check_arguments(request)?;
        let texts = request
            .messages
            .iter()
            .enumerate()
            .map(|(index, message)| message.text(index))
            .collect::<Result<Vec<String>, TemplateError>>()?;
        let marker = Marker::new(&self.controls, &self.private_characters(request, &texts))?;
        let context = self.context(request, &texts, &marker);
        let output = self.run(context).map_err(|e| restore_error(e, &marker))?;
        let mut rendered = marker.rendered(&output);
        if request.continue_final_message {
            self.cut_after_final(request, &texts, &mut rendered)?;
        }
        Ok(rendered)
    }

    fn run(&self, context: Value) -> Result<String, TemplateError> {
        let overdue = || self.overdue.lock().unwrap_or_else(PoisonError::into_inner);
        if overdue().strong_count() > 0 {
            return Err(TemplateError::Stuck);
        }
        let (env, running) = (self.env.clone(), Arc::new(()));
        let watch = Arc::downgrade(&running);
        let result = with_limits(move || {
            let _running = running;
            run(&env, context)
        });
        if matches!(result, Err(TemplateError::Timeout { .. })) {
            *overdue() = watch;
        }
        result?
    }

    fn context(&self, request: &ChatRequest, texts: &[String], marker: &Marker<'_>) -> Value {
        let mut name = |text: &str| marker.mark(text, Author::Name);
        let messages: Vec<Value> = request
            .messages
            .iter()
            .zip(texts)
            .map(|(message, text)| message_value(message, text, marker))
            .collect();
        let tools: Vec<Value> =
            request.tools.iter().map(|tool| to_template_value(tool, &mut name)).collect();
        let tools = if tools.is_empty() { Value::from(()) } else { Value::from(tools) };
        let mut pairs: Vec<(String, Value)> = vec![
            ("messages".to_owned(), Value::from(messages)),
            ("tools".to_owned(), tools),
            ("documents".to_owned(), Value::from(())),
            ("add_generation_prompt".to_owned(), Value::from(request.add_generation_prompt)),
            ("continue_final_message".to_owned(), Value::from(request.continue_final_message)),
        ];
        if let Some(on) = request.enable_thinking {
            pairs.push(("enable_thinking".to_owned(), Value::from(on)));
        }
        if let Some(now) = request.now {
            pairs.push((NOW.to_owned(), Value::from(unix_seconds(now))));
        }
        for (key, token) in &self.token_names {
            pairs.push(((*key).to_owned(), Value::from(token.as_str())));
        }
        for (key, value) in &request.kwargs {
            pairs.push((key.clone(), to_template_value(value, &mut name)));
        }
        Value::from_pairs(pairs)
    }

    /// Supplementary private-use characters that occur anywhere in this rendering.
    fn private_characters(&self, request: &ChatRequest, texts: &[String]) -> HashSet<char> {
        let mut used = HashSet::new();
        let mut note = |text: &str| Marker::collect_private(text, &mut used);
        note(&self.source);
        texts.iter().for_each(|text| note(text));
        for message in &request.messages {
            note(&message.role);
            let extra = [&message.reasoning_content, &message.tool_call_id, &message.name];
            extra.into_iter().flatten().for_each(|text| note(text));
            message.tool_calls.iter().for_each(|call| each_string(call, &mut note));
        }
        request.tools.iter().for_each(|tool| each_string(tool, &mut note));
        for (key, value) in &request.kwargs {
            note(key);
            each_string(value, &mut note);
        }
        used
    }

    fn cut_after_final(
        &self,
        request: &ChatRequest,
        texts: &[String],
        rendered: &mut Rendered,
    ) -> Result<(), TemplateError> {
        if request.messages.last().is_none_or(|m| m.role != "assistant") {
            return Err(TemplateError::Continue("the last message is not from the assistant"));
        }
        if request.add_generation_prompt {
            return Err(TemplateError::Continue("add_generation_prompt is set too"));
        }
        if self.reads.contains("continue_final_message") {
            return Ok(());
        }
        let last = texts.last().map_or("", |text| text.trim());
        let start = rendered.text().rfind(last).ok_or(TemplateError::Continue(
            "the template does not print the final message as it is",
        ))?;
        rendered.truncate(start + last.len());
        Ok(())
    }
}

fn run(env: &Environment<'_>, context: Value) -> Result<String, TemplateError> {
    let template = env.get_template(NAME).expect("added when the template was parsed");
    let mut output = CappedOutput::default();
    let result = template.render_captured_to(context, &mut output).map(drop);
    if output.full {
        return Err(TemplateError::OutputTooLarge { limit: MAX_OUTPUT_BYTES });
    }
    result.map_err(|e| describe(&e))?;
    Ok(String::from_utf8(output.bytes).expect("templates print strings"))
}

fn message_value(message: &Message, text: &str, marker: &Marker<'_>) -> Value {
    let role = message.template_role();
    let known = matches!(role, "system" | "user" | "assistant" | "tool" | "function");
    let author = if role == "assistant" { Author::Assistant } else { Author::Foreign };
    let mut name = |text: &str| marker.mark(text, Author::Name);
    let role = if known { role.to_owned() } else { name(role) };
    let mut pairs =
        vec![("role", Value::from(role)), ("content", Value::from(marker.mark(text, author)))];
    if let Some(reasoning) = &message.reasoning_content {
        pairs.push(("reasoning_content", Value::from(marker.mark(reasoning, Author::Foreign))));
    }
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().map(|call| to_template_value(call, &mut name));
        pairs.push(("tool_calls", Value::from(calls.collect::<Vec<_>>())));
    }
    if let Some(id) = &message.tool_call_id {
        pairs.push(("tool_call_id", Value::from(name(id))));
    }
    if let Some(speaker) = &message.name {
        pairs.push(("name", Value::from(name(speaker))));
    }
    Value::from_pairs(pairs)
}

fn check_arguments(request: &ChatRequest) -> Result<(), TemplateError> {
    if let Some(key) = request.kwargs.keys().find(|key| RESERVED.contains(&key.as_str())) {
        return Err(TemplateError::ReservedArgument(key.clone()));
    }
    let found = Json::Object(request.kwargs.clone()).to_string().len();
    if found > MAX_ARGUMENT_BYTES {
        return Err(TemplateError::ArgumentsTooLarge { found, limit: MAX_ARGUMENT_BYTES });
    }
    Ok(())
}

fn each_string(json: &Json, visit: &mut impl FnMut(&str)) {
    match json {
        Json::String(text) => visit(text),
        Json::Array(items) => items.iter().for_each(|item| each_string(item, visit)),
        Json::Object(map) => {
            for (key, value) in map {
                visit(key);
                each_string(value, visit);
            }
        }
        Json::Null | Json::Bool(_) | Json::Number(_) => {}
    }
}

fn describe(error: &minijinja::Error) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = cause {
        if let Some(Raised(message)) = e.downcast_ref::<Raised>() {
            return TemplateError::Raised(message.clone());
        }
        if e.downcast_ref::<minijinja::Error>().is_some_and(|e| e.kind() == ErrorKind::OutOfFuel) {
            return TemplateError::Fuel { fuel: FUEL };
        }
        cause = e.source();
    }
    TemplateError::Render(error.to_string())
}

/// Error texts may quote marked strings.
fn restore_error(error: TemplateError, marker: &Marker<'_>) -> TemplateError {
    match error {
        TemplateError::Raised(text) => TemplateError::Raised(marker.restore(&text)),
        TemplateError::Render(text) => TemplateError::Render(marker.restore(&text)),
        other => other,
    }
}
