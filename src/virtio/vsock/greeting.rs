//! What somebody on the host says first who wants to reach the guest: `CONNECT PORT` and a line
//! feed. When the guest takes the connection, the answer is `OK PORT` with the port that it comes
//! from; when it doesn't, the socket is closed.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::Instant;

/// `CONNECT 4294967295` and a line feed.
const MAX_LEN: usize = 19;

/// Somebody who hasn't said everything yet.
pub(super) struct Greeting {
    stream: UnixStream,
    said: Vec<u8>,
    deadline: Instant,
}

/// What was heard.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Not enough yet.
    Nothing,
    /// The guest's port that is wanted.
    Port(u32),
    /// Something else, or the end.
    Nonsense,
}

impl Greeting {
    /// `stream` must not block. It is for the caller to drop what is late.
    pub(super) fn new(stream: UnixStream, deadline: Instant) -> Self {
        Self { stream, said: Vec::with_capacity(MAX_LEN), deadline }
    }

    /// When it is late.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Reads to the line's end and no further: what follows is for the guest.
    pub(super) fn hear(&mut self) -> Heard {
        loop {
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(1) if byte[0] == b'\n' => return port(&self.said).map_or(Heard::Nonsense, Heard::Port),
                Ok(1) if self.said.len() < MAX_LEN => self.said.push(byte[0]),
                Ok(_) => return Heard::Nonsense,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Heard::Nothing,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return Heard::Nonsense,
            }
        }
    }

    pub(super) fn into_stream(self) -> UnixStream {
        self.stream
    }
}

fn port(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?;
    // `parse` would also take a sign.
    digits.iter().all(u8::is_ascii_digit).then(|| std::str::from_utf8(digits).ok()?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn heard(parts: &[&[u8]]) -> Heard {
        let (mut somebody, stream) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut greeting = Greeting::new(stream, Instant::now());
        let mut heard = greeting.hear();
        for part in parts {
            assert_eq!(heard, Heard::Nothing, "before {part:?}");
            somebody.write_all(part).unwrap();
            heard = greeting.hear();
        }
        heard
    }

    #[test]
    fn a_port_is_heard_in_one_piece_or_in_several() {
        assert_eq!(heard(&[b"CONNECT 52\n"]), Heard::Port(52));
        assert_eq!(heard(&[b"CON", b"NECT 4294967", b"295", b"\n"]), Heard::Port(u32::MAX));
    }

    #[test]
    fn anything_else_is_nonsense() {
        for line in
            ["\n", "CONNECT \n", "CONNECT +1\n", "CONNECT 4294967296\n", "connect 1\n", "CONNECT 1 \n"]
        {
            assert_eq!(heard(&[line.as_bytes()]), Heard::Nonsense, "{line:?}");
        }
        assert_eq!(heard(&[&[b'C'; MAX_LEN + 1]]), Heard::Nonsense, "a line with no end");
    }

    #[test]
    fn what_follows_is_left_for_the_guest() {
        let (mut somebody, stream) = UnixStream::pair().unwrap();
        somebody.write_all(b"CONNECT 1\nfor the guest").unwrap();
        let mut greeting = Greeting::new(stream, Instant::now());
        assert_eq!(greeting.hear(), Heard::Port(1));
        drop(somebody);
        let mut rest = String::new();
        greeting.into_stream().read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "for the guest");
    }
}
