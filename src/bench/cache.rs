//! Puts files out of the page cache, and looks whether they are.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};

use crate::sys::pages::resident;

/// Asks the kernel to forget what it has of these files, and gives the share of their pages that it
/// still has, in percent: what others have mapped stays, and so does all that has no disk. Of a
/// file that the caller neither owns nor may write, the kernel says that all of it is there.
///
/// # Errors
///
/// One line, with the path of the file that can't be opened or looked at; and that there is no
/// file.
pub fn evict(files: &[PathBuf]) -> Result<f64, String> {
    let (mut pages, mut there) = (0, 0);
    for path in files {
        let (all, left) = evict_one(path).map_err(|error| format!("{}: {error}", path.display()))?;
        pages += all;
        there += left;
    }
    if pages == 0 {
        Err("it has no files of its own".into())
    } else {
        Ok(there as f64 / pages as f64 * 100.0)
    }
}

/// How many pages the file has, and how many of them stay.
fn evict_one(path: &Path) -> io::Result<(usize, usize)> {
    let file = File::open(path)?;
    // What isn't on the disk yet can't be forgotten. A file that was only read has nothing to
    // write.
    file.sync_data()?;
    fadvise(&file, 0, None, Advice::DontNeed)?;
    let resident = resident(&file)?;
    Ok((resident.len(), resident.iter().filter(|page| **page & 1 != 0).count()))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_file_is_forgotten_where_it_has_a_disk_and_what_stays_is_counted() {
        // Not in /tmp, which may be in memory.
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let file = File::open(&path).unwrap();
        assert!(resident(&file).unwrap().iter().all(|page| page & 1 == 1));
        let left = evict(std::slice::from_ref(&path)).unwrap();
        assert!(left < 1.0, "{left} % stay");
        assert_eq!(std::fs::read(&path).unwrap().len(), 1 << 20);
        assert!(evict(&[]).is_err());
        assert!(evict(&[dir.path().join("absent")]).unwrap_err().contains("absent: No such file"));
    }

    #[test]
    fn what_is_in_memory_alone_stays() {
        let file = rustix::fs::memfd_create("file", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&file, &[7; 8192]).unwrap();
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        assert_eq!(evict(&[path]), Ok(100.0));
    }
}
