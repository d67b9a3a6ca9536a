//! This process's arguments and environment, where the kernel has put them: what every process that
//! is forked from it has in its memory as well, and shows in `/proc/PID/cmdline` and `environ`.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;

/// The addresses of both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    arguments: Range<usize>,
    environment: Range<usize>,
}

/// Longer than any line of /proc/PID/stat.
const MAX_STAT: usize = 2048;
/// The position of `arg_start` behind the program's name (proc(5), field 48; the first one behind
/// the name is field 3). `arg_end`, `env_start` and `env_end` follow.
const ARG_START: usize = 48 - 3;

impl CommandLine {
    /// Finds them.
    pub fn find() -> io::Result<Self> {
        let mut stat = [0; MAX_STAT];
        let length = File::open("/proc/self/stat")?.read(&mut stat)?;
        Self::parse(&stat[..length])
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/self/stat has another form"))
    }

    fn parse(stat: &[u8]) -> Option<Self> {
        // The name, in parentheses, may have any bytes.
        let behind_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
        let fields = std::str::from_utf8(&stat[behind_name..]).ok()?;
        let mut addresses =
            fields.split_ascii_whitespace().skip(ARG_START).map_while(|field| field.parse::<usize>().ok());
        let mut range = || {
            let (start, end) = (addresses.next()?, addresses.next()?);
            (0 < start && start <= end).then_some(start..end)
        };
        Some(Self { arguments: range()?, environment: range()? })
    }

    /// The first argument behind the program's name. Nothing is copied.
    pub fn first_argument(&self) -> &[u8] {
        #[expect(unsafe_code, reason = "memory that the kernel has given to this process")]
        // SAFETY: the kernel mapped and filled these bytes before the program started; nothing
        // unmaps them, and only `erase` writes to them, in a process with a single thread.
        let arguments =
            unsafe { std::slice::from_raw_parts(self.arguments.start as *const u8, self.arguments.len()) };
        arguments.split(|byte| *byte == 0).nth(1).unwrap_or_default()
    }

    /// Overwrites both, for a process that goes on without them. `title` is what tools then show as
    /// its command line.
    pub fn erase(&self, title: &str) {
        for range in [&self.arguments, &self.environment] {
            #[expect(unsafe_code, reason = "memory that the kernel has given to this process")]
            // SAFETY: as above, and the bytes are writable: they lie on the initial stack. Whoever
            // reads them through `argv` or `environ` finds terminated strings.
            unsafe {
                std::ptr::write_bytes(range.start as *mut u8, 0, range.len());
            }
        }
        let length = title.len().min(self.arguments.len().saturating_sub(1));
        #[expect(unsafe_code, reason = "memory that the kernel has given to this process")]
        // SAFETY: as above; the last byte stays zero.
        unsafe {
            std::ptr::copy_nonoverlapping(title.as_ptr(), self.arguments.start as *mut u8, length);
        }
        #[expect(unsafe_code, reason = "std removes variables one by one")]
        // SAFETY: nobody has a pointer into the environment's list: the process has a single
        // thread.
        unsafe {
            libc::clearenv();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::process::{exit_now, fork};
    use super::super::testing::is_alone;
    use super::*;

    #[test]
    fn a_name_may_have_parentheses_and_spaces_in_it() {
        let fields: Vec<String> = (3..=52).map(|number| number.to_string()).collect();
        let stat = format!("17 (a) b (c) {}\n", fields.join(" "));
        let found = CommandLine::parse(stat.as_bytes()).unwrap();
        assert_eq!(found, CommandLine { arguments: 48..49, environment: 50..51 });
        assert_eq!(CommandLine::parse(b"17 (a) S 1 2 3"), None);
        assert_eq!(CommandLine::parse(b""), None);
    }

    #[test]
    fn a_child_erases_what_its_parent_was_given() {
        let test = "sys::command_line::tests::a_child_erases_what_its_parent_was_given";
        if !is_alone("BOTHY_TEST_ERASES", test, "") {
            return;
        }
        let command_line = CommandLine::find().unwrap();
        assert_eq!(command_line.first_argument(), b"--exact");
        let Some(child) = fork().unwrap() else {
            command_line.erase("a title");
            let read = |name: &str| std::fs::read(format!("/proc/self/{name}")).unwrap();
            let cmdline = read("cmdline");
            let is_right = cmdline.starts_with(b"a title\0")
                && cmdline[7..].iter().all(|byte| *byte == 0)
                && read("environ").iter().all(|byte| *byte == 0)
                && std::env::vars_os().next().is_none();
            exit_now(if is_right { 0 } else { 1 })
        };
        assert_eq!(child.wait().unwrap().exit_status(), Some(0));
    }
}
