//! Reports of the same results: for a terminal, as Markdown, and as one HTML page. What they say is
//! worked out here, once; how it looks, in each.

mod html;
mod markdown;
mod terminal;
#[cfg(test)]
mod tests;

use super::results::{Measure, Phases, Results, Section, Unit};
use super::stats::{FEW, Interval, Ratio, Summary, median_of};

pub use html::html;
pub use markdown::markdown;
pub use terminal::terminal;

/// A measure, ready to be drawn.
struct Table<'a> {
    label: &'a str,
    unit: Unit,
    /// What its numbers are in here: microseconds where nanoseconds would have many digits.
    symbol: &'static str,
    note: Option<&'a str>,
    lines: Vec<Line<'a>>,
    /// Whether bothy's figures and those of some peer are few.
    few: bool,
}

/// What one peer has of it.
struct Line<'a> {
    peer: &'a str,
    samples: Vec<f64>,
    summary: Option<Summary>,
    failure: Option<&'a str>,
    /// Its median as a part of the largest.
    share: f64,
    /// bothy's figure divided by this one; not for bothy's own.
    ratio: Option<Ratio>,
}

impl<'a> Table<'a> {
    fn of(measure: &'a Measure) -> Self {
        let largest = measure.rows.iter().map(|row| median(&row.samples)).fold(0.0, f64::max);
        let (scale, symbol) = match measure.unit {
            Unit::Nanoseconds if largest >= 10_000.0 => (1e-3, "µs"),
            unit => (1.0, unit.symbol()),
        };
        let base = measure.rows.first();
        let lines = measure.rows.iter().enumerate().map(|(number, row)| {
            let samples: Vec<f64> = row.samples.iter().map(|sample| sample * scale).collect();
            Line {
                peer: &row.peer,
                summary: Summary::of(&samples),
                samples,
                failure: row.failure.as_deref(),
                share: if largest > 0.0 { median(&row.samples) / largest } else { 0.0 },
                ratio: base.filter(|_| number > 0).and_then(|base| Ratio::of(&base.samples, &row.samples)),
            }
        });
        let lines: Vec<Line> = lines.collect();
        let few = lines.iter().any(|line| line.summary.as_ref().is_some_and(|own| own.count < FEW));
        Self { label: &measure.label, unit: measure.unit, symbol, note: measure.note.as_deref(), lines, few }
    }
}

impl Line<'_> {
    /// `[from, to]` of the median, or of all figures if they are few.
    fn spread(&self) -> String {
        self.summary.as_ref().map_or_else(String::new, |own| spread(own.interval.unwrap_or(own.range())))
    }

    /// The 95th percentile, if there is one.
    fn p95(&self) -> String {
        self.summary.as_ref().and_then(|own| own.p95).map_or_else(|| "-".into(), number)
    }

    /// The 99th percentile, or the largest until there is one.
    fn tail(&self) -> String {
        self.summary.as_ref().map_or_else(String::new, |own| match own.p99 {
            Some(p99) => format!("{} (p99)", number(p99)),
            None => number(own.max),
        })
    }

    /// How bothy compares with it.
    fn versus(&self) -> String {
        match self.ratio {
            None => String::new(),
            Some(ratio) if ratio.is_tie() => "tie".into(),
            Some(ratio) => format!("{} {}", number(ratio.value), spread(ratio.interval)),
        }
    }
}

fn spread(interval: Interval) -> String {
    format!("[{}, {}]", number(interval.from), number(interval.to))
}

/// Three significant digits, and no fraction from 100 on or where there is none.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        whole if whole.fract() == 0.0 => 0,
        large if large >= 99.95 => 0,
        large if large >= 9.995 => 1,
        small if small >= 0.9995 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

/// Of samples; 0 if there are none.
fn median(samples: &[f64]) -> f64 {
    median_of(samples).unwrap_or(0.0)
}

/// How often a peer told its phases.
fn runs(phases: &Phases) -> usize {
    phases.steps.first().map_or(0, |(_, samples)| samples.len())
}

/// Text by a function that writes it.
fn text(write: impl FnOnce(&mut String) -> std::fmt::Result) -> String {
    let mut text = String::new();
    // Writing to a string doesn't fail.
    let _infallible = write(&mut text);
    text
}

/// The tables of a section.
fn tables(results: &Results, section: Section) -> impl Iterator<Item = Table<'_>> {
    results.measures.iter().filter(move |measure| measure.section == section).map(Table::of)
}

/// The sections that were measured, in order.
fn sections(results: &Results) -> Vec<Section> {
    Section::ALL
        .into_iter()
        .filter(|section| match section {
            Section::Isolation => !results.facts.is_empty(),
            section => results.measures.iter().any(|measure| measure.section == *section),
        })
        .collect()
}

/// What has to be known to read a section.
fn remark(section: Section) -> Option<&'static str> {
    match section {
        Section::Startup => Some(
            "Cold is with this instance's own files put out of the page cache, and nobody else's; what others use as well, or has no disk, stays there.",
        ),
        Section::Disk => Some(
            "Files are read again after the kernel above them has forgotten them. Below a virtual machine's disk is then this machine's page cache, below \
             a container's or a process's the disk. What is synced in a virtual machine here gets no further than that cache: the disk ends with the machine, so bothy's \
             guest mounts it without barriers.",
        ),
        Section::Net => Some(
            "The other side is a process of this machine. The plain process reaches it by the loopback device.",
        ),
        Section::Isolation => Some(
            "Each is watched from outside by strace, from a moment before it does 30 things that programs do until after the last one. A guest's system calls end in its own kernel, so this machine's sees few. But a single ioctl, KVM_RUN, stands for all that the guest's processor \
             does until it stops, and the code behind it is what a hostile guest has to attack.",
        ),
        _ => None,
    }
}

/// Lines that stand before everything else.
fn notes(results: &Results) -> Vec<String> {
    let mut notes = Vec::new();
    if results.host.emulated {
        notes.push(
            "This machine is emulated: only ratios count, and they differ from those of hardware.".into(),
        );
    }
    if results.interrupted {
        notes.push("Interrupted: what follows is what there was by then.".into());
    }
    if results.runs < FEW {
        notes.push(format!("Few runs ({} of each): medians and ranges only.", results.runs));
    }
    notes
}

/// The machine, in one line.
fn host(results: &Results) -> String {
    let host = &results.host;
    format!(
        "{}, {} processors, {} MiB; Linux {}, {}; virtualization: {}; governor: {}; load {:.2} before, {:.2} after",
        host.processor,
        host.processors,
        host.memory_mib,
        host.kernel,
        host.system,
        host.virtualization,
        host.governor,
        host.load[0],
        host.load[1]
    )
}

/// How the figures are to be read.
const METHOD: &str = "Runs are interleaved, one of each in turn; of warm starts, the first doesn't count. Medians have 95 % intervals by bootstrap, and a \
    difference inside the noise is called a tie. No sample is thrown away.";
