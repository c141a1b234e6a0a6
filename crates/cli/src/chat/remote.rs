//! Answers from another server: one that speaks Hybra's budget, or any OpenAI-compatible one.
//!
//! A server that names itself `hybra` gets the budget with the request. For others the client
//! applies it ([`super::client_budget`]): it renders the prompt with the server's own template
//! (llama.cpp's `/apply-template`, vLLM's `/tokenize`) and generates raw text, so that nothing but
//! the client decides where thinking ends. Where a server has neither, a budget is an error.

use super::client_budget::ClientBudget;
use super::http::{CallError, Events, Http, Waited};
use super::{Answer, Keys, Pressed};
use crate::options::GenerationArgs;
use crate::screen::{Screen, Summary};
use anyhow::{Result, bail};
use hybra_engine::{
    BudgetPlan, FinishCause, Phase, ReasoningBudget, ServerBudget, ThinkingParams, TokenRoom,
};
use hybra_tokenizer::{Content, Message};
use serde_json::{Value, json};
use std::time::Duration;

/// How often keys are looked at while the server says nothing.
const LISTEN: Duration = Duration::from_millis(30);

/// Another server.
pub(super) struct Remote {
    http: Http,
    pub(super) model: String,
    kind: Kind,
}

/// What a server can do.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Budgets of its own, by this project's contract.
    Hybra,
    /// Renders prompts as text, as llama.cpp's.
    Template,
    /// Renders prompts as tokens, as vLLM's.
    Tokens,
    /// Chat and nothing else.
    Plain,
}

/// A prompt as the server rendered it.
struct Rendered {
    text: String,
    /// In ids, where the server gives them.
    ids: Option<Vec<u64>>,
    /// Most tokens of prompt and output, where the server tells.
    max_model_len: Option<usize>,
}

/// A generated answer's state on the way.
struct Run<'a> {
    screen: &'a mut Screen,
    keys: Keys,
    usage: Value,
    length: bool,
    cancelled: bool,
    /// Every event said how many tokens it holds.
    exact: bool,
}

impl Remote {
    /// Finds out what the server is and can do.
    pub(super) fn open(url: &str, key: Option<String>, model: Option<String>) -> Result<Self> {
        let http = Http::new(url, key)?;
        let models = http.get("/v1/models")?;
        let listed = models["data"].as_array().cloned().unwrap_or_default();
        let found = |name: &String| listed.iter().find(|m| m["id"] == json!(name));
        let entry = model.as_ref().map_or(listed.first(), found);
        let Some(name) = model.clone().or_else(|| Some(entry?["id"].as_str()?.to_owned())) else {
            bail!("{}: it lists no model; name one with --model-name", http.root());
        };
        let hybra = entry.is_some_and(|m| m["owned_by"] == "hybra");
        let kind = if hybra { Kind::Hybra } else { probe(&http, &name)? };
        Ok(Self { http, model: name, kind })
    }

    /// What the client found, in words.
    pub(super) fn about(&self) -> String {
        let kind = match self.kind {
            Kind::Hybra => "budgets are the server's own",
            Kind::Template | Kind::Tokens => "no budget of its own: this client cuts the thinking",
            Kind::Plain => "no way to apply a thinking budget",
        };
        format!("{} at {} ({kind})", self.model, self.http.root())
    }

    /// One answer.
    pub(super) fn answer(
        &self,
        messages: &[Message],
        thinking: &ThinkingParams,
        options: &GenerationArgs,
        screen: &mut Screen,
        keys: Keys,
    ) -> Result<Answer> {
        thinking.validate(options.sampling.max_tokens)?;
        if thinking.min_thinking_tokens > 0 && self.kind != Kind::Hybra {
            bail!("--min-thinking-tokens: only a Hybra server can hold a model to it");
        }
        let usage = Value::Null;
        let run = Run { screen, keys, usage, length: false, cancelled: false, exact: true };
        match self.kind {
            Kind::Hybra => self.own_budget(messages, thinking, options, run),
            Kind::Plain => self.no_budget(messages, thinking, options, run),
            Kind::Template | Kind::Tokens => self.cut_here(messages, thinking, options, run),
        }
    }

    /// The budget goes with the request.
    fn own_budget(
        &self,
        messages: &[Message],
        thinking: &ThinkingParams,
        options: &GenerationArgs,
        mut run: Run,
    ) -> Result<Answer> {
        let mut body = self.chat_body(messages, options);
        options.thinking.write(thinking, &mut body);
        body["return_progress"] = json!(true);
        body["reasoning_control"] = json!(true);
        let events = self.http.stream("/v1/chat/completions", body)?;
        let (mut answer, mut id, mut budget) = (String::new(), Value::Null, None);
        let mut thought = 0;
        while let Some(pressed) = run.next(&events, |event, screen| {
            id = event["id"].clone();
            let progress = &event["prompt_progress"];
            if let (Some(done), Some(total)) =
                (progress["processed"].as_u64(), progress["total"].as_u64())
            {
                screen.prefill(done as usize, total as usize);
            }
            for choice in event["choices"].as_array().into_iter().flatten() {
                chat_delta(&choice["delta"], &mut answer, screen);
                if choice["delta"]["reasoning_content"].is_string() {
                    thought += 1;
                    screen.title(thought, thinking.budget);
                }
                let report = &choice["reasoning_budget"];
                budget = budget.or(serde_json::from_value::<ReasoningBudget>(report.clone()).ok());
            }
        })? {
            if pressed == Pressed::AnswerNow {
                let body = json!({ "id": id, "action": "reasoning_end" });
                // A section that has just ended needs no end.
                let _ = self.http.post("/v1/chat/completions/control", &body);
            }
        }
        let reasoning = run.reasoning_tokens();
        run.answer(answer, budget, reasoning)
    }

    /// A server of which nothing is known.
    fn no_budget(
        &self,
        messages: &[Message],
        thinking: &ThinkingParams,
        options: &GenerationArgs,
        mut run: Run,
    ) -> Result<Answer> {
        let limit = thinking.resolve(ServerBudget::default());
        if limit.budget.is_some() && !limit.off {
            bail!(
                "{}: a thinking budget needs /apply-template (llama.cpp) or /tokenize (vLLM), and \
                 this server has neither",
                self.http.root()
            );
        }
        let mut body = self.chat_body(messages, options);
        if let Some(on) = thinking.enabled.or(limit.off.then_some(false)) {
            body["chat_template_kwargs"] = json!({ "enable_thinking": on });
        }
        let events = self.http.stream("/v1/chat/completions", body)?;
        let mut answer = String::new();
        while run
            .next(&events, |event, screen| {
                for choice in event["choices"].as_array().into_iter().flatten() {
                    chat_delta(&choice["delta"], &mut answer, screen);
                }
            })?
            .is_some()
        {}
        let reasoning = run.reasoning_tokens();
        run.answer(answer, None, reasoning)
    }

    /// Raw text, split and cut here.
    fn cut_here(
        &self,
        messages: &[Message],
        thinking: &ThinkingParams,
        options: &GenerationArgs,
        mut run: Run,
    ) -> Result<Answer> {
        let resolved = thinking.resolve(ServerBudget::default());
        let on = thinking.enabled.or(resolved.off.then_some(false));
        let prompt = self.render(messages, on)?;
        let max_tokens = options.sampling.max_tokens;
        let message = options.thinking.thinking_budget_message.as_deref().unwrap_or("");
        let room = max_tokens.map(|_| TokenRoom {
            max_tokens,
            context: u32::MAX,
            answer_reserve: thinking.answer_token_reserve,
            // The server's tokens are not known; each has at least a byte.
            insertion_len: 16 + message.len() as u32,
        });
        let mut budget = ClientBudget::new(&prompt.text, BudgetPlan::new(resolved, room), message)?;
        loop {
            if budget.cuts() {
                budget.cut(&mut |phase, text| run.screen.text(phase, text));
                run.screen.flush()?;
            }
            let left = max_tokens.map(|max| max.saturating_sub(budget.sampled() as u32));
            if left == Some(0) {
                run.length = true;
                break;
            }
            let body = self.raw_body(&prompt, &budget.text, options, left)?;
            let events = self.http.stream("/v1/completions", body)?;
            run.raw(&events, &mut budget)?;
            if !budget.cuts() || run.cancelled {
                break;
            }
        }
        let cause = if run.length { FinishCause::MaxTokens } else { FinishCause::Eos };
        let sampled = budget.sampled();
        let show = &mut |phase: Phase, text: &str| run.screen.text(phase, text);
        let (reply, report) = budget.finish(cause, show);
        // The usage of a stream that was dropped never came: what was counted holds.
        run.usage = json!({ "completion_tokens": sampled });
        run.answer(format!("{}{}", reply.answer, reply.tool), Some(report), report.used)
    }

    fn chat_body(&self, messages: &[Message], options: &GenerationArgs) -> Value {
        let mut body = json!({
            "model": self.model,
            "messages": wire(messages),
            "stream_options": { "include_usage": true },
        });
        options.sampling.write(&mut body);
        body
    }

    fn raw_body(
        &self,
        rendered: &Rendered,
        text: &[u8],
        options: &GenerationArgs,
        max_tokens: Option<u32>,
    ) -> Result<Value> {
        let text = String::from_utf8_lossy(text);
        let prompt = match (&rendered.ids, text.is_empty()) {
            (Some(ids), true) => json!(ids),
            (Some(ids), false) => {
                let body = json!({
                    "model": self.model, "prompt": text, "add_special_tokens": false
                });
                let more = self.http.post("/tokenize", &body).map_err(CallError::into_error)?;
                let more = more["tokens"].as_array().cloned().unwrap_or_default();
                json!(ids.iter().map(|&id| json!(id)).chain(more).collect::<Vec<_>>())
            }
            (None, _) => json!(format!("{}{text}", rendered.text)),
        };
        let mut body = json!({
            "model": self.model,
            "prompt": prompt,
            "logprobs": 1,
            "stream_options": { "include_usage": true },
        });
        options.sampling.write(&mut body);
        // vLLM's default for raw text is a handful of tokens, and more than fit are refused; that
        // of llama.cpp is no limit.
        let num_prompt = body["prompt"].as_array().map(Vec::len);
        let room = rendered.max_model_len.zip(num_prompt).map(|(max, num)| max.saturating_sub(num));
        let room = room.map(|room| u32::try_from(room.max(1)).unwrap_or(u32::MAX));
        if let Some(most) = max_tokens.into_iter().chain(room).min() {
            body["max_tokens"] = json!(most);
        }
        Ok(body)
    }

    /// The prompt of a conversation, by the server's own template.
    fn render(&self, messages: &[Message], thinking: Option<bool>) -> Result<Rendered> {
        let mut body = json!({ "messages": wire(messages) });
        if let Some(on) = thinking {
            body["chat_template_kwargs"] = json!({ "enable_thinking": on });
        }
        render(&self.http, &self.model, self.kind, body).map_err(CallError::into_error)
    }
}

/// Which way of rendering a server has.
fn probe(http: &Http, model: &str) -> Result<Kind> {
    for kind in [Kind::Template, Kind::Tokens] {
        let body = json!({ "messages": [{ "role": "user", "content": "hello" }] });
        match render(http, model, kind, body) {
            Ok(_) => return Ok(kind),
            Err(CallError::Unknown) => {}
            Err(CallError::Failed(error)) => {
                eprintln!("note: {error:#}");
            }
        }
    }
    Ok(Kind::Plain)
}

fn render(http: &Http, model: &str, kind: Kind, mut body: Value) -> Result<Rendered, CallError> {
    let text =
        |value: &Value| value["prompt"].as_str().map(str::to_owned).ok_or(CallError::Unknown);
    if kind == Kind::Template {
        let text = text(&http.post("/apply-template", &body)?)?;
        return Ok(Rendered { text, ids: None, max_model_len: None });
    }
    body["model"] = json!(model);
    body["add_generation_prompt"] = json!(true);
    let reply = http.post("/tokenize", &body)?;
    let ids: Option<Vec<u64>> =
        reply["tokens"].as_array().map(|ids| ids.iter().filter_map(Value::as_u64).collect());
    let ids = ids.filter(|ids| !ids.is_empty()).ok_or(CallError::Unknown)?;
    let max_model_len = reply["max_model_len"].as_u64().map(|len| len as usize);
    let body = json!({ "model": model, "tokens": ids });
    let text = text(&http.post("/detokenize", &body)?)?;
    Ok(Rendered { text, ids: Some(ids), max_model_len })
}

/// Shows the text of a chat stream's delta; the thinking has two spellings.
fn chat_delta(delta: &Value, answer: &mut String, screen: &mut Screen) {
    let thought = delta["reasoning_content"].as_str().or(delta["reasoning"].as_str());
    if let Some(text) = thought {
        screen.text(Phase::Thinking, text);
    }
    if let Some(text) = delta["content"].as_str().filter(|text| !text.is_empty()) {
        screen.close_thinking();
        screen.text(Phase::Answer, text);
        answer.push_str(text);
    }
}

fn wire(messages: &[Message]) -> Value {
    let one = |message: &Message| {
        let content = match &message.content {
            Some(Content::Text(text)) => json!(text),
            Some(Content::Parts(parts)) => json!(parts),
            None => Value::Null,
        };
        json!({ "role": message.role, "content": content })
    };
    messages.iter().map(one).collect()
}

impl Run<'_> {
    /// Waits for one event or key; `None` when the stream is over or the reader stops it.
    fn next(
        &mut self,
        events: &Events,
        mut take: impl FnMut(&Value, &mut Screen),
    ) -> Result<Option<Pressed>> {
        let pressed = self.keys.pressed()?;
        if pressed == Pressed::Stop {
            self.cancelled = true;
            return Ok(None);
        }
        match events.wait(LISTEN)? {
            Waited::Over => return Ok(None),
            Waited::Nothing => {}
            Waited::Event(event) => {
                if event["usage"].is_object() {
                    self.usage = event["usage"].clone();
                }
                self.length |= event["choices"][0]["finish_reason"] == "length";
                take(&event, self.screen);
                self.screen.flush()?;
            }
        }
        Ok(Some(pressed))
    }

    /// Reads raw text until its end, or until it must be cut.
    fn raw(&mut self, events: &Events, budget: &mut ClientBudget) -> Result<()> {
        let mut exact = self.exact;
        while !budget.cuts()
            && let Some(pressed) = self.next(events, |event, screen| {
                let choice = &event["choices"][0];
                let text = choice["text"].as_str().unwrap_or_default();
                let counted = tokens_of(&choice["logprobs"]);
                if text.is_empty() && counted.unwrap_or(0) == 0 {
                    return;
                }
                exact &= counted.is_some();
                let tokens = counted.unwrap_or(1).max(1);
                budget.push(text, tokens, &mut |phase, text| screen.text(phase, text));
            })?
        {
            if pressed == Pressed::AnswerNow {
                budget.end_now();
            }
        }
        self.exact = exact;
        Ok(())
    }

    fn reasoning_tokens(&self) -> u32 {
        let details = &self.usage["completion_tokens_details"];
        details["reasoning_tokens"].as_u64().map_or(0, |n| n as u32)
    }

    fn answer(
        self,
        answer: String,
        budget: Option<ReasoningBudget>,
        reasoning_tokens: u32,
    ) -> Result<Answer> {
        self.screen.end()?;
        let count = |name: &str| self.usage[name].as_u64().unwrap_or(0) as usize;
        let summary = Summary {
            budget,
            reasoning_tokens,
            prompt_tokens: count("prompt_tokens"),
            completion_tokens: count("completion_tokens"),
            length: self.length,
            speculation: None,
            exact: self.exact,
        };
        Ok(Answer { text: answer, summary })
    }
}

/// Tokens of an event, from either shape of log-probabilities.
fn tokens_of(logprobs: &Value) -> Option<usize> {
    let list = logprobs["tokens"].as_array().or(logprobs["content"].as_array())?;
    Some(list.len())
}
