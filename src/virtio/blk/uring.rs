//! Many requests at once, by an io_uring: what the guest asks for together is submitted together,
//! and what takes long holds up nothing else. The doorbells and the stop signal wait in the same
//! ring, so that there is one system call for everything.
//!
//! What doesn't gain by it isn't given to the ring: a write to the page cache is a copy, which
//! Linux would leave to another thread on most file systems, and so is the flush of a driver that
//! waits for nothing else, where the thread has no other queue. Where a file system can't say
//! whether a read would block (tmpfs, before Linux 6.6), neither are reads.
//!
//! What is soon done (reads and writes of what the page cache has) the driver hears of together,
//! when there is no more or 64 KiB of it.
//!
//! A ring belongs to one worker thread, which serves one queue with it or several, and owns the
//! memory that it shares with the kernel. Of the disk it has the second opening (where there could
//! be none, the only one), as a registered file; nothing is in flight when it is dropped.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use io_uring::types::{Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::disk::Disk;
use super::request::{Begun, Server, Transfer, TransferKind, source, target};
use crate::memory::GuestMemory;
use crate::virtio::core::active::ActiveQueue;
use crate::virtio::core::chain::Chain;
use crate::virtio::core::iovec::IoVecs;
use crate::virtio::core::worker::Stop;

/// Requests of a queue that are in flight at the most.
const MAX_IN_FLIGHT: usize = 128;
/// Room for those of a queue, and for what waits for the drivers and the stop signal. More go in
/// several calls.
const ENTRIES: u32 = 256;
/// The completions of what it waits for are known by this and a number: 0 is the stop signal, a
/// queue's doorbell the device's number of the queue and 1, because it is still waited for when the
/// device starts again with other queues. A request's is the number of its slot.
const SOURCES: u64 = 1 << 32;
/// Bytes that are moved at once for a queue before the others get their turn.
const TURN: u64 = 1 << 20;
/// The disk, as a registered file.
const DISK: Fixed = Fixed(0);

pub(super) struct Ring {
    ring: IoUring,
    enabled: bool,
    /// Whether the wait for each source is in the ring.
    waits: Vec<bool>,
    /// Whether transfers were pushed that the kernel hasn't been told of.
    fresh: bool,
    /// Whether reads are given to the ring: those past the page cache, and from it where the kernel
    /// needs no other thread for them.
    takes_reads: bool,
}

/// A request on its way.
#[derive(Default)]
struct Slot {
    /// The queue's place among those that are served, its chain, and what is made of it.
    request: Option<(usize, Chain, Transfer)>,
    iovs: IoVecs,
}

/// The requests on their way. The list of a slot's buffers stays where it is until the slot is free
/// again.
#[derive(Default)]
struct Slots {
    slots: Vec<Slot>,
    free: Vec<usize>,
}

impl Slots {
    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn take(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        })
    }
}

/// What a queue has been left with when it was looked at.
#[derive(Clone, Copy)]
enum Left {
    /// Nothing.
    Nothing,
    /// There may be more, but others come first.
    Something,
    /// There is no room for more before something is done.
    NoRoom,
    /// Nothing may begin before that.
    Limit(Instant),
}

/// What to wait for in the kernel.
enum Until {
    Now,
    /// Something is done, or the driver rings, or the stop signal is set; or the time is up.
    Event(Option<Instant>),
}

impl Ring {
    /// A ring for so many queues of the disk. Fails where this host has none, or doesn't let us.
    pub(super) fn new(disk: &Disk, queues: usize) -> io::Result<Self> {
        // Room for all that may be done before the thread looks.
        let completions = u32::try_from(queues * (MAX_IN_FLIGHT + 1) + 1).map_err(io::Error::other)?;
        // The thread that uses it is another than the one that makes it, and the only one. What is
        // done is put into the ring when the thread looks, and not while it does something else or
        // is parked: so doorbells that ring meanwhile are one. Linux 6.1; everything else that is
        // used here is older.
        let ring = IoUring::builder()
            .setup_r_disabled()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(completions.next_power_of_two().max(2 * ENTRIES))
            .build(ENTRIES)?;
        ring.submitter().register_files(&[disk.file().as_raw_fd()])?;
        Ok(Self {
            ring,
            enabled: false,
            waits: Vec::new(),
            fresh: false,
            takes_reads: Self::takes_reads(disk),
        })
    }

    /// Whether reads wait in the ring, and not the thread for them.
    pub(super) fn takes_reads(disk: &Disk) -> bool {
        !disk.is_cached() || reads_at_once(disk)
    }

    /// Serves the queues, of one device, until `stop` is set; nothing is in flight afterwards.
    pub(super) fn run(
        &mut self,
        queues: &mut [ActiveQueue],
        stop: &Stop,
        server: &Server,
        write_through: bool,
    ) {
        let Some(mem) = queues.first().map(|queue| queue.mem().clone()) else { return };
        if !std::mem::replace(&mut self.enabled, true) {
            self.ring.submitter().register_enable_rings().expect("it was made disabled");
        }
        let in_flight = vec![0; queues.len()];
        let service = Service {
            ring: self,
            queues,
            in_flight,
            slots: Slots::default(),
            first: 0,
            mem,
            server,
            write_through,
        };
        service.run(stop);
    }

    /// The transfer as an entry of the ring, or nothing where it is better made at once. `alone`
    /// when nothing else is in flight.
    fn entry(
        &self,
        transfer: &Transfer,
        chain: &Chain,
        mem: &GuestMemory,
        disk: &Disk,
        iovs: &mut IoVecs,
        alone: bool,
    ) -> Option<squeue::Entry> {
        let offset = transfer.offset;
        match transfer.kind {
            TransferKind::Read => {
                let list = target(chain, mem).scatter(iovs);
                if !self.takes_reads || !disk.takes(offset, |align| list.is_aligned(align)) {
                    return None;
                }
                Some(match pieces(iovs)? {
                    Pieces::One(at, len) => opcode::Read::new(DISK, at, len).offset(offset).build(),
                    Pieces::Many(list, count) => opcode::Readv::new(DISK, list, count).offset(offset).build(),
                })
            }
            TransferKind::Write => {
                let list = source(chain, mem).gather(iovs);
                if disk.is_cached() || !disk.takes(offset, |align| list.is_aligned(align)) {
                    return None;
                }
                Some(match pieces(iovs)? {
                    Pieces::One(at, len) => opcode::Write::new(DISK, at, len).offset(offset).build(),
                    Pieces::Many(list, count) => {
                        opcode::Writev::new(DISK, list, count).offset(offset).build()
                    }
                })
            }
            TransferKind::Flush { .. } if !alone && disk.flushes() => {
                Some(opcode::Fsync::new(DISK).flags(FsyncFlags::DATASYNC).build())
            }
            TransferKind::Flush { .. } => None,
        }
    }

    #[expect(unsafe_code, reason = "the kernel reads and writes what an entry points to")]
    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: an entry of a transfer points to a slot's list of buffers, which stays as it is
        // until the kernel has answered (`run` doesn't return before), and through it to guest
        // memory, which is mapped as long as the process lives. The others point to nothing.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            // It is full: what is in it goes first.
            self.enter(&Until::Now);
        }
    }

    /// Waits in the ring for the source number `index` to become readable, unless it does already.
    fn wait_for(&mut self, index: usize, source: &impl AsRawFd) {
        if self.waits.len() <= index {
            self.waits.resize(index + 1, false);
        }
        if !std::mem::replace(&mut self.waits[index], true) {
            let events = u32::from(libc::POLLIN.unsigned_abs());
            let wait = opcode::PollAdd::new(types::Fd(source.as_raw_fd()), events).multi(true);
            self.push(&wait.build().user_data(SOURCES + index as u64));
        }
    }

    /// Submits what is new, and waits.
    fn enter(&mut self, until: &Until) {
        let result = match until {
            Until::Now => self.ring.submit(),
            Until::Event(None) => self.ring.submit_and_wait(1),
            Until::Event(Some(deadline)) => {
                let time = Timespec::from(deadline.saturating_duration_since(Instant::now()));
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&time))
            }
        };
        match result.map_err(|error| error.raw_os_error()) {
            Ok(_) => {}
            // Interrupted, timed out, too much done that nobody has looked at, or no memory just
            // now: look, and come again.
            Err(Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN | libc::ENOMEM)) => {}
            Err(error) => panic!("an io_uring that worked doesn't any more: error {error:?}"),
        }
    }
}

/// Queues while a ring serves them.
struct Service<'a> {
    ring: &'a mut Ring,
    queues: &'a mut [ActiveQueue],
    /// Requests of each queue that are on their way.
    in_flight: Vec<usize>,
    slots: Slots,
    /// The queue that is looked at first: the one behind that which began something last, so that
    /// under a limit each gets its share.
    first: usize,
    mem: Arc<GuestMemory>,
    server: &'a Server,
    write_through: bool,
}

impl Service<'_> {
    fn run(mut self, stop: &Stop) {
        let mut left = Vec::new();
        let mut done: Vec<(u64, i32, bool)> = Vec::new();
        loop {
            let stops = stop.is_set();
            let count = self.queues.len();
            left.clear();
            left.resize(count, Left::Nothing);
            for queue in (self.first..self.first + count).map(|index| index % count) {
                left[queue] = self.take(queue, stop);
                self.queues[queue].interrupt_if_needed();
            }
            if stops && self.slots.in_flight() == 0 {
                return;
            }
            let Some(until) = self.until(&left) else { continue };
            self.ring.wait_for(0, stop);
            for queue in self.queues.iter() {
                self.ring.wait_for(1 + queue.index(), queue);
            }
            self.ring.enter(&until);
            done.clear();
            done.extend(self.ring.ring.completion().map(|entry: cqueue::Entry| {
                (entry.user_data(), entry.result(), cqueue::more(entry.flags()))
            }));
            for (which, result, more) in &done {
                let number = usize::try_from(which % SOURCES).expect("a number of ours");
                if *which >= SOURCES {
                    self.ring.waits[number] = *more;
                } else {
                    self.finish(number, *result);
                }
            }
            self.queues.iter_mut().for_each(ActiveQueue::interrupt_if_needed);
        }
    }

    /// What to wait for, by what the queues have been left with; nothing when they are to be looked
    /// at again.
    fn until(&mut self, left: &[Left]) -> Option<Until> {
        if std::mem::take(&mut self.ring.fresh) {
            // Much of it is done when the call returns. Until then the driver needn't ring: it is
            // looked after anyway.
            return Some(Until::Now);
        }
        if left.iter().any(|left| matches!(left, Left::Something)) {
            // Those that are done get their turn.
            return (self.slots.in_flight() > 0).then_some(Until::Now);
        }
        let mut again = false;
        for (queue, _) in self.queues.iter_mut().zip(left).filter(|(_, left)| matches!(left, Left::Nothing)) {
            again |= queue.enable_notification();
        }
        let ready_at = |left: &Left| if let Left::Limit(ready_at) = left { Some(*ready_at) } else { None };
        (!again).then(|| Until::Event(left.iter().filter_map(ready_at).min()))
    }

    /// Begins what a queue has on offer. What is done the driver need not have heard of yet.
    fn take(&mut self, index: usize, stop: &Stop) -> Left {
        let shares = self.queues.len() > 1;
        let mut moved = 0;
        let Self { server, mem, write_through, .. } = self;
        let queue = &mut self.queues[index];
        queue.disable_notification();
        for _ in 0..queue.size() {
            let in_flight = self.in_flight[index];
            if stop.is_set() || in_flight == MAX_IN_FLIGHT {
                return Left::NoRoom;
            }
            if let Some(ready_at) = queue.ready_at() {
                return Left::Limit(ready_at);
            }
            let Some(chain) = queue.pop() else { return Left::Nothing };
            let bytes = u64::from(chain.readable_len()) + u64::from(chain.writable_len());
            self.first = (index + 1) % self.in_flight.len();
            // Whether the next one may come before the driver hears of this one.
            let mut soon = false;
            let written = match server.begin(&chain, mem) {
                Begun::Done(written) => written,
                Begun::Change(change) => {
                    queue.interrupt_if_needed();
                    server.change(&change, &chain, mem, *write_through)
                }
                Begun::Transfer(transfer) => {
                    let slot = self.slots.take();
                    let Slot { request, iovs } = &mut self.slots.slots[slot];
                    let alone = in_flight == 0 && !shares;
                    if let Some(entry) = self.ring.entry(&transfer, &chain, mem, &server.disk, iovs, alone) {
                        queue.charge(bytes);
                        *request = Some((index, chain, transfer));
                        self.ring.push(&entry.user_data(slot as u64));
                        self.ring.fresh = true;
                        self.in_flight[index] += 1;
                        continue;
                    }
                    self.slots.free.push(slot);
                    if in_flight > 0 && transfer.kind == TransferKind::Write && !server.disk.is_cached() {
                        // Through the page cache, where others may be on their way past it to the
                        // same page.
                        queue.put_back(chain);
                        return Left::NoRoom;
                    }
                    soon = transfer.kind == TransferKind::Write && server.disk.is_cached() && !*write_through;
                    if !soon {
                        queue.interrupt_if_needed();
                    }
                    let done = server.perform(&transfer, &chain, mem, iovs);
                    server.finish(&transfer, done, &chain, mem, *write_through)
                }
            };
            queue.charge(bytes);
            queue.complete(chain, written);
            if soon {
                queue.interrupt_if_due(bytes);
            } else {
                queue.interrupt_if_needed();
            }
            moved += if soon { bytes } else { TURN };
            if shares && moved >= TURN {
                break;
            }
        }
        Left::Something
    }

    /// Answers the request of a slot, by what the kernel says of its transfer.
    fn finish(&mut self, slot: usize, result: i32) {
        let Self { server, mem, write_through, .. } = self;
        let Slot { request, iovs } = &mut self.slots.slots[slot];
        let (queue, chain, transfer) = request.take().expect("the kernel answers once");
        let done = match u32::try_from(result) {
            Ok(len) if len == transfer.len => Ok(()),
            Err(_) if !matches!(-result, libc::EAGAIN | libc::EINTR | libc::ECANCELED | libc::EOPNOTSUPP) => {
                Err(io::Error::from_raw_os_error(-result))
            }
            // Less than all, or not in this way: once more, and to the end.
            _ => server.perform(&transfer, &chain, mem, iovs),
        };
        let written = server.finish(&transfer, done, &chain, mem, *write_through);
        self.slots.free.push(slot);
        self.in_flight[queue] -= 1;
        self.queues[queue].complete(chain, written);
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // Closing a ring does it some time later.
        let _ = self.ring.submitter().unregister_files();
    }
}

/// The buffers of a transfer, as the kernel takes them.
enum Pieces {
    One(*mut u8, u32),
    Many(*const libc::iovec, u32),
}

/// None where they are more or larger than the kernel takes.
fn pieces(iovs: &IoVecs) -> Option<Pieces> {
    const IOV_MAX: u32 = 1024;
    Some(match iovs.raw() {
        [one] => Pieces::One(one.iov_base.cast(), u32::try_from(one.iov_len).ok()?),
        list => {
            let count = u32::try_from(list.len()).ok().filter(|count| *count <= IOV_MAX)?;
            Pieces::Many(list.as_ptr(), count)
        }
    })
}

/// Whether the file system can say that a read would block.
#[expect(unsafe_code, reason = "std has no preadv2")]
fn reads_at_once(disk: &Disk) -> bool {
    let mut byte = [0_u8; 1];
    let iov = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: byte.len() };
    // SAFETY: one entry, which points to a byte of this stack.
    let ret = unsafe { libc::preadv2(disk.file().as_raw_fd(), &raw const iov, 1, 0, libc::RWF_NOWAIT) };
    ret >= 0 || io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN)
}

#[cfg(test)]
#[path = "uring_tests.rs"]
mod tests;
