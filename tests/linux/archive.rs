//! A writer of newc archives, the format of an initramfs; the kernel takes several in one file, one
//! behind the other.

/// Files to be put over an initramfs.
#[derive(Default)]
pub(crate) struct Archive(Vec<u8>);

impl Archive {
    /// Adds a file, and the directory that it is in.
    pub(crate) fn file(mut self, dir: &str, name: &str, content: &[u8]) -> Self {
        self.entry(dir, 0o040_755, &[]);
        self.entry(&format!("{dir}/{name}"), 0o100_755, content);
        self
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.0
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        // inode, mode, uid, gid, links, mtime, size, device (2), node's device (2), length of the
        // name with its NUL, checksum
        let fields = [0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name.as_bytes()) + 1, 0];
        self.0.extend(b"070701");
        for field in fields {
            self.0.extend(format!("{field:08x}").bytes());
        }
        self.0.extend(name.bytes());
        self.0.push(0);
        self.pad();
        self.0.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

fn len(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("test files are small")
}
