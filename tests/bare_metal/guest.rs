//! A guest as a file: an ELF that bothy boots, made of the interpreter, a script, and whatever data
//! the script works on.

use std::path::{Path, PathBuf};

use super::asm;
use super::script::Script;
use crate::support;

/// A note: its owner, type and descriptor.
pub(crate) type Note = (&'static [u8], u32, Vec<u8>);

const XEN_PHYS32_ENTRY: u32 = 18;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// A bare-metal guest.
pub(crate) struct Guest {
    segments: Vec<(u32, Vec<u8>)>,
    notes: Vec<Note>,
    entry: u32,
}

impl Guest {
    /// Entered by the PVH protocol.
    pub(crate) fn new(script: &Script) -> Self {
        let note = (&b"Xen\0"[..], XEN_PHYS32_ENTRY, asm::CODE_GPA.to_le_bytes().to_vec());
        Self { notes: vec![note], entry: 0, ..Self::without_note(script) }
    }

    /// Entered by the 64-bit boot protocol; goes on in 32 bits.
    pub(crate) fn without_note(script: &Script) -> Self {
        let segments = vec![(asm::CODE_GPA, asm::code().to_vec()), (asm::SCRIPT_GPA, script.bytes())];
        Self { segments, notes: Vec::new(), entry: asm::long_entry() }
    }

    /// Entered by the 64-bit boot protocol; makes accesses of eight bytes to the first 8 GiB before
    /// the script begins. Each is an operation (1 write, 2 read), an address and a value;
    /// [`long_result`] finds what was read.
    pub(crate) fn with_long_accesses(script: &Script, accesses: &[(u64, u64, u64)]) -> Self {
        // The identity map of the 64-bit entry covers the first GiB only, so this brings one of its
        // own.
        const PML4: u64 = 0x1e_0000;
        const PDPT: u64 = PML4 + 4096;
        let mut tables = vec![0; 8192];
        tables[..8].copy_from_slice(&(PDPT | 3).to_le_bytes());
        // 2 MiB pages, since not every processor has larger ones.
        for gib in 0..8u64 {
            let at = 4096 + usize::try_from(gib).expect("8 of them") * 8;
            tables[at..at + 8].copy_from_slice(&((PDPT + (gib + 1) * 4096) | 3).to_le_bytes());
            tables.extend((0..512u64).flat_map(|page| (gib << 30 | page << 21 | 0x83).to_le_bytes()));
        }
        let mut list = [PML4, 0].map(u64::to_le_bytes).concat();
        for (operation, gpa, value) in accesses {
            list.extend([*operation, *gpa, *value, 0].iter().flat_map(|word| word.to_le_bytes()));
        }
        list.extend([0; 32]);
        assert!(u64::from(asm::LONG_TABLE_GPA) + list.len() as u64 <= PML4, "too many accesses");
        let tables_gpa = u32::try_from(PML4).expect("low");
        Self::without_note(script).data(asm::LONG_TABLE_GPA, list).data(tables_gpa, tables)
    }

    /// Puts data into memory, at 1 MiB or above.
    pub(crate) fn data(mut self, gpa: u32, bytes: impl Into<Vec<u8>>) -> Self {
        self.segments.push((gpa, bytes.into()));
        self
    }

    /// Adds a note.
    pub(crate) fn note(mut self, note: Note) -> Self {
        self.notes.push(note);
        self
    }

    /// The file's content.
    pub(crate) fn elf(&self) -> Vec<u8> {
        let segments: Vec<Segment<'_>> = self
            .segments
            .iter()
            .map(|(gpa, bytes)| Segment { gpa: u64::from(*gpa), bytes, extra: 0 })
            .collect();
        elf(self.entry.into(), &segments, &self.notes)
    }

    /// Writes the file into `dir`.
    pub(crate) fn write(&self, dir: &Path) -> PathBuf {
        support::file(dir, "guest.elf", &self.elf())
    }

    /// `bothy boot` of this guest; the file lives as long as the second result.
    pub(crate) fn boot(&self) -> (support::Bothy, tempfile::TempDir) {
        let dir = support::scratch();
        (support::Bothy::boot(&self.write(dir.path())), dir)
    }

    /// Boots it with these further words, and gives what it sent to the serial port before it
    /// reset.
    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> Vec<u8> {
        let (bothy, _dir) = self.boot();
        let output = bothy.args(args).run().output();
        assert!(
            !output.ends_with(b"T!"),
            "the guest waited in vain, after {:?}",
            output.escape_ascii().to_string()
        );
        output
    }
}

/// Where the value of access number `n` of [`Guest::with_long_accesses`] is.
pub(crate) fn long_result(n: u32) -> u32 {
    asm::LONG_TABLE_GPA + 16 + 32 * n + 16
}

/// A loadable segment of an ELF file: its bytes, and how many zeros come behind them in memory.
pub(crate) struct Segment<'a> {
    pub(crate) gpa: u64,
    pub(crate) bytes: &'a [u8],
    pub(crate) extra: u64,
}

/// A 64-bit ELF file for x86-64.
pub(crate) fn elf(entry: u64, segments: &[Segment<'_>], notes: &[Note]) -> Vec<u8> {
    const HEADER: usize = 64;
    const PROGRAM_HEADER: usize = 56;
    let count = segments.len() + usize::from(!notes.is_empty());
    let mut content = vec![0; HEADER + PROGRAM_HEADER * count];
    let mut programs = Vec::new();
    if !notes.is_empty() {
        let bytes = note_bytes(notes);
        programs.push((PT_NOTE, content.len(), 0, bytes.len() as u64, bytes.len() as u64));
        content.extend(bytes);
    }
    for segment in segments {
        // Aligned like a linker does it, which is what lets bothy map large ones.
        content.resize(content.len().next_multiple_of(4096), 0);
        let len = segment.bytes.len() as u64;
        programs.push((PT_LOAD, content.len(), segment.gpa, len, len + segment.extra));
        content.extend(segment.bytes);
    }
    let mut header = b"\x7fELF\x02\x01\x01".to_vec();
    header.resize(16, 0);
    header.extend(2u16.to_le_bytes());
    header.extend(62u16.to_le_bytes());
    header.extend(1u32.to_le_bytes());
    header.extend(entry.to_le_bytes());
    header.extend((HEADER as u64).to_le_bytes());
    header.extend(0u64.to_le_bytes());
    header.extend(0u32.to_le_bytes());
    for half in [HEADER, PROGRAM_HEADER, count, 64, 0, 0] {
        header.extend(u16::try_from(half).expect("few headers").to_le_bytes());
    }
    for (kind, offset, gpa, file_len, mem_len) in programs {
        header.extend(kind.to_le_bytes());
        header.extend(7u32.to_le_bytes());
        for word in [offset as u64, gpa, gpa, file_len, mem_len, 4096] {
            header.extend(word.to_le_bytes());
        }
    }
    content[..header.len()].copy_from_slice(&header);
    content
}

/// A bzImage that does what `script` says: a setup header, and behind it what goes to 1 MiB, its
/// 64-bit entry 0x200 bytes in.
pub(crate) fn bzimage(script: &Script) -> Vec<u8> {
    const HIGH: u32 = 0x10_0000;
    let mut payload = vec![0; 0x200];
    // jmp rel32
    payload.push(0xe9);
    payload.extend((asm::long_entry() - (HIGH + 0x205)).to_le_bytes());
    payload.resize((asm::CODE_GPA - HIGH) as usize, 0);
    payload.extend(asm::code());
    payload.resize((asm::SCRIPT_GPA - HIGH) as usize, 0);
    payload.extend(script.bytes());
    payload.resize(payload.len().next_multiple_of(16), 0);
    let mut image = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1f4, &u32::try_from(payload.len() / 16).expect("a few MiB").to_le_bytes());
    put(0x1fe, &[0x55, 0xaa]);
    put(0x202, b"HdrS");
    put(0x206, &0x20fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x214, &HIGH.to_le_bytes());
    put(0x22c, &0x00ff_ffffu32.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x234, &[1, 21, 1, 0]);
    put(0x258, &u64::from(HIGH).to_le_bytes());
    put(0x260, &0x80_0000u32.to_le_bytes());
    image.extend(payload);
    image
}

fn note_bytes(notes: &[Note]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (owner, kind, descriptor) in notes {
        let word = |n: usize| u32::try_from(n).expect("notes are short").to_le_bytes();
        bytes.extend(word(owner.len()));
        bytes.extend(word(descriptor.len()));
        bytes.extend(kind.to_le_bytes());
        for part in [owner, descriptor.as_slice()] {
            bytes.extend(part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
    }
    bytes
}

/// The little-endian 16-bit number at `at`.
#[track_caller]
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

/// The little-endian 32-bit number at `at`.
#[track_caller]
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// The little-endian 64-bit number at `at`.
#[track_caller]
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The 32-bit numbers that `bytes` are made of.
pub(crate) fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|word| u32_at(word, 0)).collect()
}
