//! An HTTP server on this machine whose every answer a test can decide about, and a registry made
//! of it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::make::{Layout, sha256};

/// What was asked for.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: String,
    /// With the query.
    pub(super) path: String,
    /// Names in lower case.
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: String,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The first byte that is wanted.
    pub(super) fn from(&self) -> usize {
        let range = self.header("range").strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
        range.map_or(0, |first| first.parse().unwrap())
    }

    pub(super) fn is_blob(&self) -> bool {
        self.path.contains("/blobs/")
    }
}

/// What is answered.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
    /// The connection ends after so many bytes of the body.
    pub(super) cut: Option<usize>,
    /// The length that is announced, if not the real one.
    pub(super) len: Option<usize>,
    /// In chunks, without a length.
    pub(super) chunked: bool,
}

impl Reply {
    pub(super) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), cut: None, len: None, chunked: false }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn redirect(to: impl Into<String>) -> Self {
        Self::new(307, "").with("Location", to)
    }
}

/// A running server. It ends with the tests.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub(super) fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap(), answer)
    }

    pub(super) fn on(
        listener: TcpListener,
        answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (answer, log) = (Arc::new(answer), seen.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (answer, log) = (answer.clone(), log.clone());
                std::thread::spawn(move || serve(&stream.unwrap(), &*answer, &log));
            }
        });
        Self { address, seen }
    }

    /// Every request so far, but for those that look whether there is a registry at all.
    pub(super) fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().iter().filter(|request| request.path != "/v2/").cloned().collect()
    }

    /// How often each blob was asked for.
    pub(super) fn blobs(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for request in self.seen().into_iter().filter(Request::is_blob) {
            *counts.entry(request.path).or_default() += 1;
        }
        counts
    }

    /// What an image is called there.
    pub(super) fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }
}

/// One connection, with any number of requests. Whoever begins with TLS hears nothing.
fn serve(stream: &TcpStream, answer: &dyn Fn(&Request) -> Reply, log: &Mutex<Vec<Request>>) {
    let mut first = [0];
    if stream.peek(&mut first).is_ok_and(|n| n == 1) && first[0] == 0x16 {
        return;
    }
    let mut reader = BufReader::new(stream);
    while let Some(request) = parse(&mut reader) {
        log.lock().unwrap().push(request.clone());
        let reply = answer(&request);
        let mut head = format!("HTTP/1.1 {} x\r\n", reply.status);
        for (name, value) in &reply.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let body = if reply.chunked { chunks(&reply.body) } else { reply.body };
        if reply.chunked {
            head.push_str("Transfer-Encoding: chunked\r\n\r\n");
        } else {
            head.push_str(&format!("Content-Length: {}\r\n\r\n", reply.len.unwrap_or(body.len())));
        }
        let body = &body[..reply.cut.unwrap_or(body.len()).min(body.len())];
        let mut writer = stream;
        // Whoever has heard enough may go.
        let written = writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(body));
        if written.is_err() || reply.cut.is_some() || reply.len.is_some() {
            return;
        }
    }
}

fn chunks(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for chunk in body.chunks(5000) {
        bytes.extend(format!("{:x}\r\n", chunk.len()).bytes().chain(chunk.iter().copied()).chain(*b"\r\n"));
    }
    bytes.extend(b"0\r\n\r\n");
    bytes
}

fn parse(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace().map(ToOwned::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let len = headers.get("content-length").map_or(0, |len: &String| len.parse().unwrap());
    let mut body = vec![0; len];
    reader.read_exact(&mut body).ok()?;
    Some(Request { method, path, headers, body: String::from_utf8(body).unwrap() })
}

/// A registry of the blobs of a layout; every tag is the first image in its index.
pub(super) fn registry(layout: &Layout) -> impl Fn(&Request) -> Reply + Clone + Send + Sync + use<> {
    let dir = layout.dir.clone();
    move |request| {
        if request.path == "/v2/" {
            return Reply::new(200, "{}");
        }
        let (_, which) = request.path.rsplit_once('/').unwrap();
        let digest = if which.contains(':') {
            which.to_owned()
        } else {
            let index: Value = serde_json::from_slice(&fs::read(dir.join("index.json")).unwrap()).unwrap();
            index["manifests"][0]["digest"].as_str().unwrap().to_owned()
        };
        let Ok(bytes) = fs::read(dir.join("blobs").join(digest.replace(':', "/"))) else {
            return Reply::new(404, r#"{"errors": [{"code": "UNKNOWN", "message": "no such thing"}]}"#);
        };
        if !request.is_blob() {
            let document: Value = serde_json::from_slice(&bytes).unwrap();
            let kind = if document["manifests"].is_array() { "index" } else { "manifest" };
            let reply = Reply::new(200, bytes.clone()).with("Docker-Content-Digest", sha256(&bytes));
            return reply.with("Content-Type", format!("application/vnd.oci.image.{kind}.v1+json"));
        }
        match request.from() {
            0 => Reply::new(200, bytes),
            from => {
                let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
                Reply::new(206, &bytes[from..]).with("Content-Range", range)
            }
        }
    }
}
