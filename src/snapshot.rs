//! The file of a snapshot: what it is, a state, and memory.
//!
//! ```text
//! 0    8 bytes  "bothysn\n"
//! 8    4        version, little endian like all numbers
//! 12   4        zero
//! 16   8        bytes of the state, which follows the header
//! 24   8        where memory begins, a multiple of 2 MiB
//! 32   8        bytes of memory, to the file's end
//! 40   32       SHA-256 of the header up to here and the state
//! 72            the state, JSON
//! ```
//!
//! The header is written last: a file that nobody finished is no snapshot. Memory has no checksum,
//! because whoever goes on from it reads only what he needs of it; a file that has another length
//! is refused. What state and memory are is none of this module's business: it names no part of a
//! VM.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use thiserror::Error;

const MAGIC: [u8; 8] = *b"bothysn\n";
/// Of everything in the file, the state's shape included.
const VERSION: u32 = 1;
const HEADER_LEN: usize = 72;
/// Where the checksum is in the header.
const CHECKSUM: usize = 40;
/// Memory begins at a multiple of this: where it is mapped, huge pages stay huge pages.
const ALIGN: u64 = 2 << 20;
/// The most bytes of a state: 64 vCPUs are 2 MiB.
const MAX_STATE: u64 = 16 << 20;

/// Why a file can't be gone on from.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// It can't be read.
    #[error("can't read the snapshot")]
    Read(#[from] io::Error),
    /// It begins with something else, or nobody has finished it.
    #[error("it is no snapshot, or an unfinished one")]
    Foreign,
    /// Another bothy has made it.
    #[error("it is a snapshot of version {0}, and this bothy reads version {VERSION}")]
    Version(u32),
    /// It isn't what was written.
    #[error("the snapshot is damaged: {0}")]
    Damaged(&'static str),
    /// The state isn't one of this version's.
    #[error("the snapshot's state: {0}")]
    State(serde_json::Error),
}

/// Where memory is in a snapshot's file, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPart {
    pub offset: u64,
    pub len: u64,
}

/// Writes a snapshot to an empty file. `write_memory` writes `memory_len` bytes, or leaves them as
/// holes, from the offset on that it is told.
pub fn write(
    file: &File,
    state: &impl Serialize,
    memory_len: u64,
    write_memory: impl FnOnce(u64) -> io::Result<()>,
) -> io::Result<()> {
    let state = serde_json::to_vec(state)?;
    if state.len() as u64 > MAX_STATE {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let offset = (HEADER_LEN as u64 + state.len() as u64).next_multiple_of(ALIGN);
    write_memory(offset)?;
    file.set_len(offset + memory_len)?;
    file.write_all_at(&state, HEADER_LEN as u64)?;
    let mut header = [0; HEADER_LEN];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    for (at, number) in [(16, state.len() as u64), (24, offset), (32, memory_len)] {
        header[at..at + 8].copy_from_slice(&number.to_le_bytes());
    }
    let checksum = checksum(&header, &state);
    header[CHECKSUM..].copy_from_slice(&checksum);
    file.write_all_at(&header, 0)
}

/// Reads the state of a snapshot, and where its memory is.
pub fn read<S: DeserializeOwned>(file: &File) -> Result<(S, MemoryPart), SnapshotError> {
    let file_len = file.metadata()?.len();
    if file_len < HEADER_LEN as u64 {
        return Err(SnapshotError::Foreign);
    }
    let mut header = [0; HEADER_LEN];
    file.read_exact_at(&mut header, 0)?;
    if header[..8] != MAGIC {
        return Err(SnapshotError::Foreign);
    }
    let version = u32::from_le_bytes(header[8..12].try_into().expect("four bytes"));
    if version != VERSION {
        return Err(SnapshotError::Version(version));
    }
    let number = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
    let (state_len, memory) = (number(16), MemoryPart { offset: number(24), len: number(32) });
    if state_len > MAX_STATE {
        return Err(SnapshotError::Damaged("its state is too long"));
    }
    let is_whole = memory.offset.checked_add(memory.len) == Some(file_len);
    if !is_whole || !memory.offset.is_multiple_of(ALIGN) || memory.offset < HEADER_LEN as u64 + state_len {
        return Err(SnapshotError::Damaged("its length is not what it says"));
    }
    let mut state = vec![0; usize::try_from(state_len).map_err(io::Error::other)?];
    file.read_exact_at(&mut state, HEADER_LEN as u64)?;
    if checksum(&header, &state) != header[CHECKSUM..] {
        return Err(SnapshotError::Damaged("its checksum is another one"));
    }
    Ok((serde_json::from_slice(&state).map_err(SnapshotError::State)?, memory))
}

fn checksum(header: &[u8; HEADER_LEN], state: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(&header[..CHECKSUM]).chain_update(state).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> File {
        let file = tempfile::tempfile().unwrap();
        let memory = |offset| {
            assert_eq!(offset, ALIGN);
            file.write_all_at(b"memory", offset)
        };
        write(&file, &("state", 7), 3 << 20, memory).unwrap();
        file
    }

    fn read_back(file: &File) -> Result<(String, u8), SnapshotError> {
        let (state, memory) = read(file)?;
        assert_eq!(memory, MemoryPart { offset: ALIGN, len: 3 << 20 });
        Ok(state)
    }

    #[test]
    fn what_is_written_is_read() {
        let file = written();
        assert_eq!(read_back(&file).unwrap(), ("state".to_owned(), 7));
        let mut bytes = [0; 7];
        file.read_exact_at(&mut bytes, ALIGN).unwrap();
        assert_eq!(bytes, *b"memory\0");
    }

    #[test]
    fn no_byte_of_header_and_state_can_change_unseen() {
        let file = written();
        let mut before = [0; 1];
        for at in 0..HEADER_LEN as u64 + 11 {
            file.read_exact_at(&mut before, at).unwrap();
            for bit in 0..8 {
                file.write_all_at(&[before[0] ^ 1 << bit], at).unwrap();
                assert!(read_back(&file).is_err(), "byte {at}, bit {bit}");
            }
            file.write_all_at(&before, at).unwrap();
        }
        read_back(&file).unwrap();
    }

    #[test]
    fn a_cut_an_unfinished_and_a_foreign_file_are_refused() {
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(read_back(&file), Err(SnapshotError::Foreign)));
        write(&file, &1, 0, |_| Err(io::Error::other("no room"))).unwrap_err();
        assert!(matches!(read_back(&file), Err(SnapshotError::Foreign)));
        for (len, expected) in [(71, "no snapshot"), (72, "its length"), ((5 << 20) - 1, "its length")] {
            let file = written();
            file.set_len(len).unwrap();
            let error = read_back(&file).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let file = written();
        file.write_all_at(&9_u32.to_le_bytes(), 8).unwrap();
        assert!(matches!(read_back(&file), Err(SnapshotError::Version(9))));
        assert!(matches!(read::<u8>(&written()), Err(SnapshotError::State(_))));
    }
}
