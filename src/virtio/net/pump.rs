//! Moves packets between a port of the host's and the two queues of a pair.
//!
//! Each packet is one `readv` or one `writev` between the port and guest memory; but for what is
//! said below no byte of it passes through ours. The header before it (virtio 1.2 §5.1.6) is the
//! port's as well; towards the host it is copied once and checked ([`Offloads::to_tap`]), so that a
//! driver that changes it while we look at it changes nothing.
//!
//! A packet for the guest may take several buffers if the driver can put them together again; then
//! as many are kept ready as the largest packet needs, or as there are, and the driver sees those
//! of a packet all at once. What of a packet has no room in those that there are is kept until
//! there are more: a network that loses one packet in each ring's worth would make TCP crawl.
//!
//! The port is only waited for while there is a buffer to put a packet into: without one, packets
//! wait in the interface's queue and are dropped there. An interface that vanishes ends reception,
//! one that is down ends nothing: both are said once.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use super::held::{Held, MAX_SEGMENTS, Read};
use super::offload::Offloads;
use super::port::Port;
use crate::bounded_log::BoundedLog;
use crate::memory::GuestMemory;
use crate::poll::{self, Source};
use crate::virtio::core::active::{ActiveQueue, Notify};
use crate::virtio::core::chain::Chain;
use crate::virtio::core::iovec::IoVecs;
use crate::virtio::core::limit::Throttle;
use crate::virtio::core::spec::net;
use crate::virtio::core::worker::Stop;

/// Packets that are received before the other sources get their turn.
pub(super) const RX_BURST: usize = if cfg!(test) { 3 } else { 256 };
/// An Ethernet header, the least that a packet has.
const MIN_FRAME: u32 = 14;
/// The largest packet that any header could announce, and then some: beyond it nothing is worth a
/// system call.
const MAX_FRAME: u32 = 65536 + 64;
/// An Ethernet header with a VLAN's tag in it.
const VLAN_HEADER: u32 = 18;
/// After so many packets in a row that can't be read no more will come.
const MAX_ERRORS: u32 = 1000;

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
    port: Arc<dyn Port>,
    /// The port's MTU.
    mtu: u16,
    /// Whether it is that of the first pair, which speaks for the interface.
    leads: bool,
    /// Readable when it is to look at its port again.
    wake: Arc<EventFd>,
    log: BoundedLog,
    said: Said,
    /// In either direction: to the guest, and from it.
    limits: [Arc<Throttle>; 2],
    /// What the port leaves undone now (TUN_F_*).
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
    /// The driver has to add buffers first. After that time the packet that waits for them is
    /// dropped.
    Starved(Option<Instant>),
    /// The limit is used up until then.
    Spent(Instant),
    /// The interface is gone, or the driver enabled no receive queue.
    Off,
}

impl Pump {
    pub(super) fn new(
        (port, wake): (Arc<dyn Port>, Arc<EventFd>),
        mtu: u16,
        leads: bool,
        log: BoundedLog,
        limits: [Arc<Throttle>; 2],
    ) -> Self {
        Self { port, mtu, leads, wake, log, said: Said::default(), limits, offloads: 0, errors: 0 }
    }

    /// Serves both queues until `stop` is set.
    pub(super) fn run(&mut self, job: &mut Job, stop: &Stop) {
        self.set_offloads(job.offloads.of_tap());
        let mut iovs = IoVecs::default();
        let usual = u32::from(self.mtu) + VLAN_HEADER;
        let largest = if job.offloads.makes_large() { MAX_FRAME } else { usual };
        let with_header = |len: u32| net::HEADER_LEN + len;
        let mut held = Held::new(job.offloads.merges_buffers(), with_header(largest), with_header(usual));
        // What was available before the start may have no kick to come.
        let mut state = self.receive(job, &mut held, &mut iovs);
        let mut tx_wait = self.send(job, stop, &mut iovs);
        while !stop.is_set() {
            let rx_kick = job.rx.as_ref().filter(|_| matches!(state, Rx::Starved(_)));
            let tap = match state {
                Rx::Ready => Source::readable(&*self.port),
                Rx::Starved(_) | Rx::Spent(_) => Source::gone(&*self.port),
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
            let rx_wait = match state {
                Rx::Spent(until) => Some(until),
                Rx::Starved(until) => until,
                Rx::Ready | Rx::Off => None,
            };
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
            held.into_chains().for_each(|chain| rx.put_back(chain));
        }
        // Until there is another driver, everything is done by the kernel.
        self.set_offloads(0);
    }

    /// Tells the port what it may leave undone. What waits in it was made for who was there before,
    /// and is dropped if it may be too much for who is there now.
    fn set_offloads(&mut self, flags: u32) {
        let set = if self.leads { self.port.set_offloads(flags) } else { Ok(()) };
        let flags = set.map(|()| flags).unwrap_or_else(|error| {
            self.log.warn(format_args!("TUNSETOFFLOAD {flags:#x}: {error}"));
            // Nothing can't be refused, but for a port that is gone.
            let _ = self.port.set_offloads(0);
            0
        });
        if self.offloads & !flags != 0 {
            self.port.drop_packets();
        }
        self.offloads = flags;
    }

    /// Receives until the port or the queue has no more. Buffers that no packet came for stay in
    /// `held`.
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
                state = Rx::Starved(held.waits_until());
                break;
            }
            let mem = queue.mem().clone();
            let read = held.go_on(&mem).map_or_else(|| held.read(&*self.port, &mem, iovs), Ok);
            match read {
                Ok(Read::Whole(len)) => {
                    self.errors = 0;
                    if !job.offloads.tells_guest() {
                        held.clear_header(&mem);
                    }
                    self.limits[0].charge(len.into());
                    queue.complete_together(held.take(len, &mem));
                    queue.interrupt_if_due(len.into());
                }
                Ok(Read::Part) => {}
                Ok(Read::Lost) => {
                    self.log.warn("a packet was dropped: the driver's buffers are too small for it");
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Anything else is about one packet, such as a kind of segmentation that no
                // header can express; but a port that always fails must not keep us busy.
                Err(error) => {
                    self.errors += 1;
                    if self.port.is_gone(&error) || self.errors > MAX_ERRORS {
                        queue.interrupt_if_needed();
                        self.gone(job, &error);
                        return Rx::Off;
                    }
                    log::debug!("{}: a packet was dropped: {error}", self.log.who());
                }
            }
        }
        if matches!(state, Rx::Ready) && held.waits_until().is_some() {
            // The burst is over before the packet is whole: it goes on as soon as the others had
            // their turn, whatever the port has.
            state = Rx::Spent(Instant::now());
        }
        queue.interrupt_if_needed();
        state
    }

    fn gone(&mut self, job: &mut Job, error: &io::Error) {
        if !self.leads {
            // Its queue is detached, and it is woken when that changes. If all of the interface is
            // gone, the first pair says so.
            return;
        }
        if !std::mem::replace(&mut self.said.gone, true) {
            self.log.warn(format_args!("no more packets will come: {error}"));
        }
        (job.link_is_down)();
    }

    /// Takes buffers until the next packet, or the rest of one, has room or is to be given up;
    /// false if there are too few.
    fn collect(&self, queue: &mut ActiveQueue, held: &mut Held) -> bool {
        while !held.is_enough() && !held.waits_in_vain(queue.size()) {
            let Some(chain) = queue.pop() else { return held.is_something() };
            let least = if held.merges() { net::HEADER_LEN } else { net::HEADER_LEN + MIN_FRAME };
            if chain.writable_len() >= least && chain.writable().len() <= MAX_SEGMENTS {
                held.push(chain);
            } else if held.merges() {
                // It can't be used up before those that are held, and with those it can't be used
                // at all.
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
            match send_packet(&*self.port, chain, mem, iovs, offloads) {
                Ok(true) => {}
                Ok(false) => {
                    self.log.warn("the driver sent something that is no packet");
                }
                // EIO: the interface is down. EBADFD: it is gone. A network loses packets; that is
                // not the driver's concern.
                Err(error) => {
                    if !std::mem::replace(&mut self.said.send, true) {
                        self.log.warn(format_args!(
                            "packets are being dropped: {error} (is the interface up? ip link set TAP up)"
                        ));
                    }
                }
            }
            0
        })
    }
}

/// False when the chain holds no packet.
fn send_packet(
    port: &dyn Port,
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
    match list.write_to(port) {
        Ok(_) => Ok(true),
        // The packet itself is one that the kernel refuses.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EMSGSIZE)) => Ok(false),
        Err(error) => Err(error),
    }
}
