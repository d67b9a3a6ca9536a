//! A guest's driver of a vsock device, as far as the tests need one.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::connection::BUF_ALLOC;
use super::packet::{HEADER_LEN, Op, Ports, Received};
use super::{Config, Vsock, host};
use crate::thread::Spawner;
use crate::virtio::core::spec::vsock::{HOST_CID, SHUTDOWN_BOTH, TYPE_STREAM};
use crate::virtio::core::testing::*;

pub(super) const CID: u64 = 3;
pub(super) const RX: usize = 0;
pub(super) const TX: usize = 1;
pub(super) const EVENT: usize = 2;
pub(super) const BUFFER: u32 = 4096;
/// What the guest says of its buffer, unless a test wants to know.
pub(super) const PLENTY: u32 = 1 << 20;

/// A guest's driver, as far as these tests need one.
pub(super) struct Guest {
    pub(super) driver: FakeDriver,
    pub(super) dir: tempfile::TempDir,
    pub(super) buffers: HashMap<u16, u64>,
    pub(super) tx_buffer: u64,
    pub(super) credit: u32,
    pub(super) consumed: u32,
}

impl Guest {
    pub(super) fn new() -> Self {
        Self::named("vsock0")
    }

    /// One that offers no buffers to receive into.
    pub(super) fn starved() -> Self {
        Self::without_buffers("vsock0")
    }

    /// One whose device's thread has this name.
    pub(super) fn named(name: &str) -> Self {
        let mut guest = Self::without_buffers(name);
        guest.add_buffers(8);
        guest
    }

    pub(super) fn without_buffers(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { path: dir.path().join("vsock"), cid: None };
        let device = Vsock::new(&config, config.listen().unwrap(), name, &Spawner::default()).unwrap();
        let mut driver = FakeDriver::started(device);
        let tx_buffer = driver.alloc(64 << 10);
        Self { driver, dir, buffers: HashMap::new(), tx_buffer, credit: PLENTY, consumed: 0 }
    }

    pub(super) fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("vsock")
    }

    pub(super) fn add_buffers(&mut self, count: usize) {
        for _ in 0..count {
            let gpa = self.driver.alloc(BUFFER);
            self.offer(gpa);
        }
    }

    pub(super) fn offer(&mut self, gpa: u64) {
        let head = self.driver.queues[RX].add(&[Part::Write(gpa, BUFFER)]);
        self.buffers.insert(head, gpa);
        self.driver.notify(0);
    }

    /// A service of the host's.
    pub(super) fn service(&self, port: u32) -> UnixListener {
        UnixListener::bind(host::service(&self.path(), port)).unwrap()
    }

    pub(super) fn send(&mut self, op: Op, ports: Ports, flags: u32, payload: &[u8]) {
        let len = u32::try_from(payload.len()).unwrap();
        let mut bytes = header(ports, op as u16, len);
        bytes[32..36].copy_from_slice(&flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.credit.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.consumed.to_le_bytes());
        bytes.extend(payload);
        self.send_raw(&bytes);
    }

    pub(super) fn send_raw(&mut self, bytes: &[u8]) {
        self.driver.mem.write_slice(bytes, GuestAddress(self.tx_buffer)).unwrap();
        let len = u32::try_from(bytes.len()).unwrap();
        self.driver.queues[TX].add(&[Part::Read(self.tx_buffer, len)]);
        self.driver.notify(1);
        assert_eq!(self.driver.wait_used(TX).1, 0);
    }

    /// The next packet from the device, its buffer offered again.
    pub(super) fn receive(&mut self) -> (Received, Vec<u8>) {
        let (head, len) = self.driver.wait_used(RX);
        self.take(head, len)
    }

    pub(super) fn take(&mut self, head: u16, len: u32) -> (Received, Vec<u8>) {
        let gpa = self.buffers.remove(&head).unwrap();
        let bytes = self.driver.bytes(gpa, len);
        self.offer(gpa);
        let packet = Received::parse(bytes[..HEADER_LEN].try_into().unwrap());
        assert_eq!((packet.src_cid, packet.dst_cid, packet.kind), (HOST_CID, CID, TYPE_STREAM));
        assert_eq!(packet.len as usize, bytes.len() - HEADER_LEN);
        // Its ports are named from the sender's side.
        let ports = Ports { guest: packet.ports.host, host: packet.ports.guest };
        (Received { ports, ..packet }, bytes[HEADER_LEN..].to_vec())
    }

    /// The next packet, which must be this one.
    #[track_caller]
    pub(super) fn expect(&mut self, op: Op, ports: Ports) -> (Received, Vec<u8>) {
        let (packet, payload) = self.receive();
        assert_eq!((packet.op, packet.ports), (Some(op), ports));
        (packet, payload)
    }

    #[track_caller]
    pub(super) fn expect_silence(&mut self) {
        std::thread::sleep(Duration::from_millis(50));
        if let Some((head, len)) = self.driver.queues[RX].used() {
            panic!("{:?}", self.take(head, len));
        }
    }

    /// A connection from the guest to a service: its ports, and the host's end.
    pub(super) fn connect(&mut self, service: &UnixListener, port: u32) -> (Ports, UnixStream) {
        let ports = Ports { guest: 1000, host: port };
        self.connect_from(service, ports)
    }

    pub(super) fn connect_from(&mut self, service: &UnixListener, ports: Ports) -> (Ports, UnixStream) {
        self.send(Op::Request, ports, 0, b"");
        let (response, _) = self.expect(Op::Response, ports);
        assert_eq!((response.buf_alloc, response.fwd_cnt), (BUF_ALLOC, 0));
        (ports, accept(service))
    }

    /// Receives so many bytes of one connection, and gives credit for them.
    pub(super) fn receive_bytes(&mut self, ports: Ports, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            let (packet, payload) = self.receive();
            assert_eq!(packet.ports, ports);
            match packet.op {
                Some(Op::Rw) => bytes.extend(payload),
                Some(Op::CreditRequest | Op::CreditUpdate) => {}
                other => panic!("{other:?}"),
            }
            self.consumed = u32::try_from(bytes.len()).unwrap();
            self.send(Op::CreditUpdate, ports, 0, b"");
        }
        bytes
    }

    /// Shows that the device works: one connection from start to end.
    pub(super) fn works(&mut self, port: u32) {
        let service = self.service(port);
        let ports = Ports { guest: 77, host: port };
        let (ports, mut host) = self.connect_from(&service, ports);
        self.send(Op::Rw, ports, 0, b"question");
        assert_eq!(read(&mut host, 8), b"question");
        host.write_all(b"answer").unwrap();
        assert_eq!(self.expect(Op::Rw, ports).1, b"answer");
        self.send(Op::Shutdown, ports, SHUTDOWN_BOTH, b"");
        self.expect(Op::Rst, ports);
    }
}

pub(super) fn header(ports: Ports, op: u16, len: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(CID.to_le_bytes());
    bytes.extend(HOST_CID.to_le_bytes());
    bytes.extend(ports.guest.to_le_bytes());
    bytes.extend(ports.host.to_le_bytes());
    bytes.extend(len.to_le_bytes());
    bytes.extend(TYPE_STREAM.to_le_bytes());
    bytes.extend(op.to_le_bytes());
    bytes.resize(HEADER_LEN, 0);
    bytes[36..40].copy_from_slice(&PLENTY.to_le_bytes());
    bytes
}

pub(super) fn accept(service: &UnixListener) -> UnixStream {
    patient(service.accept().unwrap().0)
}

pub(super) fn patient(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

pub(super) fn read(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i * 7 + i / 251) % 256).unwrap()).collect()
}
