//! Keys on the terminal that are meant for bothy and not for the guest.

/// What the user wants, by a key behind `Ctrl-a`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// End the VM.
    Quit,
    /// Show the keys.
    Help,
}

/// What `Ctrl-a h` shows.
pub(super) const HELP: &str = "\
\r\n  Ctrl-a x       end the VM at once\
\r\n  Ctrl-a h       this help\
\r\n  Ctrl-a Ctrl-a  send Ctrl-a to the guest\r\n";

const CTRL_A: u8 = 1;

/// Finds `Ctrl-a` and the key behind it in what the user types.
#[derive(Debug, Default)]
pub(super) struct Escape {
    armed: bool,
}

impl Escape {
    /// Splits typed bytes into what goes to the guest and what is meant for bothy.
    pub(super) fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, Vec<Key>) {
        let (mut bytes, mut keys) = (Vec::with_capacity(typed.len()), Vec::new());
        for &byte in typed {
            if !std::mem::replace(&mut self.armed, false) {
                if byte == CTRL_A {
                    self.armed = true;
                } else {
                    bytes.push(byte);
                }
                continue;
            }
            match byte {
                b'x' => keys.push(Key::Quit),
                b'h' => keys.push(Key::Help),
                CTRL_A => bytes.push(CTRL_A),
                other => bytes.push(other),
            }
        }
        (bytes, keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_behind_ctrl_a_are_taken_out_and_the_rest_goes_through() {
        let mut escape = Escape::default();
        assert_eq!(escape.filter(b"ab\x01hcd"), (b"abcd".to_vec(), vec![Key::Help]));
        assert_eq!(escape.filter(b"\x01\x01x"), (b"\x01x".to_vec(), vec![]));
        assert_eq!(escape.filter(b"\x01"), (vec![], vec![]));
        assert_eq!(escape.filter(b"x"), (vec![], vec![Key::Quit]));
        assert_eq!(escape.filter(b"\x01qx"), (b"qx".to_vec(), vec![]));
    }
}
