//! How long it takes to run a command in a virtual machine, beside runc and crun with the same file
//! system, and what one more idle machine costs.
//!
//! `benches/run container` builds what is needed and calls this with the name of the host.

#[path = "../support/measure.rs"]
mod measure;
mod memory;
#[path = "../support/target.rs"]
mod target;
#[path = "../support/usage.rs"]
mod usage;

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use measure::{Contender, Table};

/// Runs of each contender.
const RUNS: usize = 20;
/// What the image is called.
const IMAGE: &str = "bench";

fn main() -> ExitCode {
    // `cargo bench` adds `--bench`.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let [host] = words.as_slice() else { panic!("usage: container HOST; use benches/run") };
    let work = PathBuf::from(std::env::var_os("BOTHY_BENCH_DIR").expect("use benches/run"));
    let bothy = work.join("bothy");
    measure::adopt_orphans();
    let root = busybox(&work);
    let status = Command::new(&bothy)
        .args(["load", "--name", IMAGE, &format!("dir:{}", root.display())])
        .stdout(Stdio::null())
        .status();
    assert!(status.expect("bothy is built").success(), "the image is loaded");
    let bundle = bundle(&work, &root);

    let number = Cell::new(0);
    let engine = |name: &'static str| {
        let (bundle, number) = (bundle.clone(), number.clone());
        Contender::new(name, "", move || {
            number.set(number.get() + 1);
            let mut command = Command::new(name);
            command.arg("run").arg("--bundle").arg(&bundle).arg(format!("bothy-bench-{}", number.get()));
            command
        })
    };
    let own = bothy.clone();
    let contenders = [
        engine("runc"),
        engine("crun"),
        Contender::new("bothy run", "", move || {
            let mut command = Command::new(&own);
            command.args(["run", IMAGE, "true"]);
            command
        }),
    ];
    let table = Table::run(&format!("busybox true, {host}: exec to return"), RUNS, &contenders);
    print!("{table}");
    for (theirs, goal) in [("runc", 2.0), ("crun", 3.0)] {
        let what = format!("cold boot of an image, {host}");
        table.target(&what, "bothy run", theirs, |row| &row.returned, goal);
    }
    memory::report(&bothy, host);
    ExitCode::SUCCESS
}

/// A root file system of busybox alone.
fn busybox(work: &Path) -> PathBuf {
    let root = work.join("root");
    let _absent = fs::remove_dir_all(&root);
    for dir in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(dir)).expect("the work directory is writable");
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    fs::copy(busybox.expect("busybox-static is installed"), root.join("bin/busybox")).expect("there is room");
    for applet in ["sh", "sleep", "true"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).expect("a new link");
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n").expect("there is room");
    root
}

/// What runc and crun run: their own template with another command.
fn bundle(work: &Path, root: &Path) -> PathBuf {
    let bundle = work.join("bundle");
    fs::create_dir_all(&bundle).expect("the work directory is writable");
    let _absent = fs::remove_file(bundle.join("config.json"));
    let status = Command::new("runc").arg("spec").current_dir(&bundle).status();
    assert!(status.expect("runc is installed").success());
    let path = bundle.join("config.json");
    let mut config: serde_json::Value =
        serde_json::from_slice(&fs::read(&path).expect("runc wrote it")).expect("JSON");
    config["process"]["terminal"] = false.into();
    config["process"]["args"] = ["true"].as_slice().into();
    config["root"] = serde_json::json!({ "path": root, "readonly": false });
    fs::write(&path, config.to_string()).expect("there is room");
    bundle
}
