//! The report in a terminal: a bar for each row.

use std::fmt::Write;

use super::{Line, METHOD, Table, host, median, notes, number, remark, runs, sections, tables};
use crate::bench::results::{Results, Section, Stack};

/// Columns of the longest bar.
const BAR: usize = 24;

/// All of it, as text.
pub fn terminal(results: &Results) -> String {
    super::text(|text| write(text, results))
}

fn write(text: &mut String, results: &Results) -> std::fmt::Result {
    for note in notes(results) {
        writeln!(text, "{note}")?;
    }
    writeln!(
        text,
        "{}, {} runs of each; bothy {}, {}",
        results.image, results.runs, results.bothy, results.started
    )?;
    writeln!(text, "{}", host(results))?;
    let names = results.peers.iter().map(|peer| peer.name.len()).max().unwrap_or(0);
    for peer in &results.peers {
        let what = peer.missing.as_deref().unwrap_or(&peer.how);
        writeln!(text, "  {:names$}  {}  {what}", peer.name, peer.version)?;
    }
    for section in sections(results) {
        writeln!(text, "\n{}: {}", section.name(), section.claim())?;
        if let Some(remark) = remark(section) {
            writeln!(text, "{remark}")?;
        }
        for table in tables(results, section) {
            self::table(text, &table, names)?;
        }
        if section == Section::Startup {
            phases(text, results)?;
        }
        if section == Section::Memory && !results.stacks.is_empty() {
            writeln!(text, "\n  what the memory of an idle instance is for, MiB (Pss)")?;
            for Stack { peer, parts } in &results.stacks {
                let parts: Vec<String> =
                    parts.iter().map(|(name, mib)| format!("{name} {}", number(*mib))).collect();
                writeln!(text, "  {peer:names$}  {}", parts.join(", "))?;
            }
        }
        if section == Section::Cpu {
            for exits in &results.exits {
                writeln!(
                    text,
                    "\n  how often {} leaves its guest, a second: its start and the load",
                    exits.peer
                )?;
                list(text, exits.per_second.iter().map(|(reason, rate)| (reason.as_str(), *rate)))?;
            }
        }
        if section == Section::Density {
            for curve in &results.curves {
                writeln!(text, "  {:names$}  {} started; {}", curve.peer, curve.points.len(), curve.end)?;
            }
        }
        if section == Section::Isolation {
            facts(text, results)?;
        }
    }
    writeln!(text, "\n{METHOD}")
}

fn table(text: &mut String, table: &Table, names: usize) -> std::fmt::Result {
    let unit = table.symbol;
    let unit = if unit.is_empty() { String::new() } else { format!(", {unit}") };
    let spread = if table.few { "[range]" } else { "[95 %]" };
    writeln!(text, "\n  {}{unit}", table.label)?;
    writeln!(
        text,
        "  {:names$}  {:BAR$} {:>9}  {:<20} {:>8} {:>12}  bothy / this",
        "", "", "median", spread, "p95", "largest"
    )?;
    for line in &table.lines {
        let Some(summary) = &line.summary else {
            writeln!(text, "  {:names$}  {}", line.peer, line.failure.unwrap_or("not measured"))?;
            continue;
        };
        let row = format!(
            "  {:names$}  {:BAR$} {:>9}  {:<20} {:>8} {:>12}  {}",
            line.peer,
            bar(line),
            number(summary.median),
            line.spread(),
            line.p95(),
            line.tail(),
            line.versus()
        );
        writeln!(text, "{}", row.trim_end())?;
        if let Some(why) = line.failure {
            writeln!(text, "  {:names$}  after {} runs: {why}", "", summary.count)?;
        }
    }
    match table.note {
        Some(note) => writeln!(text, "  {note}"),
        None => Ok(()),
    }
}

/// Eighths of a column, so that small differences show.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share is between 0 and 1")]
fn bar(line: &Line) -> String {
    const PARTS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = ((line.share * (BAR * 8) as f64).round() as usize).max(1);
    "█".repeat(eighths / 8) + PARTS[eighths % 8]
}

fn phases(text: &mut String, results: &Results) -> std::fmt::Result {
    for phases in &results.phases {
        writeln!(text, "\n  where the time of {} goes, ms (medians of {} runs)", phases.peer, runs(phases))?;
        list(text, phases.steps.iter().map(|(name, samples)| (name.as_str(), median(samples))))?;
    }
    Ok(())
}

fn list<'a>(text: &mut String, lines: impl Iterator<Item = (&'a str, f64)> + Clone) -> std::fmt::Result {
    let width = lines.clone().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, figure) in lines {
        writeln!(text, "    {name:width$} {:>9}", number(figure))?;
    }
    Ok(())
}

fn facts(text: &mut String, results: &Results) -> std::fmt::Result {
    writeln!(text)?;
    for fact in &results.facts {
        writeln!(text, "  {}", fact.label)?;
        let names = results.peers.iter().map(|peer| peer.name.len()).max().unwrap_or(0);
        for (peer, value) in results.peers.iter().zip(&fact.values) {
            writeln!(text, "    {:names$}  {value}", peer.name)?;
        }
    }
    Ok(())
}
