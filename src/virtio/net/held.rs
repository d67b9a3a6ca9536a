//! Receive buffers that were taken from the driver and wait for packets, and what of a packet has
//! found no room in them yet.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use super::offload::HEADER_LEN;
use super::port::Port;
use crate::memory::GuestMemory;
use crate::virtio::core::chain::Chain;
use crate::virtio::core::iovec::IoVecs;

/// The most pieces of memory that a receive buffer may have, and that make many buffers enough: two
/// times this, and the host's buffer behind them, is the most that one call takes.
pub(super) const MAX_SEGMENTS: usize = 511;
/// Where `num_buffers` stands in the header (§5.1.6).
const NUM_BUFFERS: u32 = 10;
/// How long the rest of a packet waits for buffers. A driver that was told of used ones gives new
/// ones at once, if it has any.
const PATIENCE: Duration = Duration::from_secs(1);
/// The same for one that had none the last time: then it would be a second for each packet.
const NO_PATIENCE: Duration = Duration::from_millis(10);

/// The buffers, in order. None is ever completed before one that is in front of it: that is why all
/// of them can be put back.
pub(super) struct Held {
    chains: VecDeque<Chain>,
    /// Bytes that they have room for.
    room: u64,
    /// Pieces of memory that they are made of.
    segments: usize,
    /// Whether a packet may take several.
    merges: bool,
    /// Bytes of the largest packet with its header.
    largest: u64,
    /// Bytes of a packet that isn't larger than the interface's MTU, with its header.
    usual: u64,
    /// What a packet has beyond the buffers that there were. If it is full the packet was too
    /// large, and where a packet may take no more than one buffer it is a byte.
    beyond: Vec<u8>,
    unfinished: Option<Unfinished>,
    patience: Duration,
}

/// A packet that is larger than the buffers that there were: they are full of it, and its rest is
/// in `beyond`.
struct Unfinished {
    len: u32,
    rest: u32,
    until: Instant,
}

/// What came of reading a packet.
pub(super) enum Read {
    /// It is in the buffers, with its header this long.
    Whole(u32),
    /// There are too few buffers for it. [`Held::go_on`] when there are more.
    Part,
    /// It didn't fit, and is lost.
    Lost,
}

impl Held {
    /// None yet, for packets that have at most `largest` bytes, mostly `usual`, each with its
    /// header.
    pub(super) fn new(merges: bool, largest: u32, usual: u32) -> Self {
        Self {
            chains: VecDeque::new(),
            room: 0,
            segments: 0,
            merges,
            largest: largest.into(),
            usual: usual.into(),
            beyond: vec![0; if merges { largest as usize + 1 } else { 1 }],
            unfinished: None,
            patience: PATIENCE,
        }
    }

    /// Whether a packet may take several.
    pub(super) fn merges(&self) -> bool {
        self.merges
    }

    /// Whether there is room enough: for the rest of a packet, or for the largest one; or where one
    /// buffer must do for it, that one.
    pub(super) fn is_enough(&self) -> bool {
        match &self.unfinished {
            Some(packet) => self.room >= packet.len.into(),
            None if self.merges => self.room >= self.largest || self.segments >= MAX_SEGMENTS,
            None => !self.chains.is_empty(),
        }
    }

    /// Whether a packet may be read if the driver has no more buffers. It may be a large one, and
    /// then its rest has to wait; but to wait before it is there could be to wait for a driver that
    /// waits for a packet.
    pub(super) fn is_something(&self) -> bool {
        self.unfinished.is_none() && self.room >= self.usual
    }

    /// Until when the rest of a packet waits for buffers, if one does.
    pub(super) fn waits_until(&self) -> Option<Instant> {
        self.unfinished.as_ref().map(|packet| packet.until)
    }

    /// Whether the rest of a packet waits in vain: all buffers of a queue of this size are held, or
    /// they are in too many pieces, or the time is up.
    pub(super) fn waits_in_vain(&self, queue_size: u16) -> bool {
        let all = self.chains.len() == usize::from(queue_size) || self.segments >= MAX_SEGMENTS;
        self.unfinished.as_ref().is_some_and(|packet| all || packet.until <= Instant::now())
    }

    pub(super) fn push(&mut self, chain: Chain) {
        self.room += u64::from(chain.writable_len());
        self.segments += chain.writable().len();
        self.chains.push_back(chain);
    }

    /// Those that no packet came for, the last one first.
    pub(super) fn into_chains(self) -> impl Iterator<Item = Chain> {
        self.chains.into_iter().rev()
    }

    /// Reads one packet into the buffers.
    pub(super) fn read(&mut self, port: &dyn Port, mem: &GuestMemory, iovs: &mut IoVecs) -> io::Result<Read> {
        let n = {
            let mut list = iovs.scatter(mem);
            for chain in &self.chains {
                chain.writer(mem).scatter_into(&mut list);
            }
            // A tap cuts a packet to the room there is and doesn't say so.
            list.push_host(&mut self.beyond);
            list.read_from(port)?
        };
        let Ok(len) = u32::try_from(n) else { return Ok(Read::Lost) };
        let Some(rest) = u64::from(len).checked_sub(self.room).filter(|rest| *rest > 0) else {
            return Ok(Read::Whole(len));
        };
        if rest == self.beyond.len() as u64 {
            return Ok(Read::Lost);
        }
        let rest = u32::try_from(rest).expect("part of a length");
        self.unfinished = Some(Unfinished { len, rest, until: Instant::now() + self.patience });
        Ok(Read::Part)
    }

    /// Puts the rest of a packet into the buffers that came since; if those are still too few, the
    /// packet is lost. `None` when no rest waits.
    pub(super) fn go_on(&mut self, mem: &GuestMemory) -> Option<Read> {
        let enough = self.is_enough();
        let Unfinished { len, rest, .. } = self.unfinished.take()?;
        self.patience = if enough { PATIENCE } else { NO_PATIENCE };
        if !enough {
            return Some(Read::Lost);
        }
        let (mut rest, mut full) = (&self.beyond[..rest as usize], u64::from(len - rest));
        for chain in &self.chains {
            let size = u64::from(chain.writable_len());
            if full > 0 {
                // Those that there were are full to the last byte.
                full -= size;
                continue;
            }
            let (part, more) = rest.split_at(rest.len().min(chain.writable_len() as usize));
            chain.writer(mem).write(part);
            rest = more;
        }
        Some(Read::Whole(len))
    }

    /// Clears the header of the packet in the first buffer.
    pub(super) fn clear_header(&self, mem: &GuestMemory) {
        if let Some(first) = self.chains.front() {
            first.writer(mem).write(&[0; HEADER_LEN]);
        }
    }

    /// Takes the first buffers, in which a packet of `len` bytes is, each with what is written of
    /// it. Their number goes into its header (§5.1.6.4): the kernel leaves that to us.
    pub(super) fn take(&mut self, len: u32, mem: &GuestMemory) -> impl Iterator<Item = (Chain, u32)> {
        let mut left = len;
        let holds_all = |chain: &Chain| {
            left = left.saturating_sub(chain.writable_len());
            left == 0
        };
        let count = self.chains.iter().position(holds_all).map_or(self.chains.len(), |last| last + 1);
        if let Some(first) = self.chains.front() {
            let number = u16::try_from(count).expect("a queue has no more than 32768 chains");
            let mut header = first.writer(mem);
            header.split_off_front(NUM_BUFFERS);
            header.write(&number.to_le_bytes());
        }
        let mut left = len;
        let (room, segments) = (&mut self.room, &mut self.segments);
        self.chains.drain(..count).map(move |chain| {
            let part = left.min(chain.writable_len());
            *room -= u64::from(chain.writable_len());
            *segments -= chain.writable().len();
            left -= part;
            (chain, part)
        })
    }
}
