//! Figures as Markdown tables and as a picture.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::judge::judge;
use crate::run::{Figures, median};

/// What to write from which figures.
#[derive(Debug, clap::Args)]
pub(crate) struct Plan {
    /// What `bench run --output` wrote
    figures: PathBuf,
    /// Replace the tables between the markers of this file
    #[arg(long)]
    markdown: PathBuf,
    /// Write the picture to this file
    #[arg(long)]
    svg: PathBuf,
}

/// A figure, its title, and its decimals.
const TABLES: [(&str, &str, usize); 8] = [
    ("mib_per_s", "Throughput, MiB/s (more is better)", 0),
    ("cpu_s_per_gib", "CPU of the relay, seconds per GiB (less is better)", 3),
    ("calls_per_mib", "System calls of the relay per MiB (less is better)", 1),
    ("p50_us", "Ping-pong of one byte, median round trip in microseconds", 1),
    ("p99_us", "Ping-pong of one byte, 99th percentile in microseconds", 1),
    ("per_s", "Connections per second: dial, one byte each way, close", 0),
    ("cpu_us_each", "CPU of the relay per connection, microseconds", 0),
    ("bytes_each", "Memory of the relay per idle connection, bytes", 0),
];

/// By row, then by contender.
type Table = BTreeMap<String, BTreeMap<String, Vec<f64>>>;

pub(crate) fn run(plan: &Plan) -> anyhow::Result<()> {
    let read = |path: &Path| std::fs::read(path).with_context(|| path.display().to_string());
    let figures: Figures = serde_json::from_slice(&read(&plan.figures)?)?;
    let document = String::from_utf8(read(&plan.markdown)?)?;
    let tables: String = TABLES
        .iter()
        .map(|&(figure, title, decimals)| {
            let table = table(&figures, figure);
            if table.is_empty() { String::new() } else { markdown(&table, title, decimals) }
        })
        .collect();
    let (promises, beyond) = judge(&figures);
    let document = between(&document, "figures", &tables)?;
    std::fs::write(&plan.markdown, between(&document, "promises", &promises)?)?;
    std::fs::write(&plan.svg, svg(&figures))?;
    anyhow::ensure!(beyond.is_empty(), "beyond the gate:\n{}", beyond.join("\n"));
    Ok(())
}

/// `document` with `text` between the markers called `name`.
fn between(document: &str, name: &str, text: &str) -> anyhow::Result<String> {
    let (begin, end) = (format!("<!-- {name}: begin -->"), format!("<!-- {name}: end -->"));
    let (before, rest) = document.split_once(&begin).with_context(|| format!("no marker {begin}"))?;
    let (_, after) = rest.split_once(&end).with_context(|| format!("no marker {end}"))?;
    Ok(format!("{before}{begin}\n{text}\n{end}{after}"))
}

fn table(figures: &Figures, figure: &str) -> Table {
    let rows = figures.0.iter();
    rows.filter_map(|(row, figures)| Some((row.clone(), figures.get(figure)?.clone()))).collect()
}

/// Names of contenders in a fixed order: the yardstick and ours first.
fn contenders(table: &Table) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let known = ["direct", "raw", "ours", "socat", "vsock-proxy"].map(str::to_owned);
    let others = table.values().flat_map(|row| row.keys().cloned());
    for name in known.into_iter().chain(others) {
        if !names.contains(&name) && table.values().any(|row| row.contains_key(&name)) {
            names.push(name);
        }
    }
    names
}

/// The median, and from least to most.
fn markdown(table: &Table, title: &str, decimals: usize) -> String {
    let names = contenders(table);
    let mut text = format!("\n### {title}\n\n| row | {} |\n|---|", names.join(" | "));
    text.push_str(&"--:|".repeat(names.len()));
    for (row, values) in table {
        let _ = write!(text, "\n| {row} |");
        for name in &names {
            let cell = values.get(name).map_or(String::new(), |values| {
                let least = values.iter().copied().fold(f64::INFINITY, f64::min);
                let most = values.iter().copied().fold(0.0, f64::max);
                let middle = median(values);
                if values.len() == 1 {
                    return format!("{middle:.decimals$}");
                }
                format!("**{middle:.decimals$}** ({least:.decimals$} to {most:.decimals$})")
            });
            let _ = write!(text, " {cell} |");
        }
    }
    text.push('\n');
    text
}

const WIDTH: f64 = 860.0;
const LABEL: f64 = 270.0;
const BAR: f64 = 14.0;

/// Three panels of bars: one stream's throughput, CPU and system calls.
fn svg(figures: &Figures) -> String {
    let mut body = String::new();
    let mut top = 10.0;
    for (figure, title, decimals) in &TABLES[..3] {
        let mut table = table(figures, figure);
        table.retain(|row, _| row.ends_with("-1"));
        let names: Vec<String> = contenders(&table).into_iter().filter(|name| name != "direct").collect();
        let medians = table.values().flat_map(|row| names.iter().filter_map(|name| row.get(name)));
        let most = medians.map(|values| median(values)).fold(0.0, f64::max);
        let _ = write!(body, "<text x=\"10\" y=\"{}\" class=\"title\">{title}</text>", top + 14.0);
        top += 26.0;
        for (row, values) in &table {
            for (index, name) in names.iter().enumerate() {
                let Some(value) = values.get(name).map(|values| median(values)) else { continue };
                let label = if index == 0 { row.as_str() } else { "" };
                bar(&mut body, top, label, name, value, value / most, *decimals);
                top += BAR;
            }
            top += 8.0;
        }
        top += 16.0;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {top}\" font-family=\"sans-serif\" \
         font-size=\"11\"><style>.title{{font-weight:bold;font-size:13px}}.ours{{fill:#c2410c}}\
         .other{{fill:#94a3b8}}</style><rect width=\"{WIDTH}\" height=\"{top}\" fill=\"white\"/>{body}</svg>\n"
    )
}

fn bar(body: &mut String, top: f64, label: &str, name: &str, value: f64, share: f64, decimals: usize) {
    let class = if name == "ours" { "ours" } else { "other" };
    let width = ((WIDTH - LABEL - 90.0) * share).max(1.0);
    let text = top + BAR - 4.0;
    let _ = write!(
        body,
        "<text x=\"10\" y=\"{text}\">{label}</text>\
         <text x=\"{}\" y=\"{text}\" text-anchor=\"end\">{name}</text>\
         <rect x=\"{LABEL}\" y=\"{}\" width=\"{width:.1}\" height=\"{}\" class=\"{class}\"/>\
         <text x=\"{:.1}\" y=\"{text}\">{value:.decimals$}</text>",
        LABEL - 6.0,
        top + 1.0,
        BAR - 2.0,
        LABEL + width + 5.0,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_shows_median_and_spread_and_leaves_gaps() {
        let mut table = Table::new();
        let values =
            BTreeMap::from([("ours".to_owned(), vec![3.0, 1.0, 2.0]), ("raw".to_owned(), vec![4.0])]);
        table.insert("a".to_owned(), values);
        table.insert("b".to_owned(), BTreeMap::from([("raw".to_owned(), vec![5.0])]));
        let text = markdown(&table, "T", 0);
        assert!(text.contains("| row | raw | ours |"), "{text}");
        assert!(text.contains("| a | 4 | **2** (1 to 3) |"), "{text}");
        assert!(text.contains("| b | 5 |  |"), "{text}");
    }
}
