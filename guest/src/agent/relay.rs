//! Moves bytes from one descriptor to another through a buffer of bounded size, without ever
//! waiting.

use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;

/// As much as a pipe holds.
const BUFFER_BYTES: usize = 64 << 10;
/// How often in a row one relay may go round before others get their turn.
const ROUNDS: usize = 16;

/// One direction. Both descriptors must be set not to wait.
#[derive(Debug)]
pub(crate) struct Relay {
    buffer: Vec<u8>,
    /// What of the buffer is still to be written begins here.
    start: usize,
    ended: bool,
}

/// What became of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// One of the two would have had to be waited for, or it was others' turn.
    Going,
    /// The source has ended, and all that came from it is written.
    Done,
    /// The sink takes nothing any more.
    Refused,
}

impl Relay {
    /// With these bytes to be written before all others.
    pub(crate) fn new(first: Vec<u8>) -> Self {
        Self { buffer: first, start: 0, ended: false }
    }

    /// Whether it waits for the source to have something.
    pub(crate) fn wants_source(&self) -> bool {
        !self.ended && self.is_empty()
    }

    /// Whether it waits for the sink to take something.
    pub(crate) fn wants_sink(&self) -> bool {
        !self.is_empty()
    }

    fn is_empty(&self) -> bool {
        self.start == self.buffer.len()
    }

    /// Moves what can be moved now.
    pub(crate) fn pump(&mut self, source: impl AsFd, sink: impl AsFd) -> Progress {
        for _ in 0..ROUNDS {
            if self.wants_sink() {
                match self.write(&sink) {
                    Ok(true) => {}
                    Ok(false) => return Progress::Going,
                    Err(_) => return Progress::Refused,
                }
            }
            if self.ended {
                return Progress::Done;
            }
            if !self.read(&source) {
                return Progress::Going;
            }
        }
        // An end in the last round is told now: nobody waits for a source that has ended.
        if self.ended { Progress::Done } else { Progress::Going }
    }

    /// Writes what is there; whether all of it went.
    pub(crate) fn write(&mut self, sink: impl AsFd) -> io::Result<bool> {
        while let Some(left) = self.buffer.get(self.start..).filter(|left| !left.is_empty()) {
            match rustix::io::write(&sink, left) {
                Ok(length) => self.start += length,
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// Fills the empty buffer; whether the source had something to say, be it its end.
    fn read(&mut self, source: impl AsFd) -> bool {
        self.start = 0;
        self.buffer.resize(BUFFER_BYTES, 0);
        let result = loop {
            match rustix::io::read(&source, &mut self.buffer) {
                Err(Errno::INTR) => {}
                result => break result,
            }
        };
        self.buffer.truncate(result.unwrap_or(0));
        match result {
            Err(Errno::AGAIN) => return false,
            // A terminal that nobody has open any more says EIO; and a source that fails has
            // nothing more to say.
            Ok(0) | Err(_) => self.ended = true,
            Ok(_) => {}
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;

    use rustix::pipe::PipeFlags;

    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (ours, theirs)
    }

    #[test]
    fn bytes_and_the_end_arrive_behind_what_was_first() {
        let (source, mut writer) = pair();
        let (sink, mut reader) = pair();
        let mut relay = Relay::new(b"first ".to_vec());
        assert_eq!(relay.pump(&source, &sink), Progress::Going);
        writer.write_all(b"second").unwrap();
        drop(writer);
        assert_eq!(relay.pump(&source, &sink), Progress::Done);
        sink.shutdown(Shutdown::Write).unwrap();
        let mut got = String::new();
        reader.read_to_string(&mut got).unwrap();
        assert_eq!(got, "first second");
    }

    #[test]
    fn a_stalled_sink_stops_the_source_and_nothing_is_lost() {
        let (source, mut writer) = pair();
        let (sink, mut reader) = pair();
        let sent: Vec<u8> = (0..4_000_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let expected = sent.clone();
        let feeder = std::thread::spawn(move || writer.write_all(&sent));
        let mut relay = Relay::new(Vec::new());
        let mut got = Vec::new();
        let mut piece = vec![0; 100_000];
        loop {
            let progress = relay.pump(&source, &sink);
            assert!(relay.buffer.len() <= BUFFER_BYTES);
            if progress == Progress::Done {
                break;
            }
            if relay.wants_sink() {
                let length = reader.read(&mut piece).unwrap();
                got.extend_from_slice(&piece[..length]);
            }
        }
        sink.shutdown(Shutdown::Write).unwrap();
        reader.read_to_end(&mut got).unwrap();
        assert!(got == expected);
        feeder.join().unwrap().unwrap();
    }

    #[test]
    fn an_end_is_told_in_whichever_round_it_comes() {
        for packets in 0..3 * ROUNDS {
            // Each read of such a pipe gets one write.
            let flags = PipeFlags::DIRECT | PipeFlags::NONBLOCK;
            let (source, writer) = rustix::pipe::pipe_with(flags).unwrap();
            rustix::pipe::fcntl_setpipe_size(&writer, 1 << 20).unwrap();
            for _ in 0..packets {
                rustix::io::write(&writer, b"packet").unwrap();
            }
            drop(writer);
            let (sink, _reader) = pair();
            let mut relay = Relay::new(Vec::new());
            // Ended and not done would be a relay that nothing wakes.
            while relay.pump(&source, &sink) != Progress::Done {
                assert!(relay.wants_source() || relay.wants_sink(), "{packets} packets");
            }
        }
    }

    #[test]
    fn a_sink_that_is_gone_refuses() {
        let (source, mut writer) = pair();
        let (sink, reader) = pair();
        drop(reader);
        writer.write_all(b"x").unwrap();
        assert_eq!(Relay::new(Vec::new()).pump(&source, &sink), Progress::Refused);
    }
}
