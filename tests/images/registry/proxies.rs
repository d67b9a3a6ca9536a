//! HTTP proxies, and registries on other machines; which are on this one as well, behind a proxy of
//! the test's.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::server::{Server, registry};
use super::{image, loaded, rootfs};
use crate::store::Store;

/// A proxy that leads every connection to one and the same address.
pub(super) struct Proxy {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    pub(super) fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let log = log.clone();
                std::thread::spawn(move || connect(&stream.unwrap(), to, &log));
            }
        });
        Self { address, asked }
    }

    /// For the environment.
    pub(super) fn url(&self) -> String {
        format!("http://user:word@{}", self.address)
    }

    /// What it was asked for: the first lines of the requests.
    pub(super) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn connect(mut stream: &TcpStream, to: SocketAddr, log: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        if line == "\r\n" {
            break;
        }
        lines.push(line.trim_end().to_owned());
    }
    log.lock().unwrap().push(lines[0].clone());
    assert!(lines.iter().any(|line| line == "Proxy-Authorization: Basic dXNlcjp3b3Jk"), "{lines:?}");
    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
    let there = TcpStream::connect(to).unwrap();
    std::thread::scope(|scope| {
        // Either side may end it at any time.
        scope.spawn(|| {
            let _ended = std::io::copy(&mut &there, &mut &*stream);
            let _gone = stream.shutdown(Shutdown::Both);
        });
        let _ended = std::io::copy(&mut reader, &mut &there);
        let _gone = there.shutdown(Shutdown::Both);
    });
}

#[test]
fn another_machine_is_only_spoken_to_without_tls_if_the_user_says_so() {
    let store = Store::new();
    let (layout, _) = image(&store, 1, 1000);
    let server = Server::start(registry(&layout));
    let proxy = Proxy::start(server.address);
    let pull = |words: &[&str]| store.pull(words).env("all_proxy", proxy.url());
    pull(&["registry.example/app"]).run().code(1).says("can't talk to registry.example");
    assert_eq!(server.seen().len(), 0);
    assert_eq!(proxy.asked(), ["CONNECT registry.example:443 HTTP/1.1"]);
    pull(&["--insecure-registry", "registry.example:5000/app"]).run().output();
    assert_eq!(rootfs(&store), loaded(&layout));
    assert!(proxy.asked().iter().skip(1).all(|asked| asked == "CONNECT registry.example:5000 HTTP/1.1"));
    assert_eq!(store.names(), ["registry.example:5000/app:latest"]);
}

/// The flag may be meant for another image of the same command, and somebody on the way may break
/// TLS.
#[test]
fn docker_io_is_never_spoken_to_without_tls() {
    let store = Store::new();
    let (layout, _) = image(&store, 1, 1000);
    let server = Server::start(registry(&layout));
    let proxy = Proxy::start(server.address);
    let pull = store.pull(&["--insecure-registry", "app"]).env("all_proxy", proxy.url());
    pull.run().code(1).says("can't talk to registry-1.docker.io");
    assert_eq!(server.seen().len(), 0);
    assert!(proxy.asked().iter().all(|asked| asked == "CONNECT registry-1.docker.io:443 HTTP/1.1"));
}

#[test]
fn this_machine_is_reached_without_a_proxy() {
    let store = Store::new();
    let (layout, _) = image(&store, 1, 1000);
    let server = Server::start(registry(&layout));
    let pull = store.pull(&[&server.name("app")]).env("HTTP_PROXY", "http://127.0.0.1:1");
    pull.env("HTTPS_PROXY", "http://127.0.0.1:1").run().output();
}

#[test]
fn a_proxy_that_is_none_is_named_without_its_password() {
    let store = Store::new();
    let refused =
        store.pull(&["registry.example/app"]).env("HTTPS_PROXY", "socks5://user:secret@a").run().code(1);
    assert!(!refused.stderr.contains("secret"), "{}", refused.stderr);
    refused.says("HTTPS_PROXY is not the address of an HTTP proxy");
}
