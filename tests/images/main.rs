//! The real `bothy load`, `pull`, `images`, `rmi` and `prune`, with images made by other people's
//! tools: skopeo, umoci, buildah; and with archives as `docker save` writes them. No virtual
//! machine, and no network but this machine's own.
//!
//! A test whose tool is missing says so (`COULD NOT RUN`). BOTHY_LONG=1 raises the counts.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod make;
mod store;

mod bad_input;
mod contention;
mod docker_save;
mod kill;
mod naming;
mod registry;
mod removal;
mod reports;
mod sources;
mod words;
