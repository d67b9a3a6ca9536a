//! Kernel modules that the initramfs brings along. Our own kernel needs none; a distribution's has
//! its virtio drivers there.

use std::fs::{self, File};
use std::path::PathBuf;

use bothy_guest::MODULES_DIR;

use crate::{say, sys};

/// Loads all modules in the order of their file names. One that fails is reported, and the next is
/// tried.
pub(crate) fn load() {
    let Ok(entries) = fs::read_dir(MODULES_DIR) else { return };
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .map(|e| e.path())
        .filter(|path| path.extension().is_some_and(|e| e == "ko"))
        .collect();
    paths.sort();
    for path in paths {
        if let Err(error) = File::open(&path).and_then(|file| sys::load_module(&file)) {
            say!("{}: {error}", path.display());
        }
    }
}
