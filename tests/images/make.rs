//! Images: by other people's tools, and by hand where they must be wrong.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sha2::Digest;

use crate::support::{could_not_run, installed, is_root};

/// Whether all of these tools are there; says so for `test` if one isn't.
pub(crate) fn have(test: &str, tools: &[&str]) -> bool {
    match tools.iter().find(|tool| !installed(tool)) {
        Some(tool) => {
            could_not_run(test, &format!("{tool} is not installed"));
            false
        }
        None => true,
    }
}

/// Runs a tool in `dir`, and gives its output. It must succeed.
pub(crate) fn tool<S: AsRef<OsStr>>(dir: &Path, program: &str, args: impl IntoIterator<Item = S>) -> String {
    String::from_utf8(tool_bytes(dir, program, args)).unwrap()
}

/// The same for output that is no text.
pub(crate) fn tool_bytes<S: AsRef<OsStr>>(
    dir: &Path,
    program: &str,
    args: impl IntoIterator<Item = S>,
) -> Vec<u8> {
    let mut command = Command::new(program);
    let output = command.args(args).current_dir(dir).env("BUILDAH_ISOLATION", "chroot").output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Words of a command line without blanks in them.
pub(crate) fn words(dir: &Path, line: &str) -> String {
    let mut words = line.split(' ');
    tool(dir, words.next().unwrap(), words)
}

/// `dir/layout` by umoci: an image `app` of two layers and with a configuration, and `base`, which
/// has the lower one alone.
pub(crate) fn umoci_layout(dir: &Path) {
    let rootless = if is_root() { "" } else { "--rootless " };
    words(dir, "umoci init --layout layout");
    words(dir, "umoci new --image layout:base");
    for (number, (from, to)) in [("base", "base"), ("base", "app")].into_iter().enumerate() {
        let bundle = format!("bundle{number}");
        words(dir, &format!("umoci unpack {rootless}--image layout:{from} {bundle}"));
        let root = dir.join(&bundle).join("rootfs");
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(root.join(format!("etc/file{number}")), noise(300_000 + number)).unwrap();
        words(dir, &format!("umoci repack --image layout:{to} {bundle}"));
    }
    words(
        dir,
        "umoci config --image layout:app --config.user 1000:100 --config.env A=B --config.env PATH=/bin \
         --config.cmd one --config.cmd two --config.entrypoint /entry --config.workingdir /work --config.exposedports 80/tcp \
         --config.volume /data --config.label key=value --config.stopsignal SIGINT",
    );
}

/// Bytes that don't compress.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64.wrapping_add(len as u64);
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..len).map(next).collect()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    let digest = sha2::Sha256::digest(bytes);
    format!("sha256:{}", digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// A tar of one file, by the system's tar.
pub(crate) fn tar_of(dir: &Path, name: &str, content: &[u8]) -> Vec<u8> {
    let source = dir.join("tar-of");
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join(name), content).unwrap();
    words(dir, &format!("tar -cf tar-of.tar -C tar-of --owner=0 --group=0 --mtime=@0 {name}"));
    fs::remove_dir_all(source).unwrap();
    fs::read(dir.join("tar-of.tar")).unwrap()
}

/// A layout made by hand, so that anything in it can be wrong.
pub(crate) struct Layout {
    pub(crate) dir: PathBuf,
}

impl Layout {
    pub(crate) fn new(dir: PathBuf) -> Self {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { dir }
    }

    /// Writes a blob, and gives its descriptor.
    pub(crate) fn blob(&self, media_type: &str, content: &[u8]) -> Value {
        let digest = sha256(content);
        fs::write(self.path(&digest), content).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": content.len()})
    }

    pub(crate) fn path(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs").join(digest.replace(':', "/"))
    }

    pub(crate) fn document(&self, kind: &str, content: &Value) -> Value {
        self.blob(&format!("application/vnd.oci.image.{kind}.v1+json"), content.to_string().as_bytes())
    }

    /// An image of these layers; gives its descriptor.
    pub(crate) fn image(&self, architecture: &str, diff_ids: &[String], layers: &[Value]) -> Value {
        let config = json!({"architecture": architecture, "os": "linux", "config": {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = self.document("config", &config);
        self.document("manifest", &json!({"schemaVersion": 2, "config": config, "layers": layers}))
    }

    pub(crate) fn index(&self, manifests: &[Value]) {
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        fs::write(self.dir.join("index.json"), index.to_string()).unwrap();
    }

    /// A layout with one good image of one layer; gives the layer's descriptor, too.
    pub(crate) fn good(dir: PathBuf, content: &[u8]) -> (Self, Value) {
        let layout = Self::new(dir);
        let tar = tar_of(layout.dir.parent().unwrap(), "file", content);
        let layer = layout.blob("application/vnd.oci.image.layer.v1.tar", &tar);
        let image = layout.image("amd64", &[sha256(&tar)], std::slice::from_ref(&layer));
        layout.index(&[image]);
        (layout, layer)
    }

    /// The same as an archive beside it.
    pub(crate) fn archive(&self) -> PathBuf {
        let path = self.dir.with_extension("tar");
        let dir = self.dir.parent().unwrap();
        tool(
            dir,
            "tar",
            [OsStr::new("-cf"), path.as_os_str(), OsStr::new("-C"), self.dir.as_os_str(), OsStr::new(".")],
        );
        path
    }
}
