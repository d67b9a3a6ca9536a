//! `bothy run`: commands of container images, each in a virtual machine of its own.
//!
//! ```text
//! image     the image of all these tests, made once by umoci, and the store that it is in
//! bundle    the same image run by runc, with what docker gives a container
//! inside    a static C program: lists files, opens vsock connections, and eats what it can
//! features  C programs: what there is of the kernel, in 64 bits and in 32
//! table     the same command lines by both
//! ```

mod bundle;
mod image;

mod balloon;
mod debian;
mod failures;
mod features;
mod files;
mod flags;
mod hostile;
mod signals;
mod snapshot;
mod streams;
mod table;
mod terminal;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::guest::GUEST_DIR_VARIABLE;
use crate::support::{self, Bothy};

use image::Image;

/// How long a virtual machine and its command may take.
const LIMIT: Duration = Duration::from_secs(90);
/// How long the guest may take until its agent answers: long enough for an emulated host that does
/// other things besides.
const AGENT_TIMEOUT: &str = "--agent-timeout=60";

/// What a test begins with: the image, or a return from the test with a loud line.
macro_rules! needs_image {
    () => {{
        fn name() {}
        let name = std::any::type_name_of_val(&name);
        let Some(image) = $crate::run::image::get(name.trim_end_matches("::name")) else { return };
        image
    }};
}
use needs_image;

/// `bothy run WORDS...`, with the store that has the image as `app`.
fn run<S: AsRef<OsStr>>(image: &Image, words: impl IntoIterator<Item = S>) -> Bothy {
    bothy(image, "run").args([AGENT_TIMEOUT]).args(words).limit(LIMIT)
}

/// `bothy run FLAGS app sh -c SCRIPT`.
fn shell(image: &Image, flags: &[&str], script: &str) -> Bothy {
    run(image, flags).args(["app", "sh", "-c", script])
}

/// Another of bothy's commands, with the same store.
fn bothy(image: &Image, command: &str) -> Bothy {
    let variables = variables(image);
    variables.iter().fold(Bothy::new([command]), |bothy, (name, value)| bothy.env(name, value))
}

/// The environment of all runs.
fn variables(image: &Image) -> [(&'static str, &Path); 3] {
    [("BOTHY_STORE", &image.store), ("XDG_RUNTIME_DIR", &image.runtime), (GUEST_DIR_VARIABLE, &image.guest)]
}

/// The directory of a running container.
fn place(image: &Image, name: &str) -> PathBuf {
    image.runtime.join("bothy").join(name)
}

/// Insists on one line that begins with `bothy: `, and on its length.
#[track_caller]
fn insist_on_one_line(finished: &support::Finished) {
    let text = &finished.stderr;
    assert!(text.starts_with("bothy: "), "{}", finished.streams());
    assert!(text.ends_with('\n') && text.lines().count() == 1, "{}", finished.streams());
    assert!(text.len() < 400, "{}", finished.streams());
}
