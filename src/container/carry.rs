//! Bytes from a socket to a standard stream, on a thread that may block for as long as the stream's
//! reader likes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use crate::poll::{self, Source};

/// The most that is carried at once, in bytes.
const PIECE: usize = 64 << 10;

/// Carries everything until the socket's end. An error is that of `to`, which takes nothing any
/// more.
///
/// `to` is a copy of a standard stream's descriptor, because std's own buffers lines.
pub fn all(from: &mut UnixStream, to: &mut File) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(len) => write(to, &piece[..len])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Ok(()),
        }
    }
}

/// What to say of an error of [`all`]. A reader that has gone wants nothing more, and isn't told.
pub fn complaint(stream: &str, error: &io::Error) -> Option<String> {
    let is_gone = error.kind() == io::ErrorKind::BrokenPipe;
    (!is_gone).then(|| format!("can't write to standard {stream}: {error}"))
}

/// Writes everything, also to a descriptor that somebody else who has it has made non-blocking.
fn write(to: &mut File, mut bytes: &[u8]) -> io::Result<()> {
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
