//! Moves packets between a tap and the two queues of a pair.
//!
//! Each packet is one `readv` or one `writev` between the tap and guest memory; no byte of it passes through ours. The
//! header before it (virtio 1.2 §5.1.6) never crosses: no offload is negotiated, so every field that a driver could set is a
//! lie, and the tap gets zeros in its place. That also means that a driver that changes a header while we look at it changes
//! nothing. Towards the guest it is zeros and `num_buffers` 1, which the kernel leaves to us.
//!
//! The tap is only waited for while there is a buffer to put a packet into: without one, packets wait in the interface's queue
//! and are dropped there. An interface that vanishes ends reception, one that is down ends nothing: both are said once.

use std::io;
use std::os::fd::AsRawFd;

use super::tap::Tap;
use crate::memory::GuestMemory;
use crate::poll;
use crate::virtio::core::active::{ActiveQueue, Notify};
use crate::virtio::core::chain::Chain;
use crate::virtio::core::guest_log::GuestLog;
use crate::virtio::core::iovec::IoVecs;
use crate::virtio::core::spec::net;
use crate::virtio::core::worker::Stop;

const HEADER_LEN: usize = net::HEADER_LEN as usize;
/// Towards the host: no checksum to compute, no segmentation to do.
const TX_HEADER: [u8; HEADER_LEN] = [0; HEADER_LEN];
/// Towards the guest: the same, and `num_buffers` 1 (§5.1.6.4.1).
const RX_HEADER: [u8; HEADER_LEN] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
/// Packets that are received before the other sources get their turn.
const RX_BURST: usize = 256;
/// An Ethernet header, the least that a packet has.
const MIN_FRAME: u32 = 14;
/// The largest packet that any header could announce, and then some: beyond it nothing is worth a system call.
const MAX_FRAME: u32 = 65536 + 64;

/// What the worker gets at `start` and gives back at `stop`.
pub(super) struct Queues {
    pub(super) rx: Option<ActiveQueue>,
    pub(super) tx: Option<ActiveQueue>,
}

/// What stays with the worker from one start to the next.
pub(super) struct Pump {
    tap: Tap,
    log: GuestLog,
    said: Said,
}

/// What was said already: once each.
#[derive(Default)]
struct Said {
    gone: bool,
    send: bool,
}

/// Where reception stands.
enum Rx {
    /// A buffer is (or may be) there: wait for packets.
    Ready,
    /// The driver has to add buffers first.
    Starved,
    /// The interface is gone, or the driver enabled no receive queue.
    Off,
}

impl Pump {
    pub(super) fn new(tap: Tap, log: GuestLog) -> Self {
        Self { tap, log, said: Said::default() }
    }

    /// Serves both queues until `stop` is set.
    pub(super) fn run(&mut self, queues: &mut Queues, stop: &Stop) {
        let mut iovs = IoVecs::default();
        let mut held = None;
        // What was available before the start may have no kick to come.
        let mut state = self.receive(queues, &mut held, &mut iovs);
        self.send(queues, stop, &mut iovs);
        while !stop.is_set() {
            let rx_kick = queues.rx.as_ref().filter(|_| matches!(state, Rx::Starved));
            let tap: Option<&dyn AsRawFd> = matches!(state, Rx::Ready).then_some(&self.tap as _);
            let [_, rx_kicked, tx_kicked, packet] = poll::readable([
                Some(stop),
                rx_kick.map(|queue| queue as _),
                queues.tx.as_ref().map(|queue| queue as _),
                tap,
            ]);
            if rx_kicked || packet {
                state = self.receive(queues, &mut held, &mut iovs);
            }
            if tx_kicked {
                self.send(queues, stop, &mut iovs);
            }
        }
        if let (Some(rx), Some(chain)) = (&mut queues.rx, held) {
            rx.put_back(chain);
        }
    }

    /// Receives until the tap or the queue has no more. A buffer that no packet came for stays in `held`.
    fn receive(&mut self, queues: &mut Queues, held: &mut Option<Chain>, iovs: &mut IoVecs) -> Rx {
        let Some(queue) = &mut queues.rx else { return Rx::Off };
        queue.drain_kick();
        queue.disable_notification();
        let mut state = Rx::Ready;
        for _ in 0..RX_BURST {
            let Some(chain) = held.take().or_else(|| queue.pop()) else {
                if queue.enable_notification() {
                    queue.disable_notification();
                    continue;
                }
                state = Rx::Starved;
                break;
            };
            match receive_packet(&self.tap, &chain, queue.mem(), iovs) {
                Ok(Received::Packet(len)) => queue.complete(chain, len),
                Ok(Received::TooLarge) => {
                    self.log.warn("a packet was dropped: the driver's buffer is too small for it");
                    *held = Some(chain);
                }
                Ok(Received::NoRoom) => {
                    self.log.warn("the driver gave a buffer with no room for a packet");
                    queue.complete(chain, 0);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    *held = Some(chain);
                    break;
                }
                Err(error) => {
                    // EBADFD: the interface was deleted. Nothing else is known to happen, and a tap that always fails must not
                    // keep us busy.
                    if !std::mem::replace(&mut self.said.gone, true) {
                        log::warn!("{}: no more packets will come: {error}", self.log.who());
                    }
                    *held = Some(chain);
                    state = Rx::Off;
                    break;
                }
            }
        }
        queue.interrupt_if_needed();
        state
    }

    fn send(&mut self, queues: &mut Queues, stop: &Stop, iovs: &mut IoVecs) {
        let Some(queue) = &mut queues.tx else { return };
        queue.drain_kick();
        queue.serve(stop, Notify::Burst, |chain, mem| {
            match send_packet(&self.tap, chain, mem, iovs) {
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
        });
    }
}

enum Received {
    /// So many bytes of the chain are written, header and packet.
    Packet(u32),
    /// A packet was read and did not fit. It is lost.
    TooLarge,
    /// Nothing was read: the chain has no room for any packet.
    NoRoom,
}

fn receive_packet(tap: &Tap, chain: &Chain, mem: &GuestMemory, iovs: &mut IoVecs) -> io::Result<Received> {
    let mut writer = chain.writer(mem);
    if writer.len() < net::HEADER_LEN + MIN_FRAME {
        return Ok(Received::NoRoom);
    }
    // The tap cuts a packet to the room there is and doesn't say so; a byte more than the driver gave does.
    let mut beyond = [0];
    let n = {
        let mut list = writer.scatter(iovs);
        list.push_host(&mut beyond);
        list.read_from(tap)?
    };
    match u32::try_from(n) {
        Ok(n) if n <= writer.len() => {
            writer.write(&RX_HEADER);
            Ok(Received::Packet(n))
        }
        _ => Ok(Received::TooLarge),
    }
}

/// False when the chain holds no packet.
fn send_packet(tap: &Tap, chain: &Chain, mem: &GuestMemory, iovs: &mut IoVecs) -> io::Result<bool> {
    let mut frame = chain.reader(mem);
    if frame.split_off_front(net::HEADER_LEN).len() < net::HEADER_LEN
        || !(MIN_FRAME..=MAX_FRAME).contains(&frame.len())
    {
        return Ok(false);
    }
    let mut list = iovs.gather(mem);
    list.push_host(&TX_HEADER);
    frame.gather_into(&mut list);
    match list.write_to(tap) {
        Ok(_) => Ok(true),
        // The packet itself is one that the kernel refuses.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EMSGSIZE)) => Ok(false),
        Err(error) => Err(error),
    }
}
