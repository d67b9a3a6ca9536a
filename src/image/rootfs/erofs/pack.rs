//! Where inodes go: each in one block with what stands beside it, because the end of a file may not
//! cross into the next block.
//!
//! The last few blocks stay open, and an inode goes into the one that it fills best. So little is
//! wasted, inodes of one directory stay near each other, and the metadata can be written front to
//! back.

use std::collections::VecDeque;

use super::format::{BLOCK, SLOT};

/// Blocks that stay open.
pub(super) const OPEN: usize = 32;

/// Gives places out. The same lengths in the same order get the same places.
pub(super) struct Packer {
    /// Bytes used of each open block, the last one's end being `end`.
    used: VecDeque<u64>,
    end: u64,
}

impl Packer {
    /// The first slots stay free: number 0 is no inode to some programs.
    pub(super) fn new() -> Self {
        Self { used: VecDeque::from([2 * SLOT]), end: BLOCK }
    }

    /// End of the metadata in bytes, a multiple of the block's size.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// A place for so many bytes, at a multiple of 32: in one block, or from the start of one on if
    /// they are more than a block.
    pub(super) fn place(&mut self, len: u64) -> u64 {
        let best = self.used.iter().enumerate().filter(|(_, used)| *used + len <= BLOCK);
        if let Some((index, used)) = best.max_by_key(|(index, used)| (**used, *index)) {
            let place = self.end - (self.used.len() - index) as u64 * BLOCK + used;
            self.used[index] = (used + len).next_multiple_of(SLOT);
            return place;
        }
        let place = self.end;
        let blocks = len.div_ceil(BLOCK);
        self.end += blocks * BLOCK;
        for block in (0..blocks).rev() {
            let used = if block == 0 { len - (blocks - 1) * BLOCK } else { BLOCK };
            self.used.push_back(used.next_multiple_of(SLOT));
            if self.used.len() > OPEN {
                self.used.pop_front();
            }
        }
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_goes_where_it_fills_a_block_best() {
        let mut packer = Packer::new();
        assert_eq!(packer.place(64), 64);
        assert_eq!(packer.place(4000), 4096, "the first block has no room");
        assert_eq!(packer.place(96), 8192 - 96, "the second has, to the byte");
        assert_eq!(packer.place(65), 128);
        assert_eq!(packer.place(64), 224, "at a multiple of 32");
        assert_eq!(packer.end(), 8192);
    }

    #[test]
    fn what_is_larger_than_a_block_begins_at_one() {
        let mut packer = Packer::new();
        assert_eq!(packer.place(10_000), 4096);
        assert_eq!(packer.end(), 16384);
        assert_eq!(packer.place(2272), 14112, "behind its end");
    }

    #[test]
    fn no_place_is_before_the_open_blocks_nor_given_twice() {
        let mut packer = Packer::new();
        let mut taken = std::collections::BTreeMap::new();
        for n in 0..5000_u64 {
            let len = 64 + n * n * 7919 % if n % 100 == 0 { 300_000 } else { 3000 };
            let place = packer.place(len);
            assert!(place.is_multiple_of(SLOT));
            assert!(place / BLOCK == (place + len - 1) / BLOCK || place.is_multiple_of(BLOCK));
            assert!(place + (OPEN as u64 + 1) * BLOCK + len > packer.end());
            let before = taken.range(..=place).next_back();
            assert!(before.is_none_or(|(at, len)| at + len <= place), "{place} {len}");
            let after = taken.range(place..).next();
            assert!(after.is_none_or(|(at, _)| *at >= place + len));
            taken.insert(place, len);
        }
    }
}
