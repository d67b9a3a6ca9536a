//! One end of a control connection: lines of JSON on a Unix socket, with descriptors.
//!
//! Descriptors travel with the first byte of their message. The kernel never merges what was sent
//! with descriptors into what was sent before, so they arrive in the order of the messages.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::protocol::{Envelope, MAX_MESSAGE, VERSION};

/// The most descriptors of a message.
const MAX_DESCRIPTORS: usize = 8;
/// So much is read at once, in bytes: as much as a message has so far, within these bounds.
const PIECE: [usize; 2] = [4 << 10, 256 << 10];

/// One end.
#[derive(Debug)]
pub(super) struct Channel {
    socket: UnixStream,
    received: Vec<u8>,
    /// So many bytes of `received` are known to have no line's end.
    scanned: usize,
    descriptors: VecDeque<OwnedFd>,
    unsent: VecDeque<Unsent>,
}

/// A message, or what is left of it.
#[derive(Debug)]
struct Unsent {
    bytes: Vec<u8>,
    sent: usize,
    /// Until its first byte is sent.
    descriptors: Vec<OwnedFd>,
}

impl Channel {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            received: Vec::new(),
            scanned: 0,
            descriptors: VecDeque::new(),
            unsent: VecDeque::new(),
        }
    }

    /// Two ends of one connection.
    pub(super) fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = UnixStream::pair()?;
        Ok((Self::new(one), Self::new(other)))
    }

    /// Queues a message, and sends what the socket takes without waiting.
    pub(super) fn queue(
        &mut self,
        container: &str,
        body: impl Serialize,
        descriptors: Vec<OwnedFd>,
    ) -> io::Result<()> {
        let envelope =
            Envelope { version: VERSION, container: container.into(), descriptors: descriptors.len(), body };
        let mut bytes = serde_json::to_vec(&envelope)?;
        bytes.push(b'\n');
        if bytes.len() > MAX_MESSAGE {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a message of {} bytes is longer than {MAX_MESSAGE}", bytes.len()),
            ));
        }
        self.unsent.push_back(Unsent { bytes, sent: 0, descriptors });
        self.send(SendFlags::DONTWAIT)
    }

    /// Whether something waits to be sent.
    pub(super) fn wants_to_send(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Sends what the socket takes without waiting.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.send(SendFlags::DONTWAIT)
    }

    /// Sends everything, however long that takes.
    pub(super) fn flush_all(&mut self) -> io::Result<()> {
        self.send(SendFlags::empty())
    }

    fn send(&mut self, flags: SendFlags) -> io::Result<()> {
        while let Some(message) = self.unsent.front_mut() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let descriptors: Vec<_> = message.descriptors.iter().map(AsFd::as_fd).collect();
            if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
            }
            let bytes = [IoSlice::new(&message.bytes[message.sent..])];
            match sendmsg(&self.socket, &bytes, &mut ancillary, flags | SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    message.sent += sent;
                    message.descriptors.clear();
                    if message.sent == message.bytes.len() {
                        self.unsent.pop_front();
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reads what is there without waiting. False at the connection's end.
    pub(super) fn fill(&mut self) -> io::Result<bool> {
        self.receive(RecvFlags::DONTWAIT)
    }

    /// Waits for the next message. `UnexpectedEof` is the connection's end.
    pub(super) fn wait<T: DeserializeOwned>(&mut self) -> io::Result<(Envelope<T>, Vec<OwnedFd>)> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(message);
            }
            if !self.receive(RecvFlags::empty())? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn receive(&mut self, flags: RecvFlags) -> io::Result<bool> {
        let start = self.received.len();
        if start > MAX_MESSAGE {
            return Err(invalid("a message is too long"));
        }
        self.received.resize(start + start.clamp(PIECE[0], PIECE[1]), 0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = {
            let mut bytes = [IoSliceMut::new(&mut self.received[start..])];
            recvmsg(&self.socket, &mut bytes, &mut ancillary, flags | RecvFlags::CMSG_CLOEXEC)
        };
        self.received.truncate(start + received.as_ref().map_or(0, |message| message.bytes));
        match received {
            Ok(message) => {
                for part in ancillary.drain() {
                    if let RecvAncillaryMessage::ScmRights(descriptors) = part {
                        self.descriptors.extend(descriptors);
                    }
                }
                if message.flags.contains(rustix::net::ReturnFlags::CTRUNC) {
                    return Err(invalid("a message has too many descriptors"));
                }
                Ok(message.bytes > 0)
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(true),
            // The other end has gone, with something of ours unread.
            Err(rustix::io::Errno::CONNRESET) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The next message that has arrived, with its descriptors.
    pub(super) fn take<T: DeserializeOwned>(&mut self) -> io::Result<Option<(Envelope<T>, Vec<OwnedFd>)>> {
        let Some(length) = self.received[self.scanned..].iter().position(|byte| *byte == b'\n') else {
            self.scanned = self.received.len();
            return Ok(None);
        };
        let end = self.scanned + length;
        let envelope: Envelope<T> = serde_json::from_slice(&self.received[..end])?;
        self.received.drain(..=end);
        self.scanned = 0;
        if envelope.version != VERSION {
            return Err(invalid(format!(
                "the other side has version {} of the protocol, and this one {VERSION}",
                envelope.version
            )));
        }
        if envelope.descriptors > self.descriptors.len() {
            return Err(invalid("a message lacks its descriptors"));
        }
        let descriptors = self.descriptors.drain(..envelope.descriptors).collect();
        Ok(Some((envelope, descriptors)))
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use super::*;

    fn file(text: &str) -> OwnedFd {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        file.into()
    }

    fn text(descriptor: OwnedFd) -> String {
        let mut text = String::new();
        File::from(descriptor).read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn messages_arrive_in_order_with_their_own_descriptors() {
        let (mut one, mut other) = Channel::pair().unwrap();
        one.queue("c", "none", vec![]).unwrap();
        one.queue("c", "two", vec![file("first"), file("second")]).unwrap();
        one.queue("d", "one", vec![file("third")]).unwrap();
        drop(one);
        let mut next = || -> (String, String, Vec<String>) {
            let (envelope, descriptors) = other.wait::<String>().unwrap();
            (envelope.container, envelope.body, descriptors.into_iter().map(text).collect())
        };
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        assert_eq!(next(), ("c".into(), "none".into(), vec![]));
        assert_eq!(next(), ("c".into(), "two".into(), words(&["first", "second"])));
        assert_eq!(next(), ("d".into(), "one".into(), words(&["third"])));
        assert_eq!(other.wait::<String>().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_reader_that_waits_gets_a_message_larger_than_the_sockets_buffer() {
        let (mut one, mut other) = Channel::pair().unwrap();
        let long = "x".repeat(3 << 20);
        one.queue("c", &long, vec![file("with it")]).unwrap();
        one.queue("c", "short", vec![]).unwrap();
        assert!(one.wants_to_send());
        let reader = std::thread::spawn(move || {
            let (envelope, descriptors) = other.wait::<String>().unwrap();
            let (last, _) = other.wait::<String>().unwrap();
            (envelope.body.len(), descriptors.into_iter().map(text).collect::<Vec<_>>(), last.body)
        });
        one.flush_all().unwrap();
        assert_eq!(reader.join().unwrap(), (3 << 20, vec!["with it".to_owned()], "short".to_owned()));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bytes in [
            &b"nonsense\n"[..],
            br#"{"version":2,"container":"c","descriptors":0,"body":"x"}
"#,
            br#"{"version":1,"container":"c","descriptors":1,"body":"x"}
"#,
        ] {
            let (socket, mut raw) = UnixStream::pair().unwrap();
            let mut channel = Channel::new(socket);
            raw.write_all(bytes).unwrap();
            assert!(channel.fill().unwrap());
            let error = channel.take::<String>().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        }
        let (socket, raw) = UnixStream::pair().unwrap();
        let mut channel = Channel::new(socket);
        let writer = std::thread::spawn(move || {
            let mut raw = raw;
            // Until the reader has enough of it.
            while raw.write_all(&[b'x'; PIECE[1]]).is_ok() {}
        });
        let error = channel.wait::<String>().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        drop(channel);
        writer.join().unwrap();
    }
}
