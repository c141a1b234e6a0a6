//! `hybra prune --nested`: one checkpoint that holds several students.

use super::shape::Widths;
use super::{Args, RepairArg, compensation, kept_files, write_cut};
use crate::source::Source;
use crate::{lineage, size};
use anyhow::{Context, Result, bail};
use hybra_compress::compensate::Compensation;
use hybra_compress::nested::{FILE, Nested, order, prefix};
use hybra_compress::prune::Teacher;
use hybra_compress::scores::{Method, Scores};
use hybra_compress::store::Importance;
use hybra_model::memory::ParameterCount;
use serde_json::{Map, json};
use std::collections::BTreeMap;
use std::path::Path;

/// What the checkpoint is made from.
pub(super) struct Parts<'a> {
    pub(super) source: &'a Source,
    pub(super) teacher: &'a Teacher<'a>,
    pub(super) ancestors: &'a [String],
    pub(super) importance: Option<&'a Importance>,
    pub(super) scores: (Method, Scores),
    pub(super) fix: Option<Compensation<'a>>,
}

/// Norms alone can be repaired: every size would need consumers of its own.
pub(super) fn repair<'a>(
    args: &Args,
    importance: Option<&'a Importance>,
) -> Result<Option<Compensation<'a>>> {
    match args.compensate.as_deref() {
        None => Ok(importance.map(|importance| Compensation {
            moments: &importance.moments,
            norms: true,
            ridge: None,
        })),
        Some(what) if what.contains(&RepairArg::Consumers) => {
            bail!("--compensate consumers: sizes of a nested checkpoint share their matrices")
        }
        Some(_) => compensation(args, importance),
    }
}

/// Writes the checkpoint of the sizes in a file.
pub(super) fn write(parts: &Parts, sizes: &Path, out: &Path, as_json: bool) -> Result<()> {
    let name = sizes.display();
    let text = std::fs::read_to_string(sizes).with_context(|| name.to_string())?;
    let shapes: BTreeMap<String, Widths> =
        toml::from_str(&text).with_context(|| name.to_string())?;
    if shapes.is_empty() {
        bail!("{name}: expected tables such as [small] with hidden_size = 112, found none");
    }
    let teacher = &parts.teacher.config;
    let whole = order(teacher, &parts.scores.1);
    let mut found = BTreeMap::new();
    for (key, widths) in shapes {
        let simple = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if key.starts_with('.') || key.is_empty() || !key.chars().all(simple) {
            bail!("{name}: [{key}]: expected a name of letters, digits, `-`, `_` and `.`");
        }
        let at = || format!("{name}: [{key}]");
        let shape = widths.target(teacher, parts.importance).with_context(at)?;
        let plan = prefix(&whole, teacher, &shape).with_context(at)?;
        let size = parts.teacher.size(&plan, shape, parts.fix.as_ref())?;
        found.insert(key, size);
    }
    let nested = Nested::new(found);
    let method = format!("{}, nested", parts.scores.0);
    let metrics = json!({ "method": method, "sizes": nested.sizes.keys().collect::<Vec<_>>() });
    let mut files = kept_files(parts.source)?;
    files.push((FILE, nested.to_json()));
    files.push(("lineage.json", lineage::text(parts.ancestors, "nest", metrics)));
    write_cut(parts.teacher, &whole, None, files, out)?;
    report(parts, &nested, out, as_json)
}

fn report(parts: &Parts, nested: &Nested, out: &Path, as_json: bool) -> Result<()> {
    let teacher = &parts.teacher.config;
    let whole = ParameterCount::of(teacher).total;
    let mut rows = Vec::new();
    for (name, size) in &nested.sizes {
        let config = size.shape.config(teacher)?;
        rows.push((name, ParameterCount::of(&config).total, config));
    }
    if as_json {
        let size = |(name, parameters, config): &(&String, u64, hybra_model::Config)| {
            let value = json!({ "parameters": parameters, "pattern": config.pattern(),
                "hidden_size": config.hidden_size });
            ((*name).clone(), value)
        };
        let sizes: Map<_, _> = rows.iter().map(size).collect();
        let path = out.display().to_string();
        let object = json!({ "checkpoint": path, "parameters": whole, "sizes": sizes });
        println!("{object:#}");
        return Ok(());
    }
    println!("{}", out.display());
    println!("  {:<12} {:>8}", "whole", size::count(whole));
    for (name, parameters, config) in rows {
        let share = 100.0 * parameters as f64 / whole as f64;
        let (hidden, pattern) = (config.hidden_size, config.pattern());
        println!(
            "  {name:<12} {:>8} ({share:.1} %)  hidden {hidden}, {pattern}",
            size::count(parameters)
        );
    }
    println!("Next: `hybra divergence TEACHER {}/SIZE`, `hybra chat --size SIZE`.", out.display());
    Ok(())
}
