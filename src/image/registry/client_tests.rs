use super::*;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use crate::image::descriptor::Platform;
use crate::image::import::{LoadError, LoadOptions, Naming};
use crate::image::pull::{Policy, PullOptions, pull};
use crate::image::rootfs::Limits;
use crate::image::store::Store;
use crate::image::testing::chain;

/// A server on this machine that answers every connection with these bytes, once it has heard a
/// whole request, and then leaves it open. Gives its name for a reference, and how many requests
/// came.
fn server(answer: &'static str) -> (Reference, std::sync::Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let reference = format!("{}/x:v1", listener.local_addr().unwrap()).parse().unwrap();
    let count = std::sync::Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming() {
            let (mut stream, mut heard) = (stream.unwrap(), Vec::new());
            let mut byte = [0];
            while !heard.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                heard.push(byte[0]);
                if heard[0] == 0x16 {
                    break;
                }
            }
            if heard[0] != 0x16 {
                counted.fetch_add(1, Ordering::Relaxed);
                stream.write_all(answer.as_bytes()).unwrap();
                open.push(stream);
            }
        }
    });
    (reference, count)
}

fn connect(reference: &Reference) -> Client {
    connect_with(reference, Duration::from_secs(20))
}

fn connect_with(reference: &Reference, stall: Duration) -> Client {
    let patience = Patience { connect: Duration::from_secs(5), stall };
    Client::connect(reference, false, patience).unwrap()
}

#[test]
fn a_connection_on_which_nothing_comes_is_given_up() {
    let (reference, count) = server("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{");
    let client = connect_with(&reference, Duration::from_millis(100));
    assert!(!super::super::address::is_https(&client.base));
    let start = Instant::now();
    let error = client.manifest("v1", 1000).unwrap_err();
    assert!(chain(&error).ends_with("no answer in time"), "{}", chain(&error));
    assert_eq!(count.load(Ordering::Relaxed), 5);
    let waited = start.elapsed();
    assert!(waited > Duration::from_secs(4) && waited < Duration::from_secs(30), "{waited:?}");
}

#[test]
fn nonsense_is_no_answer_and_is_not_asked_for_again() {
    for answer in ["nonsense\r\n\r\n", "HTTP/1.1 999999 x\r\n\r\n"] {
        let (reference, count) = server(answer);
        assert!(connect(&reference).manifest("v1", 1000).is_err());
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn what_is_too_long_is_not_read() {
    let (reference, _) = server("HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n");
    let start = Instant::now();
    let error = connect(&reference).manifest("v1", 1000).unwrap_err().to_string();
    assert!(error.ends_with("x:v1 is longer than 1000 bytes"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn whether_a_registry_is_asked_is_a_matter_of_policy() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(dir.path(), None).unwrap();
    let reference: Reference = "localhost:1/x".parse().unwrap();
    let load =
        LoadOptions { naming: Naming::Source, platform: Platform::native(), limits: Limits::default() };
    let ask = |policy| {
        let options = PullOptions { policy, insecure: false, load: load.clone() };
        pull(&store, &reference, &options, &())
    };
    assert!(matches!(ask(Policy::Never), Err(LoadError::Absent(_))));
    assert!(matches!(ask(Policy::Missing), Err(LoadError::Content(_))));
    let layer = crate::image::testing::tar(&[crate::image::testing::file("a", b"a")]);
    let mut parts = crate::image::testing::Parts::default();
    let image = parts.image("amd64", &[(layer.clone(), layer)]);
    parts.index(&[image]);
    let path = dir.path().join("layout");
    parts.write_to(&path);
    let named = LoadOptions { naming: Naming::Only(reference.clone()), ..load.clone() };
    let source = format!("oci:{}", path.display()).parse().unwrap();
    crate::image::load(&store, &source, &named, &(), &mut drop).unwrap();
    for policy in [Policy::Never, Policy::Missing] {
        let found = ask(policy).unwrap();
        assert!(!found.built && found.names == [reference.clone()]);
    }
    assert!(matches!(ask(Policy::Always), Err(LoadError::Content(_))), "the name may have moved");
    let foreign = LoadOptions { platform: "linux/arm64".parse().unwrap(), ..load.clone() };
    let options = PullOptions { policy: Policy::Never, insecure: false, load: foreign };
    assert!(matches!(pull(&store, &reference, &options, &()), Err(LoadError::Foreign(_))));
}
