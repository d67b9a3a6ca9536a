//! What a guest writes into the balloon's queues: numbers of pages, and statistics of its memory.

use serde::{Deserialize, Serialize};

use super::super::core::chain::Reader;
use super::super::core::spec::balloon;

/// How many numbers are looked at together: as many as Linux sends at once.
const PIECE: usize = 256;
/// The most pages that one request hands over; of what is beyond, nothing is discarded. It bounds
/// the time that a request takes.
const MAX_PAGES: u32 = 64 << 10;

/// The numbers of pages in a request, piece by piece.
pub(super) struct Numbers<'a> {
    reader: Reader<'a>,
    left: u32,
    piece: Vec<u32>,
}

impl<'a> Numbers<'a> {
    pub(super) fn new(reader: Reader<'a>) -> Self {
        Self { reader, left: MAX_PAGES, piece: Vec::with_capacity(PIECE) }
    }

    /// Up to [`PIECE`] of them, in ascending order; `None` when there are no more.
    pub(super) fn next_piece(&mut self) -> Option<&[u32]> {
        self.piece.clear();
        while self.piece.len() < PIECE && self.left > 0 {
            let Some(number) = self.reader.read_array() else { break };
            self.piece.push(u32::from_le_bytes(number));
            self.left -= 1;
        }
        self.piece.sort_unstable();
        (!self.piece.is_empty()).then_some(&self.piece)
    }
}

/// Numbers in ascending order as runs of pages: the first, and how many. Repetitions count once.
pub(super) fn runs(numbers: &[u32]) -> impl Iterator<Item = (u32, u64)> {
    numbers.chunk_by(|a, b| b - a <= 1).filter_map(|run| {
        let (first, last) = (run.first()?, run.last()?);
        Some((*first, u64::from(last - first) + 1))
    })
}

/// How a guest uses its memory, as far as it tells (virtio 1.2 §5.5.6.4). In bytes, but for faults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Used for nothing.
    pub free: Option<u64>,
    /// All that its kernel manages.
    pub total: Option<u64>,
    /// What programs could still have.
    pub available: Option<u64>,
    /// Files that could be read again.
    pub caches: Option<u64>,
    /// Page faults that read from a disk.
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    pub minor_faults: Option<u64>,
}

impl Statistics {
    /// What is unknown is passed over, as it may come from a later specification.
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        const MOST: u32 = 64;
        let mut reader = reader.split_off_front(MOST * balloon::STAT_LEN);
        let mut statistics = Self::default();
        while let (Some(tag), Some(value)) = (reader.read_array(), reader.read_array()) {
            let place = match u16::from_le_bytes(tag) {
                2 => &mut statistics.major_faults,
                3 => &mut statistics.minor_faults,
                4 => &mut statistics.free,
                5 => &mut statistics.total,
                6 => &mut statistics.available,
                7 => &mut statistics.caches,
                _ => continue,
            };
            *place = Some(u64::from_le_bytes(value));
        }
        statistics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_a_run_and_repetitions_count_once() {
        let found = |numbers: &[u32]| runs(numbers).collect::<Vec<_>>();
        assert_eq!(found(&[1, 2, 2, 3, 7, 9, 10]), [(1, 3), (7, 1), (9, 2)]);
        assert_eq!(found(&[u32::MAX - 1, u32::MAX]), [(u32::MAX - 1, 2)]);
        assert_eq!(found(&[]), []);
    }
}
