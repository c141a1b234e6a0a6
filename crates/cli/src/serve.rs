//! `hybra serve`: a model behind the OpenAI API.

use crate::cpu::{Arithmetic, ModelArgs};
use crate::options::StateArgs;
use crate::session::{Limits, Session};
use anyhow::{Context, Result};
use hybra_engine::{EngineConfig, EngineHandle};
use hybra_server::{AppState, ServerConfig};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;

/// Serve a model over the OpenAI API
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hybra serve
  hybra serve ./nano2-9b --host 0.0.0.0 --port 8000
  curl localhost:8000/v1/chat/completions -H 'content-type: application/json' \\
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"c=b-7;b=0;d=c*9;d?\"}]}'")]
pub(crate) struct Args {
    /// Directory, .gguf file or hub id [default: the model inside this binary]
    model: Option<String>,
    /// Address to listen at
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen at (0: a free one)
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    port: u16,
    /// Most tokens of prompt and output [default: the model's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    context: Option<u32>,
    #[command(flatten)]
    state: StateArgs,
    #[command(flatten)]
    cpu: ModelArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let limits = Limits {
        state: args.state,
        context: args.context.map(|c| c as usize),
        num_speculative_tokens: 0,
    };
    let load = args.cpu.load_options(Arithmetic::Fast);
    let config = EngineConfig::default();
    let session = Session::open(args.model.as_deref(), args.cpu.cpu()?, load, limits, config)?;
    let max_model_len = session.engine.max_model_len();
    let engine = EngineHandle::spawn(session.engine, 1024).context("the engine's thread")?;
    let config =
        ServerConfig { listen: SocketAddr::new(args.host, args.port), ..ServerConfig::default() };
    let state = Arc::new(AppState::new(session.model, engine, config, max_model_len));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.context("the server's runtime")?.block_on(async {
        let listen = state.config.listen;
        let listener = tokio::net::TcpListener::bind(listen).await;
        let listener = listener.with_context(|| format!("cannot listen at {listen}"))?;
        eprintln!("{}: http://{}", state.model.name, listener.local_addr()?);
        hybra_server::serve(listener, state).await?;
        Ok(ExitCode::SUCCESS)
    })
}
