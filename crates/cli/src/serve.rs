//! `hybra serve`: a model behind the OpenAI API.
//!
//! The server listens before the model is loaded and says so at `/health`. Exit status: 0 after a
//! signal, 1 where loading failed or the engine stopped, 128 + n after a second signal n.

mod args;
mod log;
mod settings;
mod stop;

pub(crate) use args::Args;
pub(crate) use settings::matches;

use crate::cpu::Arithmetic;
use crate::session::Session;
use anyhow::{Context, Result, anyhow, bail};
use args::LogFormat;
use clap::{ArgMatches, Command};
use hybra_engine::EngineHandle;
use hybra_server::{Front, tls};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// Runs the command. `command` and `matches` are what `args` came from.
pub(crate) fn run(args: Args, command: &Command, matches: &ArgMatches) -> Result<ExitCode> {
    if args.print_config {
        settings::print(command, matches)?;
        return Ok(ExitCode::SUCCESS);
    }
    log::init(&args.log);
    let front = Front::new(args.server()?)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.context("the server's runtime")?;
    let result = serve(&runtime, args, Arc::clone(&front));
    if let Some(traces) = &front.traces {
        traces.shutdown();
    }
    // A model that is still being loaded holds nobody up.
    runtime.shutdown_background();
    result.map(|()| ExitCode::SUCCESS)
}

fn serve(runtime: &Runtime, args: Args, front: Arc<Front>) -> Result<()> {
    let tls = front.config.tls.as_ref().map(tls::acceptor).transpose()?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    runtime.block_on(async {
        let stop = stop::signal()?;
        let listen = front.config.listen;
        let listener = TcpListener::bind(listen).await;
        let listener = listener.with_context(|| format!("cannot listen at {listen}"))?;
        let address = listener.local_addr()?;
        tracing::info!(%address, "listening");
        warn(&args, &front, address);
        let loading = tokio::task::spawn_blocking({
            let front = Arc::clone(&front);
            move || load(&args, &front, &format!("{scheme}://{address}"))
        });
        let failed = async {
            match loading.await {
                Ok(Ok(())) => std::future::pending().await,
                Ok(Err(error)) => error,
                Err(panic) => anyhow!(panic).context("loading the model"),
            }
        };
        tokio::select! {
            served = hybra_server::serve(listener, tls, Arc::clone(&front), stop) => Ok(served?),
            error = failed => Err(error),
        }
    })
}

fn load(args: &Args, front: &Front, url: &str) -> Result<()> {
    let load = args.cpu.load_options(Arithmetic::Fast);
    let (limits, config) = (args.limits(), args.engine.config());
    let session = Session::open(
        args.cpu.sized(args.model.as_deref())?.as_deref(),
        args.cpu.cpu()?,
        load,
        limits,
        config,
    )?;
    if let Some(error) = session.engine.cache_dir_error() {
        bail!("--cache-dir: it cannot be used: {error}");
    }
    let max_model_len = session.engine.max_model_len();
    let engine = EngineHandle::spawn(session.engine, args.max_queue());
    let (name, engine) = (session.model.name.clone(), engine.context("the engine's thread")?);
    front.open(session.model, engine, max_model_len);
    match args.log.log_format {
        LogFormat::Human => eprintln!("{name}: {url}"),
        LogFormat::Json => tracing::info!(name, url, "ready"),
    }
    Ok(())
}

/// What an operator should know.
fn warn(args: &Args, front: &Front, address: SocketAddr) {
    let cores = std::thread::available_parallelism().map_or(usize::MAX, usize::from);
    let threads = args.cpu.threads();
    if threads > cores {
        tracing::warn!(threads, cores, "more threads than cores make every step slower");
    }
    if front.config.api_keys.is_empty() && !address.ip().is_loopback() {
        tracing::warn!(%address, "everyone who reaches this address may ask: no API key is set");
    }
}
