//! `hybra chat`: a conversation in the terminal.
//!
//! While the model writes, the terminal is in raw mode so that single keys work: Enter answers
//! now, Ctrl-C stops the answer and not the program. Without a terminal on stdin, lines are read
//! from it and keys do nothing. Thinking of earlier turns is left to the template, which drops it.

use crate::options::{GenerationArgs, fresh_seed};
use crate::reply::Reply;
use crate::screen::Screen;
use crate::session::Session;
use anyhow::{Result, bail};
use crossterm::event::{self, Event as Input, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use crossterm::terminal::{disable_raw_mode, enable_raw_mode};
use hybra_chat::ChatInput;
use hybra_engine::{Event, FinishEvent, FinishReason, Phase, SequenceId, ThinkingParams};
use hybra_tokenizer::Message;
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

While it thinks: Enter answers now, Ctrl-C stops the answer. /help lists the commands.")]
pub(crate) struct Args {
    /// Directory, .gguf file or hub id [default: the model inside this binary]
    model: Option<String>,
    /// System message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    options: GenerationArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let thinking = args.options.thinking.params()?;
    let session = args.options.open(args.model.as_deref())?;
    let keys = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let system: Vec<_> = args.system.iter().map(|text| Message::new("system", text)).collect();
    let mut chat = Chat { session, messages: system.clone(), system, thinking, args, keys };
    eprintln!("{}: /help lists the commands", chat.session.model.name);
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

struct Chat {
    session: Session,
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
        let input = ChatInput { messages, ..ChatInput::default() };
        let prompt = self.session.model.chat_prompt(&input, &self.thinking)?;
        let defaults = &self.session.model.defaults;
        let sampling =
            self.args.options.sampling.params(defaults, prompt.is_thinking(), fresh_seed());
        let message = self.args.options.thinking.thinking_budget_message.as_deref();
        let request =
            self.session.model.request(prompt, sampling, self.thinking.clone(), message)?;
        let id = self.session.engine.add(request)?;
        let mut screen = Screen::new(false, false);
        let started = Instant::now();
        let raw = if self.keys { Some(RawMode::enter()?) } else { None };
        screen.raw = raw.is_some();
        let result = self.answer(id, &mut screen);
        drop(raw);
        screen.raw = false;
        let (reply, end) = result?;
        screen.summary(&end, started.elapsed());
        if end.reason == FinishReason::Failed {
            bail!("generation failed: {}", end.error.unwrap_or_default());
        }
        let answer = format!("{}{}", reply.text.answer, reply.text.tool);
        let mut messages = input.messages;
        messages.push(Message::new("assistant", &answer));
        self.messages = messages;
        Ok(())
    }

    /// Steps the engine and listens to the keys until the sequence ends.
    fn answer(&mut self, id: SequenceId, screen: &mut Screen) -> Result<(Reply, FinishEvent)> {
        let (mut reply, mut events) = (Reply::new(&self.args.options.sampling.stop), Vec::new());
        let mut thought = 0;
        loop {
            if self.keys {
                self.listen(id)?;
            }
            self.session.engine.step(&mut events);
            for event in events.drain(..) {
                match event {
                    Event::Prefill { done, total, .. } => screen.prefill(done, total),
                    Event::Token(token) => {
                        if token.step.phase == Phase::Thinking {
                            thought += 1;
                            screen.title(thought, self.thinking.budget);
                        }
                        let mut show = |phase, text: &str| screen.text(phase, text);
                        reply.token(&token, &self.session.model, &mut show);
                        screen.flush()?;
                    }
                    Event::Finish(end) => {
                        reply.text.finish(&end, &mut |phase, text| screen.text(phase, text));
                        screen.end()?;
                        return Ok((reply, end));
                    }
                }
            }
        }
    }

    /// Handles the keys that were pressed since the last step.
    fn listen(&mut self, id: SequenceId) -> Result<()> {
        while event::poll(Duration::ZERO)? {
            let Input::Key(KeyEvent { code, modifiers, kind: KeyEventKind::Press, .. }) =
                event::read()?
            else {
                continue;
            };
            match code {
                KeyCode::Enter => {
                    self.session.engine.end_thinking(id);
                }
                KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => {
                    self.session.engine.cancel(id);
                }
                _ => {}
            }
        }
        Ok(())
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
