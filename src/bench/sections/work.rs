//! Loads that measure themselves, and how often a guest is left meanwhile.

use super::{Bench, Found};
use crate::bench::results::{Exits, Peer, Section, Unit};

impl Bench<'_> {
    /// Loads that measure themselves.
    pub(super) fn work(&mut self, found: &mut Found, section: Section, loads: &[(&str, &str)]) {
        for (load, label) in loads {
            let all = self.rounds(section, self.runs.min(10), 1, |executor| {
                let run = executor.run(&[load])?;
                let figure = run.output.trim().strip_prefix("ns=").and_then(|text| text.parse().ok());
                figure.map(|figure| vec![figure]).ok_or_else(|| format!("it says {:?}", run.output))
            });
            self.measures(section, [(*load, *label, Unit::Nanoseconds)], all, found);
        }
    }

    pub(super) fn exits(&mut self, found: &mut Found) {
        for executor in &mut self.peers {
            let Peer { name, missing, .. } = executor.peer();
            if missing.is_some() || (self.stop)() {
                continue;
            }
            // One that fails has its row among the figures.
            let Ok(Some(details)) = executor.details(&["cpu"]) else { continue };
            let seconds: f64 = details.phases.iter().map(|(_, milliseconds)| milliseconds / 1e3).sum();
            if seconds > 0.0 && !details.exits.is_empty() {
                let rate = |(reason, count): (String, f64)| (reason, count / seconds);
                found
                    .exits
                    .push(Exits { peer: name, per_second: details.exits.into_iter().map(rate).collect() });
            }
        }
    }
}
