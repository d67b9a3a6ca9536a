//! One blob as a stream that goes on where a broken connection left it.
//!
//! The bytes aren't verified here, but by whoever reads them (see `Store::blob`). How many there
//! must be is known, so whatever announces another number is refused before its first byte. A few
//! failures in a row are the end; they count from the beginning when the stream has got further in
//! between.

use std::cell::Cell;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};

use ureq::BodyReader;
use ureq::http::Uri;

use super::client::{Answer, Client};
use super::error::RegistryError;
use super::http::{broken, header};
use super::retry::Tries;
use crate::image::digest::Digest;
use crate::image::progress::Progress;

/// So many bytes are progress. Less could keep a pull going for days.
const STEP: u64 = 16 << 10;

/// A blob that comes.
pub(super) struct Download<'a> {
    pub(super) client: &'a Client,
    pub(super) digest: &'a Digest,
    /// In bytes.
    pub(super) len: u64,
    pub(super) progress: &'a dyn Progress,
    /// How much has been told to `progress`.
    pub(super) told: &'a Cell<u64>,
    /// Set when it isn't wanted any more.
    pub(super) stop: &'a AtomicBool,
    pub(super) state: State,
}

/// Where it stands.
#[derive(Default)]
pub(super) struct State {
    at: u64,
    /// Where the last failure was.
    failed_at: u64,
    tries: Tries,
    body: Option<(Uri, BodyReader<'static>)>,
}

impl Download<'_> {
    /// Asks for what is missing.
    fn open(&self) -> Result<(Uri, BodyReader<'static>), RegistryError> {
        let at = self.state.at;
        let Answer { url, response } = self.client.blob(self.digest, at)?;
        let wrong = |what: String| self.client.wrong(format!("{} {what}", self.digest));
        let is_part = response.status() == 206;
        let expected = if is_part { self.len - at } else { self.len };
        if let Some(len) = response.body().content_length()
            && len != expected
        {
            let kind = header(&response, "content-type").unwrap_or_default();
            if kind.to_ascii_lowercase().starts_with("text/html") {
                let (host, what) = (self.client.host_at(&url), self.digest.to_string());
                return Err(RegistryError::WebPage { host, what, status: response.status().as_u16() });
            }
            return Err(wrong(format!("comes with {len} bytes instead of {expected}")));
        }
        if is_part {
            let range = header(&response, "content-range").and_then(parse_range);
            if range.is_none_or(|(first, total)| first != at || total.is_some_and(|total| total != self.len))
            {
                return Err(wrong("comes with another part than was asked for".into()));
            }
        }
        let mut body = response.into_body().into_reader();
        // A server without ranges begins again.
        if at > 0 && !is_part {
            let skipped = io::copy(&mut (&mut body).take(at), &mut io::sink());
            if skipped.map_err(|error| broken(&url, error))? < at {
                return Err(broken(&url, io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok((url, body))
    }

    /// After a failure: waits, unless it was the last one.
    fn failed(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        let state = &mut self.state;
        state.body = None;
        if state.at >= state.failed_at + STEP {
            state.tries.succeeded();
        }
        state.failed_at = state.at;
        state.tries.after(error, self.stop)
    }
}

impl Read for Download<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(RegistryError::GivenUp.into());
            }
            let Some((url, body)) = &mut self.state.body else {
                // All of it was there when the connection broke.
                if self.state.at == self.len && self.len > 0 {
                    return Ok(0);
                }
                match self.open() {
                    Ok(body) => self.state.body = Some(body),
                    Err(error) => self.failed(error)?,
                }
                continue;
            };
            let error = match body.read(out) {
                Ok(0) if out.is_empty() || self.state.at >= self.len => return Ok(0),
                Ok(0) => io::ErrorKind::UnexpectedEof.into(),
                Ok(n) => {
                    self.state.at += n as u64;
                    self.told.set(self.told.get() + n as u64);
                    self.progress.advance(n as u64);
                    return Ok(n);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
                Err(error) => error,
            };
            let error = broken(url, error);
            self.failed(error)?;
        }
    }
}

/// The first byte and the whole length of `bytes FIRST-LAST/LENGTH`; `*` in place of the length if
/// the server doesn't know it.
fn parse_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some((first.trim().parse().ok()?, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        for (text, expected) in [
            ("bytes 5-9/10", Some((5, Some(10)))),
            ("bytes 5-9/*", Some((5, None))),
            ("bytes */10", None),
            ("bytes 5-9/x", None),
            ("5-9/10", None),
            ("", None),
        ] {
            assert_eq!(parse_range(text), expected, "{text}");
        }
    }
}
