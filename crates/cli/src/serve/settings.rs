//! Settings from the environment and from a file: each option of the command is a variable and a
//! key, without a list of them.
//!
//! Values of the file become the options' defaults, so that the command line parser itself gives
//! the precedence (command line, environment, file) and checks every value.

use anyhow::{Context, Result, bail};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use std::path::{Path, PathBuf};
use toml::{Table, Value};

const COMMAND: &str = "serve";

/// Options that say where settings come from, and are none.
const NO_SETTINGS: [&str; 3] = ["config", "print_config", "help"];

/// Parses the command line of this process.
pub(crate) fn matches(command: Command) -> Result<ArgMatches> {
    let command = command.mut_subcommand(COMMAND, |serve| {
        serve.mut_args(|arg| if is_setting(&arg) { with_variable(arg) } else { arg })
    });
    let matches = command.clone().get_matches();
    let serve = matches.subcommand_matches(COMMAND);
    let Some(path) = serve.and_then(|serve| serve.get_one::<PathBuf>("config")) else {
        return Ok(matches);
    };
    with_file(command, path)?.try_get_matches().map_err(|error| {
        // Without the file there was no error.
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        anyhow::anyhow!("{}: {}", path.display(), first.trim_start_matches("error: "))
    })
}

fn is_setting(arg: &Arg) -> bool {
    !NO_SETTINGS.contains(&arg.get_id().as_str())
}

fn with_variable(arg: Arg) -> Arg {
    let variable = format!("HYBRA_{}", arg.get_id().as_str().to_uppercase());
    arg.env(variable).hide_env(true)
}

/// The command with the settings of a file as defaults.
fn with_file(command: Command, path: &Path) -> Result<Command> {
    let name = path.display();
    let table = read(path)?;
    let serve = command.find_subcommand(COMMAND).context("the command exists")?;
    let mut settings = Vec::new();
    for (key, value) in table {
        let own = |arg: &&Arg| is_setting(arg) && key_of(arg) == key;
        let Some(arg) = serve.get_arguments().find(own) else {
            bail!("{name}: unknown key {key:?}; expected the name of an option of hybra serve");
        };
        let many = matches!(arg.get_action(), ArgAction::Append);
        let values = values(&value, many).with_context(|| format!("{name}: {key}"))?;
        settings.push((arg.get_id().clone(), values));
    }
    Ok(command.mut_subcommand(COMMAND, |serve| {
        settings
            .into_iter()
            .fold(serve, |serve, (id, values)| serve.mut_arg(id, |arg| arg.default_values(values)))
    }))
}

fn read(path: &Path) -> Result<Table> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    text.parse().with_context(|| path.display().to_string())
}

/// As it is written on the command line, without the dashes.
fn key_of(arg: &Arg) -> String {
    arg.get_long().map_or_else(|| arg.get_id().to_string(), ToOwned::to_owned)
}

fn values(value: &Value, many: bool) -> Result<Vec<String>> {
    match value {
        Value::String(text) => Ok(vec![text.clone()]),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => Ok(vec![value.to_string()]),
        Value::Array(list) if many => {
            let lists = list.iter().map(|value| values(value, false));
            Ok(lists.collect::<Result<Vec<_>>>()?.concat())
        }
        other => bail!("expected a single value, found {}", other.type_str()),
    }
}

/// The settings in force as TOML, with their origins. Keys are not shown.
pub(super) fn print(command: &Command, matches: &ArgMatches) -> Result<()> {
    let serve = command.find_subcommand(COMMAND).context("the command exists")?;
    let file = matches.get_one::<PathBuf>("config").map(|path| read(path)).transpose()?;
    let file = file.unwrap_or_default();
    for arg in serve.get_arguments().filter(|arg| is_setting(arg)) {
        let (id, key) = (arg.get_id().as_str(), key_of(arg));
        let Some(values) = matches.get_raw(id) else { continue };
        let origin = match matches.value_source(id) {
            Some(ValueSource::CommandLine) => "command line",
            Some(ValueSource::EnvVariable) => "environment",
            _ if file.contains_key(&key) => "file",
            _ => "default",
        };
        let values: Vec<_> = values.map(|value| toml_value(&value.to_string_lossy())).collect();
        let text = match (id, arg.get_action()) {
            ("api_key", _) => format!("# {key}: {} not shown", values.len()),
            (_, ArgAction::Append) => format!("{key} = [{}]", values.join(", ")),
            _ => format!("{key} = {}", values.join(", ")),
        };
        println!("{text}  # {origin}");
    }
    Ok(())
}

fn toml_value(text: &str) -> String {
    let bare = text.parse::<i64>().is_ok() || text == "true" || text == "false";
    if bare { text.to_owned() } else { Value::String(text.to_owned()).to_string() }
}
