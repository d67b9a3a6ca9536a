//! What the agent adds to the balloon: freed memory comes back at once, and an idle machine is
//! small.

use std::time::{Duration, Instant};

use super::{needs_image, run, shell};
use crate::balloon::{SCRIPT, comes_back, pss_mib};
use crate::guest::needs_linux;
use crate::support::patient;

/// How long it may take from when memory is freed: the agent looks once a second and again, and
/// then has two seconds (0.9 to 1.8 were seen in the emulated host), and as long again where a
/// host's processors have other work.
const AT_ONCE: Duration = Duration::from_millis(2 * (1250 + 2000));
/// The most that an idle machine of 128 MiB may hold, in MiB: both of its processes.
const IDLE_MIB: u64 = 34;

#[test]
fn freed_memory_is_back_as_soon_as_the_agent_has_noticed() {
    needs_linux!(alone);
    let flags = ["-i", "--privileged", "-m1G"];
    let mut running = shell(needs_image!(), &flags, SCRIPT).open_input().start();
    running.wait_for(b"up");
    // While small blocks are reported as well, the kernel is quicker.
    std::thread::sleep(Duration::from_secs(10));
    let took = comes_back(&mut running, AT_ONCE);
    println!("it came back in {took:?}, of {:?}", patient(AT_ONCE));
    running.wait().code(0);
}

#[test]
fn an_idle_machine_is_small() {
    needs_linux!();
    let mut running =
        run(needs_image!(), ["-i", "-m128M", "app", "sh", "-c", "echo up; read line"]).open_input().start();
    running.wait_for(b"up");
    let deadline = Instant::now() + patient(Duration::from_secs(10));
    while pss_mib(&running) > IDLE_MIB {
        assert!(Instant::now() < deadline, "it holds {} MiB", pss_mib(&running));
        std::thread::sleep(Duration::from_millis(200));
    }
    running.type_in(b"\n");
    running.wait().code(0);
}
