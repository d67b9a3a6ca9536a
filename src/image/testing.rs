//! Images for tests: tars made by hand, and layouts of them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use super::digest::Digest;
use super::progress::Progress;

impl Progress for () {
    fn begin(&self, _what: &str, _bytes: Option<u64>) {}
    fn advance(&self, _bytes: u64) {}
    fn end(&self) {}
}

pub(super) const OCI_INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const OCI_LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// A tar header, in POSIX' format, and the padded content. `len` can lie.
pub(super) fn entry(path: &str, kind: u8, link: &str, len: u64, content: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    header[..path.len()].copy_from_slice(path.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[108..115].copy_from_slice(b"0000000");
    header[116..123].copy_from_slice(b"0000000");
    header[124..135].copy_from_slice(format!("{len:011o}").as_bytes());
    header[136..147].copy_from_slice(b"00000000000");
    header[156] = kind;
    header[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut header);
    let mut bytes = header.to_vec();
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// Sets the checksum.
pub(super) fn seal(header: &mut [u8; 512]) {
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

pub(super) fn file(path: &str, content: &[u8]) -> Vec<u8> {
    entry(path, b'0', "", content.len() as u64, content)
}

/// A tar of these entries.
pub(super) fn tar(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = entries.concat();
    bytes.extend([0; 1024]);
    bytes
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(super) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// With CRC-64 and a dictionary of 8 MiB, as `xz` compresses by itself.
pub(super) fn xz(bytes: &[u8]) -> Vec<u8> {
    xz_with(bytes, lzma_rust2::XzOptions::with_preset(1))
}

pub(super) fn xz_with(bytes: &[u8], options: lzma_rust2::XzOptions) -> Vec<u8> {
    let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(super) fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The files of an image.
#[derive(Clone, Debug, Default)]
pub(super) struct Parts(pub(super) BTreeMap<String, Vec<u8>>);

impl Parts {
    /// Adds a blob, and gives a descriptor of it.
    pub(super) fn blob(&mut self, media_type: &str, content: impl Into<Vec<u8>>) -> Value {
        let content = content.into();
        let digest = Digest::of(&content);
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": content.len()});
        self.0.insert(digest.blob_path(), content);
        descriptor
    }

    pub(super) fn document(&mut self, media_type: &str, content: &Value) -> Value {
        self.blob(media_type, content.to_string())
    }

    /// Adds an image with these layers, as they are stored and as they are uncompressed.
    pub(super) fn image(&mut self, architecture: &str, layers: &[(Vec<u8>, Vec<u8>)]) -> Value {
        let diff_ids: Vec<Digest> = layers.iter().map(|(_, tar)| Digest::of(tar)).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "created": "2024-01-01T00:00:00Z",
            "config": {"Env": ["A=B"], "Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.document(OCI_CONFIG_TYPE, &config);
        let layers: Vec<Value> =
            layers.iter().map(|(stored, _)| self.blob(OCI_LAYER_TYPE, stored.clone())).collect();
        self.document(
            OCI_MANIFEST_TYPE,
            &json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST_TYPE, "config": config, "layers": layers}),
        )
    }

    /// An image of one small layer.
    pub(super) fn small_image(&mut self, architecture: &str) -> Value {
        let layer = tar(&[file("hello", architecture.as_bytes())]);
        self.image(architecture, &[(layer.clone(), layer)])
    }

    pub(super) fn index(&mut self, manifests: &[Value]) -> &mut Self {
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX_TYPE, "manifests": manifests});
        self.0.insert("index.json".into(), index.to_string().into());
        self.0.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        self
    }

    pub(super) fn write_to(&self, dir: &Path) {
        for (path, content) in &self.0 {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    pub(super) fn to_tar(&self) -> Vec<u8> {
        let entries: Vec<_> = self.0.iter().map(|(path, content)| file(path, content)).collect();
        tar(&entries)
    }
}

/// A descriptor with more in it.
pub(super) fn with(mut descriptor: Value, key: &str, value: Value) -> Value {
    descriptor[key] = value;
    descriptor
}

/// A descriptor with a name.
pub(super) fn named(descriptor: Value, name: &str) -> Value {
    with(descriptor, "annotations", json!({"org.opencontainers.image.ref.name": name}))
}

/// A descriptor with a platform.
pub(super) fn platform(descriptor: Value, architecture: &str, variant: &str) -> Value {
    let platform = json!({"os": "linux", "architecture": architecture, "variant": variant});
    with(descriptor, "platform", platform)
}

/// The whole chain of an error, as people see it.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}
