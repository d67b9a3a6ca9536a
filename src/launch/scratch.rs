//! The disk of `--scratch`: an unlinked file, sparse, that begins with the guest's empty file
//! system. It is gone with its last descriptor, whatever happens to us. The guest grows the file
//! system to the disk's size.
//!
//! It lies in `$TMPDIR`, or where that isn't said in /var/tmp: /tmp may be in memory, which a
//! scratch disk is to spare.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{Mode, OFlags};

use crate::boot::image::Blob;
use crate::config::MemorySize;
use crate::random;

/// The most that is copied at once, in bytes.
const PIECE: usize = 64 << 10;

/// The directory for such files, by this process's environment.
pub fn scratch_dir() -> PathBuf {
    std::env::var_os("TMPDIR").map_or_else(|| "/var/tmp".into(), PathBuf::from)
}

/// Makes the disk's file.
pub(super) fn make(dir: &Path, template: &Blob, size: MemorySize) -> anyhow::Result<File> {
    make_in(dir, template, size).with_context(|| format!("--scratch: can't make a disk in {}", dir.display()))
}

fn make_in(dir: &Path, template: &Blob, size: MemorySize) -> anyhow::Result<File> {
    let len = size.mib() << 20;
    if len < template.len {
        bail!("{size} is too small: it takes {} MiB at least", template.len.div_ceil(1 << 20));
    }
    let file = unlinked(dir)?;
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while at < template.len {
        let wanted = usize::try_from(template.len - at).unwrap_or(PIECE).min(PIECE);
        template.file.read_exact_at(&mut piece[..wanted], template.offset + at)?;
        // Nearly all of it is zeros, and takes no room.
        if piece[..wanted].iter().any(|byte| *byte != 0) {
            file.write_all_at(&piece[..wanted], at)?;
        }
        at += wanted as u64;
    }
    file.set_len(len)?;
    Ok(file)
}

/// A file without a name.
fn unlinked(dir: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(dir, flags | OFlags::TMPFILE, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(file.into()),
        // File systems that can't do it.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::INVAL) => {
            let path = dir.join(format!(".bothy-scratch-{}", random::name::<8>()?));
            let file =
                rustix::fs::open(&path, flags | OFlags::CREATE | OFlags::EXCL, Mode::RUSR | Mode::WUSR)?;
            std::fs::remove_file(&path)?;
            Ok(file.into())
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_disk_begins_as_the_template_and_is_sparse_and_has_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("template");
        let mut content = vec![0; 1 << 20];
        content[5000] = 7;
        content[(1 << 20) - 1] = 9;
        std::fs::write(&path, &content).unwrap();
        let template = Blob::open(&path).unwrap();
        let disk = make_in(dir.path(), &template, "100M".parse().unwrap()).unwrap();
        let mut start = vec![1; content.len()];
        disk.read_exact_at(&mut start, 0).unwrap();
        assert!(start == content);
        let metadata = disk.metadata().unwrap();
        assert_eq!(metadata.len(), 100 << 20);
        assert!(metadata.blocks() * 512 <= 4 * PIECE as u64, "{}", metadata.blocks());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        std::fs::write(&path, vec![0; 3 << 20]).unwrap();
        let template = Blob::open(&path).unwrap();
        let error = make_in(dir.path(), &template, "2M".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("3 MiB"), "{error}");
    }
}
