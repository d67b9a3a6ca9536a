//! What a guest does, written in Rust: a list of small steps that the interpreter of
//! [`asm`](super::asm) goes through.

use super::asm::SCRIPT_GPA;

pub(crate) const SERIAL: u16 = 0x3f8;
pub(crate) const LAPIC: u32 = 0xfee0_0000;
pub(crate) const IOAPIC: u32 = 0xfec0_0000;
pub(crate) const ACPI: u16 = 0x600;
/// The Generic Event Device's.
pub(crate) const POWER_PIN: u8 = 3;

/// Where steps that read something may put it: free memory.
pub(crate) const RESULTS: u32 = 0x80_0000;

/// The steps of a guest. Its end is a reset by the keyboard controller, since that is what an entry
/// of zeros means.
#[derive(Clone, Default)]
pub(crate) struct Script(Vec<[u32; 4]>);

macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $kind:ty),*) = $number:literal [$a:expr, $b:expr, $c:expr];)*) => {
        impl Script {
            $($(#[$doc])* pub(crate) fn $name(self, $($arg: $kind),*) -> Self {
                self.step($number, u32::from($a), u32::from($b), u32::from($c))
            })*
        }
    };
}

steps! {
    out8(port: u16, value: u8) = 1 [port, value, 0u32];
    out16(port: u16, value: u16) = 2 [port, value, 0u32];
    out32(port: u16, value: u32) = 3 [port, value, 0u32];
    /// Stores 32 bits, of which the port gives the lowest 8 and the others are zero.
    in8(port: u16, to: u32) = 4 [port, to, 0u32];
    in16(port: u16, to: u32) = 5 [port, to, 0u32];
    in32(port: u16, to: u32) = 6 [port, to, 0u32];
    write8(gpa: u32, value: u8) = 7 [gpa, value, 0u32];
    write16(gpa: u32, value: u16) = 8 [gpa, value, 0u32];
    write32(gpa: u32, value: u32) = 9 [gpa, value, 0u32];
    /// Stores 32 bits, of which the address gives the lowest 8 and the others are zero.
    read8(gpa: u32, to: u32) = 10 [gpa, to, 0u32];
    read16(gpa: u32, to: u32) = 11 [gpa, to, 0u32];
    read32(gpa: u32, to: u32) = 12 [gpa, to, 0u32];
    /// Sends memory to the serial port, in bursts of 16 bytes whenever its transmitter is empty.
    put(gpa: u32, len: u32) = 13 [gpa, len, 0u32];
    /// Waits until the word at `gpa` has `value` in the bits of `mask`; after some seconds it says
    /// `T!` and resets.
    wait(gpa: u32, mask: u32, value: u32) = 14 [gpa, mask, value];
    copy(to: u32, from: u32, len: u32) = 15 [to, from, len];
    triple_fault() = 16 [0u32, 0u32, 0u32];
    /// An instruction that no KVM can emulate.
    popcnt_of_nowhere() = 17 [0u32, 0u32, 0u32];
    /// Never goes on, and never halts.
    spin() = 18 [0u32, 0u32, 0u32];
    /// Halts for ever, with interrupts off.
    halt() = 19 [0u32, 0u32, 0u32];
    /// `rep outsb`.
    outs8(port: u16, from: u32, count: u32) = 20 [port, from, count];
    outs32(port: u16, from: u32, count: u32) = 21 [port, from, count];
    /// `rep insb`.
    ins8(port: u16, to: u32, count: u32) = 22 [port, to, count];
    ins32(port: u16, to: u32, count: u32) = 23 [port, to, count];
    /// Reads from the serial port.
    receive(to: u32, count: u32) = 24 [to, count, 0u32];
    /// Sends the script itself whenever the transmitter is empty, until it has been found busy so
    /// many times in a row.
    flood(polls: u32) = 25 [polls, 0u32, 0u32];
    /// Stores EAX, EBX, ECX and EDX.
    cpuid(leaf: u32, subleaf: u32, to: u32) = 26 [leaf, subleaf, to];
    fill(gpa: u32, byte: u8, len: u32) = 28 [gpa, byte, len];
    /// Waits for so many times 2^24 ticks of the time stamp counter.
    sleep(units: u32) = 29 [units, 0u32, 0u32];
    /// Sends so many bytes back to whoever typed them.
    echo(count: u32) = 30 [count, 0u32, 0u32];
    /// Jumps somewhere.
    execute(gpa: u32) = 31 [gpa, 0u32, 0u32];
    /// Sends memory to the serial port without ever asking whether it is ready.
    put_regardless(gpa: u32, len: u32) = 32 [gpa, len, 0u32];
}

impl Script {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn step(mut self, operation: u32, a: u32, b: u32, c: u32) -> Self {
        self.0.push([operation, a, b, c]);
        self
    }

    /// Steps of another script.
    pub(crate) fn then(mut self, other: Script) -> Self {
        self.0.extend(other.0);
        self
    }

    /// The same for each of `items`.
    pub(crate) fn each<T>(self, items: impl IntoIterator<Item = T>, step: impl Fn(Self, T) -> Self) -> Self {
        items.into_iter().fold(self, step)
    }

    /// Sends one byte.
    pub(crate) fn say(self, byte: u8) -> Self {
        self.out8(SERIAL, byte)
    }

    /// Sends until nothing is taken any more, and then does what makes bothy log a warning.
    pub(crate) fn fill_output(self) -> Self {
        self.flood(5000).write32(0xd000_0000, 1)
    }

    /// Lets the host send: RTS and DTR.
    pub(crate) fn listen(self) -> Self {
        self.out8(SERIAL + 4, 3)
    }

    /// Powers off by the sleep control register.
    pub(crate) fn power_off(self) -> Self {
        self.out8(ACPI, 5 << 2 | 1 << 5)
    }

    /// Enables the local APIC, so that interrupts are seen in its request register.
    pub(crate) fn enable_lapic(self) -> Self {
        self.write32(LAPIC + 0xf0, 0x1ff)
    }

    /// Writes an IOAPIC register.
    pub(crate) fn ioapic(self, register: u8, value: u32) -> Self {
        self.write32(IOAPIC, register.into()).write32(IOAPIC + 0x10, value)
    }

    /// Routes a pin to a vector of the first processor; masked if so wanted.
    pub(crate) fn route(self, pin: u8, vector: u8, masked: bool) -> Self {
        let mask = u32::from(masked) << 16;
        self.ioapic(0x10 + 2 * pin + 1, 0).ioapic(0x10 + 2 * pin, u32::from(vector) | mask)
    }

    /// Waits until an interrupt has arrived at the local APIC, where it stays, since interrupts are
    /// off.
    pub(crate) fn wait_for_vector(self, vector: u8) -> Self {
        let (gpa, bit) = request_bit(vector);
        self.wait(gpa, bit, bit)
    }

    /// Stores the word of the local APIC's request register that has this vector's bit.
    pub(crate) fn read_vector(self, vector: u8, to: u32) -> Self {
        self.read32(request_bit(vector).0, to)
    }

    /// As the interpreter reads it.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        assert!(
            self.0.len() < 0xf000,
            "the script would run into other memory at {:#x}",
            SCRIPT_GPA + 0xf_0000
        );
        self.0.iter().flatten().flat_map(|word| word.to_le_bytes()).chain([0; 16]).collect()
    }
}

/// Where a vector's bit is in the local APIC's request register.
pub(crate) fn request_bit(vector: u8) -> (u32, u32) {
    (LAPIC + 0x200 + 0x10 * (u32::from(vector) / 32), 1 << (vector % 32))
}
