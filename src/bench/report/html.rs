//! The report as one HTML page: nothing is fetched, it follows the reader's light or dark, and it
//! reads on a phone and in print.

use std::fmt::Write;

use super::{Line, METHOD, Table, host, median, notes, number, remark, runs, sections, tables};
use crate::bench::results::{Curve, Phases, Results, Section, Stack};
use crate::bench::stats::Summary;

const STYLE: &str = include_str!("report.css");
/// Colours of the style sheet, by the peer's place.
const COLOURS: usize = 7;

/// All of it, as text.
pub fn html(results: &Results) -> String {
    super::text(|text| write(text, results))
}

fn write(page: &mut String, results: &Results) -> std::fmt::Result {
    let title = format!("bothy bench: {}", escape(&results.image));
    write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<header>\n\
         <h1>Virtual machine or container?</h1>\n"
    )?;
    for note in notes(results) {
        writeln!(page, "<p class=\"note\">{}</p>", escape(&note))?;
    }
    writeln!(
        page,
        "<p><strong>{}</strong>, {} runs of each; bothy {}, {}</p>\n<p class=\"small\">{}</p>",
        escape(&results.image),
        results.runs,
        escape(&results.bothy),
        escape(&results.started),
        escape(&host(results))
    )?;
    writeln!(page, "<dl class=\"peers\">")?;
    for (number, peer) in results.peers.iter().enumerate() {
        let what =
            peer.missing.as_ref().map_or_else(|| peer.how.clone(), |why| format!("not measured: {why}"));
        writeln!(
            page,
            "<dt><i class=\"{}\"></i>{} <span class=\"small\">{}</span></dt><dd>{}</dd>",
            colour(number),
            escape(&peer.name),
            escape(&peer.version),
            escape(&what)
        )?;
    }
    writeln!(page, "</dl>\n</header>")?;
    for section in sections(results) {
        writeln!(
            page,
            "<section>\n<h2>{}</h2>\n<blockquote>{}</blockquote>",
            section.name(),
            section.claim()
        )?;
        if let Some(remark) = remark(section) {
            writeln!(page, "<p class=\"small\">{}</p>", escape(remark))?;
        }
        for table in tables(results, section) {
            self::table(page, &table)?;
        }
        match section {
            Section::Startup => {
                let longest = results.phases.iter().map(length).fold(0.0, f64::max);
                results.phases.iter().try_for_each(|phases| waterfall(page, phases, longest))?;
            }
            Section::Memory => stacks(page, results)?,
            Section::Cpu => exits(page, results)?,
            Section::Density => curves(page, results)?,
            Section::Isolation => facts(page, results)?,
            _ => {}
        }
        writeln!(page, "</section>")?;
    }
    writeln!(page, "<footer><p>{METHOD}</p></footer>\n</main>\n</body>\n</html>")
}

fn table(page: &mut String, table: &Table) -> std::fmt::Result {
    let unit = table.symbol;
    let unit = if unit.is_empty() { String::new() } else { format!(", {unit}") };
    let spread = if table.few { "range" } else { "95 % interval" };
    let better = if table.unit.more_is_better() { "more is better" } else { "less is better" };
    writeln!(
        page,
        "<figure>\n<figcaption>{}{unit} <span class=\"small\">median, {spread}, largest; {better}</span></figcaption>",
        escape(table.label)
    )?;
    let most =
        table.lines.iter().filter_map(|line| line.summary.as_ref()).map(|own| own.max).fold(0.0, f64::max);
    for (place, line) in table.lines.iter().enumerate() {
        writeln!(page, "<div class=\"row\"><span class=\"name\">{}</span>", escape(line.peer))?;
        match &line.summary {
            Some(summary) => {
                strip(page, line, summary, most, place)?;
                write!(
                    page,
                    "<span class=\"figures\"><b>{}</b> <span class=\"small\">{}, {}</span>",
                    number(summary.median),
                    line.spread(),
                    line.tail()
                )?;
                match line.ratio {
                    Some(ratio) if ratio.is_tie() => write!(page, " <span class=\"versus\">tie</span>")?,
                    Some(ratio) => {
                        write!(
                            page,
                            " <span class=\"versus\">bothy: {} times this</span>",
                            number(ratio.value)
                        )?;
                    }
                    None => {}
                }
                if let Some(why) = line.failure {
                    write!(
                        page,
                        " <span class=\"small\">after {} runs: {}</span>",
                        summary.count,
                        escape(why)
                    )?;
                }
                writeln!(page, "</span></div>")?;
            }
            None => {
                let why = escape(line.failure.unwrap_or("no samples"));
                writeln!(page, "<span class=\"missing\">not measured: {why}</span></div>")?;
            }
        }
    }
    if let Some(note) = table.note {
        writeln!(page, "<p class=\"small\">{}</p>", escape(note))?;
    }
    writeln!(page, "</figure>")
}

/// A bar to the median, and a mark for each sample.
fn strip(page: &mut String, line: &Line, summary: &Summary, most: f64, place: usize) -> std::fmt::Result {
    let x = |value: f64| if most > 0.0 { value / most * 1000.0 } else { 0.0 };
    write!(
        page,
        "<svg class=\"strip {}\" viewBox=\"0 0 1000 20\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}: median {}\">\
         <rect x=\"0\" y=\"3\" width=\"{:.1}\" height=\"14\"/>",
        colour(place),
        escape(line.peer),
        number(summary.median),
        x(summary.median).max(1.0)
    )?;
    for sample in &line.samples {
        write!(page, "<path d=\"M{0:.1} 1V19\"/>", x(*sample))?;
    }
    writeln!(page, "</svg>")
}

/// All phases together, in milliseconds.
fn length(phases: &Phases) -> f64 {
    phases.steps.iter().map(|(_, samples)| median(samples)).sum()
}

/// The longest of all has the whole width.
fn waterfall(page: &mut String, phases: &Phases, longest: f64) -> std::fmt::Result {
    let medians: Vec<(&str, f64)> =
        phases.steps.iter().map(|(name, samples)| (name.as_str(), median(samples))).collect();
    if length(phases) <= 0.0 {
        return Ok(());
    }
    writeln!(
        page,
        "<figure>\n<figcaption>where the time of {} goes, ms <span class=\"small\">medians of {} runs</span></figcaption>",
        escape(&phases.peer),
        runs(phases)
    )?;
    let mut before = 0.0;
    for (name, median) in medians {
        writeln!(
            page,
            "<div class=\"row\"><span class=\"name\">{}</span>\
             <span class=\"track\"><i style=\"margin-left:{:.2}%;width:{:.2}%\"></i></span>\
             <span class=\"figures\"><b>{}</b></span></div>",
            escape(name),
            before / longest * 100.0,
            median / longest * 100.0,
            number(median)
        )?;
        before += median;
    }
    writeln!(page, "</figure>")
}

/// What an instance holds, in MiB.
fn whole(stack: &Stack) -> f64 {
    stack.parts.iter().map(|(_, mib)| mib).sum()
}

/// What memory is for: a bar of parts for each peer.
fn stacks(page: &mut String, results: &Results) -> std::fmt::Result {
    let most = results.stacks.iter().map(whole).fold(0.0, f64::max);
    if most <= 0.0 {
        return Ok(());
    }
    writeln!(
        page,
        "<figure>\n<figcaption>what the memory of an idle instance is for, MiB <span class=\"small\">Pss</span></figcaption>"
    )?;
    for stack in &results.stacks {
        write!(
            page,
            "<div class=\"row\"><span class=\"name\">{}</span><span class=\"track stack\">",
            escape(&stack.peer)
        )?;
        for (number, (_, mib)) in stack.parts.iter().enumerate() {
            write!(page, "<i class=\"{}\" style=\"width:{:.2}%\"></i>", colour(number), mib / most * 100.0)?;
        }
        write!(
            page,
            "</span><span class=\"figures\"><b>{}</b> <span class=\"small\">",
            number(whole(stack))
        )?;
        for (place, (name, mib)) in stack.parts.iter().enumerate() {
            write!(page, "<i class=\"{}\"></i>{} {} ", colour(place), escape(name), number(*mib))?;
        }
        writeln!(page, "</span></span></div>")?;
    }
    writeln!(page, "</figure>")
}

fn exits(page: &mut String, results: &Results) -> std::fmt::Result {
    for exits in &results.exits {
        writeln!(
            page,
            "<figure>\n<figcaption>how often {} leaves its guest, a second <span class=\"small\">its start and the load</span></figcaption>",
            escape(&exits.peer)
        )?;
        writeln!(page, "<table><tbody>")?;
        for (reason, rate) in &exits.per_second {
            writeln!(page, "<tr><th>{}</th><td>{}</td></tr>", escape(reason), number(*rate))?;
        }
        writeln!(page, "</tbody></table>\n</figure>")?;
    }
    Ok(())
}

/// Memory taken, by the number of instances.
fn curves(page: &mut String, results: &Results) -> std::fmt::Result {
    const WIDTH: f64 = 640.0;
    const HEIGHT: f64 = 320.0;
    const LEFT: f64 = 70.0;
    const BOTTOM: f64 = 40.0;
    let curves: Vec<(usize, &Curve)> = results
        .peers
        .iter()
        .enumerate()
        .filter_map(|(place, peer)| {
            Some((place, results.curves.iter().find(|curve| curve.peer == peer.name)?))
        })
        .filter(|(_, curve)| !curve.points.is_empty())
        .collect();
    let most = curves.iter().map(|(_, curve)| curve.points.len()).max().unwrap_or(0) as f64;
    let highest = curves.iter().flat_map(|(_, curve)| &curve.points).map(|point| point.1).fold(1.0, f64::max);
    if most < 1.0 {
        return Ok(());
    }
    writeln!(
        page,
        "<figure>\n<figcaption>fall of MemAvailable, MiB, by instances at once</figcaption>\n\
         <svg class=\"curve\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"memory by instances\">\
         <path class=\"axis\" d=\"M{LEFT} 10V{1}H{0}\"/>\
         <text x=\"{2}\" y=\"24\" text-anchor=\"end\">{3}</text><text x=\"{2}\" y=\"{1}\" text-anchor=\"end\">0</text>\
         <text x=\"{0}\" y=\"{4}\" text-anchor=\"end\">{most}</text>",
        WIDTH - 10.0,
        HEIGHT - BOTTOM,
        LEFT - 8.0,
        number(highest),
        HEIGHT - 14.0
    )?;
    for (place, curve) in &curves {
        let mut path = String::new();
        for (count, (_, mib)) in curve.points.iter().enumerate() {
            let x = LEFT + (count + 1) as f64 / most * (WIDTH - LEFT - 10.0);
            let y = HEIGHT - BOTTOM - mib / highest * (HEIGHT - BOTTOM - 10.0);
            write!(path, "{}{x:.1} {y:.1}", if count == 0 { 'M' } else { 'L' })?;
        }
        write!(page, "<path class=\"line {}\" d=\"{path}\"/>", colour(*place))?;
    }
    writeln!(page, "</svg>\n<ul class=\"legend\">")?;
    for (place, curve) in &curves {
        writeln!(
            page,
            "<li><i class=\"{}\"></i>{}: {} started; {}</li>",
            colour(*place),
            escape(&curve.peer),
            curve.points.len(),
            escape(&curve.end)
        )?;
    }
    writeln!(page, "</ul>\n</figure>")
}

fn facts(page: &mut String, results: &Results) -> std::fmt::Result {
    writeln!(page, "<div class=\"scroll\"><table>\n<thead><tr><th></th>")?;
    for peer in &results.peers {
        writeln!(page, "<th>{}</th>", escape(&peer.name))?;
    }
    writeln!(page, "</tr></thead>\n<tbody>")?;
    for fact in &results.facts {
        write!(page, "<tr><th>{}</th>", escape(&fact.label))?;
        for value in &fact.values {
            write!(page, "<td>{}</td>", escape(value))?;
        }
        writeln!(page, "</tr>")?;
    }
    writeln!(page, "</tbody></table></div>")
}

fn colour(place: usize) -> String {
    format!("p{}", place % COLOURS)
}

/// Text that is no markup.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}
