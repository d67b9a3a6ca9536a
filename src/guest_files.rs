//! Finds bothy's own guest: its kernel, its two initramfs, and the manifest that says what they are
//! made of.
//!
//! Looked for in `$BOTHY_GUEST_DIR`, inside this very binary (see [`pack`]), and in `guest/` next
//! to it: a link there leads to what `make guest` has built. What lies in the working directory is
//! never taken: it would be a kernel of somebody else's, in a process of the user's. The files of a
//! packed binary are read from where they stand in it; nothing is unpacked.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use crate::boot::image::{Blob, ImageError};
use crate::memory::PAGE_SIZE;

/// The kernel's file name.
pub const KERNEL: &str = "vmlinux";
/// The initramfs' file name.
pub const INITRAMFS: &str = "initramfs.cpio";
/// File name of the initramfs for guests that run images: PID 1, and nothing else.
pub const AGENT: &str = "agent.cpio";
/// File name of the file system that a scratch disk begins with.
pub const SCRATCH: &str = "scratch.ext4";
/// File name of the program that `bothy bench` runs in every instance.
pub const LOAD: &str = "load";
/// The manifest's file name.
pub const MANIFEST: &str = "manifest.json";

/// The directory next to this binary.
const BESIDE: &str = "guest";

/// Names a directory with the guest's files.
pub const DIR_VARIABLE: &str = "BOTHY_GUEST_DIR";

/// Stands at the start of the trailer.
const MAGIC: [u8; 16] = *b"bothy-guest-v4\0\0";
/// The last bytes of a packed binary: the magic, then offset and length of kernel, initramfs,
/// agent, scratch disk, load and manifest.
const TRAILER_LEN: usize = 16 + 12 * 8;

/// More than what is read whole has: the manifest and the load.
const MAX_READ_LEN: usize = 4 << 20;

/// The guest's files, open.
#[derive(Debug)]
pub struct GuestFiles {
    /// An ELF vmlinux.
    pub kernel: Blob,
    /// A cpio archive.
    pub initramfs: Blob,
    /// A cpio archive.
    pub agent: Blob,
    /// An empty ext4.
    pub scratch: Blob,
    /// A static program.
    pub load: Blob,
    /// JSON; see [`Manifest`].
    pub manifest: Blob,
}

/// What the guest is made of, as far as others wrote it.
#[derive(Debug, Deserialize)]
pub struct Manifest {
    /// The kernel.
    pub kernel: Component,
    /// The initramfs.
    pub initramfs: Initramfs,
}

/// What is in the initramfs besides our own init.
#[derive(Debug, Deserialize)]
pub struct Initramfs {
    /// The shell and its tools.
    pub busybox: Component,
}

/// A program in the guest.
#[derive(Debug, Deserialize)]
pub struct Component {
    /// The Debian source package that it was built from.
    pub source_package: String,
    /// That package's version.
    pub source_version: String,
    /// SPDX expression of its licence.
    pub licence: String,
}

/// Why there is no guest.
#[derive(Debug, Error)]
pub enum GuestError {
    /// None was found.
    #[error(
        "bothy's own guest is not in {}: run `make guest`, set {DIR_VARIABLE} to its directory, or give --kernel",
        place.display()
    )]
    NotFound {
        /// Where it was looked for.
        place: PathBuf,
    },
    /// A file of it can't be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// This binary can't be read.
    #[error("can't read this program's own file")]
    OwnFile(#[source] io::Error),
    /// The packed binary can't be written.
    #[error("can't write {path}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The manifest is damaged.
    #[error("the guest's manifest is malformed")]
    Manifest(#[from] serde_json::Error),
}

/// The directory that [`DIR_VARIABLE`] names.
pub fn dir_variable() -> Option<PathBuf> {
    std::env::var_os(DIR_VARIABLE).map(PathBuf::from)
}

impl GuestFiles {
    /// Finds the guest, by this process's environment.
    pub fn find() -> Result<Self, GuestError> {
        Self::find_in(dir_variable().as_deref())
    }

    /// Finds the guest: in this directory, or else where it belongs.
    pub fn find_in(dir: Option<&Path>) -> Result<Self, GuestError> {
        if let Some(dir) = dir {
            return Self::in_dir(dir);
        }
        let exe = std::env::current_exe().map_err(GuestError::OwnFile)?;
        if let Some(packed) = Self::packed_in(&exe).map_err(GuestError::OwnFile)? {
            return Ok(packed);
        }
        let place = exe.with_file_name(BESIDE);
        if place.join(KERNEL).is_file() { Self::in_dir(&place) } else { Err(GuestError::NotFound { place }) }
    }

    fn in_dir(dir: &Path) -> Result<Self, GuestError> {
        let open = |name| Blob::open(&dir.join(name));
        let (kernel, initramfs) = (open(KERNEL)?, open(INITRAMFS)?);
        let (agent, scratch) = (open(AGENT)?, open(SCRATCH)?);
        Ok(Self { kernel, initramfs, agent, scratch, load: open(LOAD)?, manifest: open(MANIFEST)? })
    }

    /// The guest inside a packed binary; `None` if it holds none.
    fn packed_in(exe: &Path) -> io::Result<Option<Self>> {
        let file = File::open(exe)?;
        let len = file.metadata()?.len();
        let Some(trailer_at) = len.checked_sub(TRAILER_LEN as u64) else { return Ok(None) };
        let mut trailer = [0; TRAILER_LEN];
        file.read_exact_at(&mut trailer, trailer_at)?;
        let (magic, numbers) = trailer.split_at(MAGIC.len());
        if magic != MAGIC {
            return Ok(None);
        }
        let number = |n: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&numbers[n * 8..n * 8 + 8]);
            u64::from_le_bytes(bytes)
        };
        let blob = |n: usize, name: &str| -> io::Result<Blob> {
            let (offset, blob_len) = (number(2 * n), number(2 * n + 1));
            if offset.checked_add(blob_len).is_none_or(|end| end > trailer_at) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "its trailer is damaged"));
            }
            Ok(Blob { file: file.try_clone()?, offset, len: blob_len, path: exe.join(name) })
        };
        Ok(Some(Self {
            kernel: blob(0, KERNEL)?,
            initramfs: blob(1, INITRAMFS)?,
            agent: blob(2, AGENT)?,
            scratch: blob(3, SCRATCH)?,
            load: blob(4, LOAD)?,
            manifest: blob(5, MANIFEST)?,
        }))
    }

    /// Writes all of them into a directory, each with its name.
    pub fn unpack(&self, dir: &Path) -> io::Result<()> {
        self.files()
            .into_iter()
            .try_for_each(|(name, blob)| blob.copy_to(&mut File::create_new(dir.join(name))?))
    }

    /// All of them with their names, in the order in which a packed binary has them.
    fn files(&self) -> [(&'static str, &Blob); 6] {
        [
            (KERNEL, &self.kernel),
            (INITRAMFS, &self.initramfs),
            (AGENT, &self.agent),
            (SCRATCH, &self.scratch),
            (LOAD, &self.load),
            (MANIFEST, &self.manifest),
        ]
    }

    /// Reads the manifest.
    pub fn read_manifest(&self) -> Result<Manifest, GuestError> {
        let bytes = read(&self.manifest).map_err(GuestError::OwnFile)?;
        Ok(serde_json::from_slice(&bytes)?)
    }
}

fn read(blob: &Blob) -> io::Result<Vec<u8>> {
    let len = usize::try_from(blob.len).ok().filter(|len| *len <= MAX_READ_LEN);
    let mut bytes = vec![0; len.ok_or_else(|| io::Error::other("it is larger than 4 MiB"))?];
    blob.file.read_exact_at(&mut bytes, blob.offset)?;
    Ok(bytes)
}

/// Writes a copy of this binary with the guest appended, each file page-aligned, and a trailer.
pub fn pack(guest: &GuestFiles, out: &Path) -> Result<(), GuestError> {
    let exe = std::env::current_exe().map_err(GuestError::OwnFile)?;
    write_packed(&exe, guest, out).map_err(|source| GuestError::Write { path: out.to_owned(), source })
}

fn write_packed(exe: &Path, guest: &GuestFiles, out: &Path) -> io::Result<()> {
    let partial = out.with_extension("partial");
    let mut file = File::create(&partial)?;
    io::copy(&mut File::open(exe)?, &mut file)?;
    let mut trailer = MAGIC.to_vec();
    for (_, blob) in guest.files() {
        let offset = file.seek(SeekFrom::End(0))?.next_multiple_of(PAGE_SIZE);
        file.set_len(offset)?;
        file.seek(SeekFrom::Start(offset))?;
        blob.copy_to(&mut file)?;
        trailer.extend(offset.to_le_bytes());
        trailer.extend(blob.len.to_le_bytes());
    }
    file.write_all(&trailer)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o755))?;
    drop(file);
    std::fs::rename(&partial, out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_binary_gives_back_its_guest_page_aligned() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path(KERNEL), [1; 5000]).unwrap();
        std::fs::write(path(INITRAMFS), [2; 10]).unwrap();
        std::fs::write(path(AGENT), [3; 20]).unwrap();
        std::fs::write(path(SCRATCH), [4; 30]).unwrap();
        std::fs::write(path(LOAD), [5; 40]).unwrap();
        let manifest = r#"{"kernel":{"source_package":"linux","source_version":"6","licence":"GPL-2.0-only"},
            "initramfs":{"busybox":{"source_package":"busybox","source_version":"1","licence":"GPL-2.0-only"}}}"#;
        std::fs::write(path(MANIFEST), manifest).unwrap();
        std::fs::write(path("exe"), [9; 777]).unwrap();
        let guest = GuestFiles::in_dir(dir.path()).unwrap();
        assert!(GuestFiles::packed_in(&path("exe")).unwrap().is_none());
        write_packed(&path("exe"), &guest, &path("packed")).unwrap();
        let packed = GuestFiles::packed_in(&path("packed")).unwrap().unwrap();
        assert_eq!(read(&packed.kernel).unwrap(), [1; 5000]);
        assert_eq!(read(&packed.initramfs).unwrap(), [2; 10]);
        assert_eq!(read(&packed.agent).unwrap(), [3; 20]);
        assert_eq!(read(&packed.scratch).unwrap(), [4; 30]);
        assert_eq!(read(&packed.load).unwrap(), [5; 40]);
        assert_eq!(packed.kernel.offset % PAGE_SIZE, 0);
        assert_eq!(packed.initramfs.offset % PAGE_SIZE, 0);
        assert_eq!(packed.read_manifest().unwrap().kernel.source_package, "linux");
        // Packing a packed binary's guest again gives the same guest.
        write_packed(&path("exe"), &packed, &path("again")).unwrap();
        assert_eq!(std::fs::read(path("packed")).unwrap(), std::fs::read(path("again")).unwrap());
    }

    #[test]
    fn a_damaged_trailer_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = vec![0; 100];
        bytes.extend(MAGIC);
        for number in [0, u64::MAX, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1] {
            bytes.extend(number.to_le_bytes());
        }
        let path = dir.path().join("exe");
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(GuestFiles::packed_in(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
