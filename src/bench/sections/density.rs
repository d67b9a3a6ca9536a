//! How many instances fit.

use std::time::Instant;

use super::{Bench, Found, Samples, mebibytes, rest};
use crate::bench::executor::Instance;
use crate::bench::results::{Curve, Peer, Section, Unit};

impl Bench<'_> {
    pub(super) fn density(&mut self, found: &mut Found) {
        let (most, budget) = self.density;
        let mut all = Vec::new();
        for executor in &mut self.peers {
            let Peer { name, missing, .. } = executor.peer();
            if missing.is_some() {
                all.push(Samples { of: vec![Vec::new(); 4], failure: missing });
                continue;
            }
            // What others have given back is there after a moment.
            if let Err(why) = rest(self.times.rest, self.stop) {
                all.push(Samples { of: vec![Vec::new(); 4], failure: Some(why) });
                continue;
            }
            let free = (self.available)();
            let start = Instant::now();
            let mut instances: Vec<Box<dyn Instance>> = Vec::new();
            let mut points = Vec::new();
            let mut taken = 0;
            let mut failure = None;
            let end = loop {
                if (self.stop)() {
                    break "interrupted".to_owned();
                }
                if instances.len() == most {
                    break format!("{most} were enough");
                }
                if start.elapsed() >= budget {
                    break format!("{} s were over", budget.as_secs());
                }
                if taken >= free / 5 * 4 {
                    break "80 % of the available memory was taken".to_owned();
                }
                (self.progress)(Section::Density, &name, instances.len(), most);
                match executor.start(&["wait"]) {
                    Ok(instance) => instances.push(instance),
                    Err(why) => {
                        failure = Some(why.clone());
                        break why;
                    }
                }
                taken = free.saturating_sub((self.available)());
                points.push((start.elapsed().as_secs_f64(), mebibytes(taken as f64)));
            };
            let figures = match (points.last(), points.get(points.len() / 2)) {
                (Some(last), Some(half)) => {
                    let later = (points.len() - points.len() / 2 - 1).max(1) as f64;
                    let slope = (last.1 - half.1).max(0.0) / later;
                    // The last one shares with all others whatever there is to share.
                    let shared = instances.last().and_then(|instance| instance.usage().ok());
                    let shared = shared.map(|usage| mebibytes(usage.shared as f64));
                    let mut figures =
                        vec![vec![points.len() as f64], vec![points.len() as f64 / last.0], vec![slope]];
                    figures.push(shared.into_iter().collect());
                    figures
                }
                _ => vec![Vec::new(); 4],
            };
            all.push(Samples { of: figures, failure });
            found.curves.push(Curve { peer: name, points, end });
            // Every instance ends here, before the next peer begins.
            drop(instances);
        }
        let names = [
            ("count", "instances at once, when it was stopped", Unit::Instances),
            ("rate", "started per second, one after another", Unit::PerSecond),
            ("marginal", "fall of MemAvailable for one more, in the second half", Unit::Mebibytes),
            ("shared", "resident in the last one, and shared with others", Unit::Mebibytes),
        ];
        self.measures(Section::Density, &names, all, found);
    }
}
