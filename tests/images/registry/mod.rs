//! `bothy pull`: from Debian's docker-registry, and from servers of the tests' own that do what a
//! registry must not. All on this machine.

mod access;
mod debian;
mod faults;
mod proxies;
mod run;
mod server;

use std::fs;

use crate::make::{Layout, noise, sha256, tar_of};
use crate::store::Store;
use crate::support::Bothy;

impl Store {
    /// `bothy pull` with these words; nothing that this machine's user has set matters to it.
    fn pull(&self, words: &[&str]) -> Bothy {
        self.clean(self.bothy(["pull"].iter().chain(words)))
    }

    fn clean(&self, bothy: Bothy) -> Bothy {
        let unset = [
            "REGISTRY_AUTH_FILE",
            "XDG_CONFIG_HOME",
            "DOCKER_CONFIG",
            "SSL_CERT_FILE",
            "SSL_CERT_DIR",
            "HTTP_PROXY",
            "http_proxy",
            "HTTPS_PROXY",
            "https_proxy",
            "ALL_PROXY",
            "all_proxy",
            "NO_PROXY",
            "no_proxy",
        ];
        let bothy = unset.iter().fold(bothy, |bothy, name| bothy.env(name, ""));
        bothy.env("HOME", self.dir().join("home")).env("XDG_RUNTIME_DIR", self.dir().join("run"))
    }

    /// Insists that it works, and gives what is said.
    #[track_caller]
    fn pulled(&self, name: &str) -> String {
        let said = String::from_utf8(self.pull(&[name]).run().output()).unwrap();
        for part in ["blobs", "tmp", "locks"] {
            assert_eq!(self.files(part).len(), 0, "{part} after {said}");
        }
        said
    }
}

/// A layout with an image of several layers in `store`'s directory, and the layers' digests; they
/// don't compress.
fn image(store: &Store, layers: usize, len: usize) -> (Layout, Vec<String>) {
    let layout = Layout::new(store.dir().join("layout"));
    let mut descriptors = Vec::new();
    let mut digests = Vec::new();
    for number in 0..layers {
        let tar = tar_of(store.dir(), &format!("file{number}"), &noise(len + number));
        digests.push(sha256(&tar));
        descriptors.push(layout.blob("application/vnd.oci.image.layer.v1.tar", &tar));
    }
    let image = layout.image("amd64", &digests, &descriptors);
    layout.index(&[image]);
    (layout, digests)
}

/// The content of a file system in the store, for comparing.
#[track_caller]
fn rootfs(store: &Store) -> Vec<u8> {
    let files = store.files("rootfs");
    assert_eq!(files.len(), 1);
    fs::read(&files[0]).unwrap()
}

/// What `bothy load` makes of the same layout.
#[track_caller]
fn loaded(layout: &Layout) -> Vec<u8> {
    let store = Store::new();
    store.load(layout.dir.to_str().unwrap());
    rootfs(&store)
}
