//! `hybra chat`: a conversation in the terminal.
//!
//! The model runs here ([`local`]) or on a server ([`remote`]).
//!
//! While the model writes, the terminal is in raw mode so that single keys work: Enter answers
//! now, Ctrl-C stops the answer and not the program. Without a terminal on stdin, lines are read
//! from it and keys do nothing. Thinking of earlier turns is left to the template, which drops it.

mod client_budget;
mod http;
mod local;
mod remote;

use crate::options::GenerationArgs;
use crate::screen::{Screen, Summary};
use anyhow::Result;
use crossterm::event::{self, Event as Input, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use crossterm::terminal::{disable_raw_mode, enable_raw_mode};
use hybra_engine::ThinkingParams;
use hybra_tokenizer::Message;
use local::Local;
use remote::Remote;
use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const HELP: &str = "\
/budget N   think at most N tokens (0: not at all, -1: no limit); /budget shows it
/think      think before answering        /no_think   answer at once
/reset      forget the conversation       /exit       leave (also Ctrl-D)
while it thinks: Enter answers now, Ctrl-C stops the answer";

/// Talk to a model in the terminal
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hybra chat
  hybra chat ./nano2-9b --thinking-budget 512
  hybra chat model.gguf --system 'Be brief.' --no-think
  hybra chat --url http://localhost:8000/v1 --thinking-budget 512
  HYBRA_API_KEY=… hybra chat --url https://example.com/v1 --model-name NAME

With --url the model runs on that server. One without a thinking budget of its own (llama.cpp,
vLLM) gets it from this side: the text is cut where Hybra would cut it, and goes on from there.

While it thinks: Enter answers now, Ctrl-C stops the answer. /help lists the commands.")]
pub(crate) struct Args {
    /// Directory, .gguf file or hub id [default: the model inside this binary]
    model: Option<String>,
    /// Talk to this OpenAI-compatible server instead
    #[arg(long, value_name = "URL")]
    #[arg(conflicts_with_all = ["model", "context", "kv_dtype", "state_dtype", "speculate",
        "threads", "arithmetic", "weight_cache", "logprobs"])]
    url: Option<String>,
    /// Key for the server [default: $HYBRA_API_KEY, else $OPENAI_API_KEY]
    #[arg(long, value_name = "KEY", requires = "url")]
    api_key: Option<String>,
    /// The server's model [default: the first that it lists]
    #[arg(long, value_name = "NAME", requires = "url")]
    model_name: Option<String>,
    /// System message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    options: GenerationArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let thinking = args.options.thinking.params()?;
    let backend = match &args.url {
        Some(url) => {
            let key = args.api_key.clone().or_else(key_of_environment);
            Backend::Remote(Remote::open(url, key, args.model_name.clone())?)
        }
        None => {
            Backend::Local(Box::new(Local { session: args.options.open(args.model.as_deref())? }))
        }
    };
    let keys = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let system: Vec<_> = args.system.iter().map(|text| Message::new("system", text)).collect();
    let mut chat = Chat { backend, messages: system.clone(), system, thinking, args, keys };
    eprintln!("{}: /help lists the commands", chat.backend.about());
    let stdin = std::io::stdin();
    loop {
        if keys {
            print!("> ");
            std::io::stdout().flush()?;
        }
        let mut line = String::new();
        if stdin.lock().read_line(&mut line)? == 0 {
            return Ok(ExitCode::SUCCESS);
        }
        match line.trim() {
            "" => {}
            "/exit" | "/quit" => return Ok(ExitCode::SUCCESS),
            command if command.starts_with('/') => chat.command(command),
            text => {
                if let Err(error) = chat.turn(text) {
                    eprintln!("error: {error:#}");
                }
            }
        }
    }
}

fn key_of_environment() -> Option<String> {
    let names = ["HYBRA_API_KEY", "OPENAI_API_KEY"];
    names.iter().find_map(|name| std::env::var(name).ok().filter(|key| !key.is_empty()))
}

/// Where the model runs.
enum Backend {
    Local(Box<Local>),
    Remote(Remote),
}

impl Backend {
    fn about(&self) -> String {
        match self {
            Self::Local(local) => local.session.model.name.clone(),
            Self::Remote(remote) => remote.about(),
        }
    }
}

/// A finished answer.
struct Answer {
    text: String,
    summary: Summary,
}

/// The keyboard, if there is one.
#[derive(Clone, Copy)]
struct Keys(bool);

/// What a key asks for.
#[derive(Clone, Copy, PartialEq)]
enum Pressed {
    Nothing,
    AnswerNow,
    Stop,
}

struct Chat {
    backend: Backend,
    messages: Vec<Message>,
    system: Vec<Message>,
    thinking: ThinkingParams,
    args: Args,
    keys: bool,
}

impl Chat {
    fn command(&mut self, line: &str) {
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        match (command, rest.trim()) {
            ("/help", _) => eprintln!("{HELP}"),
            ("/reset", _) => {
                self.messages = self.system.clone();
                eprintln!("the conversation is forgotten");
            }
            ("/think", _) => self.switch(true),
            ("/no_think", _) => self.switch(false),
            ("/budget", "") => match self.thinking.budget {
                Some(n) if n >= 0 => eprintln!("thinking budget: {n} tokens"),
                _ => eprintln!("thinking budget: none of its own"),
            },
            ("/budget", n) => self.budget(n),
            _ => eprintln!("unknown command {command}; /help lists them"),
        }
    }

    fn switch(&mut self, on: bool) {
        self.thinking.enabled = Some(on);
        // A budget and a switch that contradict it cannot stand together: the later word holds.
        if !on || self.thinking.budget == Some(0) {
            self.thinking.budget = None;
        }
        self.thinking.effort = None;
        eprintln!("thinking {}", if on { "on" } else { "off" });
    }

    fn budget(&mut self, text: &str) {
        match text.parse::<i64>() {
            Ok(n) if (-1..=i64::from(u32::MAX)).contains(&n) => {
                self.thinking.budget = Some(n);
                self.thinking.effort = None;
                self.thinking.enabled = if n == 0 { None } else { Some(true) };
                match n {
                    0 => eprintln!("thinking off"),
                    -1 => eprintln!("thinking without a limit of its own"),
                    n => eprintln!("thinking at most {n} tokens"),
                }
            }
            _ => eprintln!("/budget expects a number of tokens, 0 or -1, found {text:?}"),
        }
    }

    /// One user message and its answer; a failed turn leaves the conversation as it was.
    fn turn(&mut self, text: &str) -> Result<()> {
        let mut messages = self.messages.clone();
        messages.push(Message::new("user", text));
        let mut screen = Screen::new(false, false);
        let started = Instant::now();
        let raw = if self.keys { Some(RawMode::enter()?) } else { None };
        screen.raw = raw.is_some();
        let (thinking, options, keys) = (&self.thinking, &self.args.options, Keys(self.keys));
        let result = match &mut self.backend {
            Backend::Local(local) => local.answer(&messages, thinking, options, &mut screen, keys),
            Backend::Remote(remote) => {
                remote.answer(&messages, thinking, options, &mut screen, keys)
            }
        };
        drop(raw);
        screen.raw = false;
        if result.is_err() {
            // The error gets a line of its own.
            screen.end()?;
        }
        let answer = result?;
        screen.summary(&answer.summary, started.elapsed());
        messages.push(Message::new("assistant", &answer.text));
        self.messages = messages;
        Ok(())
    }
}

impl Keys {
    /// The key that was pressed since the last look.
    fn pressed(self) -> Result<Pressed> {
        while self.0 && event::poll(Duration::ZERO)? {
            let Input::Key(KeyEvent { code, modifiers, kind: KeyEventKind::Press, .. }) =
                event::read()?
            else {
                continue;
            };
            match code {
                KeyCode::Enter => return Ok(Pressed::AnswerNow),
                KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => {
                    return Ok(Pressed::Stop);
                }
                _ => {}
            }
        }
        Ok(Pressed::Nothing)
    }
}

/// Raw mode for as long as it lives, also through an error or a panic.
struct RawMode;

impl RawMode {
    fn enter() -> Result<Self> {
        enable_raw_mode()?;
        Ok(Self)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Nothing better can be done with an error here: the terminal is gone.
        let _ = disable_raw_mode();
    }
}
