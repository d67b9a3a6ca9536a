//! Finds a command's program and becomes it, with docker's words where that fails.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bothy_guest::protocol::NotStarted;

use super::refusal::Refusal;
use crate::sys;

/// Where programs are looked for if the environment doesn't say it.
const USUAL_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The value of a variable. The last one counts, as in a shell that is given two.
pub(crate) fn variable<'a>(env: &'a [Vec<u8>], name: &str) -> Option<&'a [u8]> {
    env.iter().rev().find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

/// The paths that a program may be at.
fn candidates(program: &[u8], env: &[Vec<u8>]) -> Vec<Vec<u8>> {
    if program.contains(&b'/') {
        return vec![program.to_vec()];
    }
    if program.is_empty() {
        return Vec::new();
    }
    let path = variable(env, "PATH").unwrap_or(USUAL_PATH);
    path.split(|byte| *byte == b':')
        .map(|directory| {
            // An empty one is the working directory.
            let directory = if directory.is_empty() { b"." } else { directory };
            [directory, b"/", program].concat()
        })
        .collect()
}

/// Becomes the program. Returns only if that can't be done.
pub(crate) fn become_program(args: &[Vec<u8>], env: &[Vec<u8>]) -> Refusal {
    let strings =
        |list: &[Vec<u8>]| list.iter().map(|text| CString::new(text.clone())).collect::<Result<Vec<_>, _>>();
    let (Ok(argv), Ok(envp), Some(program)) = (strings(args), strings(env), args.first()) else {
        return Refusal::other("there is no program, or a NUL in an argument or in the environment");
    };
    let mut denied = None;
    for path in candidates(program, env) {
        let Ok(c_path) = CString::new(path.clone()) else { continue };
        let error = sys::exec(&c_path, &argv, &envp);
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            Some(libc::EACCES) => denied = denied.or(Some((path, error))),
            // A directory of the path that can't be walked has no program.
            Some(libc::ELOOP | libc::ENAMETOOLONG) if !program.contains(&b'/') => {}
            _ => return not_executable(program, &path, &error),
        }
    }
    match denied {
        Some((path, error)) if program.contains(&b'/') => not_executable(program, &path, &error),
        // What is in the path and may not be executed isn't found, as for docker.
        _ => not_found(program),
    }
}

fn not_found(program: &[u8]) -> Refusal {
    let name = String::from_utf8_lossy(program);
    let why = if program.contains(&b'/') {
        match fs::symlink_metadata(as_path(program)) {
            // The file is there: it is what it names, its interpreter, that isn't.
            Ok(_) => "no such file or directory".to_owned(),
            Err(_) => format!("stat {name}: no such file or directory"),
        }
    } else {
        "executable file not found in $PATH".to_owned()
    };
    Refusal::new(NotStarted::NotFound, format!("exec: {name:?}: {why}"))
}

fn not_executable(program: &[u8], path: &[u8], error: &io::Error) -> Refusal {
    let why = match error.raw_os_error() {
        Some(libc::EACCES) if is_directory(path) => "is a directory".to_owned(),
        Some(libc::EACCES) => "permission denied".to_owned(),
        Some(libc::ENOEXEC) => "exec format error".to_owned(),
        Some(libc::E2BIG) => "argument list too long".to_owned(),
        _ => error.to_string(),
    };
    Refusal::new(NotStarted::NotExecutable, format!("exec: {:?}: {why}", String::from_utf8_lossy(program)))
}

fn is_directory(path: &[u8]) -> bool {
    fs::metadata(as_path(path)).is_ok_and(|metadata| metadata.is_dir())
}

fn as_path(bytes: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(entries: &[&str]) -> Vec<Vec<u8>> {
        entries.iter().map(|entry| entry.as_bytes().to_vec()).collect()
    }

    #[test]
    fn a_name_without_a_slash_is_looked_for_in_the_path() {
        let found = candidates(b"ls", &env(&["A=1", "PATH=/a::b/c"]));
        assert_eq!(found, env(&["/a/ls", "./ls", "b/c/ls"]));
        assert_eq!(candidates(b"ls", &env(&["XPATH=/a"])).len(), 6);
    }

    #[test]
    fn a_name_with_a_slash_is_a_path() {
        assert_eq!(candidates(b"./ls", &env(&["PATH=/a"])), env(&["./ls"]));
    }

    #[test]
    fn an_empty_name_is_found_nowhere() {
        let refusal = become_program(&env(&[""]), &env(&["PATH=/usr/bin"]));
        assert_eq!(refusal.reason, NotStarted::NotFound);
    }

    #[test]
    fn a_directory_of_the_path_that_cannot_be_walked_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("loop", dir.path().join("loop")).unwrap();
        let path = format!("PATH={}/loop:/{}", dir.path().display(), "n".repeat(300));
        let refusal = become_program(&env(&["no-such-program"]), &env(&[&path]));
        assert_eq!(refusal.reason, NotStarted::NotFound);
        assert_eq!(refusal.message, r#"exec: "no-such-program": executable file not found in $PATH"#);
    }

    #[test]
    fn what_is_missing_is_told_as_docker_tells_it() {
        let refusal = become_program(&env(&["no-such-program"]), &[]);
        assert_eq!(refusal.reason, NotStarted::NotFound);
        assert_eq!(refusal.message, r#"exec: "no-such-program": executable file not found in $PATH"#);
        let refusal = become_program(&env(&["/no/program"]), &[]);
        assert_eq!(refusal.message, r#"exec: "/no/program": stat /no/program: no such file or directory"#);
    }

    #[test]
    fn what_is_no_program_is_not_executable() {
        for (path, why) in [("/etc", "is a directory"), ("/etc/passwd", "permission denied")] {
            let refusal = become_program(&env(&[path]), &[]);
            assert_eq!(refusal.reason, NotStarted::NotExecutable, "{path}");
            assert_eq!(refusal.message, format!("exec: {path:?}: {why}"));
        }
    }

    #[test]
    fn the_last_of_two_variables_counts() {
        assert_eq!(variable(&env(&["A=1", "A=2", "AB=3"]), "A"), Some(&b"2"[..]));
    }
}
