//! The device's thread: all connections of a guest, the socket on which the host asks for new ones,
//! and the two queues.
//!
//! Sockets are watched by edges: an edge marks a connection, a transfer that finds nothing unmarks
//! it. Connections that have something for the guest stand in a list and take turns, one packet
//! each, as long as the guest offers buffers. A guest that offers none, or a host that reads
//! nothing, holds up nobody but itself: nothing here blocks.
//!
//! What a guest can make the host keep: [`MAX_CONNECTIONS`] connections, each with its backlog, and
//! [`MAX_RESETS`] answers to packets that belong to none. When those are full, its packets wait in
//! its own queue.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::connection::{Connection, Fate, Outgoing};
use super::greeting::{Greeting, Heard};
use super::host::{self, Listener};
use super::packet::{HEADER_LEN, Op, Ports, Received, Sent};
use crate::bounded_log::BoundedLog;
use crate::memory::GuestMemory;
use crate::virtio::core::active::ActiveQueue;
use crate::virtio::core::chain::Chain;
use crate::virtio::core::iovec::IoVecs;
use crate::virtio::core::spec::vsock::{EVENT_TRANSPORT_RESET, HOST_CID, TYPE_STREAM};
use crate::virtio::core::worker::Stop;

/// Connections of one guest, those that the host is still asking for included.
pub(super) const MAX_CONNECTIONS: usize = 512;
/// Those of them that haven't said which port they want. The oldest makes room.
pub(super) const MAX_GREETINGS: usize = 64;
/// How long that may take.
pub(super) const GREETING_TIME: Duration = Duration::from_secs(2);
/// Connections that are accepted before the queues, and the sockets, get their turn.
const MAX_ACCEPTED: usize = 32;
/// RSTs that wait for a buffer of the guest's.
const MAX_RESETS: usize = 256;
/// Packets that one direction moves before the other one, and the sockets, get their turn.
const BURST: usize = 256;
/// Ports that connections from the host come from; those below are for services.
const FIRST_HOST_PORT: u32 = 1 << 30;

const STOP: u64 = 0;
const RX: u64 = 1;
const TX: u64 = 2;
const LISTENER: u64 = 3;
const EVENT: u64 = 4;
const FIRST_TOKEN: u64 = 5;

/// What the worker gets at `start` and gives back at `stop`.
pub(super) struct Queues {
    pub(super) rx: Option<ActiveQueue>,
    pub(super) tx: Option<ActiveQueue>,
    /// For events of the transport.
    pub(super) event: Option<ActiveQueue>,
    /// The driver has to be told that all of its connections are gone, as soon as it has a buffer
    /// for that.
    pub(super) reset_due: bool,
}

impl Queues {
    /// Tells the driver, if it has to be told and can be.
    fn announce_reset(&mut self) {
        let Some(queue) = &mut self.event else { return };
        queue.drain_kick();
        while self.reset_due {
            if let Some(chain) = queue.pop() {
                let written = chain.writer(queue.mem()).write(&EVENT_TRANSPORT_RESET.to_le_bytes());
                queue.complete(chain, written);
                queue.interrupt_if_needed();
                self.reset_due = false;
            } else if !queue.enable_notification() {
                return;
            }
        }
    }
}

/// What stays with the worker from one start to the next.
pub(super) struct Muxer {
    guest_cid: u64,
    listener: Listener,
    /// Whether the listening socket is watched.
    listening: bool,
    epoll: Epoll,
    connections: HashMap<u64, Connection>,
    by_ports: HashMap<Ports, u64>,
    /// The oldest first.
    greetings: BTreeMap<u64, Greeting>,
    /// Tokens of connections that may have something for the guest.
    ready: VecDeque<u64>,
    resets: VecDeque<Ports>,
    next_token: u64,
    next_port: u32,
    log: BoundedLog,
}

impl Muxer {
    pub(super) fn new(guest_cid: u64, listener: Listener, log: BoundedLog) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        watch(&epoll, &listener, EventSet::IN, LISTENER)?;
        Ok(Self {
            guest_cid,
            listener,
            listening: true,
            epoll,
            connections: HashMap::new(),
            by_ports: HashMap::new(),
            greetings: BTreeMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            next_token: FIRST_TOKEN,
            next_port: FIRST_HOST_PORT,
            log,
        })
    }

    /// Serves the queues until `stop` is set. Whatever stops it, a driver that starts again knows
    /// of no connection, so none is kept.
    pub(super) fn run(&mut self, queues: &mut Queues, stop: &Stop) {
        let event = fd(&queues.event).filter(|_| queues.reset_due);
        let kicks =
            [(STOP, Some(stop.as_raw_fd())), (RX, fd(&queues.rx)), (TX, fd(&queues.tx)), (EVENT, event)];
        for (token, fd) in kicks.iter().filter_map(|(token, fd)| Some((*token, (*fd)?))) {
            let event = EpollEvent::new(EventSet::IN, token);
            if let Err(error) = self.epoll.ctl(ControlOperation::Add, fd, event) {
                self.log.error(format_args!("can't wait for the guest: {error}"));
            }
        }
        self.serve(queues, stop);
        for fd in kicks.iter().filter_map(|(_, fd)| *fd) {
            // It was added above, or that failed and was said.
            let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
        }
        self.forget_all();
    }

    fn serve(&mut self, queues: &mut Queues, stop: &Stop) {
        let mut iovs = IoVecs::default();
        let mut held = None;
        let mut events = vec![EpollEvent::default(); 64];
        // What was available before the start may have no kick to come.
        queues.announce_reset();
        let mut tx_waits = self.take_packets(queues, stop, &mut iovs);
        let mut rx_waits = self.give_packets(queues, stop, &mut held, &mut iovs);
        while !stop.is_set() {
            let tx_may = tx_waits && self.resets.len() < MAX_RESETS;
            let timeout = if tx_may || rx_waits { 0 } else { self.time_left() };
            let count = match self.epoll.wait(timeout, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => unreachable!("epoll_wait on descriptors of our own: {error}"),
            };
            let mut take = tx_may;
            for event in &events[..count] {
                match event.data() {
                    STOP | RX => {}
                    EVENT => queues.announce_reset(),
                    TX => take = true,
                    LISTENER => self.accept(),
                    token => self.wake(token, event.event_set()),
                }
            }
            if take {
                tx_waits = self.take_packets(queues, stop, &mut iovs);
            }
            rx_waits = self.give_packets(queues, stop, &mut held, &mut iovs);
            self.drop_late_greetings();
        }
        if let (Some(rx), Some(chain)) = (&mut queues.rx, held) {
            rx.put_back(chain);
        }
    }

    /// Takes what the guest has sent, one queue's worth at most. Whether something had to be left.
    fn take_packets(&mut self, queues: &mut Queues, stop: &Stop, iovs: &mut IoVecs) -> bool {
        let Some(queue) = &mut queues.tx else { return false };
        queue.drain_kick();
        let mut left = BURST;
        while left > 0 && !stop.is_set() && self.resets.len() < MAX_RESETS {
            let Some(chain) = queue.pop() else {
                queue.interrupt_if_needed();
                if !queue.enable_notification() {
                    return false;
                }
                queue.disable_notification();
                left -= 1;
                continue;
            };
            let mem = queue.mem().clone();
            self.take(&chain, &mem, iovs);
            queue.complete(chain, 0);
            left -= 1;
        }
        queue.interrupt_if_needed();
        true
    }

    fn take(&mut self, chain: &Chain, mem: &GuestMemory, iovs: &mut IoVecs) {
        let mut reader = chain.reader(mem);
        let Some(packet) = reader.read_array::<HEADER_LEN>().map(|bytes| Received::parse(&bytes)) else {
            self.log.warn("the driver sent something that is no packet");
            return;
        };
        let payload = reader.split_off_front(packet.len);
        let sound = packet.src_cid == self.guest_cid
            && packet.dst_cid == HOST_CID
            && packet.kind == TYPE_STREAM
            && payload.len() == packet.len;
        if !sound {
            self.log.warn("the driver sent a packet that is cut, from or to somebody else, or of no stream");
        }
        let known = self.by_ports.get(&packet.ports).copied();
        let Some((token, connection)) =
            known.and_then(|token| Some((token, self.connections.get_mut(&token)?)))
        else {
            return match packet.op {
                Some(Op::Request) if sound => self.connect(&packet),
                // §5.10.6.4.2: an RST for what is unknown, but none for an RST.
                Some(Op::Rst) => {}
                _ => self.resets.push_back(packet.ports),
            };
        };
        let fate = if sound { connection.receive(&packet, payload, mem, iovs) } else { Fate::Reset };
        self.settle(token, fate);
    }

    /// The guest wants a connection to a service of the host's.
    fn connect(&mut self, request: &Received) {
        if !self.has_room() {
            self.log.warn(format_args!("more than {MAX_CONNECTIONS} connections: one was refused"));
            return self.resets.push_back(request.ports);
        }
        match host::connect(&self.listener.place.path, request.ports.host) {
            Ok(stream) => {
                let connection = Connection::from_guest(stream, request);
                if self.add(connection).is_err() {
                    self.resets.push_back(request.ports);
                }
            }
            Err(error) => {
                // Nobody listens there, mostly.
                log::debug!("{}: port {}: {error}", self.log.who(), request.ports.host);
                self.resets.push_back(request.ports);
            }
        }
    }

    /// Somebody on the host wants a connection; to which port it says first.
    fn accept(&mut self) {
        for _ in 0..MAX_ACCEPTED {
            let stream = match self.listener.accept() {
                Ok(stream) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::ECONNABORTED)) => {
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    self.log.warn(format_args!("a connection was refused: {error}"));
                    continue;
                }
                Err(error) => {
                    // Out of descriptors or memory: whoever waits there is heard when something has
                    // ended.
                    self.log.warn(format_args!("can't accept a connection: {error}"));
                    return self.listen(false);
                }
            };
            if !self.has_room() {
                self.log.warn(format_args!("more than {MAX_CONNECTIONS} connections: one was refused"));
                continue;
            }
            if self.greetings.len() == MAX_GREETINGS {
                self.greetings.pop_first();
            }
            let token = self.new_token();
            let edges = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
            match watch(&self.epoll, &stream, edges, token) {
                Ok(()) => {
                    self.greetings.insert(token, Greeting::new(stream, Instant::now() + GREETING_TIME));
                    self.greet(token);
                }
                Err(error) => {
                    self.log.warn(format_args!("a connection is lost: {error}"));
                }
            }
        }
    }

    fn listen(&mut self, wanted: bool) {
        if wanted != self.listening {
            let event = EpollEvent::new(if wanted { EventSet::IN } else { EventSet::empty() }, LISTENER);
            if let Err(error) = self.epoll.ctl(ControlOperation::Modify, self.listener.as_raw_fd(), event) {
                self.log.warn(format_args!("the socket of the host: {error}"));
            }
            self.listening = wanted;
        }
    }

    /// Until the oldest greeting is late, in whole milliseconds for epoll_wait; -1 if there is
    /// none.
    fn time_left(&self) -> i32 {
        let Some((_, oldest)) = self.greetings.first_key_value() else { return -1 };
        let left = oldest.deadline().saturating_duration_since(Instant::now());
        // Rounded up, so that it is late by then.
        i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX)
    }

    fn drop_late_greetings(&mut self) {
        let Some((_, oldest)) = self.greetings.first_key_value() else { return };
        let now = Instant::now();
        if oldest.deadline() <= now {
            self.greetings.retain(|_, greeting| greeting.deadline() > now);
            self.listen(true);
        }
    }

    /// Reads which port somebody wants.
    fn greet(&mut self, token: u64) {
        let Some(mut greeting) = self.greetings.remove(&token) else { return };
        match greeting.hear() {
            Heard::Nothing => {
                self.greetings.insert(token, greeting);
            }
            Heard::Nonsense => {
                // Its socket closes, which tells it.
                drop(greeting);
                self.listen(true);
            }
            Heard::Port(guest) => {
                let stream = greeting.into_stream();
                // Under a new token, and watched for writing too.
                let _ = self.epoll.ctl(ControlOperation::Delete, stream.as_raw_fd(), EpollEvent::default());
                if let Some(ports) = self.free_ports(guest)
                    && let Err(error) = self.add(Connection::from_host(stream, ports))
                {
                    self.log.warn(format_args!("a connection is lost: {error}"));
                }
            }
        }
    }

    fn free_ports(&mut self, guest: u32) -> Option<Ports> {
        // One more try than there can be connections finds a free one.
        (0..=MAX_CONNECTIONS).find_map(|_| {
            let ports = Ports { guest, host: self.next_port };
            // Never u32::MAX, which stands for "any".
            self.next_port =
                if self.next_port >= u32::MAX - 1 { FIRST_HOST_PORT } else { self.next_port + 1 };
            (!self.by_ports.contains_key(&ports)).then_some(ports)
        })
    }

    fn add(&mut self, connection: Connection) -> io::Result<()> {
        let token = self.new_token();
        let edges = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        watch(&self.epoll, &connection, edges, token)?;
        self.by_ports.insert(connection.ports(), token);
        self.connections.insert(token, connection);
        self.settle(token, Fate::Keep);
        Ok(())
    }

    /// Room for one more connection; one that is as good as over makes it.
    fn has_room(&mut self) -> bool {
        if self.connections.len() + self.greetings.len() < MAX_CONNECTIONS {
            return true;
        }
        let closing = self.connections.iter().find(|(_, connection)| connection.is_ending());
        let Some((&token, _)) = closing else { return false };
        self.settle(token, Fate::Reset);
        true
    }

    fn new_token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    fn wake(&mut self, token: u64, events: EventSet) {
        if let Some(connection) = self.connections.get_mut(&token) {
            let has = |event| events.intersects(event);
            let fate = connection.wake(
                has(EventSet::IN | EventSet::READ_HANG_UP),
                has(EventSet::OUT),
                has(EventSet::HANG_UP | EventSet::ERROR),
            );
            self.settle(token, fate);
        } else {
            self.greet(token);
        }
    }

    /// Ends a connection, or queues it if it has something for the guest.
    fn settle(&mut self, token: u64, fate: Fate) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if fate == Fate::Keep {
            if connection.has_something() && !std::mem::replace(&mut connection.queued, true) {
                self.ready.push_back(token);
            }
            return;
        }
        let (ports, known) = (connection.ports(), connection.is_known_to_guest());
        if std::mem::take(&mut connection.queued) {
            self.ready.retain(|queued| *queued != token);
        }
        if known || fate == Fate::Drain {
            self.by_ports.remove(&ports);
        }
        if fate == Fate::Reset && known {
            self.resets.push_back(ports);
        }
        if fate != Fate::Drain {
            // Its socket closes, and with that leaves the epoll set.
            self.connections.remove(&token);
            self.listen(true);
        }
    }

    fn forget_all(&mut self) {
        self.connections.clear();
        self.by_ports.clear();
        self.ready.clear();
        self.resets.clear();
    }

    /// Gives the guest what there is, as long as it offers buffers, but one burst at most. A buffer
    /// that nothing came for stays in `held`. Whether there was more to give, and buffers for it.
    fn give_packets(
        &mut self,
        queues: &mut Queues,
        stop: &Stop,
        held: &mut Option<Chain>,
        iovs: &mut IoVecs,
    ) -> bool {
        let Some(queue) = &mut queues.rx else { return false };
        queue.drain_kick();
        queue.disable_notification();
        let mut starved = false;
        for _ in 0..BURST {
            if stop.is_set() || self.resets.is_empty() && self.ready.is_empty() {
                break;
            }
            let Some(chain) = held.take().or_else(|| queue.pop()) else {
                if queue.enable_notification() {
                    queue.disable_notification();
                    continue;
                }
                starved = true;
                break;
            };
            if chain.writable_len() as usize <= HEADER_LEN {
                self.log.warn("the driver gave a buffer with no room for a packet");
                queue.complete(chain, 0);
                continue;
            }
            let mem = queue.mem().clone();
            match self.give(&chain, &mem, iovs) {
                Outgoing::Packet(len) => queue.complete(chain, len),
                Outgoing::Nothing => *held = Some(chain),
            }
        }
        queue.interrupt_if_needed();
        !(starved || self.resets.is_empty() && self.ready.is_empty())
    }

    fn give(&mut self, chain: &Chain, mem: &GuestMemory, iovs: &mut IoVecs) -> Outgoing {
        if let Some(ports) = self.resets.pop_front() {
            let len = chain.writer(mem).write(&Sent::bare(ports, Op::Rst).bytes(self.guest_cid));
            return Outgoing::Packet(len);
        }
        let Some(token) = self.ready.pop_front() else { return Outgoing::Nothing };
        let Some(connection) = self.connections.get_mut(&token) else { return Outgoing::Nothing };
        connection.queued = false;
        let outgoing = connection.next(chain.writer(mem), self.guest_cid, iovs);
        self.settle(token, Fate::Keep);
        outgoing
    }
}

fn fd(queue: &Option<ActiveQueue>) -> Option<RawFd> {
    queue.as_ref().map(AsRawFd::as_raw_fd)
}

fn watch(epoll: &Epoll, fd: &impl AsRawFd, events: EventSet, token: u64) -> io::Result<()> {
    epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), EpollEvent::new(events, token))
}
