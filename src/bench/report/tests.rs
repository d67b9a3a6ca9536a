use super::*;
use crate::bench::results::{Curve, Exits, Fact, Host, Peer, Row, Stack, VERSION};

/// bothy and three peers: one that is faster by half, one that differs by noise alone, one that
/// isn't there.
pub(crate) fn results(runs: usize) -> Results {
    let jitter = |place: usize| (0..runs).map(move |run| ((run * 7 + place * 3) % 10) as f64 / 10.0);
    let row = |peer: &str, place: usize, middle: f64| Row {
        peer: peer.into(),
        samples: jitter(place).map(|own| middle + own).collect(),
        failure: None,
    };
    let missing =
        Row { peer: "crun".into(), samples: Vec::new(), failure: Some("crun is not installed".into()) };
    let peer = |name: &str, missing: Option<&str>| Peer {
        name: name.into(),
        version: "1.0 <x>".into(),
        how: "runs | it".into(),
        missing: missing.map(Into::into),
    };
    Results {
        version: VERSION,
        bothy: "0.1.0".into(),
        started: "2026-01-01T00:00:00Z".into(),
        seconds: 12.5,
        interrupted: false,
        image: "an <image>".into(),
        runs,
        host: Host { emulated: true, processor: "A & B".into(), ..Host::default() },
        peers: vec![
            peer("bothy", None),
            peer("same", None),
            peer("runc", None),
            peer("crun", Some("crun is not installed")),
        ],
        measures: vec![Measure {
            section: Section::Startup,
            id: "startup.exit".into(),
            label: "exec to exit".into(),
            unit: Unit::Milliseconds,
            note: Some("mind <this>".into()),
            rows: vec![row("bothy", 0, 20.0), row("same", 0, 20.0), row("runc", 1, 10.0), missing],
        }],
        phases: vec![Phases {
            peer: "bothy".into(),
            steps: vec![("kernel".into(), vec![15.0, 16.0, 17.0]), ("rest".into(), vec![4.0, 4.0, 4.0])],
        }],
        exits: vec![Exits { peer: "bothy".into(), per_second: vec![("io_exits".into(), 12.5)] }],
        stacks: vec![Stack {
            peer: "bothy".into(),
            parts: vec![("guest's <kernel>".into(), 20.0), ("bothy".into(), 5.5)],
        }],
        curves: vec![Curve {
            peer: "runc".into(),
            points: vec![(0.1, 1.0), (0.2, 2.5)],
            end: "2 were enough".into(),
        }],
        facts: vec![Fact {
            label: "kernel".into(),
            values: ["6.12", "6.1", "6.1", "not seen"].map(Into::into).into(),
        }],
    }
}

#[test]
fn a_terminal_s_report_has_a_bar_per_row_and_calls_noise_a_tie() {
    let text = terminal(&results(20));
    let line = |name: &str| {
        text.lines().find(|line| line.trim_start().starts_with(name) && line.contains('█')).unwrap()
    };
    assert!(text.starts_with("This machine is emulated: only ratios count"), "{text}");
    assert!(line("same").ends_with("tie"), "{text}");
    let bars = |name: &str| line(name).chars().filter(|c| *c == '█').count();
    assert_eq!((bars("bothy"), bars("same")), (24, 24));
    assert!((11..=13).contains(&bars("runc")), "{text}");
    assert!(line("runc").contains("1.96 ["), "{text}");
    assert!(text.contains("crun   crun is not installed") && text.contains("  mind <this>\n"), "{text}");
    assert!(text.contains("[95 %]") && !text.contains("Few runs"), "{text}");
    assert!(text.contains("    kernel        16\n"), "{text}");
}

#[test]
fn few_runs_have_a_median_and_a_range() {
    let text = terminal(&results(5));
    assert!(text.contains("Few runs (5 of each)") && text.contains("[range]") && !text.contains("[95 %]"));
    let line = text.lines().find(|line| line.contains('█')).unwrap();
    assert!(line.contains("[20, 20.8]") && line.contains(" - "), "{line}");
}

#[test]
fn a_hundred_runs_have_a_99th_percentile() {
    assert!(terminal(&results(100)).contains("(p99)") && !terminal(&results(99)).contains("(p99)"));
}

#[test]
fn markdown_has_a_row_for_each_peer_and_no_text_breaks_a_table() {
    let text = markdown(&results(20));
    assert!(text.contains("| crun | not measured: crun is not installed |"), "{text}");
    assert!(
        text.contains("runs \\| it") && text.contains("1.0 \\<x\\>") && text.contains("mind \\<this\\>"),
        "{text}"
    );
    for table in text.split("\n\n").filter(|part| part.starts_with('|')) {
        let cells = |line: &str| line.replace("\\|", "").matches('|').count();
        let head = cells(table.lines().next().unwrap());
        assert!(table.lines().all(|line| cells(line) == head), "{table}");
    }
}

#[test]
fn a_page_fetches_nothing_and_its_text_is_escaped() {
    let page = html(&results(20));
    assert!(
        page.contains("an &lt;image&gt;") && page.contains("mind &lt;this&gt;") && page.contains("A &amp; B")
    );
    for fetching in ["http:", "https:", "src=", "href=", "url(", "@import", "<script"] {
        assert!(!page.contains(fetching), "{fetching}");
    }
    assert_eq!(page.matches("<div class=\"row\">").count(), 4 + 2, "a row per peer and per phase");
    assert_eq!(page.matches("<path d=\"M").count(), 60, "a mark for each sample");
    for tag in ["main", "section", "figure", "div", "svg", "table", "dl", "ul", "header"] {
        assert_eq!(
            page.matches(&format!("<{tag}")).count(),
            page.matches(&format!("</{tag}>")).count(),
            "{tag}"
        );
    }
}

#[test]
fn results_come_back_from_json_as_they_were() {
    let results = results(20);
    let text = serde_json::to_string(&results).unwrap();
    assert_eq!(serde_json::from_str::<Results>(&text).unwrap(), results);
    // Figures as clocks give them, and their intervals.
    let mut results = results;
    for (place, row) in results.measures[0].rows.iter_mut().enumerate() {
        row.samples.iter_mut().enumerate().for_each(|(run, own)| {
            *own = (*own * 1.000_123 + run as f64 / 7.0).sqrt() * 3.1 + place as f64 / 3.0;
        });
    }
    let again: Results = serde_json::from_str(&serde_json::to_string(&results).unwrap()).unwrap();
    assert_eq!(again, results);
    assert_eq!(terminal(&again), terminal(&results));
}

#[test]
fn many_nanoseconds_are_microseconds() {
    let mut results = results(20);
    results.measures[0].unit = Unit::Nanoseconds;
    assert!(terminal(&results).contains("exec to exit, ns\n"));
    results.measures[0].rows[2].samples.iter_mut().for_each(|own| *own *= 10_000.0);
    let text = terminal(&results);
    assert!(text.contains("exec to exit, µs\n") && text.contains(" 104 "), "{text}");
}

#[test]
fn numbers_have_three_digits() {
    for (value, text) in [
        (1234.5, "1234"),
        (99.96, "100"),
        (99.9, "99.9"),
        (9.996, "10.0"),
        (1.25, "1.25"),
        (1.0, "1"),
        (0.1234, "0.123"),
        (0.0, "0"),
    ] {
        assert_eq!(number(value), text);
    }
}
