//! Moves packets between a tap and the two queues of a pair.
//!
//! Each packet is one `readv` or one `writev` between the tap and guest memory; no byte of it passes through ours. The header
//! before it (virtio 1.2 §5.1.6) is the tap's as well; towards the host it is copied once and checked ([`Offloads::to_tap`]), so
//! that a driver that changes it while we look at it changes nothing.
//!
//! A packet for the guest may take several buffers if the driver can put them together again; then as many are kept ready as the
//! largest packet needs, or as there are, and the driver sees those of a packet all at once.
//!
//! The tap is only waited for while there is a buffer to put a packet into: without one, packets wait in the interface's queue
//! and are dropped there. An interface that vanishes ends reception, one that is down ends nothing: both are said once.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use super::offload::{HEADER_LEN, Offloads};
use super::tap::TapQueue;
use crate::memory::GuestMemory;
use crate::poll::{self, Source};
use crate::virtio::core::active::{ActiveQueue, Notify};
use crate::virtio::core::chain::Chain;
use crate::virtio::core::guest_log::GuestLog;
use crate::virtio::core::iovec::IoVecs;
use crate::virtio::core::limit::Throttle;
use crate::virtio::core::spec::net;
use crate::virtio::core::worker::Stop;

/// Packets that are received before the other sources get their turn.
const RX_BURST: usize = 256;
/// An Ethernet header, the least that a packet has.
const MIN_FRAME: u32 = 14;
/// The largest packet that any header could announce, and then some: beyond it nothing is worth a system call.
const MAX_FRAME: u32 = 65536 + 64;
/// An Ethernet header with a VLAN's tag in it.
const VLAN_HEADER: u32 = 18;
/// The most pieces of memory that a receive buffer may have, and that make many buffers enough: two times this is the most that one call takes.
const MAX_SEGMENTS: usize = 511;
/// After so many packets in a row that can't be read no more will come.
const MAX_ERRORS: u32 = 1000;
/// Where `num_buffers` stands in the header (§5.1.6).
const NUM_BUFFERS: u32 = 10;

/// What the worker gets at `start` and gives back at `stop`.
pub(super) struct Job {
    pub(super) rx: Option<ActiveQueue>,
    pub(super) tx: Option<ActiveQueue>,
    pub(super) offloads: Offloads,
    /// Called once, when the interface is gone.
    pub(super) link_is_down: Box<dyn FnMut() + Send>,
}

/// What stays with the worker from one start to the next.
pub(super) struct Pump {
    tap: Arc<TapQueue>,
    /// The interface's MTU.
    mtu: u16,
    /// Whether it is that of the first pair, which speaks for the interface.
    leads: bool,
    /// Readable when it is to look at its queue of the tap again.
    wake: Arc<EventFd>,
    log: GuestLog,
    said: Said,
    /// In either direction: to the guest, and from it.
    limits: [Arc<Throttle>; 2],
    /// What the tap leaves undone now (TUN_F_*).
    offloads: u32,
    /// Packets in a row that could not be read.
    errors: u32,
}

/// What was said already: once each.
#[derive(Default)]
struct Said {
    gone: bool,
    send: bool,
}

/// Where reception stands.
enum Rx {
    /// Buffers are (or may be) there: wait for packets.
    Ready,
    /// The driver has to add buffers first.
    Starved,
    /// The limit is used up until then.
    Spent(Instant),
    /// The interface is gone, or the driver enabled no receive queue.
    Off,
}

/// Buffers that were taken from the driver, in order, and wait for packets. None is ever completed before one that is in front of it:
/// that is why all of them can be put back.
struct Held {
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
}

impl Held {
    /// Whether the largest packet has room, or one buffer must do for it.
    fn is_enough(&self) -> bool {
        if self.merges {
            self.room >= self.largest || self.segments >= MAX_SEGMENTS
        } else {
            !self.chains.is_empty()
        }
    }

    /// Whether a packet may be read if the driver has no more buffers. It may be a large one, and then it is lost; but to wait for
    /// more could be to wait for a driver that waits for a packet.
    fn is_something(&self) -> bool {
        self.is_enough() || self.room >= self.usual
    }

    fn push(&mut self, chain: Chain) {
        self.room += u64::from(chain.writable_len());
        self.segments += chain.writable().len();
        self.chains.push_back(chain);
    }

    /// How many of the first buffers together hold `len` bytes.
    fn count(&self, len: u32) -> usize {
        let mut left = len;
        let holds_all = |chain: &Chain| {
            left = left.saturating_sub(chain.writable_len());
            left == 0
        };
        self.chains.iter().position(holds_all).map_or(self.chains.len(), |last| last + 1)
    }

    /// Takes the first `count` buffers, of which `len` bytes are written, each with what is written of it.
    fn take(&mut self, count: usize, len: u32) -> impl Iterator<Item = (Chain, u32)> {
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

impl Pump {
    pub(super) fn new(
        (tap, wake): (Arc<TapQueue>, Arc<EventFd>),
        mtu: u16,
        leads: bool,
        log: GuestLog,
        limits: [Arc<Throttle>; 2],
    ) -> Self {
        Self { tap, mtu, leads, wake, log, said: Said::default(), limits, offloads: 0, errors: 0 }
    }

    /// Serves both queues until `stop` is set.
    pub(super) fn run(&mut self, job: &mut Job, stop: &Stop) {
        self.set_offloads(job.offloads.of_tap());
        let mut iovs = IoVecs::default();
        let usual = u32::from(self.mtu) + VLAN_HEADER;
        let largest = if job.offloads.makes_large() { MAX_FRAME } else { usual };
        let mut held = Held {
            chains: VecDeque::new(),
            room: 0,
            segments: 0,
            merges: job.offloads.merges_buffers(),
            largest: u64::from(net::HEADER_LEN + largest),
            usual: u64::from(net::HEADER_LEN + usual),
        };
        // What was available before the start may have no kick to come.
        let mut state = self.receive(job, &mut held, &mut iovs);
        let mut tx_wait = self.send(job, stop, &mut iovs);
        while !stop.is_set() {
            let rx_kick = job.rx.as_ref().filter(|_| matches!(state, Rx::Starved));
            let tap = match state {
                Rx::Ready => Source::readable(&*self.tap),
                Rx::Starved | Rx::Spent(_) => Source::gone(&*self.tap),
                Rx::Off => Source::none(),
            };
            let sources = [
                Source::readable(stop),
                Source::readable(&*self.wake),
                rx_kick.map_or(Source::none(), |queue| Source::readable(queue)),
                // While it may send nothing, a kick tells it nothing.
                job.tx
                    .as_ref()
                    .filter(|_| tx_wait.is_none())
                    .map_or(Source::none(), |queue| Source::readable(queue)),
                tap,
            ];
            let rx_wait = if let Rx::Spent(until) = state { Some(until) } else { None };
            let [_, woken, rx_kicked, tx_kicked, tap] =
                poll::wait_readable(sources, rx_wait.into_iter().chain(tx_wait).min());
            let is_over = |wait: Option<Instant>| wait.is_some_and(|until| Instant::now() >= until);
            if woken {
                let _ = self.wake.read();
                state = self.receive(job, &mut held, &mut iovs);
            } else if tap && !matches!(state, Rx::Ready) {
                self.gone(job, &io::Error::from_raw_os_error(libc::EBADFD));
                state = Rx::Off;
            } else if rx_kicked || tap || is_over(rx_wait) {
                state = self.receive(job, &mut held, &mut iovs);
            }
            if tx_kicked || is_over(tx_wait) {
                tx_wait = self.send(job, stop, &mut iovs);
            }
        }
        if let Some(rx) = &mut job.rx {
            // Those that were taken last are the first that can go back.
            held.chains.into_iter().rev().for_each(|chain| rx.put_back(chain));
        }
        // Until there is another driver, everything is done by the kernel.
        self.set_offloads(0);
    }

    /// Tells the tap what it may leave undone. What waits in it was made for who was there before, and is dropped if it may be too much for
    /// who is there now.
    fn set_offloads(&mut self, flags: u32) {
        let set = if self.leads { self.tap.set_offloads(flags) } else { Ok(()) };
        let flags = set.map(|()| flags).unwrap_or_else(|error| {
            log::warn!("{}: TUNSETOFFLOAD {flags:#x}: {error}", self.log.who());
            // Nothing can't be refused, but for a tap that is gone.
            let _ = self.tap.set_offloads(0);
            0
        });
        if self.offloads & !flags != 0 {
            self.tap.drop_packets();
        }
        self.offloads = flags;
    }

    /// Receives until the tap or the queue has no more. Buffers that no packet came for stay in `held`.
    fn receive(&mut self, job: &mut Job, held: &mut Held, iovs: &mut IoVecs) -> Rx {
        let Some(queue) = &mut job.rx else { return Rx::Off };
        queue.drain_kick();
        queue.disable_notification();
        let mut state = Rx::Ready;
        for _ in 0..RX_BURST {
            if let Some(until) = self.limits[0].ready_at() {
                state = Rx::Spent(until);
                break;
            }
            if !self.collect(queue, held) {
                if queue.enable_notification() {
                    queue.disable_notification();
                    continue;
                }
                state = Rx::Starved;
                break;
            }
            match receive_packet(&self.tap, held, queue.mem(), iovs, job.offloads) {
                Ok(Some(len)) => {
                    self.errors = 0;
                    self.limits[0].charge(len.into());
                    let count = held.count(len);
                    number_buffers(&held.chains, count, queue.mem());
                    queue.complete_together(held.take(count, len));
                    queue.interrupt_if_due(len.into());
                }
                Ok(None) => {
                    self.log.warn("a packet was dropped: the driver's buffer is too small for it");
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // EBADFD: the interface was deleted. Anything else is about one packet, such as a kind of segmentation that no
                // header can express; but a tap that always fails must not keep us busy.
                Err(error) => {
                    self.errors += 1;
                    if error.raw_os_error() == Some(libc::EBADFD) || self.errors > MAX_ERRORS {
                        queue.interrupt_if_needed();
                        self.gone(job, &error);
                        return Rx::Off;
                    }
                    log::debug!("{}: a packet was dropped: {error}", self.log.who());
                }
            }
        }
        queue.interrupt_if_needed();
        state
    }

    fn gone(&mut self, job: &mut Job, error: &io::Error) {
        if !self.leads {
            // Its queue is detached, and it is woken when that changes. If all of the interface is gone, the first pair says so.
            return;
        }
        if !std::mem::replace(&mut self.said.gone, true) {
            log::warn!("{}: no more packets will come: {error}", self.log.who());
        }
        (job.link_is_down)();
    }

    /// Takes buffers until the next packet has room; false if there are too few.
    fn collect(&self, queue: &mut ActiveQueue, held: &mut Held) -> bool {
        while !held.is_enough() {
            let Some(chain) = queue.pop() else { return held.is_something() };
            let least = if held.merges { net::HEADER_LEN } else { net::HEADER_LEN + MIN_FRAME };
            if chain.writable_len() >= least && chain.writable().len() <= MAX_SEGMENTS {
                held.push(chain);
            } else if held.merges {
                // It can't be used up before those that are held, and with those it can't be used at all.
                queue.put_back(chain);
                queue.fail("a receive buffer has no room for a header, or is in too many pieces");
                return false;
            } else {
                self.log.warn("the driver gave a buffer with no room for a packet");
                queue.complete(chain, 0);
                // Not for as long as the driver likes: the burst's end must come.
                return false;
            }
        }
        true
    }

    /// Sends what there is; if the limit is used up, it says until when.
    fn send(&mut self, job: &mut Job, stop: &Stop, iovs: &mut IoVecs) -> Option<Instant> {
        let offloads = job.offloads;
        let queue = job.tx.as_mut()?;
        queue.limit(self.limits[1].clone());
        queue.drain_kick();
        queue.serve(stop, Notify::Burst, |chain, mem| {
            match send_packet(&self.tap, chain, mem, iovs, offloads) {
                Ok(true) => {}
                Ok(false) => {
                    self.log.warn("the driver sent something that is no packet");
                }
                // EIO: the interface is down. EBADFD: it is gone. A network loses packets; that is not the driver's concern.
                Err(error) => {
                    if !std::mem::replace(&mut self.said.send, true) {
                        log::warn!(
                            "{}: packets are being dropped: {error} (is the interface up? ip link set TAP up)",
                            self.log.who()
                        );
                    }
                }
            }
            0
        })
    }
}

/// Reads one packet into the buffers, in order, and returns its length with its header; `None` when it didn't fit, and is lost.
fn receive_packet(
    tap: &TapQueue,
    held: &Held,
    mem: &GuestMemory,
    iovs: &mut IoVecs,
    offloads: Offloads,
) -> io::Result<Option<u32>> {
    // The tap cuts a packet to the room there is and doesn't say so; a byte more than the driver gave does.
    let mut beyond = [0];
    let n = {
        let mut list = iovs.scatter(mem);
        for chain in &held.chains {
            chain.writer(mem).scatter_into(&mut list);
        }
        list.push_host(&mut beyond);
        list.read_from(tap)?
    };
    let len = u32::try_from(n).ok().filter(|len| u64::from(*len) <= held.room);
    if let (Some(_), Some(first), false) = (len, held.chains.front(), offloads.tells_guest()) {
        first.writer(mem).write(&[0; HEADER_LEN]);
    }
    Ok(len)
}

/// Says in a packet's header how many buffers it takes (§5.1.6.4): the kernel leaves that to us.
fn number_buffers(chains: &VecDeque<Chain>, count: usize, mem: &GuestMemory) {
    let Some(first) = chains.front() else { return };
    let count = u16::try_from(count).expect("a queue has no more than 32768 chains");
    let mut header = first.writer(mem);
    header.split_off_front(NUM_BUFFERS);
    header.write(&count.to_le_bytes());
}

/// False when the chain holds no packet.
fn send_packet(
    tap: &TapQueue,
    chain: &Chain,
    mem: &GuestMemory,
    iovs: &mut IoVecs,
    offloads: Offloads,
) -> io::Result<bool> {
    let mut frame = chain.reader(mem);
    let header = frame.read_array().and_then(|header| offloads.to_tap(header));
    let Some(header) = header.filter(|_| (MIN_FRAME..=MAX_FRAME).contains(&frame.len())) else {
        return Ok(false);
    };
    let mut list = iovs.gather(mem);
    list.push_host(&header);
    frame.gather_into(&mut list);
    match list.write_to(tap) {
        Ok(_) => Ok(true),
        // The packet itself is one that the kernel refuses.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EMSGSIZE)) => Ok(false),
        Err(error) => Err(error),
    }
}
