//! What an idle instance costs, and what one keeps that took memory and freed it.

use std::time::{Duration, Instant};

use super::{Bench, Found, Samples, Times, mebibytes, rest};
use crate::bench::executor::{Executor, Instance};
use crate::bench::results::{Peer, Section, Stack, Unit};

/// How many run at once to see what one more takes.
const AT_ONCE: usize = 8;
/// A look at what an instance still has is no such look when it is so late.
const LATE: Duration = Duration::from_secs(1);
/// What an instance takes and gives back, in MiB.
const HELD_MIB: &str = "256";

/// What the stacks call a guest's memory that its kernel has for itself; that its programs and
/// their files have; and that nobody there has any more.
const GUEST_KERNEL: &str = "guest's kernel";
const GUEST_PROGRAMS: &str = "guest's programs";
const GUEST_FREE: &str = "freed by the guest";

/// The parts of an idle instance's memory, in MiB. That of a guest is divided by what the load
/// there says.
fn parts(instance: &mut dyn Instance) -> Result<Vec<(String, f64)>, String> {
    let found = instance.parts()?;
    let mut all = Vec::new();
    if let Some((size, held)) = found.guest {
        let mut said = |key: &str| -> Result<f64, String> {
            let kib = instance.hear(key)?;
            kib.parse::<f64>().map(|kib| kib / 1024.0).map_err(|_| format!("it says {kib:?}"))
        };
        let (size, held) = (mebibytes(size as f64), mebibytes(held as f64));
        let programs = said("programs_kib=")?.min(held);
        // Of what is free there, this machine never gave what it doesn't hold.
        let freed = (said("free_kib=")? - (size - held)).clamp(0.0, held - programs);
        all.push((GUEST_KERNEL.to_owned(), held - programs - freed));
        all.push((GUEST_PROGRAMS.to_owned(), programs));
        all.push((GUEST_FREE.to_owned(), freed));
    }
    all.extend(found.processes.into_iter().map(|(name, bytes)| (name, mebibytes(bytes as f64))));
    Ok(all)
}

impl Bench<'_> {
    pub(super) fn memory(&mut self, found: &mut Found) {
        let (stop, times) = (self.stop, self.times);
        let available = self.available;
        // Each of these takes long, and moves little. One instance is looked at at a time, since
        // others share memory with it.
        let rounds = self.runs.div_ceil(8).min(3);
        let mut stacks: Vec<Stack> = Vec::new();
        let all = self.rounds(Section::Memory, (0, rounds), 5, |executor| {
            let mut first = executor.start(&["wait"])?;
            rest(times.rest, stop)?;
            let before = first.usage()?;
            rest(times.watch, stop)?;
            let usage = first.usage()?;
            let stack = Stack { peer: executor.peer().name, parts: parts(first.as_mut())? };
            stacks.retain(|other| other.peer != stack.peer);
            stacks.push(stack);
            let busy = (usage.cpu.saturating_sub(before.cpu)).as_secs_f64() / times.watch.as_secs_f64();
            let free = available();
            let more = (0..AT_ONCE).map(|_| executor.start(&["wait"])).collect::<Result<Vec<_>, _>>()?;
            rest(times.rest, stop)?;
            let fall = free.saturating_sub(available()) as f64 / more.len() as f64;
            Ok(vec![
                mebibytes(usage.pss as f64),
                mebibytes(fall),
                usage.processes as f64,
                usage.threads as f64,
                busy * 1000.0,
            ])
        });
        let names = [
            ("pss", "memory of all its processes (Pss)", Unit::Mebibytes),
            ("available", "fall of MemAvailable for each of 8 more", Unit::Mebibytes),
            ("processes", "processes on this machine", Unit::Count),
            ("threads", "their threads", Unit::Count),
            ("cpu", "processor time in a second of idling", Unit::Milliseconds),
        ];
        self.measures(Section::Memory, &names, all, found);
        self.guest_kernels(&stacks, found);
        found.stacks.append(&mut stacks);
        let all = self.rounds(Section::Memory, (0, rounds), 1, |executor| {
            let before = executor.kept()?;
            let _instance = executor.start(&["wait"])?;
            Ok(vec![executor.kept()?.saturating_sub(before) as f64 / 1024.0])
        });
        self.measures(
            Section::Memory,
            &[("files", "files of one more instance", Unit::Kibibytes)],
            all,
            found,
        );
        let all = self.given_back();
        let names = [
            ("freed_1s", "memory 1 s after it freed 256 MiB (Pss)", Unit::Mebibytes),
            ("freed_10s", "10 s after", Unit::Mebibytes),
            ("freed_60s", "60 s after", Unit::Mebibytes),
        ];
        self.measures(Section::Memory, &names, all, found);
    }

    /// What the kernels of guests hold for themselves.
    fn guest_kernels(&self, stacks: &[Stack], found: &mut Found) {
        let of = |executor: &dyn Executor| {
            let Peer { name, missing, .. } = executor.peer();
            let stack = stacks.iter().find(|stack| stack.peer == name);
            let own = stack.and_then(|stack| stack.parts.iter().find(|(part, _)| part == GUEST_KERNEL));
            let failure = missing.or_else(|| match (stack, own) {
                (_, Some(_)) => None,
                (Some(_), None) => Some("it has no kernel of its own".into()),
                (None, None) => Some("not seen".into()),
            });
            Samples { of: vec![own.map(|(_, mib)| *mib).into_iter().collect()], failure }
        };
        let all = self.peers.iter().map(|executor| of(executor.as_ref())).collect();
        let names = [("guest_kernel", "of that, its own kernel", Unit::Mebibytes)];
        self.measures(Section::Memory, &names, all, found);
    }

    /// What instances hold that took memory and freed it. All of them wait at once, since waiting
    /// is most of it; they free theirs one after another, when the last one has started.
    fn given_back(&mut self) -> Vec<Samples> {
        let Times { hold, apart, looks: after, .. } = self.times;
        let mut all: Vec<Samples> = Vec::new();
        let mut instances = Vec::new();
        let begin = Instant::now();
        let first = hold * u32::try_from(self.peers.len()).unwrap_or(1);
        for (place, executor) in (0..).zip(&mut self.peers) {
            let Peer { name, missing, .. } = executor.peer();
            (self.progress)(Section::Memory, &name, 0, after.len());
            let seconds = (first + apart * place).saturating_sub(begin.elapsed()).max(apart).as_secs();
            let started = match missing {
                Some(why) => Err(why),
                None if (self.stop)() => Err("interrupted".into()),
                None => executor.start(&["hold", HELD_MIB, &seconds.to_string()]),
            };
            let (instance, failure) = match started {
                Ok(instance) => (Some(instance), None),
                Err(why) => (None, Some(why)),
            };
            instances.push(instance);
            all.push(Samples { of: vec![Vec::new(); after.len()], failure });
        }
        let mut looks = Vec::new();
        for ((place, instance), samples) in instances.iter_mut().enumerate().zip(&mut all) {
            let Some(instance) = instance else { continue };
            if let Err(why) = instance.hear("freed") {
                samples.failure = Some(why);
                continue;
            }
            let freed = Instant::now();
            look(instance.as_ref(), freed, after[0], samples, self.stop);
            looks.extend(after[1..].iter().map(|after| (freed, *after, place)));
        }
        looks.sort_by_key(|(freed, after, _)| *freed + *after);
        for (freed, after, place) in looks {
            if let (Some(instance), Some(samples)) = (&instances[place], all.get_mut(place)) {
                look(instance.as_ref(), freed, after, samples, self.stop);
            }
        }
        all
    }
}

/// Looks at what an instance holds so long after it freed something, and puts that behind the
/// samples that there are.
fn look(
    instance: &dyn Instance,
    freed: Instant,
    after: Duration,
    samples: &mut Samples,
    stop: &dyn Fn() -> bool,
) {
    if samples.failure.is_some() {
        return;
    }
    let due = freed + after;
    let looked = rest(due.saturating_duration_since(Instant::now()), stop).and_then(|()| {
        // Another time would be another figure.
        match due.elapsed() > LATE + after / 10 {
            true => Err("this machine is too busy to look in time".into()),
            false => instance.usage(),
        }
    });
    match (looked, samples.of.iter_mut().find(|figures| figures.is_empty())) {
        (Ok(usage), Some(figures)) => figures.push(mebibytes(usage.pss as f64)),
        (Ok(_), None) => {}
        (Err(why), _) => samples.failure = Some(why),
    }
}
