//! Kernel and initramfs files: what they are and whether they are whole, found out before there is
//! a VM.
//!
//! Runs in the monitor's process. A file can be a part of a larger one (the guest inside a
//! self-contained bothy), so everything goes by an offset and a length.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::mem::size_of;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use linux_loader::bootparam::setup_header;
use linux_loader::elf;
use thiserror::Error;
use vm_memory::ByteValued;

/// A file, or a part of one, that goes into guest memory.
#[derive(Debug)]
pub struct Blob {
    /// The open file.
    pub file: File,
    /// Where the part begins in the file, in bytes; 0 for a whole file.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
    /// What to call it in messages.
    pub path: PathBuf,
}

/// Why a kernel or initramfs is not used.
#[derive(Debug, Error)]
pub enum ImageError {
    /// It can't be opened or read.
    #[error("can't read {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It isn't a file.
    #[error("{path} is not a regular file", path = path.display())]
    NotAFile {
        /// What was named.
        path: PathBuf,
    },
    /// It is something else, or damaged.
    #[error("{path} is not a kernel that bothy can boot: {why}; give a bzImage or a 64-bit ELF vmlinux for x86-64", path = path.display())]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It ends too early.
    #[error("{path} is truncated: it needs {needed} bytes and has {len}", path = path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What its own headers say.
        needed: u64,
        /// What there is.
        len: u64,
    },
}

/// A kernel file that has been looked at.
#[derive(Debug)]
pub struct KernelImage {
    /// The file.
    pub blob: Blob,
    /// What kind of file it is.
    pub format: KernelFormat,
    /// Whether it is a Linux kernel: a bzImage, or an ELF with a note owned by `Linux`.
    pub is_linux: bool,
}

/// The kinds of kernel files.
#[derive(Debug)]
pub enum KernelFormat {
    /// A compressed kernel with a setup header; entered by the 64-bit boot protocol.
    BzImage {
        /// Its own header, which the zero page continues.
        header: Box<setup_header>,
        /// Where its code begins, relative to the kernel's [`Blob`].
        code_offset: u64,
        /// Bytes of code.
        code_len: u64,
        /// Memory from address 0 that the kernel needs to unpack itself, in bytes.
        needs: u64,
        /// Highest address that its initramfs may occupy.
        initrd_max: u64,
    },
    /// An uncompressed kernel.
    Elf {
        /// What is to be loaded.
        segments: Vec<Segment>,
        /// Entry of the 64-bit boot protocol.
        entry: u64,
        /// Entry of the PVH protocol, if the file has the note.
        pvh_entry: Option<u64>,
    },
}

/// A loadable ELF segment: `file_len` bytes of the file, zeros up to `mem_len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it goes in guest memory.
    pub gpa: u64,
    /// Where it begins, relative to the kernel's [`Blob`].
    pub offset: u64,
    /// Bytes from the file.
    pub file_len: u64,
    /// Bytes in memory.
    pub mem_len: u64,
}

const ELF_CLASS_64: u8 = 2;
const ELF_LITTLE_ENDIAN: u8 = 1;
const EM_X86_64: u16 = 62;
const MAX_PROGRAM_HEADERS: u16 = 128;
const MAX_NOTES_LEN: u64 = 1 << 20;
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

const SETUP_HEADER_OFFSET: u64 = 0x1f1;
const SETUP_HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// Boot protocol 2.12: the first with `xloadflags`.
const PROTOCOL_XLOADFLAGS: u16 = 0x20c;
const XLF_KERNEL_64: u16 = 1;
const LOADED_HIGH: u8 = 1;

impl Blob {
    /// Opens a whole file.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let read = |source| ImageError::Read { path: path.to_owned(), source };
        // A FIFO would be waited for.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        if !metadata.is_file() {
            return Err(ImageError::NotAFile { path: path.to_owned() });
        }
        Ok(Self { file, offset: 0, len: metadata.len(), path: path.to_owned() })
    }

    /// Writes all of it to another file.
    pub fn copy_to(&self, to: &mut impl io::Write) -> io::Result<()> {
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(self.offset))?;
        io::copy(&mut file.take(self.len), to).map(drop)
    }

    /// Fills `bytes` from `offset` on.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<(), ImageError> {
        let needed = offset.saturating_add(bytes.len() as u64);
        if needed > self.len {
            return Err(ImageError::Truncated { path: self.path.clone(), needed, len: self.len });
        }
        self.file
            .read_exact_at(bytes, self.offset + offset)
            .map_err(|source| ImageError::Read { path: self.path.clone(), source })
    }

    fn struct_at<T: ByteValued + Default>(&self, offset: u64) -> Result<T, ImageError> {
        let mut value = T::default();
        self.read_at(value.as_mut_slice(), offset)?;
        Ok(value)
    }

    fn not_a_kernel(&self, why: impl Into<String>) -> ImageError {
        ImageError::NotAKernel { path: self.path.clone(), why: why.into() }
    }
}

impl KernelImage {
    /// Finds out what kind of kernel `blob` is, and that it is whole.
    pub fn inspect(blob: Blob) -> Result<Self, ImageError> {
        if blob.len == 0 {
            return Err(blob.not_a_kernel("the file is empty"));
        }
        let mut magic = [0; 4];
        if blob.len < 4 {
            return Err(blob.not_a_kernel("the file is too short"));
        }
        blob.read_at(&mut magic, 0)?;
        if magic == *b"\x7fELF" { Self::inspect_elf(blob) } else { Self::inspect_bzimage(blob) }
    }

    fn inspect_bzimage(blob: Blob) -> Result<Self, ImageError> {
        if blob.len < SETUP_HEADER_OFFSET + size_of::<setup_header>() as u64 {
            return Err(blob.not_a_kernel("neither an ELF file nor a bzImage"));
        }
        let header: setup_header = blob.struct_at(SETUP_HEADER_OFFSET)?;
        let (magic, version, xloadflags) = (header.header, header.version, header.xloadflags);
        if magic != SETUP_HEADER_MAGIC {
            return Err(blob.not_a_kernel("neither an ELF file nor a bzImage"));
        }
        if version < PROTOCOL_XLOADFLAGS || header.loadflags & LOADED_HIGH == 0 {
            return Err(blob.not_a_kernel(format!("its boot protocol {version:#x} is older than 2.12")));
        }
        if xloadflags & XLF_KERNEL_64 == 0 {
            return Err(blob.not_a_kernel("a 32-bit bzImage"));
        }
        let setup_sectors = if header.setup_sects == 0 { 4 } else { u64::from(header.setup_sects) };
        let (code_offset, code_len) = ((setup_sectors + 1) * 512, u64::from(header.syssize) * 16);
        let needed = code_offset + code_len;
        if needed > blob.len {
            return Err(ImageError::Truncated { path: blob.path, needed, len: blob.len });
        }
        let needs = { header.pref_address }.saturating_add({ header.init_size }.into());
        let initrd_max = { header.initrd_addr_max }.into();
        let format =
            KernelFormat::BzImage { header: Box::new(header), code_offset, code_len, needs, initrd_max };
        Ok(Self { blob, format, is_linux: true })
    }

    fn inspect_elf(blob: Blob) -> Result<Self, ImageError> {
        let header: elf::Elf64_Ehdr = blob.struct_at(0)?;
        if header.e_ident[elf::EI_CLASS] != ELF_CLASS_64 {
            return Err(blob.not_a_kernel("a 32-bit ELF file"));
        }
        if header.e_ident[elf::EI_DATA] != ELF_LITTLE_ENDIAN || header.e_machine != EM_X86_64 {
            return Err(blob.not_a_kernel("an ELF file for another processor"));
        }
        if usize::from(header.e_phentsize) != size_of::<elf::Elf64_Phdr>()
            || header.e_phnum > MAX_PROGRAM_HEADERS
        {
            return Err(blob.not_a_kernel("its program headers are malformed"));
        }
        let (mut segments, mut notes, mut is_program) = (Vec::new(), Notes::default(), false);
        for index in 0..u64::from(header.e_phnum) {
            let offset = header.e_phoff.saturating_add(index * u64::from(header.e_phentsize));
            let program: elf::Elf64_Phdr = blob.struct_at(offset)?;
            let end = program.p_offset.saturating_add(program.p_filesz);
            if [elf::PT_LOAD, elf::PT_NOTE].contains(&program.p_type) && end > blob.len {
                return Err(ImageError::Truncated { path: blob.path, needed: end, len: blob.len });
            }
            match program.p_type {
                elf::PT_LOAD if program.p_memsz < program.p_filesz => {
                    return Err(blob.not_a_kernel("a segment is larger in the file than in memory"));
                }
                elf::PT_LOAD if program.p_memsz > 0 => segments.push(Segment {
                    gpa: program.p_paddr,
                    offset: program.p_offset,
                    file_len: program.p_filesz,
                    mem_len: program.p_memsz,
                }),
                elf::PT_NOTE => notes.read(&blob, program.p_offset, program.p_filesz)?,
                elf::PT_INTERP | elf::PT_TLS => is_program = true,
                _ => {}
            }
        }
        // Some kernels have an interpreter as well (FreeBSD's), and those say by the note that they
        // are kernels.
        if is_program && notes.pvh_entry.is_none() {
            return Err(blob.not_a_kernel("an ELF program, not a kernel"));
        }
        if segments.is_empty() {
            return Err(blob.not_a_kernel("an ELF file without loadable segments"));
        }
        let format = KernelFormat::Elf { segments, entry: header.e_entry, pvh_entry: notes.pvh_entry };
        Ok(Self { blob, format, is_linux: notes.linux })
    }
}

#[derive(Default)]
struct Notes {
    pvh_entry: Option<u64>,
    linux: bool,
}

impl Notes {
    /// Reads the notes in `len` bytes from `offset` on: name length, descriptor length, type, name,
    /// descriptor, the last two padded to 4 bytes.
    fn read(&mut self, blob: &Blob, offset: u64, len: u64) -> Result<(), ImageError> {
        let mut bytes = vec![0; usize::try_from(len.min(MAX_NOTES_LEN)).expect("at most 1 MiB")];
        blob.read_at(&mut bytes, offset)?;
        let mut rest = bytes.as_slice();
        while let Some((note, next)) = Note::split(rest) {
            self.linux |= note.name == b"Linux";
            if note.name == b"Xen" && note.kind == XEN_ELFNOTE_PHYS32_ENTRY {
                // 4 or 8 bytes; the entry is below 4 GiB in any case.
                if let Some(&[a, b, c, d]) = note.descriptor.first_chunk() {
                    self.pvh_entry = Some(u32::from_le_bytes([a, b, c, d]).into());
                }
            }
            rest = next;
        }
        Ok(())
    }
}

struct Note<'a> {
    kind: u32,
    name: &'a [u8],
    descriptor: &'a [u8],
}

impl<'a> Note<'a> {
    fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let padded = |len: usize| len.checked_next_multiple_of(4);
        let (name_len, desc_len) = (usize::try_from(word(0)?).ok()?, usize::try_from(word(4)?).ok()?);
        let name_end = 12usize.checked_add(name_len)?;
        let desc_start = 12usize.checked_add(padded(name_len)?)?;
        let desc_end = desc_start.checked_add(desc_len)?;
        let next = desc_start.checked_add(padded(desc_len)?)?.min(bytes.len());
        let name = bytes.get(12..name_end)?;
        let note = Self {
            kind: word(8)?,
            name: name.strip_suffix(b"\0").unwrap_or(name),
            descriptor: bytes.get(desc_start..desc_end)?,
        };
        Some((note, &bytes[next..]))
    }
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
