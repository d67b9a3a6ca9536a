//! What a shell completes, asked by a real bash, and man pages.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::store::Store;
use crate::support::scratch;

/// What bash offers for the last of these words, or for what is behind a colon or an equals sign in
/// it.
fn complete(store: &Store, words: &[&str]) -> Vec<String> {
    const SCRIPT: &str = "source <(bothy completions bash); COMP_LINE=\"$*\"; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9
        $(complete -p bothy | sed 's/.* -F \\([^ ]*\\) .*/\\1/') bothy '' ''; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let bothy = Path::new(env!("CARGO_BIN_EXE_bothy")).parent().unwrap();
    let path = format!("{}:{}", bothy.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("bash");
    command.args(["--norc", "-c", SCRIPT, "bash", "bothy"]).args(words).current_dir(store.dir());
    let output = command.env("PATH", path).env("BOTHY_STORE", store.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut offers: Vec<String> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| line.trim().to_owned()).collect();
    offers.retain(|offer| !offer.is_empty());
    offers.sort_unstable();
    offers
}

#[test]
fn a_shell_completes_commands_flags_and_images() {
    let store = Store::new();
    fs::create_dir_all(store.dir().join("root/etc")).unwrap();
    for name in ["busybox", "busybox:1.36", "localhost/tool"] {
        store.bothy(["load", "--name", name, "dir:root"]).run().output();
    }
    assert_eq!(complete(&store, &["ru"]), ["run"]);
    assert_eq!(complete(&store, &["run", "--scr"]), ["--scratch"]);
    assert_eq!(complete(&store, &["run", "--pull", ""]), ["always", "missing", "never"]);
    assert_eq!(complete(&store, &["run", "--pull=al"]), ["always"]);
    assert_eq!(complete(&store, &["run", "bu"]), ["busybox", "busybox:1.36"]);
    assert_eq!(complete(&store, &["bench", "bu"]), ["busybox", "busybox:1.36"]);
    assert_eq!(complete(&store, &["run", "-it", "docker.io/library/busybox:1"]), ["1.36"]);
    assert_eq!(complete(&store, &["run", "./ro"]), ["./root/"]);
    assert_eq!(complete(&store, &["run", "busybox", "bu"]), [""; 0]);
    assert_eq!(complete(&store, &["rmi", "busybox", "lo"]), ["localhost/tool"]);
    assert_eq!(complete(&store, &["pull", "zz"]), [""; 0]);
    for shell in ["elvish", "fish", "zsh"] {
        let script = store.bothy(["completions", shell]).run().output();
        assert!(String::from_utf8(script).unwrap().contains("bothy"), "{shell}");
    }
}

#[test]
fn each_command_has_a_man_page() {
    let dir = scratch();
    let store = Store::new();
    let man = dir.path().join("man1");
    store.bothy([std::ffi::OsStr::new("man"), man.as_os_str()]).run().output();
    let page = |name: &str| fs::read_to_string(man.join(name)).unwrap();
    assert!(page("bothy.1").contains("bothy\\-run(1)"));
    let run = page("bothy-run.1");
    for part in [".TH", "\\-\\-scratch", "125 anything"] {
        assert!(run.contains(part), "{part}: {run}");
    }
    let file = store.dir().join("file");
    fs::write(&file, "").unwrap();
    store.bothy([std::ffi::OsStr::new("man"), file.as_os_str()]).run().code(1).says("can't write man pages");
}
