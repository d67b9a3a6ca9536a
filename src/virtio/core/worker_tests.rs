use super::*;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

fn counting_worker() -> Worker<u32> {
    Worker::spawn("count0", &Spawner::default(), |job: u32, stop: &Stop| {
        poll::readable([Some(stop)]);
        job + 1
    })
    .unwrap()
}

#[test]
fn a_job_comes_back_from_stop_and_can_be_started_again() {
    let mut worker = counting_worker();
    assert_eq!(worker.stop(), None);
    for i in 0..100 {
        worker.start(i);
        assert_eq!(worker.stop(), Some(i + 1));
        assert_eq!(worker.stop(), None);
    }
}

#[test]
fn a_job_that_ends_early_waits_for_stop() {
    let mut worker = Worker::spawn("early0", &Spawner::default(), |job: u32, _: &Stop| job * 2).unwrap();
    worker.start(4);
    assert_eq!(worker.stop(), Some(8));
    worker.start(5);
    assert_eq!(worker.stop(), Some(10));
}

#[test]
fn a_worker_dropped_while_it_runs_is_joined() {
    let alive = Arc::new(());
    let held = alive.clone();
    let mut worker = Worker::spawn("drop0", &Spawner::default(), move |job: u32, stop: &Stop| {
        let _held = &held;
        poll::readable([Some(stop)]);
        job
    })
    .unwrap();
    worker.start(1);
    drop(worker);
    assert_eq!(Arc::strong_count(&alive), 1);
}

#[test]
fn a_thread_has_its_name_and_does_the_first_thing_first() {
    let (tell, told) = sync_channel(2);
    let spawner = Spawner::new({
        let tell = tell.clone();
        move |name: &str| tell.send(format!("first in {name}")).unwrap()
    });
    let body = move || {
        let comm = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
        tell.send(comm.trim().to_owned()).unwrap();
    };
    spawner.spawn("blk7.q1", body).unwrap().join().unwrap();
    assert_eq!(told.recv().unwrap(), "first in blk7.q1");
    assert_eq!(told.recv().unwrap(), "blk7.q1");
}

const PANIC_HERE: &str = "BOTHY_TEST_PANIC_IN_WORKER";

#[test]
fn a_panic_in_a_thread_ends_the_process() {
    if std::env::var_os(PANIC_HERE).is_some() {
        // The child: without the abort it would hang in this join or end with a plain test failure.
        let thread = Spawner::default().spawn("bad0", || panic!("on purpose")).unwrap();
        let _ = thread.join();
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "virtio::core::worker::tests::a_panic_in_a_thread_ends_the_process", "--nocapture"])
        .env(PANIC_HERE, "1")
        .output()
        .unwrap();
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("on purpose"), "{output:?}");
}
