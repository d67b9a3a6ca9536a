//! One connection: a socket of the host's on one side, the guest's packets on the other, and the
//! credit between them.
//!
//! Neither side can make the other's buffer grow (virtio 1.2 §5.10.6.3). What the guest sends goes
//! to the socket at once, from guest memory; only what the socket doesn't take waits in a backlog
//! of at most [`BUF_ALLOC`] bytes, and a guest that sends more than it has credit for loses the
//! connection. What the host sends is read from the socket straight into the guest's buffers, and
//! only while the guest has announced room. Counters wrap at 32 bits, as the specification wants;
//! whatever the guest claims, the worst that comes of it is a connection that stands still.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use super::packet::{Op, Ports, Received, Sent};
use crate::memory::GuestMemory;
use crate::virtio::core::chain::{Reader, Writer};
use crate::virtio::core::iovec::IoVecs;
use crate::virtio::core::spec::vsock::{HEADER_LEN, SHUTDOWN_BOTH, SHUTDOWN_RCV, SHUTDOWN_SEND};

/// Bytes of a connection that the host keeps for a socket that doesn't take them.
pub(super) const BUF_ALLOC: u32 = 128 << 10;
/// The most payload of one packet: more in one go would make others wait.
const MAX_PAYLOAD: u32 = 64 << 10;

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    Keep,
    /// It ends, and the guest is told by an RST.
    Reset,
    /// It ends, and the guest knows.
    Over,
    /// The guest has ended it, and no packet belongs to it any more; its socket still has something
    /// to get.
    Drain,
}

/// What a connection has for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outgoing {
    /// A packet of so many bytes, header and payload, is in the buffer.
    Packet(u32),
    /// Nothing now.
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The host wants it, the guest hasn't answered.
    Requested,
    Open,
    /// The guest was told that neither direction is of use any more, and will end it.
    Closing,
    /// The guest has ended it and forgotten it; what it sent before is still on its way to the
    /// socket.
    Draining,
}

pub(super) struct Connection {
    ports: Ports,
    stream: UnixStream,
    phase: Phase,

    /// Bytes sent to the guest, and what it said of its buffer.
    sent: u32,
    guest_buf_alloc: u32,
    guest_fwd_cnt: u32,
    credit_asked: bool,
    /// The socket may have bytes: set by an edge, cleared by a read that finds none.
    readable: bool,
    /// The host sends no more.
    host_done: bool,
    /// The guest receives no more.
    guest_deaf: bool,

    /// Bytes from the guest that left for the socket, and how many of them the guest has been told
    /// of.
    forwarded: u32,
    told: u32,
    backlog: VecDeque<u8>,
    /// The socket may take bytes: set by an edge, cleared by a write that is refused.
    writable: bool,
    /// The guest sends no more.
    guest_done: bool,
    /// The host receives no more.
    host_deaf: bool,
    /// The guest's end of sending was passed on to the socket. Once: each time would wake us up for
    /// nothing.
    end_passed_on: bool,

    /// A REQUEST or RESPONSE that is still to be sent.
    opening: Option<Op>,
    /// The guest asked for our credit.
    credit_due: bool,
    /// Directions that the guest has been told are shut.
    shutdown_told: u32,
    /// It stands in the list of those that have something for the guest.
    pub(super) queued: bool,
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

impl Connection {
    /// The guest asked for it, and the host's socket took it. `stream` must not block.
    pub(super) fn from_guest(stream: UnixStream, request: &Received) -> Self {
        let mut connection = Self::new(stream, request.ports, Phase::Open, Op::Response);
        connection.take_credit(request);
        connection
    }

    /// Somebody on the host wants it; the guest is to be asked. `stream` must not block.
    pub(super) fn from_host(stream: UnixStream, ports: Ports) -> Self {
        Self::new(stream, ports, Phase::Requested, Op::Request)
    }

    fn new(stream: UnixStream, ports: Ports, phase: Phase, opening: Op) -> Self {
        Self {
            ports,
            stream,
            phase,
            sent: 0,
            guest_buf_alloc: 0,
            guest_fwd_cnt: 0,
            credit_asked: false,
            readable: true,
            host_done: false,
            guest_deaf: false,
            forwarded: 0,
            told: 0,
            backlog: VecDeque::new(),
            writable: true,
            guest_done: false,
            host_deaf: false,
            end_passed_on: false,
            opening: Some(opening),
            credit_due: false,
            shutdown_told: 0,
            queued: false,
        }
    }

    pub(super) fn ports(&self) -> Ports {
        self.ports
    }

    /// Whether the guest has no use for it any more, so that it is the first to go when room is
    /// needed.
    pub(super) fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Closing | Phase::Draining)
    }

    /// Whether packets of the guest belong to it.
    pub(super) fn is_known_to_guest(&self) -> bool {
        self.phase != Phase::Draining
    }

    fn take_credit(&mut self, packet: &Received) {
        (self.guest_buf_alloc, self.guest_fwd_cnt) = (packet.buf_alloc, packet.fwd_cnt);
        // An answer that gives none would only be asked for again; the guest tells by itself when
        // it has room.
        self.credit_asked &= self.credit() == 0;
    }

    /// Bytes that the guest has room for.
    fn credit(&self) -> u32 {
        self.guest_buf_alloc.saturating_sub(self.sent.wrapping_sub(self.guest_fwd_cnt))
    }

    /// A packet came from the guest. `payload` is what the header announced, all of it.
    pub(super) fn receive(
        &mut self,
        packet: &Received,
        payload: Reader<'_>,
        mem: &GuestMemory,
        iovs: &mut IoVecs,
    ) -> Fate {
        self.take_credit(packet);
        match (packet.op, self.phase) {
            // What the guest sent before it closed is the host's to have, however long it takes.
            (Some(Op::Rst), Phase::Open | Phase::Closing) if self.guest_done && !self.backlog.is_empty() => {
                self.phase = Phase::Draining;
                Fate::Drain
            }
            (Some(Op::Rst), _) => Fate::Over,
            (Some(Op::Response), Phase::Requested) => self.open(),
            (_, Phase::Requested) | (Some(Op::Request | Op::Response) | None, _) => Fate::Reset,
            (Some(Op::Rw), _) if self.guest_done => Fate::Reset,
            (Some(Op::Rw), _) => self.forward(payload, mem, iovs),
            (Some(Op::Shutdown), _) => self.shut(packet.flags),
            (Some(Op::CreditUpdate), _) => Fate::Keep,
            (Some(Op::CreditRequest), _) => {
                self.credit_due = true;
                Fate::Keep
            }
        }
    }

    fn open(&mut self) -> Fate {
        self.phase = Phase::Open;
        // The first bytes into an empty socket: they go at once or never.
        match self.stream.write_all(format!("OK {}\n", self.ports.host).as_bytes()) {
            Ok(()) => Fate::Keep,
            Err(_) => Fate::Reset,
        }
    }

    fn forward(&mut self, payload: Reader<'_>, mem: &GuestMemory, iovs: &mut IoVecs) -> Fate {
        let len = payload.len();
        let mut payload = payload;
        if self.backlog.is_empty() && self.writable && !self.host_deaf {
            let mut list = iovs.gather(mem);
            payload.gather_into(&mut list);
            let written = list.write_to(&self.stream);
            let written = self.written(written);
            self.forwarded = self.forwarded.wrapping_add(written);
            payload.split_off_front(written);
        }
        if self.host_deaf {
            // Nobody will take it; the guest needn't wait for that.
            self.forwarded = self.forwarded.wrapping_add(payload.len());
            return Fate::Keep;
        }
        let waiting = u32::try_from(self.backlog.len()).unwrap_or(u32::MAX);
        if len > BUF_ALLOC || waiting.saturating_add(payload.len()) > BUF_ALLOC {
            return Fate::Reset;
        }
        payload.append_to(&mut self.backlog);
        Fate::Keep
    }

    /// What a write to the socket came to, in bytes.
    fn written(&mut self, result: io::Result<usize>) -> u32 {
        match result {
            Ok(len) => u32::try_from(len).unwrap_or(u32::MAX),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.writable = false;
                0
            }
            Err(_) => {
                self.host_deaf = true;
                0
            }
        }
    }

    fn shut(&mut self, directions: u32) -> Fate {
        self.guest_deaf |= directions & SHUTDOWN_RCV != 0;
        self.guest_done |= directions & SHUTDOWN_SEND != 0;
        if self.guest_deaf {
            self.shut_socket(Shutdown::Read);
        }
        self.finish_sending()
    }

    /// Passes the guest's end of sending on, once everything before it has left.
    fn finish_sending(&mut self) -> Fate {
        if !self.guest_done || !self.backlog.is_empty() {
            return Fate::Keep;
        }
        if self.phase == Phase::Draining {
            return Fate::Over;
        }
        if !std::mem::replace(&mut self.end_passed_on, true) {
            self.shut_socket(Shutdown::Write);
        }
        if self.guest_deaf { Fate::Reset } else { Fate::Keep }
    }

    fn shut_socket(&self, direction: Shutdown) {
        if let Err(error) = self.stream.shutdown(direction) {
            // The other end is gone: the next read or write finds that out.
            log::debug!("vsock {:?}: {error}", self.ports);
        }
    }

    /// The socket has news.
    pub(super) fn wake(&mut self, readable: bool, writable: bool, hung_up: bool) -> Fate {
        if hung_up && self.phase == Phase::Requested {
            return if self.opening.is_some() { Fate::Over } else { Fate::Reset };
        }
        // Nothing that the host may still have sent is of use to a guest that receives no more.
        self.host_done |= hung_up && self.guest_deaf;
        self.readable |= readable || hung_up;
        self.writable |= writable;
        self.host_deaf |= hung_up;
        while self.writable && !self.backlog.is_empty() && !self.host_deaf {
            let (front, _) = self.backlog.as_slices();
            let written = self.stream.write(front);
            let written = self.written(written);
            self.backlog.drain(..written as usize);
            self.forwarded = self.forwarded.wrapping_add(written);
        }
        if self.host_deaf && !self.backlog.is_empty() {
            self.forwarded =
                self.forwarded.wrapping_add(u32::try_from(self.backlog.len()).unwrap_or(u32::MAX));
            self.backlog = VecDeque::new();
        }
        if self.backlog.is_empty() {
            // A reader that stalled once needn't cost its buffer for ever.
            self.backlog.shrink_to_fit();
        }
        self.finish_sending()
    }

    /// Directions that are shut on the host's side and that the guest hasn't been told of.
    fn shutdown_due(&self) -> u32 {
        let shut =
            if self.host_done { SHUTDOWN_SEND } else { 0 } | if self.host_deaf { SHUTDOWN_RCV } else { 0 };
        shut & !self.shutdown_told
    }

    fn credit_update_due(&self) -> bool {
        self.credit_due || self.forwarded.wrapping_sub(self.told) >= BUF_ALLOC / 2
    }

    fn may_read(&self) -> bool {
        self.readable && !self.host_done && !self.guest_deaf
    }

    /// Whether [`Connection::next`] may have something. It may turn out not to.
    pub(super) fn has_something(&self) -> bool {
        self.opening.is_some()
            || self.phase == Phase::Open
                && (self.shutdown_due() != 0
                    || self.credit_update_due()
                    || self.may_read() && (self.credit() > 0 || !self.credit_asked))
    }

    /// Writes the next packet for the guest into `writer`, which has room for a header and at least
    /// one byte.
    pub(super) fn next(&mut self, mut writer: Writer<'_>, guest_cid: u64, iovs: &mut IoVecs) -> Outgoing {
        let mut header = writer.split_off_front(HEADER_LEN);
        let Some(packet) = self.compose(writer, iovs) else { return Outgoing::Nothing };
        header.write(&packet.bytes(guest_cid));
        (self.told, self.credit_due) = (self.forwarded, false);
        Outgoing::Packet(HEADER_LEN + packet.len)
    }

    fn compose(&mut self, payload: Writer<'_>, iovs: &mut IoVecs) -> Option<Sent> {
        let mut packet = Sent {
            buf_alloc: BUF_ALLOC,
            fwd_cnt: self.forwarded,
            ..Sent::bare(self.ports, Op::CreditUpdate)
        };
        if let Some(op) = self.opening.take() {
            return Some(Sent { op, ..packet });
        }
        if self.phase != Phase::Open {
            return None;
        }
        if self.may_read() {
            if self.credit() == 0 {
                if !std::mem::replace(&mut self.credit_asked, true) {
                    return Some(Sent { op: Op::CreditRequest, ..packet });
                }
            } else {
                packet.len = self.read(payload, iovs);
                if packet.len > 0 {
                    return Some(Sent { op: Op::Rw, ..packet });
                }
            }
        }
        let flags = self.shutdown_due();
        if flags != 0 {
            self.shutdown_told |= flags;
            if self.shutdown_told == SHUTDOWN_BOTH {
                self.phase = Phase::Closing;
            }
            return Some(Sent { op: Op::Shutdown, flags, ..packet });
        }
        self.credit_update_due().then_some(packet)
    }

    /// Bytes read from the socket into the guest's buffer; 0 if there are none now.
    fn read(&mut self, mut payload: Writer<'_>, iovs: &mut IoVecs) -> u32 {
        let room = payload.split_off_front(self.credit().min(MAX_PAYLOAD));
        let read = room.scatter(iovs).read_from(&self.stream);
        match read.map(u32::try_from) {
            Ok(Ok(len)) if len > 0 => {
                self.sent = self.sent.wrapping_add(len);
                return len;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Ok(_) => self.host_done = true,
            Err(_) => (self.host_done, self.host_deaf) = (true, true),
        }
        0
    }
}
