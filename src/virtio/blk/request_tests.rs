use super::*;
use crate::virtio::blk::Cache;
use crate::virtio::core::queue::Queue;
use crate::virtio::core::spec::feature;
use crate::virtio::core::testing::*;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};

const SECTORS: u64 = 8;
const HEADER: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;
const STATUS: u64 = 0x30_0000;
/// What memory holds that nothing has written to.
const UNTOUCHED: u8 = 0xee;

/// A request server, and a ring to give it requests by.
struct Bench {
    mem: Arc<GuestMemory>,
    driver: DriverQueue,
    queue: Queue,
    server: Server,
    iovs: IoVecs,
    write_through: bool,
}

impl Bench {
    fn on(file: File, read_only: bool) -> Self {
        let mem = memory();
        let driver = DriverQueue::new(&mem, 0, SIZE);
        let queue = Queue::new(&driver.layout, 256, feature::INDIRECT_DESC, &mem).unwrap();
        let mut id = [0; blk::ID_LEN];
        id[..4].copy_from_slice(b"name");
        let disk = Disk::from_fd(file.into(), read_only, Cache::default()).unwrap();
        let server = Server {
            disk,
            id,
            log: BoundedLog::new("test"),
            dirty: AtomicBool::new(false),
            throttle: Arc::default(),
        };
        Self { mem, driver, queue, server, iovs: IoVecs::default(), write_through: false }
    }

    /// On a file in which each byte is the number of its sector.
    fn new() -> (Self, File) {
        let mut file = tempfile::tempfile().unwrap();
        for sector in 0..SECTORS {
            file.write_all(&[u8::try_from(sector).unwrap(); 512]).unwrap();
        }
        (Self::on(file.try_clone().unwrap(), false), file)
    }

    fn header(&self, kind: u32, sector: u64) {
        self.mem.write_obj([kind, 0], GuestAddress(HEADER)).unwrap();
        self.mem.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
    }

    /// Serves one chain and returns the used length.
    fn serve(&mut self, parts: &[Part]) -> u32 {
        self.mem.write_obj(UNTOUCHED, GuestAddress(STATUS)).unwrap();
        self.mem.write_slice(&[UNTOUCHED; 8192], GuestAddress(DATA)).unwrap();
        self.driver.add(parts);
        let chain = self.queue.pop(&self.mem).unwrap().unwrap();
        let written = self.server.serve(&chain, &self.mem, &mut self.iovs, self.write_through);
        self.queue.complete(&self.mem, chain, written).unwrap();
        self.driver.used().unwrap().1
    }

    fn status(&self) -> u8 {
        self.mem.read_obj(GuestAddress(STATUS)).unwrap()
    }

    fn data(&self) -> Vec<u8> {
        let mut data = vec![0; 8192];
        self.mem.read_slice(&mut data, GuestAddress(DATA)).unwrap();
        data
    }

    /// A read of `len` bytes: used length and status.
    fn read(&mut self, sector: u64, len: u32) -> (u32, u8) {
        self.header(blk::T_IN, sector);
        let used = self.serve(&[Part::Read(HEADER, 16), Part::Write(DATA, len), Part::Write(STATUS, 1)]);
        (used, self.status())
    }

    /// A write of `len` bytes, all 0xee: used length and status.
    fn write(&mut self, sector: u64, len: u32) -> (u32, u8) {
        self.header(blk::T_OUT, sector);
        let used = self.serve(&[Part::Read(HEADER, 16), Part::Read(DATA, len), Part::Write(STATUS, 1)]);
        (used, self.status())
    }

    /// Any request without data.
    fn bare(&mut self, kind: u32) -> (u32, u8) {
        self.header(kind, 0);
        let used = self.serve(&[Part::Read(HEADER, 16), Part::Write(STATUS, 1)]);
        (used, self.status())
    }
}

#[test]
fn a_read_gets_the_sectors_it_asks_for() {
    let (mut bench, _) = Bench::new();
    assert_eq!(bench.read(3, 1024), (1025, blk::S_OK));
    let data = bench.data();
    assert_eq!((&data[..512], &data[512..1024], data[1024]), (&[3; 512][..], &[4; 512][..], UNTOUCHED));
}

#[test]
fn a_write_lands_where_it_should_and_nowhere_else() {
    let (mut bench, mut file) = Bench::new();
    assert_eq!(bench.write(2, 512), (1, blk::S_OK));
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    for (sector, bytes) in bytes.chunks(512).enumerate() {
        let expected = if sector == 2 { UNTOUCHED } else { u8::try_from(sector).unwrap() };
        assert!(bytes.iter().all(|b| *b == expected), "sector {sector}");
    }
}

#[test]
fn any_layout_of_the_buffers_will_do() {
    let (mut bench, _) = Bench::new();
    bench.header(blk::T_IN, 1);
    // The header in three pieces, the data in two, the status byte at the end of the second;
    // nothing is aligned.
    let used = bench.serve(&[
        Part::Read(HEADER, 3),
        Part::Read(HEADER + 3, 0),
        Part::Read(HEADER + 3, 12),
        Part::Read(HEADER + 15, 1),
        Part::Write(DATA + 1, 500),
        Part::Write(DATA + 1000, 13),
    ]);
    assert_eq!(used, 513);
    let data = bench.data();
    assert_eq!((data[0], &data[1..501], data[501]), (UNTOUCHED, &[1; 500][..], UNTOUCHED));
    assert_eq!((&data[1000..1012], data[1012], data[1013]), (&[1; 12][..], blk::S_OK, UNTOUCHED));
}

#[test]
fn a_request_past_the_end_is_an_error_and_moves_nothing() {
    let (mut bench, file) = Bench::new();
    for (sector, len) in
        [(SECTORS, 512), (SECTORS - 1, 1024), (1 << 54, 512), (1 << 55, 512), (u64::MAX, 512)]
    {
        assert_eq!(bench.read(sector, len), (0, blk::S_IOERR), "{sector}");
        assert!(bench.data().iter().all(|b| *b == UNTOUCHED));
        assert_eq!(bench.write(sector, len), (1, blk::S_IOERR), "{sector}");
    }
    // 2^55 sectors are 2^64 bytes: the product must not wrap to the start of the disk.
    assert_eq!(file.metadata().unwrap().len(), SECTORS * 512);
    assert_eq!(bench.read(SECTORS - 1, 512), (513, blk::S_OK));
    assert_eq!(bench.data()[0], 7);
}

#[test]
fn part_of_a_sector_is_an_error() {
    let (mut bench, _) = Bench::new();
    for len in [1, 511, 513] {
        assert_eq!(bench.read(0, len), (0, blk::S_IOERR));
        assert_eq!(bench.write(0, len), (1, blk::S_IOERR));
    }
    assert_eq!(bench.read(0, 0), (1, blk::S_OK));
    assert_eq!(bench.write(0, 0), (1, blk::S_OK));
}

#[test]
fn a_short_header_is_an_error() {
    let (mut bench, _) = Bench::new();
    bench.header(blk::T_IN, 0);
    for len in [0, 1, 15] {
        assert_eq!(
            bench.serve(&[Part::Read(HEADER, len), Part::Write(DATA, 512), Part::Write(STATUS, 1)]),
            0
        );
        assert_eq!(bench.status(), blk::S_IOERR);
    }
}

#[test]
fn a_request_without_a_status_byte_is_used_up_and_does_nothing() {
    let (mut bench, file) = Bench::new();
    bench.header(blk::T_OUT, 0);
    assert_eq!(bench.serve(&[Part::Read(HEADER, 16), Part::Read(DATA, 512)]), 0);
    assert_eq!(bench.serve(&[Part::Read(HEADER, 16), Part::Write(STATUS, 0)]), 0);
    let mut first = [1];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut first, 0).unwrap();
    assert_eq!(first, [0]);
}

#[test]
fn a_read_into_its_own_header_reads_what_the_header_said_first() {
    let (mut bench, _) = Bench::new();
    bench.header(blk::T_IN, 5);
    let used = bench.serve(&[Part::Read(HEADER, 16), Part::Write(HEADER, 512), Part::Write(STATUS, 1)]);
    assert_eq!((used, bench.status()), (513, blk::S_OK));
    assert_eq!(bench.mem.read_obj::<[u8; 16]>(GuestAddress(HEADER)).unwrap(), [5; 16]);
}

#[test]
fn a_read_only_disk_takes_no_write() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[1; 4096]).unwrap();
    let mut bench = Bench::on(file.try_clone().unwrap(), true);
    assert_eq!(bench.write(0, 512), (1, blk::S_IOERR));
    assert_eq!(bench.read(0, 512), (513, blk::S_OK));
    assert_eq!(bench.bare(blk::T_FLUSH), (1, blk::S_OK));
    let mut first = [0];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut first, 0).unwrap();
    assert_eq!(first, [1]);
}

#[test]
fn the_id_is_padded_with_zeros_and_cut_to_the_room_there_is() {
    let (mut bench, _) = Bench::new();
    bench.header(blk::T_GET_ID, 0);
    let mut ask = |len| {
        let used = bench.serve(&[Part::Read(HEADER, 16), Part::Write(DATA, len), Part::Write(STATUS, 1)]);
        (used, bench.status(), bench.data()[..len as usize].to_vec())
    };
    assert_eq!(ask(20), (21, blk::S_OK, b"name\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec()));
    assert_eq!(ask(3), (4, blk::S_OK, b"nam".to_vec()));
    let (used, status, data) = ask(22);
    assert_eq!((used, status, &data[18..]), (20, blk::S_OK, &[0, 0, UNTOUCHED, UNTOUCHED][..]));
}

#[test]
fn requests_of_another_kind_are_unsupported() {
    let (mut bench, _) = Bench::new();
    for kind in [2, 3, 7, 12, 14, u32::MAX] {
        assert_eq!(bench.bare(kind), (1, blk::S_UNSUPP));
    }
}

/// A device file of the host, on which some call fails.
fn device(path: &str) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

#[test]
fn errors_of_the_host_become_errors_of_the_request() {
    // Every write to it fails with ENOSPC.
    let mut bench = Bench::on(device("/dev/full"), false);
    assert_eq!(bench.write(0, 0), (1, blk::S_OK));
    bench.server.disk = Disk::with_len(device("/dev/full"), 4096);
    assert_eq!(bench.write(0, 512), (1, blk::S_IOERR));
    // At the end of a file that is shorter than it was.
    bench.server.disk = Disk::with_len(tempfile::tempfile().unwrap(), 4096);
    assert_eq!(bench.read(0, 512), (0, blk::S_IOERR));
}

#[test]
fn a_flush_reaches_the_host() {
    // Seen by its effect: fdatasync fails on /dev/zero, with EINVAL, where writes succeed.
    let mut bench = Bench::on(device("/dev/zero"), false);
    bench.server.disk = Disk::with_len(device("/dev/zero"), 4096);
    assert_eq!(bench.write(0, 512), (1, blk::S_OK));
    assert_eq!(bench.bare(blk::T_FLUSH), (1, blk::S_IOERR));
    let (mut bench, _) = Bench::new();
    bench.write(0, 512);
    assert!(bench.server.dirty.load(Ordering::SeqCst));
    assert_eq!(bench.bare(blk::T_FLUSH), (1, blk::S_OK));
    assert!(!bench.server.dirty.load(Ordering::SeqCst));
}

#[test]
fn each_write_is_flushed_for_a_driver_that_can_not_flush() {
    let mut bench = Bench::on(device("/dev/zero"), false);
    bench.server.disk = Disk::with_len(device("/dev/zero"), 4096);
    bench.write_through = true;
    assert_eq!(bench.write(0, 512), (1, blk::S_IOERR));
}

/// A range of DISCARD and WRITE_ZEROES.
fn range(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let bytes = [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat();
    bytes.try_into().unwrap()
}

impl Bench {
    /// One request with ranges, and its status.
    fn change(&mut self, kind: u32, ranges: &[u8]) -> u8 {
        self.header(kind, 0);
        self.mem.write_obj(UNTOUCHED, GuestAddress(STATUS)).unwrap();
        self.mem.write_slice(ranges, GuestAddress(DATA)).unwrap();
        let len = u32::try_from(ranges.len()).unwrap();
        self.driver.add(&[Part::Read(HEADER, 16), Part::Read(DATA, len), Part::Write(STATUS, 1)]);
        let chain = self.queue.pop(&self.mem).unwrap().unwrap();
        let written = self.server.serve(&chain, &self.mem, &mut self.iovs, self.write_through);
        assert_eq!(written, 1);
        self.queue.complete(&self.mem, chain, written).unwrap();
        self.mem.read_obj(GuestAddress(STATUS)).unwrap()
    }
}

#[test]
fn ranges_are_discarded_or_made_zeros_and_the_rest_stays() {
    for (kind, flags) in
        [(blk::T_DISCARD, 0), (blk::T_WRITE_ZEROES, 0), (blk::T_WRITE_ZEROES, blk::RANGE_UNMAP)]
    {
        let (mut bench, mut file) = Bench::new();
        let ranges = [range(1, 2, flags), range(6, 1, flags), range(3, 0, flags)].concat();
        assert_eq!(bench.change(kind, &ranges), blk::S_OK);
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        let sectors: Vec<u8> = bytes.chunks(512).map(|sector| sector[0]).collect();
        assert_eq!(sectors, [0, 0, 0, 3, 4, 5, 0, 7], "{kind}");
        assert!(bytes.chunks(512).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
    }
}

#[test]
fn discarded_space_goes_back_to_the_file_system() {
    use std::os::unix::fs::MetadataExt;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![7; 4 << 20]).unwrap();
    file.sync_all().unwrap();
    let before = file.metadata().unwrap().blocks();
    let mut bench = Bench::on(file.try_clone().unwrap(), false);
    assert_eq!(bench.change(blk::T_DISCARD, &range(0, 4096, 0)), blk::S_OK);
    let after = file.metadata().unwrap().blocks();
    assert!(after + 4000 <= before, "{before} blocks have become {after}");
    assert_eq!(file.metadata().unwrap().len(), 4 << 20);
}

#[test]
fn ranges_that_make_no_sense_change_nothing() {
    let (mut bench, _file) = Bench::new();
    let past = range(SECTORS - 1, 2, 0);
    for (kind, ranges, status) in [
        (blk::T_DISCARD, past.to_vec(), blk::S_IOERR),
        (blk::T_DISCARD, [range(0, 1, 0), past].concat(), blk::S_IOERR),
        (blk::T_DISCARD, range(u64::MAX, 1, 0).to_vec(), blk::S_IOERR),
        (blk::T_DISCARD, range(0, u32::MAX, 0).to_vec(), blk::S_IOERR),
        (blk::T_DISCARD, range(0, 1, 1).to_vec(), blk::S_UNSUPP),
        (blk::T_WRITE_ZEROES, range(0, 1, 2).to_vec(), blk::S_UNSUPP),
        (blk::T_WRITE_ZEROES, range(0, 1, 0)[..15].to_vec(), blk::S_IOERR),
        (blk::T_DISCARD, range(0, 1, 0).repeat(33), blk::S_IOERR),
        (blk::T_DISCARD, Vec::new(), blk::S_IOERR),
    ] {
        assert_eq!(bench.change(kind, &ranges), status, "{kind} {ranges:?}");
    }
    assert!(!bench.server.dirty.load(Ordering::SeqCst));
    let (_, file) = Bench::new();
    let mut bench = Bench::on(file, true);
    assert_eq!(bench.change(blk::T_DISCARD, &range(0, 1, 0)), blk::S_IOERR);
    assert_eq!(bench.change(blk::T_WRITE_ZEROES, &range(0, 1, 0)), blk::S_IOERR);
}
