//! `bothy run` with an image that a registry has, up to where a virtual machine would start.

use super::image;
use super::server::{Server, registry};
use crate::store::Store;

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
