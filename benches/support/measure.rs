//! Interleaved runs of whole programs, and what can be said of them.

use std::fmt;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bothy::bench::stats::{FEW, Interval, Ratio, Summary};

use crate::target::print_target;

/// Longest that a run may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A way to start a guest.
pub(crate) struct Contender {
    name: &'static str,
    /// What its guest prints; a run without it didn't happen. A guest that prints nothing must
    /// succeed instead, and its first output is its return.
    says: &'static str,
    command: Box<dyn Fn() -> Command>,
}

impl Contender {
    pub(crate) fn new(
        name: &'static str,
        says: &'static str,
        command: impl Fn() -> Command + 'static,
    ) -> Self {
        Self { name, says, command: Box::new(command) }
    }
}

/// Times of one run, in milliseconds.
struct Run {
    first_line: f64,
    returned: f64,
    gone: f64,
}

/// A contender's results, in milliseconds, run by run.
pub(crate) struct Row {
    name: &'static str,
    /// Exec to the first byte of what the guest says.
    pub(crate) first_line: Vec<f64>,
    /// Exec to the return of the command.
    pub(crate) returned: Vec<f64>,
    /// Exec to the end of the last process that it left behind.
    gone: Vec<f64>,
}

/// The results of all contenders.
pub(crate) struct Table {
    title: String,
    runs: usize,
    rows: Vec<Row>,
}

impl Table {
    /// Runs every contender once to warm up, and then `runs` times in turn.
    pub(crate) fn run(title: &str, runs: usize, contenders: &[Contender]) -> Self {
        let mut results: Vec<Vec<Run>> = contenders.iter().map(|_| Vec::new()).collect();
        for round in 0..=runs {
            for (contender, results) in contenders.iter().zip(&mut results) {
                let run = run_once(contender);
                if round > 0 {
                    results.push(run);
                }
            }
        }
        let rows = contenders.iter().zip(results).map(|(contender, runs)| {
            let of = |value: fn(&Run) -> f64| runs.iter().map(value).collect();
            Row {
                name: contender.name,
                first_line: of(|run| run.first_line),
                returned: of(|run| run.returned),
                gone: of(|run| run.gone),
            }
        });
        Self { title: title.to_owned(), runs, rows: rows.collect() }
    }

    fn row(&self, name: &str) -> &Row {
        self.rows.iter().find(|row| row.name == name).expect("a contender of this table")
    }

    /// Prints whether one contender's figure stays within `goal` times another's.
    pub(crate) fn target(
        &self,
        what: &str,
        ours: &str,
        theirs: &str,
        figures: impl Fn(&Row) -> &[f64],
        goal: f64,
    ) {
        let ratio = Ratio::of(figures(self.row(ours)), figures(self.row(theirs))).expect("times of runs");
        let Interval { from, to } = ratio.interval;
        let figure = format!("{:.2} [{from:.2}, {to:.2}] times {theirs}", ratio.value);
        print_target(what, &figure, &format!("at most {goal}"), ratio.value <= goal);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spread = if self.runs < FEW { "few runs: the range" } else { "95 % interval" };
        writeln!(
            f,
            "\n{} ({} runs each, interleaved; milliseconds: median [{spread}], largest)",
            self.title, self.runs
        )?;
        writeln!(
            f,
            "{:<22}{:>36}{:>36}{:>36}{:>8}",
            "", "first output", "command returned", "last process gone", "ratio"
        )?;
        let summary = |figures: &[f64]| Summary::of(figures).expect("times of runs");
        let base = summary(&self.rows[0].returned).median;
        for row in &self.rows {
            let cell = |figures: &[f64]| {
                let summary = summary(figures);
                let Interval { from, to } = summary.interval.unwrap_or(summary.range());
                format!("{:.1} [{from:.1}, {to:.1}], {:.1}", summary.median, summary.max)
            };
            let ratio = summary(&row.returned).median / base;
            let (first, returned, gone) = (cell(&row.first_line), cell(&row.returned), cell(&row.gone));
            writeln!(f, "{:<22}{first:>36}{returned:>36}{gone:>36}{ratio:>8.2}", row.name)?;
        }
        Ok(())
    }
}

fn run_once(contender: &Contender) -> Run {
    let mut command = (contender.command)();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let ms = || start.elapsed().as_secs_f64() * 1e3;
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", contender.name));
    let mut stdout = child.stdout.take().expect("piped");
    let (mut output, mut chunk) = (Vec::new(), [0; 4096]);
    let mut first_line = None;
    let says = contender.says.as_bytes();
    // Whatever holds the pipe open is still at work: the guest's output ends before its program
    // returns.
    while let Ok(len @ 1..) = stdout.read(&mut chunk) {
        output.extend_from_slice(&chunk[..len]);
        let is_it = |window: &[u8]| window == says;
        if first_line.is_none() && !says.is_empty() && output.windows(says.len()).any(is_it) {
            first_line = Some(ms());
        }
        assert!(start.elapsed() < LIMIT, "{} takes too long", contender.name);
    }
    let status = child.wait().expect("our child");
    let returned = ms();
    if says.is_empty() && status.success() {
        first_line = Some(returned);
    }
    wait_for_orphans();
    let gone = ms();
    let first_line = first_line.unwrap_or_else(|| {
        let mut errors = String::new();
        if let Some(mut stderr) = child.stderr.take() {
            let _unreadable = stderr.read_to_string(&mut errors);
        }
        panic!(
            "{}: its guest didn't say {:?} but {:?}; {errors}",
            contender.name,
            contender.says,
            String::from_utf8_lossy(&output)
        )
    });
    Run { first_line, returned, gone }
}

/// Makes processes that lose their parent children of this one, so that their end can be waited
/// for.
pub(crate) fn adopt_orphans() {
    #[expect(unsafe_code, reason = "std has no prctl")]
    // SAFETY: this option takes a flag and touches no memory.
    let ret = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
    assert_eq!(ret, 0, "every Linux since 3.4 can do this");
}

pub(crate) fn wait_for_orphans() {
    loop {
        #[expect(unsafe_code, reason = "std waits only for children that it started")]
        // SAFETY: a null status pointer is allowed.
        let ret = unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) };
        if ret < 0 {
            return;
        }
    }
}
