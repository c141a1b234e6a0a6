//! `hybra generate`: one answer, streamed or as one OpenAI object.

use crate::options::{GenerationArgs, fresh_seed, read_text};
use crate::reply::Reply;
use crate::screen::{Screen, Summary};
use crate::session::Session;
use anyhow::{Context, Result, bail};
use hybra_chat::{ChatInput, ChatModel, Prompt};
use hybra_engine::{Event, FinishEvent, FinishReason, ThinkingParams};
use hybra_tokenizer::Message;
use serde_json::Value;
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Answer one prompt
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hybra generate --prompt 'c=b-7;b=0;d=c*9;d?'
  hybra generate --prompt 'c=b-7;b=0;d=c*9;d?' --thinking-budget 8
  hybra generate ./nano2-9b --prompt 'Prove that 2 is prime.' --thinking-budget 512 --json
  hybra generate model.gguf --no-think --prompt-file question.txt --speculate
  hybra generate --messages chat.json --tools tools.json --json")]
pub(crate) struct Args {
    /// Directory, .gguf file or hub id [default: the model inside this binary]
    model: Option<String>,
    /// The user's message
    #[arg(short, long, value_name = "TEXT", group = "input")]
    prompt: Option<String>,
    /// Read the user's message from a file (- for standard input)
    #[arg(long, value_name = "FILE", group = "input")]
    prompt_file: Option<String>,
    /// Read a conversation: a JSON list of OpenAI messages (- for standard input)
    #[arg(long, value_name = "FILE", group = "input")]
    messages: Option<String>,
    /// System message before the prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "messages")]
    system: Option<String>,
    /// Tools: a JSON list of OpenAI tool definitions
    #[arg(long, value_name = "FILE")]
    tools: Option<String>,
    /// The prompt is plain text: no chat template
    #[arg(long, conflicts_with_all = ["messages", "system", "tools"])]
    raw: bool,
    /// Print one OpenAI chat.completion object
    #[arg(long)]
    json: bool,
    /// Print only the answer
    #[arg(long)]
    hide_thinking: bool,
    #[command(flatten)]
    options: GenerationArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let thinking = args.options.thinking.params()?;
    let input = Input::read(&args)?;
    let mut session = args.options.open(args.model.as_deref())?;
    let prompt = input.prompt(&session.model, &thinking)?;
    let seed = fresh_seed();
    let sampling =
        args.options.sampling.params(&session.model.defaults, prompt.is_thinking(), seed);
    let message = args.options.thinking.thinking_budget_message.as_deref();
    let request = session.model.request(prompt, sampling, thinking, message)?;
    session.engine.add(request)?;

    let mut screen = Screen::new(args.json, args.hide_thinking);
    let started = Instant::now();
    let (reply, end) = drive(&mut session, &args.options.sampling.stop, &mut screen)?;
    if end.reason == FinishReason::Failed {
        bail!("generation failed: {}", end.error.unwrap_or_default());
    }
    if args.json {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let object = reply.completion(&session.model.name, &end, fresh_seed(), now);
        println!("{}", serde_json::to_string_pretty(&object)?);
    } else {
        screen.summary(&Summary::from(&end), started.elapsed());
    }
    Ok(ExitCode::SUCCESS)
}

/// Steps the engine until its one sequence ends.
fn drive(
    session: &mut Session,
    stops: &[String],
    screen: &mut Screen,
) -> Result<(Reply, FinishEvent)> {
    let (mut reply, mut events) = (Reply::new(stops), Vec::new());
    loop {
        session.engine.step(&mut events);
        for event in events.drain(..) {
            match event {
                Event::Prefill { done, total, .. } => screen.prefill(done, total),
                Event::PromptLogprobs(_) => {}
                Event::Token(token) => {
                    let mut show = |phase, text: &str| screen.text(phase, text);
                    reply.token(&token, &session.model, &mut show);
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

/// What the user gave.
enum Input {
    Raw(String),
    Chat { messages: Vec<Message>, tools: Vec<Value> },
}

impl Input {
    fn read(args: &Args) -> Result<Self> {
        let tools = match &args.tools {
            Some(path) => serde_json::from_str(&read_text(path)?)
                .with_context(|| format!("{path}: expected a JSON list of tool definitions"))?,
            None => Vec::new(),
        };
        if let Some(path) = &args.messages {
            let messages: Vec<Message> = serde_json::from_str(&read_text(path)?)
                .with_context(|| format!("{path}: expected a JSON list of messages"))?;
            return Ok(Self::Chat { messages, tools });
        }
        let text = match (&args.prompt, &args.prompt_file) {
            (Some(text), _) => text.clone(),
            (None, Some(path)) => read_text(path)?,
            (None, None) => {
                bail!("no prompt: give --prompt TEXT, --prompt-file FILE or --messages FILE")
            }
        };
        if args.raw {
            return Ok(Self::Raw(text));
        }
        let system = args.system.iter().map(|text| Message::new("system", text));
        let messages = system.chain([Message::new("user", &text)]).collect();
        Ok(Self::Chat { messages, tools })
    }

    fn prompt(self, model: &ChatModel, thinking: &ThinkingParams) -> Result<Prompt> {
        Ok(match self {
            Self::Raw(text) => model.raw_prompt(&text)?,
            Self::Chat { messages, tools } => {
                let input = ChatInput { messages, tools, ..ChatInput::default() };
                model.chat_prompt(&input, thinking)?
            }
        })
    }
}
