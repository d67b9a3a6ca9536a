//! Bytes from a socket to a standard stream, on a thread that may block for as long as the stream's reader likes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use crate::poll::{self, Source};

/// The most that is carried at once, in bytes.
const PIECE: usize = 64 << 10;

/// Carries everything until the socket's end; `false` if nobody takes it any more.
///
/// `to` is a copy of a standard stream's descriptor, because std's own buffers lines.
pub(super) fn all(from: &mut UnixStream, to: &mut File) -> bool {
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return true,
            Ok(len) => {
                if let Err(error) = write(to, &piece[..len]) {
                    log::debug!("a standard stream: {error}");
                    return false;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return true,
        }
    }
}

/// Writes everything, also to a descriptor that somebody else who has it has made non-blocking.
pub(super) fn write(to: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(len) => bytes = &bytes[len..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll::wait([Source::of(to, false, true)], None)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
