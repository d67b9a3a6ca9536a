//! The report as Markdown, for a README or an issue.

use std::fmt::Write;

use super::{METHOD, Table, host, median, notes, number, remark, sections, tables};
use crate::bench::results::{Results, Section};

/// All of it, as text.
pub fn markdown(results: &Results) -> String {
    super::text(|text| write(text, results))
}

fn write(text: &mut String, results: &Results) -> std::fmt::Result {
    writeln!(text, "# bothy bench: {}\n", cell(&results.image))?;
    for note in notes(results) {
        writeln!(text, "**{note}**\n")?;
    }
    writeln!(
        text,
        "{} runs of each, bothy {}, {}. {}.\n",
        results.runs,
        results.bothy,
        results.started,
        cell(&host(results))
    )?;
    row(text, ["peer", "version", "how it runs the load"].map(String::from))?;
    writeln!(text, "|---|---|---|")?;
    for peer in &results.peers {
        let how =
            peer.missing.as_ref().map_or_else(|| peer.how.clone(), |why| format!("not measured: {why}"));
        row(text, [peer.name.clone(), peer.version.clone(), how])?;
    }
    for section in sections(results) {
        writeln!(text, "\n## {}\n\n> {}", section.name(), section.claim())?;
        if let Some(remark) = remark(section) {
            writeln!(text, "\n{}", cell(remark))?;
        }
        for table in tables(results, section) {
            self::table(text, &table)?;
        }
        match section {
            Section::Startup => phases(text, results)?,
            Section::Memory => stacks(text, results)?,
            Section::Cpu => exits(text, results)?,
            Section::Isolation => facts(text, results)?,
            _ => {}
        }
    }
    writeln!(text, "\n{METHOD}")
}

fn table(text: &mut String, table: &Table) -> std::fmt::Result {
    let unit = table.symbol;
    let unit = if unit.is_empty() { String::new() } else { format!(" ({unit})") };
    let spread = if table.few { "range" } else { "95 % interval" };
    writeln!(text, "\n| {}{unit} | median | {spread} | p95 | largest | bothy / this |", cell(table.label))?;
    writeln!(text, "|---|--:|--:|--:|--:|--:|")?;
    for line in &table.lines {
        let name = line.peer.to_owned();
        match (&line.summary, line.failure) {
            (Some(summary), failure) => {
                let name = failure
                    .map_or(name.clone(), |why| format!("{name} (after {} runs: {why})", summary.count));
                let median = number(summary.median);
                row(text, [name, median, line.spread(), line.p95(), line.tail(), line.versus()])?;
            }
            (None, why) => {
                let why = format!("not measured: {}", why.unwrap_or("no samples"));
                row(text, [name, why, String::new(), String::new(), String::new(), String::new()])?;
            }
        }
    }
    match table.note {
        Some(note) => writeln!(text, "\n{}", cell(note)),
        None => Ok(()),
    }
}

fn phases(text: &mut String, results: &Results) -> std::fmt::Result {
    for phases in &results.phases {
        writeln!(text, "\n| where the time of {} goes | ms |\n|---|--:|", cell(&phases.peer))?;
        for (name, samples) in &phases.steps {
            row(text, [name.clone(), number(median(samples))])?;
        }
    }
    Ok(())
}

fn stacks(text: &mut String, results: &Results) -> std::fmt::Result {
    if results.stacks.is_empty() {
        return Ok(());
    }
    writeln!(text, "\n| an idle instance | part of its memory | MiB (Pss) |\n|---|---|--:|")?;
    for stack in &results.stacks {
        for (name, mib) in &stack.parts {
            row(text, [stack.peer.clone(), name.clone(), number(*mib)])?;
        }
    }
    Ok(())
}

fn exits(text: &mut String, results: &Results) -> std::fmt::Result {
    for exits in &results.exits {
        writeln!(text, "\n| how often {} leaves its guest | a second |\n|---|--:|", cell(&exits.peer))?;
        for (reason, rate) in &exits.per_second {
            row(text, [reason.clone(), number(*rate)])?;
        }
    }
    Ok(())
}

fn facts(text: &mut String, results: &Results) -> std::fmt::Result {
    writeln!(text)?;
    row(text, std::iter::once(String::new()).chain(results.peers.iter().map(|peer| peer.name.clone())))?;
    writeln!(text, "|---|{}", "---|".repeat(results.peers.len()))?;
    for fact in &results.facts {
        row(text, std::iter::once(fact.label.clone()).chain(fact.values.iter().cloned()))?;
    }
    Ok(())
}

fn row(text: &mut String, cells: impl IntoIterator<Item = String>) -> std::fmt::Result {
    for one in cells {
        write!(text, "| {} ", cell(&one))?;
    }
    writeln!(text, "|")
}

/// Text that ends no cell and begins no markup.
fn cell(text: &str) -> String {
    let mut cell = String::new();
    for c in text.chars() {
        match c {
            '|' | '*' | '_' | '`' | '<' | '>' | '[' | ']' | '\\' | '#' => cell.extend(['\\', c]),
            c if c.is_control() => cell.push(' '),
            c => cell.push(c),
        }
    }
    cell
}
