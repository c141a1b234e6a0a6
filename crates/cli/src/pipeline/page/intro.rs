//! The page's first words, for readers who have not seen the project: what was made from what, how
//! far the run is, what a thinking budget is, where to look first.

use super::{Resolved, Section};
use crate::picture::escape;
use crate::pipeline::{State, state};
use crate::{size, source};
use anyhow::Result;
use hybra_model::memory::ParameterCount;
use std::fs;
use std::path::Path;

const BUDGET: &str = "Before it answers, such a model may write down its thoughts, in tokens (pieces of \
    words); a <b>thinking budget</b> is the most tokens of thought that it is allowed: \
    <code>off</code> asks for an answer without thoughts, <code>0</code> ends them as soon as they \
    begin, <code>inf</code> sets no limit; thinking less is faster and cheaper, and may cost accuracy.";

/// A paragraph or two.
pub(super) fn text(stages: &[Resolved], sections: &[Section]) -> Result<String> {
    Ok(format!(
        "<div class=\"intro\">\n<p>{} {}</p>\n<p>{BUDGET}</p>\n<p>{}</p>\n</div>\n",
        made(teacher(stages).as_ref(), student(stages).as_ref()),
        progress(stages)?,
        reading(sections)
    ))
}

/// A model of the run, as far as it is there.
struct Model {
    name: String,
    parameters: Option<u64>,
    /// Of its weights on disk.
    bytes: Option<u64>,
}

impl Model {
    fn of(path: &Path, stages: &[Resolved]) -> Self {
        let maker = stages.iter().find(|stage| stage.result == path);
        let file = || path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let text = path.to_string_lossy();
        // An adapter's shape is its base's, a hub's would be fetched: neither is worth it here.
        let here = path.exists() && !source::is_derived(&text);
        let described = here.then(|| source::describe(Some(&text)).ok()).flatten();
        Self {
            name: maker.map_or_else(file, |stage| stage.name.clone()),
            parameters: described.map(|it| ParameterCount::of(&it.config).total),
            bytes: weight_bytes(path),
        }
    }

    /// Its name, and how large it is.
    fn words(&self) -> String {
        let parameters = self.parameters.map(|n| format!("{} parameters", size::short_count(n)));
        let bytes = self.bytes.map(|n| format!("{} of weights", size::bytes(n)));
        let parts: Vec<String> = parameters.into_iter().chain(bytes).collect();
        let parts = if parts.is_empty() { "not there yet".to_owned() } else { parts.join(", ") };
        format!("<b>{}</b> ({parts})", escape(&self.name))
    }
}

/// Bytes of a model's files of weights; `None` without any.
fn weight_bytes(path: &Path) -> Option<u64> {
    let is_weights = |path: &Path| {
        path.extension().is_some_and(|ending| ending == "safetensors" || ending == "gguf")
    };
    if path.is_file() {
        return fs::metadata(path).ok().filter(|_| is_weights(path)).map(|file| file.len());
    }
    let files = fs::read_dir(path).ok()?.flatten().filter(|entry| is_weights(&entry.path()));
    let sizes: Vec<u64> = files.filter_map(|entry| Some(entry.metadata().ok()?.len())).collect();
    (!sizes.is_empty()).then(|| sizes.iter().sum())
}

/// What the first command that shrinks a model or learns from one takes as that model.
fn teacher(stages: &[Resolved]) -> Option<Model> {
    let named = |stage: &Resolved| {
        let word = match stage.command[0].as_str() {
            "search" | "importance" | "prune" => stage.command.get(1)?.as_str(),
            _ => stage.command.iter().find_map(|word| word.strip_prefix("distil.teacher="))?,
        };
        (!word.starts_with('-')).then(|| word.to_owned())
    };
    let path = stages.iter().find_map(named)?;
    Some(Model::of(Path::new(&path), stages))
}

/// The last model that the run makes.
fn student(stages: &[Resolved]) -> Option<Model> {
    let makes = |stage: &&Resolved| {
        let word = |at: usize| stage.command.get(at).map_or("", String::as_str);
        match word(0) {
            "train" => !["cache", "pairs", "traces"].contains(&word(1)),
            verb => ["prune", "search", "merge", "convert"].contains(&verb),
        }
    };
    let last = stages.iter().rev().find(makes)?;
    Some(Model::of(&last.result, stages))
}

fn made(teacher: Option<&Model>, student: Option<&Model>) -> String {
    let distinct = teacher.filter(|teacher| student.is_none_or(|it| it.name != teacher.name));
    match (distinct, student) {
        (Some(teacher), Some(student)) => {
            let share = match (teacher.bytes, student.bytes) {
                (Some(whole), Some(part)) => {
                    let percent = 100.0 * part as f64 / whole.max(1) as f64;
                    format!(", which takes {percent:.0} % of the teacher's bytes")
                }
                _ => String::new(),
            };
            format!(
                "This run makes a small language model, the student {}, out of a larger one, the \
                 teacher {}{share}.",
                student.words(),
                teacher.words()
            )
        }
        (_, Some(model)) => format!("This run makes the language model {}.", model.words()),
        (Some(model), None) => format!("This run measures the language model {}.", model.words()),
        (None, None) => "This run makes no model.".to_owned(),
    }
}

fn progress(stages: &[Resolved]) -> Result<String> {
    let states = stages.iter().map(state).collect::<Result<Vec<_>>>()?;
    let done = states.iter().filter(|&&state| state == State::Done).count();
    Ok(match (done, stages.len()) {
        (done, all) if done == all => format!("It took {all} steps, called stages; all are done."),
        (done, all) => format!("It takes {all} steps, called stages; done so far: {done}."),
    })
}

fn reading(sections: &[Section]) -> String {
    let link = |id: &str, words: &str| {
        let there = sections.iter().find(|section| section.id == id);
        there.map(|section| format!("<a href=\"#{id}\">{}</a> ({words})", section.title))
    };
    let parts = [
        ("accuracy", "how often the models are right"),
        ("savings", "how many tokens can be spared"),
        ("cost", "what a model takes to run"),
    ];
    let parts: Vec<String> = parts.iter().filter_map(|(id, words)| link(id, words)).collect();
    let first = "Look first at the graph below, where every box is a stage and every arrow leads to \
                 what was made with its result";
    if parts.is_empty() {
        return format!("{first}. Results appear below as stages end.");
    }
    format!("{first}. The results are under {}.", parts.join(", "))
}
