//! Whether a compiled grammar describes any text at all.
//!
//! A rule is productive if all symbols of one of its alternatives are; terminals are. A start
//! symbol that is not (`start: "a" start`, an object that requires itself) would be written without
//! end. Linear in the grammar.

use llguidance::earley::{CGrammar, CSymIdx};
use std::collections::HashMap;

pub(crate) fn is_empty_language(grammar: &CGrammar) -> bool {
    // Rules with parameters have conditions that only a run decides.
    !grammar.parametric() && !productive(grammar)
}

fn productive(grammar: &CGrammar) -> bool {
    // Alternatives: what they make, and how many of their symbols are not yet known to be productive.
    let mut alternatives: Vec<(CSymIdx, usize)> = Vec::new();
    // In which alternatives a symbol stands, once for each time.
    let mut uses: HashMap<usize, Vec<usize>> = HashMap::new();
    let mut found: Vec<CSymIdx> = Vec::new();
    let mut seen = HashMap::from([(grammar.start().as_index(), false)]);
    let mut stack = vec![grammar.start()];
    while let Some(symbol) = stack.pop() {
        let data = grammar.sym_data(symbol);
        if data.is_terminal || data.lexeme.is_some() || data.is_nullable {
            found.push(symbol);
            continue;
        }
        for &rule in grammar.rules_of(symbol) {
            let (symbols, _, _) = grammar.rule_rhs(rule);
            for &part in symbols {
                uses.entry(part.as_index()).or_default().push(alternatives.len());
                if seen.insert(part.as_index(), false).is_none() {
                    stack.push(part);
                }
            }
            if symbols.is_empty() {
                found.push(symbol);
            }
            alternatives.push((symbol, symbols.len()));
        }
    }
    while let Some(symbol) = found.pop() {
        if seen.insert(symbol.as_index(), true) == Some(true) {
            continue;
        }
        for &at in uses.get(&symbol.as_index()).into_iter().flatten() {
            let (whole, missing) = &mut alternatives[at];
            *missing -= 1;
            if *missing == 0 {
                found.push(*whole);
            }
        }
    }
    seen[&grammar.start().as_index()]
}
