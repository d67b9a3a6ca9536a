use super::*;
use crate::virtio::core::testing::*;
use std::sync::Arc;

const SIZE: u16 = 8;
const A: u64 = 0x10_0000;
const TABLE: u64 = 0x20_0000;

fn queue() -> (Arc<GuestMemory>, DriverQueue) {
    let mem = memory();
    let queue = DriverQueue::new(&mem, 0, SIZE);
    (mem, queue)
}

fn walk(queue: &DriverQueue, head: u16, indirect: bool) -> Result<Chain, ChainError> {
    Chain::walk(&queue.mem, GuestAddress(queue.layout.desc_table), SIZE, head, indirect, Vec::new())
}

fn refused(queue: &DriverQueue, head: u16) -> ChainError {
    walk(queue, head, true).unwrap_err()
}

#[test]
fn a_chain_is_split_into_what_may_be_read_and_what_may_be_written() {
    let (mem, mut queue) = queue();
    mem.write_slice(b"header", GuestAddress(A)).unwrap();
    mem.write_slice(b"more", GuestAddress(SEAM - 2)).unwrap();
    let head = queue.add(&[
        Part::Read(A, 6),
        Part::Read(SEAM - 2, 4),
        Part::Write(A + 0x100, 3),
        Part::Write(A + 0x200, 5),
    ]);
    let chain = walk(&queue, head, false).unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (10, 8));
    let mut reader = chain.reader(&mem);
    assert_eq!(reader.read_array(), Some(*b"head"));
    let mut front = reader.split_off_front(4);
    assert_eq!(front.read_array(), Some(*b"ermo"));
    assert!(front.is_empty());
    assert_eq!(reader.read_array::<3>(), None);
    assert_eq!(reader.read_array(), Some(*b"re"));

    let mut writer = chain.writer(&mem);
    let mut front = writer.split_off_front(7);
    assert_eq!(front.write(b"0123456789"), 7);
    assert_eq!(writer.write(b"ABC"), 1);
    assert!(writer.is_empty());
    assert_eq!(mem.read_obj::<[u8; 4]>(GuestAddress(A + 0x100)).unwrap(), *b"012\0");
    assert_eq!(mem.read_obj::<[u8; 6]>(GuestAddress(A + 0x200)).unwrap(), *b"3456A\0");
}

#[test]
fn buffers_of_no_bytes_are_left_out_wherever_they_point() {
    let (_, mut queue) = queue();
    let head =
        queue.add(&[Part::Read(u64::MAX, 0), Part::Read(A, 4), Part::Write(MEM_END, 0), Part::Write(A, 1)]);
    let chain = walk(&queue, head, false).unwrap();
    assert_eq!(chain.readable(), [Segment { gpa: GuestAddress(A), len: 4 }]);
    assert_eq!(chain.writable(), [Segment { gpa: GuestAddress(A), len: 1 }]);
    let head = queue.add(&[Part::Read(0, 0)]);
    let chain = walk(&queue, head, false).unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (0, 0));
}

#[test]
fn a_chain_as_long_as_the_queue_is_accepted_and_a_longer_one_is_not() {
    let (_, mut queue) = queue();
    let head = queue.add(&[Part::Read(A, 1); SIZE as usize]);
    assert_eq!(walk(&queue, head, true).unwrap().readable_len(), u32::from(SIZE));
    let head = queue.add_indirect(TABLE, &[Part::Read(A, 1); SIZE as usize]);
    assert_eq!(walk(&queue, head, true).unwrap().readable_len(), u32::from(SIZE));
    let head = queue.add_indirect(TABLE, &[Part::Read(A, 1); SIZE as usize + 1]);
    assert_eq!(refused(&queue, head), ChainError::TooLong { size: SIZE });
}

#[test]
fn a_loop_is_refused() {
    let (_, queue) = queue();
    queue.desc(0, A, 1, NEXT, 1);
    queue.desc(1, A, 1, NEXT, 0);
    assert_eq!(refused(&queue, 0), ChainError::TooLong { size: SIZE });
    queue.desc(2, A, 0, NEXT, 2);
    assert_eq!(refused(&queue, 2), ChainError::TooLong { size: SIZE });
    // In an indirect table as well, and when it is large enough to go on for long.
    queue.desc(3, TABLE, 0x10_0000, INDIRECT, 0);
    queue.desc_at(TABLE, 0, A, 1, NEXT, 0);
    assert_eq!(refused(&queue, 3), ChainError::TooLong { size: SIZE });
}

#[test]
fn a_wild_index_is_refused() {
    let (_, queue) = queue();
    assert_eq!(refused(&queue, SIZE), ChainError::Index { index: 8, len: 8 });
    queue.desc(0, A, 1, NEXT, u16::MAX);
    assert_eq!(refused(&queue, 0), ChainError::Index { index: 0xffff, len: 8 });
    queue.desc(1, TABLE, 32, INDIRECT, 0);
    queue.desc_at(TABLE, 0, A, 1, NEXT, 2);
    assert_eq!(refused(&queue, 1), ChainError::Index { index: 2, len: 2 });
}

#[test]
fn a_readable_buffer_behind_a_writable_one_is_refused() {
    let (_, mut queue) = queue();
    let head = queue.add(&[Part::Write(A, 1), Part::Read(A, 1)]);
    assert_eq!(refused(&queue, head), ChainError::ReadableAfterWritable);
}

#[test]
fn buffers_outside_memory_are_refused() {
    let (_, mut queue) = queue();
    for (gpa, len) in [(MEM_END, 1), (MEM_END - 1, 2), (u64::MAX, 1), (u64::MAX - 1, 0x10), (0, u32::MAX)] {
        for part in [Part::Read(gpa, len), Part::Write(gpa, len)] {
            let head = queue.add(&[part]);
            assert_eq!(refused(&queue, head), ChainError::OutsideMemory { gpa, len });
        }
    }
}

#[test]
fn lengths_that_add_up_to_more_than_32_bits_are_refused() {
    // Memory that is never touched costs nothing.
    let mem = GuestMemory::from_ranges(&[(GuestAddress(0), 3 << 30)]).unwrap();
    let mem = Arc::new(mem);
    for second in [Part::Read(0, 0x9000_0000), Part::Write(0, 0x9000_0000)] {
        let mut queue = DriverQueue::new(&mem, 0, SIZE);
        let head = queue.add(&[Part::Read(0, 0x9000_0000), second]);
        assert_eq!(refused(&queue, head), ChainError::TooManyBytes);
    }
}

#[test]
fn an_indirect_table_may_end_a_chain() {
    let (_, queue) = queue();
    queue.desc(0, A, 1, NEXT, 1);
    // The write flag of an indirect descriptor means nothing.
    queue.desc(1, TABLE, 32, INDIRECT | WRITE, 0);
    queue.desc_at(TABLE, 0, A, 2, NEXT, 1);
    queue.desc_at(TABLE, 1, A, 4, WRITE, 0);
    let chain = walk(&queue, 0, true).unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (3, 4));
}

#[test]
fn indirect_tables_that_break_the_rules_are_refused() {
    let (_, queue) = queue();
    queue.desc_at(TABLE, 0, A, 1, 0, 0);
    queue.desc(0, TABLE, 16, INDIRECT, 0);
    assert_eq!(walk(&queue, 0, false).unwrap_err(), ChainError::IndirectNotNegotiated);
    queue.desc(0, TABLE, 16, INDIRECT | NEXT, 1);
    assert_eq!(refused(&queue, 0), ChainError::IndirectWithNext);
    for len in [0, 8, 17] {
        queue.desc(0, TABLE, len, INDIRECT, 0);
        assert_eq!(refused(&queue, 0), ChainError::IndirectLength { len });
    }
    queue.desc(0, MEM_END - 16, 32, INDIRECT, 0);
    assert_eq!(refused(&queue, 0), ChainError::OutsideMemory { gpa: MEM_END - 16, len: 32 });
    queue.desc(0, u64::MAX - 15, 16, INDIRECT, 0);
    assert!(matches!(refused(&queue, 0), ChainError::OutsideMemory { .. }));
    queue.desc(0, TABLE, 16, INDIRECT, 0);
    queue.desc_at(TABLE, 0, TABLE, 16, INDIRECT, 0);
    assert_eq!(refused(&queue, 0), ChainError::IndirectNested);
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "dropped uncompleted")]
fn dropping_a_popped_chain_is_noticed() {
    let (_, mut queue) = queue();
    let head = queue.add(&[Part::Read(A, 1)]);
    drop(walk(&queue, head, false).unwrap().popped_at(1));
}
