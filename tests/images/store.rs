//! A store of its own for each test, and what is in it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Bothy, scratch};

pub(crate) struct Store {
    dir: tempfile::TempDir,
}

impl Store {
    pub(crate) fn new() -> Self {
        Self { dir: scratch() }
    }

    /// Where a test can put its own files.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir().join("store")
    }

    /// `bothy` with these words, in this store and this directory.
    pub(crate) fn bothy<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Bothy {
        Bothy::new(words).env("BOTHY_STORE", self.path()).current_dir(self.dir())
    }

    /// Loads it, and gives what is said about it.
    #[track_caller]
    pub(crate) fn load(&self, source: &str) -> String {
        String::from_utf8(self.bothy(["load", source]).run().output()).unwrap()
    }

    /// What `bothy images --json` says.
    #[track_caller]
    pub(crate) fn images(&self) -> Vec<Value> {
        serde_json::from_slice(&self.bothy(["images", "--json"]).run().output()).unwrap()
    }

    /// The names of all images, in order.
    #[track_caller]
    pub(crate) fn names(&self) -> Vec<String> {
        let images = self.images();
        let names = images.iter().flat_map(|image| image["names"].as_array().unwrap());
        names.map(|name| name.as_str().unwrap().to_owned()).collect()
    }

    /// The files of a part of the store.
    pub(crate) fn files(&self, part: &str) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.path().join("v1").join(part)) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// Insists that no load has left anything.
    #[track_caller]
    pub(crate) fn is_empty(&self) {
        for part in ["names", "images", "rootfs", "blobs", "tmp"] {
            assert_eq!(self.files(part), [""; 0].map(PathBuf::from), "{part}");
        }
    }
}

/// `small`, or `large` at full counts.
pub(crate) fn count(small: usize, large: usize) -> usize {
    if std::env::var_os("BOTHY_LONG").is_some_and(|value| value == "1") { large } else { small }
}
