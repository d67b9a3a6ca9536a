//! `bothy run` with an image that a registry has, up to where a virtual machine would start.

use std::fs;
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::Duration;

use super::image;
use super::server::{Reply, Server, registry};
use crate::store::Store;
use crate::support::memory_has;

#[test]
fn run_pulls_what_it_runs_if_it_may() {
    let store = Store::new();
    let (layout, _) = image(&store, 1, 1000);
    let server = Server::start(registry(&layout));
    let name = server.name("app");
    let word = name.as_str();
    // Without a kernel nothing starts, but by then the image is there.
    let run = |words: &[&str]| {
        let words = ["run", "--kernel", "/dev/null"].iter().chain(words).chain([&word]);
        store.clean(store.bothy(words)).run().code(125)
    };
    run(&["--pull", "never"])
        .says(&format!("no image {name}:latest in the store, and it is not to be pulled"));
    run(&["--platform", "linux/arm64"]).says("images for linux/arm64 can't run here");
    assert_eq!((server.seen().len(), store.names().len()), (0, 0));
    run(&[]).says("--kernel");
    assert_eq!((server.seen().len(), store.names().len()), (3, 1));
    run(&[]).says("--kernel");
    run(&["--pull", "never"]).says("--kernel");
    assert_eq!(server.seen().len(), 3, "it is in the store");
    run(&["--pull", "always"]).says("--kernel");
    assert_eq!(server.seen().len(), 4, "the name is looked up");
}

#[test]
fn the_monitor_has_none_of_the_client_s_credentials() {
    // The registry asks for credentials, gets them, and then takes its time.
    let (arrived, arrives) = channel();
    let (leave, left) = channel::<()>();
    let (arrived, left) = (Mutex::new(arrived), Mutex::new(left));
    let server = Server::start(move |request| {
        if request.header("authorization").is_empty() {
            return Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\"");
        }
        arrived.lock().unwrap().send(()).unwrap();
        // Until the test has looked.
        let _closed = left.lock().unwrap().recv();
        Reply::new(404, "")
    });
    let store = Store::new();
    let docker = store.dir().join("home/.docker");
    fs::create_dir_all(&docker).unwrap();
    let config = format!(
        r#"{{"auths": {{"{}": {{"username": "user", "password": "planted-password"}}}}}}"#,
        server.address
    );
    fs::write(docker.join("config.json"), config).unwrap();
    let name = server.name("app");
    let words = ["run", "--insecure-registry", "-e", "TOKEN=planted-argument", &name];
    let running = store.clean(store.bothy(words)).env("BOTHY_TEST_SECRET", "planted-environment").start();
    arrives.recv_timeout(Duration::from_secs(20)).unwrap();
    // "user:planted-password", as HTTP has it.
    let header = "dXNlcjpwbGFudGVkLXBhc3N3b3Jk";
    let monitor = running.monitor_pid();
    for planted in ["planted-password", header, "planted-environment", "TOKEN=planted-argument"] {
        assert!(memory_has(running.pid(), planted), "the client itself has {planted}");
        assert!(!memory_has(monitor, planted), "the monitor has {planted}");
    }
    drop(leave);
    running.wait().code(125).says(&name);
}
