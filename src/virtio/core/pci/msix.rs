//! MSI-X (PCI Local Bus 3.0 §6.8.2): a table of messages, one for each vector, that the driver
//! writes.
//!
//! A vector is a route ([`MsiRoutes`]): it keeps what is raised while it is masked, and that is
//! what the pending bits say. A vector is masked by its own bit, by the function's, or as long as
//! MSI-X is off.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::bounded_log::BoundedLog;
use crate::bus::{MsiMessage, MsiRoute, MsiRoutes};
use crate::poll;
use crate::virtio::core::spec::pci::msix;

/// The table and its switch.
pub(super) struct Msix {
    routes: Arc<dyn MsiRoutes>,
    vectors: Arc<[MsiRoute]>,
    entries: Vec<Entry>,
    control: u16,
    log: Arc<BoundedLog>,
}

#[derive(Clone, Copy)]
struct Entry {
    /// Address low and high, data, control.
    words: [u32; 4],
    /// What the route is: it refuses to be unmasked with a message that KVM refuses.
    masked: bool,
}

/// The words of each entry, as the driver has written them.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct State(Vec<[u32; 4]>);

impl Msix {
    /// A table with so many vectors, all masked.
    pub(super) fn new(count: u16, routes: Arc<dyn MsiRoutes>, log: Arc<BoundedLog>) -> io::Result<Self> {
        let vectors = (0..count).map(|_| routes.allocate()).collect::<io::Result<_>>()?;
        let entries = vec![Entry { words: [0, 0, 0, msix::ENTRY_MASKED], masked: true }; count.into()];
        Ok(Self { routes, vectors, entries, control: 0, log })
    }

    /// The eventfds.
    pub(super) fn vectors(&self) -> &Arc<[MsiRoute]> {
        &self.vectors
    }

    /// The table.
    pub(super) fn state(&self) -> State {
        State(self.entries.iter().map(|entry| entry.words).collect())
    }

    /// Takes over a table, under this message control word.
    pub(super) fn restore(&mut self, State(entries): &State, control: u16) -> Result<(), &'static str> {
        if entries.len() != self.entries.len() {
            return Err("its table of vectors has another length");
        }
        for (index, words) in entries.iter().enumerate() {
            for (word, value) in words.iter().enumerate() {
                self.write_word(index, word, *value);
            }
        }
        self.set_control(control);
        Ok(())
    }

    /// The driver has written the message control word.
    pub(super) fn set_control(&mut self, control: u16) {
        self.control = control;
        for index in 0..self.entries.len() {
            self.apply_mask(index);
        }
    }

    /// Fills whole aligned words of the table; what is behind its end stays ones.
    pub(super) fn read_table(&self, offset: u64, data: &mut [u8]) {
        for (offset, bytes) in words(offset, data) {
            if let Some(word) =
                place(offset).and_then(|(entry, word)| Some(self.entries.get(entry)?.words[word]))
            {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
    }

    /// Takes whole aligned words, and nothing else.
    pub(super) fn write_table(&mut self, offset: u64, data: &[u8]) {
        let mut data = data.to_vec();
        for (offset, bytes) in words(offset, &mut data) {
            let value = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            if let Some((index, word)) = place(offset).filter(|(index, _)| *index < self.entries.len()) {
                self.write_word(index, word, value);
            }
        }
    }

    fn write_word(&mut self, index: usize, word: usize, value: u32) {
        let entry = &mut self.entries[index];
        if word == 3 {
            entry.words[3] = value & msix::ENTRY_MASKED;
            self.apply_mask(index);
        } else if entry.words[word] != value {
            entry.words[word] = value;
            let [low, high, data, _] = entry.words;
            let message = MsiMessage { address: u64::from(low) | u64::from(high) << 32, data };
            self.or_log(index, self.routes.update(self.vectors[index].id, message));
            // A vector whose message was refused goes live with a better one.
            self.apply_mask(index);
        }
    }

    fn apply_mask(&mut self, index: usize) {
        let entry = &self.entries[index];
        let live = self.control & (msix::ENABLE | msix::MASK_ALL) == msix::ENABLE;
        let masked = !live || entry.words[3] & msix::ENTRY_MASKED != 0;
        if entry.masked != masked && self.or_log(index, self.routes.mask(self.vectors[index].id, masked)) {
            self.entries[index].masked = masked;
        }
    }

    /// Whether it is done.
    fn or_log(&self, index: usize, done: io::Result<()>) -> bool {
        done.inspect_err(|error| {
            self.log.warn(format_args!("vector {index} can't be routed: {error}"));
        })
        .is_ok()
    }

    /// The pending bits: which vectors were raised while they were masked.
    pub(super) fn read_pending(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let first = usize::try_from(offset).unwrap_or(usize::MAX).saturating_mul(8);
        for (index, vector) in self.vectors.iter().enumerate().skip(first).take(data.len() * 8) {
            // Nobody listens to the eventfd of a masked vector, so that it is still readable.
            if self.entries[index].masked && is_raised(vector) {
                let bit = index - first;
                data[bit / 8] |= 1 << (bit % 8);
            }
        }
    }
}

fn is_raised(vector: &MsiRoute) -> bool {
    let now = Some(std::time::Instant::now());
    let [raised] = poll::wait_readable([poll::Source::readable(&vector.evt)], now);
    raised
}

/// The aligned words of an access.
fn words(offset: u64, data: &mut [u8]) -> impl Iterator<Item = (u64, &mut [u8])> {
    let aligned = offset.is_multiple_of(4);
    (0..).map(move |n| offset + 4 * n).zip(data.chunks_exact_mut(4).filter(move |_| aligned))
}

/// Which word of which entry is there.
fn place(offset: u64) -> Option<(usize, usize)> {
    let entry = usize::try_from(offset / msix::ENTRY_LEN).ok()?;
    let word = usize::try_from(offset % msix::ENTRY_LEN / 4).ok()?;
    Some((entry, word))
}
