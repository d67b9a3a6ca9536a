//! bothy beside Debian's docker on this machine, without a virtual machine: what docker does with
//! the same words.
//!
//! A test whose tools are missing says so (`COULD NOT RUN`).
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod engine;
mod filters;
mod roots;

/// What a test begins with: docker, or a return from the test with a loud line.
macro_rules! needs_docker {
    () => {{
        fn name() {}
        let name = std::any::type_name_of_val(&name);
        let Some(docker) = $crate::engine::get(name.trim_end_matches("::name")) else { return };
        docker
    }};
}
use needs_docker;
