use super::*;
use std::io::Write;

fn blob(content: &[u8]) -> Blob {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    Blob { file, offset: 0, len: content.len() as u64, path: "kernel".into() }
}

fn inspect(content: &[u8]) -> Result<KernelImage, ImageError> {
    KernelImage::inspect(blob(content))
}

fn why(content: &[u8]) -> String {
    inspect(content).unwrap_err().to_string()
}

/// An ELF file with one segment of `code` at 1 MiB, and the given notes.
fn elf_file(notes: &[u8], code: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 0x40 + 2 * 0x38];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    file[16..20].copy_from_slice(&[2, 0, 62, 0]);
    file[24..32].copy_from_slice(&0x10_0000u64.to_le_bytes());
    file[32..40].copy_from_slice(&0x40u64.to_le_bytes());
    file[54..56].copy_from_slice(&56u16.to_le_bytes());
    file[56..58].copy_from_slice(&2u16.to_le_bytes());
    let mut program = |index: usize, kind: u32, bytes: &[u8], gpa: u64| {
        let at = 0x40 + index * 0x38;
        let offset = file.len() as u64;
        file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
        file[at + 8..at + 16].copy_from_slice(&offset.to_le_bytes());
        file[at + 24..at + 32].copy_from_slice(&gpa.to_le_bytes());
        let len = (bytes.len() as u64).to_le_bytes();
        file[at + 32..at + 40].copy_from_slice(&len);
        file[at + 40..at + 48].copy_from_slice(&len);
        file.extend(bytes);
    };
    program(0, 4, notes, 0);
    program(1, 1, code, 0x10_0000);
    file
}

fn len(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap()
}

fn note(owner: &[u8], kind: u32, descriptor: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [len(owner) + 1, len(descriptor), kind] {
        note.extend(word.to_le_bytes());
    }
    for part in [[owner, b"\0"].concat(), descriptor.to_vec()] {
        note.extend(&part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

#[test]
fn the_pvh_entry_and_the_owner_linux_are_found_among_the_notes() {
    let notes =
        [note(b"GNU", 3, &[1; 20]), note(b"Linux", 0x100, b"x"), note(b"Xen", 18, &[0, 0, 0x10, 0])].concat();
    let image = inspect(&elf_file(&notes, &[0xf4])).unwrap();
    assert!(image.is_linux);
    let KernelFormat::Elf { segments, entry, pvh_entry } = image.format else { panic!("{image:?}") };
    assert_eq!((entry, pvh_entry), (0x10_0000, Some(0x10_0000)));
    assert_eq!((segments[0].gpa, segments[0].mem_len), (0x10_0000, 1));
}

#[test]
fn an_elf_without_notes_is_entered_by_the_64_bit_protocol() {
    let image = inspect(&elf_file(&[], &[0xf4])).unwrap();
    assert!(!image.is_linux);
    assert!(matches!(image.format, KernelFormat::Elf { pvh_entry: None, .. }));
}

#[test]
fn notes_that_lie_about_their_lengths_are_ignored() {
    for words in [[u32::MAX, 0, 18], [4, u32::MAX, 18], [u32::MAX, u32::MAX, u32::MAX]] {
        let mut notes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        notes.extend(b"Xen\0");
        let image = inspect(&elf_file(&notes, &[0xf4])).unwrap();
        assert!(matches!(image.format, KernelFormat::Elf { pvh_entry: None, .. }));
    }
}

#[test]
fn foreign_files_are_named_for_what_they_are() {
    assert!(why(b"").contains("empty"));
    assert!(why(b"#!").contains("too short"));
    assert!(why(&[0x55; 4096]).contains("neither an ELF file nor a bzImage"));
    let mut elf = elf_file(&[], &[0xf4]);
    elf[4] = 1;
    assert!(why(&elf).contains("32-bit ELF"));
    let mut elf = elf_file(&[], &[0xf4]);
    elf[18] = 183;
    assert!(why(&elf).contains("another processor"));
    let mut elf = elf_file(&[], &[0xf4]);
    elf[0x40 + 0x38] = 9;
    assert!(why(&elf).contains("without loadable segments"));
}

#[test]
fn truncated_files_say_how_much_is_missing() {
    let elf = elf_file(&[], &[0xf4; 4096]);
    assert!(matches!(inspect(&elf[..elf.len() - 1]), Err(ImageError::Truncated { .. })));
    assert!(matches!(inspect(&elf[..0x50]), Err(ImageError::Truncated { .. })));
    assert!(matches!(inspect(&elf[..0x20]), Err(ImageError::Truncated { .. })));
}

#[test]
fn a_bzimage_is_checked_against_its_own_header() {
    let mut image = vec![0; 8192];
    image[0x1f1] = 1; // setup sectors
    image[0x1f4..0x1f8].copy_from_slice(&64u32.to_le_bytes()); // 1 KiB of code
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    image[0x211] = 1;
    image[0x236] = 1;
    assert!(inspect(&image).unwrap().is_linux);
    assert!(matches!(inspect(&image[..2047]), Err(ImageError::Truncated { needed: 2048, len: 2047, .. })));
    image[0x236] = 0;
    assert!(why(&image).contains("32-bit bzImage"));
    image[0x207] = 1;
    assert!(why(&image).contains("older than 2.12"));
}

#[test]
fn a_directory_and_a_missing_file_are_told_apart() {
    assert!(matches!(Blob::open(Path::new("/")), Err(ImageError::NotAFile { .. })));
    assert!(matches!(Blob::open(Path::new("/nonexistent/x")), Err(ImageError::Read { .. })));
}
