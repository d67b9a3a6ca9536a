//! Time to start, and where it goes.

use super::{Bench, Found, WARM_UP, milliseconds};
use crate::bench::results::{Peer, Phases, Section, Unit};

/// Runs that tell their phases.
const PHASE_RUNS: usize = 5;
/// Most runs whose files are out of the page cache.
const COLD_RUNS: usize = 20;

impl Bench<'_> {
    pub(super) fn startup(&mut self, found: &mut Found) {
        let all = self.rounds(Section::Startup, (WARM_UP, self.runs), 2, |executor| {
            let run = executor.run(&["hello"])?;
            Ok([run.first_output, run.exit].map(milliseconds).into())
        });
        let names = [
            ("first_output", "exec to the first output", Unit::Milliseconds),
            ("exit", "exec to exit", Unit::Milliseconds),
        ];
        let split: Vec<(Vec<f64>, Vec<f64>)> =
            all.iter().map(|samples| phases_outside(&samples.of)).collect();
        self.measures(Section::Startup, &names, all, found);
        self.cold(found);
        for (executor, (before, after)) in self.peers.iter_mut().zip(split) {
            let Peer { name, missing, .. } = executor.peer();
            if missing.is_some() {
                continue;
            }
            let mut steps: Vec<(String, Vec<f64>)> = Vec::new();
            for run in 0..self.runs.min(PHASE_RUNS) {
                if (self.stop)() {
                    return;
                }
                (self.progress)(Section::Startup, &name, run, PHASE_RUNS);
                // One that fails has its row in the table above, or tells nothing.
                let Ok(Some(details)) = executor.details(&["hello"]) else { break };
                for (number, (step, length)) in details.phases.into_iter().enumerate() {
                    match steps.get_mut(number) {
                        Some((_, lengths)) => lengths.push(length),
                        None => steps.push((step, vec![length])),
                    }
                }
            }
            if steps.is_empty() && !before.is_empty() {
                steps =
                    vec![("exec to the first output".into(), before), ("first output to exit".into(), after)];
            }
            if !steps.is_empty() {
                found.phases.push(Phases { peer: name, steps });
            }
        }
    }

    /// The same with this peer's own files out of the page cache, and never anybody else's.
    fn cold(&mut self, found: &mut Found) {
        let evict = self.evict;
        let all = self.rounds(Section::Startup, (0, self.runs.min(COLD_RUNS)), 3, |executor| {
            let left = evict(&executor.files())?;
            let run = executor.run(&["hello"])?;
            Ok(vec![milliseconds(run.first_output), milliseconds(run.exit), left])
        });
        let names = [
            ("cold_first_output", "exec to the first output, cold", Unit::Milliseconds),
            ("cold_exit", "exec to exit, cold", Unit::Milliseconds),
            ("cold_left", "of its files, still in the page cache before that", Unit::Percent),
        ];
        self.measures(Section::Startup, &names, all, found);
    }
}

/// The two phases that show without asking: to the first output, and from there to the end.
fn phases_outside(samples: &[Vec<f64>]) -> (Vec<f64>, Vec<f64>) {
    match samples {
        [first, exit, ..] => {
            (first.clone(), exit.iter().zip(first).map(|(exit, first)| exit - first).collect())
        }
        _ => (Vec::new(), Vec::new()),
    }
}
