//! Virtual machines and containers, measured side by side.
//!
//! ```text
//! sections -> executor <- program      what is measured, by ways to start something; each real one is a program
//! machine, cache                       the state of this one; what /proc says; files that are in memory
//! watch -> seccomp                     an instance as it shows from outside
//! results                              what was found, as plain data
//! report -> { results, stats }         the same for a terminal, as Markdown, as HTML
//! stats                                what a list of figures says: no clock, no file
//! ```
//!
//! Measuring knows nothing of reports, and reports need nothing but the results, so that any of
//! them can be drawn again from a file.

pub mod cache;
pub mod executor;
pub mod machine;
pub mod program;
pub mod report;
pub mod results;
pub mod seccomp;
pub mod sections;
pub mod stats;
pub mod watch;
