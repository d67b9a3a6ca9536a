//! What `bothy run` says when it can't run the command: exit code 125, and one line.

use std::time::{Duration, Instant};

use super::{LIMIT, bothy, insist_on_one_line, needs_image, place, run};
use crate::guest::{needs_linux, target};
use crate::support::{could_not_run, file, patient, scratch, signal};

#[test]
fn wrong_words_are_exit_code_125_and_one_line() {
    needs_linux!();
    let image = needs_image!();
    for words in [
        &["--pull=never", "no-such-image", "true"][..],
        &["--pull=never", "no/such:tag"],
        &["127.0.0.1:9/nobody/listens:there", "true"],
        &["--pull=sometimes", "app", "true"],
        &["--scratch=64M", "--read-only", "app", "true"],
        &["oci:/no/such/layout", "true"],
        &["docker-archive:/no/such/file", "true"],
        &["dir:/no/such/directory", "true"],
        &["UPPER", "true"],
        &["--no-such-flag", "app", "true"],
        &["--cpus=0", "app", "true"],
        &["--cpus=65", "app", "true"],
        &["-m", "1M", "app", "true"],
        &["-m", "nonsense", "app", "true"],
        &["-w", "relative", "app", "true"],
        &["--name=a/b", "app", "true"],
        &["--name=", "app", "true"],
        &["--hostname=-x", "app", "true"],
        &["--hostname=a b", "app", "true"],
        &["-e", "=x", "app", "true"],
        &["--env-file=/no/such/file", "app", "true"],
        &["--net=bridge", "app", "true"],
        &["--net=tap=bothy-no-such", "app", "true"],
        &["--agent-timeout=0", "app", "true"],
        &["--kernel=/no/such/kernel", "app", "true"],
        &["--kernel=/etc/passwd", "app", "true"],
        &["--entrypoint=", "entry"],
        &["-it", "app", "true"],
        &["app", ""],
        &[],
    ] {
        let finished = bothy(image, "run").args(words).run();
        assert_eq!(
            (finished.code, finished.stdout.as_slice()),
            (125, &b""[..]),
            "{words:?}: {}",
            finished.streams()
        );
        insist_on_one_line(&finished);
    }
}

#[test]
fn a_user_or_directory_that_is_not_there_is_exit_code_125_and_one_line() {
    needs_linux!();
    let image = needs_image!();
    for flags in [["-u", "nobody-knows"], ["-u", "web:no-such-group"], ["-w", "/etc/passwd"]] {
        let finished = run(image, flags)
            .args(["app", "true"])
            .run()
            .code(125)
            .says(flags[1].rsplit(':').next().unwrap());
        insist_on_one_line(&finished);
    }
}

#[test]
fn a_kernel_of_garbage_is_refused_before_it_runs() {
    needs_linux!();
    let image = needs_image!();
    let dir = scratch();
    let mut kernel = std::fs::read(image.guest.join("bzImage")).unwrap();
    let short = file(dir.path(), "short", &kernel[..100_000]);
    kernel[0x202..0x206].copy_from_slice(b"none");
    let wrong = file(dir.path(), "wrong", &kernel);
    for path in [short, wrong] {
        let finished =
            run(image, [format!("--kernel={}", path.display()).as_str(), "app", "true"]).run().code(125);
        insist_on_one_line(&finished);
    }
}

#[test]
fn a_guest_that_never_answers_is_given_up_in_time() {
    needs_linux!();
    let image = needs_image!();
    let running =
        bothy(image, "run").args(["--agent-timeout=2", "--name=silent", "app", "echo", "never"]).start();
    // Stopped before its agent can have said a word, it looks as a guest that hangs.
    signal(running.vm_pid(), libc::SIGSTOP);
    let before = Instant::now();
    let finished = running.wait().code(125).says("--agent-timeout");
    assert!(before.elapsed() < Duration::from_secs(8), "it took {:?}", before.elapsed());
    insist_on_one_line(&finished);
    assert_eq!(finished.stdout, b"");
    assert!(!place(image, "silent").exists());
}

#[test]
fn a_kernel_that_lacks_what_the_agent_needs_is_given_up_in_time() {
    needs_linux!();
    let image = needs_image!();
    // Debian's has its drivers in modules, which nobody loads.
    let kernel = target().join("debian-kernels/6.12-cloud/vmlinuz");
    if !kernel.exists() {
        let reason = format!("no {}: tests/host/debian-kernels fetches it", kernel.display());
        return could_not_run(
            "run::failures::a_kernel_that_lacks_what_the_agent_needs_is_given_up_in_time",
            &reason,
        );
    }
    let kernel = format!("--kernel={}", kernel.display());
    let command = bothy(image, "run").args(["--agent-timeout=15", &kernel, "app", "true"]).limit(LIMIT);
    let finished = command.run().code(125);
    assert!(finished.took < patient(Duration::from_secs(25)), "it took {:?}", finished.took);
    insist_on_one_line(&finished);
}
