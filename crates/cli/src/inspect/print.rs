//! The report of `inspect` for people: at most 78 columns, aligned, the same for every terminal.

use super::Stored;
use crate::size;
use hybra_model::memory::Capacity;
use hybra_model::report::{Architecture, Fit, InspectReport, KindShare, Width};
use std::io::IsTerminal;

/// Letters in a group of the pattern, and groups in a line.
const GROUP: usize = 10;
const GROUPS: usize = 6;

/// Prints the whole report.
pub(super) fn report(report: &InspectReport, stored: Option<&Stored>, prefill_chunk: u32) {
    let style = Style { bold: std::io::stdout().is_terminal() };
    let Architecture { num_layers, num_mamba_layers, num_mlp_layers, num_attention_layers, .. } =
        report.architecture;
    let parameters_in_all = size::short_count(report.parameters);
    style.title(&report.name, &format!("{parameters_in_all} parameters"));
    println!(
        "  {num_layers} layers: {num_mamba_layers} Mamba-2 (M), {num_mlp_layers} MLP (-), \
         {num_attention_layers} attention (*)"
    );
    pattern(&report.architecture.pattern);
    widths(&report.architecture);
    style.heading("Parameters");
    parameters(report);
    match stored {
        Some(stored) => checkpoint(&style, stored),
        None => formats(&style, report),
    }
    sequence(&style, report);
    memory(&style, report, prefill_chunk);
    if let Some(fit) = &report.fit {
        budget(&style, report, fit);
    }
}

/// Headings are bold on a terminal.
struct Style {
    bold: bool,
}

impl Style {
    fn title(&self, name: &str, rest: &str) {
        println!("{}  {rest}", self.strong(name));
    }

    fn heading(&self, text: &str) {
        println!("\n{}", self.strong(text));
    }

    fn strong(&self, text: &str) -> String {
        if self.bold { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn pattern(pattern: &str) {
    println!();
    let letters: Vec<char> = pattern.chars().collect();
    for (line, letters) in letters.chunks(GROUP * GROUPS).enumerate() {
        let groups: Vec<String> = letters.chunks(GROUP).map(|g| g.iter().collect()).collect();
        println!("  {:>4}  {}", line * GROUP * GROUPS, groups.join(" "));
    }
    println!();
}

fn widths(a: &Architecture) {
    let with_commas = |width: &Width| match *width {
        Width::All(width) => size::count(width as u64),
        Width::Range { min, max } => {
            format!("{} to {}", size::count(min as u64), size::count(max as u64))
        }
    };
    let show = |width: &Option<Width>| width.as_ref().map_or_else(String::new, with_commas);
    row("hidden", &size::count(a.hidden_size as u64));
    let tied = if a.tie_word_embeddings { ", also the head" } else { "" };
    row("vocabulary", &format!("{}{tied}", size::count(a.vocab_size as u64)));
    row("context", &format!("{} tokens", size::count(a.max_position_embeddings as u64)));
    if a.num_mamba_layers > 0 {
        let heads = format!("{} heads of {}", show(&a.mamba_num_heads), show(&a.mamba_head_dim));
        let (groups, state) = (show(&a.n_groups), show(&a.ssm_state_size));
        let conv = show(&a.conv_kernel);
        row("Mamba-2", &format!("{heads}, state {state}, {groups} groups, convolution {conv}"));
    }
    if a.num_attention_layers > 0 {
        let (q, kv) = (show(&a.num_attention_heads), show(&a.num_key_value_heads));
        row("attention", &format!("{q} query and {kv} KV heads of {}", show(&a.head_dim)));
    }
    if a.num_mlp_layers > 0 {
        row("MLP", &format!("{} (squared ReLU)", show(&a.intermediate_size)));
    }
}

fn row(name: &str, text: &str) {
    println!("  {name:<12}{text}");
}

fn parameters(report: &InspectReport) {
    let name = |kind: &str| match kind {
        "mamba" => "Mamba-2",
        "mlp" => "MLP",
        "lm_head" => "head",
        "attention" => "attention",
        "embedding" => "embedding",
        _ => "norms",
    };
    for KindShare { kind, layers, parameters, share } in &report.parameters_by_kind {
        if *parameters == 0 {
            continue;
        }
        let layers = match layers {
            None => String::new(),
            Some(1) => "  1 layer".to_owned(),
            Some(n) => format!("{n:>3} layers"),
        };
        let (count, percent, bar) = (size::count(*parameters), 100.0 * share, bar(*share));
        let line = format!("  {:<12}{layers:<12}{count:>18}{percent:>7.1} %  {bar}", name(kind));
        println!("{}", line.trim_end());
    }
    println!("  {:<24}{:>18}", "total", size::count(report.parameters));
}

/// A share as a bar of at most 20 characters, in eighths.
fn bar(share: f64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (share * 160.0).round() as usize;
    "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
}

fn checkpoint(style: &Style, stored: &Stored) {
    style.heading("Checkpoint");
    println!("  {} ({})", stored.path, stored.format);
    for known in &stored.types {
        let bytes = size::bytes(known.bytes);
        println!("  {:<12}{:>4} tensors{bytes:>18}", known.dtype, known.tensors);
    }
    println!("  {:<24}{:>18}", "total", size::bytes(stored.bytes));
    for note in &stored.notes {
        println!("  note: {note}");
    }
}

fn formats(style: &Style, report: &InspectReport) {
    style.heading("Weights");
    for pair in report.formats.chunks(3) {
        let cell = |f: &hybra_model::report::FormatBytes| {
            format!("{:<7}{:>11}", f.format, size::bytes(f.stored_bytes))
        };
        let cells: Vec<String> = pair.iter().map(cell).collect();
        println!("  {}", cells.join("      "));
    }
}

fn sequence(style: &Style, report: &InspectReport) {
    let s = &report.sequence;
    style.heading("Each sequence");
    row("KV cache", &format!("{} per token ({})", size::bytes(s.kv_bytes_per_token), s.kv_dtype));
    if s.state_bytes > 0 {
        let (ssm, conv) = (size::bytes(s.ssm_state_bytes), size::bytes(s.conv_state_bytes));
        let state = size::bytes(s.state_bytes);
        row("state", &format!("{state} at any length (SSM {ssm}, convolution {conv})"));
    }
}

fn memory(style: &Style, report: &InspectReport, prefill_chunk: u32) {
    let m = &report.memory;
    let (batch, context) = (size::count(m.batch), size::count(m.context));
    let of = if m.batch == 1 { "a sequence" } else { &format!("{batch} sequences, each") };
    style.heading(&format!("Memory with {of} of {context} tokens"));
    let line = |name: &str, bytes: u64, note: &str| {
        println!("{}", format!("  {name:<24}{:>18}  {note}", size::bytes(bytes)).trim_end());
    };
    line("weights", m.weights, report.memory_format);
    line("KV cache", m.kv, "");
    line("state", m.state, "");
    let workspace = match prefill_chunk {
        0 => "left out".to_owned(),
        chunk => format!("buffers for {} tokens at a time", size::count(chunk.into())),
    };
    line("workspace", m.workspace, &workspace);
    line("total", m.total, "");
}

fn budget(style: &Style, report: &InspectReport, fit: &Fit) {
    let m = &report.memory;
    let gap = size::bytes(u64::try_from(fit.free.unsigned_abs()).unwrap_or(u64::MAX));
    let verdict = if fit.fits { format!("fits, {gap} free") } else { format!("{gap} too much") };
    style.heading(&format!("Budget {}: {verdict}", size::bytes(fit.budget)));
    let trained = report.architecture.max_position_embeddings as u64;
    let context = match fit.largest_context {
        Capacity::UpTo(n) if n > trained => {
            format!("{} tokens (trained for {})", size::count(n), size::count(trained))
        }
        Capacity::UpTo(n) => format!("{} tokens", size::count(n)),
        other => capacity(other),
    };
    println!("  {:<42}{context}", format!("longest context at batch {}", size::count(m.batch)));
    let batch = capacity(fit.largest_batch);
    println!("  {:<42}{batch}", format!("largest batch at context {}", size::count(m.context)));
}

fn capacity(capacity: Capacity) -> String {
    match capacity {
        Capacity::Nothing => "none fits".to_owned(),
        Capacity::UpTo(n) => size::count(n),
        Capacity::Unlimited => "no limit".to_owned(),
    }
}
