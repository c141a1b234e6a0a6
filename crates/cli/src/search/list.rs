//! `hybra search --list`: the shapes of a space that fit, with their bytes; from shapes alone.

use super::config::SearchConfig;
use crate::size;
use anyhow::{Result, bail};
use hybra_model::Config;
use hybra_model::memory::ParameterCount;
use serde_json::json;

/// Rows that people get to see.
const ROWS: usize = 40;

/// Prints the feasible shapes, the largest first.
pub(super) fn list(config: &SearchConfig, teacher: &Config, json: bool) -> Result<()> {
    let budget = config.budget.budget(teacher)?;
    let counts = &config.space.num_layers;
    if config.space.layer_order.is_none()
        && (counts.is_some() || config.space.attention_layers.is_some())
    {
        bail!(
            "[space]: the number of layers needs an order: name `layer_order`, or run the search, which \
             measures it"
        );
    }
    let targets = config.space.targets(teacher, &[])?;
    let shapes = targets.len();
    let mut feasible = budget.feasible(teacher, targets)?;
    feasible.sort_by_key(|(_, plan)| std::cmp::Reverse(plan.total));
    let whole = budget.plan(teacher);
    if json {
        let row = |(target, memory): &(_, _)| json!({ "target": target, "memory": memory });
        let rows: Vec<_> = feasible.iter().map(row).collect();
        let object = json!({
            "shapes": shapes, "budget": budget.bytes, "teacher": whole, "feasible": rows,
        });
        println!("{object:#}");
        return Ok(());
    }
    println!(
        "{} of {shapes} shapes fit {} at {} tokens, batch {} (the teacher takes {})\n",
        size::count(feasible.len() as u64),
        size::bytes(budget.bytes),
        size::count(budget.context),
        budget.batch,
        size::bytes(whole.total),
    );
    println!(
        "{:>6} {:>7} {:>7} {:>6} {:>5} {:>15} {:>16} {:>10}",
        "layers", "hidden", "ffn", "heads", "dim", "parameters", "bytes", ""
    );
    for (target, plan) in feasible.iter().take(ROWS) {
        let parameters = ParameterCount::of(&target.config(teacher)?).total;
        println!(
            "{:>6} {:>7} {:>7} {:>6} {:>5} {:>15} {:>16} {:>10}",
            target.layers.len(),
            target.hidden_size,
            target.intermediate_size,
            target.mamba_num_heads,
            target.mamba_head_dim,
            size::count(parameters),
            size::count(plan.total),
            size::bytes(plan.total),
        );
    }
    if feasible.len() > ROWS {
        println!("… {} more; --json has all", feasible.len() - ROWS);
    }
    Ok(())
}
