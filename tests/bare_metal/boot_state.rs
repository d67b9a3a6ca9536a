//! What a kernel finds at its first instruction: registers, boot parameters, memory map, command
//! line, initramfs.

use std::path::Path;

use super::asm::{CODE_GPA, STATE_32_GPA, STATE_64_GPA};
use super::guest::{Guest, Segment, bzimage, elf, long_result, u16_at, u32_at, u64_at, words};
use super::script::{RESULTS, Script};
use crate::support;

const START_INFO: u32 = 0x6000;
const ZERO_PAGE: u32 = 0x7000;
const CMDLINE: u32 = 0x2_0000;
const RSDP: u64 = 0xe_0000;
const RAM: u32 = 1;
const RESERVED: u32 = 2;
/// The map of a VM with 32 MiB.
const MAP_32M: [(u64, u64, u32); 4] = [
    (0, 0x9_fc00, RAM),
    (0x9_fc00, 0x6_0400, RESERVED),
    (0x10_0000, 31 << 20, RAM),
    (0xe000_0000, 0x10_0000, RESERVED),
];

/// Start info, its memory map (8 entries), and the command line.
fn pvh_info(args: &[&str]) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let script = Script::new().put(START_INFO, 0x200).put(CMDLINE, 2048);
    let output = Guest::new(&script).run(args);
    let (info, rest) = output.split_at(0x200);
    let map = usize::try_from(u64_at(info, 40)).unwrap() - START_INFO as usize;
    (info[..56].to_vec(), info[map..].to_vec(), rest.to_vec())
}

fn pvh_map(info: &[u8], map: &[u8]) -> Vec<(u64, u64, u32)> {
    let count = u32_at(info, 48) as usize;
    (0..count).map(|n| (u64_at(map, n * 24), u64_at(map, n * 24 + 8), u32_at(map, n * 24 + 16))).collect()
}

/// The zero page and the command line.
fn zero_page(args: &[&str]) -> (Vec<u8>, Vec<u8>) {
    let script = Script::new().put(ZERO_PAGE, 4096).put(CMDLINE, 2048);
    let output = Guest::without_note(&script).run(args);
    let (page, cmdline) = output.split_at(4096);
    (page.to_vec(), cmdline.to_vec())
}

fn e820(page: &[u8]) -> Vec<(u64, u64, u32)> {
    let entry = |n: usize| 0x2d0 + 20 * n;
    (0..usize::from(page[0x1e8]))
        .map(|n| (u64_at(page, entry(n)), u64_at(page, entry(n) + 8), u32_at(page, entry(n) + 16)))
        .collect()
}

/// The text up to the NUL.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).expect("the command line ends");
    String::from_utf8(bytes[..end].to_vec()).unwrap()
}

#[test]
fn pvh_enters_protected_mode_with_ebx_at_the_start_info() {
    let state = words(&Guest::new(&Script::new().put(STATE_32_GPA, 0x5c)).run(&[]));
    assert_eq!(state[1], START_INFO, "EBX");
    assert_eq!(state[8] & 0x2_0200, 0, "EFLAGS: no interrupts, no virtual 8086 mode: {:#x}", state[8]);
    assert_eq!(state[8] & 2, 2, "EFLAGS: bit 1");
    assert_eq!(state[9] & 0x8000_0001, 1, "CR0: protected, no paging: {:#x}", state[9]);
    assert_eq!(state[11], 0, "CR4");
    assert_eq!(state[22] & 0x500, 0, "EFER: no long mode");
    let selectors = &state[12..16];
    assert_ne!(selectors[0], 0, "CS");
    assert!(selectors[1] == selectors[2] && selectors[2] == selectors[3], "DS, ES, SS: {selectors:x?}");
    let (gdt_limit, gdt_base) = (state[18] & 0xffff, state[18] >> 16 | state[19] << 16);
    assert!(gdt_base == 0x500 && gdt_limit == 39, "GDT at {gdt_base:#x}, limit {gdt_limit:#x}");
}

#[test]
fn the_descriptors_that_segments_were_loaded_from_are_in_memory() {
    let gdt = Guest::new(&Script::new().put(0x500, 40)).run(&[]);
    // Accessed bits may or may not be set by then.
    let entries: Vec<u64> = (0..5).map(|n| u64_at(&gdt, n * 8) & !(1 << 40)).collect();
    assert_eq!(entries[..4], [0, 0, 0x00cf_9a00_0000_ffff, 0x00cf_9200_0000_ffff]);
    assert_eq!(u64_at(&gdt, 32), 0x0000_8b00_0000_0067, "a busy TSS");
}

#[test]
fn pvh_start_info_has_magic_map_command_line_and_rsdp() {
    let (info, map, cmdline) = pvh_info(&["--append", "one two=3"]);
    assert_eq!(u32_at(&info, 0), 0x336e_c578, "magic");
    assert_eq!(u32_at(&info, 4), 1, "version");
    assert_eq!((u32_at(&info, 12), u64_at(&info, 16)), (0, 0), "no modules");
    assert_eq!(u64_at(&info, 24), u64::from(CMDLINE));
    assert_eq!(u64_at(&info, 32), RSDP);
    assert_eq!(pvh_map(&info, &map), MAP_32M);
    assert_eq!(text(&cmdline), "console=ttyS0,115200n8r one two=3");
}

#[test]
fn linux64_enters_long_mode_with_rsi_at_the_zero_page() {
    let state = Guest::without_note(&Script::new().put(STATE_64_GPA, 0x88)).run(&[]);
    let at = |n: usize| u64_at(&state, n * 8);
    assert_eq!(at(4), u64::from(ZERO_PAGE), "RSI");
    assert_eq!(at(8) & 0x202, 2, "RFLAGS: no interrupts: {:#x}", at(8));
    assert_eq!(at(9) & 0x8000_0001, 0x8000_0001, "CR0: protected, paging: {:#x}", at(9));
    assert_eq!(at(10), 0x9000, "CR3");
    assert_eq!(at(11) & 0x20, 0x20, "CR4: PAE: {:#x}", at(11));
    assert_eq!(at(12) & 0x500, 0x500, "EFER: long mode: {:#x}", at(12));
    assert_eq!(
        (at(13), at(14), at(15), at(16)),
        (0x10, 0x18, 0x18, 0x18),
        "CS, DS, SS, ES: __BOOT_CS and __BOOT_DS"
    );
}

#[test]
fn the_zero_page_has_header_map_command_line_and_rsdp() {
    let (page, cmdline) = zero_page(&["--append", "one two=3"]);
    assert_eq!(&page[0x202..0x206], b"HdrS");
    assert_eq!(u16_at(&page, 0x1fe), 0xaa55, "boot flag");
    assert!(u16_at(&page, 0x206) >= 0x20c, "protocol");
    assert_ne!(page[0x210], 0, "type of loader");
    assert_eq!(u32_at(&page, 0x228), CMDLINE);
    assert_eq!((u32_at(&page, 0x218), u32_at(&page, 0x21c)), (0, 0), "no ramdisk");
    assert_eq!(u64_at(&page, 0x70), RSDP);
    assert_eq!(e820(&page), MAP_32M);
    let expected = "console=ttyS0,115200n8r one two=3";
    assert_eq!(text(&cmdline), expected);
    assert!(u32_at(&page, 0x238) as usize >= expected.len(), "cmdline_size");
}

#[test]
fn without_a_console_the_command_line_names_none() {
    let dir = support::scratch();
    // With no serial port there is nothing to see, so the guest compares: the first word of its
    // command line.
    let expected = u32::from_le_bytes(*b"word");
    let script = Script::new().wait(CMDLINE, u32::MAX, expected).out8(0x505, 1).halt();
    let kernel = Guest::new(&script).write(dir.path());
    support::Bothy::boot(&kernel).args(["--console", "none", "--append", "word"]).run().code(3);
}

#[test]
fn the_longest_command_line_arrives_and_a_longer_one_is_refused() {
    let prefix = "console=ttyS0,115200n8r ".len();
    let longest = "x".repeat(2047 - prefix);
    let (_, _, cmdline) = pvh_info(&["--append", &longest]);
    assert!(text(&cmdline).ends_with(&longest));
    let (bothy, _dir) = Guest::new(&Script::new()).boot();
    bothy.args(["--append", &format!("{longest}x")]).run().code(2).says("--append");
}

#[test]
fn memory_that_the_kernel_file_leaves_open_is_zero() {
    let dir = support::scratch();
    let script = Script::new().put(0x40_0000, 8).put(0x80_0000, 16).bytes();
    let code = super::asm::code();
    let segment = |gpa, bytes, extra| Segment { gpa, bytes, extra };
    let segments = [
        segment(CODE_GPA.into(), code, 0),
        segment(0x20_0000, &script, 0),
        segment(0x40_0000, &b"abc"[..], 0x1000),
    ];
    let note = (&b"Xen\0"[..], 18, u64::from(CODE_GPA).to_le_bytes().to_vec());
    let kernel = support::file(dir.path(), "kernel", &elf(0, &segments, &[note]));
    let output = support::Bothy::boot(&kernel).run().output();
    assert_eq!(output, [&b"abc\0\0\0\0\0"[..], &[0; 16]].concat());
}

/// Bytes that repeat only after a long time.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491u32;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Boots twice: to learn where the initramfs is, and to see it. The place is by the same rule both
/// times.
fn initrd_arrives(linux64: bool, dir: &Path, len: usize) {
    let content = noise(len);
    let initrd = support::file(dir, "initrd", &content);
    let args = ["--initrd", initrd.to_str().unwrap()];
    let (start, size) = if linux64 {
        let (page, _) = zero_page(&args);
        (u64::from(u32_at(&page, 0x218)), u64::from(u32_at(&page, 0x21c)))
    } else {
        let list = Script::new().put(START_INFO, 56).put(0x6040, 32);
        let output = Guest::new(&list).run(&args);
        assert_eq!((u32_at(&output, 12), u64_at(&output, 16)), (1, 0x6040), "one module");
        (u64_at(&output, 56), u64_at(&output, 64))
    };
    assert_eq!(size, content.len() as u64);
    assert_eq!(start % 4096, 0);
    assert!(start >= 0x30_0000 && start + size <= 32 << 20, "{start:#x}");
    let (gpa, len) = (u32::try_from(start).unwrap(), u32::try_from(len).unwrap());
    let script = Script::new().put(gpa, len);
    let guest = if linux64 { Guest::without_note(&script) } else { Guest::new(&script) };
    assert!(guest.run(&args) == content, "the initramfs of {len} bytes differs");
}

#[test]
fn an_initramfs_arrives_by_pvh() {
    let dir = support::scratch();
    for len in [1, 5000] {
        initrd_arrives(false, dir.path(), len);
    }
}

#[test]
fn an_initramfs_arrives_by_the_64_bit_protocol() {
    let dir = support::scratch();
    for len in [1, 5000] {
        initrd_arrives(true, dir.path(), len);
    }
}

#[test]
fn a_large_initramfs_of_odd_length_arrives_by_pvh() {
    let dir = support::scratch();
    initrd_arrives(false, dir.path(), 64 * 1024 + 4096 + 1237);
}

#[test]
fn a_large_initramfs_of_whole_pages_arrives_by_the_64_bit_protocol() {
    let dir = support::scratch();
    initrd_arrives(true, dir.path(), 72 * 1024);
}

#[test]
fn a_guest_that_overwrites_its_initramfs_leaves_the_file_alone() {
    let dir = support::scratch();
    let content = noise(80 * 1024);
    let initrd = support::file(dir.path(), "initrd", &content);
    let start = (32 << 20) - 80 * 1024;
    let script = Script::new().put(start, 4).fill(start, 0xee, 80 * 1024).put(start, 4);
    let output = Guest::new(&script).run(&["--initrd", initrd.to_str().unwrap()]);
    assert_eq!(output, [&content[..4], &[0xee; 4]].concat());
    assert!(std::fs::read(&initrd).unwrap() == content, "the file has changed");
}

#[test]
fn a_large_kernel_segment_is_loaded_byte_exact_and_its_file_stays_as_it_is() {
    let dir = support::scratch();
    let content = noise(70_001);
    let script = Script::new().put(0x40_0000, 70_001).fill(0x40_0000, 0, 70_001);
    let kernel = Guest::new(&script).data(0x40_0000, content.clone()).write(dir.path());
    let before = std::fs::read(&kernel).unwrap();
    assert!(support::Bothy::boot(&kernel).run().output() == content);
    assert!(std::fs::read(&kernel).unwrap() == before, "the kernel's file has changed");
}

#[test]
fn memory_up_to_its_very_end_is_there_and_none_behind() {
    let end: u32 = 32 << 20;
    let script = Script::new()
        .write32(end - 4, 0x1234_5678)
        .read32(end - 4, RESULTS)
        .write32(end, 0x1234_5678)
        .read32(end, RESULTS + 4)
        .put(RESULTS, 8);
    assert_eq!(words(&Guest::new(&script).run(&[])), [0x1234_5678, u32::MAX]);
}

#[test]
fn memory_past_the_hole_is_in_both_maps() {
    let map_5g = [
        (0, 0x9_fc00, RAM),
        (0x9_fc00, 0x6_0400, RESERVED),
        (0x10_0000, 0xbff0_0000, RAM),
        (0xe000_0000, 0x10_0000, RESERVED),
        (0x1_0000_0000, 2 << 30, RAM),
    ];
    let script = Script::new().put(START_INFO, 0x200);
    let dir = support::scratch();
    let boot = |guest: &Guest| {
        let kernel = guest.write(dir.path());
        support::Bothy::new(["boot", "--memory", "5G", "--kernel"]).args([&kernel]).run().output()
    };
    let info = boot(&Guest::new(&script));
    assert_eq!(pvh_map(&info, &info[0x80..]), map_5g);
    let page = boot(&Guest::without_note(&Script::new().put(ZERO_PAGE, 4096)));
    assert_eq!(e820(&page), map_5g);
}

#[test]
fn memory_above_4_gib_holds_what_is_written_and_the_hole_reads_ones() {
    let accesses: &[(u64, u64, u64)] = &[
        (1, 0xbfff_fff8, 0x1111_2222_3333_4444),
        (1, 0xc000_0000, 0x5555),
        (1, 0x1_0000_0000, 0x6666_7777_8888_9999),
        (1, 0x1_7fff_fff8, 0xaaaa_bbbb_cccc_dddd),
        (1, 0x1_8000_0000, 0x5555),
        (2, 0xbfff_fff8, 0),
        (2, 0xc000_0000, 0),
        (2, 0xffff_fff8, 0),
        (2, 0x1_0000_0000, 0),
        (2, 0x1_7fff_fff8, 0),
        (2, 0x1_8000_0000, 0),
    ];
    let dir = support::scratch();
    let script = Script::new().each(5..11, |script, n| script.put(long_result(n), 8));
    let kernel = Guest::with_long_accesses(&script, accesses).write(dir.path());
    let output = support::Bothy::new(["boot", "--memory", "5G", "--kernel"]).args([&kernel]).run().output();
    let read: Vec<u64> = (0..6).map(|n| u64_at(&output, 8 * n)).collect();
    let ones = u64::MAX;
    assert_eq!(read, [accesses[0].2, ones, ones, accesses[2].2, accesses[3].2, ones], "{read:x?}");
}

#[test]
fn a_bzimage_is_entered_in_long_mode_with_its_own_header_continued() {
    let dir = support::scratch();
    let script = Script::new().put(ZERO_PAGE, 4096).put(STATE_64_GPA + 0x20, 8).put(CMDLINE, 64);
    let kernel = support::file(dir.path(), "bzImage", &bzimage(&script));
    let initrd = support::file(dir.path(), "initrd", &noise(5000));
    // A bzImage is taken for Linux.
    let words = ["--force", "--append", "x", "--initrd", initrd.to_str().unwrap()];
    let output = support::Bothy::boot(&kernel).args(words).run().output();
    let (page, rest) = output.split_at(4096);
    assert_eq!(&page[0x202..0x206], b"HdrS");
    assert_eq!(u32_at(page, 0x260), 0x80_0000, "init_size, as the file has it");
    assert_eq!(u32_at(page, 0x228), CMDLINE);
    assert_eq!(u32_at(page, 0x21c), 5000, "the size of the initramfs");
    let initrd_start = u32_at(page, 0x218);
    assert!(
        (0x90_0000..=0x00ff_ffff - 4999).contains(&initrd_start),
        "below initrd_addr_max: {initrd_start:#x}"
    );
    assert_eq!(e820(page), MAP_32M);
    assert_eq!(u64_at(rest, 0), u64::from(ZERO_PAGE), "RSI");
    assert_eq!(text(&rest[8..]), "console=ttyS0,115200n8r x");
}
