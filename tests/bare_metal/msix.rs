//! Interrupts of PCI functions: the vectors of MSI-X on their way to the local APIC, where they are
//! seen in its request register.

use super::boot_state::noise;
use super::driver::*;
use super::guest::{Guest, u16_at, words};
use super::script::{LAPIC, RESULTS, Script, request_bit};
use crate::support::scratch;

const PCI: [&str; 2] = ["--transport", "pci"];

/// Vectors of the local APIC.
const CONFIG: u8 = 0x41;
const QUEUE: u8 = 0x62;
/// Messages for it.
const ADDRESS: u32 = LAPIC;

impl Script {
    /// Writes a vector of the table whole, and unmasks it.
    fn message(self, device: u32, vector: u32, [low, high, data]: [u32; 3]) -> Self {
        let entry = pci::bar(device) + pci::MSIX_TABLE + 16 * vector;
        self.write32(entry, low)
            .write32(entry + 4, high)
            .write32(entry + 8, data)
            .mask_vector(device, vector, false)
    }

    fn mask_vector(self, device: u32, vector: u32, masked: bool) -> Self {
        self.write32(pci::bar(device) + pci::MSIX_TABLE + 16 * vector + 12, masked.into())
    }

    fn msix_control(self, device: u32, control: u16) -> Self {
        self.write16(pci::space(device) + pci::MSIX_CONTROL, control)
    }

    /// A driver's whole start, with nothing on offer: vector 0 for changes of the configuration is
    /// [`CONFIG`], vector 1 is [`QUEUE`] and the queue's. The queue is at `base`.
    fn start_with_vectors(self, device: u32, base: u32) -> Self {
        let bar = pci::bar(device);
        self.enable_lapic()
            .offer(base, 0)
            .negotiate(Transport::Pci.device(device), 0)
            .msix_control(device, pci::MSIX_ENABLE)
            .message(device, 0, [ADDRESS, 0, CONFIG.into()])
            .message(device, 1, [ADDRESS, 0, QUEUE.into()])
            .write16(bar + pci::CONFIG_VECTOR, 0)
            .set_queue(Transport::Pci.device(device), 0, place(base))
            .write16(bar + pci::QUEUE_VECTOR, 1)
            .set(Transport::Pci.device(device), STATUS, LIVE)
    }

    /// Offers so many chains in all, and waits until they are used.
    fn request(self, device: u32, base: u32, count: u16) -> Self {
        self.offer(base, count).notify(Transport::Pci.device(device)).wait_used(base, count.into())
    }

    /// Sends the pending bits, and whether [`QUEUE`] and [`CONFIG`] have arrived, after some time
    /// in which they could.
    fn send_interrupts(self, device: u32) -> Self {
        self.sleep(2)
            .read32(pci::bar(device) + pci::MSIX_PENDING, RESULTS)
            .read_vector(QUEUE, RESULTS + 4)
            .read_vector(CONFIG, RESULTS + 8)
            .put(RESULTS, 12)
    }

    /// Waits for a pending bit, as long as it takes until the device has raised its vector.
    fn wait_pending(self, device: u32, vector: u32, pending: bool) -> Self {
        self.wait(pci::bar(device) + pci::MSIX_PENDING, 1 << vector, u32::from(pending) << vector)
    }
}

/// What [`Script::send_interrupts`] has sent: the pending bits, whether the queue's vector has
/// arrived, and the other.
fn interrupts(sent: &[u8]) -> (u32, bool, bool) {
    let words = words(sent);
    (words[0], words[1] & request_bit(QUEUE).1 != 0, words[2] & request_bit(CONFIG).1 != 0)
}

/// A guest with an entropy device's ring of as many chains as one likes: all are the same
/// descriptor.
fn guest(script: &Script) -> Guest {
    Guest::new(script).data(OTHER_RING, ring(&[(OTHER_DATA.into(), 16, WRITE, 0)], &[0; SIZE as usize]))
}

#[test]
fn a_disk_is_read_with_its_vector_and_no_other_interrupt() {
    let dir = scratch();
    let content = noise(512 * 8);
    let path = disk(dir.path(), &content);
    let script = Script::new()
        // Whatever came by a pin would be seen here: the first three of virtio's.
        .each([(5, 0x51), (6, 0x52), (7, 0x53)], |script, (pin, vector)| script.route(pin, vector, false))
        .start_with_vectors(0, RING)
        .request(0, RING, 2)
        .wait_for_vector(QUEUE)
        .send_interrupts(0)
        .read8(pci::bar(0) + pci::ISR, RESULTS)
        .read32(request_bit(0x51).0, RESULTS + 4)
        .read16(pci::space(0) + 6, RESULTS + 8)
        .put(RESULTS, 12)
        .put_two_reads();
    let output = Requests::two_reads().guest(&script).run(&["--disk", &path, PCI[0], PCI[1]]);
    assert_eq!(interrupts(&output[..12]), (0, true, false), "pending, the queue's, the configuration's");
    let [isr, pins, status] = words(&output[12..24])[..] else { panic!("three words") };
    let theirs = request_bit(0x51).1 | request_bit(0x52).1 | request_bit(0x53).1;
    assert_eq!((isr, pins & theirs, status & 8), (0, 0, 0), "neither a pin nor a status of INTx");
    insist_on_two_reads(&output[24..], &content);
}

#[test]
fn what_is_raised_while_its_vector_is_masked_in_whatever_way_is_pending_and_comes_afterwards() {
    type Mask = fn(Script, bool) -> Script;
    let masks: [(&str, Mask); 3] = [
        ("its own mask", |script, masked| script.mask_vector(0, 1, masked)),
        ("the function's mask", |script, masked| {
            script.msix_control(0, pci::MSIX_ENABLE | if masked { pci::MSIX_MASK_ALL } else { 0 })
        }),
        ("MSI-X off", |script, masked| script.msix_control(0, if masked { 0 } else { pci::MSIX_ENABLE })),
    ];
    for (what, mask) in masks {
        let script = mask(Script::new().start_with_vectors(0, OTHER_RING), true)
            // Twice: it comes once.
            .request(0, OTHER_RING, 1)
            .request(0, OTHER_RING, 2)
            .wait_pending(0, 1, true)
            .send_interrupts(0);
        let script = mask(script, false).wait_for_vector(QUEUE).wait_pending(0, 1, false).send_interrupts(0);
        let output = guest(&script).run(&PCI);
        assert_eq!(interrupts(&output[..12]), (2, false, false), "{what}: while it is masked");
        assert_eq!(interrupts(&output[12..]), (0, true, false), "{what}: afterwards");
    }
}

#[test]
fn masking_one_vector_leaves_the_other_alone() {
    // The queue breaks, which is a change of the configuration.
    let script = Script::new()
        .start_with_vectors(0, OTHER_RING)
        .mask_vector(0, 1, true)
        .request(0, OTHER_RING, 1)
        .wait_pending(0, 1, true)
        .offer(OTHER_RING, 1000)
        .notify(Transport::Pci.device(0))
        .wait_for_vector(CONFIG)
        .wait_needs_reset(Transport::Pci.device(0))
        .send_interrupts(0)
        // A reset takes the queue's choice of a vector away, and not what is pending.
        .set(Transport::Pci.device(0), STATUS, 0)
        .mask_vector(0, 1, false)
        .wait_for_vector(QUEUE);
    let (bothy, _kernel) = guest(&script).boot();
    let finished = bothy.args(PCI).run().code(0).says("the driver must reset the device");
    assert_eq!(interrupts(&finished.stdout), (2, false, true), "{}", finished.streams());
}

#[test]
fn a_queue_without_a_vector_is_served_and_a_vector_that_does_not_exist_is_none() {
    let vectors = [pci::CONFIG_VECTOR, pci::QUEUE_VECTOR].map(|at| pci::bar(0) + at);
    for none in [pci::NO_VECTOR, 2, 0x7ff, 0x8000, 0xfffe] {
        let script = Script::new()
            .start_with_vectors(0, OTHER_RING)
            .each(vectors.into_iter().zip(0..), |script, (at, n)| {
                script.read16(at, RESULTS + 8 * n).write16(at, none).read16(at, RESULTS + 8 * n + 4)
            })
            .put(RESULTS, 16)
            .request(0, OTHER_RING, 1)
            .send_interrupts(0)
            // It can have one again.
            .write16(vectors[1], 1)
            .request(0, OTHER_RING, 2)
            .wait_for_vector(QUEUE)
            .offer(OTHER_RING, 1000)
            .notify(Transport::Pci.device(0))
            .wait_needs_reset(Transport::Pci.device(0))
            .send_interrupts(0);
        let (bothy, _kernel) = guest(&script).boot();
        let finished = bothy.args(PCI).run().code(0);
        let output = &finished.stdout;
        assert_eq!(words(&output[..16]), [0, 0xffff, 1, 0xffff], "{none:#x}: {}", finished.streams());
        assert_eq!(interrupts(&output[16..28]), (0, false, false), "{none:#x} for the queue");
        assert_eq!(interrupts(&output[28..]), (0, true, false), "{none:#x} for the configuration");
    }
}

#[test]
fn a_vector_of_a_queue_that_does_not_exist_is_none_and_a_reset_takes_all_away() {
    let bar = pci::bar(0);
    let script = Script::new()
        .start_with_vectors(0, OTHER_RING)
        .each([1, 0x7fff, 0xffff].into_iter().zip(0..), |script, (queue, n)| {
            script
                .write16(bar + pci::QUEUE_SELECT, queue)
                .write16(bar + pci::QUEUE_VECTOR, 1)
                .read16(bar + pci::QUEUE_VECTOR, RESULTS + 2 * n)
        })
        .set(Transport::Pci.device(0), STATUS, 0)
        .read16(bar + pci::QUEUE_VECTOR, RESULTS + 6)
        .read16(bar + pci::CONFIG_VECTOR, RESULTS + 8)
        .put(RESULTS, 10);
    let output = guest(&script).run(&PCI);
    assert!((0..5).all(|n| u16_at(&output, 2 * n) == pci::NO_VECTOR), "{output:x?}");
}

#[test]
fn a_message_that_changes_while_it_is_live_is_the_next_interrupt() {
    let script = Script::new()
        .start_with_vectors(0, OTHER_RING)
        .request(0, OTHER_RING, 1)
        .wait_for_vector(QUEUE)
        .write32(pci::bar(0) + pci::MSIX_TABLE + 16 + 8, 0x73)
        .request(0, OTHER_RING, 2)
        .wait_for_vector(0x73)
        .read32(pci::bar(0) + pci::MSIX_TABLE + 16 + 8, RESULTS)
        .put(RESULTS, 4);
    assert_eq!(words(&guest(&script).run(&PCI)), [0x73]);
}

/// Machine code for 32-bit protected mode, at [`EOI_CODE`]: takes interrupts, answers [`QUEUE`] by
/// an end of interrupt, sends `E`, and resets.
const EOI_CODE: u32 = 0x82_0000;
/// An interrupt descriptor table, and behind it what LIDT reads.
const EOI_IDT: u32 = 0x81_0000;

/// The code, and the table.
fn end_of_interrupt() -> (Vec<u8>, Vec<u8>) {
    let gate = EOI_IDT + 8 * u32::from(QUEUE);
    let pseudo = EOI_IDT + 0x800;
    let mut code = vec![0xbc]; // mov esp, EOI_IDT
    code.extend(EOI_IDT.to_le_bytes());
    code.extend([0x8c, 0xc8, 0x66, 0xa3]); // mov eax, cs; mov [gate + 2], ax
    code.extend((gate + 2).to_le_bytes());
    code.extend([0x0f, 0x01, 0x1d]); // lidt [pseudo]
    code.extend(pseudo.to_le_bytes());
    code.extend([0xfb, 0x90, 0xeb, 0xfd]); // sti; loop: nop; jmp loop
    let handler = EOI_CODE + u32::try_from(code.len()).unwrap();
    code.extend([0xc7, 0x05]); // mov dword [LAPIC + 0xb0], 0
    code.extend((LAPIC + 0xb0).to_le_bytes());
    code.extend([0; 4]);
    // mov dx, 0x3f8; mov al, 'E'; out dx, al; mov al, 0xfe; out 0x64, al; loop: hlt; jmp loop
    code.extend([0x66, 0xba, 0xf8, 0x03, 0xb0, b'E', 0xee, 0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd]);
    let mut table = vec![0; 0x800];
    let [a, b, c, d] = handler.to_le_bytes();
    // An interrupt gate; the code writes the selector.
    table[8 * usize::from(QUEUE)..][..8].copy_from_slice(&[a, b, 0, 0, 0, 0x8e, c, d]);
    table.extend(0x7ff_u16.to_le_bytes());
    table.extend(EOI_IDT.to_le_bytes());
    (code, table)
}

#[test]
fn a_guest_may_end_an_interrupt_that_it_wanted_as_a_level() {
    let script = Script::new()
        .start_with_vectors(0, OTHER_RING)
        // Asserted, and a level: KVM reports the end of such an interrupt, because an IOAPIC in
        // user space may wait for it.
        .message(0, 1, [ADDRESS, 0, 0xc000 | u32::from(QUEUE)])
        .request(0, OTHER_RING, 1)
        .wait_for_vector(QUEUE)
        .execute(EOI_CODE);
    let (code, table) = end_of_interrupt();
    let output = guest(&script).data(EOI_CODE, code).data(EOI_IDT, table).run(&PCI);
    assert_eq!(output, b"E");
}

/// Messages that are nobody's, or no fixed interrupt: addresses, and then what is written there.
const BAD_MESSAGES: [[u32; 3]; 18] = [
    [0, 0, 0],
    [0, 0, 0x95],
    [0xd000_0000, 0, 0x95],
    [0x40_0000, 0, 0x95],
    // Processors that there are not: one, all of them, in logical mode, by a high half.
    [0xfee7_0000, 0, 0x95],
    [0xfeef_f000, 0, 0x95],
    [0xfeef_f00c, 0, 0x95],
    [0xfee0_0000, 1, 0x95],
    [0xfee0_0000, 0xff, 0x95],
    [0xfee0_0000, 0x100, 0x95],
    [0xfee0_0000, u32::MAX, 0x95],
    [u32::MAX, u32::MAX, 0x95],
    // Vectors that may not be, level-triggered ones, the lowest priority, reserved modes, ExtINT.
    [0xfee0_0000, 0, 0],
    [0xfee0_0000, 0, 0x0f],
    [0xfee0_0000, 0, 0xc095],
    [0xfee0_0000, 0, 0x0195],
    [0xfee0_0000, 0, 0x0395],
    [0xfee0_0000, 0, 0x0795],
];

#[test]
fn a_message_to_nowhere_does_no_harm_and_a_good_one_works_afterwards() {
    for message in BAD_MESSAGES {
        // The disk's message is bad before its vector is live or after that, and is changed while
        // it is masked or isn't; the entropy device has a good one.
        for (live, masked) in [(false, false), (false, true), (true, false), (true, true)] {
            let dir = scratch();
            let path = disk(dir.path(), &noise(512));
            let script = Script::new().start_with_vectors(0, RING);
            let script = if live { script } else { script.mask_vector(0, 1, true) };
            let script = script
                .message(0, 1, message)
                .request(0, RING, 1)
                .sleep(1)
                .start_with_vectors(1, OTHER_RING)
                .message(1, 1, [ADDRESS, 0, 0x83])
                .request(1, OTHER_RING, 1)
                .wait_for_vector(0x83)
                .say(b'e')
                .mask_vector(0, 1, masked)
                .message(0, 1, [ADDRESS, 0, 0x84])
                .write16(RING + AVAIL + 6, 0)
                .request(0, RING, 2)
                .wait_for_vector(0x84)
                .put(STATUS_BYTE, 1);
            let (bothy, _kernel) =
                Requests::default().add(BLK_IN, 0, Some((DATA, 512, true))).guest(&script).boot();
            let finished = bothy.args(PCI).args(["--disk", &path]).run().code(0);
            assert_eq!(
                finished.stdout,
                [b'e', OK],
                "{message:x?} live {live}, masked {masked}: {}",
                finished.streams()
            );
        }
    }
}

#[test]
fn a_table_takes_whole_words_alone_and_has_no_more_of_them_than_vectors() {
    let table = pci::bar(0) + pci::MSIX_TABLE;
    let script = Script::new()
        .start_with_vectors(0, OTHER_RING)
        // A byte, a half, and four bytes across two words.
        .write8(table + 16, 0xff)
        .write16(table + 16 + 8, 0xff)
        .write32(table + 16 + 6, u32::MAX)
        .write32(table + 16 + 1, u32::MAX)
        // Behind the last vector, and the pending bits.
        .write32(table + 32, 0)
        .write32(table + 0xffc, 0)
        .write32(pci::bar(0) + pci::MSIX_PENDING, u32::MAX)
        .each(0..4, |script, n| script.read32(table + 16 + 4 * n, RESULTS + 4 * n))
        .read32(pci::bar(0) + pci::MSIX_PENDING, RESULTS + 16)
        // Of a vector's control there is one bit.
        .write32(table + 12, u32::MAX)
        .read32(table + 12, RESULTS + 20)
        .put(RESULTS, 24)
        .request(0, OTHER_RING, 1)
        .wait_for_vector(QUEUE);
    assert_eq!(words(&guest(&script).run(&PCI)), [ADDRESS, 0, QUEUE.into(), 0, 0, 1]);
}

#[test]
fn a_message_that_is_no_interrupt_ends_the_guest_that_wrote_it_and_nothing_else() {
    const NMI: u32 = 0x400;
    const INIT: u32 = 0x500;
    // The guest has no handler, and nothing where a processor starts; what KVM makes of that
    // depends on the host.
    for message in [NMI, INIT] {
        let script = Script::new()
            .start_with_vectors(0, OTHER_RING)
            .message(0, 1, [ADDRESS, 0, message])
            .request(0, OTHER_RING, 1)
            .spin();
        let (bothy, _kernel) = guest(&script).boot();
        let finished = bothy.args(PCI).run();
        assert!(matches!(finished.code, 4 | 5), "{message:#x}: {} {}", finished.code, finished.streams());
    }
}
