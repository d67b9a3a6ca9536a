//! Randomness of the host's kernel.

use std::io;

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// Bytes that nobody can guess. Waits, in the first second after the host's boot, until its pool is
/// filled.
pub fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        match getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            Err(Errno::INTR) => {}
            done => filled += done?,
        }
    }
    Ok(bytes)
}

/// A name of twice as many hexadecimal digits, that nobody can guess.
pub fn name<const N: usize>() -> io::Result<String> {
    Ok(bytes::<N>()?.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_differ_each_time() {
        assert_ne!(bytes::<16>().unwrap(), bytes::<16>().unwrap());
    }
}
