//! The system calls that neither std nor rustix has a safe word for, each as a small safe function.
//! All of the init's unsafe code is here.

mod bpf;
mod machine;
mod mount;
mod process;
mod signal;
mod socket;
mod terminal;

use std::ffi::{CString, c_int};
use std::io;

pub(crate) use bpf::*;
pub(crate) use machine::*;
pub(crate) use mount::*;
pub(crate) use process::*;
pub(crate) use signal::*;
pub(crate) use socket::*;
pub(crate) use terminal::*;

/// A string for the kernel. A NUL inside ends it early, which no path in a mount table contains.
pub(crate) fn c_string(text: &str) -> CString {
    let until_nul: Vec<u8> = text.bytes().take_while(|&b| b != 0).collect();
    CString::new(until_nul).unwrap_or_default()
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
